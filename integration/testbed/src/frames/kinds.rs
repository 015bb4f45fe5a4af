//! The kinds of frames, and how each is made. It sends nothing.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use etherparse::{Ethernet2Header, IpNumber, Ipv6Header, PacketBuilder, PacketBuilderStep};

use super::{Failed, Party};

/// The port that the servers' policy allows, and the one that frames come from.
const PORT: u16 = 7000;
const FROM: u16 = 40_000;

/// The addresses of nobody.
const STRANGER: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);

const BROADCAST: [u8; 6] = [0xff; 6];

macro_rules! kinds {
    ($($kind:ident $text:literal,)*) => {
        /// The kinds of frames. Each displays as it does in docs/UNLISTED.md.
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($kind,)* }

        impl Kind {
            /// All, in the order of the table.
            pub const ALL: [Kind; [$($text),*].len()] = [$(Kind::$kind,)*];
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Kind::$kind => $text,)* })
            }
        }
    };
}

kinds! {
    Own4 "unicast, own IPv4 address",
    Own6 "unicast, own IPv6 address",
    Another4 "another pod's IPv4 source",
    Another6 "another pod's IPv6 source",
    Stranger4 "a stranger's IPv4 source",
    Stranger6 "a stranger's IPv6 source",
    Unlisted4 "to an IPv4 address that is not listed",
    LinkLocal "link-local, both ends",
    FromLinkLocal "link-local source",
    ToLinkLocal "link-local destination",
    Multicast4 "IPv4 multicast",
    Multicast4Unicast "IPv4 multicast in a unicast frame",
    Multicast6 "IPv6 multicast",
    Broadcast "IPv4 broadcast",
    Mdns4 "mDNS, IPv4",
    Mdns6 "mDNS, IPv6",
    ArpOwn "ARP, own address",
    ArpAnother "ARP, another pod's address",
    ArpStranger "ARP, a stranger's address",
    Solicitation "neighbour solicitation",
    SolicitationLinkLocal "neighbour solicitation, link-local source",
    AdvertisesOwn "neighbour advertisement, own address",
    AdvertisesAnother "neighbour advertisement, another pod's address",
    AdvertisesStranger "neighbour advertisement, a stranger's address",
    AdvertisesLinkLocal "neighbour advertisement, a link-local address",
    RouterAdvertisement "router advertisement",
    Redirect6 "ICMPv6 redirect",
    Redirect4 "ICMP redirect",
    DhcpRequest "DHCP request",
    DhcpReply "DHCP reply",
    Dhcp6Request "DHCPv6 request",
    Dhcp6Reply "DHCPv6 reply",
    PriorityTag "priority tag (802.1Q, VID 0)",
    VlanTag "VLAN tag (802.1Q, VID 5)",
    StackedTags "stacked tags (802.1Q, VID 0)",
    ServiceTag "service tag (802.1ad, VID 0)",
    OtherEtherType "neither IP nor ARP (EtherType 0x88b5)",
}

/// The mark of a frame: an option of neighbour discovery that nobody knows, 16 bytes long.
pub(super) fn mark(number: u32) -> [u8; 16] {
    let mut mark = *b"\xfd\x02sallyport\0\0\0\0\0";
    mark[12..].copy_from_slice(&number.to_be_bytes());
    mark
}

pub(super) struct Frames<'a> {
    from: &'a Party,
    to: &'a Party,
    another: &'a Party,
    routed: bool,
}

impl<'a> Frames<'a> {
    pub(super) fn new(
        from: &'a Party,
        to: &'a Party,
        another: &'a Party,
        routed: bool,
    ) -> Frames<'a> {
        Frames {
            from,
            to,
            another,
            routed,
        }
    }

    pub(super) fn of(&self, kind: Kind, number: u32) -> Result<Vec<u8>, Failed> {
        let (from, to, another) = (self.from, self.to, self.another);
        let mark = mark(number);
        let own = || self.udp(from.v4, to.v4, self.unicast(), FROM, PORT, &mark);
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        Ok(match kind {
            Kind::Own4 => own()?,
            Kind::Own6 => self.udp(from.v6, to.v6, self.unicast(), FROM, PORT, &mark)?,
            Kind::Another4 => self.udp(another.v4, to.v4, self.unicast(), FROM, PORT, &mark)?,
            Kind::Another6 => self.udp(another.v6, to.v6, self.unicast(), FROM, PORT, &mark)?,
            Kind::Stranger4 => {
                let (source, mac) = (STRANGER.0, self.unicast());
                self.udp(source, to.v4, mac, FROM, PORT, &mark)?
            }
            Kind::Stranger6 => {
                let (source, mac) = (STRANGER.1, self.unicast());
                self.udp(source, to.v6, mac, FROM, PORT, &mark)?
            }
            Kind::Unlisted4 => {
                let destination = Ipv4Addr::new(192, 0, 2, 9);
                self.udp(from.v4, destination, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::LinkLocal => {
                let (source, destination) = (from.link_local(), to.link_local());
                self.udp(source, destination, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::FromLinkLocal => {
                self.udp(from.link_local(), to.v6, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::ToLinkLocal => {
                self.udp(from.v6, to.link_local(), self.unicast(), FROM, PORT, &mark)?
            }
            Kind::Multicast4 => {
                let group = Ipv4Addr::new(239, 1, 1, 1);
                self.udp(from.v4, group, group4(group), FROM, PORT, &mark)?
            }
            Kind::Multicast4Unicast => {
                let group = Ipv4Addr::new(239, 1, 1, 2);
                self.udp(from.v4, group, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::Multicast6 => {
                let group = "ff05::7:7".parse()?;
                self.udp(from.v6, group, group6(group), FROM, PORT, &mark)?
            }
            Kind::Broadcast => {
                let all = Ipv4Addr::BROADCAST;
                self.udp(from.v4, all, BROADCAST, FROM, PORT, &mark)?
            }
            Kind::Mdns4 => {
                let group = Ipv4Addr::new(224, 0, 0, 251);
                self.udp(from.v4, group, group4(group), 5353, 5353, &mark)?
            }
            Kind::Mdns6 => {
                let group = "ff02::fb".parse()?;
                self.udp(from.link_local(), group, group6(group), 5353, 5353, &mark)?
            }
            Kind::ArpOwn => self.arp(1, from.v4, &mark),
            Kind::ArpAnother => self.arp(2, another.v4, &mark),
            Kind::ArpStranger => self.arp(2, STRANGER.0, &mark),
            Kind::Solicitation => {
                let target = to.v6.octets();
                self.discovery(from.v6, to.v6, self.unicast(), 135, 0, &[&target, &mark])?
            }
            Kind::SolicitationLinkLocal => {
                let (source, target) = (from.link_local(), to.v6.octets());
                self.discovery(source, to.v6, self.unicast(), 135, 0, &[&target, &mark])?
            }
            Kind::AdvertisesOwn => self.advertisement(from.v6, &mark)?,
            Kind::AdvertisesAnother => self.advertisement(another.v6, &mark)?,
            Kind::AdvertisesStranger => self.advertisement(STRANGER.1, &mark)?,
            Kind::AdvertisesLinkLocal => self.advertisement("fe80::1".parse()?, &mark)?,
            Kind::RouterAdvertisement => {
                let (source, group) = (from.link_local(), group6(all_nodes));
                let lifetime = 0x4000_0708;
                self.discovery(source, all_nodes, group, 134, lifetime, &[&[0; 8], &mark])?
            }
            Kind::Redirect6 => {
                let (target, destination) = (from.link_local().octets(), another.v6.octets());
                let body: [&[u8]; 3] = [&target, &destination, &mark];
                self.discovery(from.link_local(), to.v6, self.unicast(), 137, 0, &body)?
            }
            Kind::Redirect4 => self.redirect(&mark)?,
            Kind::DhcpRequest => {
                let (none, all) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
                self.udp(none, all, BROADCAST, 68, 67, &mark)?
            }
            Kind::DhcpReply => {
                let all = Ipv4Addr::BROADCAST;
                self.udp(from.v4, all, BROADCAST, 67, 68, &mark)?
            }
            Kind::Dhcp6Request => {
                let group = "ff02::1:2".parse()?;
                self.udp(from.link_local(), group, group6(group), 546, 547, &mark)?
            }
            Kind::Dhcp6Reply => {
                let (source, destination) = (from.link_local(), to.link_local());
                self.udp(source, destination, self.unicast(), 547, 546, &mark)?
            }
            Kind::PriorityTag => tagged(own()?, &[(0x8100, 0)]),
            Kind::VlanTag => tagged(own()?, &[(0x8100, 5)]),
            Kind::StackedTags => tagged(own()?, &[(0x8100, 0), (0x8100, 0)]),
            Kind::ServiceTag => tagged(own()?, &[(0x88a8, 0)]),
            Kind::OtherEtherType => {
                let header = [&self.unicast()[..], &from.mac, &0x88b5u16.to_be_bytes()];
                [&header.concat()[..], &mark, &[0; 32]].concat()
            }
        })
    }

    fn unicast(&self) -> [u8; 6] {
        match self.routed {
            true => self.from.router,
            false => self.to.mac,
        }
    }

    fn ethernet(&self, destination: [u8; 6]) -> PacketBuilderStep<Ethernet2Header> {
        PacketBuilder::ethernet2(self.from.mac, destination)
    }

    fn udp(
        &self,
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        mac: [u8; 6],
        from: u16,
        to: u16,
        mark: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let headers = match (source.into(), destination.into()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let ends = (source.octets(), destination.octets());
                self.ethernet(mac).ipv4(ends.0, ends.1, 64)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ends = (source.octets(), destination.octets());
                self.ethernet(mac).ipv6(ends.0, ends.1, 64)
            }
            _ => return Err("the ends are of two families".into()),
        };
        let mut frame = Vec::new();
        headers.udp(from, to).write(&mut frame, mark)?;
        Ok(frame)
    }

    /// Neighbour discovery (RFC 4861): a type, four bytes of flags or what else there is, and the rest.
    fn discovery(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        mac: [u8; 6],
        kind: u8,
        flags: u32,
        rest: &[&[u8]],
    ) -> Result<Vec<u8>, Failed> {
        let mut frame = Vec::new();
        let mut header = Ipv6Header {
            hop_limit: 255,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        };
        header.next_header = IpNumber::IPV6_ICMP;
        let headers = etherparse::IpHeaders::Ipv6(header, Default::default());
        self.ethernet(mac)
            .ip(headers)
            .icmpv6_raw(kind, 0, flags.to_be_bytes())
            .write(&mut frame, &rest.concat())?;
        Ok(frame)
    }

    fn advertisement(&self, target: Ipv6Addr, mark: &[u8]) -> Result<Vec<u8>, Failed> {
        let (source, destination) = (self.from.v6, self.to.v6);
        let target = target.octets();
        let override_it = 0x2000_0000;
        let body: [&[u8]; 2] = [&target, mark];
        self.discovery(source, destination, self.unicast(), 136, override_it, &body)
    }

    /// ARP (RFC 826) from a sender that claims an address.
    fn arp(&self, operation: u16, claimed: Ipv4Addr, mark: &[u8]) -> Vec<u8> {
        let header = [
            &self.unicast()[..],
            &self.from.mac,
            &0x0806u16.to_be_bytes(),
        ];
        let kinds: &[u8] = &[0, 1, 8, 0, 6, 4];
        let operation = operation.to_be_bytes();
        let sender = [&self.from.mac[..], &claimed.octets()].concat();
        let target = [&self.to.mac[..], &self.to.v4.octets()].concat();
        [&header.concat(), kinds, &operation, &sender, &target, mark].concat()
    }

    /// An ICMP redirect (RFC 792) about what the receiver sent to the sender before.
    fn redirect(&self, mark: &[u8]) -> Result<Vec<u8>, Failed> {
        let mut about = Vec::new();
        PacketBuilder::ipv4(self.to.v4.octets(), self.from.v4.octets(), 64)
            .udp(PORT, FROM)
            .write(&mut about, mark)?;
        let mut frame = Vec::new();
        self.ethernet(self.unicast())
            .ipv4(self.from.v4.octets(), self.to.v4.octets(), 64)
            .icmpv4_raw(5, 1, self.another.v4.octets())
            .write(&mut frame, &about)?;
        Ok(frame)
    }
}

/// A frame with tags, the outer one first.
pub(super) fn tagged(frame: Vec<u8>, tags: &[(u16, u16)]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let tags = tags.iter().flat_map(|(kind, number)| {
        let (kind, number) = (kind.to_be_bytes(), number.to_be_bytes());
        [kind, number].concat()
    });
    addresses
        .iter()
        .copied()
        .chain(tags)
        .chain(rest.iter().copied())
        .collect()
}

/// The hardware address of an IPv4 group (RFC 1112, section 6.4).
fn group4(group: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [1, 0, 0x5e, b & 0x7f, c, d]
}

/// The hardware address of an IPv6 group (RFC 2464, section 7).
fn group6(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}
