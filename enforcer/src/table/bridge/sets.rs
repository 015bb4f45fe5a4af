//! The sets of the table of family bridge, and the ground from which they are filled.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use sallyport_nft::command::{Command, Element, Family, SetKind};
use sallyport_policy::Ranges;

use crate::table::{ports, stamp};

/// The layout that the stamp names, for the reader of a listing. The enforcer recognises a table by comparing its
/// content.
const LAYOUT: u32 = 2;

/// The ports of the node's bridges as far as they are known, and the workloads behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// Whether frames that would be dropped pass, and are counted.
    pub counts_only: bool,
    /// Whether policy judges frames with one 802.1Q tag: br_netfilter shows them
    /// (`net.bridge.bridge-nf-filter-vlan-tagged`).
    pub judges_tags: bool,
    /// The ports whose workloads are known and guarded, by name.
    pub known: BTreeMap<String, KnownPort>,
    /// The known ports behind which there is a workload that is isolated for ingress.
    pub isolated: BTreeSet<String>,
    /// The guarded workloads whose ports are not known, if there are any.
    pub unknown: Option<UnknownPorts>,
}

/// A port whose workloads are known, with their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownPort {
    /// The workloads' own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses that the workloads may use beside their own. No endpoint's address is among them, and none of
    /// those that no workload uses.
    pub ranges: Ranges,
}

/// The guarded workloads whose ports are not known: their addresses, and the ports that lead to none of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownPorts {
    /// All ports of bridges behind which there is none of these workloads.
    pub elsewhere: BTreeSet<String>,
    /// The addresses of the node's workloads.
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses that workloads of the node may have or use.
    pub ranges: Ranges,
    /// Whether one of these workloads is isolated for ingress.
    pub isolated: bool,
}

/// The ports that are known.
pub(super) const KNOWN: &str = "known";
/// The known ports whose workload is isolated for ingress.
pub(super) const ISOLATED: &str = "isolated";
/// The ports behind which there is no workload of the node.
pub(super) const ELSEWHERE: &str = "elsewhere";
/// The addresses of the workloads behind ports that are known.
pub(super) const PORT_ADDRESSES: &str = "port_addresses";
/// The addresses that the workloads behind known ports may use beside their own.
pub(super) const PORT_RANGES: &str = "port_ranges";
/// The map from a port to the chain of the targets of its neighbour advertisements.
pub(super) const TARGETS: &str = "targets";

pub(super) fn fill(
    set: &str,
    kind: SetKind,
    elements: impl IntoIterator<Item = Element>,
) -> Option<Command> {
    let elements: Vec<Element> = elements.into_iter().collect();
    (!elements.is_empty()).then(|| Command::AddElements(set.into(), kind, elements))
}

pub(super) fn name(what: &str, family: Family) -> String {
    format!("{what}{}", family.digit())
}

pub(super) fn sets(ground: &Ground) -> Vec<Command> {
    let nobody = UnknownPorts::default();
    let unknown = ground.unknown.as_ref().unwrap_or(&nobody);
    let mut commands = Vec::new();
    let mut set = |name: String, kind, comment: &str, elements: Vec<Element>| {
        commands.push(Command::AddSet {
            name: name.clone(),
            kind,
            comment: comment.into(),
        });
        commands.extend(fill(&name, kind, elements));
    };
    let names = |ports: &BTreeSet<String>| ports.iter().cloned().map(Element::Interface).collect();
    let stamp = Element::Number(0, format!("layout {LAYOUT}"));
    set(
        stamp::SET.into(),
        SetKind::Numbers,
        "what this table is",
        vec![stamp],
    );
    set(
        KNOWN.into(),
        SetKind::Interfaces,
        "ports whose workloads are known",
        ground
            .known
            .keys()
            .cloned()
            .map(Element::Interface)
            .collect(),
    );
    set(
        ISOLATED.into(),
        SetKind::Interfaces,
        "of those, the ports of workloads that are isolated for ingress",
        names(&ground.isolated),
    );
    set(
        ELSEWHERE.into(),
        SetKind::Interfaces,
        "ports of bridges that lead to no workload of this node",
        names(&unknown.elsewhere),
    );
    set(
        TARGETS.into(),
        SetKind::InterfaceVerdicts,
        "which addresses a port may advertise",
        Vec::new(),
    );
    for family in Family::BOTH {
        let pairs = ground.known.iter().flat_map(|(port, known)| {
            let of_family = known.addresses.iter();
            let of_family = of_family.filter(|&&a| Family::of(a) == family);
            of_family.map(|&address| Element::InterfaceAddress(port.clone(), address))
        });
        set(
            name(PORT_ADDRESSES, family),
            SetKind::InterfaceAddresses(family),
            "which addresses are behind which port",
            pairs.collect(),
        );
        let known = ground.known.iter();
        set(
            name(PORT_RANGES, family),
            SetKind::InterfaceRanges(family),
            "which addresses beside their own the workloads behind a port may use",
            known
                .flat_map(|(port, known)| ports::elements(port, &known.ranges, family))
                .collect(),
        );
        let addresses = unknown.addresses.iter().copied();
        set(
            name("addresses", family),
            SetKind::Addresses(family),
            "this node's workloads",
            addresses
                .filter(|&address| Family::of(address) == family)
                .map(Element::Address)
                .collect(),
        );
        let ranges = unknown.ranges.iter();
        set(
            name("workloads", family),
            SetKind::Ranges(family),
            "addresses of this node's workloads",
            ranges
                .filter(|&(first, _)| Family::of(first) == family)
                .map(|(first, last)| Element::Range(first, last))
                .collect(),
        );
    }
    commands
}
