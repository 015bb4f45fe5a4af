//! The whole control plane in one process: journal, writer, both services, started in order and stopped in order.
//! Handles no signal and sets up no logging: that is the binary's.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sallyport_identity::{LoadError, ServerTls};
use sallyport_policy::{Epoch, Revision};
use sallyport_proto::wire::{
    DESCRIPTOR, node_service_server::NodeServiceServer, policy_service_server::PolicyServiceServer,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tonic::transport::{Server, server::Router};
use tracing::{Span, info, warn};

use crate::{
    access::{Access, Callers},
    api::{Api, MAX_REQUEST, Watches},
    config::{Address, Config},
    journal::{JournalError, Note, SledJournal},
    listener::{Client, Listener},
    metrics::{self, Appends, Source, Timed},
    nodes::Nodes,
    oversize::Oversize,
    stream::{LONGEST_MESSAGE, Streams},
    writer::{ApplyError, Running, Writer},
};

/// A peer that does not answer for so long is gone. Nodes and watchers are idle most of the time.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time that calls under way have to end.
const GRACE: Duration = Duration::from_secs(5);

/// Why the control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The journal is not usable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The certificate is not usable.
    #[error("cannot serve TLS: {0}")]
    Tls(#[from] LoadError),
    /// A socket file needs no certificate.
    #[error(
        "--tls is for TCP, and --listen {0} is a socket that only its owner can open: listen on HOST:PORT, or leave \
         out --tls (SALLYPORT_TLS)"
    )]
    TlsOnSocket(Address),
    /// Nobody can connect.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: Address,
        /// Why not.
        cause: io::Error,
    },
    /// Nobody can ask for metrics.
    #[error("cannot listen on --metrics {address}: {cause}")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why not.
        cause: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// Serving failed.
    #[error("the gRPC server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// The writer is gone.
    #[error(
        "the thread that applies transactions stopped: see the log for the cause. The journal holds all acknowledged \
         transactions"
    )]
    Writer,
    /// A part of the process panicked.
    #[error("a task panicked: {0}")]
    Panicked(#[from] tokio::task::JoinError),
    /// The descriptors for reflection are not readable.
    #[error("cannot serve gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running control plane. Dropping it stops it, without waiting for it.
#[derive(Debug)]
pub struct Handle {
    /// Where it serves; with the real port.
    pub address: Address,
    /// The revision that it started with.
    pub revision: Revision,
    /// Its epoch.
    pub epoch: Epoch,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ServerError>>,
}

/// Starts a control plane. When this returns, it serves.
pub async fn start(config: Config) -> Result<Handle, ServerError> {
    let started = Instant::now();
    let tls = load_tls(&config)?;
    let (settings, leading) = (config.journal(), config.nodes());
    let (journal, mut recovered) =
        tokio::task::spawn_blocking(move || SledJournal::open(settings)).await??;
    let opened = started.elapsed();
    recovered.cluster = recovered.cluster.with_established(config.established);
    let (revision, epoch) = (recovered.revision, recovered.epoch);
    let appends = Arc::<Appends>::default();
    let journal = Timed {
        journal,
        appends: appends.clone(),
    };
    let (writer, nodes, running) =
        tokio::task::spawn_blocking(move || Writer::start(Box::new(journal), recovered, leading))
            .await?
            .map_err(ServerError::Thread)?;
    let listener = Listener::bind(&config.listen)
        .await
        .map_err(|cause| ServerError::Listen {
            address: config.listen.clone(),
            cause,
        })?;
    let address = listener.address().clone();
    if address.is_exposed() && tls.is_none() {
        warn!(
            "{address} is not a loopback address, and there is no TLS: every client that reaches this address can \
             read and change all objects, and act as any node. Use --tls DIR (`sallyport-controlplane init` makes the \
             certificates), --listen 127.0.0.1:PORT or --listen unix:///PATH"
        );
    }
    let (stop, stopping) = watch::channel(false);
    let watches = Watches::default();
    if let Some(address) = config.metrics {
        let source = Source {
            nodes: nodes.clone(),
            writer: writer.clone(),
            appends,
            connections: listener.counts(),
            handshakes: listener.handshakes(),
            watches: watches.clone(),
        };
        let listening = metrics::listen(address, source).await;
        let address = listening.map_err(|cause| ServerError::Metrics { address, cause })?;
        info!("serving metrics on http://{address}/metrics");
    }
    let callers = match tls {
        Some(_) => (Callers::Nodes, Callers::Operators),
        None => (Callers::Anyone, Callers::Anyone),
    };
    let router = router(writer, nodes, watches, callers, stopping.clone()).await?;
    let task = tokio::spawn(serve(router, listener, tls, running, stopping));
    let took = started.elapsed();
    info!(?took, read = ?opened, "listening on {address}, revision {revision}, epoch {epoch}");
    Ok(Handle {
        address,
        revision,
        epoch,
        stop,
        task,
    })
}

/// The TLS that the configuration asks for.
fn load_tls(config: &Config) -> Result<Option<Arc<ServerTls>>, ServerError> {
    let Some(directory) = &config.tls else {
        return Ok(None);
    };
    if let Address::Unix(_) = config.listen {
        return Err(ServerError::TlsOnSocket(config.listen.clone()));
    }
    let tls = ServerTls::load(directory)?;
    let details = tls.details();
    let (cluster, until, names) = (details.identity.cluster, details.not_after, &details.names);
    info!(%cluster, %until, ?names, "loaded the control plane's certificate");
    if let Some(cause) = details.untimely(Timestamp::now()) {
        warn!(
            "the certificate of {} {cause}: nodes and operators refuse it. Renew it with `sallyport-controlplane issue \
             controlplane --renew`, or set the clock",
            directory.display()
        );
    }
    Ok(Some(Arc::new(tls)))
}

impl Handle {
    /// Stops it: ends the streams, finishes what is under way, closes the journal.
    pub async fn stop(mut self) -> Result<(), ServerError> {
        self.stop.send_replace(true);
        (&mut self.task).await?
    }

    /// Waits until it stops by itself, which it does only when something is broken.
    pub async fn failed(&mut self) -> ServerError {
        match (&mut self.task).await {
            Ok(Ok(())) => ServerError::Writer,
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn router(
    writer: Writer,
    nodes: Arc<Nodes>,
    watches: Watches,
    (of_nodes, of_operators): (Callers, Callers),
    stopping: watch::Receiver<bool>,
) -> Result<Router, ServerError> {
    let api = Api::new(writer.clone(), nodes.clone(), watches, stopping.clone());
    let policies = PolicyServiceServer::new(api)
        .max_decoding_message_size(MAX_REQUEST)
        // What was read can be told again, whatever it grew to.
        .max_encoding_message_size(usize::MAX);
    let streams = NodeServiceServer::new(Streams::new(nodes.clone(), writer.clone()))
        .max_decoding_message_size(LONGEST_MESSAGE);
    tokio::spawn(pace_and_record(nodes, writer, stopping));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PolicyServiceServer<Api>>().await;
    health.set_serving::<NodeServiceServer<Streams>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Server::builder()
        // Called with each request, whatever it asks for; there are no spans.
        .trace_fn(|request| {
            if let Some(client) = request.extensions().get::<Client>() {
                client.asks();
            }
            Span::none()
        })
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(Access::of(Oversize::of(policies, MAX_REQUEST), of_operators))
        .add_service(Access::of(streams, of_nodes))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

/// Paces the rollouts, and has the journal know how far they are. Ends with the writer, or when told; then the nodes'
/// streams end, too.
async fn pace_and_record(nodes: Arc<Nodes>, writer: Writer, mut stopping: watch::Receiver<bool>) {
    let mut settled = nodes.settled();
    let remember = async {
        loop {
            let note = Note::Settled(*settled.borrow_and_update());
            if let Err(ApplyError::Stopping) = writer.note(note).await {
                return;
            }
            // The sender lives as long as the handle `nodes`.
            let _ = settled.changed().await;
        }
    };
    tokio::select! {
        () = nodes.pace() => {}
        () = remember => {}
        _ = stopping.wait_for(|&stopping| stopping) => {}
    }
    nodes.stop();
}

/// Serves until it is told to stop, or the writer is gone; then ends the writer.
async fn serve(
    router: Router,
    listener: Listener,
    tls: Option<Arc<ServerTls>>,
    mut running: Running,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), ServerError> {
    let mut told = stopping.clone();
    let shutdown = async move {
        // Ends also when the handle is dropped.
        let _ = told.wait_for(|&stop| stop).await;
    };
    let mut serving = tokio::spawn(listener.serve(router, tls.clone(), shutdown));
    let renewals = async {
        match &tls {
            Some(tls) => tls.watch().await,
            None => pending().await,
        }
    };
    let writer_is_gone = tokio::select! {
        () = renewals => unreachable!("files are watched for ever"),
        served = &mut serving => return served?.map_err(Into::into),
        _ = &mut running.ended => true,
        _ = stopping.wait_for(|&stop| stop) => false,
    };
    if writer_is_gone {
        serving.abort();
        return Err(ServerError::Writer);
    }
    info!("stopping the control plane");
    match timeout(GRACE, &mut serving).await {
        Ok(served) => served??,
        Err(_) => {
            warn!("some calls did not end in time: the control plane cuts them off");
            serving.abort();
        }
    }
    tokio::task::spawn_blocking(|| running.stop()).await?;
    info!("stopped the control plane");
    Ok(())
}
