//! The content of a table in comparable form: as commands make it (desired) and as the kernel lists it (observed). This
//! module reads nothing and repairs nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    command::{Base, Command, Element, Rule, SetKind, TableFamily},
    encode,
};

/// The desired content of a table.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The chains, by name.
    pub chains: BTreeMap<String, DesiredChain>,
    /// The sets and maps, by name.
    pub sets: BTreeMap<String, DesiredSet>,
}

/// A chain of the desired content.
#[derive(Clone, Debug)]
pub struct DesiredChain {
    /// The command that creates the chain.
    pub make: Command,
    /// The hook of a base chain.
    pub base: Option<Base>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// A set or map of the desired content.
#[derive(Clone, Debug)]
pub struct DesiredSet {
    /// The command that creates the set.
    pub make: Command,
    /// The type of the elements.
    pub kind: SetKind,
    /// The elements.
    pub elements: BTreeSet<Element>,
}

/// The content of a table as the kernel lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The generation of the ruleset when it was read. Every commit in the network namespace makes a new generation.
    pub generation: u64,
    /// The table's flags; `None` when there is no table.
    pub flags: Option<u32>,
    /// The chains, by name.
    pub chains: BTreeMap<String, ObservedChain>,
    /// The sets and maps, by name, without anonymous ones.
    pub sets: BTreeMap<String, ObservedSet>,
}

/// A chain that the kernel lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedChain {
    /// The caller of the chain.
    pub hook: Hook,
    /// The rules, in order.
    pub rules: Vec<ObservedRule>,
}

/// A rule that the kernel lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRule {
    /// The handle from the kernel.
    pub handle: u64,
    /// The rule in the form of [`encode::spelling`].
    pub spelling: String,
}

/// The caller of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// Other chains call the chain, and no hook does.
    #[default]
    None,
    /// The kernel calls the chain, and accepts a packet that reaches its end.
    Base(Base),
    /// The kernel calls the chain, and drops a packet that reaches its end.
    Dropping(Base),
    /// The kernel calls the chain in another way.
    Other,
}

/// A set or map that the kernel lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedSet {
    /// The type of the elements; `None` for a type that no [`SetKind`] has.
    pub kind: Option<SetKind>,
    /// The elements, without the comments of verdicts; `None` when some do not fit the type.
    pub elements: Option<BTreeSet<Element>>,
}

impl Desired {
    /// The content that commands make of an empty table.
    pub fn of<'a>(commands: impl IntoIterator<Item = &'a Command>) -> Desired {
        let mut desired = Desired::default();
        desired.extend(commands);
        desired
    }

    /// Applies commands. The objects that they name must exist: the kernel accepted these commands.
    pub fn extend<'a>(&mut self, commands: impl IntoIterator<Item = &'a Command>) {
        for command in commands {
            self.apply(command);
        }
    }

    fn apply(&mut self, command: &Command) {
        match command {
            Command::AddTable { .. } => {}
            Command::DeleteTable => *self = Desired::default(),
            Command::AddSet { name, kind, .. } => {
                self.sets.entry(name.clone()).or_insert_with(|| DesiredSet {
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
                    .or_insert_with(|| DesiredChain {
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
            // These commands name rules by their handles from the kernel, which desired rules do not have.
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

impl DesiredChain {
    /// Whether an observed chain has the hook of this chain.
    pub fn has_hook_of(&self, observed: &ObservedChain) -> bool {
        match self.base {
            Some(base) => observed.hook == Hook::Base(base),
            None => observed.hook == Hook::None,
        }
    }

    /// The commands that give an observed chain the rules of this one. As many rules as possible stay, because packets
    /// may miss the elements of a constant set while its rule is replaced.
    pub fn repair_commands(
        &self,
        family: TableFamily,
        name: &str,
        observed: &ObservedChain,
    ) -> Vec<Command> {
        let spell = |rule| encode::spelling(family, rule);
        let desired: Vec<String> = self.rules.iter().map(spell).collect();
        let there: Vec<&str> = observed.rules.iter().map(|rule| &*rule.spelling).collect();
        let (mut delete, mut add, mut next) = (Vec::new(), Vec::new(), 0);
        let stay = common(&there, &desired);
        for (at, rule) in observed.rules.iter().enumerate() {
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

/// The longest common subsequence of two lists, as places in either.
fn common(one: &[&str], other: &[String]) -> Vec<(usize, usize)> {
    // `length[i][j]` is the length of the longest common subsequence from the places `i` and `j` on.
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

impl DesiredSet {
    /// Deletes elements. The kernel deletes by key. Only the deletion of a number names less than the whole element.
    fn delete(&mut self, elements: &[Element]) {
        for element in elements {
            match element {
                Element::Number(number, _) => self
                    .elements
                    .retain(|there| !matches!(there, Element::Number(at, _) if at == number)),
                other => drop(self.elements.remove(other)),
            }
        }
    }
}

/// An element without its comment, which only readers of a listing see.
pub fn without_comment(element: &Element) -> Element {
    match element {
        Element::Verdict(address, verdict, _) => {
            Element::Verdict(*address, verdict.clone(), String::new())
        }
        other => other.clone(),
    }
}
