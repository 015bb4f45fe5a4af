//! Commands to nf_tables. Each is a value that displays as the nft command that it stands for. The commands are those
//! of a packet filter that forwards, not all that the kernel has.

#![expect(
    clippy::cast_possible_truncation,
    reason = "families: `int` in the kernel's headers, 8 bits in a message"
)]

mod display;

use std::{fmt, net::IpAddr, time::Duration};

use crate::bridge::BridgeMatch;

/// The family of a table. The kernel calls the table's chains for packets of the family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableFamily {
    /// IPv4 and IPv6 packets, routed ones and those that br_netfilter shows.
    #[default]
    Inet,
    /// Frames at the ports of bridges.
    Bridge,
}

impl TableFamily {
    /// The number of the family in netlink messages.
    pub fn number(self) -> u8 {
        match self {
            TableFamily::Inet => libc::NFPROTO_INET as u8,
            TableFamily::Bridge => libc::NFPROTO_BRIDGE as u8,
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableFamily::Inet => "inet",
            TableFamily::Bridge => "bridge",
        })
    }
}

/// A table: its family and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableName {
    /// The table's family.
    pub family: TableFamily,
    /// The table's name, unique within its family.
    pub name: &'static str,
}

impl TableName {
    /// The length of the longest name, in bytes. The kernel takes 255, but [`size_bound`](crate::encode::size_bound)
    /// counts on this length.
    pub const LONGEST: usize = 32;

    /// Makes the name of a table of a family. Panics when the name is empty or too long.
    pub const fn new(family: TableFamily, name: &'static str) -> TableName {
        assert!(
            !name.is_empty() && name.len() <= TableName::LONGEST,
            "the name of a table has 1 to 32 bytes"
        );
        TableName { family, name }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// The family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The digit that ends the names of sets, maps and chains of this family.
    pub fn digit(self) -> char {
        match self {
            Family::V4 => '4',
            Family::V6 => '6',
        }
    }

    fn keyword(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    /// The packet's family in nft's spelling.
    fn protocol(self) -> &'static str {
        match self {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    fn datatype(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }
}

/// A tuple of a connection, after translation of addresses. `original` has the addresses of the first packet, `reply`
/// those of the answer to that packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuple {
    /// The tuple from the client, as the client sent it. Its source is the true client.
    Original,
    /// The tuple from the server, as the server sends it. Its source is the true server.
    Reply,
}

/// The verdict of a rule or an element on a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The packet is dropped.
    Drop,
    /// This base chain accepts the packet.
    Accept,
    /// The packet goes on after the last jump.
    Return,
    /// The packet goes on in a chain, and comes back.
    Jump(String),
    /// The packet goes on in a chain, and does not come back here.
    Goto(String),
    /// The packet is dropped, and its sender learns that there is no such TCP connection. Only rules have this verdict,
    /// elements have none like it.
    Reset,
}

/// The type of the elements of a set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// Single addresses, hashed.
    Addresses(Family),
    /// Ranges of addresses.
    Ranges(Family),
    /// Pairs of addresses.
    Pairs(Family),
    /// A verdict for each single address, hashed.
    Verdicts(Family),
    /// Numbers with comments: notes of the table's owner, which no rule looks up.
    Numbers,
    /// Families, each with a timeout: the kernel deletes such an element by itself.
    Families,
    /// Names of interfaces, hashed.
    Interfaces,
    /// Names of interfaces, each with an address.
    InterfaceAddresses(Family),
    /// A verdict for each name of an interface.
    InterfaceVerdicts,
    /// Names of interfaces, each with a range of addresses. No two elements have an address of one interface in common.
    InterfaceRanges(Family),
}

impl SetKind {
    /// Whether this is the type of a map, whose elements have verdicts.
    pub fn is_map(self) -> bool {
        matches!(self, SetKind::Verdicts(_) | SetKind::InterfaceVerdicts)
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// An address.
    Address(IpAddr),
    /// A range of addresses, both ends included.
    Range(IpAddr, IpAddr),
    /// An address, paired with itself.
    Pair(IpAddr),
    /// An address and its verdict, with a comment.
    Verdict(IpAddr, Verdict, String),
    /// A number with a comment.
    Number(u32, String),
    /// A family, and its timeout.
    Family(Family, Duration),
    /// The name of an interface.
    Interface(String),
    /// The name of an interface with an address.
    InterfaceAddress(String, IpAddr),
    /// The name of an interface and its verdict.
    InterfaceVerdict(String, Verdict),
    /// The name of an interface with a range of addresses, both ends included.
    InterfaceRange(String, IpAddr, IpAddr),
}

/// A condition of a rule. A rule applies when all its conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Conntrack cannot assign the packet to a connection.
    NoConnection,
    /// The packet is of a connection of which packets were seen both ways, or belongs to such a connection.
    Established,
    /// The packet is of a connection that conntrack does not know.
    New,
    /// The packet is not UDP's.
    NotUdp,
    /// The packet goes the way that the connection's first packet went.
    DirectionOriginal,
    /// The packet goes the other way than the connection's first packet.
    DirectionReply,
    /// The packet is TCP's and begins no connection: of the flags SYN, ACK, FIN and RST it has others than SYN alone.
    NoTcpBeginning,
    /// The packet is SCTP's and begins no association: its first chunk is not INIT.
    NoSctpBeginning,
    /// The packet is of IPv6 neighbour discovery or multicast listener discovery, which conntrack does not track.
    NeighbourDiscovery,
    /// The source of a tuple is in a set.
    TupleSource(Tuple, Family, String),
    /// The source of a tuple is in a range, both ends included.
    TupleRange(Tuple, IpAddr, IpAddr),
    /// The source of both tuples, as a pair, is in a set.
    TupleSources(Family, String),
    /// The source of a tuple, paired with itself, is in a set.
    TupleSourceTwice(Tuple, Family, String),
    /// The packet's own source, paired with itself, is in a set.
    SourceTwice(Family, String),
    /// The packet's own destination, paired with itself, is in a set.
    DestinationTwice(Family, String),
    /// The packet's family is in a set.
    Family(String),
    /// The packet's own source is in a set.
    Source(Family, String),
    /// The packet's own destination is in a set.
    Destination(Family, String),
    /// The packet came in by an interface. A name that ends in `*` is a prefix.
    InputInterface(String),
    /// The packet goes out by an interface. A name that ends in `*` is a prefix.
    OutputInterface(String),
    /// The packet came in by an interface whose name is in a set.
    InputIn(String),
    /// The name of the interface by which the packet goes out is in a set.
    OutputIn(String),
    /// The name of the interface by which the packet came in, with the packet's own source, is in a set.
    InputSource(Family, String),
    /// The packet came in by a bridge: by the bridge's own interface, or by a port that br_netfilter shows as the
    /// bridge.
    ByBridge,
    /// The packet came in by the interface that the node's route to its source leads to (RFC 3704, strict reverse
    /// path).
    ReversePath,
    /// The connection's IP protocol is this one.
    Protocol(u8),
    /// The packet's own IP protocol is this one. If that is TCP, UDP or SCTP so is the connection's: conntrack finds a
    /// packet's connection by its protocol (`nf_conntrack_in`). ICMP errors are the exception.
    PacketProtocol(u8),
    /// The connection's IP protocol is none of TCP, UDP and SCTP.
    ProtocolWithoutPorts,
    /// The packet's own IP protocol is this one, ICMP or ICMPv6. All packets of a connection of the protocol, and the
    /// ICMP errors that belong to it, meet this condition. nft 1.0.6 reads a port of a connection only behind such a
    /// condition.
    ProtocolOrError(u8),
    /// The verdict is the value in a map of the source of a tuple.
    TupleSourceMap(Tuple, Family, String),
    /// The verdict is the value in a map of the packet's own source.
    SourceMap(Family, String),
    /// The verdict is the value in a map of the packet's own destination.
    DestinationMap(Family, String),
    /// The port of the connection's server is in a range, both ends included.
    ServerPort(u16, u16),
    /// The verdict depends on the port of the connection's server: `first..=last`, disjoint, ascending.
    ServerPortMap(Vec<(u16, u16, Verdict)>),
    /// Conditions that only a table of family bridge has.
    Bridge(BridgeMatch),
}

/// The place at which the kernel calls a base chain. A place that comes first is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Base {
    /// The hook, which selects the packets.
    pub hook: Hook,
    /// The priority, as `linux/netfilter_ipv4.h` counts: the lowest first.
    pub priority: i32,
}

/// A hook of the kernel, which packets pass on their way through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// All packets that come in, before it is known whether their destination is the node itself.
    Prerouting,
    /// Packets that are forwarded.
    Forward,
}

impl Base {
    /// A base chain at the forward hook, at a priority.
    pub const fn forward(priority: i32) -> Base {
        let hook = Hook::Forward;
        Base { hook, priority }
    }

    /// A base chain for all packets that come in, at a priority.
    pub const fn prerouting(priority: i32) -> Base {
        let hook = Hook::Prerouting;
        Base { hook, priority }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Forward => "forward",
        };
        write!(f, "hook {hook} priority {}", self.priority)
    }
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub matches: Vec<Match>,
    /// Whether packets that meet the conditions are counted.
    pub counter: bool,
    /// The verdict on these packets; `None` when a map gives it.
    pub verdict: Option<Verdict>,
    /// The comment, which readers of a listing see.
    pub comment: Option<String>,
}

/// A change of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Adds the table, or takes over a table that has no owner.
    AddTable {
        /// Whether to ask for the flags owner and persist.
        owned: bool,
    },
    /// Deletes the table and all in it.
    DeleteTable,
    /// Adds a set or map.
    AddSet {
        /// The name of the set.
        name: String,
        /// The type of the elements.
        kind: SetKind,
        /// The comment, which readers of a listing see.
        comment: String,
    },
    /// Deletes a set or map and its elements.
    DeleteSet(String),
    /// Deletes all elements of a set or map, if there are any.
    FlushSet(String),
    /// Adds a chain. With `base`, the chain is one that the kernel calls.
    AddChain {
        /// The name of the chain.
        name: String,
        /// The place at which the kernel calls the chain, if it is a base chain.
        base: Option<Base>,
        /// The comment, which readers of a listing see.
        comment: String,
    },
    /// Deletes all rules of a chain.
    FlushChain(String),
    /// Deletes a chain and its rules.
    DeleteChain(String),
    /// Appends a rule to a chain.
    AddRule(String, Rule),
    /// Inserts a rule before another rule of a chain, whose handle from the kernel is given.
    InsertRule(String, Rule, u64),
    /// Deletes a rule of a chain, by its handle from the kernel.
    DeleteRule(String, u64),
    /// Adds elements to a set or map.
    AddElements(String, SetKind, Vec<Element>),
    /// Deletes elements from a set or map.
    DeleteElements(String, SetKind, Vec<Element>),
}

impl Rule {
    /// A rule without conditions.
    pub fn always(verdict: Verdict) -> Rule {
        Rule {
            verdict: Some(verdict),
            ..Rule::default()
        }
    }

    /// A rule with one condition.
    pub fn when(condition: Match, verdict: Verdict) -> Rule {
        Rule {
            matches: vec![condition],
            ..Rule::always(verdict)
        }
    }

    /// A rule whose verdict a map gives.
    pub fn map(map: Match) -> Rule {
        Rule {
            matches: vec![map],
            ..Rule::default()
        }
    }

    /// All verdicts that the rule may give, without those in named maps.
    pub fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        let ports = self.matches.iter().flat_map(|condition| match condition {
            Match::ServerPortMap(ports) => ports.as_slice(),
            _ => &[],
        });
        ports.map(|(.., verdict)| verdict).chain(&self.verdict)
    }

    /// The same rule, with another condition after its own.
    pub fn and(mut self, condition: Match) -> Rule {
        self.matches.push(condition);
        self
    }

    /// The same rule, with a counter.
    pub fn counted(mut self) -> Rule {
        self.counter = true;
        self
    }

    /// The same rule, with a comment.
    pub fn comment(mut self, text: impl Into<String>) -> Rule {
        self.comment = Some(text.into());
        self
    }
}

impl Command {
    /// The names of chains, sets and maps in the command.
    pub fn names_mut(&mut self) -> Vec<&mut String> {
        match self {
            Command::AddTable { .. } | Command::DeleteTable => Vec::new(),
            Command::AddSet { name, .. }
            | Command::DeleteSet(name)
            | Command::FlushSet(name)
            | Command::AddChain { name, .. }
            | Command::DeleteChain(name)
            | Command::FlushChain(name)
            | Command::DeleteRule(name, _) => vec![name],
            Command::AddRule(chain, rule) | Command::InsertRule(chain, rule, _) => {
                let verdict = rule.verdict.as_mut().and_then(Verdict::chain_mut);
                let conditions = rule.matches.iter_mut().flat_map(Match::names_mut);
                [chain]
                    .into_iter()
                    .chain(conditions)
                    .chain(verdict)
                    .collect()
            }
            Command::AddElements(set, _, elements) | Command::DeleteElements(set, _, elements) => {
                let chains = elements.iter_mut().filter_map(|element| match element {
                    Element::Verdict(_, verdict, _) | Element::InterfaceVerdict(_, verdict) => {
                        verdict.chain_mut()
                    }
                    _ => None,
                });
                [set].into_iter().chain(chains).collect()
            }
        }
    }
}

impl Verdict {
    /// The chain in which packets go on after this verdict.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Drop | Verdict::Accept | Verdict::Return | Verdict::Reset => None,
        }
    }

    fn chain_mut(&mut self) -> Option<&mut String> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            Verdict::Drop | Verdict::Accept | Verdict::Return | Verdict::Reset => None,
        }
    }
}

/// The conditions that look up a set or map with a name, and that name.
macro_rules! looks_into {
    ($set:ident) => {
        Match::TupleSource(_, _, $set)
            | Match::TupleSources(_, $set)
            | Match::TupleSourceTwice(_, _, $set)
            | Match::SourceTwice(_, $set)
            | Match::DestinationTwice(_, $set)
            | Match::Family($set)
            | Match::InputIn($set)
            | Match::OutputIn($set)
            | Match::InputSource(_, $set)
            | Match::Source(_, $set)
            | Match::Destination(_, $set)
            | Match::TupleSourceMap(_, _, $set)
            | Match::SourceMap(_, $set)
            | Match::DestinationMap(_, $set)
    };
}

impl Match {
    /// The set or map with a name that the condition looks up.
    pub fn set(&self) -> Option<&str> {
        match self {
            looks_into!(set) => Some(set),
            _ => None,
        }
    }

    fn names_mut(&mut self) -> Vec<&mut String> {
        match self {
            looks_into!(set) => vec![set],
            Match::ServerPortMap(ports) => {
                let verdicts = ports.iter_mut().map(|(_, _, verdict)| verdict);
                verdicts.filter_map(Verdict::chain_mut).collect()
            }
            Match::NoConnection
            | Match::Established
            | Match::New
            | Match::NotUdp
            | Match::TupleRange(..)
            | Match::DirectionOriginal
            | Match::DirectionReply
            | Match::NoTcpBeginning
            | Match::NoSctpBeginning
            | Match::NeighbourDiscovery
            | Match::InputInterface(_)
            | Match::OutputInterface(_)
            | Match::ByBridge
            | Match::ReversePath
            | Match::Protocol(_)
            | Match::PacketProtocol(_)
            | Match::ProtocolWithoutPorts
            | Match::ProtocolOrError(_)
            | Match::ServerPort(..)
            | Match::Bridge(_) => Vec::new(),
        }
    }
}
