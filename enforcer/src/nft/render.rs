//! A node's policy as nftables objects: the fixed frame of the table, and what each group, class and endpoint becomes.
//!
//! A forwarded packet is judged by its connection's tuple, both ways alike, so that taking one element away cuts a
//! live connection at once. Its way through the table, of which each base chain must say `accept`:
//!
//! ```text
//! lease (where there are leases) ─ there is one: accept | goto fenced: all of this node's workloads is dropped
//! forward_egress:  jump egress
//!    map egress4/6, by the connection's source   ─ goto class ─ goto group ─ accept | deny
//!    no connection ─ goto untracked_source ─ goto header_source: by the packet's own source ─ accept | drop
//!    a workload that the map should have, or none that there is (strict) ─ drop | others ─ accept
//! forward_ingress: jump ingress, the same by the destination (after translation)
//! ```
//!
//! `accept` ends one base chain, so egress and ingress of two pods of one node compose. Nothing is allowed by falling off
//! an end: a chain that is empty to a packet leads back to the base chain, whose last rule drops. Every other way out of a
//! class ends in `deny`. A class that keeps established connections accepts those first.

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
use crate::plan;

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

/// The base chains that are always there, and their priorities, from that which nft calls `filter`: what packets meet first
/// comes first.
pub const BASES: [(&str, i32); 2] = [("forward_egress", 0), ("forward_ingress", 1)];

/// Where every denial ends.
pub const DENY: &str = "deny";

/// What becomes of packets that begin no connection, of one that conntrack does not know.
const UNBEGUN: &str = "unbegun";

/// What judges a workload in the direction in which it is not isolated, where it is in the other.
const UNRESTRICTED: &str = "unrestricted";

/// The comment of the rule that ends a base chain. It counts nothing unless the table is not what it should be.
pub const NOTHING_ALLOWED: &str = "nothing allowed it";

/// Raised when objects of a table change their meaning: an upgraded enforcer replaces the table whole.
const LAYOUT: u32 = 2;

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
        commands.push(set(
            map_name("known", family),
            SetKind::Addresses(family),
            "workloads that the maps must have",
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
    let ranges = range_sets(&workload_ranges(options, policy));
    let unknown = Unlisted::of(options, &ranges);
    let begins = [
        Rule::when(Match::NoTcpBeginning, Verdict::Reset).counted(),
        Rule::when(Match::NoSctpBeginning, Verdict::Drop).counted(),
        Rule::always(Verdict::Return),
    ];
    let unrestricted = [unbegun(), Rule::always(Verdict::Accept)];
    let mut chains = vec![
        (DENY, deny_rules()),
        (UNBEGUN, begins.to_vec()),
        (UNRESTRICTED, unrestricted.to_vec()),
        ("header_source", unknown.header(End::Source)),
        ("header_destination", unknown.header(End::Destination)),
        ("untracked_source", untracked("header_source")),
        ("untracked_destination", untracked("header_destination")),
        ("egress", unknown.tuple(End::Source, "untracked_source")),
        (
            "ingress",
            unknown.tuple(End::Destination, "untracked_destination"),
        ),
    ];
    if options.lease.is_some() {
        let (ranges, interfaces) = match options.strict {
            true => (&ranges[..], &options.workload_interfaces[..]),
            false => (&[][..], &[][..]),
        };
        chains.push((lease::CLOSED, lease::closed_rules(ranges, interfaces)));
        chains.push((lease::FENCED, lease::fenced_rules()));
        chains.push((lease::CHAIN, lease::rules(Slot::default())));
    }
    for ((base, _), chain) in BASES.into_iter().zip(["egress", "ingress"]) {
        let jump = Rule::always(Verdict::Jump(chain.into()));
        chains.push((base, vec![jump, nothing_allowed()]));
    }
    chains
}

/// The end of a base chain.
pub(super) fn nothing_allowed() -> Rule {
    let drop = Rule::always(Verdict::Drop).counted();
    drop.comment(NOTHING_ALLOWED)
}

/// What begins no connection goes no further, where an end is isolated.
fn unbegun() -> Rule {
    Rule::when(Match::New, Verdict::Jump(UNBEGUN.into()))
}

/// What becomes of packets of no connection, in a chain that never changes: rules with constant sets do not change well while
/// packets look.
fn untracked(header: &str) -> Vec<Rule> {
    vec![
        Rule::when(Match::NeighbourDiscovery, Verdict::Accept),
        Rule::always(Verdict::Goto(header.into())),
    ]
}

fn deny_rules() -> Vec<Rule> {
    let own = |family| {
        Rule::when(
            Match::TupleSources(family, map_name("self", family)),
            Verdict::Accept,
        )
    };
    let own = Family::BOTH.map(own).into_iter();
    own.chain([Rule::always(Verdict::Drop).counted()]).collect()
}

/// Which end of a packet's way a chain judges.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// What becomes of packets whose end a map does not list.
struct Unlisted<'a> {
    options: &'a Options,
    ranges: &'a [(Family, String)],
}

impl<'a> Unlisted<'a> {
    fn of(options: &'a Options, ranges: &'a [(Family, String)]) -> Unlisted<'a> {
        Unlisted { options, ranges }
    }

    /// The rules of a chain that judges by the connection. A packet of none is in no tuple's map.
    fn tuple(&self, end: End, untracked: &str) -> Vec<Rule> {
        let (tuple, map) = match end {
            End::Source => (Tuple::Original, "egress"),
            End::Destination => (Tuple::Reply, "ingress"),
        };
        let look = |family| Match::TupleSourceMap(tuple, family, map_name(map, family));
        let mut rules = Family::BOTH.map(|family| Rule::map(look(family))).to_vec();
        let untracked = Verdict::Goto(untracked.into());
        rules.push(Rule::when(Match::NoConnection, untracked));
        let set = |family, set| Match::TupleSource(tuple, family, set);
        let interface =
            |condition| Rule::when(Match::DirectionOriginal, Verdict::Drop).and(condition);
        rules.extend(self.rest(end, set, interface));
        rules
    }

    /// The rules of a chain that judges by the packet's own addresses.
    fn header(&self, end: End) -> Vec<Rule> {
        let look = |family| match end {
            End::Source => Match::SourceMap(family, map_name("header", family)),
            End::Destination => Match::DestinationMap(family, map_name("header", family)),
        };
        let mut rules = Family::BOTH.map(|family| Rule::map(look(family))).to_vec();
        let set = |family, set| match end {
            End::Source => Match::Source(family, set),
            End::Destination => Match::Destination(family, set),
        };
        let interface = |condition| Rule::when(condition, Verdict::Drop);
        rules.extend(self.rest(end, set, interface));
        rules
    }

    /// What comes after the maps: `set` is the condition that the end is in a set, `interface` the rule that drops what meets
    /// a condition.
    fn rest(
        &self,
        end: End,
        set: impl Fn(Family, String) -> Match,
        interface: impl Fn(Match) -> Rule,
    ) -> Vec<Rule> {
        let missed = |family| {
            Rule::when(set(family, map_name("known", family)), Verdict::Drop)
                .counted()
                .comment("a workload that the map did not show")
        };
        let mut rules = Family::BOTH.map(missed).to_vec();
        if self.options.strict {
            let ranges = self.ranges.iter().cloned();
            let interfaces = self.options.workload_interfaces.iter().cloned();
            let interfaces = interfaces.map(|name| match end {
                End::Source => Match::InputInterface(name),
                End::Destination => Match::OutputInterface(name),
            });
            let drops = ranges
                .map(|(family, name)| Rule::when(set(family, name), Verdict::Drop))
                .chain(interfaces.map(interface));
            rules
                .extend(drops.map(|rule| rule.counted().comment("strict: no such workload (yet)")));
        }
        rules.push(Rule::always(Verdict::Accept));
        rules
    }
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
    format!("layout {LAYOUT} plans {} {mode} {hash}", plan::VERSION)
}

/// Whether a table whose frame says this was made by an enforcer whose objects mean the same.
pub fn is_of_this_layout(frame: &str) -> bool {
    number_behind("layout", frame) == Some(LAYOUT)
}

/// Whether a table whose frame says this was made by an enforcer that plans updates in the same steps.
pub fn is_of_these_plans(frame: &str) -> bool {
    number_behind("plans", frame) == Some(plan::VERSION)
}

fn number_behind(word: &str, text: &str) -> Option<u32> {
    let mut words = text.split(' ').skip_while(|there| *there != word);
    words.nth(1)?.parse().ok()
}

/// The commands that make an (empty) frame chain.
pub fn add_frame_chain(name: &str) -> Command {
    let comment = match name {
        DENY => "where every denial ends",
        UNBEGUN => "packets that begin no connection, of one that conntrack does not know",
        UNRESTRICTED => "workloads that are isolated in the other direction alone",
        "egress" => "by the source of the connection",
        "ingress" => "by the destination of the connection, after translation",
        "untracked_source" | "untracked_destination" => "packets of no connection",
        "header_source" => "by the packet's own source",
        "header_destination" => "by the packet's own destination",
        lease::CHAIN => "whether the node may go on",
        lease::FENCED => "there is no lease",
        lease::CLOSED => "nothing of this node's workloads passes",
        _ => "every forwarded packet",
    };
    Command::AddChain {
        name: name.into(),
        forward: priority(name),
        comment: comment.into(),
    }
}

/// The priority of a base chain, from that which nft calls `filter`; `None` for chains that others lead to.
pub fn priority(chain: &str) -> Option<i32> {
    let bases = BASES.into_iter().chain([(lease::CHAIN, -1)]);
    let mut bases = bases.filter(|(base, _)| *base == chain);
    bases.next().map(|(_, place)| place)
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
    change: Change,
) -> Vec<Command> {
    if is_everyone(group) {
        return Vec::new();
    }
    let set = |family| names::group_addresses(name, family);
    change_addresses(set, SetKind::Addresses, Element::Address, addresses, change)
}

/// Changes the sets of addresses of both families.
fn change_addresses(
    set: impl Fn(Family) -> String,
    kind: fn(Family) -> SetKind,
    element: fn(IpAddr) -> Element,
    addresses: &[IpAddr],
    change: Change,
) -> Vec<Command> {
    let of = |family| {
        let all = addresses.iter().copied();
        let elements: Vec<Element> = all
            .filter(|&address| Family::of(address) == family)
            .map(element)
            .collect();
        (!elements.is_empty()).then(|| change(set(family), kind(family), elements))
    };
    Family::BOTH.into_iter().filter_map(of).collect()
}

/// The rules of the chain that lets a group's peers through.
pub fn group_rules(direction: Direction, name: &str, group: &PeerGroup) -> Vec<Rule> {
    if is_everyone(group) {
        return vec![Rule::always(Verdict::Accept)];
    }
    let peer = peer_tuple(direction);
    let looked_up = |set: &dyn Fn(&str, Family) -> String, family| {
        Rule::when(
            Match::TupleSource(peer, family, set(name, family)),
            Verdict::Accept,
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
        let kept = Rule::when(Match::Established, Verdict::Accept);
        rules.push(kept.comment("keep: what is established goes on"));
    }
    rules.push(unbegun());
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

/// The changes of the sets of addresses that the maps must have.
pub fn change_known(addresses: &[IpAddr], change: Change) -> Vec<Command> {
    let name = |family| map_name("known", family);
    let (kind, element) = (SetKind::Addresses, Element::Address);
    change_addresses(name, kind, element, addresses, change)
}

/// The changes of the sets of workloads that reach themselves.
pub fn change_own(addresses: &[IpAddr], change: Change) -> Vec<Command> {
    let name = |family| map_name("self", family);
    change_addresses(name, SetKind::Pairs, Element::Pair, addresses, change)
}

/// Makes of a set's name, its kind and elements a command that adds or deletes them.
pub type Change = fn(String, SetKind, Vec<Element>) -> Command;

/// The elements of an endpoint in the table's maps. `chain` tells the name of a class's chain.
pub fn endpoint_elements(
    address: IpAddr,
    endpoint: &Arc<Endpoint>,
    chain: impl Fn(Direction) -> Option<String>,
) -> Vec<(String, SetKind, Element)> {
    let family = Family::of(address);
    let label = format!("{}/{}", endpoint.namespace, endpoint.name);
    let (other, header) = match endpoint.is_isolated() {
        false => (Verdict::Accept, Verdict::Accept),
        true => (Verdict::Goto(UNRESTRICTED.into()), Verdict::Drop),
    };
    let verdict = |direction| chain(direction).map_or_else(|| other.clone(), Verdict::Goto);
    let verdicts = [
        ("egress", verdict(Direction::Egress)),
        ("ingress", verdict(Direction::Ingress)),
        ("header", header),
    ];
    verdicts
        .into_iter()
        .map(|(map, verdict)| {
            let element = Element::Verdict(address, verdict, label.clone());
            (map_name(map, family), SetKind::Verdicts(family), element)
        })
        .collect()
}
