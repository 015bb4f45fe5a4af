//! A node's policy as nftables objects: the fixed frame of the table, and what each group, class and endpoint becomes.
//!
//! A forwarded packet is judged by its connection's tuple, both ways alike, so that taking one element away cuts a
//! live connection at once. Its way through the table:
//!
//! ```text
//! forward ─ (where there are leases) jump lease: return | goto fenced: all of this node's workloads is dropped
//!    │ no connection ──> by_header ─> header_source, header_destination: by the packet's own addresses
//!    │ jump egress:  map egress4/6  (source of the connection)      ─ goto class ─ goto group ─ return | deny
//!    │ jump ingress: map ingress4/6 (destination, after translation) ─ goto class ─ goto group ─ return | deny
//!    └ accept
//! ```
//!
//! A class accepts by returning, so egress and ingress of two pods of one node compose; every other way out of it ends
//! in `deny`. A class that keeps established connections returns for those first. A known endpoint that is not isolated
//! returns from the map; an unknown workload address falls through it to the rules that drop it (`strict`).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use sallyport_proto::{
    Ranges, Unknown,
    policy::{Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol},
};
use sha2::{Digest as _, Sha256};

use crate::nft::{
    command::{Command, Element, Family, Match, Rule, SetKind, Tuple, Verdict},
    lease::{self, Slot},
    names, stamp,
};

/// What the operator of a node chose about the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether traffic of workload addresses that are no endpoint is dropped.
    pub strict: bool,
    /// Workload addresses of this node, beside those that the control plane knows of.
    pub workload_ranges: Ranges,
    /// Interfaces behind which there are only workloads; a name that ends in `*` is a prefix.
    pub workload_interfaces: Vec<String>,
    /// Ask the kernel to protect the table from others (flags `owner` and `persist`, Linux 6.9).
    pub owned: bool,
    /// How long a lease lasts, without which all traffic of this node's workloads is dropped; `None` where none is
    /// needed.
    pub lease: Option<Duration>,
}

impl Options {
    /// What becomes of workload addresses that are no endpoint. What enters by an interface of workloads may be any.
    pub fn unknown(&self) -> Unknown {
        match (self.strict, self.workload_interfaces.is_empty()) {
            (false, _) => Unknown::Allow,
            (true, true) => Unknown::Drop(Arc::new(self.workload_ranges.clone())),
            (true, false) => Unknown::Drop(Arc::new(Ranges::everything())),
        }
    }
}

/// The base chain.
pub const FORWARD: &str = "forward";

/// Where every denial ends.
pub const DENY: &str = "deny";

/// Raised when the frame changes its meaning, so that an upgraded enforcer writes it anew.
const LAYOUT: u32 = 1;

pub(super) fn map_name(what: &str, family: Family) -> String {
    format!("{what}{}", family.digit())
}

/// The sets and maps that are always there.
pub fn frame_sets(options: &Options) -> Vec<Command> {
    let set = |name: String, kind, comment: &str| Command::AddSet {
        name,
        kind,
        comment: comment.into(),
    };
    let mut commands = vec![set(
        stamp::SET.into(),
        SetKind::Stamp,
        "what this table enforces",
    )];
    for family in Family::BOTH {
        let maps = [
            ("egress", "what each local workload may send"),
            ("ingress", "what may come to each local workload"),
            ("header", "packets of no connection, by their own addresses"),
        ];
        for (name, comment) in maps {
            commands.push(set(
                map_name(name, family),
                SetKind::Verdicts(family),
                comment,
            ));
        }
        commands.push(set(
            map_name("self", family),
            SetKind::Pairs(family),
            "a workload always reaches itself",
        ));
    }
    if options.lease.is_some() {
        commands.extend(lease::sets());
    }
    commands
}

/// The chains that are always there, in an order in which each is there before it is named, with their rules. That of the
/// lease is as it is in a fresh table: which set it looks into afterwards is no part of the frame.
pub fn frame_chains(options: &Options, policy: &NodePolicy) -> Vec<(&'static str, Vec<Rule>)> {
    let ranges = workload_ranges(options, policy);
    let both = |rule: &dyn Fn(Family) -> Rule| Family::BOTH.map(rule).to_vec();
    let mut deny = both(&|family| {
        Rule::when(
            Match::TupleSources(family, map_name("self", family)),
            Verdict::Return,
        )
    });
    deny.push(Rule::always(Verdict::Drop).counted());

    let tuple_map = |tuple, what: &str| {
        both(&|family| Rule::map(Match::TupleSourceMap(tuple, family, map_name(what, family))))
    };
    let mut egress = tuple_map(Tuple::Original, "egress");
    let mut ingress = tuple_map(Tuple::Reply, "ingress");
    let mut source =
        both(&|family| Rule::map(Match::SourceMap(family, map_name("header", family))));
    let mut destination =
        both(&|family| Rule::map(Match::DestinationMap(family, map_name("header", family))));
    if options.strict {
        let strict = |condition| {
            Rule::when(condition, Verdict::Drop)
                .counted()
                .comment("strict: no such workload (yet)")
        };
        for (family, name) in range_sets(&ranges) {
            egress.push(strict(Match::TupleSource(
                Tuple::Original,
                family,
                name.clone(),
            )));
            ingress.push(strict(Match::TupleSource(
                Tuple::Reply,
                family,
                name.clone(),
            )));
            source.push(strict(Match::Source(family, name.clone())));
            destination.push(strict(Match::Destination(family, name)));
        }
        for interface in &options.workload_interfaces {
            let (input, output) = (
                Match::InputInterface(interface.clone()),
                Match::OutputInterface(interface.clone()),
            );
            egress.push(strict(Match::DirectionOriginal).and(input.clone()));
            ingress.push(strict(Match::DirectionOriginal).and(output.clone()));
            source.push(strict(input));
            destination.push(strict(output));
        }
    }
    let jump = |chain: &str| Rule::always(Verdict::Jump(chain.into()));
    let mut forward = vec![
        Rule::when(Match::NoConnection, Verdict::Goto("by_header".into())),
        jump("egress"),
        jump("ingress"),
    ];
    let mut chains = vec![
        (DENY, deny),
        ("egress", egress),
        ("ingress", ingress),
        ("header_source", source),
        ("header_destination", destination),
        (
            "by_header",
            vec![
                Rule::when(Match::NeighbourDiscovery, Verdict::Accept),
                jump("header_source"),
                jump("header_destination"),
            ],
        ),
    ];
    if options.lease.is_some() {
        let ranges = match options.strict {
            true => range_sets(&ranges),
            false => Vec::new(),
        };
        let interfaces: &[String] = match options.strict {
            true => &options.workload_interfaces,
            false => &[],
        };
        chains.push((lease::CLOSED, lease::closed_rules(&ranges, interfaces)));
        chains.push((lease::FENCED, lease::fenced_rules()));
        chains.push((lease::CHAIN, lease::rules(Slot::default())));
        forward.insert(0, jump(lease::CHAIN));
    }
    chains.push((FORWARD, forward));
    chains
}

/// Says what the frame is made from, so that a restarted enforcer sees whether it is still the right one.
pub fn frame_fingerprint(options: &Options, policy: &NodePolicy) -> String {
    let mut hash = Sha256::new();
    for (chain, rules) in frame_chains(options, policy) {
        for rule in rules {
            hash.update(format!("{chain} {rule}\n"));
        }
    }
    let mode = match options.strict {
        true => "strict",
        false => "standard",
    };
    let hash: String = hash.finalize()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("layout {LAYOUT} {mode} {hash}")
}

/// The commands that make an (empty) frame chain.
pub fn add_frame_chain(name: &str) -> Command {
    let comment = match name {
        DENY => "where every denial ends",
        "egress" => "by the source of the connection",
        "ingress" => "by the destination of the connection, after translation",
        "by_header" => "packets that belong to no connection",
        "header_source" => "by the packet's own source",
        "header_destination" => "by the packet's own destination",
        lease::CHAIN => "whether the node may go on",
        lease::FENCED => "there is no lease",
        lease::CLOSED => "nothing of this node's workloads passes",
        _ => "every forwarded packet",
    };
    Command::AddChain {
        name: name.into(),
        forward: name == FORWARD,
        comment: comment.into(),
    }
}

/// Replaces all rules of a chain. In one batch packets meet the old rules or the new ones.
pub fn replace_rules(chain: &str, rules: Vec<Rule>) -> Vec<Command> {
    let flush = Command::FlushChain(chain.into());
    let add = rules
        .into_iter()
        .map(|rule| Command::AddRule(chain.into(), rule));
    [flush].into_iter().chain(add).collect()
}

/// The node's workload addresses, from both who may know.
pub fn workload_ranges(options: &Options, policy: &NodePolicy) -> Ranges {
    options.workload_ranges.union(policy.workload_ranges())
}

/// The sets of workload ranges, one for each family that has some. They never change: other ranges are other sets.
fn range_sets(ranges: &Ranges) -> Vec<(Family, String)> {
    let id = GroupId::of([], ranges).to_string();
    Family::BOTH
        .into_iter()
        .filter(|&family| ranges.iter().any(|(first, _)| Family::of(first) == family))
        .map(|family| (family, format!("workloads{}-{}", family.digit(), &id[..8])))
        .collect()
}

/// The names and the making of the sets that the frame's strict rules look into.
pub fn workload_sets(options: &Options, policy: &NodePolicy) -> BTreeMap<String, Vec<Command>> {
    if !options.strict {
        return BTreeMap::new();
    }
    let ranges = workload_ranges(options, policy);
    range_sets(&ranges)
        .into_iter()
        .map(|(family, name)| {
            let commands = range_set(&name, family, &ranges, "addresses of this node's workloads");
            (name, commands)
        })
        .collect()
}

fn range_set(name: &str, family: Family, ranges: &Ranges, comment: &str) -> Vec<Command> {
    let kind = SetKind::Ranges(family);
    let elements: Vec<Element> = ranges
        .iter()
        .filter(|(first, _)| Family::of(*first) == family)
        .map(|(first, last)| Element::Range(first, last))
        .collect();
    vec![
        Command::AddSet {
            name: name.into(),
            kind,
            comment: comment.into(),
        },
        Command::AddElements(name.into(), kind, elements),
    ]
}

/// The families that a group has ranges of.
fn range_families(group: &PeerGroup) -> impl Iterator<Item = Family> + '_ {
    let ranges = &group.spec.ranges;
    Family::BOTH
        .into_iter()
        .filter(|&family| ranges.iter().any(|(first, _)| Family::of(first) == family))
}

/// Whether everyone is in a group: then nothing is looked up.
fn is_everyone(group: &PeerGroup) -> bool {
    group.spec.ranges.is_everything()
}

/// The sets of a group.
pub fn group_set_names(name: &str, group: &PeerGroup) -> Vec<String> {
    if is_everyone(group) {
        return Vec::new();
    }
    let addresses = Family::BOTH.map(|family| names::group_addresses(name, family));
    let ranges = range_families(group).map(|family| names::group_ranges(name, family));
    addresses.into_iter().chain(ranges).collect()
}

/// Makes the sets of a group, filled.
pub fn add_group(name: &str, group: &PeerGroup) -> Vec<Command> {
    if is_everyone(group) {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for family in Family::BOTH {
        let (set, kind) = (
            names::group_addresses(name, family),
            SetKind::Addresses(family),
        );
        commands.push(Command::AddSet {
            name: set.clone(),
            kind,
            comment: group.spec.description.clone(),
        });
        let members = group
            .addresses
            .iter()
            .filter(|address| Family::of(**address) == family);
        let elements: Vec<Element> = members.map(|&address| Element::Address(address)).collect();
        if !elements.is_empty() {
            commands.push(Command::AddElements(set, kind, elements));
        }
    }
    for family in range_families(group) {
        let set = names::group_ranges(name, family);
        commands.extend(range_set(
            &set,
            family,
            &group.spec.ranges,
            &group.spec.description,
        ));
    }
    commands
}

/// Changes the members of a group that packets are looking into.
pub fn change_members(
    name: &str,
    group: &PeerGroup,
    addresses: &[IpAddr],
    change: fn(String, SetKind, Vec<Element>) -> Command,
) -> Vec<Command> {
    if is_everyone(group) {
        return Vec::new();
    }
    Family::BOTH
        .into_iter()
        .filter_map(|family| {
            let elements: Vec<Element> = addresses
                .iter()
                .filter(|address| Family::of(**address) == family)
                .map(|&address| Element::Address(address))
                .collect();
            let set = names::group_addresses(name, family);
            (!elements.is_empty()).then(|| change(set, SetKind::Addresses(family), elements))
        })
        .collect()
}

/// The rules of the chain that lets a group's peers through.
pub fn group_rules(direction: Direction, name: &str, group: &PeerGroup) -> Vec<Rule> {
    if is_everyone(group) {
        return vec![Rule::always(Verdict::Return)];
    }
    let peer = peer_tuple(direction);
    let looked_up = |set: &dyn Fn(&str, Family) -> String, family| {
        Rule::when(
            Match::TupleSource(peer, family, set(name, family)),
            Verdict::Return,
        )
    };
    let mut rules: Vec<Rule> = Family::BOTH
        .map(|family| looked_up(&names::group_addresses, family))
        .to_vec();
    rules.extend(range_families(group).map(|family| looked_up(&names::group_ranges, family)));
    rules.push(deny());
    rules
}

fn deny() -> Rule {
    Rule::always(Verdict::Goto(DENY.into())).counted()
}

/// Whose source the peer is: of an incoming connection the client, of an outgoing one the server.
fn peer_tuple(direction: Direction) -> Tuple {
    match direction {
        Direction::Ingress => Tuple::Original,
        Direction::Egress => Tuple::Reply,
    }
}

/// What a class allows, in a few words: for its chain's name and comment.
pub fn class_summary(class: &Class, describe: impl Fn(GroupId) -> String) -> String {
    let port = |rule: &PortRule| match (rule.first, rule.last) {
        (0, u16::MAX) => rule.protocol.to_string(),
        (first, last) if first == last => format!("{} {first}", rule.protocol),
        (first, last) => format!("{} {first}-{last}", rule.protocol),
    };
    let word = match class.direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    if let Some(group) = uniform(class) {
        return format!("all {word} {}", describe(group));
    }
    let mut parts: Vec<String> = class
        .ports
        .iter()
        .map(|rule| format!("{} {word} {}", port(rule), describe(rule.group)))
        .collect();
    parts.extend(
        class
            .other
            .map(|group| format!("other {word} {}", describe(group))),
    );
    if parts.is_empty() {
        return "nothing".into();
    }
    parts.join("; ")
}

/// The group of a class that tells no protocols and ports apart.
fn uniform(class: &Class) -> Option<GroupId> {
    let group = class.other?;
    let whole = class.ports.len() == Protocol::ALL.len()
        && class
            .ports
            .iter()
            .all(|rule| (rule.first, rule.last, rule.group) == (0, u16::MAX, group));
    whole.then_some(group)
}

/// The rules of a class's chain. `chain` tells the name of a group's chain.
pub fn class_rules(class: &Class, chain: impl Fn(GroupId) -> String) -> Vec<Rule> {
    let goto = |group| Verdict::Goto(chain(group));
    let mut rules = Vec::new();
    if class.keep {
        let kept = Rule::when(Match::Established, Verdict::Return);
        rules.push(kept.comment("keep: what is established goes on"));
    }
    if let Some(group) = uniform(class) {
        rules.push(Rule::always(goto(group)));
        return rules;
    }
    for protocol in Protocol::ALL {
        let ports: Vec<&PortRule> = class
            .ports
            .iter()
            .filter(|rule| rule.protocol == protocol)
            .collect();
        let of = Match::Protocol(protocol.number());
        match ports[..] {
            [] => {}
            [rule] if (rule.first, rule.last) == (0, u16::MAX) => {
                rules.push(Rule::when(of, goto(rule.group)));
            }
            _ => {
                let map = ports
                    .iter()
                    .map(|rule| (rule.first, rule.last, goto(rule.group)));
                rules.push(Rule::map(of).and(Match::ServerPortMap(map.collect())));
            }
        }
    }
    if let Some(group) = class.other {
        rules.push(Rule::when(Match::ProtocolWithoutPorts, goto(group)));
    }
    rules.push(deny());
    rules
}

/// The elements of an endpoint in the table's maps. `chain` tells the name of a class's chain.
pub fn endpoint_elements(
    address: IpAddr,
    endpoint: &Arc<Endpoint>,
    chain: impl Fn(Direction) -> Option<String>,
) -> Vec<(String, SetKind, Element)> {
    let family = Family::of(address);
    let label = format!("{}/{}", endpoint.namespace, endpoint.name);
    let verdict = |direction| chain(direction).map_or(Verdict::Return, Verdict::Goto);
    let header = match (endpoint.ingress, endpoint.egress) {
        (None, None) => Verdict::Return,
        _ => Verdict::Drop,
    };
    let verdicts = [
        ("egress", verdict(Direction::Egress)),
        ("ingress", verdict(Direction::Ingress)),
        ("header", header),
    ];
    let mut elements: Vec<(String, SetKind, Element)> = verdicts
        .into_iter()
        .map(|(map, verdict)| {
            let element = Element::Verdict(address, verdict, label.clone());
            (map_name(map, family), SetKind::Verdicts(family), element)
        })
        .collect();
    let own = Element::Pair(address);
    elements.push((map_name("self", family), SetKind::Pairs(family), own));
    elements
}
