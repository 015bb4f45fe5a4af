//! How a node stands, in the words and numbers of a status. It changes nothing.

mod unjudged;

use std::time::Instant;

use sallyport_policy::NodeName;
use sallyport_process::duration;
use sallyport_proto::wire::condition;

use super::NodeProgress;
use crate::nodes::{
    Condition, Health, ReportedCondition, State, Status, coordinator::Head, pings::Pings,
    rivals::Enforcer,
};

impl NodeProgress {
    /// The conditions that the node reported, with their age at a time.
    fn reported_at(&self, at: Instant) -> Vec<ReportedCondition> {
        let (Health { conditions, .. }, when) = &self.health;
        let passed = at.saturating_duration_since(*when);
        let later = |condition: &ReportedCondition| ReportedCondition {
            since: condition.since + passed,
            ..condition.clone()
        };
        conditions.iter().map(later).collect()
    }

    /// How it stands with an update that has been under way for long, and since when.
    fn lateness(&self, at: Instant) -> Option<(State, Instant)> {
        let under_way = self.in_flight.as_ref()?.since;
        let connection = self.connection.as_ref()?;
        if self.state != State::Updating || !Pings::is_late(under_way, at) {
            return None;
        }
        connection.enforcer?;
        match connection.pings.is_silent(at) {
            true => Some((State::Silent, self.heard.unwrap_or(connection.since))),
            false => Some((State::Slow, under_way)),
        }
    }

    fn conditions(&self, name: &NodeName, at: Instant) -> Vec<Condition> {
        let since = |since: Instant| at.saturating_duration_since(since);
        let replaced = self.replaced.map(|(first, newcomer, when)| Condition {
            kind: condition::Kind::Replaced,
            message: format!(
                "an enforcer with another instance id took the name: {newcomer}; the earlier enforcer did not \
                 answer: {first}"
            ),
            since: since(when),
            enforcers: vec![first, newcomer],
        });
        let cloned = self.rivals.clones().map(|(seen, when)| Condition {
            kind: condition::Kind::Cloned,
            message: clones(name, seen),
            since: since(when),
            enforcers: seen.to_vec(),
        });
        let unjudged = unjudged::conditions(&self.health.0.unjudged, since(self.health.1));
        replaced.into_iter().chain(cloned).chain(unjudged).collect()
    }

    /// Why it does not judge all traffic, or else why it refuses.
    fn reason(&self) -> String {
        match (self.not_judged(), &self.refusal) {
            (Some(condition), _) if self.is_connected() => condition.reason.clone(),
            (Some(condition), _) => {
                format!("the node did not judge all traffic: {}", condition.reason)
            }
            (None, refusal) => refusal.clone().unwrap_or_default(),
        }
    }

    /// The status of the node at a time.
    pub(in crate::nodes) fn status(&self, name: &NodeName, head: Head, at: Instant) -> Status {
        let passed = |since: Instant| at.saturating_duration_since(since);
        let heard = self.heard.map(passed);
        let late = self.lateness(at);
        let heard_text = duration::rough(heard.unwrap_or_default());
        let reason = match late {
            Some((State::Silent, _)) => format!("not heard for {heard_text}"),
            Some((_, under_way)) => {
                let passed = duration::rough(passed(under_way));
                format!("applying an update for {passed}, last heard {heard_text} ago")
            }
            None => self.reason(),
        };
        let is_judging = self.not_judged().is_none();
        Status {
            name: name.clone(),
            state: late.map_or(self.state, |(state, _)| state),
            heard,
            turned_away: self.refused_sessions.status(at),
            conditions: self.conditions(name, at),
            unjudged: unjudged::reasons(&self.health.0.unjudged),
            enforced: self
                .held
                .first()
                .filter(|_| is_judging)
                .map(|held| held.position),
            holds: self.held.last().map(|held| held.position),
            pending: self.pending(head),
            since: passed(late.map_or(self.since, |(_, since)| since)),
            reason,
            version: self.version.clone(),
            endpoints: self.policy.endpoints().len(),
            reported: self.reported_at(at),
            lease_over: self
                .lease_until
                .filter(|_| self.state == State::Fenced)
                .map(|until| at.saturating_duration_since(until)),
        }
    }
}

/// The words about clones: which there are, and what to do.
pub(in crate::nodes) fn clones(name: &NodeName, seen: &[Enforcer]) -> String {
    let seen: Vec<String> = seen.iter().map(Enforcer::to_string).collect();
    format!(
        "several enforcers run under one instance id, and none of them gets a session until an administrator \
         chooses one: {}. Where the data directory is a copy, stop the enforcer, run `sallyport-enforcer \
         new-identity` and start the enforcer with a --node-name of its own. Then choose the enforcer of this node: \
         `sallyport node believe {name} --process PROCESS`",
        seen.join("; ")
    )
}
