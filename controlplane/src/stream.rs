//! The nodes' side of the API: one conversation a node, one update under way at a time. Decides nothing about
//! policies and keeps nothing about nodes: that is `nodes`.

mod parts;

use std::{pin::Pin, sync::Arc, time::Duration};

use sallyport_proto::{
    Delta, Position, Unknown, WireError,
    policy::NodePolicy,
    positions,
    wire::{
        self, LeaseGrant, LeaseRequest, SyncRequest, SyncResponse,
        node_service_server::NodeService, sync_request::Message, sync_response, trouble::Kind,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

pub use self::parts::{PART, Parts};
use crate::{
    journal::Note,
    nodes::{Hello, Nodes, Session, SessionError, Trouble, Unreachable, Update},
    writer::Writer,
};

/// A node that opens a stream has this long to say Hello, and one that is told to go to hear why.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait after a refusal before the same is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Parts that are made before the first of them is sent.
const AHEAD: usize = 2;

/// Serves NodeService.
#[derive(Debug)]
pub struct Streams {
    nodes: Arc<Nodes>,
    writer: Writer,
    stopping: watch::Receiver<bool>,
}

impl Streams {
    /// Streams that end when `stopping` turns true. The writer makes durable which nodes there ever were.
    pub fn new(nodes: Arc<Nodes>, writer: Writer, stopping: watch::Receiver<bool>) -> Streams {
        Streams {
            nodes,
            writer,
            stopping,
        }
    }
}

#[tonic::async_trait]
impl NodeService for Streams {
    type SyncStream = ReceiverStream<Result<SyncResponse, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (outbound, messages) = mpsc::channel(AHEAD);
        let (nodes, writer) = (self.nodes.clone(), self.writer.clone());
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let session = open(nodes, writer, request.into_inner());
            let outcome = match session.await {
                Ok((session, inbound)) => {
                    converse(session, inbound, outbound.clone(), stopping).await
                }
                Err(status) => Err(status),
            };
            if let Err(status) = outcome {
                // A node that reads nothing does not learn why.
                let _ = timeout(PATIENCE, outbound.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// A stream's session, once the node has said Hello.
async fn open(
    nodes: Arc<Nodes>,
    writer: Writer,
    mut inbound: Streaming<SyncRequest>,
) -> Result<(Session, Streaming<SyncRequest>), Status> {
    let hello = timeout(PATIENCE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello within 10 seconds"))??;
    let hello = hello_of(hello)?;
    let holds: Vec<String> = hello.window.iter().map(Position::to_string).collect();
    let (version, leased) = (hello.version.clone(), !hello.lease.is_zero());
    let fences = nodes.settings().unreachable == Unreachable::Fence;
    let session = nodes
        .connect(hello)
        .inspect_err(|error| warn!(%error, "turned a node away"))?;
    let node = session.name();
    info!(node, version, holds = holds.join(" and "), "node connected");
    if fences && !leased {
        warn!(
            node,
            "this node has no leases, so that edits wait for it: start its enforcer with --lease to have it fenced"
        );
    }
    if session.is_new(leased) {
        let joined = Note::Joined {
            node: node.to_owned(),
            leased,
        };
        writer
            .note(joined)
            .await
            .map_err(|refusal| Status::unavailable(refusal.to_string()))?;
        session.join(leased);
    }
    Ok((session, inbound))
}

async fn converse(
    session: Session,
    inbound: Streaming<SyncRequest>,
    outbound: mpsc::Sender<Result<SyncResponse, Status>>,
    stopping: watch::Receiver<bool>,
) -> Result<(), Status> {
    let node = session.name().to_owned();
    let conversation = Conversation {
        session,
        inbound,
        outbound,
        stopping,
        snapshot: false,
        retry: Retry::new(),
    };
    let outcome = conversation.go_on().await;
    match &outcome {
        Ok(()) => info!(node, "node disconnected"),
        Err(status) => info!(node, reason = status.message(), "node's stream ended"),
    }
    outcome
}

fn hello_of(first: Option<SyncRequest>) -> Result<Hello, Status> {
    let Some(Message::Hello(hello)) = first.and_then(|request| request.message) else {
        return Err(Status::invalid_argument(
            "the first message must be a Hello",
        ));
    };
    Ok(Hello {
        name: hello.node_name,
        window: positions(&hello.window).map_err(malformed)?,
        version: hello.version,
        unknown: match &hello.dropped {
            Some(ranges) => Unknown::Drop(Arc::new(ranges.try_into().map_err(malformed)?)),
            None => Unknown::Allow,
        },
        lease: Duration::from_millis(hello.lease_ms.into()),
    })
}

fn malformed(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

impl From<SessionError> for Status {
    fn from(error: SessionError) -> Status {
        let message = error.to_string();
        match error {
            SessionError::Unregistered { .. } | SessionError::Removed { .. } => {
                Status::not_found(message)
            }
            SessionError::Ahead { .. } => Status::failed_precondition(message),
            SessionError::Replaced { .. } => Status::aborted(message),
            SessionError::Lease { .. } | SessionError::Unexpected { .. } => {
                Status::invalid_argument(message)
            }
        }
    }
}

/// A stream after its Hello.
struct Conversation {
    session: Session,
    inbound: Streaming<SyncRequest>,
    outbound: mpsc::Sender<Result<SyncResponse, Status>>,
    stopping: watch::Receiver<bool>,
    /// The node wants everything.
    snapshot: bool,
    retry: Retry,
}

/// What a conversation waits for.
enum Signal {
    Said(Option<SyncRequest>),
    Changed,
    Retry,
}

impl Conversation {
    async fn go_on(mut self) -> Result<(), Status> {
        loop {
            if !self.retry.is_waiting()
                && let Some(update) = self.session.next_update(self.snapshot)?
            {
                // What fits nothing is sent whole anyway.
                self.snapshot = update.base.is_none();
                if self.send(update).await?.is_none() {
                    return Ok(());
                }
            }
            match self.listen().await? {
                Signal::Said(Some(request)) => {
                    if let Some(response) = self.hear(request)?
                        && self.say(response).await?.is_none()
                    {
                        return Ok(());
                    }
                }
                Signal::Said(None) => return Ok(()),
                Signal::Changed | Signal::Retry => self.retry.go(),
            }
        }
    }

    /// Sends an update. `None` when the node is gone.
    async fn send(&mut self, update: Update) -> Result<Option<()>, Status> {
        let Update {
            base,
            target,
            policy,
            keep,
        } = update;
        let (base, old) = match base {
            Some((position, policy)) => (Some(position), policy),
            None => (None, Arc::<NodePolicy>::default()),
        };
        for part in Parts::new(base, target, &keep, Delta::between(&old, &policy)) {
            let response = SyncResponse {
                message: Some(sync_response::Message::Update(part)),
            };
            if self.say(response).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }

    /// Sends a message. `None` when the node is gone.
    async fn say(&mut self, response: SyncResponse) -> Result<Option<()>, Status> {
        let (_, ended) = self.session.signals();
        let sent = tokio::select! {
            sent = self.outbound.send(Ok(response)) => sent,
            reason = &mut *ended => return Err(over(reason)),
            _ = self.stopping.wait_for(|&stopping| stopping) => return Err(stopping()),
        };
        Ok(sent.ok())
    }

    async fn listen(&mut self) -> Result<Signal, Status> {
        let (wake, ended) = self.session.signals();
        tokio::select! {
            reason = ended => Err(over(reason)),
            _ = self.stopping.wait_for(|&stopping| stopping) => Err(stopping()),
            said = self.inbound.message() => match said {
                Ok(request) => Ok(Signal::Said(request)),
                // The connection broke, or the node hung up in the middle of a message.
                Err(_) => Ok(Signal::Said(None)),
            },
            Ok(()) = wake.changed() => Ok(Signal::Changed),
            () = self.retry.due() => Ok(Signal::Retry),
        }
    }

    /// Takes what the node says. Returns what is to be said to it at once.
    fn hear(&mut self, request: SyncRequest) -> Result<Option<SyncResponse>, Status> {
        match request.message {
            Some(Message::Ack(ack)) => {
                self.session
                    .acked(&positions(&ack.window).map_err(malformed)?)?;
                self.snapshot = false;
                self.retry = Retry::new();
                Ok(None)
            }
            Some(Message::Nack(nack)) => self.refused(nack).map(|()| None),
            Some(Message::Lease(LeaseRequest { number })) => {
                let grant = SyncResponse {
                    message: Some(sync_response::Message::Lease(LeaseGrant { number })),
                };
                Ok(self.session.lease()?.then_some(grant))
            }
            Some(Message::Health(health)) => {
                self.session.says(troubles_of(health))?;
                Ok(None)
            }
            Some(Message::Hello(_)) => Err(Status::invalid_argument("a second Hello")),
            None => Err(Status::invalid_argument(
                "an empty message, or one of a kind that this version does not know",
            )),
        }
    }

    fn refused(&mut self, nack: wire::Nack) -> Result<(), Status> {
        let target = nack
            .target
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("nack.target is missing"))?;
        let target = Position::try_from(target).map_err(malformed)?;
        let window = positions(&nack.window).map_err(malformed)?;
        let (node, was_snapshot) = (self.session.name(), self.snapshot);
        warn!(node, %target, reason = nack.reason, want_snapshot = nack.want_snapshot, "node refused an update");
        self.session.nacked(target, &window, nack.reason)?;
        self.snapshot = nack.want_snapshot;
        if was_snapshot || !nack.want_snapshot {
            self.retry.wait();
        }
        Ok(())
    }
}

/// What a node says is wrong with it. What this version does not know of it cannot tell of.
fn troubles_of(health: wire::Health) -> Vec<Trouble> {
    let known = |trouble: wire::Trouble| {
        Some(Trouble {
            kind: Kind::try_from(trouble.kind).ok()?,
            reason: trouble.reason,
            since: Duration::from_millis(trouble.since_ms),
        })
    };
    health.troubles.into_iter().filter_map(known).collect()
}

fn over<E>(reason: Result<SessionError, E>) -> Status {
    match reason {
        Ok(reason) => reason.into(),
        // The table of nodes is gone.
        Err(_) => stopping(),
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is stopping; connect again")
}

/// When to try again what was refused.
struct Retry {
    delay: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Retry {
    fn new() -> Retry {
        Retry {
            delay: RETRY.0,
            timer: None,
        }
    }

    fn is_waiting(&self) -> bool {
        self.timer.is_some()
    }

    /// Waits, longer each time.
    fn wait(&mut self) {
        self.timer = Some(Box::pin(sleep_until(Instant::now() + self.delay)));
        self.delay = (self.delay * 2).min(RETRY.1);
    }

    /// Waits no longer.
    fn go(&mut self) {
        self.timer = None;
    }

    async fn due(&mut self) {
        match &mut self.timer {
            Some(timer) => timer.as_mut().await,
            None => std::future::pending().await,
        }
    }
}
