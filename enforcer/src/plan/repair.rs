//! Repairs: the kernel transactions that restore the desired content of a table that another process changed. Pure.
//!
//! Whole objects are not touched. Objects that packets cannot reach are made first. Then each level of lookups changes
//! in batches of its own, with a grace period before the next, so that no packet meets two levels in different states.
//! A base chain that was gone comes last.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_nft::{
    command::{Command, Element, Match, SetKind, TableFamily, Verdict},
    content::{Desired, DesiredChain, DesiredSet, Hook, Observed, ObservedSet, without_comment},
};

use crate::{
    plan::{
        Garbage, Limits, Step,
        batches::{Atom, Part, cut},
    },
    table::{frame, lease, render},
};

/// `NFT_TABLE_F_DORMANT`: a table whose base chains the kernel does not call.
const DORMANT: u32 = 1;

/// The differences between the observed and the desired content of a table, and the transactions of the repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// The differences, as text.
    pub differences: Vec<String>,
    /// The transactions of the repair. They write no stamp but the desired one.
    pub steps: Vec<Step>,
    /// Unknown chains and sets. No packet reaches them once the repair is done.
    pub unrecognised: Garbage,
}

/// Plans the repair of a table. Objects in `known` are not desired, but stay for now. With `owned` a missing table is
/// created so that the kernel protects it.
pub fn repair(
    desired: &Desired,
    observed: &Observed,
    known: &Garbage,
    owned: bool,
    limits: Limits,
) -> Repair {
    let mut builder = RepairBuilder::default();
    let nothing = Observed::default();
    let observed = match observed.flags {
        Some(flags) if flags & DORMANT == 0 => observed,
        // No packet meets a dormant table, so its replacement is planned like a missing table.
        Some(_) => {
            builder.report("the table is dormant");
            builder.table = vec![Command::DeleteTable, Command::AddTable { owned }];
            &nothing
        }
        None => {
            builder.report("the table is gone");
            builder.table = vec![Command::AddTable { owned }];
            &nothing
        }
    };
    let is_there = builder.table.is_empty();
    for (name, set) in &desired.sets {
        builder.set(name, set, observed.sets.get(name));
    }
    for (name, chain) in &desired.chains {
        builder.chain(name, chain, observed);
    }
    builder.unrecognised(desired, observed, known);
    if !is_there {
        // The missing table is the only difference worth a report.
        builder.differences.truncate(1);
    }
    builder.build(limits)
}

/// The commands of a repair, by the part in which they are committed.
#[derive(Default)]
struct RepairBuilder {
    differences: Vec<String>,
    table: Vec<Command>,
    /// Chains come before what names them.
    chains: Vec<Command>,
    prepare: Vec<Command>,
    /// The rules of chains that are there.
    rules: Vec<Atom>,
    /// The rules that come after those that packets find late.
    ends: Vec<Atom>,
    /// The elements of sets that are there.
    elements: Vec<Atom>,
    ranges: Vec<Atom>,
    /// The change that has the kernel call the table.
    last: Atom,
    /// The chains that the kernel calls and should not.
    hooks: Vec<Command>,
    unrecognised: Garbage,
}

impl RepairBuilder {
    fn report(&mut self, difference: impl Into<String>) {
        self.differences.push(difference.into());
    }

    fn set(&mut self, name: &str, desired: &DesiredSet, observed: Option<&ObservedSet>) {
        let kind = desired.kind;
        match observed {
            Some(observed) if observed.kind == Some(kind) => {
                self.elements(name, desired, observed);
            }
            observed => {
                if observed.is_some() {
                    self.report(format!("set {name} has another type"));
                    self.prepare.push(Command::DeleteSet(name.to_owned()));
                } else {
                    self.report(format!("set {name} is gone"));
                }
                self.prepare.push(desired.make.clone());
                let all: Vec<Element> = desired.elements.iter().cloned().collect();
                if !all.is_empty() {
                    self.prepare
                        .push(Command::AddElements(name.to_owned(), kind, all));
                }
            }
        }
    }

    fn elements(&mut self, name: &str, desired: &DesiredSet, observed: &ObservedSet) {
        let kind = desired.kind;
        let flush = || Command::FlushSet(name.to_owned());
        let add = |some: Vec<Element>| Command::AddElements(name.to_owned(), kind, some);
        if kind == SetKind::Families {
            // The elements of this set belong to the lease, but their lifetime has a limit.
            let too_long = |element: &Element| match element {
                Element::Family(_, lasts) => lasts.is_zero() || *lasts > lease::LONGEST,
                _ => true,
            };
            let fits = |all: &BTreeSet<Element>| !all.iter().any(too_long);
            if !observed.elements.as_ref().is_some_and(fits) {
                self.report(format!("set {name} holds an invalid lease"));
                self.elements.push(vec![flush()]);
            }
            return;
        }
        let Some(there) = &observed.elements else {
            self.report(format!("set {name} holds malformed elements"));
            let all: Vec<Element> = desired.elements.iter().cloned().collect();
            self.elements.push(vec![flush(), add(all)]);
            return;
        };
        let plain: BTreeSet<Element> = desired.elements.iter().map(without_comment).collect();
        let extra: Vec<Element> = there.difference(&plain).cloned().collect();
        let missing: Vec<Element> = desired
            .elements
            .iter()
            .filter(|element| !there.contains(&without_comment(element)))
            .cloned()
            .collect();
        if missing.is_empty() && extra.is_empty() {
            return;
        }
        self.report(format!(
            "set {name}: {} elements missing, {} foreign",
            missing.len(),
            extra.len()
        ));
        let delete = |some: Vec<Element>| Command::DeleteElements(name.to_owned(), kind, some);
        match kind {
            SetKind::Verdicts(_) | SetKind::Numbers => {
                self.elements.extend(exchange(extra, missing, delete, add));
            }
            _ => {
                let level = match kind {
                    SetKind::Ranges(_) | SetKind::InterfaceRanges(_) => &mut self.ranges,
                    _ => &mut self.elements,
                };
                level.extend((!extra.is_empty()).then(|| vec![delete(extra)]));
                level.extend((!missing.is_empty()).then(|| vec![add(missing)]));
            }
        }
    }

    fn chain(&mut self, name: &str, desired: &DesiredChain, observed: &Observed) {
        let rules = || render::replace_rules(name, desired.rules.clone());
        let anew = || {
            let delete = [
                Command::FlushChain(name.to_owned()),
                Command::DeleteChain(name.to_owned()),
            ];
            delete.into_iter().chain([desired.make.clone()])
        };
        let Some(observed) = observed.chains.get(name) else {
            self.report(format!("chain {name} is gone"));
            match desired.base {
                Some(_) => {
                    self.last.push(desired.make.clone());
                    self.last.extend(rules());
                }
                None => {
                    self.chains.push(desired.make.clone());
                    self.prepare.extend(rules());
                }
            }
            return;
        };
        let mut changes = desired.repair_commands(TableFamily::Inet, name, observed);
        if !changes.is_empty() {
            self.report(format!(
                "chain {name} has other rules ({} instead of {})",
                observed.rules.len(),
                desired.rules.len()
            ));
        }
        if desired.has_hook_of(observed) {
            // Packets that miss these rules reach the end of the chain, as before the repair.
            let late = changes.iter().rposition(is_found_late);
            let end = late.map_or_else(Vec::new, |at| changes.split_off(at + 1));
            self.rules.extend((!changes.is_empty()).then_some(changes));
            self.ends.extend((!end.is_empty()).then_some(end));
            return;
        }
        self.report(format!("chain {name} has another hook, priority or policy"));
        match (desired.base, observed.hook) {
            // Creating an existing base chain again sets its policy.
            (Some(base), Hook::Dropping(at)) if base == at => {
                self.rules.extend((!changes.is_empty()).then_some(changes));
                self.last.push(desired.make.clone());
            }
            (Some(_), _) => {
                self.last.extend(anew());
                self.last.extend(rules());
            }
            // The kernel calls it, so no rule does.
            (None, _) => {
                self.chains.extend(anew());
                self.prepare.extend(rules());
            }
        }
    }

    fn unrecognised(&mut self, desired: &Desired, observed: &Observed, known: &Garbage) {
        for (name, chain) in &observed.chains {
            if desired.chains.contains_key(name) || known.chains.contains(name) {
                continue;
            }
            if chain.hook != Hook::None {
                self.report(format!("unknown base chain {name}"));
                self.hooks.push(Command::FlushChain(name.clone()));
                self.hooks.push(Command::DeleteChain(name.clone()));
            } else {
                self.unrecognised.chains.insert(name.clone());
            }
        }
        let others = observed
            .sets
            .keys()
            .filter(|&name| !desired.sets.contains_key(name) && !known.sets.contains(name));
        self.unrecognised.sets.extend(others.cloned());
    }

    fn build(mut self, limits: Limits) -> Repair {
        let first: Vec<Command> = self
            .table
            .into_iter()
            .chain(self.chains)
            .chain(self.prepare)
            .collect();
        // The base chains' rules are the last ones that change: before that, packets that miss them miss all.
        self.rules.sort_by_key(changes_base);
        let mut parts = vec![Part::of(first)];
        let levels = [
            Part::of(self.hooks),
            Part::new(self.rules),
            Part::new(self.ends),
            Part::new(self.elements),
            Part::new(self.ranges),
            Part::whole(self.last),
        ];
        let changes = levels
            .into_iter()
            .filter(|part| part.atoms.iter().any(|atom| !atom.is_empty()));
        parts.extend(changes.enumerate().map(|(earlier, part)| match earlier {
            0 => part,
            _ => part.after_grace(),
        }));
        Repair {
            differences: self.differences,
            steps: cut(parts, limits),
            unrecognised: self.unrecognised,
        }
    }
}

/// Whether commands change the rules of a base chain.
fn changes_base(atom: &Atom) -> bool {
    atom.iter().any(|command| match command {
        Command::AddRule(chain, _)
        | Command::InsertRule(chain, ..)
        | Command::DeleteRule(chain, _) => frame::base(chain).is_some(),
        _ => false,
    })
}

/// Whether a command adds a rule to what is left of its chain, with ranges of ports: lookups find
/// the ranges a moment after the rule.
fn is_found_late(command: &Command) -> bool {
    let is_range = |(first, last, _): &(u16, u16, Verdict)| first != last;
    let has_ranges = |condition: &Match| match condition {
        Match::ServerPortMap(ports) => ports.iter().any(is_range),
        _ => false,
    };
    matches!(command, Command::AddRule(_, rule) | Command::InsertRule(_, rule, _) if rule.matches.iter().any(has_ranges))
}

/// The number of elements that are exchanged in one atom.
const KEYS_IN_ATOM: usize = 32;

/// Puts some elements in the place of others of the same keys, each pair in one batch.
fn exchange(
    old: Vec<Element>,
    new: Vec<Element>,
    delete: impl Fn(Vec<Element>) -> Command,
    add: impl Fn(Vec<Element>) -> Command,
) -> Vec<Atom> {
    let mut pairs: BTreeMap<Element, (Option<Element>, Option<Element>)> = BTreeMap::new();
    for element in old {
        let pair = pairs.entry(key(&element)).or_default();
        pair.0 = Some(element);
    }
    for element in new {
        let pair = pairs.entry(key(&element)).or_default();
        pair.1 = Some(element);
    }
    let pairs: Vec<_> = pairs.into_values().collect();
    let atom = |some: &[(Option<Element>, Option<Element>)]| {
        let old: Vec<Element> = some.iter().filter_map(|(old, _)| old.clone()).collect();
        let new: Vec<Element> = some.iter().filter_map(|(_, new)| new.clone()).collect();
        let old = (!old.is_empty()).then(|| delete(old));
        let new = (!new.is_empty()).then(|| add(new));
        old.into_iter().chain(new).collect()
    };
    pairs.chunks(KEYS_IN_ATOM).map(atom).collect()
}

/// The key that distinguishes an element in its map: a map has at most one element for a key.
fn key(element: &Element) -> Element {
    match element {
        Element::Verdict(address, ..) => Element::Address(*address),
        Element::Number(number, _) => Element::Number(*number, String::new()),
        other => other.clone(),
    }
}
