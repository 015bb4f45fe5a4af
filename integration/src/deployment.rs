//! Sallyport as users run it, on a testbed: one control plane in the fabric (or, for controls, one for each node), one
//! enforcer on each node, each a process of its own that can be killed and started again.

mod client;
mod secure;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use sallyport_proto::wire::{self, node_service_client::NodeServiceClient};
use sallyport_testbed::{Host, Testbed, listing, reactor, relay::Relay, tracer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};

use crate::binaries::{self, Binaries, binaries};

pub use client::{Client, delete, put};

/// The control plane's port; further ones have those after it.
const PORT: u16 = 7443;

/// The streams of the nodes, where they do not go straight to the one control plane.
#[derive(Clone, Debug, Default)]
pub struct Streams {
    /// By how much each byte of a node's stream is late, in each direction.
    pub delays: BTreeMap<usize, Duration>,
    /// Each node has a control plane of its own, and they know nothing of each other. This is no way to run Sallyport,
    /// but what the others do.
    pub uncoordinated: bool,
}

/// The time that a program may take to be up, and a revision to be enforced.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why a deployment does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The programs are not there.
    #[error(transparent)]
    Binaries(#[from] binaries::Error),
    /// The testbed failed.
    #[error(transparent)]
    Testbed(#[from] sallyport_testbed::Error),
    /// The operating system failed.
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    /// A program did not do in time what it should.
    #[error("{0} within {PATIENCE:?}; its log: {1}")]
    Late(String, String),
    /// `init` or `issue` failed.
    #[error("no certificate: {0}")]
    Certificates(String),
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
    pub bed: Testbed,
    binaries: Binaries,
    directory: tempfile::TempDir,
    streams: Streams,
    control_planes: Vec<Option<Child>>,
    relays: BTreeMap<usize, Relay>,
    enforcers: Vec<Option<Child>>,
    control_plane_arguments: Vec<String>,
    enforcer_arguments: Vec<String>,
    /// The directory of the cluster's certificates; none without TLS.
    tls: Option<PathBuf>,
    /// The target of the programs' logs instead of a file.
    log: Option<OwnedFd>,
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
        Self::start_of(
            binaries()?,
            bed,
            control_plane_arguments,
            enforcer_arguments,
            streams,
        )
    }

    /// The same, with programs from anywhere.
    pub fn start_of(
        binaries: Binaries,
        bed: Testbed,
        control_plane_arguments: &[&str],
        enforcer_arguments: &[&str],
        streams: Streams,
    ) -> Result<Deployment, Error> {
        let mut deployment = Self::start_without_enforcers(
            binaries,
            bed,
            control_plane_arguments,
            enforcer_arguments,
            streams,
        )?;
        for node in 0..deployment.bed.nodes() {
            deployment.start_enforcer(node)?;
        }
        Ok(deployment)
    }

    /// The same, but for the enforcers: whoever wants one starts it.
    pub fn start_without_enforcers(
        binaries: Binaries,
        bed: Testbed,
        control_plane_arguments: &[&str],
        enforcer_arguments: &[&str],
        streams: Streams,
    ) -> Result<Deployment, Error> {
        let mut deployment = Self::prepare(
            binaries,
            bed,
            control_plane_arguments,
            enforcer_arguments,
            streams,
        )?;
        for index in 0..deployment.control_planes.len() {
            deployment.start_control_plane_at(index)?;
        }
        Ok(deployment)
    }

    fn prepare(
        binaries: Binaries,
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
        Ok(Deployment {
            binaries,
            directory: tempfile::tempdir().map_err(|error| Error::Io("make a directory", error))?,
            streams,
            control_planes: (0..control_planes).map(|_| None).collect(),
            relays: BTreeMap::new(),
            enforcers: (0..bed.nodes()).map(|_| None).collect(),
            control_plane_arguments: owned(control_plane_arguments),
            enforcer_arguments: owned(enforcer_arguments),
            tls: None,
            log: None,
            bed,
        })
    }

    /// The name of a node, counted from 0.
    pub fn node_name(node: usize) -> String {
        format!("node-{}", node + 1)
    }

    /// The address of the control plane, as the nodes and `sallyport --server` take it.
    pub fn server(&self) -> String {
        format!("{}://{}:{PORT}", self.scheme(), self.bed.fabric_address())
    }

    fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// The folder of journals and logs. From now on it outlives the deployment, for inspection.
    pub fn keep(&mut self) -> PathBuf {
        self.directory.disable_cleanup(true);
        self.directory.path().to_owned()
    }

    /// The folder of a program's journal.
    pub fn data_dir(&self, program: &str) -> PathBuf {
        self.directory.path().join(program)
    }

    /// The log of a program.
    pub fn log(&self, program: &str) -> String {
        read(&self.log_path(program))
    }

    fn log_path(&self, program: &str) -> PathBuf {
        self.directory.path().join(format!("{program}.log"))
    }

    /// Starts the control plane, and waits until it serves.
    pub fn start_control_plane(&mut self) -> Result<(), Error> {
        self.start_control_plane_at(0)
    }

    /// Starts one more control plane, which does not know of the first, on the directory of a program. Waits until it
    /// serves; the index is 1 or more.
    pub fn start_other_control_plane(&mut self, index: usize, program: &str) -> Result<(), Error> {
        while self.control_planes.len() <= index {
            self.control_planes.push(None);
        }
        self.start_control_plane_on(index, program)
    }

    fn start_control_plane_at(&mut self, index: usize) -> Result<(), Error> {
        let name = match index {
            0 => "controlplane".to_owned(),
            _ => format!("controlplane-{}", index + 1),
        };
        self.start_control_plane_on(index, &name)
    }

    /// A control plane's command, and where it will listen.
    fn control_plane(&self, index: usize, program: &str) -> (Command, SocketAddr) {
        let address = self.control_plane_address(index);
        let netns = self.bed.fabric().netns();
        let mut command = netns.command(&self.binaries.controlplane);
        command
            .args(["--listen", &address.to_string(), "--data-dir"])
            .arg(self.data_dir(program))
            .args(&self.control_plane_arguments);
        if let Some(cluster) = &self.tls {
            command.arg("--tls").arg(cluster.join("controlplane"));
        }
        (command, address)
    }

    /// Runs one more control plane on the directory of a program, where it cannot stay up. Returns what became of it,
    /// and what it logged.
    pub fn run_control_plane(&self, program: &str) -> Result<(ExitStatus, String), Error> {
        let (command, _) = self.control_plane(9, program);
        let log = format!("{program}-refused");
        let child = self.spawn(self.bed.fabric(), command, &log)?;
        self.await_exit(child, &log)
    }

    fn start_control_plane_on(&mut self, index: usize, name: &str) -> Result<(), Error> {
        let (command, address) = self.control_plane(index, name);
        let name = match index {
            0 => name.to_owned(),
            _ => format!("{name}-{index}"),
        };
        let child = self.spawn(self.bed.fabric(), command, &name)?;
        self.control_planes[index] = Some(child);
        let fabric = self.bed.fabric().netns().clone();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100));
        let log = self.log_path(&name);
        let listens = || fabric.run(connect).is_ok();
        await_program(
            &self.control_planes[index],
            "the control plane",
            &log,
            listens,
        )
    }

    /// The address of a control plane; the first has the index 0.
    pub fn control_plane_address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(self.bed.fabric_address().into(), PORT + index as u16)
    }

    /// The address at which a node's enforcer finds its control plane: a relay, if its stream is to be slow.
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

    /// The relay that a node's stream runs over.
    pub fn relay(&self, node: usize) -> Option<&Relay> {
        self.relays.get(&node)
    }

    /// Starts a node's enforcer, and waits until it is up: then its table is.
    pub fn start_enforcer(&mut self, node: usize) -> Result<(), Error> {
        self.start_enforcer_unawaited(node)?;
        self.await_enforcer(node)
    }

    /// Starts a node's enforcer, which does nothing before it is let go. Returns its process.
    pub fn start_enforcer_held(&mut self, node: usize) -> Result<u32, Error> {
        let gate = self.gate(node);
        let _ = std::fs::remove_file(&gate);
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU)
            .map_err(|errno| Error::Io("make a gate", errno.into()))?;
        let mut command = self.bed.node(node).netns().command("sh");
        command
            .args(["-c", "read line < \"$0\"; exec \"$@\""])
            .arg(gate)
            .arg(&self.binaries.enforcer);
        self.spawn_enforcer(node, command)
    }

    /// Releases an enforcer that was started held.
    pub fn release_enforcer(&self, node: usize) -> Result<(), Error> {
        std::fs::write(self.gate(node), "go\n").map_err(|error| Error::Io("open a gate", error))
    }

    fn gate(&self, node: usize) -> PathBuf {
        self.data_dir(&format!("{}.gate", Self::node_name(node)))
    }

    /// Starts a node's enforcer, and does not wait for it.
    pub fn start_enforcer_unawaited(&mut self, node: usize) -> Result<u32, Error> {
        let netns = self.bed.node(node).netns().clone();
        self.spawn_enforcer(node, netns.command(&self.binaries.enforcer))
    }

    /// Waits until a node's enforcer is up. Returns at once when it has ended, with an error.
    pub fn await_enforcer(&mut self, node: usize) -> Result<(), Error> {
        let log = self.log_path(&Self::node_name(node));
        let enforces = || read(&log).contains(" enforcing ");
        await_program(&self.enforcers[node], "the enforcer", &log, enforces)
    }

    /// Runs a node's enforcer where it cannot stay up. Returns what became of it, and what it logged.
    pub fn run_enforcer(&mut self, node: usize) -> Result<(ExitStatus, String), Error> {
        self.start_enforcer_unawaited(node)?;
        let child = self.enforcers[node].take().expect("it was started");
        self.await_exit(child, &Self::node_name(node))
    }

    fn await_exit(&self, mut child: Child, program: &str) -> Result<(ExitStatus, String), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = child.try_wait();
            match status.map_err(|error| Error::Io("wait for a program", error))? {
                Some(status) => return Ok((status, self.log(program))),
                None if Instant::now() > deadline => {
                    kill(Some(child));
                    return Err(Error::Late("it does not end".into(), self.log(program)));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn spawn_enforcer(&mut self, node: usize, mut command: Command) -> Result<u32, Error> {
        let name = Self::node_name(node);
        let control_plane = format!("{}://{}", self.scheme(), self.upstream(node)?);
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
        if let Some(cluster) = &self.tls {
            command.arg("--tls").arg(cluster.join(&name));
        }
        let child = self.spawn(self.bed.node(node), command, &name)?;
        let pid = child.id();
        self.enforcers[node] = Some(child);
        Ok(pid)
    }

    /// Every machine goes down at once, and comes up again on another bed, with nothing but its files. No program runs.
    pub fn reboot(&mut self, bed: Testbed) {
        for process in self.control_planes.iter_mut().chain(&mut self.enforcers) {
            kill(process.take());
        }
        self.relays.clear();
        self.bed = bed;
    }

    fn spawn(&self, host: &Host, mut command: Command, program: &str) -> Result<Child, Error> {
        let log = match &self.log {
            Some(log) => log.try_clone(),
            None => File::create(self.log_path(program)).map(OwnedFd::from),
        };
        let log = log.map_err(|error| Error::Io("make a log", error))?;
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

    /// Programs that are started from now on are these.
    pub fn set_binaries(&mut self, binaries: Binaries) {
        self.binaries = binaries;
    }

    /// Programs that are started from now on log there, and not to a file that [`log`](Deployment::log) reads.
    pub fn set_log(&mut self, log: Option<OwnedFd>) {
        self.log = log;
    }

    /// Enforcers that are started from now on have these arguments.
    pub fn set_enforcer_arguments(&mut self, arguments: &[&str]) {
        self.enforcer_arguments = arguments.iter().map(|&one| one.to_owned()).collect();
    }

    /// Runs the CLI in a directory.
    pub fn sallyport(&self, directory: &Path, arguments: &[&str]) -> Result<Output, Error> {
        let mut command = self.bed.fabric().netns().command(&self.binaries.sallyport);
        if let Some(cluster) = &self.tls {
            command.env("SALLYPORT_TLS", cluster.join("admin"));
        }
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

    /// Runs the control plane's program for something else than serving.
    pub fn offline(&self, arguments: &[&str]) -> Result<Output, Error> {
        let mut command = Command::new(&self.binaries.controlplane);
        command.args(arguments).stdin(Stdio::null());
        command
            .output()
            .map_err(|error| Error::Io("run sallyport-controlplane", error))
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

    /// A client of one control plane.
    pub fn client_of(&self, index: usize) -> Result<Client, Error> {
        self.channel(index).map(Client::over)
    }

    /// Says Hello as a node that holds nothing, which must be nobody else's name, and returns when it is answered: with
    /// the first part of its policy.
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
        match &self.tls {
            Some(cluster) => self.channel_as(&cluster.join("admin"), index),
            None => self.channel_by(index, |_, stream| async move { Ok(stream) }),
        }
    }

    /// A channel over TCP with something on it, such as TLS.
    pub fn channel_by<S, F>(
        &self,
        index: usize,
        secure: impl Fn(SocketAddr, TcpStream) -> F + Clone + Send + 'static,
    ) -> Result<Channel, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let fabric = self.bed.fabric().netns().clone();
        let address = self.control_plane_address(index);
        let connector = tower::service_fn(move |_| {
            let (fabric, secure) = (fabric.clone(), secure.clone());
            async move {
                // A socket stays in the namespace that it was made in.
                let socket = fabric.run(|| std::net::TcpStream::connect(address))?;
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                let stream = secure(address, TcpStream::from_std(socket)?).await?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        reactor::wait(async move { endpoint.connect_with_connector(connector).await })
            .map_err(|error| Error::Refused(tonic::Status::unavailable(innermost(&error))))
    }

    /// The listing of a node's ruleset by stock nft.
    pub fn ruleset(&self, node: usize) -> Result<String, Error> {
        listing::text(self.bed.node(node).netns()).map_err(|error| Error::Io("run nft", error))
    }

    /// Runs stock nft on a node. Returns whether it did what it was asked to.
    pub fn nft(&self, node: usize, arguments: &[&str]) -> Result<bool, Error> {
        let netns = self.bed.node(node).netns();
        let mut command = netns.command("nft");
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = netns.spawn(command).and_then(|mut nft| nft.wait());
        Ok(status
            .map_err(|error| Error::Io("run nft", error))?
            .success())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        for process in self.control_planes.iter_mut().chain(&mut self.enforcers) {
            kill(process.take());
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn read(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

/// Waits until a program is up, or has ended, which is an error.
fn await_program(
    child: &Option<Child>,
    what: &str,
    log: &Path,
    mut is_up: impl FnMut() -> bool,
) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A program that has ended answers nothing more. To wait for it would consume the status that its tracer waits
        // for.
        let ended = child
            .as_ref()
            .is_none_or(|child| tracer::has_ended(child.id()));
        if is_up() {
            return Ok(());
        }
        if ended || Instant::now() > deadline {
            let why = if ended {
                "has ended and was not up"
            } else {
                "is not up"
            };
            return Err(Error::Late(format!("{what} {why}"), read(log)));
        }
        thread::sleep(Duration::from_millis(1));
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
