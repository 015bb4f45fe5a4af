//! The allowed sources of workloads as sources of their nodes: which address is whose, and when that is to be derived
//! anew. `propagate/sources.rs` derives it, with the classes.
//!
//! The workloads of a node *claim* ranges there. An address is in the source of those whose range is the longest
//! prefix. It is in no source if a workload or a node of the cluster has it, if it is in the workload ranges of another
//! node alone, or if no packet has such a source. A claim that is not within the node's own workload ranges means none
//! of these.
//!
//! A node that must know too many addresses of workloads in its claims knows blocks of addresses instead, and no
//! address of such a block is in a source: what a node is sent has a bound.
//!
//! A node without claims costs nothing. The sources of a node with claims are derived anew if a claim, a claimant's
//! class, the workload ranges of any node, or the address of a workload within a claim comes or goes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use sallyport_policy::Ranges;

use super::{
    ids::{ClassSlot, NodeId, WorkloadId},
    rule::range,
};

/// The most blocks of workloads' addresses that are cut out of the claims of a node. Each is some 40 bytes in an
/// update.
pub(super) const MAX_HOLES: usize = 16_384;

/// The prefix lengths of the blocks, of IPv4 and IPv6: the first that make no more blocks than there may be.
pub(super) const BLOCKS: [(u8, u8); 5] = [(32, 128), (24, 64), (16, 48), (8, 32), (0, 0)];

/// The claims of a workload.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claims {
    pub(super) node: NodeId,
    /// Ascending, each once.
    pub(super) networks: Vec<IpNetwork>,
    /// The classes of the workload.
    pub(super) class_slots: [Option<ClassSlot>; 2],
}

/// The claims of all nodes.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) nodes: BTreeMap<NodeId, Claimed>,
    /// The nodes on which a range is claimed.
    pub(super) by_network: HashMap<IpNetwork, BTreeSet<NodeId>>,
    /// How many entries of `by_network` have a prefix length. The key begins with whether the family is IPv4.
    pub(super) lengths: BTreeMap<(bool, u8), usize>,
}

/// The claims of a node.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    pub(super) by_network: BTreeMap<IpNetwork, BTreeSet<WorkloadId>>,
    /// The addresses that are nobody's source there: the workload ranges of other nodes, less those of this node, the
    /// own addresses of nodes, and what is no source at all.
    pub(super) foreign: Ranges,
    /// The classes of the sources, which were acquired once for each entry.
    pub(super) class_slots: Vec<ClassSlot>,
}

impl Sources {
    pub(super) fn enter(&mut self, workload: WorkloadId, claims: &Claims) {
        let claimed = self.nodes.entry(claims.node).or_default();
        for &network in &claims.networks {
            claimed
                .by_network
                .entry(network)
                .or_default()
                .insert(workload);
            let node_ids = self.by_network.entry(network).or_default();
            if node_ids.is_empty() {
                let length = (network.is_ipv4(), network.prefix());
                *self.lengths.entry(length).or_insert(0) += 1;
            }
            node_ids.insert(claims.node);
        }
    }

    /// Takes a workload's claims out. The node stays until its sources are derived anew.
    pub(super) fn leave(&mut self, workload: WorkloadId, claims: &Claims) {
        let claimed = self.nodes.get_mut(&claims.node);
        let claimed = claimed.expect("the node has claims");
        for network in &claims.networks {
            let workloads = claimed.by_network.get_mut(network);
            let workloads = workloads.expect("the range was claimed");
            workloads.remove(&workload);
            if !workloads.is_empty() {
                continue;
            }
            claimed.by_network.remove(network);
            let node_ids = self.by_network.get_mut(network);
            let node_ids = node_ids.expect("the range was claimed");
            node_ids.remove(&claims.node);
            if !node_ids.is_empty() {
                continue;
            }
            self.by_network.remove(network);
            let length = (network.is_ipv4(), network.prefix());
            let count = self.lengths.get_mut(&length).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
    }

    /// The nodes of whose sources an address is a hole, if it is a workload's.
    pub(super) fn nodes_of(&self, address: IpAddr) -> impl Iterator<Item = NodeId> {
        let family = (address.is_ipv4(), 0)..=(address.is_ipv4(), u8::MAX);
        let lengths = self.lengths.range(family).map(|(&(_, length), _)| length);
        let networks = lengths.map(move |length| block(address, length));
        let node_ids = networks.filter_map(|network| self.by_network.get(&network));
        let is_own = move |node_id: &NodeId| !self.nodes[node_id].foreign.contains(address);
        node_ids.flatten().copied().filter(is_own)
    }
}

/// The network of a prefix length that an address is in.
fn block(address: IpAddr, length: u8) -> IpNetwork {
    let network = IpNetwork::new(address, length).expect("a length of the family");
    IpNetwork::new(network.network(), length).expect("a length of the family")
}

/// The addresses that are in the source of some owners each, of the ranges that these claim. An address is its most
/// specific claim's. None is in `foreign`, or is a hole of the addresses, ascending, that `held` finds in a set. A
/// claim has none in `own` that is not within.
pub(super) fn pieces<O: Clone + Ord>(
    claims: &BTreeMap<IpNetwork, O>,
    foreign: &Ranges,
    own: &Ranges,
    held: impl FnOnce(&Ranges) -> Vec<IpAddr>,
) -> BTreeMap<O, Ranges> {
    let mut parts: BTreeMap<&O, Vec<Ranges>> = BTreeMap::new();
    for ((owners, ranges), network) in most_specific(claims).into_iter().zip(claims.keys()) {
        let is_within = range(network).difference(own).is_empty();
        let ranges = match is_within {
            true => ranges,
            false => ranges.difference(own),
        };
        parts.entry(owners).or_default().push(ranges);
    }
    let left = parts.into_iter().map(|(owners, parts)| {
        let ranges = Ranges::union_all(&parts).difference(foreign);
        (owners, ranges)
    });
    let left: Vec<(&O, Ranges)> = left.collect();
    let all = Ranges::union_all(left.iter().map(|(_, ranges)| ranges));
    let holes = holes(&held(&all));
    let pieces = left.into_iter().map(|(owners, ranges)| {
        let ranges = ranges.difference(&holes);
        (owners.clone(), ranges)
    });
    pieces.filter(|(_, ranges)| !ranges.is_empty()).collect()
}

/// The addresses of the smallest blocks around some addresses, ascending, of which there are not too many.
fn holes(addresses: &[IpAddr]) -> Ranges {
    let blocks = BLOCKS.into_iter().find_map(|(v4, v6)| {
        let blocks = addresses.iter().map(|&address| match address {
            IpAddr::V4(_) => block(address, v4),
            IpAddr::V6(_) => block(address, v6),
        });
        let mut blocks: Vec<IpNetwork> = blocks.collect();
        blocks.dedup();
        (blocks.len() <= MAX_HOLES).then_some(blocks)
    });
    let blocks = blocks.expect("the last are one of each family");
    let blocks: Vec<Ranges> = blocks.iter().map(range).collect();
    Ranges::union_all(&blocks)
}

/// Each claim without the claims within it. A claim comes before those within it, and what is within it follows at
/// once.
fn most_specific<O>(claims: &BTreeMap<IpNetwork, O>) -> Vec<(&O, Ranges)> {
    let networks: Vec<(Ranges, &O)> = claims
        .iter()
        .map(|(of, owners)| (range(of), owners))
        .collect();
    let mut inner: Vec<Vec<usize>> = vec![Vec::new(); networks.len()];
    let mut around: Vec<usize> = Vec::new();
    for (number, (network, _)) in networks.iter().enumerate() {
        let contains = |outer: &usize| network.difference(&networks[*outer].0).is_empty();
        while around.last().is_some_and(|outer| !contains(outer)) {
            around.pop();
        }
        if let Some(&outer) = around.last() {
            inner[outer].push(number);
        }
        around.push(number);
    }
    let parts = networks.iter().zip(inner).map(|((whole, owners), inner)| {
        let inner = inner.into_iter().map(|number| &networks[number].0);
        (*owners, whole.difference(&Ranges::union_all(inner)))
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(text: &[(&str, &'static str)]) -> BTreeMap<IpNetwork, &'static str> {
        let claims = text.iter();
        claims
            .map(|&(network, owners)| (network.parse().expect("a range"), owners))
            .collect()
    }

    fn ranges(text: &str) -> Ranges {
        let ranges = text.split_whitespace();
        let ranges: Vec<Ranges> = ranges
            .map(|text| range(&text.parse().expect("a range")))
            .collect();
        Ranges::union_all(&ranges)
    }

    /// The pieces as text, without workload ranges of the node.
    fn pieces_as_text(
        text: &[(&str, &'static str)],
        foreign: &str,
        held: &str,
    ) -> Vec<(String, String)> {
        pieces_as_text_beside(text, foreign, "", held)
    }

    /// The pieces as text, on a node with workload ranges of its own.
    fn pieces_as_text_beside(
        text: &[(&str, &'static str)],
        foreign: &str,
        own: &str,
        held: &str,
    ) -> Vec<(String, String)> {
        let held = |within: &Ranges| {
            let held = held.split_whitespace();
            let held = held.map(|text| text.parse::<IpAddr>().expect("an address"));
            held.filter(|&address| within.contains(address)).collect()
        };
        let pieces = pieces(&claims(text), &ranges(foreign), &ranges(own), held);
        let pieces = pieces.into_iter();
        pieces
            .map(|(owners, ranges)| (owners.to_owned(), ranges.to_string()))
            .collect()
    }

    #[test]
    fn an_address_is_its_most_specific_claims() {
        type Case<'a> = (&'a [(&'a str, &'static str)], &'a [(&'a str, &'a str)]);
        let cases: [Case<'_>; 8] = [
            (&[], &[]),
            (&[("10.0.0.0/30", "a")], &[("a", "10.0.0.0/30")]),
            (
                &[("10.0.0.0/30", "a"), ("10.0.0.0/31", "b")],
                &[("a", "10.0.0.2/31"), ("b", "10.0.0.0/31")],
            ),
            // A claim of the same workload within its own changes nothing, unless another is between them.
            (
                &[("10.0.0.0/29", "a"), ("10.0.0.4/30", "a")],
                &[("a", "10.0.0.0/29")],
            ),
            (
                &[
                    ("10.0.0.0/29", "a"),
                    ("10.0.0.4/30", "b"),
                    ("10.0.0.4/32", "a"),
                ],
                &[("a", "10.0.0.0-10.0.0.4"), ("b", "10.0.0.5-10.0.0.7")],
            ),
            // Neighbours within one.
            (
                &[
                    ("0.0.0.0/0", "a"),
                    ("10.0.0.0/8", "b"),
                    ("10.1.0.0/16", "c"),
                    ("11.0.0.0/8", "b"),
                ],
                &[
                    ("a", "0.0.0.0-9.255.255.255, 12.0.0.0-255.255.255.255"),
                    ("b", "10.0.0.0/16, 10.2.0.0-11.255.255.255"),
                    ("c", "10.1.0.0/16"),
                ],
            ),
            // Nothing is left.
            (
                &[
                    ("10.0.0.0/31", "a"),
                    ("10.0.0.0/32", "b"),
                    ("10.0.0.1/32", "b"),
                ],
                &[("b", "10.0.0.0/31")],
            ),
            (
                &[("0.0.0.0/0", "a"), ("::/0", "b"), ("fd00::/64", "a")],
                &[
                    ("a", "0.0.0.0/0, fd00::/64"),
                    (
                        "b",
                        "::-fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff, fd00:0:0:1::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                    ),
                ],
            ),
        ];
        for (given, expected) in cases {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(owners, ranges)| (owners.to_owned(), ranges.to_owned()))
                .collect();
            assert_eq!(pieces_as_text(given, "", ""), expected, "{given:?}");
        }
    }

    #[test]
    fn others_ranges_and_addresses_are_no_sources() {
        let given = [("10.0.0.0/24", "a"), ("10.0.0.0/28", "b")];
        let of = |foreign, held| pieces_as_text(&given, foreign, held);
        assert_eq!(
            of("10.0.0.16/28", "10.0.0.1 10.0.0.32"),
            [
                ("a".into(), "10.0.0.33-10.0.0.255".into()),
                ("b".into(), "10.0.0.0, 10.0.0.2-10.0.0.15".to_string()),
            ]
        );
        // An address of a workload within a claim is not what the claim around it has.
        assert_eq!(
            pieces_as_text(
                &[("10.0.0.0/24", "a"), ("10.0.0.0/32", "b")],
                "",
                "10.0.0.0"
            ),
            [("a".to_string(), "10.0.0.1-10.0.0.255".to_string())]
        );
        assert_eq!(of("10.0.0.0/16", ""), []);
    }

    #[test]
    fn a_wide_claim_means_none_of_the_nodes_own_ranges() {
        let given = [
            ("10.0.0.0/8", "a"),
            ("10.1.0.8/29", "b"),
            ("10.1.0.0/31", "a"),
        ];
        assert_eq!(
            pieces_as_text_beside(&given, "", "10.1.0.0/24", "10.1.0.9 10.2.0.0"),
            [
                (
                    "a".to_string(),
                    "10.0.0.0-10.1.0.1, 10.1.1.0-10.1.255.255, 10.2.0.1-10.255.255.255".to_string()
                ),
                ("b".into(), "10.1.0.8, 10.1.0.10-10.1.0.15".into()),
            ]
        );
    }

    #[test]
    fn addresses_are_asked_for_in_what_is_left_only() {
        let asked = std::cell::RefCell::new(Vec::new());
        let held = |within: &Ranges| {
            asked.borrow_mut().push(within.to_string());
            Vec::new()
        };
        pieces(
            &claims(&[("0.0.0.0/0", "a")]),
            &ranges("0.0.0.0/1 192.0.0.0/2"),
            &Ranges::EMPTY,
            held,
        );
        assert_eq!(*asked.borrow(), ["128.0.0.0/2"]);
    }

    #[test]
    fn too_many_addresses_are_cut_out_in_blocks() {
        let every = |step: u32, count: usize| -> Vec<IpAddr> {
            let numbers = (0..).step_by(step as usize).take(count);
            numbers
                .map(|n: u32| IpAddr::V4((n + 0x0a00_0000).into()))
                .collect()
        };
        let v6 = |n: u128| IpAddr::V6((0xfd00 << 112 | n << 64).into());
        let most = holes(&every(2, MAX_HOLES));
        assert_eq!(most.len(), MAX_HOLES);
        let more = holes(&every(2, MAX_HOLES + 1));
        assert_eq!(more, ranges("10.0.0.0/17 10.0.128.0/24"));
        assert_eq!(holes(&every(1 << 10, MAX_HOLES)).len(), MAX_HOLES);
        let sparse = holes(&every(1 << 10, MAX_HOLES + 1));
        assert_eq!(sparse, ranges("10.0.0.0/8 11.0.0.0/16"));
        // The addresses of both families count together.
        let mut both = every(2, MAX_HOLES);
        both.push(v6(7));
        assert_eq!(holes(&both), ranges("10.0.0.0/17 fd00:0:0:7::/64"));
        let v6: Vec<IpAddr> = (0..=1 << 16).map(v6).collect();
        assert_eq!(holes(&v6), ranges("fd00::/47"));
    }
}
