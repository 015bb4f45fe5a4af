//! What a table holds, as commands make it and as the kernel says it is, in words that can be compared. It reads nothing
//! and repairs nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::{
    command::{Command, Element, Rule, SetKind},
    encode, render,
};

/// What a table should hold.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Its chains, by name.
    pub chains: BTreeMap<String, WantedChain>,
    /// Its sets and maps, by name.
    pub sets: BTreeMap<String, WantedSet>,
}

/// A chain that should be there.
#[derive(Clone, Debug)]
pub struct WantedChain {
    /// The command that makes it.
    pub make: Command,
    /// The priority at which the forward hook calls it, if it does, from that which nft calls `filter`.
    pub forward: Option<i32>,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// A set or map that should be there.
#[derive(Clone, Debug)]
pub struct WantedSet {
    /// The command that makes it.
    pub make: Command,
    /// What it holds.
    pub kind: SetKind,
    /// Its elements.
    pub elements: BTreeSet<Element>,
}

/// What a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The generation of the ruleset when it was read: it moves with every commit in the network namespace.
    pub generation: u64,
    /// The table's flags; `None` when there is no table.
    pub flags: Option<u32>,
    /// Its chains, by name.
    pub chains: BTreeMap<String, FoundChain>,
    /// Its sets and maps, by name, without anonymous ones.
    pub sets: BTreeMap<String, FoundSet>,
}

/// A chain that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundChain {
    /// Who calls it.
    pub hook: Hook,
    /// Its rules.
    pub rules: Vec<FoundRule>,
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRule {
    /// The number that the kernel gave it.
    pub handle: u64,
    /// What it does, as [`encode::spelling`] has it.
    pub spelling: String,
}

/// Who calls a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// Other chains.
    #[default]
    None,
    /// The forward hook, at a priority, from that which nft calls `filter`.
    Forward(i32),
    /// The same, but what falls off its end is dropped.
    ForwardDrop(i32),
    /// The kernel, in some other way.
    Other,
}

/// A set or map that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundSet {
    /// What it holds; `None` when that is nothing that we would have made.
    pub kind: Option<SetKind>,
    /// Its elements, without comments but those of stamps; `None` when some are not what such a set holds.
    pub elements: Option<BTreeSet<Element>>,
}

impl Wanted {
    /// What commands make of an empty table.
    pub fn of<'a>(commands: impl IntoIterator<Item = &'a Command>) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.extend(commands);
        wanted
    }

    /// Carries commands out. What they name must be there: they are commands that the kernel took.
    pub fn extend<'a>(&mut self, commands: impl IntoIterator<Item = &'a Command>) {
        for command in commands {
            self.carry_out(command);
        }
    }

    fn carry_out(&mut self, command: &Command) {
        match command {
            Command::AddTable { .. } => {}
            Command::DeleteTable => *self = Wanted::default(),
            Command::AddSet { name, kind, .. } => {
                self.sets.entry(name.clone()).or_insert_with(|| WantedSet {
                    make: command.clone(),
                    kind: *kind,
                    elements: BTreeSet::new(),
                });
            }
            Command::DeleteSet(name) => drop(self.sets.remove(name)),
            Command::FlushSet(name) => {
                if let Some(set) = self.sets.get_mut(name) {
                    set.elements.clear();
                }
            }
            Command::AddChain { name, forward, .. } => {
                self.chains
                    .entry(name.clone())
                    .or_insert_with(|| WantedChain {
                        make: command.clone(),
                        forward: *forward,
                        rules: Vec::new(),
                    });
            }
            Command::FlushChain(name) => {
                if let Some(chain) = self.chains.get_mut(name) {
                    chain.rules.clear();
                }
            }
            Command::DeleteChain(name) => drop(self.chains.remove(name)),
            Command::AddRule(name, rule) => {
                if let Some(chain) = self.chains.get_mut(name) {
                    chain.rules.push(rule.clone());
                }
            }
            // Rules of a plan have no handles yet.
            Command::DeleteRule(..) => {}
            Command::AddElements(name, _, elements) => {
                if let Some(set) = self.sets.get_mut(name) {
                    set.elements.extend(elements.iter().cloned());
                }
            }
            Command::DeleteElements(name, _, elements) => {
                if let Some(set) = self.sets.get_mut(name) {
                    set.delete(elements);
                }
            }
        }
    }
}

impl WantedChain {
    /// Whether a chain is called by who should call this one.
    pub fn has_hook_of(&self, found: &FoundChain) -> bool {
        match self.forward {
            Some(place) => found.hook == Hook::Forward(place),
            None => found.hook == Hook::None,
        }
    }

    /// The commands that make a chain's rules this one's. Rules that may stay do: those with constant sets do not change
    /// well while packets look.
    pub fn mend(&self, name: &str, found: &FoundChain) -> Vec<Command> {
        let wanted: Vec<String> = self.rules.iter().map(encode::spelling).collect();
        let (mut stays, mut foreign) = (0, Vec::new());
        for rule in &found.rules {
            match wanted.get(stays) {
                Some(spelling) if *spelling == rule.spelling => stays += 1,
                _ => foreign.push(rule),
            }
        }
        // What is missing goes to the end, where it belongs if nothing that stays comes after it.
        let is_out_of_place = |rule: &&FoundRule| wanted[stays..].contains(&rule.spelling);
        if foreign.iter().any(is_out_of_place) {
            return render::replace_rules(name, self.rules.clone());
        }
        let foreign = foreign
            .into_iter()
            .map(|rule| Command::DeleteRule(name.to_owned(), rule.handle));
        let missing = self.rules[stays..].iter();
        let missing = missing.map(|rule| Command::AddRule(name.to_owned(), rule.clone()));
        foreign.chain(missing).collect()
    }
}

impl WantedSet {
    /// The kernel deletes by key; but for stamps, deletions say all that the element says.
    fn delete(&mut self, elements: &[Element]) {
        for element in elements {
            match element {
                Element::Stamp(number, _) => self
                    .elements
                    .retain(|there| !matches!(there, Element::Stamp(at, _) if at == number)),
                other => drop(self.elements.remove(other)),
            }
        }
    }
}

/// An element without what has no effect: a word to the reader of a listing.
pub fn without_comment(element: &Element) -> Element {
    match element {
        Element::Verdict(address, verdict, _) => {
            Element::Verdict(*address, verdict.clone(), String::new())
        }
        other => other.clone(),
    }
}
