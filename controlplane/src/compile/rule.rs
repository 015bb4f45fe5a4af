//! One rule of a policy by its meaning: who, and on which ports. Resolves named ports through what the caller knows;
//! looks at no cluster itself.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use sallyport_policy::{Direction, Protocol, Ranges};

use super::peers::{Peers, ScopeRef, Selection, Target, Term};
use crate::model::{self, LabelSelector};

/// A rule in one direction. Two spellings of the same rule are equal, or at least lead to the same class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    /// Who.
    peers: Arc<Peers>,
    /// Whether it speaks of every port of every protocol.
    all_ports: bool,
    /// Ports by number.
    spans: BTreeSet<(Protocol, u16, u16)>,
    /// Ports by name.
    named: BTreeSet<(Protocol, Arc<str>)>,
    /// The peers one by one, where each resolves the names for itself.
    destinations: BTreeSet<Destination>,
}

/// Pods that an egress rule with a named port speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Destination {
    /// The pods.
    pub(super) selection: Arc<Selection>,
    /// The addresses of these pods that count; `None` for all.
    pub(super) within: Option<Ranges>,
}

/// A named port as a destination may have it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NamedTarget {
    /// Where.
    pub(super) destination: Destination,
    /// The protocol.
    pub(super) protocol: Protocol,
    /// The name.
    pub(super) name: Arc<str>,
}

/// Ports by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ports {
    /// Every port of every protocol, and the protocols that have none.
    All,
    /// The protocol, the first and the last port.
    Span(Protocol, u16, u16),
}

/// Some ports for some peers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Grant {
    /// The ports.
    pub(super) ports: Ports,
    /// The peers.
    pub(super) peers: Arc<Peers>,
}

/// Gives the selection of a scope and a podSelector: one that is there, or a new one.
pub(super) type Intern<'a> = dyn Fn(ScopeRef<'_>, &LabelSelector) -> Arc<Selection> + 'a;

impl Rule {
    /// The meaning of a rule of a policy of `namespace`.
    pub(super) fn new(
        namespace: &str,
        rule: &model::Rule,
        direction: Direction,
        intern: &Intern<'_>,
    ) -> Rule {
        let mut spans = BTreeSet::new();
        let mut named = BTreeSet::new();
        for port in &rule.ports {
            match &port.ports {
                model::PortMatch::All => {
                    spans.insert((port.protocol, 0, u16::MAX));
                }
                model::PortMatch::Range(first, last) => {
                    spans.insert((port.protocol, *first, *last));
                }
                model::PortMatch::Named(name) => {
                    named.insert((port.protocol, Arc::from(name.as_str())));
                }
            }
        }
        let (selections, blocks) = peers_of(namespace, &rule.peers, intern);
        if selections.is_empty() && blocks.is_empty() {
            return Rule::nothing();
        }
        let by_destination = direction == Direction::Egress && !named.is_empty();
        let destinations = if by_destination {
            destinations(&selections, &blocks)
        } else {
            BTreeSet::new()
        };
        let terms = selections.into_iter().map(|selection| Term {
            selection,
            target: None,
            within: None,
        });
        Rule {
            peers: Arc::new(Peers::new(terms.collect(), Ranges::union_all(&blocks))),
            all_ports: rule.ports.is_empty(),
            spans,
            named,
            destinations,
        }
    }

    /// The rule that allows nothing.
    fn nothing() -> Rule {
        Rule {
            peers: Arc::new(Peers::new(Vec::new(), Ranges::EMPTY)),
            all_ports: false,
            spans: BTreeSet::new(),
            named: BTreeSet::new(),
            destinations: BTreeSet::new(),
        }
    }

    /// Every selection that the rule's meaning depends on, some perhaps more than once.
    pub(super) fn selections(&self) -> impl Iterator<Item = &Arc<Selection>> {
        let terms = self.peers.terms().iter().map(|named| &named.term.selection);
        terms.chain(self.destinations.iter().map(|to| &to.selection))
    }

    /// The names that an isolated workload itself resolves; none in egress, where destinations do.
    pub(super) fn own_names(&self) -> impl Iterator<Item = &(Protocol, Arc<str>)> {
        let own = self.destinations.is_empty();
        self.named.iter().filter(move |_| own)
    }

    /// The names that destinations resolve, each for itself; none in ingress.
    pub(super) fn named_targets(&self) -> impl Iterator<Item = NamedTarget> + '_ {
        self.destinations.iter().flat_map(move |destination| {
            self.named.iter().map(move |(protocol, name)| NamedTarget {
                destination: destination.clone(),
                protocol: *protocol,
                name: name.clone(),
            })
        })
    }

    /// The grants of the rule. `own` is the isolated workload's number for a port name; `numbers` are the numbers that
    /// pods of a destination have for it.
    pub(super) fn grants(
        &self,
        own: &dyn Fn(Protocol, &str) -> Option<u16>,
        numbers: &dyn Fn(&NamedTarget) -> Vec<u16>,
        grants: &mut Vec<Grant>,
    ) {
        let mut grant = |ports, peers: &Arc<Peers>| {
            let peers = peers.clone();
            grants.push(Grant { ports, peers });
        };
        if self.all_ports {
            grant(Ports::All, &self.peers);
        }
        for &(protocol, first, last) in &self.spans {
            grant(Ports::Span(protocol, first, last), &self.peers);
        }
        for (protocol, name) in self.own_names() {
            if let Some(number) = own(*protocol, name) {
                grant(Ports::Span(*protocol, number, number), &self.peers);
            }
        }
        for target in self.named_targets() {
            for number in numbers(&target) {
                let ports = Ports::Span(target.protocol, number, number);
                grant(ports, &Arc::new(target.peers(number)));
            }
        }
    }
}

impl NamedTarget {
    /// The destination's pods whose port of that name is `number`.
    fn peers(&self, number: u16) -> Peers {
        let term = Term {
            selection: self.destination.selection.clone(),
            target: Some(Target {
                protocol: self.protocol,
                name: self.name.clone(),
                number,
            }),
            within: self.destination.within.clone(),
        };
        Peers::new(vec![term], Ranges::EMPTY)
    }
}

/// The pods and the blocks of a rule's peers. No peers is everyone; a block of which all is excepted is nobody.
fn peers_of(
    namespace: &str,
    peers: &[model::Peer],
    intern: &Intern<'_>,
) -> (BTreeSet<Arc<Selection>>, BTreeSet<Ranges>) {
    let (mut selections, mut blocks) = (BTreeSet::new(), BTreeSet::new());
    if peers.is_empty() {
        blocks.insert(Ranges::everything());
    }
    for peer in peers {
        match peer {
            model::Peer::Pods { namespaces, pods } => {
                let scope = ScopeRef::of(namespace, namespaces.as_ref());
                selections.insert(intern(scope, pods));
            }
            model::Peer::Block { cidr, except } => {
                let except: Vec<Ranges> = except.iter().map(range).collect();
                let block = range(cidr).difference(&Ranges::union_all(&except));
                if !block.is_empty() {
                    blocks.insert(block);
                }
            }
        }
    }
    (selections, blocks)
}

/// A block's destinations are the pods whose address lies in it.
fn destinations(
    selections: &BTreeSet<Arc<Selection>>,
    blocks: &BTreeSet<Ranges>,
) -> BTreeSet<Destination> {
    let pods = selections.iter().map(|selection| Destination {
        selection: selection.clone(),
        within: None,
    });
    let blocks = blocks.iter().map(|block| Destination {
        selection: Selection::everything(),
        within: (!block.is_everything()).then(|| block.clone()),
    });
    pods.chain(blocks).collect()
}

/// The addresses of a network.
pub(super) fn range(network: &IpNetwork) -> Ranges {
    let (first, last): (IpAddr, IpAddr) = (network.network(), network.broadcast());
    Ranges::span(first, last).expect("a network begins before it ends")
}
