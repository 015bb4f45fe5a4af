//! The elements of one set or map through the generations. This module knows which element is found when, and counts no
//! references.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use nix::errno::Errno;

use crate::{RulesetGeneration, compile::Target};

/// An element's key. The first part is the name of an interface where an address comes with one, else 0. The second
/// part is a number: an address, half a pair of an address with itself, a mark, or the name of an interface alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) port: u128,
    pub(super) number: u128,
}

impl From<u128> for Key {
    fn from(number: u128) -> Key {
        Key { port: 0, number }
    }
}

/// The data of an element beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// No data.
    None,
    /// A comment.
    Comment(String),
    /// A verdict.
    Verdict(Target),
}

/// An element that is not deleted: its birth, its last key, its data and its timeout.
#[derive(Clone, Debug)]
pub(super) struct LiveElement {
    born: RulesetGeneration,
    last: Key,
    pub(super) data: Data,
    lasts: Option<Duration>,
    expires: Option<Duration>,
}

/// An element that was deleted, and that packets may still find.
#[derive(Clone, Debug)]
struct Dead {
    entry: LiveElement,
    died: RulesetGeneration,
}

/// A change of a batch that was refused, made while a generation was the current one.
#[derive(Clone, Debug)]
struct Refused {
    during: RulesetGeneration,
    /// The data of the element that the batch added; `None` where the batch deleted one.
    added: Option<Data>,
}

/// Elements by the key that they begin with.
#[derive(Clone, Debug)]
enum Alive {
    Hashed(HashMap<Key, LiveElement>),
    Ranges(BTreeMap<Key, LiveElement>),
}

/// The elements of a set or map.
#[derive(Clone, Debug)]
pub(super) struct Elements {
    alive: Alive,
    dead: HashMap<Key, Vec<Dead>>,
    /// The refused changes, of hashed elements alone. Lookups in ranges show nothing before it is committed.
    refused: HashMap<Key, Vec<Refused>>,
}

/// The keys that an element begins and ends with, its data, and its timeout.
pub(super) type Listed<'a> = (Key, Key, &'a Data, Option<Duration>);

/// The data of the element that a lookup finds, if it finds one.
pub(super) type LookupResult<'a> = Option<&'a Data>;

impl Elements {
    pub(super) fn new(ranges: bool) -> Elements {
        let alive = match ranges {
            true => Alive::Ranges(BTreeMap::new()),
            false => Alive::Hashed(HashMap::new()),
        };
        Elements {
            alive,
            dead: HashMap::new(),
            refused: HashMap::new(),
        }
    }

    /// The outcome of a lookup in a generation.
    pub(super) fn find(&self, key: Key, generation: RulesetGeneration) -> LookupResult<'_> {
        self.seen(key, generation).map(|entry| &entry.data)
    }

    /// Whether a lookup finds an element in a generation, and another in its place in the next.
    pub(super) fn is_replaced_after(&self, key: Key, generation: RulesetGeneration) -> bool {
        let next = self.seen(key, generation + 1);
        next.is_some_and(|entry| entry.born > generation) && self.find(key, generation).is_some()
    }

    /// The outcomes that lookups had by a batch that was refused during a generation: an element that the batch had
    /// added, or `None` where the batch had deleted one.
    pub(super) fn refused(
        &self,
        key: Key,
        during: RulesetGeneration,
    ) -> impl Iterator<Item = LookupResult<'_>> {
        let all = self.refused.get(&key).into_iter().flatten();
        all.filter(move |refused| refused.during == during)
            .map(|refused| refused.added.as_ref())
    }

    fn seen(&self, key: Key, generation: RulesetGeneration) -> Option<&LiveElement> {
        let entry = match &self.alive {
            Alive::Hashed(all) => all.get(&key),
            Alive::Ranges(all) => {
                let below = all.range(..=key).next_back();
                below
                    .map(|(_, entry)| entry)
                    .filter(|entry| entry.last >= key)
            }
        };
        if let Some(entry) = entry.filter(|entry| entry.born <= generation) {
            return Some(entry);
        }
        if self.dead.is_empty() {
            return None;
        }
        let seen = |dead: &&Dead| (dead.entry.born..dead.died).contains(&generation);
        let dead = match &self.alive {
            Alive::Hashed(_) => self.dead.get(&key)?.iter().find(seen),
            Alive::Ranges(_) => self
                .dead
                .iter()
                .filter(|&(&first, _)| first <= key)
                .flat_map(|(_, all)| all)
                .find(|dead| dead.entry.last >= key && seen(dead)),
        };
        dead.map(|dead| &dead.entry)
    }

    /// Adds an element. An element that is there already with the same data is no error. Then its comment stays as it
    /// was, and the answer is that nothing was added. An element with a timeout that is there already is refused,
    /// because newer kernels extend the timeout and older ones do not.
    pub(super) fn add(
        &mut self,
        first: Key,
        last: Key,
        data: Data,
        lasts: Option<Duration>,
        now: Duration,
        next: RulesetGeneration,
    ) -> Result<bool, Errno> {
        let expires = lasts.map(|lasts| now + lasts);
        let same = |there: &LiveElement| match (&there.data, &data) {
            _ if there.expires.is_some() || expires.is_some() => false,
            (Data::Verdict(a), Data::Verdict(b)) => a == b,
            _ => there.last == last,
        };
        let there = match &self.alive {
            Alive::Hashed(all) => all.get(&first),
            Alive::Ranges(all) => {
                let below = all.range(..=last).next_back();
                let overlapping = below.filter(|(_, entry)| entry.last >= first);
                if overlapping.is_some_and(|(&begin, _)| begin != first) {
                    return Err(Errno::EEXIST);
                }
                overlapping.map(|(_, entry)| entry)
            }
        };
        if let Some(there) = there {
            return if same(there) {
                Ok(false)
            } else {
                Err(Errno::EEXIST)
            };
        }
        let entry = LiveElement {
            born: next,
            last,
            data,
            lasts,
            expires,
        };
        self.insert(first, entry);
        Ok(true)
    }

    /// Deletes an element, and returns it. Packets of earlier generations still find the element.
    pub(super) fn remove(
        &mut self,
        first: Key,
        last: Key,
        next: RulesetGeneration,
    ) -> Result<LiveElement, Errno> {
        let whole = self
            .entry(first)
            .is_some_and(|entry| matches!(self.alive, Alive::Hashed(_)) || entry.last == last);
        if !whole {
            return Err(Errno::ENOENT);
        }
        let entry = self.take(first).expect("it was just seen");
        // No packet finds an element that came and went in one batch.
        if entry.born < next {
            let dead = Dead {
                entry: entry.clone(),
                died: next,
            };
            self.dead.entry(first).or_default().push(dead);
        }
        Ok(entry)
    }

    /// Undoes [`add`](Elements::add).
    pub(super) fn unadd(&mut self, first: Key, next: RulesetGeneration) -> LiveElement {
        let entry = self.take(first).expect("it was added");
        self.refuse(first, Some(entry.data.clone()), next);
        entry
    }

    fn refuse(&mut self, key: Key, added: Option<Data>, next: RulesetGeneration) {
        if matches!(self.alive, Alive::Hashed(_)) {
            let during = next - 1;
            let all = self.refused.entry(key).or_default();
            all.push(Refused { during, added });
        }
    }

    /// Undoes [`remove`](Elements::remove).
    pub(super) fn unremove(&mut self, first: Key, entry: LiveElement, next: RulesetGeneration) {
        if entry.born < next {
            let all = self.dead.get_mut(&first).expect("it died here");
            all.pop();
            if all.is_empty() {
                self.dead.remove(&first);
            }
            self.refuse(first, None, next);
        }
        self.insert(first, entry);
    }

    /// The keys that elements begin and end with.
    pub(super) fn keys(&self) -> Vec<(Key, Key)> {
        let ends = |(&first, entry): (&Key, &LiveElement)| (first, entry.last);
        match &self.alive {
            Alive::Hashed(all) => all.iter().map(ends).collect(),
            Alive::Ranges(all) => all.iter().map(ends).collect(),
        }
    }

    /// All elements.
    pub(super) fn entries(&self) -> Vec<Listed<'_>> {
        fn listed<'a>((first, entry): (&'a Key, &'a LiveElement)) -> Listed<'a> {
            (*first, entry.last, &entry.data, entry.lasts)
        }
        match &self.alive {
            Alive::Hashed(all) => all.iter().map(listed).collect(),
            Alive::Ranges(all) => all.iter().map(listed).collect(),
        }
    }

    /// Deletes the elements whose timeout ends up to a time. No packet finds them any more, whatever generation it
    /// reads.
    pub(super) fn expire(&mut self, now: Duration) {
        let stays = |entry: &LiveElement| entry.expires.is_none_or(|at| at > now);
        match &mut self.alive {
            Alive::Hashed(all) => all.retain(|_, entry| stays(entry)),
            Alive::Ranges(all) => all.retain(|_, entry| stays(entry)),
        }
        self.dead.retain(|_, all| {
            all.retain(|dead| stays(&dead.entry));
            !all.is_empty()
        });
    }

    /// Drops the elements that died up to a generation.
    pub(super) fn prune_before(&mut self, horizon: RulesetGeneration) {
        self.dead.retain(|_, all| {
            all.retain(|dead| dead.died > horizon);
            !all.is_empty()
        });
        self.refused.retain(|_, all| {
            all.retain(|refused| refused.during >= horizon);
            !all.is_empty()
        });
    }

    fn entry(&self, first: Key) -> Option<&LiveElement> {
        match &self.alive {
            Alive::Hashed(all) => all.get(&first),
            Alive::Ranges(all) => all.get(&first),
        }
    }

    fn insert(&mut self, first: Key, entry: LiveElement) {
        match &mut self.alive {
            Alive::Hashed(all) => all.insert(first, entry),
            Alive::Ranges(all) => all.insert(first, entry),
        };
    }

    fn take(&mut self, first: Key) -> Option<LiveElement> {
        match &mut self.alive {
            Alive::Hashed(all) => all.remove(&first),
            Alive::Ranges(all) => all.remove(&first),
        }
    }
}
