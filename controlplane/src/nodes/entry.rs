//! One node: which version of its policy it has, which it must have, and which is on its way. Pure bookkeeping: no
//! lock, no channel that it waits on.
//!
//! `pending` is the first revision that changed the node's policy and that the node does not enforce. It is exact
//! while updates are merged: what is sent brings the node from before `pending` to the target, and the first change
//! after the target is remembered for the time when the target is acknowledged. A policy that changed and changed
//! back counts as enforced when the node has it again.

use std::{sync::Arc, time::Instant};

use sallyport_proto::{Position, Revision, policy::NodePolicy};
use tokio::sync::{oneshot, watch};

use super::{Hello, Now, SessionError, State, Status, Update};

/// What is known of one node.
#[derive(Debug)]
pub(super) struct Entry {
    policy: Arc<NodePolicy>,
    pending: Option<Revision>,
    enforced: Option<Enforced>,
    in_flight: Option<InFlight>,
    connection: Option<Connection>,
    /// The node's last refusal, until it accepts something.
    refusal: Option<String>,
    version: String,
    state: State,
    since: Instant,
    wake: watch::Sender<()>,
}

/// What a node said that it enforces.
#[derive(Clone, Debug)]
struct Enforced {
    position: Position,
    /// The policy that this is, if it is known here.
    policy: Option<Arc<NodePolicy>>,
}

/// An update that is not answered yet.
#[derive(Debug)]
struct InFlight {
    target: Position,
    policy: Arc<NodePolicy>,
    /// The first change after the target.
    next_pending: Option<Revision>,
}

#[derive(Debug)]
struct Connection {
    session: u64,
    end: Option<oneshot::Sender<SessionError>>,
}

impl Entry {
    /// A node without a policy, never seen.
    pub(super) fn new() -> Entry {
        Entry {
            policy: Arc::default(),
            pending: None,
            enforced: None,
            in_flight: None,
            connection: None,
            refusal: None,
            version: String::new(),
            state: State::Unknown,
            since: Instant::now(),
            wake: watch::Sender::new(()),
        }
    }

    pub(super) fn pending(&self) -> Option<Revision> {
        self.pending
    }

    /// The policy is another one from a revision on.
    pub(super) fn changed(&mut self, revision: Revision, policy: Arc<NodePolicy>) {
        if policy.digest() == self.policy.digest() {
            return;
        }
        self.policy = policy;
        self.pending.get_or_insert(revision);
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.next_pending.get_or_insert(revision);
        }
        self.wake.send_replace(());
    }

    /// The node is there. Returns what wakes its session.
    pub(super) fn connected(
        &mut self,
        session: u64,
        end: oneshot::Sender<SessionError>,
        hello: Hello,
        now: Now,
    ) -> watch::Receiver<()> {
        self.end(SessionError::Replaced { name: hello.name });
        self.connection = Some(Connection {
            session,
            end: Some(end),
        });
        self.version = hello.version;
        self.refusal = None;
        self.reported(hello.position, now);
        self.wake.subscribe()
    }

    /// The node says what it enforces; what was in flight arrived or was lost.
    fn reported(&mut self, position: Option<Position>, now: Now) {
        let in_flight = self.in_flight.take();
        let Some(position) = position else {
            // It enforces nothing: all is pending again, from a revision that we cannot know.
            if self.enforced.take().is_some() {
                self.pending = Some(1);
            }
            return;
        };
        let arrived = in_flight.filter(|update| update.target.digest == position.digest);
        let known = self
            .enforced
            .take()
            .filter(|had| had.position.digest == position.digest);
        let policy = match (arrived, known) {
            _ if position.digest == self.policy.digest() => Some(self.policy.clone()),
            (_, Some(Enforced { policy, .. })) => policy,
            (Some(update), None) => {
                self.pending = update.next_pending;
                Some(update.policy)
            }
            (None, None) => {
                // A version that is not known here: what came after it is pending, if not more.
                let same_epoch = position.epoch == now.epoch;
                let after = if same_epoch { position.revision + 1 } else { 1 };
                self.pending = Some(after.min(now.revision).max(1));
                Some(Arc::default())
                    .filter(|empty: &Arc<NodePolicy>| empty.digest() == position.digest)
            }
        };
        self.enforced = Some(Enforced { position, policy });
    }

    pub(super) fn disconnected(&mut self) {
        self.connection = None;
        self.refusal = None;
    }

    pub(super) fn is_session(&self, session: u64) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.session == session)
    }

    /// Ends the stream, with a reason for the node.
    pub(super) fn end(&mut self, reason: SessionError) {
        let connection = self.connection.take();
        if let Some(end) = connection.and_then(|connection| connection.end) {
            // The stream may have ended by itself.
            let _ = end.send(reason);
        }
    }

    /// What to send now, which is in flight from then on. Nothing while something is, or when the node has it all.
    pub(super) fn next_update(&mut self, snapshot: bool, now: Now) -> Option<Update> {
        let digest = self.policy.digest();
        let has_it = self
            .enforced
            .as_ref()
            .is_some_and(|had| had.position.digest == digest);
        if self.in_flight.is_some() || has_it {
            return None;
        }
        let target = Position {
            epoch: now.epoch,
            revision: now.revision,
            digest,
        };
        let in_flight = InFlight {
            target,
            policy: self.policy.clone(),
            next_pending: None,
        };
        self.in_flight = Some(in_flight);
        let base = self.enforced.as_ref().filter(|_| !snapshot);
        let base = base.and_then(|had| Some((had.position, had.policy.clone()?)));
        Some(Update {
            base,
            target,
            policy: self.policy.clone(),
        })
    }

    /// The node has what was sent.
    pub(super) fn acked(&mut self, position: Position) -> Result<(), SessionError> {
        match self.in_flight.take_if(|update| update.target == position) {
            Some(InFlight {
                target,
                policy,
                next_pending,
            }) => {
                self.enforced = Some(Enforced {
                    position: target,
                    policy: Some(policy),
                });
                self.pending = next_pending;
                self.refusal = None;
                Ok(())
            }
            None => Err(SessionError::Unexpected {
                answer: "Ack",
                found: position,
                expected: self.in_flight.as_ref().map(|update| update.target),
            }),
        }
    }

    /// The node refused what was sent, and has this.
    pub(super) fn nacked(
        &mut self,
        target: Position,
        position: Option<Position>,
        reason: String,
        now: Now,
    ) -> Result<(), SessionError> {
        if self
            .in_flight
            .as_ref()
            .is_none_or(|update| update.target != target)
        {
            return Err(SessionError::Unexpected {
                answer: "Nack",
                found: target,
                expected: self.in_flight.as_ref().map(|update| update.target),
            });
        }
        self.reported(position, now);
        self.refusal = Some(reason);
        Ok(())
    }

    /// Brings what follows from the rest up to date.
    pub(super) fn settle(&mut self, now: Instant) {
        let digest = self.policy.digest();
        match (&mut self.in_flight, &self.enforced) {
            (Some(update), _) if update.target.digest == digest => update.next_pending = None,
            (Some(_), _) => {}
            (None, Some(had)) if had.position.digest == digest => self.pending = None,
            // Never seen, and nothing to enforce.
            (None, None) if digest == NodePolicy::default().digest() => self.pending = None,
            (None, _) => {}
        }
        let state = self.state();
        if state != self.state {
            (self.state, self.since) = (state, now);
        }
    }

    fn state(&self) -> State {
        match (&self.connection, &self.enforced) {
            (None, None) if self.version.is_empty() => State::Unknown,
            (None, _) => State::Disconnected,
            (Some(_), _) if self.refusal.is_some() => State::Refusing,
            (Some(_), Some(had)) if had.position.digest == self.policy.digest() => State::Enforcing,
            (Some(_), _) => State::Updating,
        }
    }

    pub(super) fn status(&self, name: &str) -> Status {
        Status {
            name: name.to_owned(),
            state: self.state,
            enforced: self.enforced.as_ref().map(|had| had.position),
            pending: self.pending,
            since: self.since.elapsed(),
            reason: self.refusal.clone().unwrap_or_default(),
            version: self.version.clone(),
            endpoints: self.policy.endpoints().len(),
        }
    }
}
