//! Takes our tables off a node, and nothing else. It refuses while an enforcer runs.

use std::{fs, path::Path};

use sallyport_nft::{
    command::Command,
    netlink::{self, Netlink},
};

use crate::{journal, table};

/// Why the table stays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An enforcer has it.
    #[error(
        "{owner} owns the table inet sallyport and enforces policy. Stop this process first (with systemd: \
         `systemctl disable --now sallyport-enforcer`)"
    )]
    Owned {
        /// Its process.
        owner: String,
    },
    /// An enforcer has the journal, and would make the table again.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The kernel refused.
    #[error("cannot delete the tables of sallyport: {0}")]
    Kernel(#[from] netlink::Error),
}

/// Refuses while an enforcer runs. Returns whether there is a table that policy is enforced by.
pub fn refuse_while_one_runs(data_dir: &Path) -> Result<bool, Error> {
    Ok(unowned(data_dir)?.is_there()?)
}

/// Deletes both tables. Returns whether there was any.
pub fn uninstall(data_dir: &Path) -> Result<bool, Error> {
    let netlink = unowned(data_dir)?;
    let mut any = false;
    for table in [netlink.for_table(table::BRIDGE), netlink] {
        if table.is_there()? {
            table.commit(&[Command::DeleteTable])?;
            any = true;
        }
    }
    Ok(any)
}

/// A way to the table, which no enforcer has.
fn unowned(data_dir: &Path) -> Result<Netlink, Error> {
    journal::refuse_open(data_dir)?;
    let netlink = table::open()?;
    if let Some(owner) = netlink.owner()? {
        return Err(Error::Owned {
            owner: process(owner),
        });
    }
    Ok(netlink)
}

/// A process, by the port of its socket: that is the process's number, as long as it has one socket.
fn process(port: u32) -> String {
    match fs::read_to_string(format!("/proc/{port}/comm")) {
        Ok(name) => format!("{} (pid {port})", name.trim_end()),
        Err(_) => format!("a process (netlink port {port})"),
    }
}
