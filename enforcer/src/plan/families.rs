//! The sets of addresses that come and go with the members of groups that stay. A group has a set for a family only
//! while it has a member of it.
//!
//! - A group that gains its first member of a family gets the set, empty, before anything else changes, and rules that
//!   look into it as well. The member comes later, as any other does.
//! - A group that loses its last member of a family gets rules that do not look into the set, after everything else has
//!   changed. The set is garbage then.
//!
//! So while rules change the set is empty, and both copies of the chain's rules say the same: no packet's verdict
//! depends on which it meets.

use std::collections::{BTreeMap, BTreeSet};

use imbl::ordmap::DiffItem;
use sallyport_nft::command::Command;
use sallyport_policy::{Direction, GroupId, PeerGroup};

use crate::{
    plan::{batches::Atom, half::Version},
    table::{
        families::Families,
        names,
        render::{add_empty_set, group_rules, replace_rules},
    },
};

/// The changes that an update makes to the sets of groups that stay.
#[derive(Default)]
pub(super) struct Changes {
    /// Before anything else changes.
    pub(super) first: Vec<Atom>,
    /// When all else has changed.
    pub(super) last: Vec<Atom>,
    /// The sets that are not looked into any more.
    pub(super) garbage: BTreeSet<String>,
    /// The families for which the changed groups that stay have sets in between.
    pub(super) between: Between,
}

/// Families for which there are sets while an update is applied.
#[derive(Default)]
pub(super) struct Between(BTreeMap<GroupId, Families>);

impl Between {
    /// The families of a group of any version of the update. One that does not stay has the same members in all
    /// versions that have it.
    pub(super) fn of(&self, id: GroupId, group: &PeerGroup) -> Families {
        let changed = self.0.get(&id).copied();
        changed.unwrap_or_else(|| Families::of(group))
    }
}

impl Changes {
    /// The cost is that of the groups that change, and of the classes where one gains or loses a family.
    pub(super) fn between(old: Version<'_>, new: Version<'_>) -> Changes {
        let mut changes = Changes::default();
        let mut uses = None;
        for item in old.policy.groups().diff(new.policy.groups()) {
            let DiffItem::Update {
                old: (&id, before),
                new: (_, after),
            } = item
            else {
                continue;
            };
            let (was, will_be) = (Families::of(before), Families::of(after));
            let all = was.union(will_be);
            changes.between.0.insert(id, all);
            if was == will_be {
                continue;
            }
            let (used, will_be_used) =
                uses.get_or_insert_with(|| (old.group_uses(), new.group_uses()));
            let name = new.group(id);
            let rules = |uses: &BTreeSet<(Direction, GroupId)>, families| {
                let used = move |direction: &Direction| uses.contains(&(*direction, id));
                let replace = |direction| {
                    let chain = names::group_chain(direction, &name);
                    replace_rules(&chain, group_rules(direction, &name, after, families))
                };
                let chains = Direction::BOTH.into_iter().filter(used).map(replace);
                chains.collect::<Vec<Atom>>()
            };
            if all != was {
                let gained = all.without(was).iter();
                changes.first.extend(gained.map(|family| {
                    // One that is left of an earlier update is emptied of what others may have put in.
                    let set = add_empty_set(&name, after, family);
                    vec![
                        set,
                        Command::FlushSet(names::group_addresses(&name, family)),
                    ]
                }));
                changes.first.extend(rules(used, all));
            }
            if all != will_be {
                let lost = all.without(will_be).iter();
                let lost = lost.map(|family| names::group_addresses(&name, family));
                changes.garbage.extend(lost);
                changes.last.extend(rules(will_be_used, will_be));
            }
        }
        changes
    }
}
