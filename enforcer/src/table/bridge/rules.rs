//! The table of family bridge: its chains and rules, made from the known ports of the node's bridges.
//!
//! Frames from port to port pass `inet sallyport` by where br_netfilter does not show them. Policy judges addresses: to
//! policy, a workload with an address that its object does not list is nobody. So this table drops such frames and such
//! addresses. The table knows no policy. A frame's way through the table, for a port behind which there is a workload:
//!
//! ```text
//! source (of all that comes in by a port of a bridge):
//!    a workload's port ─ announcements of routers and servers ─ drop
//!    a port that is known ─ goto from_known: ARP, neighbour discovery and packets with the workload's own addresses,
//!                           or with others that it may use ─ accept | drop
//!    a port that is not known ─ goto from_unknown: with addresses of this node's workloads ─ accept | drop
//! forward (from one port to another):
//!    between two of them ─ goto among │ each: all else but IP and ARP, and VLAN tags that policy does not judge ─ drop
//!    from one ─ goto leaving          │       fe80::/10, but for neighbour discovery ─ drop
//!    to one ─ goto entering           │       goto destination, to an isolated workload: this address ─ accept | drop
//! ```
//!
//! On a node where policy judges frames with one VLAN tag (`Ground::judges_tags`), such frames may go to elsewhere and
//! come from there. A workload itself sends none: frames with a tag are dropped where they come in by its port. The
//! bridge puts tags on frames and takes them off after that, and then no rule could tell whose tag it was.
//!
//! The addresses that a workload may use beside its own are ranges (`KnownPort::ranges`). The ranges contain no
//! endpoint's address, no link-local address and no group. So a wide range lets no workload speak for another or as a
//! router.
//!
//! Only `source`, `forward`, `destination` and the chains of targets change bit by bit, and no rule of theirs has a
//! constant set. A packet in an old rule with such a set would find nothing in the set during the change. Where tags
//! begin or cease to be judged, other chains change. Then the table is written anew, in one batch.

use std::{fmt::Write as _, net::IpAddr};

use sallyport_nft::{
    bridge::{BridgeMatch, End},
    command::{Base, Command, Element, Family, Match, Rule, SetKind, Verdict},
};
use sha2::{Digest as _, Sha256};

use super::{
    OTHER_TYPE, TAGGED,
    forwarded::{Tags, among, destination, judgeable},
    sets::{
        ELSEWHERE, Ground, KNOWN, KnownPort, PORT_ADDRESSES, PORT_RANGES, TARGETS, fill, name, sets,
    },
};
use crate::table::frame::Denial;

/// Whether a chain changes while packets look.
pub fn changes(chain: &str) -> bool {
    [SOURCE, FORWARD, DESTINATION].contains(&chain) || chain.starts_with("target-")
}

/// Whether rules of a chain that changes hold for the ports that are not known.
pub fn holds_for_unknown(rules: &[Rule]) -> bool {
    let elsewhere = |condition: &Match| matches!(condition, Match::Bridge(BridgeMatch::Port(_, _, set)) if set == ELSEWHERE);
    rules.iter().any(|rule| rule.matches.iter().any(elsewhere))
}

const SOURCE: &str = "source";
const ANNOUNCEMENTS: &str = "announcements";
const DESTINATION: &str = "destination";
const FROM_KNOWN: &str = "from_known";
const FROM_UNKNOWN: &str = "from_unknown";
const FORWARD: &str = "forward";
const AMONG: &str = "among";
const LEAVING: &str = "leaving";
const ENTERING: &str = "entering";
const ANNOUNCED: &str = "announced";
const FORGED: &str = "forged";
pub(super) const NEVER_JUDGED: &str = "never_judged";
pub(super) const LINK_LOCAL: &str = "link_local";
pub(super) const UNLISTED: &str = "unlisted";

/// The chains whose rules count the frames that they drop.
pub const COUNTING: [&str; 5] = [ANNOUNCED, FORGED, NEVER_JUDGED, LINK_LOCAL, UNLISTED];

/// ICMP's redirect (RFC 792).
const REDIRECT: u8 = 5;
/// The types that only routers send: router advertisement and redirect (RFC 4861).
const OF_ROUTERS: [u8; 2] = [134, 137];
/// The types of neighbour discovery and multicast listener discovery that hosts send, too.
pub(super) const OF_HOSTS: [u8; 7] = [130, 131, 132, 133, 135, 136, 143];
pub(super) const SOLICITATION: [u8; 1] = [135];
pub(super) const ADVERTISEMENT: [u8; 1] = [136];
/// The types that are sent without a source: MLD (RFC 2710, RFC 3810), router solicitation.
const WITHOUT_SOURCE: [u8; 5] = [130, 131, 132, 133, 143];

/// The ports of DHCP: of the client, and of the server (RFC 2131, RFC 8415).
const DHCP: [(Family, u16, u16); 2] = [(Family::V4, 68, 67), (Family::V6, 546, 547)];

/// The reason why a chain of the table drops frames.
pub fn reason(chain: &str) -> Option<Denial> {
    match chain {
        FORGED => Some(Denial::Spoofed),
        ANNOUNCED => Some(Denial::Announced),
        NEVER_JUDGED => Some(Denial::NeverJudged),
        LINK_LOCAL => Some(Denial::LinkLocal),
        UNLISTED => Some(Denial::Unlisted),
        _ => None,
    }
}

/// The commands that fill an empty table.
pub fn commands(ground: &Ground) -> Vec<Command> {
    let of_ports = ground.known.iter().map(|(port, known)| Chain {
        name: target_chain(port),
        comment: port.clone(),
        rules: targets(known),
    });
    let fixed = chains(ground).into_iter();
    let fixed = fixed.map(|(name, comment, rules)| Chain {
        name: name.into(),
        comment: comment.into(),
        rules,
    });
    let chains: Vec<Chain> = fixed.chain(of_ports).collect();
    let to_chains = ground.known.keys().map(|port| {
        let chain = target_chain(port);
        Element::InterfaceVerdict(port.clone(), Verdict::Goto(chain))
    });
    // Each chain exists before a rule names it.
    let mut commands = sets(ground);
    commands.extend(chains.iter().map(Chain::make));
    commands.extend(chains.into_iter().flat_map(Chain::fill));
    commands.extend(fill(TARGETS, SetKind::InterfaceVerdicts, to_chains));
    commands
}

struct Chain {
    name: String,
    comment: String,
    rules: Vec<Rule>,
}

impl Chain {
    fn make(&self) -> Command {
        Command::AddChain {
            name: self.name.clone(),
            base: base(&self.name),
            comment: self.comment.clone(),
        }
    }

    fn fill(self) -> impl Iterator<Item = Command> {
        let rules = self.rules.into_iter();
        rules.map(move |rule| Command::AddRule(self.name.clone(), rule))
    }
}

fn base(chain: &str) -> Option<Base> {
    // The priority that nft calls `filter` in this family: before br_netfilter, at 0.
    const FILTER: i32 = libc::NF_BR_PRI_FILTER_BRIDGED;
    match chain {
        SOURCE => Some(Base::prerouting(FILTER)),
        FORWARD => Some(Base::forward(FILTER)),
        _ => None,
    }
}

/// The chain of the targets of a port. Names of interfaces may hold characters that names of chains may not.
fn target_chain(port: &str) -> String {
    let hash = Sha256::digest(port);
    hash[..8]
        .iter()
        .fold("target-".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

pub(super) fn on(condition: BridgeMatch, verdict: Verdict) -> Rule {
    Rule::when(Match::Bridge(condition), verdict)
}

pub(super) fn port(end: End, listed: bool, set: &str) -> BridgeMatch {
    BridgeMatch::Port(end, listed, set.into())
}

pub(super) fn to(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

fn with_targets(condition: BridgeMatch) -> Rule {
    Rule::map(Match::Bridge(condition)).and(Match::Bridge(BridgeMatch::PortMap(TARGETS.into())))
}

/// The targets of neighbour advertisements from a port. The link-local addresses of a workload are not known.
fn targets(known: &KnownPort) -> Vec<Rule> {
    let own = known.addresses.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(BridgeMatch::Target(*address)),
        IpAddr::V4(_) => None,
    });
    let others = known.ranges.iter().filter_map(|range| match range {
        (IpAddr::V6(first), IpAddr::V6(last)) if first == last => Some(BridgeMatch::Target(first)),
        (IpAddr::V6(first), IpAddr::V6(last)) => Some(BridgeMatch::TargetIn(first, last)),
        _ => None,
    });
    own.chain([BridgeMatch::TargetLinkLocal])
        .chain(others)
        .map(|target| on(target, Verdict::Accept))
        .chain([Rule::always(to(FORGED))])
        .collect()
}

/// The chains that are always there.
fn chains(ground: &Ground) -> Vec<(&'static str, &'static str, Vec<Rule>)> {
    let end = |comment: &str| {
        let verdict = match ground.counts_only {
            true => Verdict::Accept,
            false => Verdict::Drop,
        };
        let rule = Rule::always(verdict).counted();
        vec![rule.comment(comment)]
    };
    let unknown = ground.unknown.as_ref();
    let tags = match ground.judges_tags {
        true => Tags::Judged,
        false => Tags::Dropped,
    };
    // Where no workload is behind a port that is not known, all other ports lead elsewhere.
    let of_workload = |end| match unknown {
        Some(_) => port(end, false, ELSEWHERE),
        None => port(end, true, KNOWN),
    };
    let (from, to_one) = (of_workload(End::Source), of_workload(End::Destination));
    let from_one = |verdict| on(from.clone(), verdict);
    let both = from_one(to(AMONG)).and(Match::Bridge(to_one.clone()));
    let mut source = vec![
        from_one(Verdict::Jump(ANNOUNCEMENTS.into())),
        on(port(End::Source, true, KNOWN), to(FROM_KNOWN)),
    ];
    if unknown.is_some() {
        source.push(from_one(to(FROM_UNKNOWN)));
    }
    let requests = DHCP.map(|(family, client, server)| BridgeMatch::Udp(family, client, server));
    let replies = DHCP.map(|(family, client, server)| BridgeMatch::Udp(family, server, client));
    vec![
        (
            ANNOUNCED,
            "what routers and DHCP servers say, from a workload",
            end("a workload that speaks as a router or a DHCP server"),
        ),
        (
            FORGED,
            "addresses that are not the sender's",
            end("an address that is not the sender's"),
        ),
        (
            NEVER_JUDGED,
            "frames that the forward hook does not see",
            end("a VLAN tag, or neither IP nor ARP"),
        ),
        (
            LINK_LOCAL,
            "addresses that no policy knows",
            end("a link-local address"),
        ),
        (
            UNLISTED,
            "packets to a workload, with an address that its object does not list",
            end("no address that a workload lists"),
        ),
        (
            ANNOUNCEMENTS,
            "what only routers and DHCP servers say",
            announcements()
                .map(|condition| on(condition, to(ANNOUNCED)))
                .collect(),
        ),
        (
            DESTINATION,
            "to a workload, by its own addresses",
            destination(unknown),
        ),
        (FROM_KNOWN, "a port whose workloads are known", from_known()),
        (
            FROM_UNKNOWN,
            "a port behind which a workload may be",
            from_unknown(tags),
        ),
        (
            AMONG,
            "from one workload to another",
            [among(), vec![Rule::always(to(DESTINATION))]].concat(),
        ),
        (
            LEAVING,
            "from a workload to elsewhere",
            judgeable(tags, Some(&OF_HOSTS), &requests),
        ),
        (
            ENTERING,
            "from elsewhere to a workload",
            [
                judgeable(tags, None, &replies),
                vec![Rule::always(to(DESTINATION))],
            ]
            .concat(),
        ),
        (SOURCE, "every frame that comes in", source),
        (
            FORWARD,
            "every frame from one port to another",
            vec![both, from_one(to(LEAVING)), on(to_one, to(ENTERING))],
        ),
    ]
}

/// The messages that only routers and DHCP servers send.
fn announcements() -> impl Iterator<Item = BridgeMatch> {
    let replies = DHCP.map(|(family, client, server)| BridgeMatch::Udp(family, server, client));
    [
        BridgeMatch::Icmp(REDIRECT),
        BridgeMatch::Icmpv6(&OF_ROUTERS),
    ]
    .into_iter()
    .chain(replies)
}

/// The rules for a port whose workloads are known.
fn from_known() -> Vec<Rule> {
    let from = |set| move |family| BridgeMatch::PortAddress(End::Source, family, name(set, family));
    let (own, other) = (from(PORT_ADDRESSES), from(PORT_RANGES));
    let arp = |set| BridgeMatch::PortArpSender(name(set, Family::V4));
    let [(v4, client, server), _] = DHCP;
    vec![
        // This rule is first, because the others look at the packet in a frame with a tag, too.
        on(OTHER_TYPE, to(NEVER_JUDGED)),
        on(BridgeMatch::ArpProbe, Verdict::Accept),
        on(arp(PORT_ADDRESSES), Verdict::Accept),
        on(arp(PORT_RANGES), Verdict::Accept),
        with_targets(BridgeMatch::Icmpv6(&ADVERTISEMENT)),
        on(BridgeMatch::Icmpv6(&ADVERTISEMENT), to(FORGED)),
        on(own(Family::V4), Verdict::Accept),
        on(own(Family::V6), Verdict::Accept),
        on(BridgeMatch::LinkLocal(End::Source), Verdict::Accept),
        on(BridgeMatch::NoSource(v4), Verdict::Accept)
            .and(Match::Bridge(BridgeMatch::Udp(v4, client, server))),
        // A request whether an address is free has no source (RFC 4862, section 5.4.2).
        Rule::map(Match::Bridge(BridgeMatch::NoSource(Family::V6)))
            .and(Match::Bridge(BridgeMatch::Icmpv6(&SOLICITATION)))
            .and(Match::Bridge(BridgeMatch::PortMap(TARGETS.into()))),
        on(BridgeMatch::NoSource(Family::V6), Verdict::Accept)
            .and(Match::Bridge(BridgeMatch::Icmpv6(&WITHOUT_SOURCE))),
        // This rule comes after all that are about link-local addresses or about no address.
        on(other(Family::V4), Verdict::Accept),
        on(other(Family::V6), Verdict::Accept),
        Rule::always(to(FORGED)),
    ]
}

/// The rules for a port behind which any workload of the bridge may be.
fn from_unknown(tags: Tags) -> Vec<Rule> {
    let accept = |condition| Rule::when(condition, Verdict::Accept);
    let [(v4, client, server), _] = DHCP;
    let mut rules = Vec::new();
    if tags == Tags::Judged {
        // The bridge may take the tag off. Then no rule looked at the frame's source.
        rules.push(on(TAGGED, to(NEVER_JUDGED)));
    }
    rules.extend([
        // The chain `forward` judges these frames where they are forwarded. To the node itself they may go.
        on(OTHER_TYPE, Verdict::Accept),
        on(
            BridgeMatch::Protocol(libc::ETH_P_ARP as u16),
            Verdict::Accept,
        ),
    ]);
    for family in Family::BOTH {
        rules.push(accept(Match::Source(family, name("addresses", family))));
        rules.push(accept(Match::Source(family, name("workloads", family))));
    }
    rules.extend([
        on(BridgeMatch::NoSource(v4), Verdict::Accept)
            .and(Match::Bridge(BridgeMatch::Udp(v4, client, server))),
        on(BridgeMatch::LinkLocal(End::Source), Verdict::Accept),
        on(BridgeMatch::NoSource(Family::V6), Verdict::Accept).and(Match::NeighbourDiscovery),
        Rule::always(to(FORGED)),
    ]);
    rules
}
