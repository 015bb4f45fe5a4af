//! The table's objects through the generations: those that exist now, and those that packets under way may still see.
//! This module decides nothing about commands.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use nix::errno::Errno;
use sallyport_nft::{
    command::{Base, Element, Family, SetKind, TableFamily, Verdict},
    content::{Hook, Observed, ObservedChain, ObservedRule, ObservedSet},
    encode,
};

use crate::{
    Process, RulesetGeneration,
    compile::{Hit, Rule, Target, address, interface_name, nfproto},
    elements::{Data, Elements, Key, Listed},
};

/// The id of a chain. A chain that was deleted and made anew under the same name has another id.
pub(super) type ChainId = usize;

/// The id of a set or map.
pub(super) type SetId = usize;

/// The rules of a chain in one generation.
pub(super) type Rules = Arc<Vec<Arc<Rule>>>;

#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: String,
    /// The place where the kernel calls the chain, if it does.
    pub(super) base: Option<Base>,
    pub(super) born: RulesetGeneration,
    pub(super) died: RulesetGeneration,
    /// The chain's rules, each version with the generation from which on it holds. There are no rules before the first.
    pub(super) versions: Vec<(RulesetGeneration, Rules)>,
    /// The number of rules and elements that lead to the chain.
    pub(super) uses: usize,
}

#[derive(Debug)]
pub(super) struct Set {
    pub(super) name: String,
    pub(super) kind: SetKind,
    pub(super) died: RulesetGeneration,
    pub(super) elements: Elements,
    /// The number of rules that look into the set.
    pub(super) uses: usize,
    /// The chains that the set's elements lead to, and the number of these elements.
    pub(super) targets: HashMap<ChainId, usize>,
}

/// The table, if there is one, and what is left of earlier ones.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The table's flags; `None` when there is no table.
    pub(super) flags: Option<u32>,
    pub(super) owner: Option<Process>,
    pub(super) chains: Vec<Option<Chain>>,
    pub(super) sets: Vec<Option<Set>>,
    pub(super) chain_ids: HashMap<String, ChainId>,
    pub(super) set_ids: HashMap<String, SetId>,
    /// The number of rules that were ever made.
    pub(super) handles: u64,
    /// The time since the start of the kernel.
    pub(super) clock: Duration,
    no_rules: Rules,
}

impl Chain {
    /// The rules as the next generation will have them.
    pub(super) fn latest(&self) -> &[Arc<Rule>] {
        self.versions
            .last()
            .map_or(&[], |(_, rules)| rules.as_slice())
    }
}

impl Table {
    pub(super) fn chain(&self, id: ChainId) -> &Chain {
        self.chains[id]
            .as_ref()
            .expect("what is referred to is there")
    }

    pub(super) fn chain_mut(&mut self, id: ChainId) -> &mut Chain {
        self.chains[id]
            .as_mut()
            .expect("what is referred to is there")
    }

    pub(super) fn set(&self, id: SetId) -> &Set {
        self.sets[id]
            .as_ref()
            .expect("what is referred to is there")
    }

    pub(super) fn set_mut(&mut self, id: SetId) -> &mut Set {
        self.sets[id]
            .as_mut()
            .expect("what is referred to is there")
    }

    pub(super) fn set_id(&self, name: &str) -> Option<SetId> {
        self.set_ids.get(name).copied()
    }

    pub(super) fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chain_ids.keys().map(String::as_str)
    }

    /// The chains that the hook calls.
    pub(super) fn bases(&self) -> impl Iterator<Item = &str> {
        let chains = self.chain_ids.iter();
        let bases = chains.filter(|&(_, &id)| self.chain(id).base.is_some());
        bases.map(|(name, _)| name.as_str())
    }

    pub(super) fn set_names(&self) -> impl Iterator<Item = &str> {
        self.set_ids.keys().map(String::as_str)
    }

    /// A verdict of a rule or an element, as the kernel takes it.
    pub(super) fn target(&self, verdict: &Verdict) -> Result<Target, Errno> {
        let chain = |name: &String| {
            let id = *self.chain_ids.get(name).ok_or(Errno::ENOENT)?;
            if self.chain(id).base.is_some() {
                return Err(Errno::EOPNOTSUPP);
            }
            Ok(id)
        };
        Ok(match verdict {
            Verdict::Drop | Verdict::Reset => Target::Drop,
            Verdict::Accept => Target::Accept,
            Verdict::Return => Target::Return,
            Verdict::Jump(name) => Target::Jump(chain(name)?),
            Verdict::Goto(name) => Target::Goto(chain(name)?),
        })
    }

    /// The rules of a chain in a generation.
    pub(super) fn rules(&self, id: ChainId, generation: RulesetGeneration) -> &Rules {
        let versions = &self.chain(id).versions;
        let found = versions.iter().rev().find(|(from, _)| *from <= generation);
        found.map_or(&self.no_rules, |(_, rules)| rules)
    }

    /// The chains that the hook calls in a generation, by priority. Of one priority, the chains that came later come
    /// first. With `prepared`, those of a batch under way are among them: the kernel registers a hook before the flip.
    pub(super) fn hooks(&self, generation: RulesetGeneration, prepared: bool) -> Vec<ChainId> {
        let until = generation + RulesetGeneration::from(prepared);
        let mut hooks: Vec<_> = (0..)
            .zip(&self.chains)
            .filter_map(|(id, chain)| chain.as_ref().map(|chain| (id, chain)))
            .filter(|(_, chain)| chain.born <= until && generation < chain.died)
            .filter_map(|(id, chain)| Some((chain.base?, Reverse((chain.born, id)))))
            .collect();
        hooks.sort_unstable();
        hooks.into_iter().map(|(_, Reverse((_, id)))| id).collect()
    }

    /// The outcome of a lookup.
    pub(super) fn find(&self, set: SetId, key: Key, generation: RulesetGeneration) -> Hit {
        hit(self.set(set).elements.find(key, generation))
    }

    /// The outcomes that lookups had by a batch that was refused during a generation.
    pub(super) fn find_refused(&self, set: SetId, key: Key, during: RulesetGeneration) -> Vec<Hit> {
        let all = self.set(set).elements.refused(key, during);
        all.map(hit).collect()
    }

    /// The elements of a set, as the kernel lists them. A set that is not there has none. `None` where the set is of
    /// another kind.
    pub(super) fn elements(&self, set: &str, kind: SetKind) -> Option<BTreeSet<Element>> {
        let Some(id) = self.set_id(set) else {
            return Some(BTreeSet::new());
        };
        let set = self.set(id);
        (set.kind == kind).then(|| self.listed(set))
    }

    /// The whole content of the table.
    pub(super) fn content(&self) -> Observed {
        let chains = self.chain_ids.iter().map(|(name, &id)| {
            let chain = self.chain(id);
            let hook = chain.base.map_or(Hook::None, Hook::Base);
            let rules = chain.latest().iter().map(|rule| ObservedRule {
                handle: rule.handle,
                spelling: encode::spelling(TableFamily::Inet, &rule.source),
            });
            let rules = rules.collect();
            (name.clone(), ObservedChain { hook, rules })
        });
        let sets = self.set_ids.iter().map(|(name, &id)| {
            let set = self.set(id);
            let found = ObservedSet {
                kind: Some(set.kind),
                elements: Some(self.listed(set)),
            };
            (name.clone(), found)
        });
        Observed {
            generation: 0,
            flags: self.flags,
            chains: chains.collect(),
            sets: sets.collect(),
        }
    }

    /// The elements of a set, as the kernel lists them.
    fn listed(&self, set: &Set) -> BTreeSet<Element> {
        let verdict = |target: &Target| match target {
            Target::Drop => Verdict::Drop,
            Target::Accept => Verdict::Accept,
            Target::Return => Verdict::Return,
            Target::Jump(chain) => Verdict::Jump(self.chain(*chain).name.clone()),
            Target::Goto(chain) => Verdict::Goto(self.chain(*chain).name.clone()),
        };
        let element = |(first, last, data, lasts): Listed<'_>| match (set.kind, data) {
            (SetKind::Addresses(family), _) => Element::Address(address(family, first)),
            (SetKind::Pairs(family), _) => Element::Pair(address(family, first)),
            (SetKind::Ranges(family), _) => {
                Element::Range(address(family, first), address(family, last))
            }
            (SetKind::Verdicts(family), Data::Verdict(target)) => {
                Element::Verdict(address(family, first), verdict(target), String::new())
            }
            #[expect(clippy::cast_possible_truncation, reason = "the key has 32 bits")]
            (SetKind::Numbers, Data::Comment(text)) => {
                Element::Number(first.number as u32, text.clone())
            }
            (SetKind::Families, _) => {
                let family = match first == nfproto(Family::V4) {
                    true => Family::V4,
                    false => Family::V6,
                };
                Element::Family(family, lasts.unwrap_or_default())
            }
            (SetKind::Verdicts(_) | SetKind::Numbers, _) => {
                unreachable!("these say something beside their key")
            }
            (SetKind::Interfaces, _) => Element::Interface(interface_name(first)),
            (SetKind::InterfaceRanges(family), _) => {
                let port = interface_name(first.port.into());
                Element::InterfaceRange(port, address(family, first), address(family, last))
            }
            (SetKind::InterfaceAddresses(_) | SetKind::InterfaceVerdicts, _) => {
                unreachable!("this kernel takes no such set")
            }
        };
        set.elements.entries().into_iter().map(element).collect()
    }

    /// Lets time pass, so that elements with a timeout expire.
    pub(super) fn advance(&mut self, time: Duration) {
        self.clock += time;
        for set in self.sets.iter_mut().flatten() {
            set.elements.expire(self.clock);
        }
    }

    /// The sets and maps that the rules of a chain look up, in the order of the rules, without anonymous ones.
    pub(super) fn lookups(&self, chain: &str) -> Vec<String> {
        let Some(&id) = self.chain_ids.get(chain) else {
            return Vec::new();
        };
        let rules = self.chain(id).latest().iter();
        rules
            .flat_map(|rule| rule.sets())
            .map(|set| self.set(set).name.clone())
            .collect()
    }

    /// Inserts a chain at a free id.
    pub(super) fn insert_chain(&mut self, chain: Chain) -> ChainId {
        insert(&mut self.chains, chain)
    }

    /// Inserts a set at a free id.
    pub(super) fn insert_set(&mut self, set: Set) -> SetId {
        insert(&mut self.sets, set)
    }

    /// Drops all objects that only packets before a generation could see.
    pub(super) fn prune_before(&mut self, horizon: RulesetGeneration) {
        for slot in &mut self.chains {
            if slot.as_ref().is_some_and(|chain| chain.died <= horizon) {
                *slot = None;
            }
            if let Some(chain) = slot {
                let current = chain
                    .versions
                    .iter()
                    .rposition(|(from, _)| *from <= horizon);
                chain.versions.drain(..current.unwrap_or(0));
            }
        }
        for slot in &mut self.sets {
            if slot.as_ref().is_some_and(|set| set.died <= horizon) {
                *slot = None;
            }
            if let Some(set) = slot {
                set.elements.prune_before(horizon);
            }
        }
    }
}

fn hit(found: Option<&Data>) -> Hit {
    match found {
        None => Hit::Miss,
        Some(Data::Verdict(target)) => Hit::Verdict(*target),
        Some(_) => Hit::Found,
    }
}

fn insert<T>(slots: &mut Vec<Option<T>>, value: T) -> usize {
    let free = slots.iter().position(Option::is_none);
    let at = free.unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    });
    slots[at] = Some(value);
    at
}
