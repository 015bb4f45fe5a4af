//! A kernel as a trait. [`Netlink`] is the real one, and tests and simulations can use a model in its place.

use std::collections::BTreeSet;

use crate::{
    command::{Command, Element, SetKind},
    connection::Connection,
    content::Observed,
    grace,
    netlink::{Error, Netlink, Outline},
};

/// A kernel that holds one table, or none yet.
pub trait Kernel {
    /// The most bytes that a batch should have.
    fn batch_limit(&self) -> usize;

    /// Commits commands as one batch: all of them or none.
    fn commit(&mut self, commands: &[Command]) -> Result<(), Error>;

    /// Commits commands as one batch, if the ruleset is still of a generation. After any other commit the kernel
    /// refuses the batch with `ERESTART`.
    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error>;

    /// Lists the content of the table.
    fn content(&mut self) -> Result<Observed, Error>;

    /// Lists the names of the table's objects; `None` when there is no table.
    fn outline(&mut self) -> Result<Option<Outline>, Error>;

    /// Lists the elements of a set or map; `None` when some do not fit the kind. A set that is not there has none.
    fn elements(&mut self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error>;

    /// Lists the sets and maps that the rules of a chain look up, in the order of the rules, without anonymous ones. A
    /// chain that is not there has none.
    fn lookups(&mut self, chain: &str) -> Result<Vec<String>, Error>;

    /// Flushes the connections that a predicate selects from conntrack, and returns their number.
    fn flush_conntrack(&mut self, which: &dyn Fn(&Connection) -> bool) -> Result<usize, Error>;

    /// Returns when every packet that is under way at the call has passed.
    fn grace(&mut self);
}

impl Kernel for Netlink {
    fn batch_limit(&self) -> usize {
        Netlink::batch_limit(self)
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        Netlink::commit(self, commands)
    }

    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        Netlink::commit_at(self, generation, commands)
    }

    fn content(&mut self) -> Result<Observed, Error> {
        Netlink::content(self)
    }

    fn outline(&mut self) -> Result<Option<Outline>, Error> {
        Netlink::outline(self)
    }

    fn elements(&mut self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error> {
        Netlink::elements(self, set, kind)
    }

    fn lookups(&mut self, chain: &str) -> Result<Vec<String>, Error> {
        Netlink::lookups(self, chain)
    }

    fn flush_conntrack(&mut self, which: &dyn Fn(&Connection) -> bool) -> Result<usize, Error> {
        Netlink::flush_conntrack(self, which)
    }

    fn grace(&mut self) {
        grace::period();
    }
}
