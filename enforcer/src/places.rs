//! Places in the network namespace of this process: its bridges, their ports, where the node's routes to endpoints
//! lead, and what takes packets past the forward hook. It decides nothing about policy, and changes nothing.
//!
//! The kernel tells of changes by rtnetlink's multicast, and what it tells is only taken for a reason to ask. Some
//! changes of IPv4 routes are not told: a device that goes down and an address that goes take routes with them
//! (`fib_disable_ip` and `fib_sync_down_addr` of the kernel's `net/ipv4/fib_frontend.c` and `fib_semantics.c`), so that
//! what leads to the device or has the address for its source is asked for anew. Changes without a message are found by
//! the listing of everything every ten seconds. Of flowtables nf_tables tells by messages that also tell of each
//! element of a set, at the cost of all who commit (see `netlink::monitor`). So they are listed every second.

mod bypass;
mod changes;
mod flowtables;
mod kernel;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

pub use self::bypass::Bypass;
use sallyport_nft::netlink::Flowtables;

use self::{
    changes::{Changes, Notices},
    flowtables::Lister,
    kernel::Kernel,
    state::{State, Touched},
};

/// The time from the kernel's message about a change to the query: most changes come with several messages.
const SETTLE: Duration = Duration::from_millis(20);

/// The time between listings of everything while the kernel reports no change.
const REFRESH: Duration = Duration::from_secs(10);

/// The time between listings of flowtables.
const FLOWTABLES: Duration = Duration::from_secs(1);

/// The longest time for the answers of a refresh, and the additional time for each endpoint.
const PATIENCE: Duration = Duration::from_secs(2);
const PATIENCE_EACH: Duration = Duration::from_millis(1);

/// The time before a failed listing of everything is repeated.
const AGAIN: Duration = Duration::from_millis(200);

/// The links of the node, and where its routes lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The interfaces that are a port of a bridge, by name.
    pub ports: BTreeMap<String, Port>,
    /// The bridges, by name.
    pub bridges: BTreeMap<String, Bridge>,
    /// The route of the node to the address of each endpoint.
    pub routes: BTreeMap<IpAddr, Route>,
    /// The interfaces whose packets pass the forward hook by, by name.
    pub bypasses: BTreeMap<String, Bypass>,
    /// The interfaces that flowtables take packets from, past the forward hook.
    pub flowtables: Flowtables,
}

/// A port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name of the bridge.
    pub bridge: String,
    /// Whether there may be a workload behind it: its kind (`IFLA_INFO_KIND` of `linux/if_link.h`) is `veth`, `netkit`
    /// or `tun`, which taps are too. All other kinds lead away from the node or to another interface of it.
    pub may_be_workload: bool,
}

/// A bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Whether it has an IPv4 address, or an IPv6 address that is not link-local (`fe80::/10` of RFC 4291).
    pub has_address: bool,
    /// Whether it keeps VLANs apart (`IFLA_BR_VLAN_FILTERING` of `linux/if_link.h`).
    pub vlan_filtering: bool,
}

/// An interface that is no bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it may be a workload's alone: its kind is one of those that a [port's](Port::may_be_workload) must be.
    pub may_be_workload: bool,
}

/// The route of the node to an address, as the kernel answers `RTM_GETROUTE` (rtnetlink(7)). The answer follows the
/// rules of policy routing for packets of the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// An interface that is no bridge, without a gateway.
    Interface(Interface),
    /// A bridge, without a gateway.
    Bridge(String),
    /// The node itself: the address is its own.
    Local,
    /// A gateway, or nothing (unreachable, blackhole, prohibit, no route): no interface of the node leads straight to
    /// it.
    Elsewhere,
}

/// The places, or why they are not known.
pub type Listed = Result<Places, String>;

/// Lists the places once, with the routes to these endpoints.
pub async fn list(endpoints: &BTreeSet<IpAddr>) -> Listed {
    let kernel = Kernel::open()?;
    let mut state = State::default();
    refresh(&mut state, &kernel, Changes::everything(), endpoints).await?;
    let mut lister = Lister::default();
    lister.list().await;
    let mut places = state.places();
    lister.write(&mut places);
    Ok(places)
}

/// Asks once where the routes to these endpoints lead. Of bridges and their ports it tells nothing.
pub async fn routes(endpoints: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, Route>, String> {
    let kernel = Kernel::open()?;
    let mut state = State::default();
    refresh(&mut state, &kernel, Changes::default(), endpoints).await?;
    Ok(state.places().routes)
}

/// Keeps the places known, for ever, with the routes to the endpoints that there are at the time. Receivers of `known`
/// are woken when it is another value.
pub async fn follow(
    mut endpoints: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    known: watch::Sender<Listed>,
) {
    loop {
        let mut was_listed = false;
        let Err(error) = listen(&mut endpoints, &known, &mut was_listed).await;
        if !was_listed {
            known.send_if_modified(|last| {
                let is_other = last.as_ref().err() != Some(&error);
                *last = Err(error);
                is_other
            });
        }
        sleep(AGAIN).await;
    }
}

/// Lists the places now, and refreshes them whenever the kernel tells of a change, until that fails.
async fn listen(
    endpoints: &mut watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    known: &watch::Sender<Listed>,
    was_listed: &mut bool,
) -> Result<Infallible, String> {
    // Before the first listing: a change after it is told.
    let mut notices = Notices::open()?;
    let kernel = Kernel::open()?;
    let mut state = State::default();
    let mut changes = Changes::everything();
    let mut next_listing = Instant::now();
    let mut lister = Lister::default();
    notices.gather_during(lister.list()).await?;
    let mut ticks = interval(FLOWTABLES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if changes.are_everything() {
            next_listing = Instant::now() + REFRESH;
        }
        let wanted = Arc::clone(&endpoints.borrow_and_update());
        let refreshed = refresh(&mut state, &kernel, changes, &wanted);
        let touched = notices.gather_during(refreshed).await??;
        *was_listed = true;
        known.send_if_modified(|listed| match listed {
            Ok(places) => {
                let are_others = state.write(places, &touched);
                lister.write(places) || are_others
            }
            Err(_) => {
                let mut places = state.places();
                lister.write(&mut places);
                *listed = Ok(places);
                true
            }
        });
        changes = loop {
            tokio::select! {
                received = notices.receive() => {
                    received?;
                    notices.gather_during(sleep(SETTLE)).await?;
                    break notices.take();
                }
                Ok(()) = endpoints.changed() => break Changes::default(),
                () = sleep_until(next_listing) => break Changes::everything(),
                _ = ticks.tick() => {}
            }
            // Nothing of the rest is asked anew for that.
            notices.gather_during(lister.list()).await?;
            known.send_if_modified(|listed| match listed {
                Ok(places) => lister.write(places),
                Err(_) => false,
            });
        };
    }
}

async fn refresh(
    state: &mut State,
    kernel: &Kernel,
    changes: Changes,
    endpoints: &BTreeSet<IpAddr>,
) -> Result<Touched, String> {
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    let patience = PATIENCE + PATIENCE_EACH.saturating_mul(count);
    let refreshed = state.refresh(kernel, &changes, endpoints);
    timeout(patience, refreshed)
        .await
        .map_err(|_| format!("no answer within {patience:?}"))?
}
