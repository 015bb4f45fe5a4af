//! Programs that are killed: at every step, and at random moments. Each kill is SIGKILL, and nothing is made ready for it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_integration::{
    deployment::{PATIENCE, put},
    ledger::{Ledger, Load, pair},
    tracer::{Call, Fault, Tracer},
};
use sallyport_proto::wire::Kind;

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene, addresses, policy, workload},
};

/// A policy set in two versions, of which each takes away and gives on both nodes, in every kind of step that there is:
/// endpoints change their class, groups gain and lose members, addresses and classes come and go.
fn version(number: usize) -> String {
    let (left, right) = match number % 2 {
        0 => ("client", "server"),
        _ => ("server", "client"),
    };
    let low = 9000 + number as u16 % 50 * 10;
    [
        workload(
            "extra-near",
            NEAR,
            &format!("app: extra, side: {left}"),
            &addresses(NEAR, 40),
        ),
        workload(
            "extra-far",
            FAR,
            &format!("app: extra, side: {right}"),
            &addresses(FAR, 40),
        ),
        policy(
            "more-in",
            "app: server",
            true,
            "side: client",
            &[(low, low + 5)],
        ),
        policy(
            "more-out",
            "app: client",
            false,
            "side: server",
            &[(low, low + 5)],
        ),
        pair(number as u32),
    ]
    .concat()
}

/// Enough for any update.
const MOST: usize = 400;

/// What was hit, the most frequent first.
fn summary(hits: &[Call]) -> String {
    let mut kinds: Vec<(usize, String)> = Vec::new();
    for call in hits {
        let name = match call.object.starts_with("snap.") {
            true => format!("{} snapshot", call.name),
            false => call.to_string(),
        };
        match kinds.iter_mut().find(|(_, other)| *other == name) {
            Some((count, _)) => *count += 1,
            None => kinds.push((1, name)),
        }
    }
    kinds.sort_by(|one, other| other.cmp(one));
    let kinds: Vec<String> = kinds
        .iter()
        .take(6)
        .map(|(count, name)| format!("{count} {}", name.trim()))
        .collect();
    format!("{} kills: {}", hits.len(), kinds.join(", "))
}

/// Waits for what happens first: a program is killed, or a transaction enforced.
fn await_hit_or_enforced(scene: &Scene, tracer: &Tracer, revision: u64) -> Result<bool> {
    let mut client = scene.client()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if !tracer.hits().is_empty() {
            return Ok(true);
        }
        // What is left behind is deleted a while after an update: that is killed, too.
        if client.is_enforced_within(revision, Duration::from_millis(20))? {
            let idle = Instant::now() + Duration::from_millis(300);
            while Instant::now() < idle && tracer.hits().is_empty() {
                thread::sleep(Duration::from_millis(5));
            }
            return Ok(!tracer.hits().is_empty());
        }
        ensure!(Instant::now() < deadline, "neither killed nor enforced");
    }
}

/// A node's enforcer at each call that reaches out of it, in the course of an update.
fn enforcer_at_every_step(scene: &mut Scene, node: usize) -> Result<Vec<Call>> {
    let mut hits = Vec::new();
    for first in 1..MOST {
        let pid = scene
            .deployment
            .enforcer_pid(node)
            .context("it does not run")?;
        let tracer = Tracer::attach(pid, Fault::kill_at(first))?;
        let revision = scene.client()?.apply(vec![put(version(first))])?;
        let killed = await_hit_or_enforced(scene, &tracer, revision)?;
        hits.extend(tracer.finish().1);
        if !killed {
            return Ok(hits);
        }
        scene.deployment.kill_enforcer(node);
        scene.deployment.start_enforcer(node)?;
        scene.client()?.wait_enforced(revision)?;
    }
    bail!("an update has no end")
}

pub(crate) fn enforcer_steps(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut hits = enforcer_at_every_step(scene, FAR)?;
    hits.extend(enforcer_at_every_step(scene, NEAR)?);
    let commits = hits.iter().filter(|call| call.object == "netlink").count();
    ensure!(
        commits > 10 && hits.len() > 25,
        "so few steps are not all: {hits:?}"
    );
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(summary(&hits))
}

/// An enforcer that is killed in the middle of an update, and again at each call of the start that finishes it.
pub(crate) fn enforcer_start_steps(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut hits = Vec::new();
    let mut number = 0;
    for first in 1..MOST {
        // In the middle of an update: between its batches.
        number += 1;
        let pid = scene
            .deployment
            .enforcer_pid(FAR)
            .context("it does not run")?;
        let calls = |call: &Call| call.name == "sendto" && call.object == "netlink";
        let middle = Fault {
            calls,
            ..Fault::kill_at(2)
        };
        let tracer = Tracer::attach(pid, middle)?;
        let revision = scene.client()?.apply(vec![put(version(number))])?;
        ensure!(
            await_hit_or_enforced(scene, &tracer, revision)?,
            "the update has too few steps"
        );
        drop(tracer);
        scene.deployment.kill_enforcer(FAR);

        let pid = scene.deployment.start_enforcer_held(FAR)?;
        let tracer = Tracer::attach(pid, Fault::kill_at(first))?;
        scene.deployment.let_enforcer_go(FAR)?;
        let started = scene.deployment.await_enforcer(FAR);
        let (_, hit) = tracer.finish();
        let is_through = hit.is_empty();
        hits.extend(hit);
        match (is_through, started) {
            (true, started) => started?,
            // It was killed after it said so.
            (false, Ok(()) | Err(_)) => {
                scene.deployment.kill_enforcer(FAR);
                scene.deployment.start_enforcer(FAR)?;
            }
        }
        scene.client()?.wait_enforced(revision)?;
        if is_through {
            Ledger::default().compare(&mut scene.deployment)?;
            return Ok(summary(&hits));
        }
    }
    bail!("a start has no end")
}

/// The control plane at each call that reaches out of it, from a transaction's coming until it is enforced.
pub(crate) fn control_plane_steps(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut hits = Vec::new();
    let mut unacknowledged = 0;
    for first in 1..MOST {
        let pid = scene.deployment.control_plane_pid();
        let mut client = scene.client()?;
        let tracer = Tracer::attach(pid.context("it does not run")?, Fault::kill_at(first))?;
        let applied = client.apply(vec![put(version(first))]);
        let enforced = applied
            .as_ref()
            .ok()
            .map(|&revision| client.wait_enforced(revision));
        // What it does after a while, such as what it remembers of rollouts.
        let idle = Instant::now() + Duration::from_millis(100);
        while Instant::now() < idle && tracer.hits().is_empty() {
            thread::sleep(Duration::from_millis(2));
        }
        let (_, hit) = tracer.finish();
        let is_through = hit.is_empty();
        hits.extend(hit);
        if is_through {
            applied?;
            enforced.context("it was not applied")??;
            ensure!(
                unacknowledged > 0,
                "no transaction was killed before its answer"
            );
            Ledger::default().compare(&mut scene.deployment)?;
            return Ok(summary(&hits));
        }
        scene.deployment.kill_control_plane();
        scene.deployment.start_control_plane()?;
        let mut client = scene.client()?;
        let halves = client.objects(Kind::NetworkPolicy)?;
        let count = halves
            .iter()
            .filter(|object| object.manifest.contains(&format!("\"number\":\"{first}\"")))
            .count();
        match (&applied, count) {
            (Ok(_), 2) | (Err(_), 0 | 2) => {}
            (applied, count) => bail!("killed at {first}: {applied:?}, and {count} of 2 are there"),
        }
        unacknowledged += usize::from(applied.is_err());
        client.wait_enforced(0)?;
    }
    bail!("a transaction has no end")
}

/// `kill -9` at random moments, of any program, while transactions follow each other.
pub(crate) fn random_kills(scene: &mut Scene, settings: Settings) -> Result<String> {
    let load = Load::start(scene.client()?, Duration::from_millis(10));
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut kills = 0;
    while kills < settings.kills {
        thread::sleep(Duration::from_micros(rng.random_range(0..60_000)));
        match rng.random_range(0..8) {
            0..=2 => {
                scene.deployment.kill_control_plane();
                thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
                scene.deployment.start_control_plane()?;
                kills += 1;
            }
            3 => {
                scene.deployment.kill_control_plane();
                scene.deployment.kill_enforcer(NEAR);
                scene.deployment.kill_enforcer(FAR);
                scene.deployment.start_enforcer(FAR)?;
                scene.deployment.start_control_plane()?;
                scene.deployment.start_enforcer(NEAR)?;
                kills += 3;
            }
            4 => {
                // Again before it is up.
                let node = rng.random_range(0..2);
                scene.deployment.kill_enforcer(node);
                scene.deployment.start_enforcer_unawaited(node)?;
                thread::sleep(Duration::from_micros(rng.random_range(0..80_000)));
                scene.deployment.kill_enforcer(node);
                scene.deployment.start_enforcer(node)?;
                kills += 2;
            }
            _ => {
                let node = rng.random_range(0..2);
                scene.deployment.kill_enforcer(node);
                scene.deployment.start_enforcer(node)?;
                kills += 1;
            }
        }
    }
    let ledger = load.stop()?;
    ensure!(
        ledger.len() as u32 > settings.kills / 4,
        "only {} transactions during {kills} kills",
        ledger.len()
    );
    ledger.compare(&mut scene.deployment)?;
    Ok(format!(
        "{kills} kills, {} transactions acknowledged: none lost; API, journals and kernels agree",
        ledger.len()
    ))
}

/// The same number of restarts as others do them: all rules go, and come again.
pub(crate) fn restart_as_others(scene: &mut Scene, _: Settings) -> Result<String> {
    for _ in 0..3 {
        scene.deployment.kill_enforcer(FAR);
        ensure!(
            scene
                .deployment
                .nft(FAR, &["delete", "table", "inet", "sallyport"])?,
            "the table of a dead enforcer can be deleted"
        );
        scene.deployment.start_enforcer(FAR)?;
        thread::sleep(Duration::from_millis(100));
    }
    Ok("3 restarts, each of which deletes all rules and adds them again".into())
}
