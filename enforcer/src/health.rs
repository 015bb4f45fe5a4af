//! What the node says of itself: what is wrong and since when, and what is counted. Many write into it and many watch; it
//! asks nobody and decides nothing.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use sallyport_policy::octets;
use sallyport_proto::wire;
use tokio::sync::watch;
use wire::trouble::Kind;

use crate::judged::{Unjudged, Workload};

/// What is wrong on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Why, in words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// How the node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What is wrong, one of a kind.
    pub troubles: BTreeMap<Kind, Trouble>,
    /// The workloads whose traffic no policy judges.
    pub unjudged: Arc<Unjudged>,
    /// Since when there is a session, or there is none: the latter is a trouble.
    pub session_since: Option<Timestamp>,
    /// How often what others did to the table was mended.
    pub repairs: u64,
    /// How many updates were refused.
    pub refusals: u64,
    /// How often the journal could not be written.
    pub journal_errors: u64,
    /// How many damaged journals were moved aside since the start.
    pub quarantines: u64,
    /// How often a sysctl of bridges was set, at the start and since.
    pub sysctls_set: u64,
    /// How many updates were applied...
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
    /// Something is wrong. Since when stays, while it goes on being wrong.
    pub fn begins(&self, kind: Kind, reason: impl Into<String>) {
        let reason = reason.into();
        self.0.send_modify(|state| {
            let trouble = state.troubles.entry(kind).or_insert_with(|| Trouble {
                reason: String::new(),
                since: Timestamp::now(),
            });
            trouble.reason = reason;
        });
    }

    /// It is not wrong any more.
    pub fn ends(&self, kind: Kind) {
        self.0
            .send_if_modified(|state| state.troubles.remove(&kind).is_some());
    }

    /// It happened, and is over: when it did the last time is what counts.
    pub fn happened(&self, kind: Kind, reason: impl Into<String>) {
        self.ends(kind);
        self.begins(kind, reason);
    }

    /// Counts something.
    pub fn count(&self, what: impl FnOnce(&mut State)) {
        self.0.send_modify(what);
    }

    /// What is so now, and what comes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }
}

impl State {
    /// What the control plane is told.
    pub fn report(&self) -> wire::Health {
        let now = Timestamp::now();
        let troubles = self.troubles.iter().map(|(&kind, trouble)| {
            let since = now.duration_since(trouble.since);
            wire::Trouble {
                kind: kind.into(),
                reason: trouble.reason.clone(),
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
            troubles: troubles.collect(),
            repairs: self.repairs,
            unjudged: unjudged.collect(),
            unjudged_more: self.unjudged.more(),
        }
    }

    /// What the control plane is told as a session begins: all but that there is none.
    pub fn report_to_begin_with(&self) -> wire::Health {
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
    fn since_when_stays_while_it_is_wrong() {
        let health = Health::default();
        health.begins(Kind::Journal, "disk full");
        let first = health.watch().borrow().troubles[&Kind::Journal].clone();
        health.begins(Kind::Journal, "disk still full");
        let second = health.watch().borrow().troubles[&Kind::Journal].clone();
        assert_eq!(first.since, second.since);
        assert_eq!(second.reason, "disk still full");
        health.ends(Kind::Journal);
        assert!(health.watch().borrow().report().troubles.is_empty());
    }
}
