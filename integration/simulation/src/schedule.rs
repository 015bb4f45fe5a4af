//! The schedule: events in the order of their time, those of one time in the order in which they were planned.

use std::collections::BTreeMap;

use sallyport_policy::Revision;

use crate::{Time, faults::Fault, network::StreamId};

/// Something that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Somebody edits the cluster.
    Commit,
    /// A message arrives at the control plane.
    ToControl(StreamId, Vec<u8>),
    /// A message arrives at a node.
    ToNode(StreamId, Vec<u8>),
    /// The control plane sees that a stream is over.
    ControlSeesEnd(StreamId),
    /// A node sees that a stream is over.
    NodeSeesEnd(StreamId),
    /// A node's membership is durable.
    Joined(StreamId),
    /// The progress of the rollouts is durable.
    Settled(Revision),
    /// There may be something to do for the control plane, since time passed.
    Advance,
    /// A refused update is tried again.
    Retry(StreamId),
    /// The control plane starts again.
    ControlStarts,
    /// An enforcer starts.
    NodeStarts(usize),
    /// An enforcer tries to connect.
    Connect(usize),
    /// An enforcer asks for its lease.
    AskLease(StreamId),
    /// A node's lease runs out, perhaps.
    LeaseEnds(usize),
    /// A frozen process goes on.
    Thaws(usize),
    /// Nothing happened on a node for a while.
    Clean(usize),
    /// Something goes wrong.
    Fault(Fault),
    /// From now on nothing goes wrong any more.
    Calm,
}

/// The time, and what is to come. An event of an actor that died meanwhile is of a life that is over, and is left out.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    pub(crate) now: Time,
    events: BTreeMap<(Time, u64), (u32, Event)>,
    planned: u64,
}

impl Schedule {
    /// Plans an event of an actor's present life.
    pub(crate) fn after(&mut self, delay: Time, life: u32, event: Event) {
        self.at(self.now + delay, life, event);
    }

    /// The same at a time.
    pub(crate) fn at(&mut self, time: Time, life: u32, event: Event) {
        self.planned += 1;
        self.events
            .insert((time.max(self.now), self.planned), (life, event));
    }

    /// The next event, and the life that it belongs to. It is its time then.
    pub(crate) fn next(&mut self) -> Option<(u32, Event)> {
        let ((time, _), next) = self.events.pop_first()?;
        self.now = time;
        Some(next)
    }
}
