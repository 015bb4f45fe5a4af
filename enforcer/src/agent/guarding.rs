//! Keeps the guard of the workloads' interfaces at what the node's policy and the node's links ask for: the table of
//! family bridge, and the interfaces that the other table knows. `guard` says what that is.
//!
//! The table `inet sallyport` judges the addresses beside their own that workloads may use (`NodePolicy::sources`). So
//! the guard lets pass those that it judges: the guard [narrows](Guarding::narrow) before an update by which some go,
//! and widens behind one by which some come.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_nft::netlink::{self, Netlink};
use sallyport_policy::NodePolicy;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};
use tracing::{error, info};

use super::{Agent, bridge::BridgeTable};
use crate::{
    guard::{self, Rules},
    health::Health,
    journal::Journal,
    judged::Judging,
    places::{self, Places},
    table::render::Options,
};

/// The time before a failed part is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// Why the guard of the workloads' interfaces is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Unguarded {
    /// The kernel refused the table of family bridge.
    #[error("cannot write the table bridge sallyport ({0})")]
    Bridges(netlink::Error),
    /// The kernel does not say where the routes to workloads lead.
    #[error("cannot look up the routes to workloads ({0})")]
    Routes(String),
    /// The kernel refused the interfaces that are no port of a bridge.
    #[error("cannot write the interfaces of workloads into the table inet sallyport ({0})")]
    Interfaces(netlink::Error),
}

impl Unguarded {
    /// Whether somebody else kept changing the ruleset at the same time: it can be tried again.
    pub fn is_outdated(&self) -> bool {
        match self {
            Unguarded::Bridges(error) | Unguarded::Interfaces(error) => error.is_outdated(),
            Unguarded::Routes(_) => false,
        }
    }
}

/// The table of family bridge, and what it is made from.
#[derive(Debug)]
pub(super) struct Guarding {
    table: BridgeTable,
    options: Options,
    rules: Rules,
    places: Places,
    /// Says which workloads are judged by neither table.
    judging: Judging,
    /// The runtime on which the agent's thread asks for the routes to new endpoints.
    runtime: Runtime,
    /// The policy that the table was last made for.
    policy: NodePolicy,
    /// Whether the table still judges sources that the policy here has not any more: an update is under way.
    is_narrowed: bool,
    /// When to try again.
    pub(super) again: Option<Instant>,
    /// The endpoints whose places are to be known.
    guarded_addresses: watch::Sender<Arc<BTreeSet<IpAddr>>>,
    /// Why the guard is not what it should be, if it is not.
    problem: watch::Sender<Option<String>>,
}

impl Guarding {
    pub(super) fn new(
        kernel: &Netlink,
        is_protected: bool,
        options: Options,
        rules: Rules,
        policy: &NodePolicy,
        health: Health,
    ) -> Guarding {
        Guarding {
            table: BridgeTable::beside(kernel, is_protected),
            options,
            judging: Judging::new(rules.ignored.clone(), health),
            rules,
            places: Places::default(),
            runtime: Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be made"),
            policy: policy.clone(),
            is_narrowed: false,
            again: None,
            guarded_addresses: watch::Sender::new(Arc::default()),
            problem: watch::Sender::new(None),
        }
    }

    pub(super) fn guarded_addresses(&self) -> watch::Receiver<Arc<BTreeSet<IpAddr>>> {
        self.guarded_addresses.subscribe()
    }

    pub(super) fn problem(&self) -> watch::Receiver<Option<String>> {
        self.problem.subscribe()
    }

    /// The links of the node, or its routes, are others.
    pub(super) fn set_places(
        &mut self,
        mut places: Places,
        agent: &mut Agent<Netlink, Journal>,
    ) -> Result<(), Unguarded> {
        // The places may be older than the newest endpoints, whose routes are known here.
        let addresses = Arc::clone(&self.guarded_addresses.borrow());
        for (address, route) in std::mem::take(&mut self.places.routes) {
            if addresses.contains(&address) {
                places.routes.entry(address).or_insert(route);
            }
        }
        self.places = places;
        self.set(agent)
    }

    /// Looks up the routes to new endpoints. Until a route is known its endpoint may be on any bridge.
    fn look_up_routes(&mut self) -> Result<(), String> {
        let addresses = guard::addresses(&self.policy);
        let is_new = |address: &&IpAddr| !self.places.routes.contains_key(*address);
        let new: BTreeSet<IpAddr> = addresses.iter().filter(is_new).copied().collect();
        self.guarded_addresses.send_if_modified(|before| {
            let is_other = **before != addresses;
            if is_other {
                *before = Arc::new(addresses);
            }
            is_other
        });
        if !new.is_empty() {
            let routes = self.runtime.block_on(places::routes(&new))?;
            self.places.routes.extend(routes);
        }
        Ok(())
    }

    /// The node's policy will be another: has no workload use what it may not use then. If that fails it must not be
    /// another.
    pub(super) fn narrow(
        &mut self,
        next: &NodePolicy,
        agent: &mut Agent<Netlink, Journal>,
    ) -> Result<(), Unguarded> {
        let Some(sources) = guard::common(&self.policy, next) else {
            return Ok(());
        };
        self.policy.set_sources(Arc::new(sources));
        self.is_narrowed = true;
        self.set(agent)?;
        // Packets that passed the guard are judged as they were.
        agent.grace();
        Ok(())
    }

    /// The node's policy may be another.
    pub(super) fn set_policy(&mut self, agent: &mut Agent<Netlink, Journal>) {
        let policy = &agent.installed().policy;
        let is_same = self.policy.endpoints().ptr_eq(policy.endpoints())
            && Arc::ptr_eq(self.policy.workload_ranges(), policy.workload_ranges())
            && Arc::ptr_eq(self.policy.sources(), policy.sources());
        if is_same {
            return;
        }
        self.policy = policy.clone();
        self.is_narrowed = false;
        let _ = self.set(agent);
    }

    /// Writes the guard again, if that failed.
    pub(super) fn try_again(&mut self, agent: &mut Agent<Netlink, Journal>) {
        let _ = self.set(agent);
    }

    /// Reads the table, since others may have changed it. Returns whether they had.
    pub(super) fn restore(&mut self, agent: &mut Agent<Netlink, Journal>) -> bool {
        let restored = self.table.restore();
        let repaired = *restored.as_ref().unwrap_or(&false);
        if self.again.is_some() {
            // The failure may concern another part of the guard.
            return self.set(agent).is_ok() && repaired;
        }
        let restored = restored.map(drop).map_err(Unguarded::Bridges);
        self.note(restored).is_ok() && repaired
    }

    fn set(&mut self, agent: &mut Agent<Netlink, Journal>) -> Result<(), Unguarded> {
        let looked_up = self.look_up_routes();
        self.judging.update(&self.policy, &self.places);
        let mut ports = guard::ports(&self.policy, &self.options, &self.rules, &self.places);
        if looked_up.is_err() {
            // While it is not known where all routes lead, no interface is let go of.
            ports.keep(agent.ports(), &guard::allowed(&self.policy));
        }
        // Policy judges what the table of family bridge lets pass, before it does and for as long.
        let judged = std::mem::take(&mut ports.inside);
        ports.inside = &judged | &agent.ports().inside;
        let mut result = agent.set_ports(&ports).map_err(Unguarded::Interfaces);
        let ground = guard::ground(&self.policy, &self.options, &self.rules, &self.places);
        let table = self.table.set(ground).map_err(Unguarded::Bridges);
        if table.is_ok() && !self.is_narrowed {
            ports.inside = judged;
            result = result.and(agent.set_ports(&ports).map_err(Unguarded::Interfaces));
        }
        self.note(looked_up.map_err(Unguarded::Routes).and(result).and(table))
    }

    fn note(&mut self, result: Result<(), Unguarded>) -> Result<(), Unguarded> {
        let (problem, again) = match &result {
            Ok(()) => (None, None),
            Err(error) => (Some(error.to_string()), Some(Instant::now() + AGAIN)),
        };
        self.again = again;
        self.problem.send_if_modified(|before| {
            let is_other = *before != problem;
            match &problem {
                Some(error) if is_other => {
                    error!(%error, "cannot guard the interfaces of workloads against spoofed addresses and frames")
                }
                None if is_other => info!("the interfaces of workloads are guarded again"),
                _ => {}
            }
            *before = problem;
            is_other
        });
        result
    }
}
