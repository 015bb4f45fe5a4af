//! Questions to the kernel by rtnetlink, and its answers as far as they matter here.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use nix::errno::Errno;
use rtnetlink::{
    Error, Handle, LinkGetRequest,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{
            InfoBridge, InfoData, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
            LinkMessage,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::task::JoinHandle;

use super::Bypass;

/// How many routes are asked for at the same time.
const AT_ONCE: usize = 64;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The index of the link that it is enslaved to.
    pub(super) controller: Option<u32>,
    /// The state of the link that routes may depend on: whether it is up, and whether it has a carrier.
    pub(super) is_up: bool,
    pub(super) has_carrier: bool,
}

/// The kind of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bridge {
        vlan_filtering: bool,
    },
    /// One that workloads are attached by.
    Workload,
    /// One whose packets pass the forward hook by.
    Bypass(Bypass),
    Other,
}

/// The kernel's answer to where it would send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) way: Way,
    /// The index of the link that it leads through.
    pub(super) link: Option<u32>,
    /// The source address that a packet of the node would have.
    pub(super) source: Option<IpAddr>,
}

/// The manner in which a route leads to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Straight,
    Gateway,
    Local,
    Nowhere,
}

/// A connection to ask by.
pub(super) struct Kernel {
    handle: Handle,
    _connection: Running,
}

impl Kernel {
    pub(super) fn open() -> Result<Kernel, String> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|error| error.to_string())?;
        Ok(Kernel {
            handle,
            _connection: Running::new(connection),
        })
    }

    /// All links, by index.
    pub(super) async fn links(&self) -> Result<BTreeMap<u32, Link>, String> {
        let links = self.links_request().execute();
        let links = links.try_filter_map(async |link| Ok(indexed(link)));
        links.try_collect().await.map_err(describe)
    }

    /// A link, if there is one with this index.
    pub(super) async fn link(&self, index: u32) -> Result<Option<Link>, String> {
        let mut links = Box::pin(self.links_request().match_index(index).execute());
        match links.next().await {
            Some(Ok(link)) => Ok(indexed(link).map(|(_, link)| link)),
            Some(Err(Error::NetlinkError(error))) if errno(&error) == Errno::ENODEV => Ok(None),
            Some(Err(error)) => Err(describe(error)),
            None => Err("no answer about a link".to_owned()),
        }
    }

    fn links_request(&self) -> LinkGetRequest {
        let mask = vec![LinkExtentMask::SkipStats];
        let links = self.handle.link().get();
        links.set_filter_mask(AddressFamily::Unspec, mask)
    }

    /// The indexes of the links with an address that is not link-local.
    pub(super) async fn addressed(&self) -> Result<BTreeSet<u32>, String> {
        let addresses = self.handle.address().get().execute();
        let addressed = addresses.try_filter_map(async |message| Ok(addressed(&message)));
        addressed.try_collect().await.map_err(describe)
    }

    /// The routes to these addresses.
    pub(super) async fn routes(
        &self,
        addresses: BTreeSet<IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Answer>, String> {
        let asked = stream::iter(addresses)
            .map(async |address| Ok((address, self.route(address).await?)))
            .buffer_unordered(AT_ONCE);
        asked.try_collect().await
    }

    async fn route(&self, address: IpAddr) -> Result<Answer, String> {
        let mut question = RouteMessage::default();
        (
            question.header.address_family,
            question.header.destination_prefix_length,
        ) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        let destination = RouteAttribute::Destination(address.into());
        question.attributes.push(destination);
        let mut answers = Box::pin(self.handle.route().get(question).execute());
        match answers.next().await {
            Some(Ok(route)) => Ok(answer(&route)),
            Some(Err(Error::NetlinkError(error))) if is_none(errno(&error)) => Ok(Answer {
                way: Way::Nowhere,
                link: None,
                source: None,
            }),
            Some(Err(error)) => Err(describe(error)),
            None => Err(format!("no answer about a route to {address}")),
        }
    }
}

/// Whether the kernel says by this that there is no route: none at all, and the types blackhole, prohibit and
/// unreachable (`fib_props` of its `net/ipv4/fib_semantics.c`, `ip6_rt_type_to_error` of its `net/ipv6/route.c`).
fn is_none(error: Errno) -> bool {
    use Errno::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH, ESRCH};
    matches!(error, ENETUNREACH | EHOSTUNREACH | EACCES | EINVAL | ESRCH)
}

fn errno(error: &rtnetlink::packet_core::ErrorMessage) -> Errno {
    Errno::from_raw(error.raw_code().saturating_abs())
}

fn describe(error: Error) -> String {
    error.to_string()
}

/// A link and its index, if it has a name.
pub(super) fn indexed(link: LinkMessage) -> Option<(u32, Link)> {
    let (index, flags) = (link.header.index, link.header.flags);
    let (mut name, mut controller, mut kind) = (None, None, Kind::Other);
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(own) => name = Some(own),
            LinkAttribute::Controller(index) => controller = Some(index),
            LinkAttribute::LinkInfo(infos) => kind = among(&infos),
            _ => {}
        }
    }
    let link = Link {
        name: name?,
        kind,
        controller,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::LowerUp),
    };
    Some((index, link))
}

fn among(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Bridge) => {
            let filters = |info: &LinkInfo| {
                matches!(info, LinkInfo::Data(InfoData::Bridge(data))
                    if data.contains(&InfoBridge::VlanFiltering(true)))
            };
            let vlan_filtering = infos.iter().any(filters);
            Kind::Bridge { vlan_filtering }
        }
        Some(InfoKind::Veth | InfoKind::Netkit | InfoKind::Tun) => Kind::Workload,
        Some(kind) => Bypass::of(kind).map_or(Kind::Other, Kind::Bypass),
        None => Kind::Other,
    }
}

fn addressed(message: &AddressMessage) -> Option<u32> {
    let is_it = message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Local(address) | AddressAttribute::Address(address) => {
            !is_link_local(*address)
        }
        _ => false,
    });
    is_it.then_some(message.header.index)
}

/// Whether it is an address of `fe80::/10`.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn answer(route: &RouteMessage) -> Answer {
    let (mut link, mut source, mut has_gateway) = (None, None, false);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                source = Some((*address).into())
            }
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                source = Some((*address).into())
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
            _ => {}
        }
    }
    let way = match route.header.kind {
        // An anycast address is one of the node's own, too.
        RouteType::Local | RouteType::Anycast => Way::Local,
        RouteType::Unicast if has_gateway => Way::Gateway,
        RouteType::Unicast => Way::Straight,
        _ => Way::Nowhere,
    };
    Answer { way, link, source }
}

/// A task that ends with this.
pub(super) struct Running(JoinHandle<()>);

impl Running {
    pub(super) fn new(task: impl Future<Output = ()> + Send + 'static) -> Running {
        Running(tokio::spawn(task))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}
