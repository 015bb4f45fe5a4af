//! Bridges that br_netfilter is told to forget. The scene's flows go from node to node, which the sysctl does not
//! concern: what is judged there is judged all the time. Beside the server there is a neighbour on its bridge, whose
//! flow is counted here: it must pass while the sysctl is 0, and must not while the node says that it enforces.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sallyport_integration::{
    deployment::{Client, Deployment, PATIENCE, put},
    ledger::Ledger,
};
use sallyport_proto::wire::{Edit, NodeStatus, node_status::State};
use sallyport_testbed::{
    Mode, Testbed,
    probe::{Counts, Stream, Traffic},
};

use crate::{
    Settings,
    scene::{DENIED_NEAR, FAR, Scene, addresses, bed_of, policy, workload},
};

const SYSCTL: &str = "net.bridge.bridge-nf-call-iptables";

/// Within this time it is to be said, or set right.
const SOON: Duration = Duration::from_secs(1);

/// The number of times that the sysctl is set to 0, without `--manage-sysctls` and with it.
const ROUNDS: u32 = 5;

/// Two nodes with a bridge each.
pub(crate) fn bed() -> Result<Testbed> {
    let bed = bed_of(Mode::Bridged)?;
    bed.add_pod(FAR, "default/neighbour", &addresses(FAR, 3))?;
    Ok(bed)
}

/// Sets the sysctl to 0 on the server's node, again and again, while edits are made. Without `--manage-sysctls` the
/// node says so, and no edit is enforced until it is 1 again; with it the node sets it to 1.
pub(crate) fn sysctl_off(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.edit(workload(
        "neighbour",
        FAR,
        "app: neighbour",
        &addresses(FAR, 3),
    ))?;
    let host = scene.deployment.bed.host("default/neighbour");
    let neighbour = host.context("a pod is missing")?;
    let traffic = Traffic::udp(DENIED_NEAR.0 + 9).every(Duration::from_millis(1));
    // Denied by the server's end, as every flow of another than the client.
    let stream = Stream::start(&neighbour, &scene.server, traffic)?;
    is_denied(&stream)?;
    let (mut said, mut passed) = (Duration::ZERO, 0);
    for round in 0..ROUNDS {
        let (after, through) = unmanaged(scene, &stream, round)?;
        said = said.max(after);
        passed += through;
    }
    scene
        .deployment
        .set_enforcer_arguments(&["--manage-sysctls"]);
    scene.deployment.kill_enforcer(FAR);
    scene.deployment.start_enforcer(FAR)?;
    let (mut set, mut slipped) = (Duration::ZERO, 0);
    for round in 0..ROUNDS {
        let (after, through) = managed(scene, &stream, round)?;
        set = set.max(after);
        slipped += through;
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "said within {} ms; {passed} packets passed until it was set by hand. Managed: set within {} ms, {slipped} passed",
        said.as_millis(),
        set.as_millis()
    ))
}

/// Returns after how long the node said so, and how many packets passed that must not.
fn unmanaged(scene: &Scene, stream: &Stream, round: u32) -> Result<(Duration, u64)> {
    let (mut client, node) = (scene.client()?, scene.deployment.bed.node(FAR));
    let before = stream.counts();
    node.sysctl(SYSCTL, "0")?;
    let said = stands(&mut client, |node| {
        node.state() == State::NotJudging && node.reason.contains(SYSCTL)
    })?;
    stream
        .until(PATIENCE, |now| now.since(before).received > 20)
        .map_err(|counts| {
            anyhow::anyhow!("nothing passes, so that it means nothing: {counts:?}")
        })?;
    let revision = client.apply(vec![edit(round)])?;
    ensure!(
        !client.is_enforced_within(revision, Duration::from_millis(500))?,
        "a revision counts as enforced that is not"
    );
    node.sysctl(SYSCTL, "1")?;
    let passed = stream.counts().since(before).received;
    stands(&mut client, |node| node.state() == State::Enforcing)?;
    ensure!(
        client.is_enforced_within(revision, SOON)?,
        "it does not count again"
    );
    is_denied(stream)?;
    Ok((said, passed))
}

/// Returns after how long the node had set it, and how many packets passed until then.
fn managed(scene: &Scene, stream: &Stream, round: u32) -> Result<(Duration, u64)> {
    let node = scene.deployment.bed.node(FAR);
    let (before, at) = (stream.counts(), Instant::now());
    node.sysctl(SYSCTL, "0")?;
    while node.netns().read_sysctl(SYSCTL)? != "1" {
        ensure!(at.elapsed() < SOON, "it is not set within {SOON:?}");
        thread::sleep(Duration::from_millis(1));
    }
    let set = at.elapsed();
    let passed = is_denied(stream)?.since(before).received;
    scene.client()?.enforce(vec![edit(round)])?;
    Ok((set, passed))
}

/// An edit that concerns the server's node.
fn edit(round: u32) -> Edit {
    let port = 9600 + round as u16 % 2;
    put(policy(
        "more",
        "app: server",
        true,
        "app: client",
        &[(port, port)],
    ))
}

/// Waits until the server's node stands so, which is to be soon. Returns how long it took.
fn stands(client: &mut Client, is_so: impl Fn(&NodeStatus) -> bool) -> Result<Duration> {
    let (at, name) = (Instant::now(), Deployment::node_name(FAR));
    loop {
        let nodes = client.status()?.nodes;
        let node = nodes.into_iter().find(|node| node.name == name);
        let node = node.context("the node is there")?;
        if is_so(&node) {
            return Ok(at.elapsed());
        }
        ensure!(
            at.elapsed() < SOON,
            "within {SOON:?} it is not so: {node:?}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// Nothing comes through from a moment from now on, for a while. Returns the counts of that moment.
fn is_denied(stream: &Stream) -> Result<Counts> {
    // Packets under way were let through before.
    thread::sleep(Duration::from_millis(50));
    let before = stream.counts();
    thread::sleep(Duration::from_millis(300));
    let since = stream.counts().since(before);
    ensure!(
        since.received == 0 && since.sent > 50,
        "a flow is to be denied: {since:?}"
    );
    Ok(before)
}
