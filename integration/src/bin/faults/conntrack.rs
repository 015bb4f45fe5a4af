//! A node whose kernel has no room for connections any more. Owns what passes then and what does not; how a kernel is
//! filled up is `connections`'.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use sallyport_integration::{
    connections::{Crowd, Kind},
    deployment::{PATIENCE, delete, put},
    ledger::Ledger,
};
use sallyport_proto::wire::Edit;
use sallyport_testbed::{
    Family, Host,
    probe::{Counts, Pattern, Stream, Traffic},
};

use crate::{
    Settings,
    scene::{FAR, NEAR, OPEN, Scene, addresses, policy, workload},
};

/// After how long a UDP flow of which both ends were heard is one that the kernel keeps.
const ASSURED: Duration = Duration::from_millis(2500);

/// The ports of a friend of the client and of the server, which a stranger may not use.
const FRIENDS: (u16, u16) = (9500, 9509);

/// On each node in turn, connections are made until the kernel has no room: ones that it keeps, so that there is room
/// for no other; then ones that it gives up for others. Denied flows stay denied, and known flows go on. An address
/// changes hands meanwhile. When there is room again, all is as before.
pub(crate) fn full(scene: &mut Scene, _: Settings) -> Result<String> {
    let before = known_flows(scene)?;
    let mut notes = vec![format!("{before} packets before it")];
    let mut port = FRIENDS.0;
    for kind in [Kind::Assured, Kind::Unanswered] {
        for node in [NEAR, FAR] {
            let friend = Friend::meet(scene, node, port)?;
            notes.push(crowded(scene, &friend, kind)?);
            friend.leave(scene)?;
            port += 1;
        }
    }
    fresh_flows(scene)?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(notes.join("; "))
}

/// Replaces what must pass by flows that the kernel knows from both ends: it may drop any other when there is no room.
/// Returns how many packets there were before.
fn known_flows(scene: &mut Scene) -> Result<u64> {
    let mut before = 0;
    for (name, stream) in scene.probes.allowed.drain(..) {
        let counts = stream.stop();
        ensure!(counts.lost() == 0, "before it: {name}: {counts:?}");
        before += counts.sent;
    }
    let udp = |port| Traffic::udp(port).pattern(Pattern::Answered);
    for (name, traffic) in [
        ("answered UDP", udp(OPEN.0 + 4)),
        ("answered UDP over IPv6", udp(OPEN.0 + 5).family(Family::V6)),
        ("a TCP connection", Traffic::tcp(OPEN.0 + 6)),
        (
            "a TCP connection over IPv6",
            Traffic::tcp(OPEN.0 + 7).family(Family::V6),
        ),
    ] {
        let stream = Stream::start(&scene.client, &scene.server, traffic)?;
        scene.probes.allowed.push((name.to_owned(), stream));
    }
    scene.flows()?;
    thread::sleep(ASSURED);
    Ok(before)
}

/// New flows must pass, as there is room.
fn fresh_flows(scene: &mut Scene) -> Result<()> {
    for (name, traffic) in [
        ("new TCP connections afterwards", Traffic::tcp(OPEN.0 + 8)),
        ("new UDP flows afterwards", Traffic::udp(OPEN.0 + 9)),
    ] {
        let traffic = traffic
            .pattern(Pattern::FreshPorts)
            .every(Duration::from_millis(2));
        let stream = Stream::start(&scene.client, &scene.server, traffic)?;
        scene.probes.allowed.push((name.to_owned(), stream));
    }
    scene.flows()?;
    thread::sleep(Duration::from_millis(500));
    Ok(())
}

/// A pod with a known flow, whose address is another's later.
struct Friend {
    node: usize,
    pod: Host,
    /// Whom it sends to, on the other node.
    peer: Host,
    flow: Stream,
}

impl Friend {
    fn manifest(&self) -> String {
        workload(
            "friend",
            self.node,
            "app: friend",
            &addresses(self.node, 60),
        )
    }

    fn stranger(&self) -> String {
        workload(
            "stranger",
            self.node,
            "app: stranger",
            &addresses(self.node, 60),
        )
    }

    /// Adds the pod to a node, with a flow to the other node that is known when this returns.
    fn meet(scene: &Scene, node: usize, port: u16) -> Result<Friend> {
        let (peer, label) = match node {
            NEAR => (scene.server.clone(), "app: server"),
            _ => (scene.client.clone(), "app: client"),
        };
        let ours = addresses(node, 60);
        let pod = scene
            .deployment
            .bed
            .add_pod(node, "default/friend", &ours)?;
        let rules = [
            policy("friends-out", "app: friend", false, label, &[FRIENDS]),
            policy("friends-in", label, true, "app: friend", &[FRIENDS]),
            policy("strangers-out", "app: stranger", false, "app: nobody", &[]),
        ];
        // The client is isolated with that, as the server is.
        scene.edit(rules.concat() + &workload("friend", node, "app: friend", &ours))?;
        let traffic = Traffic::udp(port).pattern(Pattern::Answered);
        let flow = Stream::start(&pod, &peer, traffic)?;
        comes_through(&flow, "the friend's flow")?;
        thread::sleep(ASSURED);
        Ok(Friend {
            node,
            flow,
            pod,
            peer,
        })
    }

    /// Sends each message from a new port, so that it is a new flow, to a port of the peer.
    fn begins_flows(&self, port: u16) -> Result<Stream> {
        let traffic = Traffic::udp(port)
            .pattern(Pattern::FreshPorts)
            .every(Duration::from_millis(2));
        Ok(Stream::start(&self.pod, &self.peer, traffic)?)
    }

    /// The address is a stranger's. Returns how long it took until that was enforced; nothing comes through since then.
    fn is_a_stranger(&self, scene: &Scene) -> Result<Duration> {
        let started = Instant::now();
        enforce(scene, vec![delete(self.manifest()), put(self.stranger())])?;
        let took = started.elapsed();
        let before = await_silence(&self.flow)?;
        let after = await_sent(&self.flow, 200)?;
        ensure!(
            after.received == before.received,
            "the stranger has the friend's rights: {before:?}, {after:?}"
        );
        Ok(took)
    }

    /// And a friend's again.
    fn is_a_friend(&self, scene: &Scene) -> Result<()> {
        enforce(scene, vec![delete(self.stranger()), put(self.manifest())])
    }

    fn leave(self, scene: &Scene) -> Result<()> {
        enforce(scene, vec![delete(self.manifest())])?;
        drop(self.flow);
        Ok(scene.deployment.bed.remove("default/friend")?)
    }
}

/// Carries edits out. To forget an address all connections are read, which takes its time on a busy machine.
fn enforce(scene: &Scene, edits: Vec<Edit>) -> Result<()> {
    let mut client = scene.client()?;
    let revision = client.apply(edits)?;
    ensure!(
        client.is_enforced_within(revision, PATIENCE * 6)?,
        "revision {revision} is not enforced"
    );
    Ok(())
}

/// Waits until so many messages more were sent. Returns the counts then.
fn await_sent(stream: &Stream, messages: u64) -> Result<Counts> {
    let before = stream.counts();
    stream
        .until(PATIENCE, |now| now.since(before).sent > messages)
        .map_err(|counts| anyhow!("hardly anything is sent: {counts:?}"))
}

/// Waits until nothing is received any more: what had arrived is counted a while after.
fn await_silence(stream: &Stream) -> Result<Counts> {
    let deadline = Instant::now() + PATIENCE / 10;
    let mut before = stream.counts();
    loop {
        thread::sleep(Duration::from_millis(100));
        let now = stream.counts();
        if now.received == before.received {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "it does not end: {now:?}");
        before = now;
    }
}

fn comes_through(stream: &Stream, what: &str) -> Result<Counts> {
    let before = stream.counts();
    stream
        .until(PATIENCE, |now| now.since(before).received > 20)
        .map_err(|counts| anyhow!("{what} does not come through: {counts:?}"))
}

/// Fills the kernel of a friend's node, and empties it again. Says what was seen.
fn crowded(scene: &Scene, friend: &Friend, kind: Kind) -> Result<String> {
    let started = Instant::now();
    let netns = scene.deployment.bed.node(friend.node).netns();
    let crowd = Crowd::fill(netns, kind)?;
    let filled = started.elapsed();
    let known = friend.flow.counts();
    let fresh = friend.begins_flows(FRIENDS.1)?;
    let tried = await_sent(&fresh, 200)?;
    let occupied = crowd.occupied()?;
    match kind {
        // Else there was room, and nothing below means anything.
        Kind::Assured => ensure!(
            tried.received < tried.sent / 2,
            "there is room for new flows: {tried:?}, {occupied:?}"
        ),
        Kind::Unanswered => ensure!(
            tried.received > tried.sent / 2,
            "hardly a new flow passes, though others could be given up: {tried:?}, {occupied:?}"
        ),
    }
    comes_through(&friend.flow, "the friend's flow, with no room for others")?;
    let since = friend.flow.counts().since(known);
    let took = friend.is_a_stranger(scene)?;
    friend.is_a_friend(scene)?;
    crowd.leave()?;
    comes_through(&friend.flow, "the friend's flow, with room again")?;
    comes_through(&fresh, "a new flow, with room again")?;
    drop(fresh);
    let fresh = friend.begins_flows(FRIENDS.1 - 1)?;
    await_sent(&fresh, 200)?;
    let counts = fresh.stop();
    ensure!(counts.lost() == 0, "lost, with room again: {counts:?}");
    Ok(format!(
        "{kind:?} on node {}: {} of {} places taken in {:.1} s, {} of {} new flows passed, {} packets of the friend, its address changed hands in {:.0} ms",
        friend.node + 1,
        occupied.0,
        occupied.1,
        filled.as_secs_f64(),
        tried.received,
        tried.sent,
        since.received,
        took.as_secs_f64() * 1e3
    ))
}
