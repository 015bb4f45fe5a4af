//! The enforcers that were refused a session: why, how often and when last. Bounded, and kept in memory only.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sallyport_policy::NodeName;
use sallyport_proto::wire::turned_away::Reason;

use super::rivals::Enforcer;

/// The most kinds of refusals that are remembered of one node.
const MOST: usize = 8;

/// The most names without a Node object that are remembered.
const MOST_NAMES: usize = 100;

/// A kind of enforcer that was refused a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    /// Why.
    pub reason: Reason,
    /// The words that it was refused with the last time.
    pub message: String,
    /// How many times.
    pub count: u64,
    /// The time since the last refusal.
    pub since: Duration,
    /// The enforcer of the last time; none of an earlier version.
    pub enforcer: Option<Enforcer>,
}

/// The names without a Node object under which enforcers came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strangers {
    /// How they were turned away, by name.
    pub names: BTreeMap<NodeName, TurnedAway>,
    /// How many names were forgotten.
    pub forgotten: u64,
}

/// A session that an enforcer was refused.
#[derive(Clone, Debug)]
pub(super) struct RefusedSession {
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) enforcer: Option<Enforcer>,
}

/// The refused sessions of one reason and one instance.
#[derive(Debug)]
struct Record {
    refusal: RefusedSession,
    count: u64,
    last: Instant,
}

/// The refused sessions under one node's name.
#[derive(Debug, Default)]
pub(super) struct RefusedSessions(Vec<Record>);

/// The refused sessions under names without a Node object.
#[derive(Debug, Default)]
pub(super) struct Unregistered {
    names: BTreeMap<NodeName, Record>,
    forgotten: u64,
}

impl Record {
    fn status(&self, at: Instant) -> TurnedAway {
        let refusal = self.refusal.clone();
        TurnedAway {
            reason: refusal.reason,
            message: refusal.message,
            count: self.count,
            since: at.saturating_duration_since(self.last),
            enforcer: refusal.enforcer,
        }
    }
}

impl RefusedSessions {
    /// Adds a refused session.
    pub(super) fn add(&mut self, refusal: RefusedSession, at: Instant) {
        let instance = |of: &RefusedSession| of.enforcer.map(|enforcer| enforcer.instance);
        let key = (refusal.reason, instance(&refusal));
        let same = |record: &Record| (record.refusal.reason, instance(&record.refusal)) == key;
        let before = self.0.iter().position(same);
        let count = before.map_or(0, |index| self.0.remove(index).count);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(Record {
            refusal,
            count: count + 1,
            last: at,
        });
    }

    /// The refused sessions, the latest last.
    pub(super) fn status(&self, at: Instant) -> Vec<TurnedAway> {
        self.0.iter().map(|record| record.status(at)).collect()
    }
}

impl Unregistered {
    /// An enforcer came under a name without a Node object.
    pub(super) fn add(&mut self, name: &NodeName, refusal: RefusedSession, at: Instant) {
        let before = self.names.remove(name);
        if self.names.len() == MOST_NAMES {
            let oldest = self.names.iter().min_by_key(|(_, record)| record.last);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.names.remove(&oldest);
                self.forgotten += 1;
            }
        }
        let record = Record {
            refusal,
            count: before.map_or(0, |record| record.count) + 1,
            last: at,
        };
        self.names.insert(name.clone(), record);
    }

    /// A name has a Node object from now on.
    pub(super) fn registered(&mut self, name: &NodeName) {
        self.names.remove(name);
    }

    /// The names, and how their enforcers were turned away.
    pub(super) fn status(&self, at: Instant) -> Strangers {
        let names = self.names.iter();
        Strangers {
            names: names
                .map(|(name, record)| (name.clone(), record.status(at)))
                .collect(),
            forgotten: self.forgotten,
        }
    }
}
