//! Bridges whose traffic passes the table by, on the real kernel: a node says so within a second and does not count as
//! one that enforces, and where it may it sets the sysctls right. That packets do pass meanwhile is what makes it
//! matter.

#[path = "judging/workloads.rs"]
mod workloads;

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use rtnetlink::{
    LinkBridge, LinkMessageBuilder,
    packet_route::link::{InfoBridge, InfoData},
};
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, PATIENCE, put},
    pods::{self, Pod},
};
use sallyport_proto::wire::{Edit, NodeStatus, node_status::State, trouble::Kind};
use sallyport_testbed::{
    Family, Mode, Netns, Testbed,
    kernel_tests::{self, Failed, Outcome},
    probe::{Stream, Traffic},
};

const V4: &str = "net.bridge.bridge-nf-call-iptables";
const V6: &str = "net.bridge.bridge-nf-call-ip6tables";

/// Within this time it is to be said, or set right.
const SOON: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("what_passes_a_bridge_unjudged_is_not_enforced", off_and_on),
        ("of_two_families_one_is_enough", one_family),
        ("a_second_port_makes_a_bridge", second_port),
        ("an_ignored_bridge_is_not_reported", ignored),
        ("a_bridge_may_ask_for_itself", asks_for_itself),
        ("a_new_session_knows_it_from_its_start", new_session),
        ("an_enforcer_that_cannot_start_is_not_forgotten", restarted),
        ("sysctls_are_set_right_where_that_is_allowed", managed),
        (
            "a_workload_with_an_address_of_the_node_is_not_judged",
            workloads::own_address,
        ),
        (
            "a_wait_for_an_edit_knows_of_its_workloads",
            workloads::a_wait_for_its_own_edit,
        ),
        (
            "a_workload_behind_a_macvlan_device_is_not_judged",
            workloads::macvlan,
        ),
        (
            "a_workload_in_a_flowtable_is_not_judged",
            workloads::flowtable,
        ),
    ])
}

const PODS: [Pod; 2] = [
    Pod::new(0, "client", &["10.9.1.2", "fd00:9:1::2"]),
    Pod::new(0, "server", &["10.9.1.3", "fd00:9:1::3"]),
];

/// The edits that make the node, the pods and the policy.
fn cluster() -> Vec<Edit> {
    let cluster = pods::manifests(&["10.9.1.0/24, 'fd00:9:1::/64'"], &PODS);
    vec![put(cluster), put(POLICY)]
}

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: in}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{ports: [{protocol: UDP, port: 8001}]}]
";

/// A node with two pods on its bridge, and a flow between them that policy denies, in each family.
struct Scene {
    deployment: Deployment,
    denied: [Stream; 2],
    revision: u64,
}

fn scene(enforcer: &[&str]) -> Result<Scene, Failed> {
    let bed = Testbed::builder().nodes(1).mode(Mode::Bridged).build()?;
    let [client, server] = pods::add(&bed, &PODS)?;
    let enforcer = [&["--metrics", "127.0.0.1:9100"], enforcer].concat();
    let plane = ["--metrics", "127.0.0.1:9101"];
    let deployment = Deployment::start_with(bed, &plane, &enforcer, Default::default())?;
    let revision = deployment.client()?.enforce(cluster())?;
    let denied = |port, family| {
        let traffic = Traffic::udp(port).every(Duration::from_millis(1));
        Stream::start(&client, &server, traffic.family(family))
    };
    let scene = Scene {
        denied: [denied(8010, Family::V4)?, denied(8011, Family::V6)?],
        deployment,
        revision,
    };
    scene.is_denied()?;
    Ok(scene)
}

impl Scene {
    fn node(&self) -> &Netns {
        self.deployment.bed.node(0).netns()
    }

    fn status(&self) -> Result<NodeStatus, Failed> {
        let nodes = self.deployment.client()?.status()?.nodes;
        Ok(nodes.into_iter().next().ok_or("there is no node")?)
    }

    /// Returns once the node stands so, which is to be soon. Says how long it took.
    fn stands(&self, state: State) -> Result<NodeStatus, Failed> {
        let at = Instant::now();
        loop {
            let node = self.status()?;
            if node.state() == state {
                println!("{state:?} after {:?}", at.elapsed());
                return Ok(node);
            }
            if at.elapsed() > SOON {
                return Err(format!("it is not {state:?} within {SOON:?}: {node:?}").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The node says that it does not judge all traffic, for a reason that has these words.
    fn is_not_judging(&self, words: &[&str]) -> Outcome {
        let node = self.stands(State::NotJudging)?;
        all(&node.reason, words)?;
        let says = |kind| node.troubles.iter().any(|trouble| trouble.kind() == kind);
        match says(Kind::NotJudged) && node.enforced_revision == 0 && node.pending_revision == 1 {
            true => Ok(()),
            false => Err(format!("{node:?}").into()),
        }
    }

    /// For a while the node stands as one that enforces.
    fn goes_on_enforcing(&self) -> Outcome {
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            self.stands_now(State::Enforcing)?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn stands_now(&self, state: State) -> Outcome {
        let node = self.status()?;
        match node.state() == state {
            true => Ok(()),
            false => Err(format!("it is not {state:?}: {node:?}").into()),
        }
    }

    /// Nothing of the denied flows comes through from now on, for a while.
    fn is_denied(&self) -> Outcome {
        thread::sleep(Duration::from_millis(50));
        let before = self.denied.each_ref().map(Stream::counts);
        thread::sleep(Duration::from_millis(300));
        for (stream, before) in self.denied.iter().zip(before) {
            let counts = stream.counts().since(before);
            if counts.received > 0 || counts.sent < 50 {
                return Err(format!("it is to be denied: {counts:?}").into());
            }
        }
        Ok(())
    }

    /// A denied flow comes through: the control.
    fn passes(&self, family: Family) -> Outcome {
        let stream = &self.denied[usize::from(family == Family::V6)];
        let before = stream.counts();
        let passed = stream.until(PATIENCE, |now| now.since(before).received > 20);
        passed
            .map(|counts| println!("{family:?}: {} passed", counts.received))
            .map_err(|counts| {
                format!("nothing passes, so that it does not matter: {counts:?}").into()
            })
    }

    fn wait(&self, timeout: &str) -> Result<(Option<i32>, String), Failed> {
        let revision = self.revision.to_string();
        let arguments = ["wait", "--revision", &revision, "--timeout", timeout];
        let output = self.deployment.sallyport(Path::new("/"), &arguments)?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into()))
    }

    fn metrics(&self, netns: &Netns, port: u16, lines: &[&str]) -> Outcome {
        all(&scrape(netns, port)?, lines)
    }
}

fn off_and_on() -> Outcome {
    let scene = scene(&[])?;
    scene.stands_now(State::Enforcing)?;
    all(&scene.wait("5s")?.1, &["enforced on 1 node"])?;

    scene.node().sysctl(V4, "0")?;
    let remedy = format!("`sysctl -w {V4}=1`, or start the enforcer with --manage-sysctls");
    let reason = format!("IPv4 of br0 (2 ports), since {V4} is 0");
    scene.is_not_judging(&[&reason, &remedy])?;
    scene.passes(Family::V4)?;
    let (code, said) = scene.wait("1s")?;
    let words = ["timed out after 1s", "node-1: not-judging for ", &reason];
    all(&said, &words)?;
    if code != Some(4) {
        return Err(format!("exit code {code:?}").into());
    }
    let output = scene.deployment.sallyport(Path::new("/"), &["status"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = ["node-1  not-judging  - ", "has not judged all traffic: "];
    all(&text, &words)?;
    let kind = "sallyport_enforcer_trouble_seconds{kind=\"not-judged\"} ";
    scene.metrics(scene.node(), 9100, &[kind])?;
    let fabric = scene.deployment.bed.fabric().netns();
    let lines = [
        "sallyport_controlplane_nodes{state=\"not_judging\"} 1",
        "sallyport_controlplane_troubled_nodes{kind=\"not-judged\"} 1",
        "sallyport_controlplane_revision_enforced 0",
    ];
    scene.metrics(fabric, 9101, &lines)?;
    let log = scene.deployment.log("node-1");
    all(&log, &["traffic bypasses policy on this node, or may"])?;

    scene.node().sysctl(V4, "1")?;
    scene.stands(State::Enforcing)?;
    let (code, said) = scene.wait("5s")?;
    if code != Some(0) {
        return Err(said.into());
    }
    scene.is_denied()?;
    all(
        &scene.deployment.log("node-1"),
        &["no traffic bypasses policy on this node any more"],
    )
}

fn one_family() -> Outcome {
    let scene = scene(&[])?;
    scene.node().sysctl(V6, "0")?;
    scene.is_not_judging(&[&format!("IPv6 of br0 (2 ports), since {V6} is 0")])?;
    scene.passes(Family::V6)?;
    scene.node().sysctl(V4, "0")?;
    let at = Instant::now();
    while !scene.status()?.reason.contains("IPv4 of br0") {
        if at.elapsed() > SOON {
            return Err(format!("{:?}", scene.status()?).into());
        }
    }
    scene.node().sysctl(V6, "1")?;
    scene.node().sysctl(V4, "1")?;
    scene.stands(State::Enforcing)?;
    scene.is_denied()
}

/// A bridge with one port forwards nothing.
fn second_port() -> Outcome {
    let scene = scene(&[])?;
    let bed = &scene.deployment.bed;
    bed.remove("default/client")?;
    // The enforcer lists all links a moment after the kernel reported one.
    thread::sleep(Duration::from_millis(300));
    scene.node().sysctl(V4, "0")?;
    scene.goes_on_enforcing()?;
    bed.add_pod(0, "default/other", &[IpAddr::from([10, 9, 1, 4])])?;
    scene.is_not_judging(&["br0 (2 ports)"])?;
    bed.remove("default/other")?;
    scene.stands(State::Enforcing)?;
    Ok(())
}

fn ignored() -> Outcome {
    let scene = scene(&["--ignore-bridge", "br0"])?;
    scene.node().sysctl(V4, "0")?;
    scene.goes_on_enforcing()
}

/// The attribute of the bridge is enough, and the kernel thinks so, too.
fn asks_for_itself() -> Outcome {
    let scene = scene(&[])?;
    ask(scene.node(), [true, false])?;
    // The enforcer lists all links a moment after the kernel reported one.
    thread::sleep(Duration::from_millis(300));
    scene.node().sysctl(V4, "0")?;
    scene.goes_on_enforcing()?;
    scene.is_denied()?;
    scene.node().sysctl(V6, "0")?;
    scene.is_not_judging(&["IPv6 of br0"])?;
    ask(scene.node(), [true, true])?;
    scene.stands(State::Enforcing)?;
    scene.is_denied()?;
    ask(scene.node(), [false, true])?;
    scene.is_not_judging(&["IPv4 of br0"])
}

/// Has the bridge ask br_netfilter for IPv4 and IPv6, or not.
fn ask(node: &Netns, [v4, v6]: [bool; 2]) -> Outcome {
    let asked = node.run(|| -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(text)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(text)?;
            tokio::spawn(connection);
            let data = vec![
                InfoBridge::NfCallIpTables(v4),
                InfoBridge::NfCallIp6Tables(v6),
            ];
            let message = LinkMessageBuilder::<LinkBridge>::new("br0")
                .set_info_data(InfoData::Bridge(data))
                .build();
            handle.link().change(message).execute().await.map_err(text)
        })
    });
    Ok(asked?)
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

/// A control plane that starts meanwhile never takes it for one that enforces.
fn new_session() -> Outcome {
    let mut scene = scene(&[])?;
    scene.node().sysctl(V4, "0")?;
    scene.is_not_judging(&[])?;
    scene.deployment.kill_control_plane();
    scene.deployment.start_control_plane()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match scene.status()?.state() {
            State::NotJudging => return Ok(()),
            State::NotSeen if Instant::now() < deadline => {}
            other => return Err(format!("it is {other:?}").into()),
        }
    }
}

/// Its enforcer refuses to start while it does not judge: that the node is gone is not taken for good news.
fn restarted() -> Outcome {
    let mut scene = scene(&[])?;
    scene.node().sysctl(V4, "0")?;
    scene.is_not_judging(&[])?;
    scene.deployment.kill_enforcer(0);
    let (status, log) = scene.deployment.run_enforcer(0)?;
    if status.success() {
        return Err("it starts".into());
    }
    all(&log, &["br0 (2 ports)", "--ignore-bridge br0"])?;
    scene.stands(State::Disconnected)?;
    let (code, said) = scene.wait("1s")?;
    all(
        &said,
        &[
            "node-1: disconnected for ",
            "the node did not judge all traffic: ",
        ],
    )?;
    if code != Some(4) {
        return Err(said.into());
    }
    scene.node().sysctl(V4, "1")?;
    scene.deployment.start_enforcer(0)?;
    scene.deployment.client()?.wait_enforced(scene.revision)?;
    scene.is_denied()
}

fn managed() -> Outcome {
    let scene = scene(&["--manage-sysctls"])?;
    for (n, sysctl) in [V4, V6, V4, V4].into_iter().enumerate() {
        scene.node().sysctl(sysctl, "0")?;
        let at = Instant::now();
        while scene.node().read_sysctl(sysctl)? != "1" {
            if at.elapsed() > SOON {
                return Err(format!("{sysctl} is not set within {SOON:?}").into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        println!("{sysctl} set after {:?}", at.elapsed());
        scene.is_denied()?;
        scene.stands_now(State::Enforcing)?;
        let line = format!("sallyport_enforcer_sysctls_set_total {}", n + 1);
        scene.metrics(scene.node(), 9100, &[&line])?;
    }
    let log = scene.deployment.log("node-1");
    all(
        &log,
        &["since it is 0", "the process that changed it is unknown"],
    )?;
    match log.matches("set net.bridge.").count() {
        1 => Ok(()),
        count => Err(format!("it is said {count} times in seconds: {log}").into()),
    }
}

fn all(text: &str, words: &[&str]) -> Outcome {
    match words.iter().find(|word| !text.contains(*word)) {
        Some(word) => Err(format!("it does not say {word:?}: {text}").into()),
        None => Ok(()),
    }
}

fn scrape(netns: &Netns, port: u16) -> Result<String, Failed> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = netns.run(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
