//! The frame of the table: the part that is the same for every policy. Only the node's workload ranges, and the ranges
//! of addresses that workloads use beside their own, differ. `render` makes the rules of classes and groups.
//!
//! A forwarded packet is judged by its connection's tuple, both ways alike, so that deleting one element cuts a live
//! connection at once. A packet's way through the table, in which each base chain must accept the packet:
//!
//! ```text
//! source (of all that comes in):
//!    by the interface that the route to the source leads to ─ accept
//!    by an interface of workloads, a source that these may use beside their own ─ accept
//!    a workload's address | by an interface of workloads ─ goto astray: drop
//! lease (where there are leases) ─ there is one: accept | goto fenced: all of this node's workloads is dropped
//! forward_egress:  jump egress
//!    map egress4/6, by the connection's source   ─ goto class ─ goto group ─ accept | deny
//!    no connection ─ goto untracked_source ─ goto header_source:
//!       map header4/6, by the packet's own source ─ accept | goto unjudgeable: drop
//!    a workload that the map should have ─ drop
//!    a range of addresses that a workload uses beside its own ─ goto class
//!    a workload that there is not (strict) ─ drop | others ─ accept
//! forward_ingress: jump ingress, the same by the destination (after translation)
//! ```
//!
//! `accept` ends one base chain, so egress and ingress of two pods of one node compose. The end of a chain allows
//! nothing. A chain that is empty to a packet leads back to the base chain, whose last rule drops. Every other way out
//! of a class ends in `deny`. A class that keeps established connections accepts those first.

mod ranges;

use std::collections::BTreeMap;

use sallyport_nft::command::{Base, Command, Family, Match, Rule, SetKind, Tuple, Verdict};
use sallyport_policy::{ClassId, NodePolicy, Ranges};
use sha2::{Digest as _, Sha256};

use crate::table::{
    lease::{self, Slot},
    ports::{self, INSIDE, PORTS},
    render::{Options, map_name},
    stamp,
};
use ranges::{Lookup, Names, Sources};

/// The chain of all packets that come in. Its rules check that a packet comes from where the source is. The chain is
/// before conntrack, so that a dropped packet makes no connection.
const SOURCE: &str = "source";

/// The chain of packets that come in where the route to their source does not lead.
const ASTRAY: &str = "astray";

/// The beginning of the names of the sets of the node's workload ranges.
const WORKLOADS: &str = "workloads";

/// The beginning of the names of the sets of addresses that workloads use beside their own.
const SOURCES: &str = "sources";

/// The base chains that are always there, with the places where the kernel calls them, in the order in which packets
/// meet them. The priorities are those that nft calls `raw`, `filter` and `filter + 1`.
pub const BASES: [(&str, Base); 3] = [
    (SOURCE, Base::prerouting(libc::NF_IP_PRI_RAW)),
    ("forward_egress", Base::forward(libc::NF_IP_PRI_FILTER)),
    ("forward_ingress", Base::forward(libc::NF_IP_PRI_FILTER + 1)),
];

/// The chain in which every denial ends.
pub const DENY: &str = "deny";

/// The chain of packets that begin no connection, of a connection that conntrack does not know.
const UNBEGUN: &str = "unbegun";

/// The chain of packets of no connection, of a workload that is isolated in a direction.
pub(super) const UNJUDGEABLE: &str = "unjudgeable";

/// The chain that judges a workload in the direction in which it is not isolated, where the workload is isolated in the
/// other.
pub(super) const UNRESTRICTED: &str = "unrestricted";

/// The comment of the rule that ends a base chain. The rule counts nothing unless the table has unexpected content.
pub const NOTHING_ALLOWED: &str = "nothing allowed it";

/// The comment of the rule that drops packets of no connection.
const UNCONNECTED: &str = "of no connection: no policy tells what to do with it";

/// The comment of the rules that drop addresses of workloads that are no endpoint.
const STRICT: &str = "strict: no such workload (yet)";

/// The comment of the rules that drop addresses that a map should have. A lookup can miss an element for a moment.
const MISSED: &str = "a workload that the map did not show";

/// The comment of the rule that drops packets whose source is elsewhere.
const ELSEWHERE: &str = "its source is behind another interface";

/// The chains whose rules count the packets that they drop. The chains of classes and groups count too, on the way to
/// `deny`.
pub const COUNTING: [&str; 12] = [
    ASTRAY,
    DENY,
    UNBEGUN,
    UNJUDGEABLE,
    "header_source",
    "header_destination",
    "egress",
    "ingress",
    "forward_egress",
    "forward_ingress",
    lease::CHAIN,
    lease::CLOSED,
];

/// The reason why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denial {
    /// No policy that selects the workload allows the packet.
    Policy,
    /// The packet is of an address of workloads that is no endpoint.
    Strict,
    /// The node has no lease.
    Closed,
    /// The packet begins no connection, and conntrack does not know its connection. Or the packet is of no connection,
    /// and a policy selects the workload.
    Unjudgeable,
    /// The packet's source is a workload's, and the packet came in where that workload is not.
    Spoofed,
    /// A workload sends what only a router or a DHCP server sends.
    Announced,
    /// The packet is a frame that meets no policy: the frame has a VLAN tag, or is neither IP's nor ARP's.
    NeverJudged,
    /// The packet is of a link-local address, which no policy knows.
    LinkLocal,
    /// The packet came to the port of a workload, and its destination is no address that the workload lists.
    Unlisted,
    /// The table has unexpected content, or a lookup missed an element of the table.
    NothingAllowedIt,
}

impl Denial {
    /// All reasons.
    pub const ALL: [Denial; 10] = [
        Denial::Policy,
        Denial::Strict,
        Denial::Closed,
        Denial::Unjudgeable,
        Denial::Spoofed,
        Denial::Announced,
        Denial::NeverJudged,
        Denial::LinkLocal,
        Denial::Unlisted,
        Denial::NothingAllowedIt,
    ];

    /// The reason why a rule of a chain that counts drops packets.
    pub fn of(chain: &str, comment: &str) -> Option<Denial> {
        match (chain, comment) {
            (DENY, _) => Some(Denial::Policy),
            (UNBEGUN | UNJUDGEABLE, _) => Some(Denial::Unjudgeable),
            (lease::CLOSED, _) => Some(Denial::Closed),
            (ASTRAY, _) => Some(Denial::Spoofed),
            (_, STRICT) => Some(Denial::Strict),
            (_, MISSED | NOTHING_ALLOWED) => Some(Denial::NothingAllowedIt),
            _ => None,
        }
    }

    /// The reason's name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Denial::Policy => "policy",
            Denial::Strict => "strict",
            Denial::Closed => "closed",
            Denial::Unjudgeable => "unjudgeable",
            Denial::Spoofed => "spoofed",
            Denial::Announced => "announced",
            Denial::NeverJudged => "never_judged",
            Denial::LinkLocal => "link_local",
            Denial::Unlisted => "unlisted",
            Denial::NothingAllowedIt => "nothing_allowed_it",
        }
    }
}

/// The version of the objects' meaning. A change of the meaning raises it, so that an upgraded enforcer replaces the
/// table whole.
const LAYOUT: u32 = 8;

/// The sets and maps that are always there.
pub fn sets(options: &Options) -> Vec<Command> {
    let set = |name: String, kind, comment: &str| Command::AddSet {
        name,
        kind,
        comment: comment.into(),
    };
    let mut commands = vec![set(
        stamp::SET.into(),
        SetKind::Numbers,
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
    commands.extend(ports::sets(&options.ports));
    if options.lease.is_some() {
        commands.extend(lease::sets());
    }
    commands
}

/// The frame of a table, for a policy.
#[derive(Debug)]
pub struct Frame<'a> {
    options: &'a Options,
    /// The node's workload addresses.
    workloads: Ranges,
    sources: Sources,
}

impl<'a> Frame<'a> {
    /// The frame for a policy. `chain` returns the name of a class's chain.
    pub fn of(
        options: &'a Options,
        policy: &NodePolicy,
        chain: impl Fn(ClassId) -> String,
    ) -> Frame<'a> {
        Frame {
            options,
            workloads: workload_ranges(options, policy),
            sources: Sources::of(policy.sources(), chain),
        }
    }

    /// The chains that are always there, with their rules. Each chain comes before those that name it. The chains that
    /// judge sources also name chains of classes. The chain of the lease is that of a fresh table: the set that it
    /// looks into afterwards is no part of the frame.
    pub fn chains(&self) -> Vec<(&'static str, Vec<Rule>)> {
        let options = self.options;
        let workloads = match options.strict {
            true => ranges::names(WORKLOADS, &self.workloads),
            false => Names::new(),
        };
        let unknown = Unlisted {
            options,
            workloads: &self.workloads,
            ranges: &workloads,
            sources: &self.sources,
        };
        let begins = [
            Rule::when(Match::NoTcpBeginning, Verdict::Reset).counted(),
            Rule::when(Match::NoSctpBeginning, Verdict::Drop).counted(),
        ];
        let unconnected = Rule::always(Verdict::Drop).counted();
        let unrestricted = [unbegun(), Rule::always(Verdict::Accept)];
        let mut chains = vec![
            (DENY, deny_rules()),
            (UNBEGUN, begins.to_vec()),
            (UNJUDGEABLE, vec![unconnected.comment(UNCONNECTED)]),
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
            let interfaces = match options.strict {
                true => &options.workload_interfaces[..],
                false => &[],
            };
            let sources = ranges::names(SOURCES, &self.sources.ranges());
            let closed = lease::closed_rules(&workloads, &sources, interfaces);
            chains.push((lease::CLOSED, closed));
            chains.push((lease::FENCED, lease::fenced_rules()));
            chains.push((lease::CHAIN, lease::rules(Slot::default())));
        }
        chains.push((ASTRAY, astray_rules(options)));
        chains.push((SOURCE, self.source_rules()));
        for (base, chain) in [("forward_egress", "egress"), ("forward_ingress", "ingress")] {
            let jump = Rule::always(Verdict::Jump(chain.into()));
            chains.push((base, vec![jump, nothing_allowed()]));
        }
        chains
    }

    /// The rules that find packets whose source is elsewhere. The route back comes first (RFC 3704), because it
    /// confirms nearly every packet. A packet that the route does not confirm is dropped if its source is a workload's
    /// address. The packet is also dropped if it comes in by an interface behind which there are workloads.
    fn source_rules(&self) -> Vec<Rule> {
        let mut rules = vec![Rule::when(Match::ReversePath, Verdict::Accept)];
        if !self.sources.is_empty() {
            rules.extend(Family::BOTH.map(|family| {
                let source = Match::InputSource(family, ports::range_set(family));
                Rule::when(source, Verdict::Accept)
            }));
        }
        let known = |family| Match::Source(family, map_name("known", family));
        let mut astray = Family::BOTH.map(known).to_vec();
        astray.push(Match::InputIn(PORTS.into()));
        if self.options.strict {
            let interfaces = self.options.workload_interfaces.iter().cloned();
            astray.extend(interfaces.map(Match::InputInterface));
        }
        let astray = astray.into_iter();
        rules.extend(astray.map(|from| Rule::when(from, Verdict::Goto(ASTRAY.into()))));
        rules
    }

    /// Describes the frame and the version of the plans that changes the frame. A restarted enforcer compares both with
    /// its own.
    pub fn fingerprint(&self, plans: u32) -> String {
        let mut hash = Sha256::new();
        for (chain, rules) in self.chains() {
            for rule in rules {
                hash.update(format!("{chain} {rule}\n"));
            }
        }
        let mode = match self.options.strict {
            true => "strict",
            false => "standard",
        };
        let hash: String = hash.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("layout {LAYOUT} plans {plans} {mode} {hash}")
    }

    /// The sets of ranges that the frame's rules look into, by name, with the commands that make them. A set never
    /// changes, because other ranges are another set.
    pub fn range_sets(&self) -> BTreeMap<String, Vec<Command>> {
        let mut sets = BTreeMap::new();
        if self.options.strict {
            let comment = "addresses of this node's workloads";
            sets.extend(ranges::sets(WORKLOADS, &self.workloads, comment));
        }
        let looks = Lookup::ALL
            .into_iter()
            .flat_map(|lookup| self.sources.by(lookup));
        let mut sources: Vec<Ranges> = looks.map(|(_, ranges)| ranges).collect();
        if self.options.lease.is_some() {
            sources.push(self.sources.ranges());
        }
        let comment = "addresses that workloads use beside their own";
        for ranges in sources {
            sets.extend(ranges::sets(SOURCES, &ranges, comment));
        }
        sets
    }
}

/// The rules for packets whose source is elsewhere. A bridge has many ports, and the routes do not say which port is
/// whose.
fn astray_rules(options: &Options) -> Vec<Rule> {
    let verdict = match options.counts_only {
        true => Verdict::Accept,
        false => Verdict::Drop,
    };
    let end = Rule::always(verdict).counted();
    let bridged = Rule::when(Match::ByBridge, Verdict::Accept);
    vec![bridged, end.comment(ELSEWHERE)]
}

/// The end of a base chain.
pub(super) fn nothing_allowed() -> Rule {
    let drop = Rule::always(Verdict::Drop).counted();
    drop.comment(NOTHING_ALLOWED)
}

/// The rule that stops packets that begin no connection, where an end is isolated. Each packet of UDP may begin one, so
/// UDP skips the chain.
pub(super) fn unbegun() -> Rule {
    Rule::when(Match::New, Verdict::Jump(UNBEGUN.into())).and(Match::NotUdp)
}

/// The rules for packets of no connection, in a chain that never changes. Rules with constant sets do not change safely
/// while packets look.
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

/// The end of a packet's way that a chain judges.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// The rules for packets whose end a map does not list.
struct Unlisted<'a> {
    options: &'a Options,
    /// The node's workload addresses, and the sets of them.
    workloads: &'a Ranges,
    ranges: &'a [(Family, String)],
    sources: &'a Sources,
}

impl Unlisted<'_> {
    /// The rules of a chain that judges by the connection. A packet of no connection is in no tuple's map.
    fn tuple(&self, end: End, untracked: &str) -> Vec<Rule> {
        let (tuple, map, sources) = match end {
            End::Source => (Tuple::Original, "egress", Lookup::Egress),
            End::Destination => (Tuple::Reply, "ingress", Lookup::Ingress),
        };
        let look = |family| Match::TupleSourceMap(tuple, family, map_name(map, family));
        let mut rules = Family::BOTH.map(|family| Rule::map(look(family))).to_vec();
        let untracked = Verdict::Goto(untracked.into());
        rules.push(Rule::when(Match::NoConnection, untracked));
        let set = |family, set| Match::TupleSource(tuple, family, set);
        let interface =
            |condition| Rule::when(Match::DirectionOriginal, Verdict::Drop).and(condition);
        // The answers go the other way.
        let (begins, answers) = match end {
            End::Source => (
                Match::InputIn(INSIDE.into()),
                Match::OutputIn(INSIDE.into()),
            ),
            End::Destination => (
                Match::OutputIn(INSIDE.into()),
                Match::InputIn(INSIDE.into()),
            ),
        };
        let ways = [
            vec![Match::DirectionOriginal, begins],
            vec![Match::DirectionReply, answers],
        ];
        let strangers = ranges::conditions(WORKLOADS, tuple, self.workloads);
        rules.extend(self.rest(end, sources, &ways, set, strangers, interface));
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
        let inside = match end {
            End::Source => Match::InputIn(INSIDE.into()),
            End::Destination => Match::OutputIn(INSIDE.into()),
        };
        let ranges = self.ranges.iter().cloned();
        let strangers = ranges.map(|(family, name)| set(family, name)).collect();
        rules.extend(self.rest(
            end,
            Lookup::Header,
            &[vec![inside]],
            set,
            strangers,
            interface,
        ));
        rules
    }

    /// The rules that come after the maps. `set` is the condition that the end is in a set, and `strangers` are the
    /// conditions that the end is in the node's workload ranges. `interface` is the rule that drops packets that meet a
    /// condition. Sources are judged where the packet passes an interface of workloads at that end, by the conditions
    /// `ways`. Elsewhere the same addresses may be anybody's.
    fn rest(
        &self,
        end: End,
        sources: Lookup,
        ways: &[Vec<Match>],
        set: impl Fn(Family, String) -> Match,
        strangers: Vec<Match>,
        interface: impl Fn(Match) -> Rule,
    ) -> Vec<Rule> {
        let missed = |family| {
            Rule::when(set(family, map_name("known", family)), Verdict::Drop)
                .counted()
                .comment(MISSED)
        };
        let mut rules = Family::BOTH.map(missed).to_vec();
        for (verdict, ranges) in self.sources.by(sources) {
            for (family, name) in ranges::names(SOURCES, &ranges) {
                rules.extend(ways.iter().map(|way| {
                    let judged = Rule::when(set(family, name.clone()), verdict.clone());
                    way.iter().cloned().fold(judged, Rule::and)
                }));
            }
        }
        if self.options.strict {
            let interfaces = self.options.workload_interfaces.iter().cloned();
            let interfaces = interfaces.map(|name| match end {
                End::Source => Match::InputInterface(name),
                End::Destination => Match::OutputInterface(name),
            });
            let drops = strangers
                .into_iter()
                .map(|condition| Rule::when(condition, Verdict::Drop))
                .chain(interfaces.map(interface));
            rules.extend(drops.map(|rule| rule.counted().comment(STRICT)));
        }
        rules.push(Rule::always(Verdict::Accept));
        rules
    }
}

/// Whether an enforcer whose objects have the same meaning made a table with this fingerprint of its frame.
pub fn is_of_this_layout(frame: &str) -> bool {
    number_behind("layout", frame) == Some(LAYOUT)
}

/// The version of the plans by which a table was made, from the fingerprint of its frame.
pub fn plans(frame: &str) -> Option<u32> {
    number_behind("plans", frame)
}

fn number_behind(word: &str, text: &str) -> Option<u32> {
    let mut words = text.split(' ').skip_while(|there| *there != word);
    words.nth(1)?.parse().ok()
}

/// The commands that make an (empty) frame chain.
pub fn add_chain(name: &str) -> Command {
    let comment = match name {
        DENY => "where every denial ends",
        UNBEGUN => "packets that begin no connection, of one that conntrack does not know",
        UNJUDGEABLE => "packets of no connection, of a workload that is isolated",
        UNRESTRICTED => "workloads that are isolated in the other direction alone",
        "egress" => "by the source of the connection",
        "ingress" => "by the destination of the connection, after translation",
        "untracked_source" | "untracked_destination" => "packets of no connection",
        "header_source" => "by the packet's own source",
        "header_destination" => "by the packet's own destination",
        lease::CHAIN => "whether the node may go on",
        lease::FENCED => "there is no lease",
        lease::CLOSED => "nothing of this node's workloads passes",
        ASTRAY => "packets that come in where the route to their source does not lead",
        SOURCE => "whether packets come from where their source is",
        _ => "every forwarded packet",
    };
    Command::AddChain {
        name: name.into(),
        base: base(name),
        comment: comment.into(),
    }
}

/// The place where the kernel calls a base chain; `None` for chains that others lead to.
pub fn base(chain: &str) -> Option<Base> {
    let lease = (lease::CHAIN, Base::forward(libc::NF_IP_PRI_FILTER - 1));
    let mut bases = BASES.into_iter().chain([lease]);
    let found = bases.find(|(base, _)| *base == chain);
    found.map(|(_, place)| place)
}

/// The node's workload addresses, from the operator and from the control plane.
pub fn workload_ranges(options: &Options, policy: &NodePolicy) -> Ranges {
    options.workload_ranges.union(policy.workload_ranges())
}
