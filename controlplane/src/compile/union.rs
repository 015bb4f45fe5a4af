//! The union of peers that come and go, in normal form, at the cost of what comes and goes: what
//! [`Peers::new`] says of all of them together. It knows terms and ranges; ports are its caller's.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use sallyport_policy::{Coverage, Ranges};

use super::{
    peers::{Named, Peers, Term, Terms, absorb, join_within, pods_key, scope_key},
    trie::Key,
};

/// The terms that one of all namespaces absorbs: those with the same podSelector. By the second half of their keys.
#[derive(Debug, Default)]
pub(super) struct Columns<'a>(HashMap<u128, Vec<&'a Arc<Named>>>);

/// A union.
#[derive(Clone, Debug)]
pub(super) struct Union<'a> {
    columns: &'a Columns<'a>,
    /// How many peers have each term that is whole.
    counts: HashMap<Key, usize>,
    /// The terms that are whole.
    whole: Terms,
    /// The whole terms, without those that a term of all namespaces with the same podSelector absorbs.
    narrowed: Terms,
    /// The terms of `narrowed` that no term of all pods of the namespaces absorbs.
    kept: Terms,
    /// How many peers have each of the other terms.
    partial: BTreeMap<&'a Term, usize>,
    coverage: Coverage,
    /// The union of the ranges, if it is known.
    ranges: Option<Arc<Ranges>>,
}

impl<'a> Columns<'a> {
    /// The columns of all terms of some peers.
    pub(super) fn of(peers: impl Iterator<Item = &'a Arc<Peers>> + Clone) -> Columns<'a> {
        let [everywhere, _] = Named::everything().key;
        let terms = || peers.clone().flat_map(|peers| peers.terms().iter());
        let mut columns: HashMap<u128, Vec<&Arc<Named>>> = terms()
            .filter(|named| named.is_whole() && named.key[0] == everywhere)
            .map(|named| (named.key[1], Vec::new()))
            .collect();
        if !columns.is_empty() {
            for named in terms().filter(|named| named.is_whole() && named.key[0] != everywhere) {
                if let Some(column) = columns.get_mut(&named.key[1]) {
                    column.push(named);
                }
            }
        }
        for column in columns.values_mut() {
            column.sort_unstable_by_key(|named| named.key);
            column.dedup_by_key(|named| named.key);
        }
        Columns(columns)
    }
}

impl<'a> Union<'a> {
    /// The union of nothing; `columns` are those of all that will come.
    pub(super) fn new(columns: &'a Columns<'a>) -> Union<'a> {
        Union {
            columns,
            counts: HashMap::new(),
            whole: Terms::default(),
            narrowed: Terms::default(),
            kept: Terms::default(),
            partial: BTreeMap::new(),
            coverage: Coverage::default(),
            ranges: None,
        }
    }

    /// Adds peers.
    pub(super) fn add(&mut self, peers: &'a Peers) {
        for named in peers.terms().iter() {
            if named.is_whole() {
                let count = self.counts.entry(named.key).or_insert(0);
                *count += 1;
                if *count == 1 {
                    self.whole.insert(named.key, named.clone());
                    self.turn(named);
                }
            } else {
                *self.partial.entry(&named.term).or_insert(0) += 1;
            }
        }
        if !peers.ranges().is_empty() {
            self.coverage.add(peers.ranges());
            self.ranges = None;
        }
    }

    /// Removes peers that were added.
    pub(super) fn remove(&mut self, peers: &'a Peers) {
        for named in peers.terms().iter() {
            if named.is_whole() {
                let count = self.counts.get_mut(&named.key).expect("it was added");
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&named.key);
                    self.whole.remove(named.key);
                    self.turn(named);
                }
            } else {
                let count = self.partial.get_mut(&named.term).expect("it was added");
                *count -= 1;
                if *count == 0 {
                    self.partial.remove(&named.term);
                }
            }
        }
        if !peers.ranges().is_empty() {
            self.coverage.remove(peers.ranges());
            self.ranges = None;
        }
    }

    /// The union, and its terms with those that others absorb.
    pub(super) fn peers(&mut self) -> (Arc<Peers>, Terms) {
        let ranges = match &self.ranges {
            Some(ranges) => ranges.clone(),
            None => Arc::new(self.coverage.union()),
        };
        self.ranges = Some(ranges.clone());
        let everything = Named::everything();
        let (mut terms, mut all) = (self.kept.clone(), self.whole.clone());
        if self.counts.contains_key(&everything.key) {
            terms = Terms::default();
            terms.insert(everything.key, everything.clone());
        }
        if !self.partial.is_empty() {
            let partial = self.partial.keys().map(|&term| term.clone());
            let is_whole = |scope: &_, pods: &_| {
                let key = [scope_key(scope), pods_key(pods)];
                self.counts.contains_key(&key)
            };
            for term in absorb(join_within(partial, &ranges), is_whole) {
                let named = Named::new(term);
                terms.insert(named.key, named.clone());
                all.insert(named.key, named);
            }
        }
        (Arc::new(Peers::normal(terms, ranges)), all)
    }

    /// A term that is whole came or went: so do those that it absorbs, the other way.
    fn turn(&mut self, named: &Arc<Named>) {
        let [everywhere, all_pods] = Named::everything().key;
        let [scope, pods] = named.key;
        if scope == everywhere && pods != all_pods {
            for other in &self.columns.0[&pods] {
                self.place(other);
            }
        }
        self.place(named);
    }

    /// Puts a term where it belongs, if it is there.
    fn place(&mut self, named: &Arc<Named>) {
        let [everywhere, all_pods] = Named::everything().key;
        let [scope, pods] = named.key;
        let is_absorbed = scope != everywhere
            && pods != all_pods
            && self.counts.contains_key(&[everywhere, pods]);
        if self.counts.contains_key(&named.key) && !is_absorbed {
            self.narrowed.insert(named.key, named.clone());
        } else {
            self.narrowed.remove(named.key);
        }
        let mut row = self.narrowed.within(scope);
        if let Some(all) = self.whole.get([scope, all_pods]).cloned() {
            row = Terms::default();
            row.insert(all.key, all);
        }
        self.kept.graft(scope, row);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};
    use sallyport_policy::Protocol;

    use super::{
        super::peers::{Scope, Selection, Target},
        *,
    };
    use crate::model::{LabelSelector, Operator, Requirement};

    fn selector() -> impl Strategy<Value = LabelSelector> {
        select(vec!["", "x", "y"]).prop_map(|value| {
            let requirement = |value: &str| Requirement {
                key: "a".into(),
                operator: Operator::In([value.to_owned()].into()),
            };
            LabelSelector(
                Some(value)
                    .filter(|value| !value.is_empty())
                    .map(requirement)
                    .into_iter()
                    .collect(),
            )
        })
    }

    fn ranges() -> impl Strategy<Value = Ranges> {
        select(vec![
            "0.0.0.0-255.255.255.255",
            "10.0.0.0-10.0.0.7",
            "10.0.0.8-10.0.0.15",
            "10.0.0.4-10.0.0.9",
        ])
        .prop_map(|text| {
            let (first, last) = text.split_once('-').expect("a range");
            Ranges::span(
                first.parse().expect("an address"),
                last.parse().expect("an address"),
            )
            .expect("a range")
        })
    }

    fn term() -> impl Strategy<Value = Term> {
        let scope = prop_oneof![
            select(vec!["n", "m"]).prop_map(|name| Scope::Namespace(name.into())),
            selector().prop_map(Scope::Matching),
        ];
        let target = (0..2u16).prop_map(|number| Target {
            protocol: Protocol::Tcp,
            name: "http".into(),
            number,
        });
        let selection = (scope, selector()).prop_map(|(scope, pods)| Selection { scope, pods });
        (
            selection,
            prop::option::weighted(0.3, (target, prop::option::of(ranges()))),
        )
            .prop_map(|(selection, part)| {
                let (target, within) =
                    part.map_or((None, None), |(target, within)| (Some(target), within));
                Term {
                    selection: Arc::new(selection),
                    target,
                    within,
                }
            })
    }

    /// The terms and the ranges of one grant: whole terms with ranges, or a named port of one destination.
    fn part() -> impl Strategy<Value = (Vec<Term>, Ranges)> {
        let ranges = prop_oneof![
            6 => vec(ranges(), 0..2),
            1 => Just(vec![Ranges::everything()]),
        ];
        let ranges = ranges.prop_map(|parts| Ranges::union_all(&parts));
        (vec(term(), 0..3), ranges).prop_map(|(mut terms, ranges)| {
            let is_whole = |term: &Term| term.target.is_none();
            match terms.iter().position(|term| !is_whole(term)) {
                Some(at) => (vec![terms.swap_remove(at)], Ranges::EMPTY),
                None => (terms, ranges),
            }
        })
    }

    proptest! {
        #[test]
        fn equals_the_definition_whatever_came_and_went(
            parts in vec(part(), 1..8), turns in vec(any::<prop::sample::Index>(), 0..30),
        ) {
            let peers: Vec<Arc<Peers>> =
                parts.iter().map(|(terms, ranges)| Arc::new(Peers::new(terms.clone(), ranges.clone()))).collect();
            let columns = Columns::of(peers.iter());
            let mut union = Union::new(&columns);
            let mut open = vec![false; peers.len()];
            for turn in turns {
                let at = turn.index(peers.len());
                open[at] = !open[at];
                match open[at] {
                    true => union.add(&peers[at]),
                    false => union.remove(&peers[at]),
                }
                let now = || parts.iter().zip(&open).filter(|(_, open)| **open).map(|(part, _)| part);
                let terms = now().flat_map(|(terms, _)| terms.clone()).collect();
                let expected = Peers::new(terms, Ranges::union_all(now().map(|(_, ranges)| ranges)));
                let (found, all) = union.peers();
                prop_assert_eq!(found.description(), expected.description());
                prop_assert_eq!(found.id(), expected.id());
                prop_assert!(found.is_everyone() || found.terms().iter().all(|named| all.get(named.key).is_some()));
            }
        }
    }
}
