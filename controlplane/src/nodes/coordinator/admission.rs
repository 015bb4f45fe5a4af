//! Admission of enforcers under a node's name: which is admitted, which is turned away, and which is sent a Ping. The
//! rules are in `rivals`; this module applies them to the coordinator.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use sallyport_policy::{NodeName, Position, Version};
use sallyport_proto::wire::turned_away::Reason;
use tokio::sync::Notify;

use super::{Coordinator, Head, Recheck};
use crate::nodes::{
    BeliefError, Hello, SessionError, Strangers, StreamId,
    progress::{NodeProgress, clones},
    rivals::{Contested, Ruling},
    turned_away::RefusedSession,
};

/// What becomes of a Hello.
#[derive(Clone, Debug)]
pub enum Admission {
    /// The node is connected. This wakes its stream.
    Connected(Arc<Notify>),
    /// Another enforcer may have the name. The newcomer is to be sent a Ping, and its Hello is to be tried again
    /// whenever it is woken, and when the time is over.
    Contested(Contested),
}

impl Coordinator {
    /// A node says Hello on a stream. A stream that it had is ended, unless that is another enforcer's that is there.
    pub fn connect(
        &mut self,
        stream: StreamId,
        hello: Hello,
        at: Instant,
    ) -> Result<Admission, SessionError> {
        let (name, enforcer) = (hello.name.clone(), hello.enforcer);
        let admission = self.admit(stream, hello, at);
        if !matches!(admission, Ok(Admission::Contested(_))) {
            self.withdraw(&name, stream);
        }
        if let Err(error) = &admission
            && let Some(reason) = error.reason()
        {
            *self.turned_away.entry(reason).or_default() += 1;
            let message = error.to_string();
            let refusal = RefusedSession {
                reason,
                message,
                enforcer,
            };
            match self.nodes.get_mut(&name) {
                Some(progress) => progress.refused_sessions.add(refusal, at),
                None => self.strangers.add(&name, refusal, at),
            }
        }
        admission
    }

    fn admit(
        &mut self,
        stream: StreamId,
        hello: Hello,
        at: Instant,
    ) -> Result<Admission, SessionError> {
        if self.stopping {
            return Err(SessionError::Stopping);
        }
        let Head { epoch, revision } = self.head;
        let name = hello.name.clone();
        let Some(progress) = self.nodes.get_mut(&name) else {
            return Err(SessionError::Unregistered { name });
        };
        if progress.is_leaving() {
            return Err(SessionError::Leaving { name });
        }
        if progress.is_past(stream) {
            return Err(SessionError::Replaced { name });
        }
        let longest = self.settings.lease_longest;
        if hello.lease > longest {
            return Err(SessionError::Lease { name, longest });
        }
        let ahead = |position: &&Position| (position.epoch, position.revision) > (epoch, revision);
        if let Some(position) = hello.window.iter().find(ahead) {
            return Err(SessionError::Ahead {
                name,
                node: (position.epoch, position.revision),
                ours: (epoch, revision),
            });
        }
        let first = progress.first();
        match progress.rivals.rule(stream, hello.enforcer, first, at) {
            Ruling::Admit => {}
            Ruling::Replace => progress.replaces(hello.enforcer, at),
            Ruling::Wait { contested, ping } => {
                progress.wants_ping(ping);
                return Ok(Admission::Contested(contested));
            }
            Ruling::Taken => {
                let since = progress.connected_since().unwrap_or(at);
                return Err(SessionError::Taken {
                    name,
                    first: first.map(|first| first.enforcer),
                    since: at.saturating_duration_since(since),
                });
            }
            Ruling::Late => return Err(SessionError::Late { name }),
            Ruling::NotBelieved => return Err(SessionError::NotBelieved { name }),
            Ruling::Cloned => {
                let error = cloned(&name, progress);
                progress.wake();
                self.update(&name, at, NodeProgress::disconnected);
                self.recheck = Recheck::AtOnce;
                self.advance(at);
                return Err(error);
            }
        }
        let known: Vec<Version> = self.rollouts.versions(&name).cloned().collect();
        let wake = progress.connected(stream, hello, &known, at);
        if progress.membership().is_joined() {
            self.rollouts
                .ask(&name, |version| progress.enforces(version), at);
        }
        self.recheck = Recheck::AtOnce;
        self.update(&name, at, |_| {});
        self.advance(at);
        Ok(Admission::Connected(wake))
    }

    /// An enforcer whose name is contested answered its Ping.
    pub fn answered(&mut self, name: &NodeName, stream: StreamId) {
        if let Some(progress) = self.nodes.get_mut(name) {
            progress.rivals.answered(stream);
        }
    }

    /// An enforcer whose name is contested waits no longer.
    pub fn withdraw(&mut self, name: &NodeName, stream: StreamId) {
        if let Some(progress) = self.nodes.get_mut(name) {
            progress.rivals.withdraw(stream);
        }
    }

    /// An administrator says which of several enforcers with one instance id is a node's.
    pub fn believe(
        &mut self,
        name: &NodeName,
        process: u64,
        at: Instant,
    ) -> Result<(), BeliefError> {
        let owned = || name.clone();
        let Some(progress) = self.nodes.get_mut(name) else {
            return Err(BeliefError::Unregistered { name: owned() });
        };
        let Some((seen, _)) = progress.rivals.clones() else {
            return Err(BeliefError::NotCloned { name: owned() });
        };
        let seen = seen.to_vec();
        if !progress.rivals.believe(process) {
            return Err(BeliefError::Unseen {
                name: owned(),
                process,
                seen,
            });
        }
        self.update(name, at, |_| {});
        Ok(())
    }

    /// The Ping to send a node now, or else when to look again.
    pub fn ping(
        &mut self,
        name: &NodeName,
        session: StreamId,
        at: Instant,
    ) -> Result<Result<u64, Option<Instant>>, SessionError> {
        self.check(name, session)?;
        Ok(self.progress(name).ping(at))
    }

    /// A node answered a Ping.
    pub fn ponged(
        &mut self,
        name: &NodeName,
        session: StreamId,
        number: u64,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        self.progress(name).ponged(number);
        Ok(())
    }

    /// A message of a node came.
    pub fn received(
        &mut self,
        name: &NodeName,
        session: StreamId,
        at: Instant,
    ) -> Result<(), SessionError> {
        self.check(name, session)?;
        self.progress(name).received(at);
        Ok(())
    }

    fn progress(&mut self, name: &NodeName) -> &mut NodeProgress {
        self.nodes.get_mut(name).expect("just checked")
    }

    /// The enforcers that were turned away since no Node object has their name.
    pub fn strangers(&self, at: Instant) -> Strangers {
        self.strangers.status(at)
    }

    /// How many enforcers were turned away, by reason.
    pub fn turned_away(&self) -> &BTreeMap<Reason, u64> {
        &self.turned_away
    }
}

/// Why no enforcer of a node with clones has a session.
pub(super) fn cloned(name: &NodeName, progress: &NodeProgress) -> SessionError {
    let seen = progress.rivals.clones().map_or(&[][..], |(seen, _)| seen);
    SessionError::Cloned {
        name: name.clone(),
        message: clones(name, seen),
    }
}
