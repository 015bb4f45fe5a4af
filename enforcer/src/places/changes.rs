//! Changes that the kernel told of and that are not yet asked about. It knows nothing of endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::pin,
};

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use ipnetwork::IpNetwork;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
    sys::SocketAddr,
};

use super::kernel::{Running, is_link_local};

/// The most changes that are distinguished. More count as a change of everything, so that memory has a bound.
const MOST: usize = 1024;

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// The parts that must be asked for anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Everything, whatever else is said.
    everything: bool,
    /// The routes to all endpoints.
    pub(super) rules: bool,
    /// The links that changed, by index, and whether one was down or gone in between.
    pub(super) links: BTreeMap<u32, bool>,
    /// The links with an address more or less that is not link-local.
    pub(super) readdressed: BTreeSet<u32>,
    /// The links that lost an address, and the addresses.
    pub(super) bereft: BTreeSet<u32>,
    pub(super) lost: BTreeSet<IpAddr>,
    /// The destinations of routes that came, went or changed.
    pub(super) destinations: BTreeSet<IpNetwork>,
}

impl Changes {
    pub(super) fn everything() -> Changes {
        Changes {
            everything: true,
            ..Changes::default()
        }
    }

    pub(super) fn are_everything(&self) -> bool {
        self.everything
    }

    pub(super) fn note(&mut self, notice: NetlinkPayload<RouteNetlinkMessage>) {
        use RouteNetlinkMessage as Message;
        match notice {
            _ if self.everything => return,
            NetlinkPayload::InnerMessage(message) => match message {
                Message::NewLink(link) => self.link(&link, false),
                Message::DelLink(link) => self.link(&link, true),
                Message::NewAddress(address) => self.address(&address, false),
                Message::DelAddress(address) => self.address(&address, true),
                Message::NewRoute(route) | Message::DelRoute(route) => self.route(&route),
                Message::NewRule(_) | Message::DelRule(_) => self.rules = true,
                _ => {}
            },
            // An overrun reports that messages were lost. No other kind is known.
            _ => self.everything = true,
        }
        let counts = [
            self.links.len(),
            self.readdressed.len(),
            self.bereft.len(),
            self.lost.len(),
            self.destinations.len(),
        ];
        if self.everything || counts.into_iter().any(|count| count > MOST) {
            *self = Changes::everything();
        }
    }

    /// Notes a link. The bridge tells of its ports too (`br_ifinfo_notify` of the kernel's `net/bridge/br_netlink.c`,
    /// with AF_BRIDGE): there a port that leaves is a link that is deleted.
    fn link(&mut self, link: &LinkMessage, is_gone: bool) {
        let is_gone = is_gone && link.header.interface_family == AddressFamily::Unspec;
        let is_down = is_gone || !link.header.flags.contains(LinkFlags::Up);
        *self.links.entry(link.header.index).or_default() |= is_down;
    }

    fn address(&mut self, message: &AddressMessage, is_gone: bool) {
        let index = message.header.index;
        // Asked first, a link tells that the kernel is done with the change: it answers under the lock (`rtnl_lock`)
        // that the change holds, and the message comes before the change is complete.
        self.links.entry(index).or_default();
        let (mut local, mut prefix) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => prefix = Some(*address),
                _ => {}
            }
        }
        // The two differ for the peer of a point-to-point link, and IPv6 has no local one elsewhere.
        let Some(address) = local.or(prefix) else {
            self.everything = true;
            return;
        };
        let networks = [address, prefix.unwrap_or(address)];
        let networks = networks.map(|address| IpNetwork::new(address, message.header.prefix_len));
        self.destinations.extend(networks.into_iter().flatten());
        self.destinations.insert(address.into());
        if !is_link_local(address) {
            self.readdressed.insert(index);
        }
        if is_gone {
            self.bereft.insert(index);
            self.lost.insert(address);
        }
    }

    fn route(&mut self, route: &RouteMessage) {
        let destination = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some((*address).into()),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                    Some((*address).into())
                }
                _ => None,
            });
        let all: IpAddr = match route.header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            // Messages of multicast routing, for example.
            _ => return,
        };
        let length = route.header.destination_prefix_length;
        match IpNetwork::new(destination.unwrap_or(all), length) {
            Ok(network) => drop(self.destinations.insert(network)),
            Err(_) => self.everything = true,
        }
    }
}

/// The kernel's messages about changes. They have a socket of their own: a message has the sequence number of whoever
/// made the change, and rtnetlink would take it for the answer to a request with the same number on the same socket.
pub(super) struct Notices {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    changes: Changes,
    _connection: Running,
}

impl Notices {
    /// Begins to listen.
    pub(super) fn open() -> Result<Notices, String> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&GROUPS).map_err(|error| error.to_string())?;
        Ok(Notices {
            messages,
            changes: Changes::default(),
            _connection: Running::new(connection),
        })
    }

    /// Waits until a change is noted.
    pub(super) async fn receive(&mut self) -> Result<(), String> {
        while self.changes == Changes::default() {
            self.note().await?;
        }
        Ok(())
    }

    /// Notes the kernel's messages while other work is done: the library's queue has no bound.
    pub(super) async fn gather_during<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, String> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                noted = self.note() => noted?,
            }
        }
    }

    /// Takes the changes that are noted.
    pub(super) fn take(&mut self) -> Changes {
        mem::take(&mut self.changes)
    }

    async fn note(&mut self) -> Result<(), String> {
        let message = self.messages.next().await;
        let (message, _) = message.ok_or("the kernel closed the socket")?;
        self.changes.note(message.payload);
        Ok(())
    }
}
