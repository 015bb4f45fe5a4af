//! What a table holds, as commands make it and as the kernel says it is, in words that can be compared. It reads nothing
//! and repairs nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::{
    command::{Base, Command, Element, Rule, SetKind, TableFamily},
    encode,
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
    /// Where the kernel calls it, if it does.
    pub base: Option<Base>,
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
    /// The kernel, and what falls off its end is accepted.
    Base(Base),
    /// The same, but what falls off its end is dropped.
    Dropping(Base),
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
            Command::AddChain { name, base, .. } => {
                self.chains
                    .entry(name.clone())
                    .or_insert_with(|| WantedChain {
                        make: command.clone(),
                        base: *base,
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
            Command::DeleteRule(..) | Command::InsertRule(..) => {}
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
        match self.base {
            Some(base) => found.hook == Hook::Base(base),
            None => found.hook == Hook::None,
        }
    }

    /// The commands that make a chain's rules this one's. As many as can be stay: rules with constant sets do not change
    /// well while packets look.
    pub fn mend(&self, name: &str, found: &FoundChain) -> Vec<Command> {
        let spell = |rule| encode::spelling(TableFamily::Inet, rule);
        let wanted: Vec<String> = self.rules.iter().map(spell).collect();
        let there: Vec<&str> = found.rules.iter().map(|rule| &*rule.spelling).collect();
        let (mut delete, mut add, mut next) = (Vec::new(), Vec::new(), 0);
        let stay = common(&there, &wanted);
        for (at, rule) in found.rules.iter().enumerate() {
            match stay.iter().find(|(stays, _)| *stays == at) {
                Some(&(_, place)) => {
                    let missing = self.rules[next..place].iter().cloned();
                    let before = rule.handle;
                    let insert = |rule| Command::InsertRule(name.to_owned(), rule, before);
                    add.extend(missing.map(insert));
                    next = place + 1;
                }
                None => delete.push(Command::DeleteRule(name.to_owned(), rule.handle)),
            }
        }
        let missing = self.rules[next..].iter().cloned();
        add.extend(missing.map(|rule| Command::AddRule(name.to_owned(), rule)));
        [delete, add].concat()
    }
}

/// The longest sequence that two have in common, as places in either.
fn common(one: &[&str], other: &[String]) -> Vec<(usize, usize)> {
    // How long it is from two places on.
    let mut length = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (i, j) in (0..one.len())
        .flat_map(|i| (0..other.len()).map(move |j| (i, j)))
        .rev()
    {
        length[i][j] = match one[i] == other[j] {
            true => length[i + 1][j + 1] + 1,
            false => length[i + 1][j].max(length[i][j + 1]),
        };
    }
    let (mut i, mut j, mut places) = (0, 0, Vec::new());
    while i < one.len() && j < other.len() {
        if one[i] == other[j] {
            places.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    places
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
