//! The sets that say which addresses are endpoints: those that the maps must have, and those that reach themselves.
//! They lead no packet anywhere.
//!
//! A packet looks into them after it has looked into a map. So that it does not find an address that the map had not
//! yet when it looked there, nor misses one that the map still had, these change in batches of their own.

use std::net::IpAddr;

use imbl::ordmap::DiffItem;
use sallyport_nft::command::Command;
use sallyport_policy::NodePolicy;

use crate::{
    plan::Installed,
    table::render::{self, Options},
};

/// The changes of these sets in an update, by when they are committed.
#[derive(Default)]
pub(super) struct Changes {
    /// Before the maps change.
    pub(super) first: Vec<Command>,
    /// When all is revoked and packets that were under way are through, before anything is granted.
    pub(super) revoked: Vec<Command>,
    /// The same, and no packet need be waited for.
    pub(super) granting: Vec<Command>,
    /// When all is granted and packets that were under way are through.
    pub(super) last: Vec<Command>,
}

impl Changes {
    pub(super) fn between(old: &Installed, new: &Installed, options: &Options) -> Changes {
        let mut come = Vec::new();
        // The three lists differ in the packets that passed before: none; only answers, where they are dropped by
        // interface; all.
        let [mut from_nothing, mut from_answers, mut from_all] = [const { Vec::new() }; 3];
        // Whether anything passes of them afterwards.
        let [mut to_nothing, mut to_all] = [const { Vec::new() }; 2];
        for item in old.policy.endpoints().diff(new.policy.endpoints()) {
            match item {
                DiffItem::Add(&address, _) => {
                    come.push(address);
                    if options.silences(&old.policy, address) {
                        from_nothing.push(address);
                    } else if old.policy.drops_unknown(address, &old.unknown) {
                        from_answers.push(address);
                    } else {
                        from_all.push(address);
                    }
                }
                DiffItem::Remove(&address, _) => {
                    match new.policy.drops_unknown(address, &new.unknown) {
                        true => to_nothing.push(address),
                        false => to_all.push(address),
                    }
                }
                DiffItem::Update { .. } => {}
            }
        }
        let (known, own) = (render::change_known, render::change_own);
        let (add, delete) = (Command::AddElements, Command::DeleteElements);
        Changes {
            first: [
                known(&from_nothing, add),
                known(&to_nothing, delete),
                own(&to_nothing, delete),
                own(&come, add),
            ]
            .concat(),
            revoked: known(&from_all, add),
            granting: known(&to_all, delete),
            last: [known(&from_answers, add), own(&to_all, delete)].concat(),
        }
    }
}

/// The sets of a whole table, filled.
pub(super) fn all(policy: &NodePolicy) -> Vec<Command> {
    let addresses: Vec<IpAddr> = policy.endpoints().keys().copied().collect();
    let known = render::change_known(&addresses, Command::AddElements);
    let own = render::change_own(&addresses, Command::AddElements);
    [known, own].concat()
}
