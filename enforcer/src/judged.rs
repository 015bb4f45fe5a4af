//! The workloads of the node whose traffic no policy judges, as far as the kernel lets one see it: found from the
//! node's policy and its places, said in the node's health and its log. It asks nobody, and changes nothing.
//!
//! A NetworkPolicy is enforced by the forward hook. Beside that hook go: traffic of the node's own addresses, which
//! meets the hooks input and output; traffic of interfaces of some kinds; and packets that a flowtable takes.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use jiff::Timestamp;
use sallyport_policy::{Endpoint, NodePolicy};
use sallyport_proto::wire::unjudged_workload::Reason;
use tracing::{info, warn};

use crate::{
    health::Health,
    places::{Bypass, Places, Route},
};

/// The most addresses that are named, to the control plane and in the log; the rest is counted.
pub const NAMED: usize = 20;

/// Why no policy judges the traffic of a workload's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The address is the node's own.
    OwnAddress,
    /// The workload is behind an interface whose packets pass the forward hook by.
    Device(String, Bypass),
    /// A flowtable has the workload's interface, or a port of its bridge.
    Flowtable {
        /// The interface.
        device: String,
        /// The flowtable, as `FAMILY TABLE NAME`.
        flowtable: String,
    },
    /// No route leads straight to the address, and there is no bridge where it might be all the same.
    NoRoute,
}

impl Why {
    /// The same without words.
    pub fn reason(&self) -> Reason {
        match self {
            Why::OwnAddress => Reason::OwnAddress,
            Why::Device(..) => Reason::Device,
            Why::Flowtable { .. } => Reason::Flowtable,
            Why::NoRoute => Reason::NoRoute,
        }
    }
}

impl fmt::Display for Why {
    /// Why, and what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::OwnAddress => f.write_str(
                "the address is the node's own, so its traffic meets the hooks input and output, not forward. \
                 Remedy: give the workload a network namespace and an address of its own, or take the address out \
                 of its object",
            ),
            Why::Device(name, bypass) => write!(
                f,
                "the workload is behind {name}, {bypass}, whose packets bypass the forward hook. Remedy: attach the \
                 workload by a veth or a tap, on a Linux bridge or with a route from the node"
            ),
            Why::Flowtable { device, flowtable } => write!(
                f,
                "the flowtable {flowtable} takes packets of established connections from {device} past the forward hook. \
                 Remedy: take {device} out of the flowtable"
            ),
            Why::NoRoute => f.write_str(
                "no route of the node leads straight to the address, and the node has no bridge without an address: \
                 the workload's interface may not exist yet, or the workload is behind a device of another network \
                 namespace, whose traffic this node does not see",
            ),
        }
    }
}

/// An address of a workload whose traffic no policy judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The workload, as `NAMESPACE/NAME`.
    pub name: String,
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub why: Why,
    /// Since when, as far as it was named all the time.
    pub since: Timestamp,
}

/// The addresses of workloads whose traffic no policy judges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unjudged {
    /// The first [`NAMED`] of them: in the order of reasons, and of addresses.
    pub named: Vec<Workload>,
    /// The number of addresses for each reason.
    pub counts: BTreeMap<Reason, u64>,
}

impl Unjudged {
    /// The number of addresses that are not named.
    pub fn more(&self) -> u64 {
        let all: u64 = self.counts.values().sum();
        all.saturating_sub(self.named.len() as u64)
    }

    /// The number of addresses whose traffic evades policy: those without a route are left out.
    pub fn evading(&self) -> u64 {
        let counts = self.counts.iter();
        let evading = counts.filter(|(reason, _)| **reason != Reason::NoRoute);
        evading.map(|(_, count)| count).sum()
    }
}

/// The addresses of a policy's endpoints whose traffic is not judged on a node with these places. Bridges that are
/// ignored have no workloads. An unknown place is no reason.
pub fn unjudged(
    policy: &NodePolicy,
    ignored: &[String],
    places: &Places,
    now: Timestamp,
) -> Unjudged {
    let surroundings = Surroundings::new(ignored, places);
    let mut by_reason: BTreeMap<Reason, Vec<Workload>> = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for (address, endpoint) in policy.endpoints() {
        let Some(why) = surroundings.why(address, endpoint) else {
            continue;
        };
        *counts.entry(why.reason()).or_default() += 1;
        let named = by_reason.entry(why.reason()).or_default();
        if named.len() < NAMED {
            named.push(Workload {
                name: format!("{}/{}", endpoint.namespace, endpoint.name),
                address: *address,
                why,
                since: now,
            });
        }
    }
    let mut named: Vec<Workload> = by_reason.into_values().flatten().collect();
    named.truncate(NAMED);
    Unjudged { named, counts }
}

/// The places, as they are asked of each endpoint.
struct Surroundings<'a> {
    places: &'a Places,
    /// The bridges that a flowtable has, or a port of them: the interface, and the flowtable.
    offloaded: BTreeMap<&'a str, (&'a str, &'a str)>,
    /// The bridges without an address that may have workloads.
    bare: BTreeSet<&'a str>,
}

impl<'a> Surroundings<'a> {
    fn new(ignored: &[String], places: &'a Places) -> Surroundings<'a> {
        let bare = places.bridges.iter();
        let bare = bare.filter(|(name, bridge)| !bridge.has_address && !ignored.contains(name));
        let mut offloaded = BTreeMap::new();
        if !places.flowtables.is_empty() {
            let ports = places.ports.iter();
            let ports = ports.map(|(name, port)| (&*port.bridge, &**name));
            let bridges = places.bridges.keys().map(|name| (&**name, &**name));
            for (bridge, device) in ports.chain(bridges) {
                let flowtable = places.flowtables.with(device);
                offloaded.extend(flowtable.map(|flowtable| (bridge, (device, flowtable))));
            }
        }
        Surroundings {
            places,
            offloaded,
            bare: bare.map(|(name, _)| &**name).collect(),
        }
    }

    fn why(&self, address: &IpAddr, endpoint: &Endpoint) -> Option<Why> {
        match self.places.routes.get(address) {
            Some(Route::Local) => Some(Why::OwnAddress),
            _ if !endpoint.interface.is_empty() => self.behind(&endpoint.interface),
            Some(Route::Interface(interface)) => self.behind(&interface.name),
            Some(Route::Bridge(bridge)) => self.on(bridge),
            Some(Route::Elsewhere) if self.bare.is_empty() => Some(Why::NoRoute),
            Some(Route::Elsewhere) => {
                // The address may be on any of these bridges.
                let all: Option<Vec<Why>> =
                    self.bare.iter().map(|bridge| self.on(bridge)).collect();
                all?.into_iter().next()
            }
            None => None,
        }
    }

    /// Why traffic of a workload behind an interface is not judged, if so.
    fn behind(&self, interface: &str) -> Option<Why> {
        if let Some(bypass) = self.places.bypasses.get(interface) {
            return Some(Why::Device(interface.to_owned(), *bypass));
        }
        if let Some(flowtable) = self.places.flowtables.with(interface) {
            return Some(Why::Flowtable {
                device: interface.to_owned(),
                flowtable: flowtable.to_owned(),
            });
        }
        let port = self.places.ports.get(interface)?;
        // Packets of the workload to addresses outside its bridge come in by the bridge.
        let flowtable = self.places.flowtables.with(&port.bridge)?;
        Some(Why::Flowtable {
            device: port.bridge.clone(),
            flowtable: flowtable.to_owned(),
        })
    }

    /// Why traffic of a workload on a bridge is not judged, if so.
    fn on(&self, bridge: &str) -> Option<Why> {
        let (device, flowtable) = *self.offloaded.get(bridge)?;
        Some(Why::Flowtable {
            device: device.to_owned(),
            flowtable: flowtable.to_owned(),
        })
    }
}

/// Looks which workloads are not judged, and says so when they are others.
#[derive(Debug)]
pub(crate) struct Judging {
    ignored: Vec<String>,
    health: Health,
    last: Arc<Unjudged>,
}

impl Judging {
    /// One that knows of no workload yet, on a node on which these bridges are ignored.
    pub(crate) fn new(ignored: Vec<String>, health: Health) -> Judging {
        Judging {
            ignored,
            health,
            last: Arc::default(),
        }
    }

    /// The policy or the places may be others.
    pub(crate) fn update(&mut self, policy: &NodePolicy, places: &Places) {
        let mut found = unjudged(policy, &self.ignored, places, Timestamp::now());
        for workload in &mut found.named {
            let is_it = |last: &&Workload| {
                (last.address, &last.name, &last.why)
                    == (workload.address, &workload.name, &workload.why)
            };
            if let Some(last) = self.last.named.iter().find(is_it) {
                workload.since = last.since;
            }
        }
        if found == *self.last {
            return;
        }
        self.log_changes(&found);
        self.last = Arc::new(found);
        let now = Arc::clone(&self.last);
        self.health.count(|state| state.unjudged = now);
    }

    /// Logs the workloads that are new. A workload is often declared before there is a route to it. That cause is in
    /// status and metrics alone.
    fn log_changes(&self, found: &Unjudged) {
        for workload in &found.named {
            let (name, address) = (&workload.name, workload.address);
            if workload.why != Why::NoRoute && !self.last.named.contains(workload) {
                warn!(workload = name, %address, "the traffic of a workload bypasses policy: {}", workload.why);
            }
        }
        let (before, now) = (self.last.evading(), found.evading());
        match now {
            0 if before > 0 => info!(before, "no workload's traffic bypasses policy any more"),
            _ if now != before && now > found.named.len() as u64 => {
                warn!(
                    workloads = now,
                    "addresses of workloads whose traffic bypasses policy: more than the log names"
                );
            }
            _ => {}
        }
    }
}
