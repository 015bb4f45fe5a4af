//! The control plane's conversations with nodes, as `stream` has them: one update under way, a second try after a
//! refusal, nothing sent before it is durable that the node joined. It decides nothing about versions.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use prost::Message as _;
use rand::RngExt;
use sallyport_controlplane::{
    nodes::{self, Admission, Enforcer, Hello, Membership, SessionError, Update},
    stream::Parts,
};
use sallyport_policy::{NodeName, Position, UnknownAddresses};
use sallyport_proto::{
    positions,
    wire::{
        self, LeaseGrant, SyncRequest, SyncResponse, UpdatePart, sync_request::Message,
        sync_response,
    },
};
use tokio::sync::Notify;

use crate::{
    Time, control::revisions, judge::Violation, milliseconds, mutant::Mutant, network::StreamId,
    schedule::Event, universe::node_name, world::World,
};

/// The time to wait after a refusal before the next try: at first, and at most.
const RETRY: (Time, Time) = (1_000_000, 60_000_000);

/// A node's stream after its Hello.
#[derive(Debug)]
pub(crate) struct Conversation {
    node: usize,
    session: nodes::StreamId,
    membership: Membership,
    /// Whether that the node joined is durable: nothing is sent before.
    joined: bool,
    wake: Arc<Notify>,
    snapshot: bool,
    waiting: bool,
    delay: Time,
    /// Whether something happened after which there may be something to send.
    signalled: bool,
    /// The acknowledgement that a mutant has the node send, and the one that the coordinator receives.
    covered: Option<Vec<Position>>,
}

impl World {
    /// A message arrives.
    pub(crate) fn control_receives(
        &mut self,
        stream: StreamId,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        if self.control.alive.is_none() || !self.network.reaches_control(stream, self.schedule.now)
        {
            return Ok(());
        }
        let request = SyncRequest::decode(bytes).expect("a node's message");
        let outcome = match request.message {
            None => {
                self.accept(stream);
                Ok(())
            }
            Some(Message::Hello(hello)) => self.open(stream, &hello),
            Some(other) => self.converse(stream, other),
        };
        if let Err(error) = outcome {
            self.note(|| format!("stream {stream} is ended: {error}"));
            self.end_conversation(stream);
        }
        self.after_control()
    }

    /// Accepts a stream, and notifies its node.
    fn accept(&mut self, stream: StreamId) {
        let alive = self.control.alive.as_mut().expect("it hears");
        alive.accepted.insert(stream, alive.coordinator.accept());
        self.send_message(stream, None);
    }

    fn open(&mut self, stream: StreamId, hello: &wire::Hello) -> Result<(), SessionError> {
        let node = self.network.node(stream);
        let at = self.at();
        let alive = self.control.alive.as_mut().expect("it hears");
        let name = NodeName::from(hello.node_name.as_str());
        let window = positions(&hello.window).expect("positions");
        let lease = Duration::from_millis(hello.lease_ms.into());
        let hello = Hello {
            name: name.clone(),
            window: window.clone(),
            version: hello.version.clone(),
            unknown: match &hello.dropped {
                Some(ranges) => {
                    UnknownAddresses::Drop(Arc::new(ranges.try_into().expect("ranges")))
                }
                None => UnknownAddresses::Allow,
            },
            lease,
            enforcer: Some(Enforcer {
                instance: hello.instance[..].try_into().expect("16 bytes"),
                start: hello.start,
                process: hello.process,
            }),
            health: None,
        };
        let session = alive.accepted[&stream];
        let Admission::Connected(wake) = alive.coordinator.connect(session, hello, at)? else {
            unreachable!("each start of an enforcer has its number: its name is never contested");
        };
        let leased = !lease.is_zero();
        let membership = Membership::Joined { leased };
        let joined = alive.coordinator.membership(&name) == membership;
        alive.conversations.insert(
            stream,
            Conversation {
                node,
                session,
                membership,
                joined,
                wake,
                snapshot: false,
                waiting: false,
                delay: RETRY.0,
                signalled: true,
                covered: None,
            },
        );
        self.note(|| {
            format!(
                "n{node} is connected by stream {stream}, holds {}",
                revisions(&window)
            )
        });
        if !joined {
            let delay = self.rng.random_range(1..milliseconds(5));
            self.schedule
                .after(delay, self.control.life, Event::Joined(stream));
        }
        Ok(())
    }

    /// Handles that a node's membership is durable.
    pub(crate) fn joined(&mut self, stream: StreamId) -> Result<(), Violation> {
        let at = self.at();
        let Some(alive) = &mut self.control.alive else {
            return Ok(());
        };
        let node = self.network.node(stream);
        let name = node_name(node);
        // The note is taken whether the stream is still there or not.
        let leased = self.nodes[node].lease.is_some();
        self.control
            .joined
            .insert(name.clone(), Membership::Joined { leased });
        if let Some(conversation) = alive.conversations.get_mut(&stream) {
            alive.coordinator.join(&name, conversation.membership, at);
            conversation.joined = true;
            conversation.signalled = true;
        }
        self.after_control()
    }

    fn converse(&mut self, stream: StreamId, message: Message) -> Result<(), SessionError> {
        let at = self.at();
        let alive = self.control.alive.as_mut().expect("it hears");
        let Some(conversation) = alive.conversations.get_mut(&stream) else {
            return Ok(());
        };
        let (name, session) = (node_name(conversation.node), conversation.session);
        conversation.signalled = true;
        match message {
            Message::Ack(ack) => {
                let window = positions(&ack.window).expect("positions");
                let told = conversation.covered.take().unwrap_or(window);
                alive.coordinator.acked(&name, session, &told, at)?;
                conversation.snapshot = false;
                conversation.waiting = false;
                conversation.delay = RETRY.0;
                self.note(|| {
                    format!(
                        "{name} acknowledged {} by stream {stream}",
                        revisions(&told)
                    )
                });
            }
            Message::Nack(nack) => {
                let target = nack
                    .target
                    .as_ref()
                    .expect("a target")
                    .try_into()
                    .expect("a position");
                let window = positions(&nack.window).expect("positions");
                let was_snapshot = conversation.snapshot;
                alive.coordinator.nacked(
                    &name,
                    session,
                    (target, &window),
                    nack.reason.clone(),
                    at,
                )?;
                conversation.covered = None;
                conversation.snapshot = nack.want_snapshot;
                if was_snapshot || !nack.want_snapshot {
                    conversation.waiting = true;
                    self.schedule.after(
                        conversation.delay,
                        self.control.life,
                        Event::Retry(stream),
                    );
                    conversation.delay = (2 * conversation.delay).min(RETRY.1);
                }
                self.note(|| {
                    format!(
                        "{name} refused revision {}: {}",
                        target.revision, nack.reason
                    )
                });
            }
            Message::Lease(request) => {
                let granted = alive.coordinator.lease(&name, session, at)?;
                self.note(|| {
                    format!(
                        "{name} asks for a lease: {}",
                        if granted { "granted" } else { "not now" }
                    )
                });
                if granted {
                    let grant = LeaseGrant {
                        number: request.number,
                    };
                    let message = sync_response::Message::Lease(grant);
                    self.send_message(stream, Some(message));
                }
            }
            Message::Hello(_) | Message::Health(_) | Message::Pong(_) => {
                unreachable!("it is opened elsewhere")
            }
        }
        Ok(())
    }

    /// Tries a refused update again.
    pub(crate) fn retry(&mut self, stream: StreamId) -> Result<(), Violation> {
        if let Some(alive) = &mut self.control.alive
            && let Some(conversation) = alive.conversations.get_mut(&stream)
        {
            conversation.waiting = false;
            conversation.signalled = true;
        }
        self.after_control()
    }

    /// The control plane sees that a stream is over.
    pub(crate) fn control_sees_end(&mut self, stream: StreamId) -> Result<(), Violation> {
        self.end_conversation(stream);
        self.after_control()
    }

    fn end_conversation(&mut self, stream: StreamId) {
        let at = self.at();
        let Some(alive) = &mut self.control.alive else {
            return;
        };
        if let Some(conversation) = alive.conversations.remove(&stream) {
            let name = node_name(conversation.node);
            alive
                .coordinator
                .disconnected(&name, conversation.session, at);
        }
        let latency = self.network.latency(&mut self.rng);
        let now = self.schedule.now;
        self.network.cut(stream, now + latency, now);
        self.schedule.after(latency, 0, Event::NodeSeesEnd(stream));
    }

    /// Sends every node what there is to send.
    pub(crate) fn speak(&mut self) {
        let at = self.at();
        let alive = self.control.alive.as_mut().expect("it just did something");
        let (mut over, mut updates) = (Vec::new(), Vec::new());
        for (&stream, conversation) in &mut alive.conversations {
            if conversation.wake.notified().now_or_never().is_some() {
                conversation.waiting = false;
                conversation.signalled = true;
            }
            if !conversation.joined || conversation.waiting || !conversation.signalled {
                continue;
            }
            conversation.signalled = false;
            let name = node_name(conversation.node);
            match alive.coordinator.next_update(
                &name,
                conversation.session,
                conversation.snapshot,
                at,
            ) {
                Ok(Some(update)) => {
                    conversation.snapshot = update.base.is_none();
                    updates.push((stream, update));
                }
                Ok(None) => {}
                Err(_) => over.push(stream),
            }
        }
        for (stream, update) in updates {
            self.send(stream, update);
        }
        for stream in over {
            self.note(|| format!("stream {stream} is over"));
            self.end_conversation(stream);
        }
    }

    fn send(&mut self, stream: StreamId, mut update: Update) {
        let target = update.target;
        if self.mutant == Some(Mutant::BarrierSkipped) {
            let mut window = std::mem::take(&mut update.keep);
            window.push(target);
            window.sort();
            let alive = self.control.alive.as_mut().expect("it speaks");
            let conversation = alive.conversations.get_mut(&stream);
            conversation.expect("it speaks to it").covered = Some(window);
        }
        let node = self.network.node(stream);
        self.note(|| {
            let from = update
                .base
                .as_ref()
                .map_or("nothing".into(), |(base, _)| base.revision.to_string());
            format!(
                "to n{node}: {from} -> {}, keep {}",
                target.revision,
                revisions(&update.keep)
            )
        });
        let alive = self.control.alive.as_ref().expect("it speaks");
        for part in Parts::new(&update, &alive.diffs) {
            for piece in self.cut(part) {
                self.send_message(stream, Some(sync_response::Message::Update(piece)));
            }
        }
    }

    /// A part as several, as larger ones are: here nothing is large.
    fn cut(&mut self, part: UpdatePart) -> Vec<UpdatePart> {
        if part.changes.len() < 2 || self.rng.random_bool(0.5) {
            return vec![part];
        }
        let (mut first, mut second) = (part.clone(), part);
        let at = self.rng.random_range(1..first.changes.len());
        second.changes = first.changes.split_off(at);
        first.last = false;
        vec![first, second]
    }

    /// Sends a message, or only the acceptance of the stream.
    fn send_message(&mut self, stream: StreamId, message: Option<sync_response::Message>) {
        let response = SyncResponse { message };
        let bytes = response.encode_to_vec();
        self.network
            .send_to_node(stream, bytes, &mut self.schedule, &mut self.rng);
    }
}
