//! What the agent needs of a kernel, as a trait: `Netlink` is the real one, `fake::FakeKernel` the one of tests and
//! simulations. It decides nothing and holds no state.

use crate::{
    connection::Connection,
    grace,
    netlink::{Error, Netlink, TableState},
    nft::{command::Command, content::Observed, lease::Slot, stamp::StampState},
};

/// A kernel that holds our table.
pub trait Kernel {
    /// The most bytes that a batch should have.
    fn batch_limit(&self) -> usize;

    /// Commits commands as one batch: all of them or none.
    fn commit(&mut self, commands: &[Command]) -> Result<(), Error>;

    /// The same, if nobody has committed anything since the ruleset was of this generation; else it is refused with
    /// `ERESTART`.
    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error>;

    /// Lists the content of our table.
    fn content(&mut self) -> Result<Observed, Error>;

    /// Our table as it is; `None` when there is none.
    fn read(&mut self) -> Result<Option<TableState>, Error>;

    /// Reads the table's stamp. The table must exist.
    fn read_stamp(&mut self) -> Result<StampState, Error>;

    /// Which set the chain of the lease looks into; `None` when there is no such chain, or it is empty.
    fn read_lease(&mut self) -> Result<Option<Slot>, Error>;

    /// Flushes the connections that a predicate selects from conntrack, and returns their number.
    fn flush_conntrack(&mut self, which: &dyn Fn(&Connection) -> bool) -> Result<usize, Error>;

    /// Returns when every packet that is under way now is through.
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

    fn read(&mut self) -> Result<Option<TableState>, Error> {
        Netlink::read(self)
    }

    fn read_stamp(&mut self) -> Result<StampState, Error> {
        Netlink::read_stamp(self)
    }

    fn read_lease(&mut self) -> Result<Option<Slot>, Error> {
        Netlink::read_lease(self)
    }

    fn flush_conntrack(&mut self, which: &dyn Fn(&Connection) -> bool) -> Result<usize, Error> {
        Netlink::flush_conntrack(self, which)
    }

    fn grace(&mut self) {
        grace::period();
    }
}
