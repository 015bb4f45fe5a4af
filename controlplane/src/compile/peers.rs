//! What a peer group is the union of: terms that select pods, and ranges of addresses; in a normal form with a name.
//! It knows expressions only, never who is selected by them now.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::{Arc, LazyLock},
};

use sallyport_proto::{
    Ranges,
    policy::{GroupId, Protocol},
};

use crate::model::{LabelSelector, Operator};

/// The label that every namespace carries with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A description longer than this is cut; the id is made of the whole.
const DESCRIPTION_LIMIT: usize = 400;

/// Which namespaces pods are taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// One, by name.
    Namespace(String),
    /// Those whose labels match.
    Matching(LabelSelector),
}

/// A scope that is spelt out elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ScopeRef<'a> {
    /// One, by name.
    Namespace(&'a str),
    /// Those whose labels match.
    Matching(&'a LabelSelector),
}

/// Some pods: of these namespaces, those with these labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Selection {
    /// Of which namespaces.
    pub(super) scope: Scope,
    /// Which of their pods.
    pub(super) pods: LabelSelector,
}

/// A port by name, and the number that it must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Target {
    /// The protocol.
    pub(super) protocol: Protocol,
    /// The port's name.
    pub(super) name: Arc<str>,
    /// The number that the name has at the pod.
    pub(super) number: u16,
}

/// Some addresses of pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Term {
    /// Of which pods.
    pub(super) selection: Arc<Selection>,
    /// Only of those that have this port.
    pub(super) target: Option<Target>,
    /// Only addresses in these ranges.
    pub(super) within: Option<Ranges>,
}

/// The union of terms and ranges, normalised: what the rest absorbs is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Peers {
    id: GroupId,
    terms: Vec<Term>,
    ranges: Ranges,
}

impl Scope {
    /// Every namespace.
    pub(super) fn everywhere() -> Scope {
        Scope::Matching(LabelSelector::default())
    }

    /// The scope, lent.
    pub(super) fn lend(&self) -> ScopeRef<'_> {
        match self {
            Scope::Namespace(name) => ScopeRef::Namespace(name),
            Scope::Matching(selector) => ScopeRef::Matching(selector),
        }
    }
}

impl<'a> ScopeRef<'a> {
    /// The namespaces of a peer: the policy's own, unless it has a selector. A selector by the name that every
    /// namespace is labelled with is that namespace.
    pub(super) fn of(own: &'a str, selector: Option<&'a LabelSelector>) -> ScopeRef<'a> {
        match selector {
            None => ScopeRef::Namespace(own),
            Some(selector) => match named_namespace(selector) {
                Some(name) => ScopeRef::Namespace(name),
                None => ScopeRef::Matching(selector),
            },
        }
    }
}

fn named_namespace(selector: &LabelSelector) -> Option<&str> {
    let mut requirements = selector.0.iter();
    let (Some(requirement), None) = (requirements.next(), requirements.next()) else {
        return None;
    };
    match &requirement.operator {
        Operator::In(values) if requirement.key == NAMESPACE_NAME && values.len() == 1 => {
            values.first().map(String::as_str)
        }
        _ => None,
    }
}

impl Selection {
    /// A selection of its own.
    pub(super) fn new(scope: ScopeRef<'_>, pods: &LabelSelector) -> Arc<Selection> {
        let scope = match scope {
            ScopeRef::Namespace(name) => Scope::Namespace(name.into()),
            ScopeRef::Matching(selector) => Scope::Matching(selector.clone()),
        };
        let pods = pods.clone();
        Arc::new(Selection { scope, pods })
    }

    /// All pods of all namespaces.
    pub(super) fn everything() -> Arc<Selection> {
        static EVERYTHING: LazyLock<Arc<Selection>> = LazyLock::new(|| {
            Arc::new(Selection {
                scope: Scope::everywhere(),
                pods: LabelSelector::default(),
            })
        });
        EVERYTHING.clone()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Namespace(name) => f.write_str(name),
            Scope::Matching(selector) if selector.0.is_empty() => f.write_str("*"),
            Scope::Matching(selector) => write!(f, "*{{{selector}}}"),
        }
    }
}

impl fmt::Display for Selection {
    /// `default/app=client`, `*{team=a}/app=client`, `*/*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.scope, self.pods)
    }
}

impl fmt::Display for Term {
    /// `pods default/app=client`, `pods */* in 10.0.0.0/8 with TCP http=8080`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods {}", self.selection)?;
        if let Some(ranges) = &self.within {
            write!(f, " in {ranges}")?;
        }
        if let Some(target) = &self.target {
            write!(
                f,
                " with {} {}={}",
                target.protocol, target.name, target.number
            )?;
        }
        Ok(())
    }
}

impl Peers {
    /// The union of terms and ranges.
    pub(super) fn new(mut terms: Vec<Term>, ranges: Ranges) -> Peers {
        if ranges.is_everything() {
            return Peers::everyone();
        }
        if terms.len() > 1 || terms.iter().any(|term| term.within.is_some()) {
            terms = absorb(join_within(terms, &ranges));
        }
        let mut texts: Vec<String> = terms.iter().map(Term::to_string).collect();
        texts.sort_unstable();
        let id = GroupId::of(texts.iter().map(String::as_str), &ranges);
        Peers { id, terms, ranges }
    }

    /// Every address there is.
    pub(super) fn everyone() -> Peers {
        static ID: LazyLock<GroupId> = LazyLock::new(|| GroupId::of([], &Ranges::everything()));
        Peers {
            id: *ID,
            terms: Vec::new(),
            ranges: Ranges::everything(),
        }
    }

    /// The union of unions.
    pub(super) fn union(parts: &[&Arc<Peers>]) -> Arc<Peers> {
        if let [only] = parts {
            return (*only).clone();
        }
        if let Some(everyone) = parts.iter().find(|peers| peers.is_everyone()) {
            return (*everyone).clone();
        }
        let terms = parts.iter().flat_map(|peers| peers.terms.iter().cloned());
        let ranges = Ranges::union_all(parts.iter().map(|peers| &peers.ranges));
        Arc::new(Peers::new(terms.collect(), ranges))
    }

    /// What the group is called.
    pub(super) fn id(&self) -> GroupId {
        self.id
    }

    /// The terms.
    pub(super) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The ranges.
    pub(super) fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Whether it is every address.
    pub(super) fn is_everyone(&self) -> bool {
        self.ranges.is_everything()
    }

    /// The group in words, for people.
    pub(super) fn description(&self) -> String {
        if self.is_everyone() {
            return "everyone".into();
        }
        let mut texts: Vec<String> = self.terms.iter().map(Term::to_string).collect();
        texts.sort_unstable();
        if !self.ranges.is_empty() {
            texts.push(self.ranges.to_string());
        }
        let mut text = texts.join(" | ");
        if let Some((end, _)) = text.char_indices().nth(DESCRIPTION_LIMIT) {
            text.truncate(end);
            text.push('…');
        }
        text
    }
}

/// Makes one term of those that differ in their ranges only, and drops those that lie in the group's own ranges.
fn join_within(terms: Vec<Term>, ranges: &Ranges) -> BTreeSet<Term> {
    let mut joined: BTreeMap<(Arc<Selection>, Option<Target>), Ranges> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for term in terms {
        match term.within {
            None => {
                all.insert(term);
            }
            Some(within) => {
                let sum = joined.entry((term.selection, term.target)).or_default();
                *sum = sum.union(&within);
            }
        }
    }
    for ((selection, target), within) in joined {
        if within.difference(ranges).is_empty() {
            continue;
        }
        all.insert(Term {
            selection,
            target,
            within: (!within.is_everything()).then_some(within),
        });
    }
    all
}

/// Drops the terms that another one contains, as far as a look at the other one's spelling tells.
fn absorb(terms: BTreeSet<Term>) -> Vec<Term> {
    type Spelling<'a> = (
        &'a Scope,
        &'a LabelSelector,
        Option<&'a Target>,
        Option<&'a Ranges>,
    );
    let known: HashSet<Spelling<'_>> = terms
        .iter()
        .map(|term| {
            let Selection { scope, pods } = &*term.selection;
            (scope, pods, term.target.as_ref(), term.within.as_ref())
        })
        .collect();
    let everything = Selection::everything();
    let is_absorbed = |term: &Term| {
        let Selection { scope, pods } = &*term.selection;
        let own = (scope, pods, term.target.as_ref(), term.within.as_ref());
        [scope, &everything.scope].into_iter().any(|scope| {
            [pods, &everything.pods].into_iter().any(|pods| {
                [own.2, None].into_iter().any(|target| {
                    [own.3, None].into_iter().any(|within| {
                        let wider = (scope, pods, target, within);
                        wider != own && known.contains(&wider)
                    })
                })
            })
        })
    };
    terms
        .iter()
        .filter(|term| !is_absorbed(term))
        .cloned()
        .collect()
}
