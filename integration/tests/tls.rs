//! TLS as users run it: a cluster by `init` enforces, every certificate reaches what it may and nothing else, and no
//! foreign control plane is obeyed.

use std::{
    fs,
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use sallyport_identity::{
    Authority, Subject, Validity, write_authority, write_certificate, write_key,
};
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, put},
};
use sallyport_proto::wire::{
    self, node_service_client::NodeServiceClient, policy_service_client::PolicyServiceClient,
};
use sallyport_testbed::{
    Testbed,
    kernel_tests::{self, Failed, Outcome},
    probe::{Server, Stream, Traffic},
    reactor,
};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, transport::Channel};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("a_cluster_by_init_enforces_over_tls", enforcing),
        ("each_certificate_reaches_only_what_it_may", matrix),
        (
            "a_foreign_control_plane_is_refused_by_name",
            refused_by_name,
        ),
        (
            "a_foreign_control_plane_is_obeyed_without_tls",
            foreign_without_tls,
        ),
        ("renewed_certificates_need_no_restart", renewal),
        ("silent_connections_delay_nobody", silent),
    ])
}

const CLUSTER: &str = "
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
spec: {workloadCIDRs: [10.9.1.0/24]}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: client}
spec: {node: node-1, addresses: [10.9.1.2]}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: server}
spec: {node: node-1, addresses: [10.9.1.3]}
";

const SECOND_NODE: &str = "
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-2}
";

const ISOLATING: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: all}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";

/// One node with a client and a server.
struct World {
    client: sallyport_testbed::Host,
    server: sallyport_testbed::Host,
    deployment: Deployment,
    /// Programs that live as long as the world.
    others: Vec<Program>,
    _served: Server,
}

impl World {
    fn start(secure: bool) -> Result<World, Failed> {
        let bed = Testbed::builder().nodes(1).build()?;
        let client = bed.add_pod(0, "default/client", &[IpAddr::from([10, 9, 1, 2])])?;
        let server = bed.add_pod(0, "default/server", &[IpAddr::from([10, 9, 1, 3])])?;
        let deployment = match secure {
            true => Deployment::start_secure(bed, &[])?,
            false => Deployment::start(bed, &[])?,
        };
        let served = Server::start(&server, &[])?;
        Ok(World {
            client,
            server,
            deployment,
            others: Vec::new(),
            _served: served,
        })
    }

    /// Whether a packet from the client reaches the server.
    fn passes(&self) -> Result<bool, Failed> {
        let traffic = Traffic::udp(8000).every(Duration::from_millis(2));
        let stream = Stream::start(&self.client, &self.server, traffic)?;
        thread::sleep(Duration::from_millis(300));
        let counts = stream.stop();
        match counts.sent {
            0..50 => Err(format!("too few packets were sent: {counts:?}").into()),
            _ => Ok(counts.received > 0),
        }
    }

    fn sallyport(&self, line: &str) -> Result<(Option<i32>, String), Failed> {
        let words: Vec<&str> = line.split(' ').collect();
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("cluster.yaml"), CLUSTER)?;
        fs::write(directory.path().join("policy.yaml"), ISOLATING)?;
        let output = self.deployment.sallyport(directory.path(), &words)?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        println!("$ sallyport {line}\n{said}");
        Ok((output.status.code(), said))
    }

    fn node_log(&self) -> String {
        self.deployment.log(&Deployment::node_name(0))
    }

    /// Waits until the node's log has a text so many times.
    fn until_node_says(&self, words: &str, times: usize) -> Outcome {
        until(
            words,
            || Ok(self.node_log().matches(words).count() >= times),
        )
        .map_err(|_| format!("{words:?} is never said {times} times: {}", self.node_log()).into())
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool, Failed>) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so()? {
        if Instant::now() > deadline {
            return Err(format!("never: {what}").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn enforcing() -> Outcome {
    let world = World::start(true)?;
    let (code, said) = world.sallyport("apply -f cluster.yaml --wait")?;
    if code != Some(0) || !said.contains("enforced on 1 node") {
        return Err(said.into());
    }
    if !world.passes()? {
        return Err("nothing passes though no policy is there".into());
    }
    world.sallyport("apply -f policy.yaml --wait")?;
    if world.passes()? {
        return Err("the policy does not hold".into());
    }
    let (code, said) = world.sallyport("status")?;
    if code != Some(0) || !said.contains("node-1  enforcing") {
        return Err(said.into());
    }
    let log = world.deployment.log("controlplane");
    match log.contains("there is no TLS") || world.node_log().contains("there is no TLS") {
        true => Err("it is said that there is no TLS".into()),
        false => Ok(()),
    }
}

/// A caller of the matrix.
struct Caller {
    name: &'static str,
    /// The directory of its certificate; none if it has none.
    directory: Option<PathBuf>,
    /// The node that its Hello names.
    hello: &'static str,
    /// The outcomes of Apply, Watch and Sync.
    expected: [Expected; 3],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    Served,
    /// The TLS handshake fails: no call is made.
    NoConnection,
    /// The call is refused, with these words.
    Denied(&'static str),
}

use Expected::{Denied, NoConnection, Served};

/// The table of docs/SECURITY-MODEL.md.
fn matrix() -> Outcome {
    let world = World::start(true)?;
    let deployment = &world.deployment;
    let mut api = deployment.client()?;
    api.apply(vec![put(CLUSTER), put(SECOND_NODE)])?;
    let (cluster, temporary) = (deployment.cluster(), tempfile::tempdir()?);
    let at = |name: &str| temporary.path().join(name);
    deployment.issue(cluster, &["node", "node-2"], &at("node-2"))?;
    deployment.issue(cluster, &["operator", "alice"], &at("alice"))?;
    let other = at("other-cluster");
    deployment.init(&other)?;
    deployment.issue(&other, &["node", "node-2"], &at("foreign-node"))?;
    deployment.issue(&other, &["operator", "alice"], &at("foreign-operator"))?;
    expired(cluster, &Subject::node("node-2")?, &at("expired-node"))?;
    expired(
        cluster,
        &Subject::operator("alice")?,
        &at("expired-operator"),
    )?;
    let needs_operator = Denied("needs the certificate of an operator");
    let needs_node = Denied("needs the certificate of a node");
    let none = [NoConnection; 3];
    let caller = |name, directory: Option<&str>, hello, expected| Caller {
        name,
        directory: directory.map(&at),
        hello,
        expected,
    };
    let callers = [
        caller("no certificate", None, "node-2", none),
        caller(
            "node of another cluster",
            Some("foreign-node"),
            "node-2",
            none,
        ),
        caller(
            "operator of another cluster",
            Some("foreign-operator"),
            "node-2",
            none,
        ),
        caller("expired node", Some("expired-node"), "node-2", none),
        caller("expired operator", Some("expired-operator"), "node-2", none),
        caller(
            "node",
            Some("node-2"),
            "node-2",
            [needs_operator, needs_operator, Served],
        ),
        caller(
            "node with another node's name",
            Some("node-2"),
            "node-1",
            [
                needs_operator,
                needs_operator,
                Denied(
                    "the certificate of this connection is of node node-2, and the message names node node-1",
                ),
            ],
        ),
        caller(
            "operator",
            Some("alice"),
            "node-2",
            [Served, Served, needs_node],
        ),
    ];
    let mut failures = String::new();
    for caller in callers {
        let found = outcomes(deployment, &caller)?;
        println!("{}: {found:?}", caller.name);
        for ((call, found), expected) in ["Apply", "Watch", "Sync"]
            .iter()
            .zip(found)
            .zip(caller.expected)
        {
            let is_right = match (expected, &found) {
                (Served, Ok(())) => true,
                (NoConnection, Err(status)) => status.code() != Code::PermissionDenied,
                (Denied(words), Err(status)) => {
                    status.code() == Code::PermissionDenied && status.message().contains(words)
                }
                _ => false,
            };
            if !is_right {
                failures += &format!("{}, {call}: {expected:?} is not {found:?}\n", caller.name);
            }
        }
    }
    // A node takes no other node out.
    let channel = deployment.channel_as(&at("node-2"), 0)?;
    let leave = wire::LeaveRequest {
        node_name: "node-1".into(),
    };
    let left = reactor::wait(async move { NodeServiceClient::new(channel).leave(leave).await });
    if !left.is_err_and(|status| status.code() == Code::PermissionDenied) {
        failures += "node-2 took node-1 out\n";
    }
    let log = deployment.log("controlplane");
    let said = log
        .lines()
        .filter(|line| line.contains("the TLS handshake failed"))
        .count();
    if said == 0 || said > 4 || !log.contains("peer=") {
        failures += &format!("{said} failed handshakes in the log: {log}");
    }
    match failures.is_empty() {
        true => Ok(()),
        false => Err(failures.into()),
    }
}

/// Writes credentials that expired an hour ago.
fn expired(cluster: &Path, subject: &Subject, directory: &Path) -> Outcome {
    let read = |name: &str| fs::read_to_string(cluster.join(name));
    let id = read("cluster-id")?.trim_end().parse()?;
    let authority = Authority::load(id, &read("ca.crt")?, &read("ca.key")?)?;
    let hour = Duration::from_secs(3600);
    let validity = Validity {
        not_before: Timestamp::now() - 2 * hour,
        not_after: Timestamp::now() - hour,
    };
    let issued = authority.issue(subject, &[], validity)?;
    fs::create_dir_all(directory)?;
    write_authority(directory, authority.certificate())?;
    write_key(directory, &issued.key)?;
    Ok(write_certificate(directory, &issued.certificate)?)
}

type Outcomes = [Result<(), Status>; 3];

fn outcomes(deployment: &Deployment, caller: &Caller) -> Result<Outcomes, Failed> {
    let connect = || {
        trusting_channel(deployment, caller.directory.as_deref())
            .map_err(|error| Status::unavailable(format!("{error:?}")))
    };
    let applied = connect().and_then(|channel| {
        let request = wire::ApplyRequest {
            dry_run: true,
            edits: vec![put(SECOND_NODE)],
            ..wire::ApplyRequest::default()
        };
        reactor::wait(async move { PolicyServiceClient::new(channel).apply(request).await })
            .map(drop)
    });
    let watched = connect().and_then(|channel| {
        let request = wire::WatchRequest::default();
        reactor::wait(async move {
            let mut service = PolicyServiceClient::new(channel);
            let mut stream = service.watch(request).await?.into_inner();
            stream.message().await.map(drop)
        })
    });
    let hello = wire::Hello {
        node_name: caller.hello.into(),
        dropped: Some(wire::WorkloadRanges::default()),
        ..wire::Hello::default()
    };
    let hello = wire::SyncRequest {
        message: Some(wire::sync_request::Message::Hello(hello)),
    };
    let synced = connect().and_then(|channel| {
        let requests = tokio_stream::once(hello).chain(tokio_stream::pending());
        reactor::wait(async move {
            let answers = NodeServiceClient::new(channel).sync(requests).await?;
            answers.into_inner().message().await.map(drop)
        })
    });
    Ok([applied, watched, synced])
}

/// A channel by TLS with the certificate of a directory, or with none. The client trusts the control plane whatever its
/// own cluster is, so that only the control plane can refuse.
fn trusting_channel(deployment: &Deployment, directory: Option<&Path>) -> Result<Channel, Failed> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(
        deployment.cluster().join("ca.crt"),
    )?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots);
    let config = match directory {
        Some(directory) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(directory.join("tls.crt"))?],
            PrivateKeyDer::from_pem_file(directory.join("tls.key"))?,
        )?,
        None => config.with_no_client_auth(),
    };
    let connector = TlsConnector::from(Arc::new(config));
    let channel = deployment.channel_by(0, move |address, stream| {
        let connector = connector.clone();
        async move {
            connector
                .connect(ServerName::from(address.ip()), stream)
                .await
        }
    });
    Ok(channel?)
}

/// A program that dies with this.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refused_by_name() -> Outcome {
    let (world, other) = invaded(true)?;
    let own_id = fs::read_to_string(world.deployment.cluster().join("cluster-id"))?;
    let other_id = fs::read_to_string(other.path().join("cluster/cluster-id"))?;
    for id in [own_id.trim(), other_id.trim()] {
        world.until_node_says(id, 1)?;
    }
    world.until_node_says("the certificate of the control plane is refused", 1)?;
    if world.passes()? {
        return Err("the foreign control plane is obeyed".into());
    }
    Ok(())
}

/// The control: without TLS the same control plane opens the flow.
fn foreign_without_tls() -> Outcome {
    let (world, _other) = invaded(false)?;
    match world.passes()? {
        true => Ok(()),
        false => Err("the control does not leak: the test of TLS shows nothing".into()),
    }
}

/// A node that isolates its workloads, after three seconds with a foreign control plane at the address of its own. That
/// one is ahead, and allows everything.
fn invaded(secure: bool) -> Result<(World, tempfile::TempDir), Failed> {
    let mut world = World::start(secure)?;
    let revision = world
        .deployment
        .client()?
        .enforce(vec![put(CLUSTER), put(ISOLATING)])?;
    if world.passes()? {
        return Err("the policy does not hold".into());
    }
    world.deployment.stop_control_plane();
    let other = tempfile::tempdir()?;
    let cluster = other.path().join("cluster");
    let address = world.deployment.control_plane_address(0);
    let fabric = world.deployment.bed.fabric().netns().clone();
    let mut command = fabric.command(binaries()?.controlplane);
    command
        .args(["--listen", &address.to_string(), "--data-dir"])
        .arg(other.path().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if secure {
        world.deployment.init(&cluster)?;
        command.arg("--tls").arg(cluster.join("controlplane"));
    }
    let foreign = Program(fabric.spawn(command)?);
    until("the foreign control plane listens", || {
        Ok(fabric.run(|| TcpStream::connect(address)).is_ok())
    })?;
    let ahead = revision + 10;
    for step in 0..=ahead {
        let mut command = fabric.command(binaries()?.sallyport);
        let manifest = other.path().join("cluster.yaml");
        let labelled = format!("{{name: default, labels: {{step: '{step}'}}}}");
        fs::write(&manifest, CLUSTER.replace("{name: default}", &labelled))?;
        command
            .args(["apply", "-f"])
            .arg(&manifest)
            .env("SALLYPORT_SERVER", address.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if secure {
            command.env("SALLYPORT_TLS", cluster.join("admin"));
        }
        if !fabric.spawn(command)?.wait()?.success() {
            return Err("the foreign control plane takes no edits".into());
        }
    }
    // The pause between two tries is 5 seconds at most.
    thread::sleep(Duration::from_secs(6));
    world.others.push(foreign);
    Ok((world, other))
}

fn renewal() -> Outcome {
    let mut world = World::start(true)?;
    let cluster = world.deployment.cluster().to_owned();
    world
        .deployment
        .client()?
        .enforce(vec![put(CLUSTER), put(ISOLATING)])?;
    let established = "session established";
    world.until_node_says(established, 1)?;
    // The control plane's own certificate, with open streams.
    world.deployment.issue(
        &cluster,
        &["controlplane", "--renew", "--days", "30"],
        &cluster.join("controlplane"),
    )?;
    until("the control plane loads it", || {
        Ok(world
            .deployment
            .log("controlplane")
            .contains("loaded the renewed TLS files"))
    })?;
    let (code, said) = world.sallyport("status")?;
    if code != Some(0) || !said.contains("node-1  enforcing") {
        return Err(said.into());
    }
    if world.node_log().matches(established).count() != 1 {
        return Err("the renewal cost the node its session".into());
    }
    // The node's certificate expires while the control plane is away.
    let directory = cluster.join(Deployment::node_name(0));
    expired(&cluster, &Subject::node("node-1")?, &directory)?;
    world.deployment.stop_control_plane();
    world.deployment.start_control_plane()?;
    world.until_node_says(
        "the control plane refused this certificate: it has expired",
        1,
    )?;
    world
        .deployment
        .issue(&cluster, &["node", "node-1", "--renew"], &directory)?;
    world.until_node_says(established, 2)?;
    let revision = world.deployment.client()?.apply(vec![put(SECOND_NODE)])?;
    Ok(world
        .deployment
        .client()?
        .wait_enforced_by("node-1", revision)?)
}

/// Connections that never begin their handshake.
fn silent() -> Outcome {
    let world = World::start(true)?;
    let address = world.deployment.control_plane_address(0);
    let fabric = world.deployment.bed.fabric().netns().clone();
    let open = || fabric.run(|| TcpStream::connect(address));
    let silent: Vec<TcpStream> = (0..200).map(|_| open()).collect::<Result<_, _>>()?;
    let started = Instant::now();
    let (code, said) = world.sallyport("status")?;
    if code != Some(0) || started.elapsed() > Duration::from_secs(3) {
        return Err(format!("after {:?}: {said}", started.elapsed()).into());
    }
    until("the silent connections end", || {
        Ok(world
            .deployment
            .log("controlplane")
            .contains("the client did not complete the handshake within 10 seconds"))
    })?;
    drop(silent);
    Ok(())
}
