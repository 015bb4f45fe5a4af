//! The expression of a peer group: a union of terms that select pods, and of address ranges, in a normal form with a
//! name. It knows expressions only, never the pods that they select now.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::{self, Write},
    sync::{Arc, LazyLock},
};

use sallyport_policy::{GroupId, Hasher, Protocol, Ranges};

use super::trie::{Key, Trie};
use crate::model::{LabelSelector, Operator};

/// The label that every namespace carries with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A description longer than this is cut; the id is made of the whole.
const DESCRIPTION_LIMIT: usize = 400;

/// So many terms are more than a description has room for: the shortest, with what separates it, has 11 characters.
const DESCRIBED_TERMS: usize = 40;

/// The namespaces that pods are taken from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// One, by name.
    Namespace(String),
    /// The namespaces with matching labels.
    Matching(LabelSelector),
}

/// A scope that is spelt out elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ScopeRef<'a> {
    /// One, by name.
    Namespace(&'a str),
    /// The namespaces with matching labels.
    Matching(&'a LabelSelector),
}

/// Some pods: of these namespaces, those with these labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Selection {
    /// The namespaces.
    pub(super) scope: Scope,
    /// The pods of these namespaces.
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
    /// The pods.
    pub(super) selection: Arc<Selection>,
    /// Only of those that have this port.
    pub(super) target: Option<Target>,
    /// Only addresses in these ranges.
    pub(super) within: Option<Ranges>,
}

/// A term with its name.
#[derive(Debug)]
pub(super) struct Named {
    /// The term.
    pub(super) term: Term,
    /// The position in a set: terms of one scope are next to each other.
    pub(super) key: Key,
    text: String,
}

/// Some terms.
pub(super) type Terms = Trie<Arc<Named>>;

/// The union of terms and ranges, normalised: what the rest absorbs is left out. Equal unions have equal ids.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    id: GroupId,
    terms: Terms,
    ranges: Arc<Ranges>,
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

/// The first half of the keys of a scope's terms.
pub(super) fn scope_key(scope: &Scope) -> u128 {
    let hasher = Hasher::new("scope");
    hasher.field(scope.to_string().as_bytes()).finish()
}

/// The second half of the key of the term that is these pods.
pub(super) fn pods_key(pods: &LabelSelector) -> u128 {
    let hasher = Hasher::new("pods");
    hasher.field(pods.to_string().as_bytes()).finish()
}

impl Named {
    /// Names a term.
    pub(super) fn new(term: Term) -> Arc<Named> {
        let text = term.to_string();
        let Selection { scope, pods } = &*term.selection;
        let second = match (&term.target, &term.within) {
            (None, None) => pods_key(pods),
            _ => Hasher::new("term").field(text.as_bytes()).finish(),
        };
        let key = [scope_key(scope), second];
        Arc::new(Named { term, key, text })
    }

    /// All pods of all namespaces.
    pub(super) fn everything() -> &'static Arc<Named> {
        static EVERYTHING: LazyLock<Arc<Named>> = LazyLock::new(|| {
            Named::new(Term {
                selection: Selection::everything(),
                target: None,
                within: None,
            })
        });
        &EVERYTHING
    }

    /// Whether it is all addresses of the pods, whatever ports they have.
    pub(super) fn is_whole(&self) -> bool {
        self.term.target.is_none() && self.term.within.is_none()
    }
}

impl Peers {
    /// The union of terms and ranges: the definition of the normal form.
    pub(super) fn new(terms: Vec<Term>, ranges: Ranges) -> Peers {
        let terms = absorb(join_within(terms, &ranges), |_, _| false);
        let mut set = Terms::default();
        for named in terms.into_iter().map(Named::new) {
            set.insert(named.key, named);
        }
        Peers::normal(set, Arc::new(ranges))
    }

    /// The union of terms and ranges in normal form.
    pub(super) fn normal(terms: Terms, ranges: Arc<Ranges>) -> Peers {
        if ranges.is_everything() {
            return Peers::everyone();
        }
        let name = (!terms.is_empty()).then(|| format!("{:032x}", terms.hash()));
        Peers {
            id: GroupId::of(name.as_deref(), &ranges),
            terms,
            ranges,
        }
    }

    /// Every address there is.
    pub(super) fn everyone() -> Peers {
        static EVERYONE: LazyLock<Peers> = LazyLock::new(|| Peers {
            id: GroupId::of([], &Ranges::everything()),
            terms: Terms::default(),
            ranges: Arc::new(Ranges::everything()),
        });
        EVERYONE.clone()
    }

    /// The group's id, derived from its normal form.
    pub(super) fn id(&self) -> GroupId {
        self.id
    }

    /// The terms.
    pub(super) fn terms(&self) -> &Terms {
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
        let mut cut = Cut::new();
        // An error is the end of the room.
        let _ = self.describe(&mut cut);
        cut.text
    }

    fn describe(&self, text: &mut Cut) -> fmt::Result {
        if self.is_everyone() {
            return text.write_str("everyone");
        }
        let terms = self.terms.iter().take(DESCRIBED_TERMS);
        let mut texts: Vec<&str> = terms.map(|named| named.text.as_str()).collect();
        texts.sort_unstable();
        for (i, term) in texts.iter().enumerate() {
            let separator = if i > 0 { " | " } else { "" };
            write!(text, "{separator}{term}")?;
        }
        if !self.ranges.is_empty() {
            let separator = if texts.is_empty() { "" } else { " | " };
            write!(text, "{separator}{}", self.ranges)?;
        }
        Ok(())
    }
}

impl PartialEq for Peers {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Peers {}

impl PartialOrd for Peers {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Peers {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id.cmp(&other.id)
    }
}

/// A text that ends, with an ellipsis and an error, where there is no more room.
struct Cut {
    text: String,
    room: usize,
}

impl Cut {
    fn new() -> Cut {
        Cut {
            text: String::new(),
            room: DESCRIPTION_LIMIT,
        }
    }
}

/// A text that is no longer than a description may be.
pub(super) fn shorten(text: &str) -> String {
    let mut cut = Cut::new();
    // An error is the end of the room.
    let _ = cut.write_str(text);
    cut.text
}

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.room == 0 {
                self.text.push('…');
                return Err(fmt::Error);
            }
            self.room -= 1;
            self.text.push(c);
        }
        Ok(())
    }
}

/// Makes one term of those that differ in their ranges only, and drops those that lie in the group's own ranges.
pub(super) fn join_within(
    terms: impl IntoIterator<Item = Term>,
    ranges: &Ranges,
) -> BTreeSet<Term> {
    let mut joined: BTreeMap<(Arc<Selection>, Option<Target>), Vec<Ranges>> = BTreeMap::new();
    let mut all = BTreeSet::new();
    for term in terms {
        match term.within {
            None => {
                all.insert(term);
            }
            Some(within) => {
                let parts = joined.entry((term.selection, term.target)).or_default();
                parts.push(within);
            }
        }
    }
    for ((selection, target), parts) in joined {
        let within = Ranges::union_all(&parts);
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

/// Drops the terms that another one contains, as far as a look at the other one's spelling tells. Some pods may be
/// known beside the terms.
pub(super) fn absorb(
    terms: BTreeSet<Term>,
    are_known: impl Fn(&Scope, &LabelSelector) -> bool,
) -> Vec<Term> {
    if terms.len() == 1 && terms.iter().all(|term| term.target.is_none()) {
        return terms.into_iter().collect();
    }
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
                        let is_whole = target.is_none() && within.is_none();
                        wider != own
                            && (known.contains(&wider) || is_whole && are_known(scope, pods))
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
