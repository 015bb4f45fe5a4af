//! Repairs: the kernel transactions that make a table what it should be, after somebody else changed it. Pure.
//!
//! What is whole is not touched. What packets cannot reach is made first; then each level of lookups changes in batches of
//! its own, with a grace period before the next, so that no packet meets two of them in different states; the base chain
//! comes last where it was gone.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    nft::{
        command::{Command, Element, Match, SetKind, Verdict},
        content::{Found, FoundSet, Hook, Wanted, WantedChain, WantedSet, without_comment},
        frame, lease, render,
    },
    plan::{
        Garbage, Limits, Step,
        batches::{Atom, Part, cut},
    },
};

/// `NFT_TABLE_F_DORMANT`: a table whose base chains the kernel does not call.
const DORMANT: u32 = 1;

/// What is wrong with a table, and what mends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// What is wrong, in words.
    pub differences: Vec<String>,
    /// The transactions that mend it. They say nothing of where the table stands but what it should.
    pub steps: Vec<Step>,
    /// What nobody of us made and no packet can reach, unless what is mended leads there.
    pub strangers: Garbage,
}

/// Plans the repair of a table. `known` is there for a while yet though it is not wanted; `owned` says whether a table
/// that is gone is made so that the kernel protects it.
pub fn repair(
    wanted: &Wanted,
    found: &Found,
    known: &Garbage,
    owned: bool,
    limits: Limits,
) -> Repair {
    let mut work = Work::default();
    let nothing = Found::default();
    let found = match found.flags {
        Some(flags) if flags & DORMANT == 0 => found,
        // No packet meets it: another in its place is one that is made where there is none.
        Some(_) => {
            work.says("the table is dormant");
            work.table = vec![Command::DeleteTable, Command::AddTable { owned }];
            &nothing
        }
        None => {
            work.says("the table is gone");
            work.table = vec![Command::AddTable { owned }];
            &nothing
        }
    };
    let is_there = work.table.is_empty();
    for (name, set) in &wanted.sets {
        work.set(name, set, found.sets.get(name));
    }
    for (name, chain) in &wanted.chains {
        work.chain(name, chain, found);
    }
    work.strangers(wanted, found, known);
    if !is_there {
        // That is all that there is to say.
        work.differences.truncate(1);
    }
    work.done(limits)
}

#[derive(Default)]
struct Work {
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
    /// What has the kernel call the table.
    last: Atom,
    /// What the kernel calls and should not.
    hooks: Vec<Command>,
    strangers: Garbage,
}

impl Work {
    fn says(&mut self, difference: impl Into<String>) {
        self.differences.push(difference.into());
    }

    fn set(&mut self, name: &str, wanted: &WantedSet, found: Option<&FoundSet>) {
        let kind = wanted.kind;
        match found {
            Some(found) if found.kind == Some(kind) => {
                self.elements(name, wanted, found);
            }
            found => {
                if found.is_some() {
                    self.says(format!("set {name} has another type"));
                    self.prepare.push(Command::DeleteSet(name.to_owned()));
                } else {
                    self.says(format!("set {name} is gone"));
                }
                self.prepare.push(wanted.make.clone());
                let all: Vec<Element> = wanted.elements.iter().cloned().collect();
                if !all.is_empty() {
                    self.prepare
                        .push(Command::AddElements(name.to_owned(), kind, all));
                }
            }
        }
    }

    fn elements(&mut self, name: &str, wanted: &WantedSet, found: &FoundSet) {
        let kind = wanted.kind;
        let flush = || Command::FlushSet(name.to_owned());
        let add = |some: Vec<Element>| Command::AddElements(name.to_owned(), kind, some);
        if kind == SetKind::Families {
            // What is in there is the lease's affair, but for how long is not anybody's.
            let too_long = |element: &Element| match element {
                Element::Family(_, lasts) => lasts.is_zero() || *lasts > lease::LONGEST,
                _ => true,
            };
            let fits = |all: &BTreeSet<Element>| !all.iter().any(too_long);
            if !found.elements.as_ref().is_some_and(fits) {
                self.says(format!("set {name} holds an invalid lease"));
                self.elements.push(vec![flush()]);
            }
            return;
        }
        let Some(there) = &found.elements else {
            self.says(format!("set {name} holds malformed elements"));
            let all: Vec<Element> = wanted.elements.iter().cloned().collect();
            self.elements.push(vec![flush(), add(all)]);
            return;
        };
        let plain: BTreeSet<Element> = wanted.elements.iter().map(without_comment).collect();
        let foreign: Vec<Element> = there.difference(&plain).cloned().collect();
        let missing: Vec<Element> = wanted
            .elements
            .iter()
            .filter(|element| !there.contains(&without_comment(element)))
            .cloned()
            .collect();
        if missing.is_empty() && foreign.is_empty() {
            return;
        }
        self.says(format!(
            "set {name}: {} elements missing, {} foreign",
            missing.len(),
            foreign.len()
        ));
        let delete = |some: Vec<Element>| Command::DeleteElements(name.to_owned(), kind, some);
        match kind {
            SetKind::Verdicts(_) | SetKind::Stamp => {
                self.elements
                    .extend(exchange(foreign, missing, delete, add));
            }
            _ => {
                let level = match kind {
                    SetKind::Ranges(_) | SetKind::PortRanges(_) => &mut self.ranges,
                    _ => &mut self.elements,
                };
                level.extend((!foreign.is_empty()).then(|| vec![delete(foreign)]));
                level.extend((!missing.is_empty()).then(|| vec![add(missing)]));
            }
        }
    }

    fn chain(&mut self, name: &str, wanted: &WantedChain, found: &Found) {
        let rules = || render::replace_rules(name, wanted.rules.clone());
        let anew = || {
            let delete = [
                Command::FlushChain(name.to_owned()),
                Command::DeleteChain(name.to_owned()),
            ];
            delete.into_iter().chain([wanted.make.clone()])
        };
        let Some(found) = found.chains.get(name) else {
            self.says(format!("chain {name} is gone"));
            match wanted.base {
                Some(_) => {
                    self.last.push(wanted.make.clone());
                    self.last.extend(rules());
                }
                None => {
                    self.chains.push(wanted.make.clone());
                    self.prepare.extend(rules());
                }
            }
            return;
        };
        let mut mend = wanted.mend(name, found);
        if !mend.is_empty() {
            self.says(format!(
                "chain {name} has other rules ({} instead of {})",
                found.rules.len(),
                wanted.rules.len()
            ));
        }
        if wanted.has_hook_of(found) {
            // Until they are found packets fall off the end, as they did.
            let late = mend.iter().rposition(is_found_late);
            let end = late.map_or_else(Vec::new, |at| mend.split_off(at + 1));
            self.rules.extend((!mend.is_empty()).then_some(mend));
            self.ends.extend((!end.is_empty()).then_some(end));
            return;
        }
        self.says(format!("chain {name} has another hook, priority or policy"));
        match (wanted.base, found.hook) {
            // To make it again says what becomes of packets at its end.
            (Some(base), Hook::Dropping(at)) if base == at => {
                self.rules.extend((!mend.is_empty()).then_some(mend));
                self.last.push(wanted.make.clone());
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

    fn strangers(&mut self, wanted: &Wanted, found: &Found, known: &Garbage) {
        for (name, chain) in &found.chains {
            if wanted.chains.contains_key(name) || known.chains.contains(name) {
                continue;
            }
            if chain.hook != Hook::None {
                self.says(format!("unknown base chain {name}"));
                self.hooks.push(Command::FlushChain(name.clone()));
                self.hooks.push(Command::DeleteChain(name.clone()));
            } else {
                self.strangers.chains.insert(name.clone());
            }
        }
        let others = found
            .sets
            .keys()
            .filter(|&name| !wanted.sets.contains_key(name) && !known.sets.contains(name));
        self.strangers.sets.extend(others.cloned());
    }

    fn done(mut self, limits: Limits) -> Repair {
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
            strangers: self.strangers,
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

/// Whether a command adds a rule to what is left of its chain, with ranges of ports: the kernel has them found a moment
/// after the rule is.
fn is_found_late(command: &Command) -> bool {
    let is_range = |(first, last, _): &(u16, u16, Verdict)| first != last;
    let has_ranges = |condition: &Match| match condition {
        Match::ServerPortMap(ports) => ports.iter().any(is_range),
        _ => false,
    };
    matches!(command, Command::AddRule(_, rule) | Command::InsertRule(_, rule, _) if rule.matches.iter().any(has_ranges))
}

/// How many elements are exchanged in one atom.
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

/// What tells an element from the others of its map: there is one of a key at most.
fn key(element: &Element) -> Element {
    match element {
        Element::Verdict(address, ..) => Element::Address(*address),
        Element::Stamp(number, _) => Element::Stamp(*number, String::new()),
        other => other.clone(),
    }
}
