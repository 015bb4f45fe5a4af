//! The session with the control plane: says what the node enforces, hands updates to the agent, reports what became of
//! them; asks for leases where the node has some. When it is lost the node goes on enforcing, and the session is tried
//! again, for ever.

mod lease;

use std::time::Duration;

use jiff::Timestamp;
use rand::RngExt;
use sallyport_process::text::one_line;
use sallyport_proto::{Assembly, Unknown, Update, WireError, wire};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Endpoint};
use tracing::{info, warn};
use wire::{
    node_service_client::NodeServiceClient, sync_request::Message, sync_response, trouble::Kind,
};

use crate::{
    agent::{Handle, Refusal},
    health::Health,
};
use lease::Leases;

/// The first pause before another try, and the longest. Each pause is drawn from half of it to all of it, so that
/// nodes that lost the same control plane do not come back as one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// How often a silent connection is checked, and how long it may be dead before it is given up.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// How long a session must last, or until when something must come, for it to count as established.
const PROBATION: Duration = Duration::from_millis(300);

/// A part of an update is at most 1 MiB; leave room for its frame.
const MESSAGE_MAX: usize = 4 << 20;

/// What the control plane says is kept, and what is said to it is long, up to so many bytes.
const LONGEST_REASON: usize = 1024;

/// What a node is to the control plane.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// What becomes of workload addresses that are no endpoint.
    pub unknown: Unknown,
    /// What is wrong with it, and whether it has a session.
    pub health: Health,
}

/// Keeps a session up, for ever.
pub async fn run(identity: Identity, control_plane: Endpoint, agent: Handle) {
    let endpoint = control_plane
        .connect_timeout(KEEPALIVE)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let mut pause = PAUSE_FIRST;
    let mut said = String::new();
    let mut leases = Leases::new(agent.clone());
    loop {
        let mut established = false;
        let error = session(&identity, &endpoint, &agent, &mut leases, &mut established).await;
        let health = &identity.health;
        health.count(|state| state.session_since = None);
        if established {
            health.ends(Kind::Session);
        }
        health.begins(Kind::Session, explain(&error));
        if established {
            pause = PAUSE_FIRST;
            said.clear();
        }
        // Said once, not with every try.
        let text = explain(&error);
        if text != said {
            warn!(control_plane = %endpoint.uri(), "no session: {text}; enforcing what is in the kernel and trying on");
            said = text;
        }
        tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.5..=1.0))).await;
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// One session, until it ends.
async fn session(
    identity: &Identity,
    endpoint: &Endpoint,
    agent: &Handle,
    leases: &mut Leases,
    established: &mut bool,
) -> Status {
    match try_session(identity, endpoint, agent, leases, established).await {
        Ok(()) => Status::unavailable("the control plane ended the session"),
        Err(status) => status,
    }
}

async fn try_session(
    identity: &Identity,
    endpoint: &Endpoint,
    agent: &Handle,
    leases: &mut Leases,
    established: &mut bool,
) -> Result<(), Status> {
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| Status::unavailable(source_of(&error)))?;
    let mut client = NodeServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
    let (requests, outbound) = mpsc::channel(4);
    // What is said before the stream is accepted might arrive after what is said on the next one.
    let mut inbound = client
        .sync(ReceiverStream::new(outbound))
        .await?
        .into_inner();
    let lease = agent.lease();
    agent.settled().await;
    let hello = wire::Hello {
        node_name: identity.name.clone(),
        window: window(agent),
        version: env!("CARGO_PKG_VERSION").into(),
        dropped: match &identity.unknown {
            Unknown::Drop(ranges) => Some((&**ranges).into()),
            Unknown::Allow => None,
        },
        lease_ms: lease.map_or(0, |lease| lease.as_millis() as u32),
    };
    send(&requests, Message::Hello(hello)).await?;
    if let Some(request) = leases.ask().await {
        send(&requests, request).await?;
    }
    // A control plane that turns the node away does so at once.
    let mut first = match tokio::time::timeout(PROBATION, inbound.message()).await {
        Ok(message) => message?,
        Err(_) => None,
    };
    info!(control_plane = %endpoint.uri(), "session established");
    *established = true;
    identity.health.ends(Kind::Session);
    identity
        .health
        .count(|state| state.session_since = Some(Timestamp::now()));
    let mut health = identity.health.watch();
    let mut told = None;
    let mut assembly = Assembly::default();
    loop {
        let report = health.borrow_and_update().troubles.clone();
        if told.as_ref() != Some(&report) {
            let says = identity.health.watch().borrow().report();
            send(&requests, Message::Health(says)).await?;
            told = Some(report);
        }
        let response = match first.take() {
            Some(response) => Some(response),
            None => tokio::select! {
                message = inbound.message() => message?,
                Ok(()) = health.changed() => continue,
                () = leases.due() => {
                    if let Some(request) = leases.ask().await {
                        send(&requests, request).await?;
                    }
                    continue;
                }
            },
        };
        let Some(response) = response else {
            return Ok(());
        };
        match response.message {
            Some(sync_response::Message::Update(part)) => {
                if let Some(update) = assembly.take(part).map_err(malformed)? {
                    send(&requests, answer(update, agent).await).await?;
                }
            }
            Some(sync_response::Message::Lease(grant)) => leases.granted(grant.number).await,
            None => {
                return Err(Status::internal(
                    "a message that this enforcer does not know",
                ));
            }
        }
        if agent.lease() != lease {
            // This is said in a Hello, and only there.
            return Err(Status::unavailable("the node has leases from now on"));
        }
    }
}

/// The versions that the node holds.
fn window(agent: &Handle) -> Vec<wire::Position> {
    agent.window().into_iter().map(Into::into).collect()
}

fn malformed(error: WireError) -> Status {
    Status::internal(error.to_string())
}

async fn send(requests: &mpsc::Sender<wire::SyncRequest>, message: Message) -> Result<(), Status> {
    let request = wire::SyncRequest {
        message: Some(message),
    };
    requests
        .send(request)
        .await
        .map_err(|_| Status::unavailable("the stream is closed"))
}

/// Has an update applied, and says what became of it.
async fn answer(update: Update, agent: &Handle) -> Message {
    let target = update.target;
    match agent.apply(update).await {
        Ok(()) => Message::Ack(wire::Ack {
            window: window(agent),
        }),
        Err(refusal) => {
            warn!(%refusal, "refused an update");
            Message::Nack(wire::Nack {
                target: Some(target.into()),
                window: window(agent),
                reason: one_line(&refusal.to_string(), LONGEST_REASON),
                want_snapshot: matches!(refusal, Refusal::Misfit(_)),
            })
        }
    }
}

/// A status as an operator wants to read it.
fn explain(status: &Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => one_line(message, LONGEST_REASON),
    }
}

/// The innermost cause: the transport's own words say nothing.
pub(crate) fn source_of(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
