//! A fence on the real kernel: an edit that swaps which end of a flow denies goes on though the enforcer of one end is
//! frozen, once the kernel has closed that node; and not one packet of the flow passes. Beside it the control that
//! leaks, and what leases cost a healthy node: nothing.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, PATIENCE, Streams, delete, put},
    pods::{self, Pod},
};
use sallyport_proto::wire::{ApplyRequest, ApplyResponse, Unreachable, node_status::State};
use sallyport_testbed::{
    Testbed,
    kernel_tests::{self, Failed, Outcome},
    probe::{Counts, Stream, Traffic},
};

/// The flow that both versions deny, each at another end.
const DENIED: u16 = 8000;
/// A flow that nothing denies.
const OPEN: u16 = 8001;

const LEASE: Duration = Duration::from_secs(1);
const LEASED: [&str; 2] = ["--lease", "1s"];

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("a_frozen_node_is_fenced_and_passes_nothing", fence),
        ("a_frozen_node_that_is_skipped_leaks", skip),
        ("leases_cost_a_healthy_node_no_packet", healthy),
        ("a_killed_enforcer_that_is_back_in_time_loses_none", killed),
        (
            "a_frozen_control_plane_closes_leased_nodes",
            frozen_control_plane,
        ),
        ("a_rebooted_node_is_closed_until_it_connects", reboot),
        ("leases_are_taken_up_and_given_up", adoption),
    ])
}

const RANGES: [&str; 2] = ["10.9.1.0/24", "10.9.2.0/24"];
const PODS: [Pod; 4] = [
    Pod::new(0, "client", &["10.9.1.2"]),
    Pod::new(0, "bystander", &["10.9.1.3"]),
    Pod::new(1, "server", &["10.9.2.2"]),
    Pod::new(1, "neighbour", &["10.9.2.3"]),
];

/// The server's end denies.
const OLD: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: in}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{ports: [{protocol: UDP, port: 8001}]}]
";

/// The client's end denies.
const NEW: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: out}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{ports: [{protocol: UDP, port: 8001}]}]
";

/// Two nodes with their pods, and the traffic between them.
struct Scene {
    deployment: Deployment,
    /// Client to server, which nothing may let pass.
    denied: Stream,
    /// The stream of an unconcerned pod on the client's node to the server's.
    from_afar: Stream,
    /// Between two pods of the server's node.
    nearby: Stream,
}

fn scene(control_plane: &[&str], enforcers: &[&str]) -> Result<Scene, Failed> {
    let bed = Testbed::builder().nodes(2).build()?;
    let [client, bystander, server, neighbour] = pods::add(&bed, &PODS)?;
    let deployment = Deployment::start_with(bed, control_plane, enforcers, Streams::default())?;
    let cluster = pods::manifests(&RANGES, &PODS);
    deployment.client()?.enforce(vec![put(cluster), put(OLD)])?;
    let (often, seldom) = (Duration::from_micros(100), Duration::from_millis(1));
    let denied = Traffic::udp(DENIED).every(often);
    let open = |port| Traffic::udp(port).every(seldom);
    let scene = Scene {
        denied: Stream::start(&client, &server, denied)?,
        from_afar: Stream::start(&bystander, &neighbour, open(OPEN))?,
        nearby: Stream::start(&neighbour, &server, open(OPEN))?,
        deployment,
    };
    for stream in [&scene.from_afar, &scene.nearby] {
        flows(stream)?;
    }
    Ok(scene)
}

/// Returns once a stream has come through for a while from now on.
fn flows(stream: &Stream) -> Outcome {
    let before = stream.counts();
    stream
        .until(PATIENCE, |now| now.since(before).received > 50)
        .map(drop)
        .map_err(|counts| format!("nothing comes through: {counts:?}, before {before:?}").into())
}

/// The counts of a stream from now on, in a while.
fn for_a_while(stream: &Stream, time: Duration) -> Counts {
    // Packets under way were let through before.
    thread::sleep(Duration::from_millis(50));
    let before = stream.counts();
    thread::sleep(time);
    stream.counts().since(before)
}

/// Nothing of a stream comes through, though it is sent.
fn is_closed(stream: &Stream) -> Outcome {
    let counts = for_a_while(stream, Duration::from_millis(300));
    match counts.sent > 50 && counts.received == 0 {
        true => Ok(()),
        false => Err(format!("it should be closed: {counts:?}").into()),
    }
}

fn signal(pid: Option<u32>, signal: Signal) -> Outcome {
    let pid = pid.ok_or("there is no such process")?;
    Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
}

/// Swaps which end denies.
fn swap(scene: &Scene, unreachable: Unreachable) -> Result<ApplyResponse, Failed> {
    let request = ApplyRequest {
        edits: vec![delete(OLD), put(NEW)],
        unreachable: unreachable.into(),
        enforced_within_ms: Some(PATIENCE.as_millis() as u32),
        ..ApplyRequest::default()
    };
    Ok(scene.deployment.client()?.apply_request(request)?)
}

/// Checks that nothing passed of the denied flow, and that enough was sent to prove it.
fn none_passed(denied: Stream) -> Outcome {
    let denied = denied.stop();
    println!("denied by both versions: {denied:?}");
    match denied.received == 0 && denied.sent > 1_000 {
        true => Ok(()),
        false => Err(format!("of the flow that both versions deny: {denied:?}").into()),
    }
}

fn none_lost(what: &str, stream: Stream) -> Outcome {
    let counts = stream.stop();
    println!("{what}: {counts:?}");
    match counts.lost() == 0 && counts.sent > 500 {
        true => Ok(()),
        false => Err(format!("{what}: {counts:?}, {} lost", counts.lost()).into()),
    }
}

fn fence() -> Outcome {
    let scene = scene(&[], &LEASED)?;
    let frozen = scene.deployment.enforcer_pid(0);
    signal(frozen, Signal::SIGSTOP)?;
    let at = Instant::now();
    let applied = swap(&scene, Unreachable::Fence)?;
    let took = at.elapsed();
    println!("enforced after {took:?}");
    if applied.enforced != Some(true) {
        return Err(format!("not enforced: {applied:?}").into());
    }
    let over: Vec<_> = applied
        .passed_over
        .iter()
        .map(|node| (node.name.as_str(), node.state()))
        .collect();
    if over != [("node-1", State::Fenced)] {
        return Err(format!("passed over: {over:?}").into());
    }
    // When it froze up to a third of its lease was over.
    if took < LEASE / 2 || took > LEASE * 2 {
        return Err(
            format!("with leases of {LEASE:?} the edit was enforced after {took:?}").into(),
        );
    }
    is_closed(&scene.from_afar)?;
    flows(&scene.nearby)?;
    let ruleset = scene.deployment.ruleset(0)?;
    if !ruleset.contains("comment \"fenced: no lease\"") {
        return Err(ruleset.into());
    }

    signal(frozen, Signal::SIGCONT)?;
    flows(&scene.from_afar)?;
    let mut client = scene.deployment.client()?;
    client.wait_enforced_by("node-1", applied.revision)?;
    thread::sleep(LEASE * 2);
    flows(&scene.from_afar)?;
    none_passed(scene.denied)?;
    none_lost("on the other node", scene.nearby)
}

/// The control: a node that is skipped goes on with what it has, and nothing closes it.
fn skip() -> Outcome {
    let scene = scene(&["--skip-after", "1s"], &[])?;
    signal(scene.deployment.enforcer_pid(0), Signal::SIGSTOP)?;
    let applied = swap(&scene, Unreachable::Skip)?;
    if applied.enforced != Some(true) {
        return Err(format!("not enforced: {applied:?}").into());
    }
    let leaked = scene.denied.until(PATIENCE, |counts| counts.received > 50);
    println!("the control: {leaked:?}");
    leaked.map_err(|counts| format!("it must leak: {counts:?}"))?;
    Ok(())
}

fn healthy() -> Outcome {
    let scene = scene(&[], &LEASED)?;
    thread::sleep(LEASE * 5);
    none_passed(scene.denied)?;
    none_lost("from a leased node", scene.from_afar)?;
    none_lost("on a leased node", scene.nearby)
}

fn killed() -> Outcome {
    let mut scene = scene(&[], &["--lease", "5s"])?;
    for _ in 0..3 {
        for node in 0..2 {
            scene.deployment.kill_enforcer(node);
            scene.deployment.start_enforcer(node)?;
        }
        thread::sleep(Duration::from_secs(1));
    }
    thread::sleep(Duration::from_secs(5));
    none_passed(scene.denied)?;
    none_lost("from a leased node", scene.from_afar)?;
    none_lost("on a leased node", scene.nearby)
}

/// The price of a fence: without a control plane a leased node is closed.
fn frozen_control_plane() -> Outcome {
    let scene = scene(&[], &LEASED)?;
    let control_plane = scene.deployment.control_plane_pid();
    signal(control_plane, Signal::SIGSTOP)?;
    thread::sleep(LEASE / 2);
    let open = for_a_while(&scene.nearby, Duration::from_millis(50));
    if open.received == 0 {
        return Err(format!("closed before the lease ran out: {open:?}").into());
    }
    thread::sleep(LEASE);
    is_closed(&scene.from_afar)?;
    is_closed(&scene.nearby)?;
    let log = scene.deployment.log(&Deployment::node_name(0));
    if log.matches("the lease ran out").count() != 1 {
        return Err(format!("it must be said once:\n{log}").into());
    }
    signal(control_plane, Signal::SIGCONT)?;
    flows(&scene.from_afar)?;
    flows(&scene.nearby)?;
    none_passed(scene.denied)
}

fn reboot() -> Outcome {
    let mut scene = scene(&[], &LEASED)?;
    scene.deployment.kill_control_plane();
    scene.deployment.kill_enforcer(0);
    if !scene
        .deployment
        .nft(0, &["delete", "table", "inet", "sallyport"])?
    {
        return Err("the table of a dead enforcer can be changed".into());
    }
    scene.deployment.start_enforcer(0)?;
    is_closed(&scene.from_afar)?;
    scene.deployment.start_control_plane()?;
    flows(&scene.from_afar)?;
    none_passed(scene.denied)
}

/// A table made without leases and adopted with them, and back.
fn adoption() -> Outcome {
    let mut scene = scene(&[], &[])?;
    let refused = swap(&scene, Unreachable::Fence);
    match refused {
        Err(error) if error.message().is_some_and(|text| text.contains("--lease")) => {}
        other => return Err(format!("without leases there is no fence: {other:?}").into()),
    }
    scene.deployment.set_enforcer_arguments(&LEASED);
    scene.deployment.kill_enforcer(0);
    scene.deployment.start_enforcer(0)?;
    flows(&scene.from_afar)?;
    let has_leases = |deployment: &Deployment| -> Result<bool, Failed> {
        Ok(deployment.ruleset(0)?.contains("chain lease {"))
    };
    if !has_leases(&scene.deployment)? {
        return Err("it has no leases".into());
    }
    scene.deployment.set_enforcer_arguments(&[]);
    let before = scene.from_afar.counts();
    scene.deployment.kill_enforcer(0);
    scene.deployment.start_enforcer(0)?;
    let deadline = Instant::now() + PATIENCE;
    while scene.deployment.ruleset(0)?.contains("lease") {
        if Instant::now() > deadline {
            return Err("it has leases still".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(LEASE * 2);
    let since = scene.from_afar.stop().since(before);
    println!("since leases were given up: {since:?}");
    if since.lost() > 0 || since.received < 500 {
        return Err(format!("giving leases up loses packets: {since:?}").into());
    }
    none_passed(scene.denied)
}
