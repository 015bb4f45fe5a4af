//! The kernel's answers so far, by index and address, and how changes make them anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use sallyport_nft::netlink::Flowtables;

use super::{
    Bridge, Bypass, Interface, Places, Port, Route,
    changes::Changes,
    kernel::{Answer, Kernel, Kind, Link, Way},
};

/// So many links are asked for one by one. Where it is more, all are listed.
const FEW: usize = 8;

/// The parts that were asked for anew.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Everything, or the name or the kind of a link that routes may lead to.
    everything: bool,
    links: bool,
    routes: BTreeSet<IpAddr>,
}

/// The answers of the kernel.
#[derive(Default)]
pub(super) struct State {
    links: BTreeMap<u32, Link>,
    /// The indexes of the links with an address that is not link-local.
    addressed: BTreeSet<u32>,
    answers: BTreeMap<IpAddr, Answer>,
}

impl State {
    /// Asks anew what the changes may have made different, and what was not asked of the endpoints yet. Links come
    /// first: the kernel answers for them under its lock (`rtnl_lock`), when a change that was told of is complete.
    pub(super) async fn refresh(
        &mut self,
        kernel: &Kernel,
        changes: &Changes,
        endpoints: &BTreeSet<IpAddr>,
    ) -> Result<Touched, String> {
        let mut touched = Touched::default();
        if changes.are_everything() {
            touched.everything = true;
            self.links = kernel.links().await?;
            self.addressed = kernel.addressed().await?;
            self.answers = kernel.routes(endpoints.clone()).await?;
        } else {
            let moved = self.refresh_links(kernel, changes, &mut touched).await?;
            let mut readdressed = changes.readdressed.iter();
            if readdressed.any(|index| self.bridge(*index).is_some()) {
                self.addressed = kernel.addressed().await?;
            }
            let left_out = self
                .answers
                .extract_if(.., |address, _| !endpoints.contains(address));
            touched.routes.extend(left_out.map(|(address, _)| address));
            let doubted = self.doubted(changes, &moved, endpoints);
            touched.routes.extend(&doubted);
            self.answers.extend(kernel.routes(doubted).await?);
        }
        // A link may have come after the links were asked for.
        let links = self.answers.values().filter_map(|answer| answer.link);
        let unknown: BTreeSet<_> = links
            .filter(|link| !self.links.contains_key(link))
            .collect();
        touched.everything |= !unknown.is_empty();
        if unknown.len() > FEW {
            self.links = kernel.links().await?;
        } else {
            for index in unknown {
                let link = kernel.link(index).await?;
                self.links.extend(link.map(|link| (index, link)));
            }
        }
        Ok(touched)
    }

    /// Returns the links whose routes may be others.
    async fn refresh_links(
        &mut self,
        kernel: &Kernel,
        changes: &Changes,
        touched: &mut Touched,
    ) -> Result<BTreeSet<u32>, String> {
        let mut moved = BTreeSet::new();
        for (&index, &was_down) in &changes.links {
            touched.links = true;
            let link = kernel.link(index).await?;
            let routed = |link: &Link| (link.controller, link.is_up, link.has_carrier);
            let before = self.links.get(&index);
            if was_down || before.map(routed) != link.as_ref().map(routed) {
                moved.insert(index);
            }
            let is_another = |link: &Link| {
                before
                    .is_some_and(|before| (&before.name, &before.kind) != (&link.name, &link.kind))
            };
            touched.everything |= link.as_ref().is_some_and(is_another);
            match link {
                Some(link) => drop(self.links.insert(index, link)),
                None => drop(self.links.remove(&index)),
            }
        }
        Ok(moved)
    }

    /// The endpoints whose routes may be others.
    fn doubted(
        &self,
        changes: &Changes,
        moved: &BTreeSet<u32>,
        endpoints: &BTreeSet<IpAddr>,
    ) -> BTreeSet<IpAddr> {
        if changes.rules {
            return endpoints.clone();
        }
        let was_down = changes.links.values().any(|was_down| *was_down);
        let is_doubted = |answer: &Answer| {
            let link = answer.link.as_ref();
            let source = answer.source.as_ref();
            // The kernel says of its own addresses that they are at the loopback, wherever they are.
            was_down && answer.way == Way::Local
                || link.is_some_and(|link| moved.contains(link) || changes.bereft.contains(link))
                || source.is_some_and(|source| changes.lost.contains(source))
        };
        let mut doubted: BTreeSet<IpAddr> = endpoints
            .iter()
            .filter(|address| self.answers.get(address).is_none_or(is_doubted))
            .copied()
            .collect();
        for network in &changes.destinations {
            doubted.extend(endpoints.range(network.network()..=network.broadcast()));
        }
        doubted
    }

    /// Has the kernel answered that there is a link.
    #[cfg(test)]
    pub(super) fn insert(&mut self, index: u32, link: Link) {
        self.links.insert(index, link);
    }

    fn bridge(&self, index: u32) -> Option<&Link> {
        let link = self.links.get(&index);
        link.filter(|link| matches!(link.kind, Kind::Bridge { .. }))
    }

    /// Makes these the places, where something was asked anew. Returns whether they are others than before.
    pub(super) fn write(&self, places: &mut Places, touched: &Touched) -> bool {
        if touched.everything {
            let mut now = self.places();
            now.flowtables = places.flowtables.clone();
            let are_others = *places != now;
            *places = now;
            return are_others;
        }
        let mut are_others = false;
        if touched.links {
            let (ports, bridges) = self.ports_and_bridges();
            let bypasses = self.bypasses();
            are_others =
                (&ports, &bridges, &bypasses) != (&places.ports, &places.bridges, &places.bypasses);
            (places.ports, places.bridges, places.bypasses) = (ports, bridges, bypasses);
        }
        for address in &touched.routes {
            let now = self.answers.get(address).map(|answer| self.route(answer));
            are_others |= places.routes.get(address) != now.as_ref();
            match now {
                Some(now) => drop(places.routes.insert(*address, now)),
                None => drop(places.routes.remove(address)),
            }
        }
        are_others
    }

    /// The places, by name, without flowtables.
    pub(super) fn places(&self) -> Places {
        let (ports, bridges) = self.ports_and_bridges();
        let routes = self.answers.iter();
        let routes = routes.map(|(address, answer)| (*address, self.route(answer)));
        Places {
            ports,
            bridges,
            routes: routes.collect(),
            bypasses: self.bypasses(),
            flowtables: Flowtables::default(),
        }
    }

    /// The links whose packets pass the forward hook by.
    fn bypasses(&self) -> BTreeMap<String, Bypass> {
        let kind = |index| self.links.get(&index).map(|link| &link.kind);
        let bypass = |link: &Link| match (&link.kind, link.controller.and_then(kind)) {
            // The datapath has taken each frame that comes in by the port.
            (_, Some(Kind::Bypass(Bypass::OpenVswitch))) => Some(Bypass::OpenVswitchPort),
            (Kind::Bypass(bypass), _) => Some(*bypass),
            _ => None,
        };
        let links = self.links.values();
        let bypasses = links.filter_map(|link| Some((link.name.clone(), bypass(link)?)));
        bypasses.collect()
    }

    fn ports_and_bridges(&self) -> (BTreeMap<String, Port>, BTreeMap<String, Bridge>) {
        let (mut ports, mut bridges) = (BTreeMap::new(), BTreeMap::new());
        for (index, link) in &self.links {
            if let Some(bridge) = link.controller.and_then(|index| self.bridge(index)) {
                let port = Port {
                    bridge: bridge.name.clone(),
                    may_be_workload: link.kind == Kind::Workload,
                };
                ports.insert(link.name.clone(), port);
            }
            if let Kind::Bridge { vlan_filtering } = link.kind {
                let bridge = Bridge {
                    has_address: self.addressed.contains(index),
                    vlan_filtering,
                };
                bridges.insert(link.name.clone(), bridge);
            }
        }
        (ports, bridges)
    }

    fn route(&self, answer: &Answer) -> Route {
        let link = answer.link.and_then(|index| self.links.get(&index));
        match (answer.way, link) {
            (Way::Local, _) => Route::Local,
            (Way::Straight, Some(link)) if matches!(link.kind, Kind::Bridge { .. }) => {
                Route::Bridge(link.name.clone())
            }
            (Way::Straight, Some(link)) => Route::Interface(Interface {
                name: link.name.clone(),
                may_be_workload: link.kind == Kind::Workload,
            }),
            // A link that is unknown here went a moment ago.
            (Way::Straight, None) | (Way::Gateway | Way::Nowhere, _) => Route::Elsewhere,
        }
    }
}
