//! Pods and connections in unlucky moments: cut while they talk, addresses in new hands, pods before their policy,
//! moving, and relabelled while policies change.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sallyport_integration::deployment::{Deployment, PATIENCE, delete, put};
use sallyport_testbed::{
    Family,
    probe::{Counts, Pattern, Stream, Traffic},
};

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene, addresses, policy, workload},
};

/// The time that a connection that is now denied may live on.
const CUT: Duration = Duration::from_millis(100);

/// Connections that are established, and then denied: of TCP and UDP, in both families, whoever speaks. They are cut at
/// once; and those that others have go on.
pub(crate) fn established(scene: &mut Scene, _: Settings) -> Result<String> {
    const FIRST: u16 = 9300;
    let grants = |port: u16| {
        [
            policy(
                "for-now-in",
                "app: server",
                true,
                "app: client",
                &[(port, port + 9)],
            ),
            policy(
                "for-now-out",
                "app: client",
                false,
                "app: server",
                &[(port, port + 9)],
            ),
        ]
        .concat()
    };
    let mut slowest = Duration::ZERO;
    let mut connections = 0;
    for round in 0..3 {
        let port = FIRST + 10 * round;
        scene.edit(grants(port))?;
        let mut streams = Vec::new();
        for (number, (pattern, family)) in [
            (Pattern::Answered, Family::V4),
            (Pattern::ServerSpeaks, Family::V4),
            (Pattern::Answered, Family::V6),
            (Pattern::ServerSpeaks, Family::V6),
        ]
        .into_iter()
        .enumerate()
        {
            for (offset, traffic) in [(0, Traffic::udp(0)), (1, Traffic::tcp(0))] {
                let traffic = Traffic {
                    port: port + 2 * number as u16 + offset,
                    ..traffic
                };
                let traffic = traffic.pattern(pattern).family(family);
                streams.push(Stream::start(&scene.client, &scene.server, traffic)?);
            }
        }
        connections += streams.len();
        for stream in &streams {
            stream
                .until(PATIENCE, |now| now.received > 30)
                .map_err(|counts| anyhow::anyhow!("it does not come through: {counts:?}"))?;
        }
        // Taken away at one end only, at one or the other in turn.
        let gone = match round % 2 {
            0 => policy("for-now-in", "app: server", true, "app: client", &[]),
            _ => policy("for-now-out", "app: client", false, "app: server", &[]),
        };
        let mut client = scene.client()?;
        let (asked, revision) = (Instant::now(), client.apply(vec![put(gone)])?);
        client.wait_enforced(revision)?;
        // Read when it is said to be enforced: nothing comes after that, but for what had arrived.
        thread::sleep(Duration::from_millis(5));
        let at = asked.elapsed();
        let before: Vec<Counts> = streams.iter().map(Stream::counts).collect();
        thread::sleep(Duration::from_millis(500));
        for (stream, before) in streams.iter().zip(before) {
            let since = stream.counts().since(before);
            ensure!(
                since.received == 0,
                "{} messages of a connection that is denied, {at:?} after it was: {since:?}",
                since.received
            );
        }
        slowest = slowest.max(at);
        ensure!(
            slowest < CUT,
            "connections were cut after {slowest:?}, not within {CUT:?}"
        );
    }
    Ok(format!(
        "{connections} connections, cut within {:.1} ms of the request",
        slowest.as_secs_f64() * 1e3
    ))
}

/// An address of a pod that is gone is given to another before any policy is sent, and again and again. The new pod is
/// never judged by the rights of the old one.
pub(crate) fn address_reused(scene: &mut Scene, _: Settings) -> Result<String> {
    let ours = addresses(NEAR, 60);
    let may = policy(
        "friends",
        "app: server",
        true,
        "app: friend",
        &[(9500, 9509)],
    );
    scene.edit(may)?;
    let mut rounds = 0;
    let mut sent = 0;
    for round in 0..6u16 {
        // The one that may.
        let friend = scene
            .deployment
            .bed
            .add_pod(NEAR, "default/friend", &ours)?;
        scene.edit(workload("friend", NEAR, "app: friend", &ours))?;
        let port = 9500 + round;
        let stream = Stream::start(&friend, &scene.server, Traffic::udp(port))?;
        stream
            .until(PATIENCE, |now| now.received > 20)
            .map_err(|counts| anyhow::anyhow!("the friend does not get through: {counts:?}"))?;
        let stopped = stream.stop();
        ensure!(stopped.received > 0, "{stopped:?}");
        drop(friend);
        let mut client = scene.client()?;
        let gone = client.apply(vec![delete(workload("friend", NEAR, "", &ours))])?;
        client.wait_enforced(gone)?;
        scene.deployment.bed.remove("default/friend")?;
        // The one that may not: it talks before anybody knows of it, by the address and to the port of the other.
        let stranger = scene
            .deployment
            .bed
            .add_pod(NEAR, "default/stranger", &ours)?;
        let denied = Stream::start(&stranger, &scene.server, Traffic::udp(port))?;
        thread::sleep(Duration::from_millis(100));
        scene.edit(workload("stranger", NEAR, "app: stranger", &ours))?;
        thread::sleep(Duration::from_millis(100));
        let counts = denied.counts();
        ensure!(
            counts.received == 0 && counts.sent > 50,
            "the stranger has the friend's rights: {counts:?}"
        );
        sent += counts.sent;
        drop(denied);
        // Handed over in one transaction, while both send.
        let mut client = scene.client()?;
        let revision = client.apply(vec![
            delete(workload("stranger", NEAR, "", &ours)),
            put(workload("friend", NEAR, "app: friend", &ours)),
        ])?;
        client.wait_enforced(revision)?;
        let allowed = Stream::start(&stranger, &scene.server, Traffic::udp(port))?;
        allowed
            .until(PATIENCE, |now| now.received > 20)
            .map_err(|counts| anyhow::anyhow!("after the hand-over: {counts:?}"))?;
        drop(allowed);
        let revision = client.apply(vec![delete(workload("friend", NEAR, "", &ours))])?;
        client.wait_enforced(revision)?;
        scene.deployment.bed.remove("default/stranger")?;
        rounds += 1;
    }
    Ok(format!("{rounds} rounds, {sent} packets of strangers"))
}

/// Pods that talk before anybody knows of them: nothing passes until their policy is there, and then only what it
/// allows.
pub(crate) fn before_its_policy(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut pods = 0;
    let mut early = 0;
    scene.edit(policy(
        "new-pods",
        "app: server",
        true,
        "app: new",
        &[(9600, 9639)],
    ))?;
    for number in 0..8u16 {
        let name = format!("new-{number}");
        let ours = addresses(NEAR, 70 + number);
        let pod = scene
            .deployment
            .bed
            .add_pod(NEAR, &format!("default/{name}"), &ours)?;
        let (good, bad) = (9600 + number, 9700 + number);
        let allowed = Stream::start(&pod, &scene.server, Traffic::udp(good))?;
        let denied = Stream::start(&pod, &scene.server, Traffic::udp(bad))?;
        let over_v6 = Traffic::udp(bad + 100).family(Family::V6);
        let denied_v6 = Stream::start(&pod, &scene.server, over_v6)?;
        let started = Instant::now();
        while allowed.counts().sent <= 20 && started.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(60));
        }
        let counts = allowed.counts();
        ensure!(
            counts.received == 0 && counts.sent > 20,
            "before it is known: {counts:?}"
        );
        early += counts.sent;
        let mut manifest = workload(&name, NEAR, "app: new", &ours);
        manifest += &policy(
            &format!("of-{name}"),
            "app: new",
            false,
            "app: server",
            &[(9600, 9639)],
        );
        scene.edit(manifest)?;
        allowed
            .until(PATIENCE, |now| now.received > 5)
            .map_err(|counts| anyhow::anyhow!("after its policy is there: {counts:?}"))?;
        scene.deny(&format!("{name}, to a port that is for nobody"), denied);
        scene.deny(
            &format!("{name}, over IPv6 to a port that is for nobody"),
            denied_v6,
        );
        pods += 1;
    }
    Ok(format!(
        "{pods} pods, of which {early} packets before their policy were dropped"
    ))
}

/// A pod moves between nodes, with its addresses, while it talks; nothing that it must not passes on either.
pub(crate) fn moves(scene: &mut Scene, _: Settings) -> Result<String> {
    let ours = addresses(NEAR, 90);
    let pod = scene.deployment.bed.add_pod(NEAR, "default/mover", &ours)?;
    scene.edit(
        [
            workload("mover", NEAR, "app: mover", &ours),
            policy(
                "of-mover",
                "app: mover",
                false,
                "app: server",
                &[(9800, 9800)],
            ),
            policy("movers", "app: server", true, "app: mover", &[(9800, 9809)]),
        ]
        .concat(),
    )?;
    let allowed = Stream::start(&pod, &scene.server, Traffic::udp(9800))?;
    let denied = Stream::start(&pod, &scene.server, Traffic::udp(9801))?;
    let denied_v6 = Traffic::udp(9802).family(Family::V6);
    let denied_v6 = Stream::start(&pod, &scene.server, denied_v6)?;
    scene.deny("the mover, by its own node", denied);
    scene.deny("the mover over IPv6, by its own node", denied_v6);
    let comes_through = || {
        let before = allowed.counts();
        allowed
            .until(PATIENCE, |now| now.since(before).received > 20)
            .map_err(|counts| anyhow::anyhow!("after the move: {counts:?}, {before:?}"))
    };
    let moved = |node| workload("mover", node, "app: mover", &ours);
    for _ in 0..3 {
        let mut client = scene.client()?;
        // As whoever moves pods does it: told, cut off, moved, told.
        let gone = client.apply(vec![delete(moved(NEAR))])?;
        client.wait_enforced(gone)?;
        scene.deployment.bed.move_pod("default/mover", FAR)?;
        thread::sleep(Duration::from_millis(30));
        scene.edit(moved(FAR))?;
        comes_through()?;
        // Told in one, while the node that it goes to is away: that node judges nothing of it, so nobody may know it.
        scene.deployment.kill_enforcer(NEAR);
        let there = client.apply(vec![put(moved(NEAR))])?;
        client.wait_enforced_by(&Deployment::node_name(FAR), there - 1)?;
        scene.deployment.bed.move_pod("default/mover", NEAR)?;
        thread::sleep(Duration::from_millis(100));
        scene.deployment.start_enforcer(NEAR)?;
        client.wait_enforced(there)?;
        comes_through()?;
    }
    Ok("6 moves, 3 of them in one transaction".into())
}

/// Labels and policies change places: in every state another of the two ends denies a flow, by another label.
pub(crate) fn label_races(scene: &mut Scene, _: Settings) -> Result<String> {
    let (near, far) = (addresses(NEAR, 30), addresses(FAR, 30));
    let bed = &scene.deployment.bed;
    let near_pod = bed.add_pod(NEAR, "default/left", &near)?;
    let far_pod = bed.add_pod(FAR, "default/right", &far)?;
    let state = |number: usize| {
        let left_is_shut = number.is_multiple_of(2);
        // The labels stay what they mean, and what means it alternates.
        let (shut, open) = match number / 2 % 2 {
            0 => ("kind: shut", "kind: open"),
            _ => ("kind: open", "kind: shut"),
        };
        let of = |is_shut: bool| if is_shut { shut } else { open };
        [
            workload("left", NEAR, of(left_is_shut), &near),
            workload("right", FAR, of(!left_is_shut), &far),
            policy("shut-in", shut, true, "app: nobody", &[]),
            policy("shut-out", shut, false, "app: nobody", &[]),
        ]
        .concat()
    };
    scene.edit(state(0))?;
    for (port, family) in [(9900, Family::V4), (9901, Family::V6)] {
        let traffic = Traffic::udp(port)
            .family(family)
            .every(Duration::from_micros(500));
        let stream = Stream::start(&near_pod, &far_pod, traffic)?;
        scene.deny("of two pods, one of which is shut in every state", stream);
    }
    let started = Instant::now();
    let mut edits = 0;
    while started.elapsed() < Duration::from_secs(6) {
        edits += 1;
        scene.edit(state(edits))?;
    }
    Ok(format!("{edits} edits of labels and policies at once"))
}
