//! What the agent needs of a kernel, as a trait: `Netlink` is the real one, `fake::FakeKernel` the one of tests and
//! simulations. It decides nothing and holds no state.

use crate::{
    grace,
    netlink::{Error, Netlink, TableState},
    nft::{command::Command, stamp::Reading},
};

/// A kernel that holds our table.
pub trait Kernel {
    /// The most bytes that a batch should have.
    fn batch_limit(&self) -> usize;

    /// Commits commands as one batch: all of them or none.
    fn commit(&mut self, commands: &[Command]) -> Result<(), Error>;

    /// Our table as it is; `None` when there is none.
    fn read(&mut self) -> Result<Option<TableState>, Error>;

    /// What the table's stamp says. The table must be there.
    fn read_stamp(&mut self) -> Result<Reading, Error>;

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

    fn read(&mut self) -> Result<Option<TableState>, Error> {
        Netlink::read(self)
    }

    fn read_stamp(&mut self) -> Result<Reading, Error> {
        Netlink::read_stamp(self)
    }

    fn grace(&mut self) {
        grace::period();
    }
}
