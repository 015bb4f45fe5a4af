//! Frames of every kind, sent from a pod as they are, and looked for where they should arrive or not.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use etherparse::{Ethernet2Header, IpNumber, Ipv6Header, PacketBuilder, PacketBuilderStep};
use socket2::{Domain, Socket, Type};

use crate::testbed::{Family, Host, Mac};

/// Why frames cannot be made, sent or received.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// How long a frame may be under way.
const PATIENCE: Duration = Duration::from_millis(400);

/// The port that the servers' policy allows, and the one that frames come from.
const PORT: u16 = 7000;
const FROM: u16 = 40_000;

const BROADCAST: [u8; 6] = [0xff; 6];

/// A pod that sends and receives.
pub struct Party {
    host: Host,
    mac: [u8; 6],
    /// The node's hardware address on the pod's link.
    router: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

macro_rules! kinds {
    ($($kind:ident $text:literal,)*) => {
        /// What is sent. Each displays as it does in docs/UNLISTED.md.
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
    Solicitation "neighbour solicitation",
    SolicitationLinkLocal "neighbour solicitation, link-local source",
    AdvertisesOwn "neighbour advertisement, own address",
    AdvertisesAnother "neighbour advertisement, another pod's address",
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

impl Party {
    /// A pod with both families, its hardware address, and that of its router.
    pub fn new(host: Host, mac: Mac, router: Mac) -> Party {
        let address = |family| host.address(family).expect("it has both families");
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(Family::V4), address(Family::V6)) else {
            unreachable!("each is of its family");
        };
        Party {
            mac: mac.0,
            router: router.0,
            v4,
            v6,
            host,
        }
    }

    /// The address that its hardware address gives it (RFC 4291, appendix A).
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        let pair = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            pair(a ^ 2, b),
            pair(c, 0xff),
            pair(0xfe, d),
            pair(e, f),
        )
    }
}

/// Which kinds arrive at one pod from another. `routed` are all sent to the router, which passes on what it can.
pub fn arrivals(
    from: &Party,
    to: &Party,
    another: &Party,
    routed: bool,
) -> Result<BTreeMap<Kind, bool>, Failed> {
    let receiver = to.host.netns().run(open)?;
    receiver.set_nonblocking(true)?;
    let sender = from.host.netns().run(open)?;
    // The answer tells the way to conntrack and to the bridge.
    let greeting = Frames::new(to, from, another, routed).of(Kind::Own4, 0)?;
    for kind in Kind::ALL {
        let frames = Frames::new(from, to, another, routed);
        sender.send(&frames.of(kind, kind as u32 + 1)?)?;
        if kind == Kind::Own4 {
            to.host.netns().run(open)?.send(&greeting)?;
        }
    }
    let mut arrived: BTreeMap<Kind, bool> = Kind::ALL.map(|kind| (kind, false)).into();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        arrived.extend(receive(&receiver).map(|kind| (kind, true)));
    }
    Ok(arrived)
}

/// Frames of some kinds from one pod to another, all the time, until it is dropped.
pub struct Rain {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<Mutex<BTreeMap<Kind, u64>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Rain {
    /// Begins, with a frame each millisecond.
    pub fn start(
        from: &Party,
        to: &Party,
        another: &Party,
        kinds: &[Kind],
    ) -> Result<Rain, Failed> {
        let frames = Frames::new(from, to, another, false);
        let frames: Vec<Vec<u8>> = kinds
            .iter()
            .map(|&kind| frames.of(kind, kind as u32 + 1))
            .collect::<Result<_, _>>()?;
        let receiver = to.host.netns().run(open)?;
        receiver.set_nonblocking(true)?;
        let sender = from.host.netns().run(open)?;
        let mut rain = Rain {
            stop: Arc::default(),
            sent: Arc::default(),
            arrived: Arc::default(),
            threads: Vec::new(),
        };
        let (stop, sent) = (Arc::clone(&rain.stop), Arc::clone(&rain.sent));
        rain.threads.push(thread::spawn(move || {
            for frame in frames.iter().cycle() {
                if stop.load(Relaxed) {
                    return;
                }
                sent.fetch_add(u64::from(sender.send(frame).is_ok()), Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        }));
        let (stop, arrived) = (Arc::clone(&rain.stop), Arc::clone(&rain.arrived));
        rain.threads.push(thread::spawn(move || {
            while !stop.load(Relaxed) {
                for kind in receive(&receiver) {
                    *arrived
                        .lock()
                        .expect("nobody panics")
                        .entry(kind)
                        .or_default() += 1;
                }
            }
        }));
        Ok(rain)
    }

    /// How many frames were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// How many of each kind arrived.
    pub fn arrived(&self) -> BTreeMap<Kind, u64> {
        self.arrived.lock().expect("nobody panics").clone()
    }
}

impl Drop for Rain {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The kind of a frame that has come; waits a moment if none has.
fn receive(receiver: &Socket) -> impl Iterator<Item = Kind> + use<> {
    let mut buffer = [0; 2_048];
    // SAFETY: the buffer is as long as is said, and lives as long as the call.
    let length = unsafe {
        libc::recv(
            receiver.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    let length = usize::try_from(length).unwrap_or_else(|_| {
        thread::sleep(Duration::from_millis(2));
        0
    });
    Kind::ALL.into_iter().filter(move |&kind| {
        let mark = mark(kind as u32 + 1);
        let mut parts = buffer[..length].windows(mark.len());
        parts.any(|part| part == mark)
    })
}

/// A socket for frames of the pod's only link.
fn open() -> io::Result<Socket> {
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all.into()))?;
    let index = nix::net::if_::if_nametoindex("eth0")?;
    // SAFETY: the address is as long as is said, and lives as long as the call.
    let bound = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What tells a frame from all others: an option of neighbour discovery that nobody knows, 16 bytes long.
fn mark(number: u32) -> [u8; 16] {
    let mut mark = *b"\xfd\x02sallyport\0\0\0\0\0";
    mark[12..].copy_from_slice(&number.to_be_bytes());
    mark
}

struct Frames<'a> {
    from: &'a Party,
    to: &'a Party,
    another: &'a Party,
    routed: bool,
}

impl<'a> Frames<'a> {
    fn new(from: &'a Party, to: &'a Party, another: &'a Party, routed: bool) -> Frames<'a> {
        Frames {
            from,
            to,
            another,
            routed,
        }
    }

    fn of(&self, kind: Kind, number: u32) -> Result<Vec<u8>, Failed> {
        let (from, to, another) = (self.from, self.to, self.another);
        let mark = mark(number);
        let own = || self.udp4(from.v4, to.v4, self.unicast(), FROM, PORT, &mark);
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        Ok(match kind {
            Kind::Own4 => own()?,
            Kind::Own6 => self.udp6(from.v6, to.v6, self.unicast(), FROM, PORT, &mark)?,
            Kind::Another4 => self.udp4(another.v4, to.v4, self.unicast(), FROM, PORT, &mark)?,
            Kind::Another6 => self.udp6(another.v6, to.v6, self.unicast(), FROM, PORT, &mark)?,
            Kind::Stranger4 => {
                let source = Ipv4Addr::new(192, 0, 2, 1);
                self.udp4(source, to.v4, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::Stranger6 => {
                let source = "2001:db8::1".parse()?;
                self.udp6(source, to.v6, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::Unlisted4 => {
                let destination = Ipv4Addr::new(192, 0, 2, 9);
                self.udp4(from.v4, destination, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::LinkLocal => {
                let (source, destination) = (from.link_local(), to.link_local());
                self.udp6(source, destination, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::FromLinkLocal => {
                self.udp6(from.link_local(), to.v6, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::ToLinkLocal => {
                self.udp6(from.v6, to.link_local(), self.unicast(), FROM, PORT, &mark)?
            }
            Kind::Multicast4 => {
                let group = Ipv4Addr::new(239, 1, 1, 1);
                self.udp4(from.v4, group, group4(group), FROM, PORT, &mark)?
            }
            Kind::Multicast4Unicast => {
                let group = Ipv4Addr::new(239, 1, 1, 2);
                self.udp4(from.v4, group, self.unicast(), FROM, PORT, &mark)?
            }
            Kind::Multicast6 => {
                let group = "ff05::7:7".parse()?;
                self.udp6(from.v6, group, group6(group), FROM, PORT, &mark)?
            }
            Kind::Broadcast => {
                let all = Ipv4Addr::BROADCAST;
                self.udp4(from.v4, all, BROADCAST, FROM, PORT, &mark)?
            }
            Kind::Mdns4 => {
                let group = Ipv4Addr::new(224, 0, 0, 251);
                self.udp4(from.v4, group, group4(group), 5353, 5353, &mark)?
            }
            Kind::Mdns6 => {
                let group = "ff02::fb".parse()?;
                self.udp6(from.link_local(), group, group6(group), 5353, 5353, &mark)?
            }
            Kind::ArpOwn => self.arp(1, from.v4, &mark),
            Kind::ArpAnother => self.arp(2, another.v4, &mark),
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
                self.udp4(none, all, BROADCAST, 68, 67, &mark)?
            }
            Kind::DhcpReply => {
                let all = Ipv4Addr::BROADCAST;
                self.udp4(from.v4, all, BROADCAST, 67, 68, &mark)?
            }
            Kind::Dhcp6Request => {
                let group = "ff02::1:2".parse()?;
                self.udp6(from.link_local(), group, group6(group), 546, 547, &mark)?
            }
            Kind::Dhcp6Reply => {
                let (source, destination) = (from.link_local(), to.link_local());
                self.udp6(source, destination, self.unicast(), 547, 546, &mark)?
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

    fn udp4(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        mac: [u8; 6],
        from: u16,
        to: u16,
        mark: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let mut frame = Vec::new();
        self.ethernet(mac)
            .ipv4(source.octets(), destination.octets(), 64)
            .udp(from, to)
            .write(&mut frame, mark)?;
        Ok(frame)
    }

    fn udp6(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        mac: [u8; 6],
        from: u16,
        to: u16,
        mark: &[u8],
    ) -> Result<Vec<u8>, Failed> {
        let mut frame = Vec::new();
        self.ethernet(mac)
            .ipv6(source.octets(), destination.octets(), 64)
            .udp(from, to)
            .write(&mut frame, mark)?;
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
fn tagged(frame: Vec<u8>, tags: &[(u16, u16)]) -> Vec<u8> {
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
