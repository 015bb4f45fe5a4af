//! Bridges whose traffic the table does not see: found before the node enforces and while it does, said in its health
//! and its log, and set right where the operator allows it. It decides nothing about policy.
//!
//! Frames from one port of a bridge to another meet the forward hook only where br_netfilter is loaded and asked for
//! it: by a sysctl of the network namespace for each family, or by an attribute of the bridge (`br_nf_pre_routing` of
//! the kernel's `net/bridge/br_netfilter_hooks.c`). A frame that comes in with a VLAN tag needs one more sysctl. A
//! frame that `br_nf_pre_routing` did not show is not shown later either (`br_nf_forward_ip` looks for what it left),
//! though a bridge that filters VLANs took the tag off meanwhile (`br_handle_vlan` comes before the bridge's forward
//! hook). So such bridges need that sysctl. The kernel tells of links by itself. Of sysctls procfs tells no change, so
//! that they are read again and again while there is a bridge.

mod links;
mod sysctls;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use sallyport_proto::wire::trouble::Kind;
use tokio::{sync::watch, time::sleep};
use tracing::{error, info, warn};

use self::{
    links::{Bridge, Listed},
    sysctls::{Call, Sysctls, Value},
};
use crate::health::Health;

/// The interval between reads of the sysctls.
const EVERY: Duration = Duration::from_millis(250);

/// The shortest time between two log lines about sysctls that were set.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// A bridge with fewer ports forwards nothing.
pub(crate) const FORWARDS: usize = 2;

/// The number of bridges that a reason names.
const NAMED: usize = 5;

/// The operator's rules for the node's bridges.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The bridges without workloads, by name.
    pub ignored: Vec<String>,
    /// Whether the sysctls may be set.
    pub manage: bool,
}

/// Why traffic is not judged, or may not be. It names the bridges, the sysctls with their values, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Traffic between the ports of some bridges does not meet the forward hook.
    #[error("{0}")]
    Unjudged(Unjudged),
    /// The kernel does not say which bridges there are, and the sysctls are not all 1.
    #[error(
        "cannot check whether the traffic of a bridge meets no policy: the network interfaces cannot be listed ({0})"
    )]
    Unknown(String),
    /// The interfaces of workloads are not guarded as they should be.
    #[error("frames and addresses that bypass policy may pass: {0}")]
    Unguarded(String),
}

/// The traffic that is not judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unjudged {
    open: Vec<Open>,
    /// Why the sysctls could not be set, if they were to be.
    refused: Option<String>,
    managed: bool,
}

/// Traffic that is not judged because of one sysctl.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    call: Call,
    value: Value,
    bridges: Vec<Bridge>,
}

/// The node's bridges, and what is done about them.
#[derive(Debug)]
pub struct Bridges {
    rules: Rules,
    sysctls: Sysctls,
    /// Whether a bridge with workloads filtered VLANs when they were last listed; `None` before that.
    filters_vlans: Option<bool>,
    /// The number of times that a sysctl was set.
    set: u64,
    /// When that was last said, and how often one had been set by then.
    logged: Option<Instant>,
    reported: u64,
}

impl Bridges {
    /// The bridges of the network namespace that this process is in.
    pub fn new(rules: Rules) -> Bridges {
        Bridges::of(rules, sysctls::DIRECTORY.into())
    }

    fn of(rules: Rules, directory: PathBuf) -> Bridges {
        Bridges {
            rules,
            sysctls: Sysctls::new(directory),
            filters_vlans: None,
            set: 0,
            logged: None,
            reported: 0,
        }
    }

    /// Checks once that all bridged traffic meets the forward hook. Sets the sysctls before, if that is allowed.
    pub async fn check(&mut self) -> Result<(), Problem> {
        let listed = links::list().await;
        self.look(&listed)
    }

    /// Checks the bridges for ever, and reports in the node's health when traffic is not judged. `unguarded` tells
    /// why the interfaces of workloads are not guarded, while they are not.
    pub async fn watch(self, health: Health, unguarded: watch::Receiver<Option<String>>) {
        let (known, listed) = watch::channel(links::list().await);
        tokio::select! {
            () = links::follow(known) => {}
            () = self.check_on_change(listed, unguarded, health) => {}
        }
    }

    async fn check_on_change(
        mut self,
        mut listed: watch::Receiver<Listed>,
        mut unguarded: watch::Receiver<Option<String>>,
        health: Health,
    ) {
        let (mut reporter, mut counted) = (Reporter::new(health), 0);
        loop {
            let found = self.look(&listed.borrow_and_update());
            if self.set != counted {
                counted = self.set;
                reporter.health.count(|state| state.sysctls_set = counted);
            }
            // Without a bridge the sysctls do not matter.
            let matters = match &*listed.borrow() {
                Ok(bridges) => !self.concerned(bridges).is_empty(),
                Err(_) => true,
            };
            let why = unguarded.borrow_and_update().clone();
            reporter.report(found.err().or(why.map(Problem::Unguarded)));
            tokio::select! {
                () = sleep(EVERY), if matters => {}
                Ok(()) = listed.changed() => {}
                Ok(()) = unguarded.changed() => {}
            }
        }
    }

    /// The bridges with a port that are not ignored.
    fn concerned<'a>(&self, bridges: &'a [Bridge]) -> Vec<&'a Bridge> {
        let is_ignored = |bridge: &Bridge| self.rules.ignored.contains(&bridge.name);
        let concerned = bridges.iter();
        concerned
            .filter(|bridge| bridge.ports > 0 && !is_ignored(bridge))
            .collect()
    }

    /// Looks whether all traffic is judged. Sets the sysctls before, if that is allowed.
    fn look(&mut self, listed: &Listed) -> Result<(), Problem> {
        let bridges = match listed {
            Ok(bridges) => {
                let bridges = self.concerned(bridges);
                self.filters_vlans = Some(bridges.iter().any(|bridge| bridge.vlan_filtering));
                bridges
            }
            Err(error) => {
                let matters = |call| call != Call::VlanTagged || self.filters_vlans != Some(false);
                let is_on = |call| !matters(call) || self.sysctls.read(call) == Value::On;
                return match Call::ALL.into_iter().all(is_on) {
                    // Then it does not matter which bridges there are.
                    true => Ok(()),
                    false => Err(Problem::Unknown(error.clone())),
                };
            }
        };
        let (mut all_open, mut refused) = (Vec::new(), None);
        for call in Call::ALL.into_iter().filter(|_| !bridges.is_empty()) {
            let mut value = self.sysctls.read(call);
            let passes_by = |value: &Value, bridge: &Bridge| !bridge.is_judged(call, value);
            // From the first port on: nothing is to pass when the second one joins.
            let needs = bridges.iter().find(|bridge| passes_by(&value, bridge));
            if let Some(bridge) = needs.filter(|_| self.rules.manage) {
                match self.sysctls.set(call) {
                    Ok(()) => {
                        self.set += 1;
                        self.log_set(call, &value, &bridge.name);
                        value = self.sysctls.read(call);
                    }
                    Err(error) => refused = Some(error),
                }
            }
            let open = bridges
                .iter()
                .filter(|bridge| bridge.ports >= FORWARDS && passes_by(&value, bridge));
            let open = Open {
                call,
                bridges: open.copied().cloned().collect(),
                value,
            };
            all_open.extend(Some(open).filter(|open| !open.bridges.is_empty()));
        }
        if all_open.is_empty() {
            return Ok(());
        }
        Err(Problem::Unjudged(Unjudged {
            open: all_open,
            refused,
            managed: self.rules.manage,
        }))
    }

    /// Logs that a sysctl was set, unless that was logged a moment ago.
    fn log_set(&mut self, call: Call, was: &Value, bridge: &str) {
        if self
            .logged
            .is_some_and(|logged| logged.elapsed() < LOG_EVERY)
        {
            return;
        }
        self.logged = Some(Instant::now());
        warn!(
            bridge,
            times = self.set - std::mem::replace(&mut self.reported, self.set),
            "set {call} to 1, since it {was} and traffic of the bridge would bypass policy; the process that \
             changed it is unknown"
        );
    }
}

/// Reports the condition of the bridges to health and log.
struct Reporter {
    health: Health,
    condition: Option<(Problem, Instant)>,
}

impl Reporter {
    fn new(health: Health) -> Reporter {
        Reporter {
            health,
            condition: None,
        }
    }

    /// Reports a problem, or that there is none, unless that was reported last.
    fn report(&mut self, problem: Option<Problem>) {
        match (problem, &self.condition) {
            (Some(problem), Some((last, _))) if problem == *last => {}
            (Some(problem), last) => {
                let since = last.as_ref().map_or_else(Instant::now, |(_, since)| *since);
                self.health.set(Kind::NotJudged, problem.to_string());
                error!(%problem, "traffic bypasses policy on this node, or may");
                self.condition = Some((problem, since));
            }
            (None, Some((_, since))) => {
                self.health.clear(Kind::NotJudged);
                info!(not_judged_for = ?since.elapsed(), "no traffic bypasses policy on this node any more");
                self.condition = None;
            }
            (None, None) => {}
        }
    }
}

impl fmt::Display for Unjudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("traffic between the ports of a bridge meets no policy: ")?;
        for (n, open) in self.open.iter().enumerate() {
            let Open {
                call,
                value,
                bridges,
            } = open;
            let named = bridges.iter().take(NAMED);
            let named: Vec<_> = named
                .map(|bridge| format!("{} ({} ports)", bridge.name, bridge.ports))
                .collect();
            let more = match bridges.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let then = if n == 0 { "" } else { "; " };
            let (traffic, named) = (call.traffic(), named.join(", "));
            write!(f, "{then}{traffic} of {named}{more}, since {call} {value}")?;
        }
        if let Some(refused) = &self.refused {
            write!(f, ", and the sysctl cannot be set: {refused}")?;
        }
        let values = self.open.iter();
        let is_missing = values.clone().any(|open| open.value == Value::Missing);
        let modprobe = if is_missing {
            "`modprobe br_netfilter` and "
        } else {
            ""
        };
        let settings: Vec<_> = values
            .clone()
            .map(|open| format!("{}=1", open.call))
            .collect();
        write!(f, ". Remedy: {modprobe}`sysctl -w {}`", settings.join(" "))?;
        if !self.managed {
            f.write_str(", or start the enforcer with --manage-sysctls")?;
        }
        let mut names = values.flat_map(|open| &open.bridges);
        let first = names.next().map_or("NAME", |bridge| &bridge.name);
        let name = match names.all(|bridge| bridge.name == first) {
            true => first,
            false => "NAME",
        };
        write!(
            f,
            "; for a bridge without workloads say --ignore-bridge {name}"
        )
    }
}
