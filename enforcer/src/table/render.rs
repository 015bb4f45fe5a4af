//! The nftables objects that each group, class and endpoint of a node's policy becomes. `frame` makes the fixed part of
//! the table, which leads to them.

use std::{net::IpAddr, sync::Arc, time::Duration};

use sallyport_nft::command::{Command, Element, Family, Match, Rule, SetKind, Tuple, Verdict};
use sallyport_policy::{
    Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, PortRule, Protocol, Ranges,
    UnknownAddresses,
};

use crate::table::{families::Families, frame, names, ports::Ports};

/// The input of the table beside the policy: the choices of the operator of a node, and the interfaces from the node's
/// routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether traffic of workload addresses that are no endpoint is dropped.
    pub strict: bool,
    /// Workload addresses of this node, beside those that the control plane knows.
    pub workload_ranges: Ranges,
    /// Interfaces behind which there are only workloads; a name that ends in `*` is a prefix.
    pub workload_interfaces: Vec<String>,
    /// Whether to ask the kernel to protect the table from others (flags `owner` and `persist`, Linux 6.9).
    pub owned: bool,
    /// The time that a lease lasts. Without a lease all traffic of this node's workloads is dropped. `None` where no
    /// lease is needed.
    pub lease: Option<Duration>,
    /// Whether packets whose source is elsewhere are counted, and not dropped.
    pub counts_only: bool,
    /// The interfaces that the routes to workloads lead to, and the addresses that these may use. `guard::ports`
    /// computes them.
    pub ports: Ports,
}

impl Options {
    /// Whether no packet of an address passes if it is no endpoint of a policy.
    pub fn silences(&self, policy: &NodePolicy, address: IpAddr) -> bool {
        let ranges = [&self.workload_ranges, policy.workload_ranges()];
        let mut sources = policy.sources().iter();
        self.strict
            && ranges.into_iter().any(|ranges| ranges.contains(address))
            && !sources.any(|source| source.ranges.contains(address))
    }

    /// The treatment of workload addresses that are no endpoint. A packet that enters by an interface of workloads may
    /// have any address.
    pub fn unknown(&self) -> UnknownAddresses {
        match (self.strict, self.workload_interfaces.is_empty()) {
            (false, _) => UnknownAddresses::Allow,
            (true, true) => UnknownAddresses::Drop(Arc::new(self.workload_ranges.clone())),
            (true, false) => UnknownAddresses::Drop(Arc::new(Ranges::everything())),
        }
    }
}

pub(super) fn map_name(what: &str, family: Family) -> String {
    format!("{what}{}", family.digit())
}

/// Replaces all rules of a chain. In one batch packets meet the old rules or the new ones.
pub fn replace_rules(chain: &str, rules: Vec<Rule>) -> Vec<Command> {
    let flush = Command::FlushChain(chain.into());
    let add = rules
        .into_iter()
        .map(|rule| Command::AddRule(chain.into(), rule));
    [flush].into_iter().chain(add).collect()
}

pub(super) fn range_set(
    name: &str,
    family: Family,
    ranges: &Ranges,
    comment: &str,
) -> Vec<Command> {
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

/// Whether everyone is in a group. Then no rule looks up the group.
fn is_everyone(group: &PeerGroup) -> bool {
    group.spec.ranges.is_everything()
}

/// The sets of a group: one of addresses for each family that has members, and those of the group's ranges.
pub fn group_set_names(name: &str, group: &PeerGroup) -> Vec<String> {
    if is_everyone(group) {
        return Vec::new();
    }
    let families = Families::of(group).iter();
    let addresses = families.map(|family| names::group_addresses(name, family));
    let ranges = range_families(group).map(|family| names::group_ranges(name, family));
    addresses.chain(ranges).collect()
}

/// Makes the set of a group's addresses of a family, empty.
pub fn add_empty_set(name: &str, group: &PeerGroup, family: Family) -> Command {
    Command::AddSet {
        name: names::group_addresses(name, family),
        kind: SetKind::Addresses(family),
        comment: group.spec.description.clone(),
    }
}

/// Makes the sets of a group, filled.
pub fn add_group(name: &str, group: &PeerGroup) -> Vec<Command> {
    if is_everyone(group) {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for family in Families::of(group).iter() {
        let (set, kind) = (
            names::group_addresses(name, family),
            SetKind::Addresses(family),
        );
        commands.push(add_empty_set(name, group, family));
        let members = group
            .addresses
            .iter()
            .filter(|address| Family::of(**address) == family);
        let elements = members.map(|&address| Element::Address(address)).collect();
        commands.push(Command::AddElements(set, kind, elements));
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

/// Changes the members of a group while packets look into its sets.
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

/// The rules of the chain that lets a group's peers through. `families` are those with a set of addresses.
pub fn group_rules(
    direction: Direction,
    name: &str,
    group: &PeerGroup,
    families: Families,
) -> Vec<Rule> {
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
    let mut rules: Vec<Rule> = families
        .iter()
        .map(|family| looked_up(&names::group_addresses, family))
        .collect();
    rules.extend(range_families(group).map(|family| looked_up(&names::group_ranges, family)));
    rules.push(deny());
    rules
}

fn deny() -> Rule {
    Rule::always(Verdict::Goto(frame::DENY.into())).counted()
}

/// The tuple whose source is the peer: the client's of an incoming connection, the server's of an outgoing one.
fn peer_tuple(direction: Direction) -> Tuple {
    match direction {
        Direction::Ingress => Tuple::Original,
        Direction::Egress => Tuple::Reply,
    }
}

/// A summary of a class in a few words, for its chain's name and comment.
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

/// The group of a class that makes no difference between protocols and ports.
fn uniform(class: &Class) -> Option<GroupId> {
    let group = class.other?;
    let whole = class.ports.len() == Protocol::ALL.len()
        && class
            .ports
            .iter()
            .all(|rule| (rule.first, rule.last, rule.group) == (0, u16::MAX, group));
    whole.then_some(group)
}

/// The rules of a class's chain. `chain` returns the name of a group's chain.
pub fn class_rules(class: &Class, chain: impl Fn(GroupId) -> String) -> Vec<Rule> {
    let goto = |group| Verdict::Goto(chain(group));
    let of = |protocol| protocol_rules(class, protocol, goto);
    let mut rules = Vec::new();
    if class.keep_established {
        let kept = Rule::when(Match::Established, Verdict::Accept);
        rules.push(kept.comment("keep: what is established goes on"));
    }
    if let Some(group) = uniform(class) {
        rules.extend([frame::unbegun(), Rule::always(goto(group))]);
        return rules;
    }
    // Each packet of UDP may begin a flow.
    rules.extend(of(Protocol::Udp));
    rules.push(frame::unbegun());
    rules.extend([Protocol::Tcp, Protocol::Sctp].into_iter().flat_map(of));
    if let Some(group) = class.other {
        rules.push(Rule::when(Match::ProtocolWithoutPorts, goto(group)));
    }
    rules.push(deny());
    rules
}

/// The rules of a class for one protocol. ICMP errors are judged by the port of the connection that they belong to.
fn protocol_rules(
    class: &Class,
    protocol: Protocol,
    goto: impl Fn(GroupId) -> Verdict,
) -> Vec<Rule> {
    let number = protocol.number();
    let of = Match::Protocol(number);
    let errors = Match::ProtocolOrError(number);
    let ports = class.ports.iter().filter(|rule| rule.protocol == protocol);
    match ports.collect::<Vec<&PortRule>>()[..] {
        [] => Vec::new(),
        [rule] if (rule.first, rule.last) == (0, u16::MAX) => {
            vec![Rule::when(of, goto(rule.group))]
        }
        ref rules => {
            // Two comparisons cost a packet half of two lookups (`bench B10`). nft lists the port of a connection as
            // text that nft can load only behind one protocol, or in a map.
            let own = match rules {
                [rule] => {
                    let own = Rule::when(Match::PacketProtocol(number), goto(rule.group));
                    Some(own.and(Match::ServerPort(rule.first, rule.last)))
                }
                _ => None,
            };
            let ports = rules
                .iter()
                .map(|rule| (rule.first, rule.last, goto(rule.group)));
            let map = Match::ServerPortMap(ports.collect());
            let all = Rule::map(of).and(errors).and(map);
            own.into_iter().chain([all]).collect()
        }
    }
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

/// Makes a command that adds or deletes elements, from a set's name, its kind and the elements.
pub type Change = fn(String, SetKind, Vec<Element>) -> Command;

/// The verdicts on an address of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdicts {
    /// The verdict on packets from the workload.
    pub(super) egress: Verdict,
    /// The verdict on packets to the workload.
    pub(super) ingress: Verdict,
    /// The verdict on packets of no connection.
    pub(super) header: Verdict,
}

/// The verdicts on an address of a workload. `chain` returns the name of its class's chain, if the workload is isolated
/// in a direction.
pub(super) fn verdicts(chain: impl Fn(Direction) -> Option<String>) -> Verdicts {
    let [ingress, egress] = Direction::BOTH.map(chain);
    let (other, header) = match (&ingress, &egress) {
        (None, None) => (Verdict::Accept, Verdict::Accept),
        _ => (
            Verdict::Goto(frame::UNRESTRICTED.into()),
            Verdict::Goto(frame::UNJUDGEABLE.into()),
        ),
    };
    let verdict = |chain: Option<String>| chain.map_or_else(|| other.clone(), Verdict::Goto);
    Verdicts {
        egress: verdict(egress),
        ingress: verdict(ingress),
        header,
    }
}

/// The elements of an endpoint in the table's maps. `chain` returns the name of a class's chain.
pub fn endpoint_elements(
    address: IpAddr,
    endpoint: &Arc<Endpoint>,
    chain: impl Fn(Direction) -> Option<String>,
) -> Vec<(String, SetKind, Element)> {
    let family = Family::of(address);
    let label = format!("{}/{}", endpoint.namespace, endpoint.name);
    let verdicts = verdicts(chain);
    let verdicts = [
        ("egress", verdicts.egress),
        ("ingress", verdicts.ingress),
        ("header", verdicts.header),
    ];
    verdicts
        .into_iter()
        .map(|(map, verdict)| {
            let element = Element::Verdict(address, verdict, label.clone());
            (map_name(map, family), SetKind::Verdicts(family), element)
        })
        .collect()
}
