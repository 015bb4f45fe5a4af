//! Rules with their names resolved, as the kernel keeps them, and the kernel's reasons to refuse them. This module
//! changes no table.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use nix::errno::Errno;
use sallyport_nft::command::{self, Family, Match, SetKind, Tuple, Verdict};

use crate::{
    Arrival, Packet, RulesetGeneration,
    elements::Key,
    table::{ChainId, SetId, Table},
};

/// A verdict with its chain resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Drop,
    Accept,
    Return,
    Jump(ChainId),
    Goto(ChainId),
}

/// The part of a packet that a lookup has as its key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Field {
    Tuple(Tuple, Family),
    Tuples(Family),
    TupleTwice(Tuple, Family),
    Source(Family),
    SourceTwice(Family),
    Destination(Family),
    DestinationTwice(Family),
    /// The packet's family itself.
    Protocol,
    /// The name of the interface by which the packet came in.
    Input,
    /// The name of the interface by which the packet goes out.
    Output,
    /// The name of the interface by which the packet came in, with the packet's own source.
    InputSource(Family),
}

/// A condition with its set resolved.
#[derive(Debug)]
pub(super) enum Check {
    NoConnection,
    DirectionOriginal,
    DirectionReply,
    Established,
    New,
    NotUdp,
    NoBeginning(u8),
    NeighbourDiscovery,
    Input(String),
    Output(String),
    ByBridge,
    ReversePath,
    Protocol(u8),
    ProtocolWithoutPorts,
    ProtocolOrError(u8),
    Port(u16, u16),
    Range(Field, Key, Key),
    Set(Field, SetId),
    Map(Field, SetId),
    Ports(Vec<(u16, u16, Target)>),
}

/// A rule of one chain.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) checks: Vec<Check>,
    pub(super) verdict: Option<Target>,
    /// The number by which the rule can be deleted.
    pub(super) handle: u64,
    /// The rule as it was given.
    pub(super) source: command::Rule,
    /// The batch that made the rule, and the elements of its anonymous sets.
    pub(super) born: RulesetGeneration,
    died: AtomicU64,
}

/// ICMPv6 types of MLD (RFC 2710, RFC 3810) and neighbour discovery (RFC 4861).
const NEIGHBOUR_DISCOVERY: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];

impl Target {
    /// The chain that the verdict leads to.
    pub(super) fn chain(self) -> Option<ChainId> {
        match self {
            Target::Jump(chain) | Target::Goto(chain) => Some(chain),
            Target::Drop | Target::Accept | Target::Return => None,
        }
    }
}

impl Field {
    /// The key of a packet; `None` if the packet has no such field, which is no match.
    pub(super) fn of(self, packet: &Packet) -> Option<Key> {
        let connection = packet.connection.as_ref();
        let (address, family) = match self {
            Field::Protocol => return Some(nfproto(Family::of(packet.source))),
            Field::Input => return name_key(&packet.input),
            Field::Output => return name_key(&packet.output),
            Field::InputSource(family) => {
                let source = Field::Source(family).of(packet)?;
                let port = name_key(&packet.input)?.number;
                return Some(Key { port, ..source });
            }
            Field::Tuple(Tuple::Original, family) | Field::TupleTwice(Tuple::Original, family) => {
                (connection?.client, family)
            }
            Field::Tuple(Tuple::Reply, family) | Field::TupleTwice(Tuple::Reply, family) => {
                (connection?.server, family)
            }
            // Sets of pairs hold addresses with themselves only.
            Field::Tuples(family) => {
                let connection = connection.filter(|both| both.client == both.server)?;
                (connection.client, family)
            }
            Field::Source(family) | Field::SourceTwice(family) => (packet.source, family),
            Field::Destination(family) | Field::DestinationTwice(family) => {
                (packet.destination, family)
            }
        };
        (Family::of(address) == family).then(|| number(address))
    }

    /// The key of a packet that has the field.
    fn key(self, packet: &Packet) -> Key {
        self.of(packet)
            .expect("a lookup is due only where there is a key")
    }

    fn family(self) -> Option<Family> {
        match self {
            Field::Tuple(_, family)
            | Field::Tuples(family)
            | Field::TupleTwice(_, family)
            | Field::Source(family)
            | Field::SourceTwice(family)
            | Field::Destination(family)
            | Field::DestinationTwice(family)
            | Field::InputSource(family) => Some(family),
            Field::Protocol | Field::Input | Field::Output => None,
        }
    }

    fn is_pair(self) -> bool {
        matches!(
            self,
            Field::Tuples(_)
                | Field::TupleTwice(..)
                | Field::SourceTwice(_)
                | Field::DestinationTwice(_)
        )
    }

    /// The length of the field in registers, in bytes: a multiple of four.
    fn length(self) -> usize {
        if matches!(self, Field::Input | Field::Output) {
            return libc::IFNAMSIZ;
        }
        let single = self.family().map_or(4, address_length);
        if matches!(self, Field::InputSource(_)) {
            return libc::IFNAMSIZ + single;
        }
        single * if self.is_pair() { 2 } else { 1 }
    }

    /// Checks that a set of a kind has keys of this field. The kernel compares lengths alone.
    fn fits(self, kind: SetKind, map: bool) -> Result<(), Errno> {
        let pair = self.is_pair();
        if key_length(kind) > self.length() {
            return Err(Errno::ENODATA);
        }
        let with_port = matches!(self, Field::InputSource(_));
        let is_of = |family| self.family() == Some(family);
        let right = match kind {
            SetKind::Addresses(of) | SetKind::Ranges(of) => {
                !map && !pair && !with_port && is_of(of)
            }
            SetKind::Pairs(of) => !map && pair && is_of(of),
            SetKind::Verdicts(of) => map && !pair && !with_port && is_of(of),
            SetKind::Families => !map && matches!(self, Field::Protocol),
            SetKind::Interfaces => !map && matches!(self, Field::Input | Field::Output),
            SetKind::InterfaceRanges(of) => {
                !map && matches!(self, Field::InputSource(family) if family == of)
            }
            SetKind::Numbers | SetKind::InterfaceAddresses(_) | SetKind::InterfaceVerdicts => false,
        };
        if right { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl Check {
    /// Whether a packet meets a condition; `None` where the condition needs a lookup.
    pub(super) fn holds(&self, packet: &Packet) -> Option<bool> {
        let connection = packet.connection.as_ref();
        let protocol = connection.map(|of| of.protocol);
        let interface = |name: &str, wanted: &str| match wanted.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == wanted,
        };
        Some(match self {
            Check::NoConnection => connection.is_none(),
            Check::DirectionOriginal => connection.is_some_and(|of| of.original),
            Check::DirectionReply => connection.is_some_and(|of| !of.original),
            Check::Established => connection.is_some_and(|of| of.established),
            Check::New => connection.is_some_and(|of| !of.established),
            Check::NotUdp => protocol != Some(17),
            Check::NoBeginning(number) => {
                connection.is_some_and(|of| of.protocol == *number && of.late)
            }
            Check::Input(name) => interface(&packet.input, name),
            Check::Output(name) => interface(&packet.output, name),
            Check::ByBridge => packet.arrival == Arrival::Bridge,
            // The routes do not know the ports behind a bridge.
            Check::ReversePath => packet.arrival == Arrival::Route,
            Check::Protocol(number) => protocol == Some(*number),
            Check::Port(first, last) => {
                connection.is_some_and(|of| (*first..=*last).contains(&of.port))
            }
            Check::Range(field, first, last) => field
                .of(packet)
                .is_some_and(|key| (first.number..=last.number).contains(&key.number)),
            // The other constant set, that of protocols without ports, is looked up negated.
            Check::NeighbourDiscovery if packet.icmpv6.is_none() => false,
            Check::ProtocolWithoutPorts | Check::ProtocolOrError(_) | Check::Ports(_)
                if connection.is_none() =>
            {
                false
            }
            Check::Set(field, _) | Check::Map(field, _) if field.of(packet).is_none() => false,
            Check::NeighbourDiscovery
            | Check::ProtocolWithoutPorts
            | Check::ProtocolOrError(_)
            | Check::Set(..)
            | Check::Map(..)
            | Check::Ports(_) => return None,
        })
    }
}

/// The outcome of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    Miss,
    Found,
    Verdict(Target),
}

impl Rule {
    pub(super) fn new(
        source: &command::Rule,
        table: &Table,
        born: RulesetGeneration,
    ) -> Result<Rule, Errno> {
        let checks = source
            .matches
            .iter()
            .map(|condition| check(condition, table));
        Ok(Rule {
            checks: checks.collect::<Result<_, _>>()?,
            verdict: source
                .verdict
                .as_ref()
                .map(|verdict| table.target(verdict))
                .transpose()?,
            handle: table.handles + 1,
            source: source.clone(),
            born,
            died: AtomicU64::new(RulesetGeneration::MAX),
        })
    }

    /// The batch that deleted the rule.
    pub(super) fn died(&self) -> RulesetGeneration {
        self.died.load(Relaxed)
    }

    pub(super) fn dies(&self, at: RulesetGeneration) {
        self.died.store(at, Relaxed);
    }

    /// The chains that the rule leads to, each as often as the rule names it.
    pub(super) fn chains(&self) -> impl Iterator<Item = ChainId> + '_ {
        let ports = self.checks.iter().flat_map(|check| match check {
            Check::Ports(ports) => ports.as_slice(),
            _ => &[],
        });
        let targets = ports.map(|&(.., target)| target).chain(self.verdict);
        targets.filter_map(Target::chain)
    }

    /// The sets that the rule looks into.
    pub(super) fn sets(&self) -> impl Iterator<Item = SetId> + '_ {
        self.checks.iter().filter_map(|check| match check {
            Check::Set(_, set) | Check::Map(_, set) => Some(*set),
            _ => None,
        })
    }

    /// The outcome in a generation of a lookup of one of the rule's checks.
    pub(super) fn find(
        &self,
        check: &Check,
        packet: &Packet,
        table: &Table,
        at: RulesetGeneration,
    ) -> Hit {
        let yes = |found| if found { Hit::Found } else { Hit::Miss };
        match check {
            Check::Set(field, set) | Check::Map(field, set) => {
                table.find(*set, field.key(packet), at)
            }
            // The elements of an anonymous set come with the rule. Only those of maps go before the rule does.
            Check::NeighbourDiscovery => yes(at >= self.born
                && packet
                    .icmpv6
                    .is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(&kind))),
            Check::ProtocolWithoutPorts => {
                let with_ports = packet
                    .connection
                    .as_ref()
                    .is_some_and(|of| [6, 17, 132].contains(&of.protocol));
                yes(at < self.born || !with_ports)
            }
            Check::ProtocolOrError(number) => {
                let protocol = packet.connection.as_ref().map(|of| of.protocol);
                let found = protocol.is_some_and(|of| [1, *number, 58].contains(&of));
                yes(at >= self.born && found)
            }
            Check::Ports(ports) => {
                let port = packet.connection.as_ref().map_or(0, |of| of.port);
                let found = ports
                    .iter()
                    .find(|(first, last, _)| (*first..=*last).contains(&port));
                match found {
                    Some(&(.., target)) if (self.born..self.died()).contains(&at) => {
                        Hit::Verdict(target)
                    }
                    _ => Hit::Miss,
                }
            }
            _ => unreachable!("other conditions need no lookup"),
        }
    }

    /// The outcomes that a lookup of one of the rule's checks had by a batch that was refused during a generation.
    pub(super) fn find_refused(
        &self,
        check: &Check,
        packet: &Packet,
        table: &Table,
        during: RulesetGeneration,
    ) -> Vec<Hit> {
        match check {
            Check::Set(field, set) | Check::Map(field, set) => {
                table.find_refused(*set, field.key(packet), during)
            }
            // Rules of a refused batch are never seen, so their constant sets are not seen either.
            _ => Vec::new(),
        }
    }

    /// Whether a lookup of one of the rule's checks finds an element in a generation, and another in its place in the
    /// next.
    pub(super) fn is_replaced_after(
        &self,
        check: &Check,
        packet: &Packet,
        table: &Table,
        generation: RulesetGeneration,
    ) -> bool {
        match check {
            Check::Set(field, set) | Check::Map(field, set) => {
                let elements = &table.set(*set).elements;
                elements.is_replaced_after(field.key(packet), generation)
            }
            _ => false,
        }
    }

    /// Whether a lookup goes into ranges, which show late the changes of a batch.
    pub(super) fn is_late(&self, check: &Check, table: &Table) -> bool {
        match check {
            Check::Set(_, set) | Check::Map(_, set) => {
                matches!(
                    table.set(*set).kind,
                    SetKind::Ranges(_) | SetKind::InterfaceRanges(_)
                )
            }
            Check::Ports(ports) => ports.iter().any(|(first, last, _)| first != last),
            _ => false,
        }
    }
}

fn check(condition: &Match, table: &Table) -> Result<Check, Errno> {
    let set = |field: Field, name: &str, map| {
        let id = table.set_id(name).ok_or(Errno::ENOENT)?;
        field.fits(table.set(id).kind, map).map(|()| (field, id))
    };
    let look = |field, name| set(field, name, false).map(|(field, id)| Check::Set(field, id));
    let map = |field, name| set(field, name, true).map(|(field, id)| Check::Map(field, id));
    Ok(match condition {
        Match::NoConnection => Check::NoConnection,
        Match::DirectionOriginal => Check::DirectionOriginal,
        Match::DirectionReply => Check::DirectionReply,
        Match::Established => Check::Established,
        Match::New => Check::New,
        Match::NotUdp => Check::NotUdp,
        Match::NoTcpBeginning => Check::NoBeginning(6),
        Match::NoSctpBeginning => Check::NoBeginning(132),
        Match::NeighbourDiscovery => Check::NeighbourDiscovery,
        Match::InputInterface(name) => Check::Input(name.clone()),
        Match::InputIn(name) => look(Field::Input, name)?,
        Match::OutputIn(name) => look(Field::Output, name)?,
        Match::InputSource(family, name) => look(Field::InputSource(*family), name)?,
        Match::OutputInterface(name) => Check::Output(name.clone()),
        Match::ByBridge => Check::ByBridge,
        Match::ReversePath => Check::ReversePath,
        // No packet of this kernel is an ICMP error.
        Match::Protocol(number) | Match::PacketProtocol(number) => Check::Protocol(*number),
        Match::ProtocolWithoutPorts => Check::ProtocolWithoutPorts,
        Match::ProtocolOrError(number) => Check::ProtocolOrError(*number),
        Match::TupleSource(tuple, family, name) => look(Field::Tuple(*tuple, *family), name)?,
        Match::TupleRange(tuple, first, last) => {
            let field = Field::Tuple(*tuple, Family::of(*first));
            Check::Range(field, number(*first), number(*last))
        }
        Match::TupleSources(family, name) => look(Field::Tuples(*family), name)?,
        Match::TupleSourceTwice(tuple, family, name) => {
            look(Field::TupleTwice(*tuple, *family), name)?
        }
        Match::SourceTwice(family, name) => look(Field::SourceTwice(*family), name)?,
        Match::DestinationTwice(family, name) => look(Field::DestinationTwice(*family), name)?,
        Match::Family(name) => look(Field::Protocol, name)?,
        Match::Source(family, name) => look(Field::Source(*family), name)?,
        Match::Destination(family, name) => look(Field::Destination(*family), name)?,
        Match::TupleSourceMap(tuple, family, name) => map(Field::Tuple(*tuple, *family), name)?,
        Match::SourceMap(family, name) => map(Field::Source(*family), name)?,
        Match::DestinationMap(family, name) => map(Field::Destination(*family), name)?,
        Match::ServerPort(first, last) => Check::Port(*first, *last),
        Match::ServerPortMap(ports) => Check::Ports(port_map(ports, table)?),
        // This kernel has the table of family inet alone.
        Match::Bridge(_) => return Err(Errno::EOPNOTSUPP),
    })
}

fn port_map(
    ports: &[(u16, u16, Verdict)],
    table: &Table,
) -> Result<Vec<(u16, u16, Target)>, Errno> {
    let mut resolved = Vec::with_capacity(ports.len());
    for (first, last, verdict) in ports {
        resolved.push((*first, *last, table.target(verdict)?));
    }
    resolved.sort_by_key(|&(first, ..)| first);
    // The same element twice is one. Other elements that overlap are refused.
    let clash = |pair: &[(u16, u16, Target)]| pair[0] != pair[1] && pair[1].0 <= pair[0].1;
    if resolved.windows(2).any(clash) {
        return Err(Errno::EEXIST);
    }
    Ok(resolved)
}

/// An address as a key.
pub(super) fn number(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => Key::from(u128::from(address.to_bits())),
        IpAddr::V6(address) => Key::from(address.to_bits()),
    }
}

/// The address that a key is.
pub(super) fn address(family: Family, key: Key) -> IpAddr {
    match family {
        #[expect(clippy::cast_possible_truncation, reason = "the key has 32 bits")]
        Family::V4 => Ipv4Addr::from_bits(key.number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(key.number).into(),
    }
}

/// The name of an interface as a key; `None` for a text that is no such name.
pub(super) fn name_key(name: &str) -> Option<Key> {
    let mut bytes = [0; libc::IFNAMSIZ];
    // A zero ends the name.
    let fits = name.len() < bytes.len();
    fits.then(|| {
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Key::from(u128::from_be_bytes(bytes))
    })
}

/// The name of an interface that a key is.
pub(super) fn interface_name(key: Key) -> String {
    let name = String::from_utf8_lossy(&key.number.to_be_bytes()).into_owned();
    name.trim_end_matches('\0').to_owned()
}

/// A family as a key: `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub(super) fn nfproto(family: Family) -> Key {
    Key::from(match family {
        Family::V4 => 2,
        Family::V6 => 10,
    })
}

fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

fn key_length(kind: SetKind) -> usize {
    match kind {
        SetKind::Addresses(family) | SetKind::Ranges(family) | SetKind::Verdicts(family) => {
            address_length(family)
        }
        SetKind::Pairs(family) => 2 * address_length(family),
        SetKind::Numbers => 4,
        SetKind::Families => 1,
        SetKind::Interfaces | SetKind::InterfaceVerdicts => libc::IFNAMSIZ,
        SetKind::InterfaceAddresses(family) | SetKind::InterfaceRanges(family) => {
            libc::IFNAMSIZ + address_length(family)
        }
    }
}
