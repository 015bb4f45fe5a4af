//! The table of family bridge in the kernel: made to hold what it should, at the cost of what changes. It knows no
//! policy.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use sallyport_nft::{
    command::{Command, Element, SetKind, TableFamily},
    content::{Desired, DesiredChain, DesiredSet, Observed},
    encode,
    kernel::Kernel as _,
    netlink::{self, Netlink},
};
use tracing::{debug, info};

use crate::table::{
    self,
    bridge::{self, Ground},
    ports,
    render::replace_rules,
};

/// The most reads of the table while others commit.
const TRIES: usize = 8;

/// The table, and what is in it.
#[derive(Debug)]
pub struct BridgeTable {
    kernel: Netlink,
    /// Whether the kernel is asked to protect it.
    owned: bool,
    ground: Ground,
    desired: Desired,
    /// Whether the kernel is known to hold what is desired.
    holds: bool,
    /// Whether the kernel said that it has no such tables.
    missing: bool,
}

impl BridgeTable {
    /// The table beside another, of the same owner. Nothing is read or changed yet.
    pub fn beside(table: &Netlink, owned: bool) -> BridgeTable {
        BridgeTable {
            kernel: table.for_table(table::BRIDGE),
            owned,
            ground: Ground::default(),
            desired: Desired::default(),
            holds: false,
            missing: false,
        }
    }

    /// Has the table hold what the ground asks for.
    pub fn set(&mut self, ground: Ground) -> Result<(), netlink::Error> {
        if self.holds && self.ground == ground {
            return Ok(());
        }
        let desired = Desired::of(&bridge::commands(&ground));
        let before = std::mem::replace(&mut self.desired, desired);
        self.ground = ground;
        if self.holds && self.change(&before) {
            return Ok(());
        }
        self.holds = false;
        self.restore().map(drop)
    }

    /// Leads from a content to the one that is desired. Returns whether that could be done: if not, the table is to be
    /// read.
    fn change(&mut self, before: &Desired) -> bool {
        let Some(steps) = steps(before, &self.desired) else {
            return false;
        };
        for (at, step) in steps.iter().enumerate() {
            if at > 0 {
                // A packet in the rules before is to find what they look for.
                self.kernel.grace();
            }
            if let Err(error) = self.kernel.commit(step) {
                debug!(%error, "cannot change the table bridge sallyport in steps: reading the table");
                return false;
            }
        }
        true
    }

    /// Reads the table, and writes it anew if it is not what it should be. Returns whether it was there and was not.
    pub fn restore(&mut self) -> Result<bool, netlink::Error> {
        if self.desired.chains.is_empty() {
            // Nothing is known yet that it should be.
            return Ok(false);
        }
        let result = self.write();
        let is_needed = self.ground != Ground::default();
        match result {
            Err(error) if !is_needed && is_unsupported(&error) => {
                if !std::mem::replace(&mut self.missing, true) {
                    info!(
                        %error,
                        "this kernel has no nf_tables for bridges: no workload on a bridge can be guarded \
                         (CONFIG_NF_TABLES_BRIDGE)"
                    );
                }
                Ok(false)
            }
            result => {
                self.missing = false;
                result
            }
        }
    }

    fn write(&mut self) -> Result<bool, netlink::Error> {
        let mut replaced = false;
        for tries_left in (0..TRIES).rev() {
            let observed = self.kernel.content()?;
            let is_there = observed.flags.is_some();
            let is_right = is_as(&self.desired, &observed) && self.is_made_as_it_should(&observed);
            let take = Command::AddTable { owned: self.owned };
            if tries_left > 0
                && !is_right
                && self.is_made_as_it_should(&observed)
                && let Some(before) = as_written(&observed, &self.desired)
                && self
                    .kernel
                    .commit_at(observed.generation, std::slice::from_ref(&take))
                    .is_ok()
                && self.change(&before)
            {
                // Others may have committed between the steps: the table is read once more.
                replaced = true;
                continue;
            }
            let commands: Vec<Command> = match is_right {
                // The table that an earlier life left becomes ours, and nothing else changes.
                true => vec![take],
                // In one batch, so that there is no moment without a table.
                false => is_there
                    .then_some(Command::DeleteTable)
                    .into_iter()
                    .chain([take])
                    .chain(bridge::commands(&self.ground))
                    .collect(),
            };
            match self.kernel.commit_at(observed.generation, &commands) {
                Ok(()) => {
                    self.holds = true;
                    return Ok(replaced || is_there && !is_right);
                }
                Err(error) if error.is_outdated() && tries_left > 0 => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the last try returns")
    }

    /// Whether the table is there, and has the flag that lets it be protected where that is asked for.
    fn is_made_as_it_should(&self, observed: &Observed) -> bool {
        let persists = |flags| flags & encode::TABLE_PERSISTS != 0;
        observed.flags.map(persists) == Some(self.owned)
    }
}

fn is_unsupported(error: &netlink::Error) -> bool {
    let (netlink::Error::Refused { errno, .. } | netlink::Error::Socket { errno, .. }) = error
    else {
        return false;
    };
    matches!(
        errno,
        Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EPROTONOSUPPORT
    )
}

/// Whether a table holds what it should, and nothing else.
fn is_as(desired: &Desired, observed: &Observed) -> bool {
    let spell = |chain: &DesiredChain| -> Vec<String> {
        let rules = chain.rules.iter();
        rules
            .map(|rule| encode::spelling(TableFamily::Bridge, rule))
            .collect()
    };
    let has_chain = |(name, chain): (&String, &DesiredChain)| {
        observed.chains.get(name).is_some_and(|there| {
            let spelt = there.rules.iter().map(|rule| &rule.spelling);
            chain.has_hook_of(there) && spell(chain).iter().eq(spelt)
        })
    };
    let has_set = |(name, set): (&String, &DesiredSet)| {
        observed.sets.get(name).is_some_and(|there| {
            there.kind == Some(set.kind) && there.elements.as_ref() == Some(&set.elements)
        })
    };
    (desired.chains.len(), desired.sets.len()) == (observed.chains.len(), observed.sets.len())
        && desired.chains.iter().all(has_chain)
        && desired.sets.iter().all(has_set)
}

/// A table that is there, as commands would have written it; none where it differs from what is desired by more than
/// the chains and sets that change while packets look.
fn as_written(observed: &Observed, desired: &Desired) -> Option<Desired> {
    let mut before = Desired::default();
    for (name, set) in &desired.sets {
        let there = observed
            .sets
            .get(name)
            .filter(|there| there.kind == Some(set.kind))?;
        let mut set = set.clone();
        set.elements = there.elements.clone()?;
        before.sets.insert(name.clone(), set);
    }
    for (name, there) in &observed.chains {
        let mut chain = match desired.chains.get(name) {
            Some(chain) if chain.has_hook_of(there) => chain.clone(),
            None if bridge::changes(name) => DesiredChain {
                make: Command::DeleteChain(name.clone()),
                base: None,
                rules: Vec::new(),
            },
            _ => return None,
        };
        let spelt = chain.rules.iter();
        let spelt = spelt.map(|rule| encode::spelling(TableFamily::Bridge, rule));
        if !spelt.eq(there.rules.iter().map(|rule| rule.spelling.clone())) {
            if !bridge::changes(name) {
                return None;
            }
            chain.rules.clear();
        }
        before.chains.insert(name.clone(), chain);
    }
    let is_there = |name: &String| before.chains.contains_key(name) || bridge::changes(name);
    let is_whole = desired.chains.keys().all(is_there) && observed.sets.len() == desired.sets.len();
    is_whole.then_some(before)
}

/// The batches that lead from one content to another; none where the table had better be written anew.
///
/// A packet chooses the rules of a chain once and looks into sets as they are at that moment, so that in one batch a
/// set may change before the rules that look into it. So where rules change: first what is new, with rules that hold
/// for more ports; then rules that hold for fewer; last what is gone.
fn steps(before: &Desired, after: &Desired) -> Option<Vec<Vec<Command>>> {
    if !before.sets.keys().eq(after.sets.keys()) {
        return None;
    }
    let (mut delete, mut add) = (Vec::new(), Vec::new());
    for (name, set) in &after.sets {
        let old = &before.sets[name];
        if old.elements == set.elements {
            continue;
        }
        // The kernel cannot put ranges in the place of others in one batch, and these hardly ever change.
        if matches!(set.kind, SetKind::Ranges(_)) {
            return None;
        }
        let of = |elements: BTreeSet<Element>| elements.into_iter().collect::<Vec<_>>();
        let new = &set.elements - &old.elements;
        let mut gone = &old.elements - &set.elements;
        if matches!(set.kind, SetKind::InterfaceRanges(_)) {
            // The kernel refuses ranges that overlap. A range that replaces another is added in the same batch.
            let replaced = ports::overlapping(&gone, &new);
            gone = &gone - &replaced;
            if !replaced.is_empty() {
                let replaced = of(replaced);
                add.push(Command::DeleteElements(name.clone(), set.kind, replaced));
            }
        }
        let (gone, new) = (of(gone), of(new));
        if !gone.is_empty() {
            delete.push(Command::DeleteElements(name.clone(), set.kind, gone));
        }
        if !new.is_empty() {
            add.push(Command::AddElements(name.clone(), set.kind, new));
        }
    }
    let (old, new) = (&before.chains, &after.chains);
    let missing = |one: &BTreeMap<String, DesiredChain>, other: &BTreeMap<String, DesiredChain>| {
        let names = one.keys().filter(|name| !other.contains_key(*name));
        names.cloned().collect::<Vec<_>>()
    };
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for name in missing(new, old) {
        let chain = &new[&name];
        first.push(chain.make.clone());
        let rules = chain.rules.iter().cloned();
        first.extend(rules.map(|rule| Command::AddRule(name.clone(), rule)));
    }
    for (name, chain) in new {
        let Some(old) = old.get(name).filter(|old| old.rules != chain.rules) else {
            continue;
        };
        if !bridge::changes(name) {
            return None;
        }
        let holds = |chain: &DesiredChain| bridge::holds_for_unknown(&chain.rules);
        let holds_for_fewer = chain.rules.len() < old.rules.len() || (holds(old) && !holds(chain));
        let commands = replace_rules(name, chain.rules.clone());
        match holds_for_fewer {
            true => second.extend(commands),
            false => first.extend(commands),
        }
    }
    first.extend(add);
    let gone = missing(old, new).into_iter().map(Command::DeleteChain);
    delete.extend(gone);
    let rules_change = |commands: &[Command]| {
        let mut commands = commands.iter();
        commands.any(|command| matches!(command, Command::FlushChain(_)))
    };
    if !rules_change(&first) && second.is_empty() {
        let all = [first, delete].concat();
        return Some([all].into_iter().filter(|all| !all.is_empty()).collect());
    }
    let steps = [first, second, delete].into_iter();
    Some(steps.filter(|step| !step.is_empty()).collect())
}
