//! Between messages and the model, for PolicyService. A reference that is through here names an object that can be.

use std::{collections::BTreeSet, time::Duration};

use sallyport_policy::NodeName;
use sallyport_proto::{
    object::{Kind, ObjectKey},
    wire::{self, NodeStatus, ObjectRef, WatchEvent, WatchResponse, watch_event},
};
use tonic::Status;

use crate::{
    cluster::Stored,
    contests::{Contest, Contests},
    history::{Committed, Event},
    nodes::{self, UnreachablePolicy},
    transaction::{Action, Change},
    writer::Unwritable,
};

/// The kind that a number on the wire means.
pub(super) fn kind(number: i32) -> Result<Kind, String> {
    match wire::Kind::try_from(number) {
        Ok(kind) => Kind::of_wire(kind).ok_or_else(|| "kind: Required value".to_owned()),
        Err(_) => Err(format!("kind: {number} is unknown to this version")),
    }
}

/// The key that a reference means, or what is wrong with it.
pub(super) fn checked_key(reference: &ObjectRef) -> Result<ObjectKey, String> {
    let ObjectRef {
        kind: number,
        namespace,
        name,
    } = reference;
    let kind = kind(*number)?;
    if name.is_empty() {
        return Err(format!("{kind}: name: Required value"));
    }
    match (kind.is_namespaced(), namespace.is_empty()) {
        (true, true) => Err(format!("{kind} {name}: namespace: Required value")),
        (false, false) => Err(format!(
            "{kind} {name}: namespace: a {kind} has no namespace"
        )),
        _ => Ok(ObjectKey {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        }),
    }
}

/// The key that a request must have.
pub(super) fn key(reference: Option<&ObjectRef>) -> Result<ObjectKey, Status> {
    let reference = reference.ok_or_else(|| Status::invalid_argument("ref: Required value"))?;
    checked_key(reference).map_err(Status::invalid_argument)
}

impl From<&Stored> for wire::Object {
    fn from(stored: &Stored) -> Self {
        wire::Object {
            r#ref: Some((&stored.object.key).into()),
            manifest: stored.object.manifest.to_string(),
            revision: stored.revision.0,
        }
    }
}

impl From<&Change> for wire::Change {
    fn from(change: &Change) -> Self {
        use wire::change::Action as Wire;
        let action = match change.action {
            Action::Created => Wire::Created,
            Action::Configured => Wire::Configured,
            Action::Unchanged => Wire::Unchanged,
            Action::Deleted => Wire::Deleted,
        };
        wire::Change {
            r#ref: Some((&change.key).into()),
            action: action.into(),
        }
    }
}

impl From<&Committed> for wire::Transaction {
    fn from(committed: &Committed) -> Self {
        use wire::change::Action as Wire;
        let before = committed.before.as_ref();
        let before = before.map(|all| {
            all.iter()
                .map(|object| &object.key)
                .collect::<BTreeSet<_>>()
        });
        let was_there = |key: &ObjectKey| before.as_ref().map(|all| all.contains(key));
        let change = |event: &Event| {
            let action = match (event, was_there(event.key())) {
                (Event::Delete(_), _) => Wire::Deleted,
                (Event::Put(_), Some(true)) => Wire::Configured,
                (Event::Put(_), Some(false)) => Wire::Created,
                (Event::Put(_), None) => Wire::Unspecified,
            };
            wire::Change {
                r#ref: Some(event.key().into()),
                action: action.into(),
            }
        };
        wire::Transaction {
            revision: committed.revision.0,
            at_ms: committed.at_ms.unwrap_or(0),
            changes: committed.events.iter().map(change).collect(),
        }
    }
}

impl From<&Committed> for WatchResponse {
    fn from(committed: &Committed) -> Self {
        let event = |event: &Event| WatchEvent {
            event: Some(match event {
                Event::Put(stored) => watch_event::Event::Put((&**stored).into()),
                Event::Delete(key) => watch_event::Event::Delete(key.into()),
            }),
        };
        WatchResponse {
            revision: committed.revision.0,
            events: committed.events.iter().map(event).collect(),
            bookmark: false,
        }
    }
}

impl From<&nodes::RolloutStatus> for wire::Rollout {
    fn from(status: &nodes::RolloutStatus) -> Self {
        use wire::rollout::Phase as Wire;
        let phase = match status.phase {
            nodes::Phase::Revoking => Wire::Revoking,
            nodes::Phase::Draining => Wire::Draining,
            nodes::Phase::Queued => Wire::Queued,
        };
        let bypassed = |wanted: UnreachablePolicy| {
            let all = status.bypassed.iter();
            let names = all.filter(|(_, how)| **how == wanted);
            names.map(|(name, _)| name.to_string()).collect()
        };
        wire::Rollout {
            first_revision: status.first.0,
            last_revision: status.last.0,
            phase: phase.into(),
            since_ms: millis(status.since),
            waits_for: status.waits_for.iter().map(NodeName::to_string).collect(),
            skipped: bypassed(UnreachablePolicy::Skip),
            fenced: bypassed(UnreachablePolicy::Fence),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&nodes::Status> for NodeStatus {
    fn from(status: &nodes::Status) -> Self {
        use wire::node_status::State as Wire;
        let state = match status.state {
            nodes::State::Enforcing => Wire::Enforcing,
            nodes::State::Holding => Wire::Holding,
            nodes::State::Updating => Wire::Updating,
            nodes::State::Refusing => Wire::Refusing,
            nodes::State::Fenced => Wire::Fenced,
            nodes::State::Skipped => Wire::Skipped,
            nodes::State::Disconnected => Wire::Disconnected,
            nodes::State::NotSeen => Wire::NotSeen,
            nodes::State::Left => Wire::Left,
            nodes::State::Unknown => Wire::Unknown,
            nodes::State::Cloned => Wire::Cloned,
            nodes::State::Silent => Wire::Silent,
            nodes::State::Slow => Wire::Slow,
            nodes::State::NotJudging => Wire::NotJudging,
        };
        NodeStatus {
            name: status.name.to_string(),
            state: state.into(),
            enforced_revision: status.enforced.map_or(0, |position| position.revision.0),
            pending_revision: status.pending.unwrap_or_default().0,
            since_ms: millis(status.since),
            reason: status.reason.clone(),
            version: status.version.clone(),
            endpoints: u32::try_from(status.endpoints).unwrap_or(u32::MAX),
            held_revision: status.holds.map_or(0, |position| position.revision.0),
            troubles: status.reported.iter().map(Into::into).collect(),
            lease_over_ms: status.lease_over.map_or(0, millis),
            turned_away: status.turned_away.iter().map(Into::into).collect(),
            heard_ms: status.heard.map(millis),
            conditions: status.conditions.iter().map(Into::into).collect(),
        }
    }
}

impl From<&nodes::TurnedAway> for wire::TurnedAway {
    fn from(turned_away: &nodes::TurnedAway) -> Self {
        wire::TurnedAway {
            reason: turned_away.reason.into(),
            message: turned_away.message.clone(),
            count: turned_away.count,
            since_ms: millis(turned_away.since),
            enforcer: turned_away.enforcer.as_ref().map(Into::into),
        }
    }
}

impl From<&nodes::Condition> for wire::Condition {
    fn from(condition: &nodes::Condition) -> Self {
        wire::Condition {
            kind: condition.kind.into(),
            message: condition.message.clone(),
            since_ms: millis(condition.since),
            enforcers: condition.enforcers.iter().map(Into::into).collect(),
        }
    }
}

impl From<&nodes::Enforcer> for wire::Enforcer {
    fn from(enforcer: &nodes::Enforcer) -> Self {
        wire::Enforcer {
            instance: enforcer.instance.to_vec(),
            start: enforcer.start,
            process: enforcer.process,
        }
    }
}

/// The enforcers whose names no Node object has, if there were some.
pub(super) fn strangers(strangers: &nodes::Strangers) -> Option<wire::Strangers> {
    let stranger =
        |(name, turned_away): (&NodeName, &nodes::TurnedAway)| wire::strangers::Stranger {
            name: name.to_string(),
            turned_away: Some(turned_away.into()),
        };
    let message = wire::Strangers {
        names: strangers.names.iter().map(stranger).collect(),
        forgotten: strangers.forgotten,
    };
    (message != wire::Strangers::default()).then_some(message)
}

/// Contests as a message; none where there are none.
pub(super) fn contests(contests: &Contests) -> Option<wire::Contests> {
    let contest = |contest: &Contest| wire::Contest {
        address: contest.address.to_string(),
        claimants: contest.claimants.iter().map(Into::into).collect(),
        more_claimants: contest.more,
        message: contest.message.clone(),
    };
    let message = wire::Contests {
        addresses: contests.first.iter().map(contest).collect(),
        more: contests.more,
    };
    (message != wire::Contests::default()).then_some(message)
}

impl From<&Unwritable> for wire::Trouble {
    fn from(unwritable: &Unwritable) -> Self {
        wire::Trouble {
            kind: wire::trouble::Kind::Journal.into(),
            reason: unwritable.error.to_string(),
            since_ms: millis(unwritable.since.elapsed()),
        }
    }
}

impl From<&nodes::ReportedCondition> for wire::Trouble {
    fn from(condition: &nodes::ReportedCondition) -> Self {
        wire::Trouble {
            kind: condition.kind.into(),
            reason: condition.reason.clone(),
            since_ms: millis(condition.since),
        }
    }
}
