//! The nodes' side of the API: one conversation a node, one update under way at a time. Decides nothing about
//! policies and keeps nothing about nodes: that is `nodes`.

mod diffs;
mod health;
mod parts;

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{iter, once, unfold},
};
use sallyport_identity::{Identity, Subject};
use sallyport_policy::{NodeName, Position, UnknownAddresses};
use sallyport_process::text::one_line;
use sallyport_proto::{
    WireError, positions,
    wire::{
        self, LeaseGrant, LeaseRequest, LeaveRequest, LeaveResponse, Ping, Pong, SyncRequest,
        SyncResponse, node_service_server::NodeService, sync_request::Message, sync_response,
    },
};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

pub use self::{
    diffs::Diffs,
    parts::{PART, Parts},
};
use crate::{
    journal::Note,
    listener::Client,
    nodes::{
        Enforcer, Hello, Membership, Nodes, Opened, Session, SessionError, StreamId,
        UnreachablePolicy,
    },
    writer::{Writer, now_ms},
};

/// A node that opens a stream has this long to say Hello.
const PATIENCE: Duration = Duration::from_secs(10);

/// The stream of a stopped enforcer has this long to end before its node gets the answer that it cannot leave.
const FAREWELL: Duration = Duration::from_secs(2);

/// The time after a refusal before the same update is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The most bytes that are kept of a node's version, and of its reasons.
const LONGEST_VERSION: usize = 64;
const LONGEST_REASON: usize = 1024;
/// A node's name is a DNS subdomain (RFC 1123), as its Node object's.
const LONGEST_NAME: usize = 253;
/// The most versions that a node may report. Mostly it holds two during a rollout. A node that lags by two edits or
/// more drops none (`next_update`), nor does one whose control plane was started again and has settled nothing yet. It
/// must not be turned away for that: it could never catch up.
const MOST_VERSIONS: usize = 8192;

/// The most messages of a node before its name is known to be its own: a Pong, leases asked for, Health.
const MOST_EARLY: usize = 16;

/// The longest message of a node. The longest that is needed is a Hello with thousands of `--workload-cidr`.
pub const LONGEST_MESSAGE: usize = 1 << 20;

/// Serves NodeService.
#[derive(Debug)]
pub struct Streams {
    nodes: Arc<Nodes>,
    writer: Writer,
    diffs: Arc<Diffs>,
}

impl Streams {
    /// Streams of these nodes, which end when those are stopped. The writer makes durable which nodes there ever were.
    pub fn new(nodes: Arc<Nodes>, writer: Writer) -> Streams {
        Streams {
            nodes,
            writer,
            diffs: Arc::default(),
        }
    }
}

#[tonic::async_trait]
impl NodeService for Streams {
    type SyncStream = Messages;

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Messages>, Status> {
        let (nodes, writer) = (self.nodes.clone(), self.writer.clone());
        let identity = identity_of(&request);
        let (diffs, inbound) = (self.diffs.clone(), request.into_inner());
        // The node hears of its acceptance by the headers of this response, and says Hello then.
        let stream = nodes.accept();
        let messages = once(async move {
            let greeted = Box::pin(greet(stream, nodes, identity, inbound)).await?;
            let ping = greeted.ping().map(Ok);
            let rest = once(async move {
                let (session, inbound, early) = Box::pin(greeted.open(&writer)).await?;
                Ok::<_, Status>(Conversation::new(session, inbound, early, diffs).messages())
            });
            Ok::<_, Status>(iter(ping).chain(rest.try_flatten()))
        });
        Ok(Response::new(Box::pin(messages.try_flatten())))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let identity = identity_of(&request);
        let node = name_of(&request.into_inner().node_name)?;
        speaks_for_itself(identity.as_deref(), &node)?;
        // A node that hangs up meanwhile must not leave by halves.
        let leaving = tokio::spawn(leave(node, self.nodes.clone(), self.writer.clone()));
        leaving
            .await
            .map_err(|error| Status::internal(format!("leaving failed: {error}")))??;
        Ok(Response::new(LeaveResponse {}))
    }
}

/// A node leaves: durable first, then nothing waits for it.
async fn leave(node: NodeName, nodes: Arc<Nodes>, writer: Writer) -> Result<(), Status> {
    // The stream of an enforcer that has just been stopped may not have ended yet.
    let deadline = Instant::now() + FAREWELL;
    let has_left = loop {
        match nodes.begin_to_leave(&node) {
            Err(SessionError::Connected { .. }) if Instant::now() < deadline => {
                sleep(FAREWELL / 40).await;
            }
            begun => break begun?,
        }
    };
    if has_left {
        return Ok(());
    }
    let left = Note::Left {
        node: node.clone(),
        at_ms: now_ms(),
    };
    if let Err(refusal) = writer.note(left).await {
        nodes.stay(&node);
        return Err(Status::unavailable(refusal.to_string()));
    }
    nodes.leave(&node);
    info!(
        node = node.as_str(),
        "node left: no policy is enforced on this node, and edits no longer wait for it"
    );
    Ok(())
}

/// The messages for a node. The connection computes each message when it asks for it. A stream has no task and no queue
/// of its own: thousands of streams would have thousands. For a node that reads nothing, nothing is computed.
pub type Messages = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;

/// A stream whose node has said Hello.
struct Greeted {
    opened: Opened,
    inbound: Streaming<SyncRequest>,
    version: String,
    holds: String,
    /// The node's membership once that it has joined is durable.
    membership: Membership,
    /// Whether a node without leases is waited for, unless an edit says otherwise.
    fences: bool,
}

/// Hears a node's Hello.
async fn greet(
    stream: StreamId,
    nodes: Arc<Nodes>,
    identity: Option<Arc<Identity>>,
    mut inbound: Streaming<SyncRequest>,
) -> Result<Greeted, Status> {
    let hello = timeout(PATIENCE, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("the enforcer sent no Hello within 10 seconds"))??;
    let hello = hello_of(hello)?;
    speaks_for_itself(identity.as_deref(), &hello.name)?;
    let holds = match &hello.window[..] {
        [first, _, .., last] => format!("{} versions, {first} to {last}", hello.window.len()),
        few => {
            let few: Vec<String> = few.iter().map(Position::to_string).collect();
            few.join(" and ")
        }
    };
    let version = hello.version.clone();
    let membership = Membership::Joined {
        leased: !hello.lease.is_zero(),
    };
    let fences = nodes.settings().unreachable == UnreachablePolicy::Fence;
    let opened = nodes.connect(stream, hello).inspect_err(turned_away)?;
    Ok(Greeted {
        opened,
        inbound,
        version,
        holds,
        membership,
        fences,
    })
}

/// The identity of the client; none without TLS.
fn identity_of<T>(request: &Request<T>) -> Option<Arc<Identity>> {
    request.extensions().get::<Client>()?.identity.clone()
}

/// Refuses a name that is not the certificate's: no node acts as another.
fn speaks_for_itself(identity: Option<&Identity>, name: &NodeName) -> Result<(), Status> {
    let own = match identity.map(|identity| &identity.subject) {
        None => return Ok(()),
        Some(Subject::Node(own)) if own == name.as_str() => return Ok(()),
        Some(own) => own,
    };
    let refusal = format!(
        "the certificate of this connection is of {own}, and the message names node {name}: start the enforcer with \
         the name and the certificate of one node (--node-name, --tls)"
    );
    warn!(cause = refusal, "refused to take one node for another");
    Err(Status::permission_denied(refusal))
}

fn turned_away(error: &SessionError) {
    warn!(%error, "refused a session to an enforcer");
}

impl Greeted {
    /// The Ping by which a node whose name is contested is asked whether it is there.
    fn ping(&self) -> Option<SyncResponse> {
        let is_contested = matches!(self.opened, Opened::Contested(_));
        is_contested.then(|| response(sync_response::Message::Ping(Ping { number: 0 })))
    }

    /// The stream's session, and what the node said before it had one.
    async fn open(
        self,
        writer: &Writer,
    ) -> Result<(Session, Streaming<SyncRequest>, VecDeque<SyncRequest>), Status> {
        let Greeted {
            opened,
            mut inbound,
            version,
            holds,
            membership,
            fences,
        } = self;
        let mut early = VecDeque::new();
        let session = match opened {
            Opened::Session(session) => session,
            Opened::Contested(mut claim) => loop {
                tokio::select! {
                    said = inbound.message() => match said? {
                        None => return Err(Status::cancelled("the enforcer closed the stream")),
                        Some(SyncRequest { message: Some(Message::Pong(_)) }) => claim.answered(),
                        Some(_) if early.len() == MOST_EARLY => {
                            return Err(Status::resource_exhausted("too many messages before the first answer"));
                        }
                        Some(request) => early.push_back(request),
                    },
                    () = claim.changed() => {}
                }
                if let Some(session) = claim.decide().inspect_err(turned_away)? {
                    break session;
                }
            },
        };
        let name = session.name().clone();
        let node = name.as_str();
        info!(node, version, holds, "node connected");
        if fences && !membership.is_leased() {
            warn!(
                node,
                "this node has no leases, so edits wait for it even while it cannot be reached: start its enforcer \
                 with --lease"
            );
        }
        if session.membership() != membership {
            let joined = Note::Joined {
                node: name.clone(),
                membership,
            };
            writer
                .note(joined)
                .await
                .map_err(|refusal| Status::unavailable(refusal.to_string()))?;
            session.join(membership);
        }
        Ok((session, inbound, early))
    }
}

fn hello_of(first: Option<SyncRequest>) -> Result<Hello, Status> {
    let Some(Message::Hello(hello)) = first.and_then(|request| request.message) else {
        return Err(Status::invalid_argument(
            "the first message must be a Hello",
        ));
    };
    Ok(Hello {
        name: name_of(&hello.node_name)?,
        window: window(&hello.window)?,
        version: one_line(&hello.version, LONGEST_VERSION),
        unknown: match &hello.dropped {
            Some(ranges) => UnknownAddresses::Drop(Arc::new(ranges.try_into().map_err(malformed)?)),
            None => UnknownAddresses::Allow,
        },
        lease: Duration::from_millis(hello.lease_ms.into()),
        enforcer: enforcer_of(&hello)?,
        health: hello.health.map(health::checked).transpose()?,
    })
}

/// A node's name, as it says it.
fn name_of(found: &str) -> Result<NodeName, Status> {
    if found.len() > LONGEST_NAME {
        return Err(Status::invalid_argument(format!(
            "a node's name has at most {LONGEST_NAME} characters, and this one has {}",
            found.len()
        )));
    }
    Ok(one_line(found, LONGEST_NAME).into())
}

/// The enforcer that says Hello, if its version names it.
fn enforcer_of(hello: &wire::Hello) -> Result<Option<Enforcer>, Status> {
    if hello.instance.is_empty() {
        return Ok(None);
    }
    let length = hello.instance.len();
    let instance = hello.instance.as_slice().try_into();
    let instance = instance.map_err(|_| {
        Status::invalid_argument(format!(
            "hello.instance has 16 bytes, and this one {length}"
        ))
    })?;
    Ok(Some(Enforcer {
        instance,
        start: hello.start,
        process: hello.process,
    }))
}

/// The versions that a node says it holds.
fn window(found: &[wire::Position]) -> Result<Vec<Position>, Status> {
    if found.len() > MOST_VERSIONS {
        return Err(Status::invalid_argument(format!(
            "a node holds at most {MOST_VERSIONS} versions, and this one says {}",
            found.len()
        )));
    }
    positions(found).map_err(malformed)
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
            SessionError::Ahead { .. }
            | SessionError::Cloned { .. }
            | SessionError::Connected { .. }
            | SessionError::NotBelieved { .. } => Status::failed_precondition(message),
            SessionError::Taken { .. } => Status::already_exists(message),
            SessionError::Replaced { .. } | SessionError::Late { .. } => Status::aborted(message),
            SessionError::Leaving { .. } | SessionError::Stopping => Status::unavailable(message),
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
    /// The messages that the node sent before it had its session.
    early: VecDeque<SyncRequest>,
    diffs: Arc<Diffs>,
    /// The update that is being sent.
    sending: Option<Box<Parts>>,
    /// The node wants everything.
    snapshot: bool,
    retry: Retry,
}

/// The event that a conversation waits for.
enum Signal {
    /// A message of the node; `None` at the end of the stream.
    Received(Option<Box<SyncRequest>>),
    Changed,
    Retry,
    Ping,
}

impl Conversation {
    fn new(
        session: Session,
        inbound: Streaming<SyncRequest>,
        early: VecDeque<SyncRequest>,
        diffs: Arc<Diffs>,
    ) -> Conversation {
        Conversation {
            session,
            inbound,
            early,
            diffs,
            sending: None,
            snapshot: false,
            retry: Retry::new(),
        }
    }

    /// All that is said to the node; at last perhaps why it is over.
    fn messages(self) -> impl Stream<Item = Result<SyncResponse, Status>> {
        unfold(Some(self), async |conversation| {
            let mut conversation = conversation?;
            match conversation.next().await {
                Ok(message) => Some((Ok(message?), Some(conversation))),
                Err(status) => {
                    let (node, reason) = (conversation.session.name().as_str(), status.message());
                    info!(node, reason, "ended a node's session");
                    Some((Err(status), None))
                }
            }
        })
    }

    /// The next message, as soon as there is one. `None` when the node is gone.
    async fn next(&mut self) -> Result<Option<SyncResponse>, Status> {
        loop {
            let next_ping = match self.session.ping()? {
                Ok(number) => {
                    return Ok(Some(response(sync_response::Message::Ping(Ping {
                        number,
                    }))));
                }
                Err(next) => next,
            };
            if let Some(part) = self.sending.as_mut().and_then(|parts| parts.next()) {
                return Ok(Some(response(sync_response::Message::Update(part))));
            }
            self.sending = None;
            if !self.retry.is_waiting()
                && let Some(update) = self.session.next_update(self.snapshot)?
            {
                // An update without a base is sent whole anyway.
                self.snapshot = update.base.is_none();
                self.sending = Some(Box::new(Parts::new(&update, &self.diffs)));
                continue;
            }
            match self.listen(next_ping).await {
                Signal::Received(Some(request)) => {
                    self.session.received()?;
                    if let Some(grant) = self.receive(*request)? {
                        return Ok(Some(response(sync_response::Message::Lease(grant))));
                    }
                }
                Signal::Received(None) => return Ok(None),
                Signal::Changed | Signal::Retry => self.retry.go(),
                Signal::Ping => {}
            }
        }
    }

    async fn listen(&mut self, next_ping: Option<std::time::Instant>) -> Signal {
        if let Some(request) = self.early.pop_front() {
            return Signal::Received(Some(Box::new(request)));
        }
        let ping = async {
            match next_ping {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // An error: the connection broke, or the node hung up in the middle of a message.
            message = self.inbound.message() => Signal::Received(message.unwrap_or(None).map(Box::new)),
            () = self.session.changed() => Signal::Changed,
            () = self.retry.due() => Signal::Retry,
            () = ping => Signal::Ping,
        }
    }

    /// Handles a message of the node. Returns the lease to grant at once, if any.
    fn receive(&mut self, request: SyncRequest) -> Result<Option<LeaseGrant>, Status> {
        match request.message {
            Some(Message::Ack(ack)) => {
                self.session.acked(&window(&ack.window)?)?;
                self.snapshot = false;
                self.retry = Retry::new();
                Ok(None)
            }
            Some(Message::Nack(nack)) => self.refused(nack).map(|()| None),
            Some(Message::Lease(LeaseRequest { number })) => {
                Ok(self.session.lease()?.then_some(LeaseGrant { number }))
            }
            Some(Message::Health(health)) => {
                self.session.report_health(health::checked(health)?)?;
                Ok(None)
            }
            Some(Message::Pong(Pong { number })) => {
                self.session.ponged(number)?;
                Ok(None)
            }
            Some(Message::Hello(_)) => {
                Err(Status::invalid_argument("a second Hello on one stream"))
            }
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
        let window = window(&nack.window)?;
        let reason = one_line(&nack.reason, LONGEST_REASON);
        let (node, was_snapshot) = (self.session.name().as_str(), self.snapshot);
        warn!(node, %target, reason, want_snapshot = nack.want_snapshot, "node refused an update");
        self.session.nacked(target, &window, reason)?;
        self.snapshot = nack.want_snapshot;
        if was_snapshot || !nack.want_snapshot {
            self.retry.wait();
        }
        Ok(())
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        info!(node = self.session.name().as_str(), "node disconnected");
    }
}

fn response(message: sync_response::Message) -> SyncResponse {
    SyncResponse {
        message: Some(message),
    }
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
