//! The session with the control plane: reports the versions that the node holds, hands updates to the agent, reports
//! their results; asks for leases where the node has some. When it is lost the node goes on enforcing, and the session
//! is tried again, for ever.

mod lease;

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use rand::RngExt;
use sallyport_policy::{NodeName, UnknownAddresses, Update};
use sallyport_process::text::one_line;
use sallyport_proto::{Assembled, Assembly, WireError, wire};
use tokio::{
    sync::{mpsc, watch},
    time::{Sleep, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{info, warn};
use wire::{
    node_service_client::NodeServiceClient, sync_request::Message, sync_response, trouble::Kind,
};

use crate::{
    agent::{Handle, UpdateError},
    control_plane::ControlPlane,
    health::{Condition, Health, State},
    instance::Instance,
    judged::Unjudged,
};
use lease::Leases;

/// The first pause before another try, and the longest. Each pause is drawn from half of it to all of it, so that
/// nodes that lost the same control plane do not come back as one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

/// The time between checks of a silent connection, and the longest time that it may be dead before the session gives it
/// up.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The time that a session must last, or in which a message must come, for it to count as established.
const PROBATION: Duration = Duration::from_millis(300);

/// The same after a Ping: the control plane may be asking which of two enforcers has the name, for 2 seconds.
const CONTESTED: Duration = Duration::from_secs(3);

/// While an update is applied, this many messages are read: Pings and leases are dealt with at once, and the others
/// wait.
const MOST_WAITING: usize = 16;

/// A part of an update is at most 1 MiB; leave room for its frame.
const MESSAGE_MAX: usize = 4 << 20;

/// The most bytes of a reason from the control plane that are kept, and of a reason that is sent to it.
const LONGEST_REASON: usize = 1024;

/// The identity of a node for the control plane.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name.
    pub name: NodeName,
    /// The treatment of workload addresses that are no endpoint.
    pub unknown: UnknownAddresses,
    /// The enforcer of that name that this process is.
    pub instance: Instance,
    /// The node's conditions, and whether it has a session.
    pub health: Health,
}

/// Keeps a session up, for ever.
pub async fn run(identity: Identity, control_plane: ControlPlane, agent: Handle) {
    let control_plane = control_plane.tuned(|endpoint| {
        endpoint
            .connect_timeout(KEEPALIVE)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
    });
    let mut pause = PAUSE_FIRST;
    let mut logged = String::new();
    let mut leases = Leases::new(agent.clone());
    loop {
        let mut established = false;
        let error = session(
            &identity,
            &control_plane,
            &agent,
            &mut leases,
            &mut established,
        )
        .await;
        let health = &identity.health;
        health.count(|state| state.session_since = None);
        if established {
            health.clear(Kind::Session);
        }
        health.set(Kind::Session, explain(&error));
        if established {
            pause = PAUSE_FIRST;
            logged.clear();
        }
        // Logged once, not with every try.
        let text = explain(&error);
        if text != logged {
            warn!(
                control_plane = control_plane.url(),
                "no session with the control plane: {text}; the tables in the kernel stay in force; trying again"
            );
            logged = text;
        }
        sleep(pause.mul_f64(rand::rng().random_range(0.5..=1.0))).await;
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

/// One session, until it ends.
async fn session(
    identity: &Identity,
    control_plane: &ControlPlane,
    agent: &Handle,
    leases: &mut Leases,
    established: &mut bool,
) -> Status {
    match try_session(identity, control_plane, agent, leases, established).await {
        Ok(()) => Status::unavailable("the control plane ended the session"),
        Err(status) => status,
    }
}

async fn try_session(
    identity: &Identity,
    control_plane: &ControlPlane,
    agent: &Handle,
    leases: &mut Leases,
    established: &mut bool,
) -> Result<(), Status> {
    let channel = control_plane.connect(&identity.name).await?;
    let mut client = NodeServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
    let (requests, outbound) = mpsc::channel(4);
    // A message from before the stream is accepted might arrive after messages on the next stream.
    let mut inbound = client
        .sync(ReceiverStream::new(outbound))
        .await?
        .into_inner();
    let lease = agent.lease();
    agent.wait_idle().await;
    let hello = wire::Hello {
        node_name: identity.name.to_string(),
        window: window(agent),
        version: env!("CARGO_PKG_VERSION").into(),
        dropped: match &identity.unknown {
            UnknownAddresses::Drop(ranges) => Some((&**ranges).into()),
            UnknownAddresses::Allow => None,
        },
        lease_ms: lease.map_or(0, |lease| {
            u32::try_from(lease.as_millis()).unwrap_or(u32::MAX)
        }),
        instance: identity.instance.id.to_vec(),
        start: identity.instance.start,
        process: identity.instance.process,
        health: Some(identity.health.watch().borrow().first_report()),
    };
    send(&requests, Message::Hello(hello)).await?;
    if let Some(request) = leases.ask().await {
        send(&requests, request).await?;
    }
    // A control plane that turns the node away does so at once.
    let mut probation = Some(Box::pin(sleep(PROBATION)));
    let establish = |established: &mut bool| {
        info!(control_plane = control_plane.url(), "session established");
        *established = true;
        identity.health.clear(Kind::Session);
        identity
            .health
            .count(|state| state.session_since = Some(Timestamp::now()));
    };
    let mut health = identity.health.watch();
    let mut reported = Reported::default();
    let mut assembly = Assembly::default();
    let mut applying: Option<BoxFuture<'_, Result<Message, Status>>> = None;
    let mut waiting = VecDeque::new();
    loop {
        if probation.is_none() {
            report_health(&mut health, &mut reported, &requests).await?;
        }
        let next = match applying {
            None => waiting.pop_front(),
            Some(_) => None,
        };
        let message = match next {
            Some(message) => message,
            None => {
                let response = tokio::select! {
                    answer = applied(&mut applying) => {
                        applying = None;
                        let answer = answer?;
                        // Whoever waits for the answer alone is to know which workloads of the update are not judged.
                        report_health(&mut health, &mut reported, &requests).await?;
                        send(&requests, answer).await?;
                        same_lease(agent, lease)?;
                        continue;
                    }
                    response = inbound.message(), if waiting.len() < MOST_WAITING => response?,
                    Ok(()) = health.changed() => continue,
                    () = elapsed(&mut probation) => {
                        probation = None;
                        establish(established);
                        continue;
                    }
                    () = leases.due() => {
                        if let Some(request) = leases.ask().await {
                            send(&requests, request).await?;
                        }
                        continue;
                    }
                };
                let Some(response) = response else {
                    return Ok(());
                };
                let message = response.message;
                message.ok_or_else(|| {
                    Status::internal("this enforcer does not know the kind of a message")
                })?
            }
        };
        let is_ping = matches!(message, sync_response::Message::Ping(_));
        if !is_ping && probation.take().is_some() {
            establish(established);
        }
        match message {
            sync_response::Message::Ping(wire::Ping { number }) => {
                send(&requests, Message::Pong(wire::Pong { number })).await?;
                if let Some(probation) = &mut probation {
                    *probation = Box::pin(sleep(CONTESTED));
                }
            }
            sync_response::Message::Lease(grant) => {
                leases.granted(grant.number).await;
                same_lease(agent, lease)?;
            }
            message if applying.is_some() => waiting.push_back(message),
            sync_response::Message::Update(part) => {
                if let Some(update) = assembly.gather(part).map_err(malformed)? {
                    applying = Some(Box::pin(answer(update, agent)));
                }
            }
        }
    }
}

/// The conditions and unjudged workloads of the latest report in this session.
type Reported = Option<(BTreeMap<Kind, Condition>, Arc<Unjudged>)>;

/// Sends the node's health to the control plane, unless that is what was reported last.
async fn report_health(
    health: &mut watch::Receiver<State>,
    reported: &mut Reported,
    requests: &mpsc::Sender<wire::SyncRequest>,
) -> Result<(), Status> {
    let (report, message) = {
        let state = health.borrow_and_update();
        let report = (state.conditions.clone(), Arc::clone(&state.unjudged));
        if reported.as_ref() == Some(&report) {
            return Ok(());
        }
        (report, state.report())
    };
    send(requests, Message::Health(message)).await?;
    *reported = Some(report);
    Ok(())
}

/// Ends a session in which the node said other leases than it has.
fn same_lease(agent: &Handle, announced: Option<Duration>) -> Result<(), Status> {
    match agent.lease() == announced {
        true => Ok(()),
        // This is said in a Hello, and only there.
        false => Err(Status::unavailable(
            "the node's use of leases changed: a new session announces this",
        )),
    }
}

/// Returns what became of the update that is being applied.
async fn applied(
    applying: &mut Option<BoxFuture<'_, Result<Message, Status>>>,
) -> Result<Message, Status> {
    match applying {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// Returns when a time is over.
async fn elapsed(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(timer) => timer.await,
        None => std::future::pending().await,
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
        .map_err(|_| Status::unavailable("the stream to the control plane is closed"))
}

/// Has an update applied, and says what became of it. Leases are asked for meanwhile, so a large update is understood
/// on another thread.
async fn answer(update: Assembled, agent: &Handle) -> Result<Message, Status> {
    let update = tokio::task::spawn_blocking(move || Update::try_from(update));
    let update = update.await.expect("to understand does not panic");
    let update = update.map_err(malformed)?;
    let target = update.target;
    Ok(match agent.apply(update).await {
        Ok(()) => Message::Ack(wire::Ack {
            window: window(agent),
        }),
        Err(refusal) => {
            warn!(%refusal, "refused an update");
            Message::Nack(wire::Nack {
                target: Some(target.into()),
                window: window(agent),
                reason: one_line(&refusal.to_string(), LONGEST_REASON),
                want_snapshot: matches!(refusal, UpdateError::Misfit(_)),
            })
        }
    })
}

/// A status as an operator wants to read it.
fn explain(status: &Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => one_line(message, LONGEST_REASON),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sallyport_policy::{Epoch, NodePolicy, Position, Revision};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Streaming, transport::Server};
    use wire::{
        LeaveRequest, LeaveResponse, SyncRequest, SyncResponse, UpdatePart,
        node_service_server::{NodeService, NodeServiceServer},
    };

    use super::*;

    type Reply = Result<SyncResponse, Status>;

    /// A control plane that says what it is given, and passes on what it hears.
    struct Plane {
        replies: Mutex<Option<mpsc::Receiver<Reply>>>,
        requests: mpsc::Sender<SyncRequest>,
    }

    #[tonic::async_trait]
    impl NodeService for Plane {
        type SyncStream = ReceiverStream<Reply>;

        async fn sync(
            &self,
            request: Request<Streaming<SyncRequest>>,
        ) -> Result<Response<Self::SyncStream>, Status> {
            let (mut inbound, requests) = (request.into_inner(), self.requests.clone());
            tokio::spawn(async move {
                while let Ok(Some(request)) = inbound.message().await {
                    requests.send(request).await.unwrap();
                }
            });
            let replies = self.replies.lock().unwrap().take();
            let replies = replies.ok_or_else(|| Status::unavailable("one session is enough"))?;
            Ok(Response::new(ReceiverStream::new(replies)))
        }

        async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
            Err(Status::unimplemented("no node leaves"))
        }
    }

    /// The next message that is no Health.
    async fn receive(received: &mut mpsc::Receiver<SyncRequest>) -> Message {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(10), received.recv());
            match next.await.expect("it comes").unwrap().message.unwrap() {
                Message::Health(_) => {}
                other => return other,
            }
        }
    }

    #[tokio::test]
    async fn a_ping_is_answered_while_an_update_is_applied() {
        let (sender, replies) = mpsc::channel(8);
        let (requests, mut received) = mpsc::channel(8);
        let plane = Plane {
            replies: Mutex::new(Some(replies)),
            requests,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_service(NodeServiceServer::new(plane));
        tokio::spawn(server.serve_with_incoming(incoming));
        let instance = Instance {
            id: [7; 16],
            start: 3,
            process: 5,
        };
        let identity = Identity {
            name: "n".into(),
            unknown: UnknownAddresses::Allow,
            instance,
            health: Health::default(),
        };
        let (go_on, waits) = std::sync::mpsc::channel();
        let control_plane = ControlPlane::new(Some(&url), None).unwrap();
        let talk = async {
            let Message::Hello(hello) = receive(&mut received).await else {
                panic!("Hello comes first");
            };
            let instance = (hello.instance, hello.start, hello.process);
            assert_eq!(instance, (vec![7; 16], 3, 5));
            let send = async |message| {
                let message = Some(message);
                sender.send(Ok(SyncResponse { message })).await.unwrap();
            };
            let target = Position {
                epoch: Epoch(1),
                revision: Revision(1),
                digest: NodePolicy::default().digest(),
            };
            send(sync_response::Message::Update(UpdatePart {
                target: Some(target.into()),
                last: true,
                ..UpdatePart::default()
            }))
            .await;
            for number in [1, 2] {
                send(sync_response::Message::Ping(wire::Ping { number })).await;
                let answer = receive(&mut received).await;
                assert_eq!(answer, Message::Pong(wire::Pong { number }));
            }
            go_on.send(()).unwrap();
            assert!(matches!(receive(&mut received).await, Message::Ack(_)));
        };
        tokio::select! {
            () = run(identity, control_plane, Handle::held(waits)) => panic!("a session is tried for ever"),
            () = talk => {}
        }
    }
}
