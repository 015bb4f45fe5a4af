//! The bridges of the network namespace, with the number of ports of each. Asks the kernel when it reports a link that
//! came, went or changed (rtnetlink's multicast), and changes nothing.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_route::{
        AddressFamily,
        link::{
            InfoBridge, InfoData, InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
        },
    },
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::sysctls::{Call, Value};

/// The time from the kernel's message about a link to a listing of all: most links come with several messages.
const SETTLE: Duration = Duration::from_millis(50);

/// The time between listings while the kernel reports no change.
const REFRESH: Duration = Duration::from_secs(10);

/// The longest time for a listing.
const PATIENCE: Duration = Duration::from_secs(2);

/// The time before a failed listing is repeated.
const AGAIN: Duration = Duration::from_millis(200);

/// A bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bridge {
    pub(super) name: String,
    pub(super) ports: usize,
    /// Whether it asks br_netfilter for IPv4 and for IPv6 by itself (`IFLA_BR_NF_CALL_IPTABLES` and
    /// `IFLA_BR_NF_CALL_IP6TABLES`).
    pub(super) asks: [bool; 2],
    /// Whether it keeps VLANs apart (`IFLA_BR_VLAN_FILTERING`), and so puts tags on frames and takes them off.
    pub(super) vlan_filtering: bool,
}

impl Bridge {
    /// Whether all its frames meet the forward hook, as far as a sysctl with this value decides.
    pub(super) fn is_judged(&self, call: Call, value: &Value) -> bool {
        let is_needed = call != Call::VlanTagged || self.vlan_filtering;
        !is_needed || value.judges(self.asks_for(call))
    }

    /// Whether it asks br_netfilter for it by itself.
    fn asks_for(&self, call: Call) -> bool {
        match call {
            Call::V4 => self.asks[0],
            Call::V6 => self.asks[1],
            Call::VlanTagged => false,
        }
    }
}

/// The bridges, or why they are not known.
pub(super) type Listed = Result<Vec<Bridge>, String>;

/// Lists them once.
pub(super) async fn list() -> Listed {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    let _connection = Running(tokio::spawn(connection));
    dump(&handle).await
}

/// Keeps them known, for ever.
pub(super) async fn follow(known: watch::Sender<Listed>) {
    loop {
        let mut was_listed = false;
        let Err(error) = listen(&known, &mut was_listed).await;
        if !was_listed {
            publish(&known, Err(error));
        }
        sleep(AGAIN).await;
    }
}

/// Lists them now and whenever the kernel tells of a link, until that fails.
async fn listen(
    known: &watch::Sender<Listed>,
    was_listed: &mut bool,
) -> Result<std::convert::Infallible, String> {
    let (connection, _, mut notices) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .map_err(|error| error.to_string())?;
    let _notices = Running(tokio::spawn(connection));
    // Questions have a socket of their own: a notice has the number of whoever made the change, and could be taken for
    // the answer to the question of that number.
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    let _questions = Running(tokio::spawn(connection));
    loop {
        let bridges = dump(&handle).await?;
        *was_listed = true;
        publish(known, Ok(bridges));
        // A loss of messages is a notice, too.
        if let Ok(None) = timeout(REFRESH, notices.next()).await {
            return Err("the kernel closed the socket".to_owned());
        }
        sleep(SETTLE).await;
        while let Some(Some(_)) = notices.next().now_or_never() {}
    }
}

/// Publishes the bridges if they changed.
fn publish(known: &watch::Sender<Listed>, listed: Listed) {
    known.send_if_modified(|last| {
        let is_other = *last != listed;
        *last = listed;
        is_other
    });
}

async fn dump(handle: &Handle) -> Listed {
    let mask = vec![LinkExtentMask::SkipStats];
    let links = handle
        .link()
        .get()
        .set_filter_mask(AddressFamily::Unspec, mask);
    let links = links.execute().try_collect::<Vec<LinkMessage>>();
    let links = timeout(PATIENCE, links)
        .await
        .map_err(|_| format!("no answer within {PATIENCE:?}"))?
        .map_err(|error| error.to_string())?;
    Ok(among(&links))
}

/// The bridges among all links.
pub(super) fn among(links: &[LinkMessage]) -> Vec<Bridge> {
    let bridges = links.iter().filter_map(|link| {
        let attributes = &link.attributes;
        let infos = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
        if !infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
            return None;
        }
        let name = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
        let has = |attribute: InfoBridge| {
            infos.iter().any(
                |info| matches!(info, LinkInfo::Data(InfoData::Bridge(data)) if data.contains(&attribute)),
            )
        };
        let port = LinkAttribute::Controller(link.header.index);
        Some(Bridge {
            name,
            ports: links
                .iter()
                .filter(|link| link.attributes.contains(&port))
                .count(),
            asks: [
                has(InfoBridge::NfCallIpTables(true)),
                has(InfoBridge::NfCallIp6Tables(true)),
            ],
            vlan_filtering: has(InfoBridge::VlanFiltering(true)),
        })
    });
    bridges.collect()
}

/// A task that ends with this.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}
