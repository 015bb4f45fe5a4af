//! The node's own report: its conditions and its counters. Many parts write into it and many watch it. It decides
//! nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use sallyport_policy::octets;
use sallyport_proto::wire;
use tokio::sync::watch;
use wire::trouble::Kind;

use crate::judged::{Unjudged, Workload};

/// A fault of the node, or a past event that an operator should know of. One per kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The cause, as text.
    pub reason: String,
    /// When the condition was set.
    pub since: Timestamp,
}

/// The state of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The conditions that are set, by kind.
    pub conditions: BTreeMap<Kind, Condition>,
    /// The workloads whose traffic no policy judges.
    pub unjudged: Arc<Unjudged>,
    /// The start of the session with the control plane. `None` without a session, which is a condition.
    pub session_since: Option<Timestamp>,
    /// Number of repairs after another process changed a table.
    pub repairs: u64,
    /// The updates that were refused.
    pub refusals: u64,
    /// The failed writes of the journal.
    pub journal_errors: u64,
    /// The damaged journals that were moved aside since the start.
    pub quarantines: u64,
    /// The sysctls of bridges that were set, at the start and since.
    pub sysctls_set: u64,
    /// The updates that were applied...
    pub applied: u64,
    /// ... and how long that took in all.
    pub applying: Duration,
    /// The longest of them.
    pub longest: Duration,
}

/// A node's state, for all who change it and all who watch it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<watch::Sender<State>>);

impl Health {
    /// Sets a condition. One that is set keeps its time and gets the new reason.
    pub fn set(&self, kind: Kind, reason: impl Into<String>) {
        let reason = reason.into();
        self.0.send_modify(|state| {
            let condition = state.conditions.entry(kind).or_insert_with(|| Condition {
                reason: String::new(),
                since: Timestamp::now(),
            });
            condition.reason = reason;
        });
    }

    /// Clears a condition.
    pub fn clear(&self, kind: Kind) {
        self.0
            .send_if_modified(|state| state.conditions.remove(&kind).is_some());
    }

    /// Sets a condition with the present time: it describes a past event, and the latest one counts.
    pub fn set_anew(&self, kind: Kind, reason: impl Into<String>) {
        self.clear(kind);
        self.set(kind, reason);
    }

    /// Counts something.
    pub fn count(&self, what: impl FnOnce(&mut State)) {
        self.0.send_modify(what);
    }

    /// A receiver of the present state and of each later one.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }
}

impl State {
    /// The report for the control plane.
    pub fn report(&self) -> wire::Health {
        let now = Timestamp::now();
        let conditions = self.conditions.iter().map(|(&kind, condition)| {
            let since = now.duration_since(condition.since);
            wire::Trouble {
                kind: kind.into(),
                reason: condition.reason.clone(),
                since_ms: since.as_millis().try_into().unwrap_or_default(),
            }
        });
        let unjudged = self.unjudged.named.iter().map(|workload| {
            let Workload {
                name,
                address,
                why,
                since,
            } = workload;
            let since = now.duration_since(*since);
            wire::UnjudgedWorkload {
                workload: name.clone(),
                address: octets(*address),
                reason: why.reason().into(),
                message: why.to_string(),
                since_ms: since.as_millis().try_into().unwrap_or_default(),
            }
        });
        wire::Health {
            troubles: conditions.collect(),
            repairs: self.repairs,
            unjudged: unjudged.collect(),
            unjudged_more: self.unjudged.more(),
        }
    }

    /// The report in a session's Hello: without the condition that there is no session.
    pub fn first_report(&self) -> wire::Health {
        let mut report = self.report();
        let session = i32::from(Kind::Session);
        report.troubles.retain(|trouble| trouble.kind != session);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_it_is_set() {
        let health = Health::default();
        health.set(Kind::Journal, "disk full");
        let first = health.watch().borrow().conditions[&Kind::Journal].clone();
        health.set(Kind::Journal, "disk still full");
        let second = health.watch().borrow().conditions[&Kind::Journal].clone();
        assert_eq!(first.since, second.since);
        assert_eq!(second.reason, "disk still full");
        health.clear(Kind::Journal);
        assert!(health.watch().borrow().report().troubles.is_empty());
    }
}
