//! Finds the selectors that may match some labels, and the labelled things that a selector may match, without looking
//! at all of them. Answers are candidates: it never leaves a match out, and the caller asks the selector itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::model::{LabelSelector, Labels, Operator};

/// Fewer things than this are looked through one by one.
const WORTH_AN_INDEX: usize = 32;

/// Selectors, by a label without which they cannot match.
#[derive(Debug)]
pub(super) struct Selectors<K> {
    by_label: HashMap<u64, Vec<K>>,
    rest: Vec<K>,
}

/// Things with labels, by label.
#[derive(Debug)]
pub(super) struct Labelled<K> {
    all: BTreeMap<K, Arc<Labels>>,
    by_label: Option<HashMap<u64, BTreeSet<K>>>,
}

/// A hash for every label, and one for every label's key.
pub(super) fn marks(labels: &Labels) -> Vec<u64> {
    let of_key = |key: &String| hash(key, None);
    let marks = labels.iter().map(|(key, value)| hash(key, Some(value)));
    marks.chain(labels.keys().map(of_key)).collect()
}

/// Marks of which labels must have at least one for the selector to match; `None` if it may do so without.
fn needed(selector: &LabelSelector) -> Option<Vec<u64>> {
    let best = selector
        .0
        .iter()
        .filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((values.len(), requirement)),
            Operator::Exists => Some((usize::MAX, requirement)),
            Operator::NotIn(_) | Operator::DoesNotExist => None,
        });
    let (_, best) = best.min_by_key(|(width, _)| *width)?;
    Some(match &best.operator {
        Operator::In(values) => values
            .iter()
            .map(|value| hash(&best.key, Some(value)))
            .collect(),
        _ => vec![hash(&best.key, None)],
    })
}

fn hash(key: &str, value: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

impl<K: Copy + Eq> Selectors<K> {
    pub(super) fn insert(&mut self, id: K, selector: &LabelSelector) {
        match needed(selector) {
            Some(marks) => {
                for mark in marks {
                    self.by_label.entry(mark).or_default().push(id);
                }
            }
            None => self.rest.push(id),
        }
    }

    pub(super) fn remove(&mut self, id: K, selector: &LabelSelector) {
        let Some(marks) = needed(selector) else {
            self.rest.retain(|&other| other != id);
            return;
        };
        for mark in marks {
            if let Some(ids) = self.by_label.get_mut(&mark) {
                ids.retain(|&other| other != id);
                if ids.is_empty() {
                    self.by_label.remove(&mark);
                }
            }
        }
    }

    /// The selectors that may match labels with these marks.
    pub(super) fn candidates<'a>(&'a self, marks: &'a [u64]) -> impl Iterator<Item = K> + 'a {
        let marks = if self.by_label.is_empty() { &[] } else { marks };
        let found = marks.iter().filter_map(|mark| self.by_label.get(mark));
        found.flatten().chain(&self.rest).copied()
    }
}

impl<K: Copy + Ord> Labelled<K> {
    pub(super) fn insert(&mut self, id: K, labels: &Arc<Labels>) {
        self.remove(id);
        self.all.insert(id, labels.clone());
        if let Some(by_label) = &mut self.by_label {
            for mark in marks(labels) {
                by_label.entry(mark).or_default().insert(id);
            }
        } else if self.all.len() > WORTH_AN_INDEX {
            let mut by_label: HashMap<u64, BTreeSet<K>> = HashMap::new();
            for (&id, labels) in &self.all {
                for mark in marks(labels) {
                    by_label.entry(mark).or_default().insert(id);
                }
            }
            self.by_label = Some(by_label);
        }
    }

    pub(super) fn remove(&mut self, id: K) {
        let Some(labels) = self.all.remove(&id) else {
            return;
        };
        let Some(by_label) = &mut self.by_label else {
            return;
        };
        for mark in marks(&labels) {
            if let Some(ids) = by_label.get_mut(&mark) {
                ids.remove(&id);
                if ids.is_empty() {
                    by_label.remove(&mark);
                }
            }
        }
    }

    /// The things that a selector matches.
    pub(super) fn matching(&self, selector: &LabelSelector) -> Vec<K> {
        let needed = needed(selector);
        let (Some(by_label), Some(marks)) = (&self.by_label, needed) else {
            let matches = |(_, labels): &(_, &Arc<Labels>)| selector.matches(labels);
            return self.all.iter().filter(matches).map(|(&id, _)| id).collect();
        };
        let found = marks.iter().filter_map(|mark| by_label.get(mark)).flatten();
        found
            .copied()
            .filter(|id| selector.matches(&self.all[id]))
            .collect()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = K> + '_ {
        self.all.keys().copied()
    }
}

impl<K> Default for Selectors<K> {
    fn default() -> Self {
        Selectors {
            by_label: HashMap::new(),
            rest: Vec::new(),
        }
    }
}

impl<K> Default for Labelled<K> {
    fn default() -> Self {
        Labelled {
            all: BTreeMap::new(),
            by_label: None,
        }
    }
}
