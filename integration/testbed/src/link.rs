//! Owns the way of changes into the kernel, through rtnetlink; never decides which changes to make.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use futures::StreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Error;
use crate::change::{Change, Destination, Mac};

/// Executes `changes` in order. Requests are pipelined: the first refusal is reported, later ones were still tried.
pub(crate) async fn execute(
    handle: rtnetlink::Handle,
    namespace: &str,
    changes: Vec<Change>,
) -> Result<(), Error> {
    let mut pending = Vec::with_capacity(changes.len());
    for change in changes {
        if matches!(change, Change::AwaitUp { .. } | Change::AwaitAddress { .. }) {
            await_answers(namespace, std::mem::take(&mut pending)).await?;
            wait(&handle, namespace, &change).await?;
            continue;
        }
        let (message, flags) = encode(&change);
        let response =
            send(&handle, message, flags).map_err(|source| refused(namespace, &change, source))?;
        pending.push((change, response));
    }
    await_answers(namespace, pending).await
}

type Responses = futures::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

fn send(
    handle: &rtnetlink::Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Responses, rtnetlink::Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    Ok(handle.clone().request(request)?.boxed())
}

async fn await_answers(namespace: &str, pending: Vec<(Change, Responses)>) -> Result<(), Error> {
    for (change, mut responses) in pending {
        while let Some(message) = responses.next().await {
            let NetlinkPayload::Error(error) = message.payload else {
                continue;
            };
            let forgotten =
                matches!(change, Change::DropNeighbour { .. }) && error.raw_code() == -libc::ENOENT;
            if error.code.is_some() && !forgotten {
                return Err(refused(
                    namespace,
                    &change,
                    rtnetlink::Error::NetlinkError(error),
                ));
            }
        }
    }
    Ok(())
}

fn refused(namespace: &str, change: &Change, source: rtnetlink::Error) -> Error {
    Error::Netlink {
        command: change.to_string(),
        namespace: namespace.to_owned(),
        source: Box::new(source),
    }
}

/// Asks the kernel again and again whether it has done in the background what `change` waits for.
async fn wait(handle: &rtnetlink::Handle, namespace: &str, change: &Change) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (query, flags) = encode(change);
        let mut last = rtnetlink::Error::RequestFailed;
        let mut replies =
            send(handle, query, flags).map_err(|source| refused(namespace, change, source))?;
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(reply) if is_done(change, &reply) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    last = rtnetlink::Error::NetlinkError(error)
                }
                _ => {}
            }
        }
        if Instant::now() > deadline {
            return Err(refused(namespace, change, last));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_done(change: &Change, reply: &RouteNetlinkMessage) -> bool {
    match (change, reply) {
        (Change::AwaitUp { .. }, RouteNetlinkMessage::NewLink(link)) => link
            .attributes
            .contains(&LinkAttribute::OperState(State::Up)),
        (Change::AwaitAddress { .. }, RouteNetlinkMessage::NewRoute(route)) => {
            route.header.kind == RouteType::Local
        }
        _ => false,
    }
}

fn encode(change: &Change) -> (RouteNetlinkMessage, u16) {
    const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    match change {
        Change::Bridge { index, name, mac } => {
            let mut link = link(*index, name, *mac, true);
            link.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
            ]));
            (RouteNetlinkMessage::NewLink(link), NEW)
        }
        Change::Veth {
            index,
            name,
            mac,
            bridge,
            peer,
            peer_name,
            peer_mac,
        } => {
            let mut far = link(*index, peer_name, *peer_mac, false);
            far.attributes
                .push(LinkAttribute::NetNsFd(peer.as_fd().as_raw_fd()));
            let mut near = link(*index, name, *mac, true);
            near.attributes
                .extend(bridge.map(LinkAttribute::Controller));
            near.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]));
            (RouteNetlinkMessage::NewLink(near), NEW)
        }
        Change::AwaitUp { index } => {
            let mut query = LinkMessage::default();
            query.header.index = *index;
            (RouteNetlinkMessage::GetLink(query), 0)
        }
        Change::AwaitAddress { address } => {
            let mut query = RouteMessage::default();
            query.header.address_family = family(*address);
            query.header.destination_prefix_length = prefix(*address);
            query
                .attributes
                .push(RouteAttribute::Destination(route_address(*address)));
            (RouteNetlinkMessage::GetRoute(query), 0)
        }
        Change::Hairpin { index } => {
            let mut link = LinkMessage::default();
            link.header.index = *index;
            let hairpin = vec![InfoBridgePort::HairpinMode(true)];
            link.attributes = vec![LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(hairpin)),
            ])];
            (RouteNetlinkMessage::NewLink(link), 0)
        }
        Change::Up { index } => {
            let mut link = LinkMessage::default();
            link.header.index = *index;
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
            (RouteNetlinkMessage::SetLink(link), 0)
        }
        Change::Mtu { index, mtu } => {
            let mut link = LinkMessage::default();
            link.header.index = *index;
            link.attributes = vec![LinkAttribute::Mtu(*mtu)];
            (RouteNetlinkMessage::SetLink(link), 0)
        }
        Change::Address { index, address } => (
            RouteNetlinkMessage::NewAddress(own_address(*index, *address)),
            SET,
        ),
        Change::DropAddress { index, address } => (
            RouteNetlinkMessage::DelAddress(own_address(*index, *address)),
            0,
        ),
        Change::Route {
            to,
            via,
            index,
            source,
        } => (
            RouteNetlinkMessage::NewRoute(route(*to, *via, *index, *source)),
            SET,
        ),
        Change::DropRoute { to, index } => {
            let mut route = route(Destination::Host(*to), None, *index, None);
            route.header.scope = RouteScope::NoWhere;
            (RouteNetlinkMessage::DelRoute(route), 0)
        }
        Change::Neighbour {
            index,
            address,
            mac,
        } => (
            RouteNetlinkMessage::NewNeighbour(neighbour(*index, *address, Some(*mac))),
            SET,
        ),
        Change::DropNeighbour { index, address } => (
            RouteNetlinkMessage::DelNeighbour(neighbour(*index, *address, None)),
            0,
        ),
        Change::DeleteLink { index } => {
            let mut link = LinkMessage::default();
            link.header.index = *index;
            (RouteNetlinkMessage::DelLink(link), 0)
        }
    }
}

fn link(index: u32, name: &str, mac: Mac, up: bool) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    if up {
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
    }
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(mac.0.to_vec()),
    ];
    link
}

fn own_address(index: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix(address);
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if address.is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn route(to: Destination, via: Option<IpAddr>, index: u32, source: Option<IpAddr>) -> RouteMessage {
    let (like, length) = match (to, via) {
        (Destination::Host(address), _) => (address, prefix(address)),
        (Destination::Network(network), _) => (network.network(), network.prefix()),
        (Destination::Default, Some(gateway)) => (gateway, 0),
        (Destination::Default, None) => unreachable!("a default route has a gateway"),
    };
    let mut message = RouteMessage::default();
    message.header.address_family = family(like);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if via.is_none() && like.is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if to != Destination::Default {
        message.header.destination_prefix_length = length;
        message
            .attributes
            .push(RouteAttribute::Destination(route_address(like)));
    }
    if let Some(gateway) = via {
        message.header.flags = RouteFlags::Onlink;
        message
            .attributes
            .push(RouteAttribute::Gateway(route_address(gateway)));
    }
    message
        .attributes
        .extend(source.map(|address| RouteAttribute::PrefSource(route_address(address))));
    message
}

fn neighbour(index: u32, address: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unspec;
    message
        .attributes
        .push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        }));
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
