//! Sallyport as users run it, on a testbed: one control plane in the fabric (or, for controls, one for each node), one
//! enforcer on each node, each a process of its own that can be killed and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use sallyport_proto::wire::{
    self, node_service_client::NodeServiceClient, policy_service_client::PolicyServiceClient,
};
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};

use crate::{
    binaries::{self, Binaries, binaries},
    reactor,
    relay::Relay,
    testbed::{self, Host, Testbed},
};

/// The control plane's port; further ones have those after it.
const PORT: u16 = 7443;

/// How the nodes' streams run, where that is not straight to the one control plane.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// By how much each byte of a node's stream is late, in each direction.
    pub delays: BTreeMap<usize, Duration>,
    /// Each node has a control plane of its own, and they know nothing of each other. This is no way to run Sallyport,
    /// but what the others do.
    pub uncoordinated: bool,
}

/// How long a program may take to be up, and a revision to be enforced.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why a deployment does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs are not there.
    #[error(transparent)]
    Binaries(#[from] binaries::Error),
    /// The testbed failed.
    #[error(transparent)]
    Testbed(#[from] testbed::Error),
    /// The operating system failed.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// A program did not do in time what it should.
    #[error("{0} within {PATIENCE:?}; its log: {1}")]
    Late(String, String),
    /// The control plane refused.
    #[error("the control plane: {}", .0.message())]
    Refused(#[from] tonic::Status),
    /// A revision was not enforced in time.
    #[error("revision {revision} is not enforced; lagging: {lagging}")]
    NotEnforced {
        /// The revision.
        revision: u64,
        /// The nodes that lag, and why.
        lagging: String,
    },
}

/// A running deployment. Its processes die with it.
pub struct Deployment {
    /// Where it runs.
    pub bed: Testbed,
    binaries: Binaries,
    directory: tempfile::TempDir,
    streams: Streams,
    control_planes: Vec<Option<Child>>,
    relays: BTreeMap<usize, Relay>,
    enforcers: Vec<Option<Child>>,
    control_plane_arguments: Vec<String>,
    enforcer_arguments: Vec<String>,
}

impl Deployment {
    /// Starts a control plane, and an enforcer with these arguments on each node.
    pub fn start(bed: Testbed, enforcer_arguments: &[&str]) -> Result<Deployment, Error> {
        Self::start_with(bed, &[], enforcer_arguments, Streams::default())
    }

    /// The same, with arguments for the control plane too, and streams that run otherwise.
    pub fn start_with(
        bed: Testbed,
        control_plane_arguments: &[&str],
        enforcer_arguments: &[&str],
        streams: Streams,
    ) -> Result<Deployment, Error> {
        let owned = |arguments: &[&str]| arguments.iter().map(|&one| one.to_owned()).collect();
        let control_planes = if streams.uncoordinated {
            bed.nodes()
        } else {
            1
        };
        let mut deployment = Deployment {
            binaries: binaries()?,
            directory: tempfile::tempdir().map_err(|error| Error::Io("make a directory", error))?,
            streams,
            control_planes: (0..control_planes).map(|_| None).collect(),
            relays: BTreeMap::new(),
            enforcers: (0..bed.nodes()).map(|_| None).collect(),
            control_plane_arguments: owned(control_plane_arguments),
            enforcer_arguments: owned(enforcer_arguments),
            bed,
        };
        for index in 0..control_planes {
            deployment.start_control_plane_at(index)?;
        }
        for node in 0..deployment.bed.nodes() {
            deployment.start_enforcer(node)?;
        }
        Ok(deployment)
    }

    /// The name of a node, counted from 0.
    pub fn node_name(node: usize) -> String {
        format!("node-{}", node + 1)
    }

    /// Where the control plane listens, as the nodes and `sallyport --server` take it.
    pub fn server(&self) -> String {
        format!("http://{}:{PORT}", self.bed.fabric_address())
    }

    /// Where a program keeps its journal.
    pub fn data_dir(&self, program: &str) -> PathBuf {
        self.directory.path().join(program)
    }

    /// What a program has logged.
    pub fn log(&self, program: &str) -> String {
        std::fs::read_to_string(self.log_path(program)).unwrap_or_default()
    }

    fn log_path(&self, program: &str) -> PathBuf {
        self.directory.path().join(format!("{program}.log"))
    }

    /// Starts the control plane, and waits until it serves.
    pub fn start_control_plane(&mut self) -> Result<(), Error> {
        self.start_control_plane_at(0)
    }

    fn start_control_plane_at(&mut self, index: usize) -> Result<(), Error> {
        let address = self.control_plane_address(index);
        let name = match index {
            0 => "controlplane".to_owned(),
            _ => format!("controlplane-{}", index + 1),
        };
        let mut command = self
            .bed
            .fabric()
            .netns()
            .command(&self.binaries.controlplane);
        command
            .args(["--listen", &address.to_string(), "--data-dir"])
            .arg(self.data_dir(&name))
            .args(&self.control_plane_arguments);
        let child = self.spawn(self.bed.fabric(), command, &name)?;
        self.control_planes[index] = Some(child);
        self.wait_for("the control plane does not listen", &name, || {
            let connect =
                || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100));
            self.bed.fabric().netns().run(connect).is_ok()
        })
    }

    fn control_plane_address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(self.bed.fabric_address().into(), PORT + index as u16)
    }

    /// Where a node's enforcer finds its control plane: over a relay, if its stream is to be slow.
    fn upstream(&mut self, node: usize) -> Result<SocketAddr, Error> {
        let index = if self.streams.uncoordinated { node } else { 0 };
        let target = self.control_plane_address(index);
        let Some(&delay) = self.streams.delays.get(&node) else {
            return Ok(target);
        };
        if let Some(relay) = self.relays.get(&node) {
            return Ok(relay.address());
        }
        let (fabric, address) = (self.bed.fabric().netns(), target.ip());
        let relay = Relay::start(fabric, address, target, delay)
            .map_err(|error| Error::Io("start a relay", error))?;
        let address = relay.address();
        self.relays.insert(node, relay);
        Ok(address)
    }

    /// Starts a node's enforcer. It is up when its table is.
    pub fn start_enforcer(&mut self, node: usize) -> Result<(), Error> {
        let name = Self::node_name(node);
        let control_plane = format!("http://{}", self.upstream(node)?);
        let mut command = self.bed.node(node).netns().command(&self.binaries.enforcer);
        command
            .args([
                "--node-name",
                &name,
                "--control-plane",
                &control_plane,
                "--data-dir",
            ])
            .arg(self.data_dir(&name))
            .args(&self.enforcer_arguments);
        let child = self.spawn(self.bed.node(node), command, &name)?;
        self.enforcers[node] = Some(child);
        self.wait_for("the enforcer is not up", &name, || {
            self.log(&name).contains(" enforcing ")
        })
    }

    fn spawn(&self, host: &Host, mut command: Command, program: &str) -> Result<Child, Error> {
        let log =
            File::create(self.log_path(program)).map_err(|error| Error::Io("make a log", error))?;
        command
            .env(
                "RUST_LOG",
                std::env::var("SALLYPORT_TEST_LOG").unwrap_or_else(|_| "info".into()),
            )
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        host.netns()
            .spawn(command)
            .map_err(|error| Error::Io("start a program", error))
    }

    fn wait_for(
        &self,
        what: &str,
        program: &str,
        mut is_so: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            if Instant::now() > deadline {
                return Err(Error::Late(what.into(), self.log(program)));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Kills the control plane as `kill -9` does.
    pub fn kill_control_plane(&mut self) {
        kill(self.control_planes[0].take());
    }

    /// Kills a node's enforcer as `kill -9` does.
    pub fn kill_enforcer(&mut self, node: usize) {
        kill(self.enforcers[node].take());
    }

    /// Stops the control plane as a service manager does, with SIGTERM, and waits until it is gone.
    pub fn stop_control_plane(&mut self) {
        stop(self.control_planes[0].take());
    }

    /// Stops a node's enforcer as a service manager does.
    pub fn stop_enforcer(&mut self, node: usize) {
        stop(self.enforcers[node].take());
    }

    /// The process of a node's enforcer.
    pub fn enforcer_pid(&self, node: usize) -> Option<u32> {
        self.enforcers[node].as_ref().map(Child::id)
    }

    /// The process of the control plane.
    pub fn control_plane_pid(&self) -> Option<u32> {
        self.control_planes[0].as_ref().map(Child::id)
    }

    /// Enforcers that are started from now on have these arguments.
    pub fn set_enforcer_arguments(&mut self, arguments: &[&str]) {
        self.enforcer_arguments = arguments.iter().map(|&one| one.to_owned()).collect();
    }

    /// Runs the CLI in a directory.
    pub fn sallyport(&self, directory: &Path, arguments: &[&str]) -> Result<Output, Error> {
        let mut command = self.bed.fabric().netns().command(&self.binaries.sallyport);
        command
            .args(arguments)
            .env("SALLYPORT_SERVER", self.server())
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.bed.fabric().netns().spawn(command);
        child
            .and_then(Child::wait_with_output)
            .map_err(|error| Error::Io("run sallyport", error))
    }

    /// A client of the API.
    pub fn client(&self) -> Result<Client, Error> {
        self.client_of(0)
    }

    /// Clients of all control planes: one, unless they are uncoordinated.
    pub fn clients(&self) -> Result<Vec<Client>, Error> {
        (0..self.control_planes.len())
            .map(|index| self.client_of(index))
            .collect()
    }

    fn client_of(&self, index: usize) -> Result<Client, Error> {
        Ok(Client {
            service: PolicyServiceClient::new(self.channel(index)?),
        })
    }

    /// Says Hello as a node that holds nothing, which must be nobody else's name, and returns when it is answered: with the
    /// first part of its policy.
    pub fn hello(&self, node: &str) -> Result<(), Error> {
        let hello = wire::Hello {
            node_name: node.to_owned(),
            dropped: Some(wire::WorkloadRanges::default()),
            ..wire::Hello::default()
        };
        let request = wire::SyncRequest {
            message: Some(wire::sync_request::Message::Hello(hello)),
        };
        let requests = tokio_stream::once(request).chain(tokio_stream::pending());
        let mut service = NodeServiceClient::new(self.channel(0)?);
        let answer = reactor::wait(async move {
            let answers = service.sync(requests).await?;
            answers.into_inner().message().await
        })?;
        answer
            .map(drop)
            .ok_or_else(|| tonic::Status::unavailable("the stream ended").into())
    }

    fn channel(&self, index: usize) -> Result<Channel, Error> {
        let fabric = self.bed.fabric().netns().clone();
        let address = self.control_plane_address(index);
        let connector = tower::service_fn(move |_| {
            let fabric = fabric.clone();
            async move {
                // A socket stays in the namespace that it was made in.
                let socket = fabric.run(|| std::net::TcpStream::connect(address))?;
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(
                    tokio::net::TcpStream::from_std(socket)?,
                ))
            }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        reactor::wait(async move { endpoint.connect_with_connector(connector).await })
            .map_err(|error| Error::Refused(tonic::Status::unavailable(error.to_string())))
    }

    /// What stock nft lists of a node's ruleset.
    pub fn ruleset(&self, node: usize) -> Result<String, Error> {
        let mut command = self.bed.node(node).netns().command("nft");
        command.args(["list", "ruleset"]).stdout(Stdio::piped());
        let child = self.bed.node(node).netns().spawn(command);
        let output = child
            .and_then(Child::wait_with_output)
            .map_err(|error| Error::Io("run nft", error))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for process in self.control_planes.iter_mut().chain(&mut self.enforcers) {
            kill(process.take());
        }
    }
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn stop(child: Option<Child>) {
    if let Some(mut child) = child {
        let _ = signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        let _ = child.wait();
    }
}

/// A client of the API that waits for answers.
#[derive(Clone)]
pub struct Client {
    service: PolicyServiceClient<Channel>,
}

/// A manifest, to be put.
pub fn put(text: impl Into<String>) -> wire::Edit {
    edit(wire::edit::Op::Put(manifest(text)))
}

/// A manifest, whose objects are to be deleted.
pub fn delete(text: impl Into<String>) -> wire::Edit {
    edit(wire::edit::Op::DeleteManifest(manifest(text)))
}

fn manifest(text: impl Into<String>) -> wire::Manifest {
    wire::Manifest {
        text: text.into(),
        source: "test".into(),
    }
}

fn edit(op: wire::edit::Op) -> wire::Edit {
    wire::Edit { op: Some(op) }
}

impl Client {
    /// Carries out a transaction. Returns its revision.
    pub fn apply(&mut self, edits: Vec<wire::Edit>) -> Result<u64, Error> {
        let request = wire::ApplyRequest {
            edits,
            ..wire::ApplyRequest::default()
        };
        Ok(self.carry_out(request)?.revision)
    }

    /// Carries out a transaction as it is asked for.
    pub fn carry_out(&mut self, request: wire::ApplyRequest) -> Result<wire::ApplyResponse, Error> {
        let mut service = self.service.clone();
        let response = reactor::wait(async move { service.apply(request).await })?;
        Ok(response.into_inner())
    }

    /// Waits until every node that must has a revision in its kernel.
    pub fn wait_enforced(&mut self, revision: u64) -> Result<(), Error> {
        let request = wire::WaitEnforcedRequest {
            revision,
            timeout_ms: PATIENCE.as_millis() as u32,
        };
        let mut service = self.service.clone();
        let response =
            reactor::wait(async move { service.wait_enforced(request).await })?.into_inner();
        if response.enforced {
            return Ok(());
        }
        let lagging = response
            .lagging
            .iter()
            .map(|node| format!("{} ({})", node.name, node.reason));
        Err(Error::NotEnforced {
            revision,
            lagging: lagging.collect::<Vec<_>>().join(", "),
        })
    }

    /// How everything stands.
    pub fn status(&mut self) -> Result<wire::StatusResponse, Error> {
        let mut service = self.service.clone();
        let response = reactor::wait(async move { service.status(wire::StatusRequest {}).await })?;
        Ok(response.into_inner())
    }

    /// Waits until one node has a revision in its kernel, whatever others have.
    pub fn wait_enforced_by(&mut self, node: &str, revision: u64) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            let is_it = |one: &wire::NodeStatus| {
                one.name == node && !(1..=revision).contains(&one.pending_revision)
            };
            if status.nodes.iter().any(is_it) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let lagging = node.to_owned();
                return Err(Error::NotEnforced { revision, lagging });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The names of all objects of a kind, as `namespace/name`.
    pub fn names(&mut self, kind: wire::Kind) -> Result<BTreeSet<String>, Error> {
        let mut names = BTreeSet::new();
        let mut page_token = String::new();
        loop {
            let request = wire::ListRequest {
                kind: kind.into(),
                page_token,
                ..wire::ListRequest::default()
            };
            let mut service = self.service.clone();
            let page = reactor::wait(async move { service.list(request).await })?.into_inner();
            let references = page.objects.into_iter().filter_map(|object| object.r#ref);
            names.extend(references.map(|one| format!("{}/{}", one.namespace, one.name)));
            if page.next_page_token.is_empty() {
                return Ok(names);
            }
            page_token = page.next_page_token;
        }
    }

    /// Carries out a transaction, and waits until it is enforced. Returns its revision.
    pub fn enforce(&mut self, edits: Vec<wire::Edit>) -> Result<u64, Error> {
        let revision = self.apply(edits)?;
        self.wait_enforced(revision)?;
        Ok(revision)
    }
}
