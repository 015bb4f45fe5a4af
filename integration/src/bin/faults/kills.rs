//! Programs that are killed: at every step, and at random moments. Each kill is SIGKILL, and nothing is made ready for
//! it.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_integration::{
    deployment::{PATIENCE, put},
    ledger::{Ledger, Load, pair},
};
use sallyport_proto::wire::Kind;
use sallyport_testbed::tracer::{Call, Fault, Tracer};

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene, addresses, policy, workload},
    steps::{Steps, kill_at_each, summary},
};

/// A policy set in two versions, of which each revokes and grants on both nodes, in every kind of step: endpoints
/// change their class, groups gain and lose members, addresses and classes come and go.
pub(crate) fn version(number: usize) -> String {
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

/// The kinds of calls of an update of a node, which is two: a revoke and a grant. Each is a write of the journal and of
/// the mark beside it, on their way to the disk; commits, some of which wait for packets; and an answer. Objects that
/// are left behind are deleted in the end.
pub(crate) const OF_UPDATE: [Steps; 4] = of_update([8, 6, 2, 2]);

/// The kinds of calls of an update that has so many of each at least.
pub(crate) const fn of_update(least: [usize; 4]) -> [Steps; 4] {
    let [files, commits, waits, messages] = least;
    [
        Steps {
            name: "what changes files",
            calls: Call::is_of_files,
            least: files,
        },
        Steps {
            name: "commits",
            calls: Call::is_commit,
            least: commits,
        },
        Steps {
            name: "waits for packets",
            calls: Call::is_grace,
            least: waits,
        },
        Steps {
            name: "messages",
            calls: Call::is_message,
            least: messages,
        },
    ]
}

/// The idle time of a program after which the update counts as done.
const IDLE: Duration = Duration::from_millis(500);

/// The time after which a started program has also done its delayed work.
const SETTLED: Duration = Duration::from_millis(200);

/// The number of times that a call of a number must be absent before it counts as absent: updates differ, every other
/// more than those between.
const LAST: usize = 2;

/// Waits for what happens first: a program is killed, or a transaction enforced.
pub(crate) fn await_hit_or_enforced(
    scene: &Scene,
    tracer: &Tracer,
    revision: u64,
) -> Result<Option<Call>> {
    let mut client = scene.client()?;
    let deadline = Instant::now() + PATIENCE;
    let hit = || tracer.hits().into_iter().next();
    while hit().is_none() {
        // Objects that are left behind are deleted a while after an update: that is killed, too.
        if client.is_enforced_within(revision, Duration::from_millis(20))? {
            let idle = Instant::now() + IDLE;
            while Instant::now() < idle && hit().is_none() {
                thread::sleep(Duration::from_millis(5));
            }
            break;
        }
        ensure!(Instant::now() < deadline, "neither killed nor enforced");
    }
    Ok(hit())
}

/// A node's enforcer at each call that reaches out of it, in the course of an update.
fn enforcer_at_every_step(scene: &mut Scene, node: usize) -> Result<Vec<Call>> {
    let mut number = 0;
    kill_at_each(&OF_UPDATE, LAST, |fault| {
        number += 1;
        // The garbage of the start and of the update before is no part of this update.
        thread::sleep(SETTLED);
        let pid = scene.deployment.enforcer_pid(node);
        let tracer = Tracer::attach(pid.context("it does not run")?, fault)?;
        let revision = scene.client()?.apply(vec![put(version(number))])?;
        let hit = await_hit_or_enforced(scene, &tracer, revision)?;
        drop(tracer);
        if hit.is_some() {
            scene.deployment.kill_enforcer(node);
            scene.deployment.start_enforcer(node)?;
            scene.client()?.wait_enforced(revision)?;
        }
        Ok(hit)
    })
}

pub(crate) fn enforcer_steps(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut hits = enforcer_at_every_step(scene, FAR)?;
    hits.extend(enforcer_at_every_step(scene, NEAR)?);
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(summary(&hits))
}

/// Kills a node's enforcer in the middle of an update: between its batches. Returns the revision that it was led to.
fn kill_half_way(scene: &mut Scene, node: usize, number: usize) -> Result<u64> {
    let middle = Fault {
        calls: Call::is_commit,
        ..Fault::kill_at(2)
    };
    let pid = scene.deployment.enforcer_pid(node);
    let tracer = Tracer::attach(pid.context("it does not run")?, middle)?;
    let revision = scene.client()?.apply(vec![put(version(number))])?;
    let hit = await_hit_or_enforced(scene, &tracer, revision)?;
    drop(tracer);
    hit.context("the update has too few steps")?;
    scene.deployment.kill_enforcer(node);
    Ok(revision)
}

/// An enforcer that is killed in the middle of an update, and again at each call of the start that finishes it.
pub(crate) fn enforcer_start_steps(scene: &mut Scene, _: Settings) -> Result<String> {
    // The rest of the update's first half, and the calls of any start.
    let mut of_start = OF_UPDATE;
    for (steps, least) in of_start.iter_mut().zip([8, 2, 1, 1]) {
        steps.least = least;
    }
    let mut number = 0;
    let hits = kill_at_each(&of_start, LAST, |fault| {
        number += 1;
        let revision = kill_half_way(scene, FAR, number)?;
        let pid = scene.deployment.start_enforcer_held(FAR)?;
        let tracer = Tracer::attach(pid, fault)?;
        scene.deployment.release_enforcer(FAR)?;
        let started = scene.deployment.await_enforcer(FAR);
        let hit = tracer.finish().1.pop();
        match &hit {
            None => started?,
            // Perhaps after it said that it is up.
            Some(_) => {
                scene.deployment.kill_enforcer(FAR);
                scene.deployment.start_enforcer(FAR)?;
            }
        }
        scene.client()?.wait_enforced(revision)?;
        Ok(hit)
    })?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(summary(&hits))
}

/// The kinds of calls of a transaction of the control plane: a write of the journal and of the mark beside it; and what
/// it says to each node, twice, and to who asked.
const OF_TRANSACTION: [Steps; 2] = [
    Steps {
        name: "what changes files",
        calls: Call::is_of_files,
        least: 4,
    },
    Steps {
        name: "messages",
        calls: Call::is_message,
        least: 5,
    },
];

/// The control plane at each call that reaches out of it, from a transaction's coming until it is enforced.
pub(crate) fn control_plane_steps(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut number = 0;
    let mut unacknowledged = 0;
    let hits = kill_at_each(&OF_TRANSACTION, LAST, |fault| {
        number += 1;
        let (hit, acknowledged) = kill_control_plane_at(scene, fault, number)?;
        unacknowledged += usize::from(!acknowledged);
        Ok(hit)
    })?;
    ensure!(
        unacknowledged > 0,
        "no transaction was killed before its answer"
    );
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(summary(&hits))
}

/// One transaction with a control plane that is killed at some call. Returns at which, and whether it was acknowledged.
fn kill_control_plane_at(
    scene: &mut Scene,
    fault: Fault,
    number: usize,
) -> Result<(Option<Call>, bool)> {
    let pid = scene.deployment.control_plane_pid();
    let mut client = scene.client()?;
    let tracer = Tracer::attach(pid.context("it does not run")?, fault)?;
    let applied = client.apply(vec![put(version(number))]);
    let enforced = applied
        .as_ref()
        .ok()
        .map(|&revision| client.wait_enforced(revision));
    // The calls after a while, such as the records of rollouts.
    let idle = Instant::now() + IDLE;
    while Instant::now() < idle && tracer.hits().is_empty() {
        thread::sleep(Duration::from_millis(2));
    }
    let hit = tracer.finish().1.pop();
    if hit.is_none() {
        applied?;
        enforced.context("it was not applied")??;
        return Ok((None, true));
    }
    scene.deployment.kill_control_plane();
    scene.deployment.start_control_plane()?;
    let mut client = scene.client()?;
    let halves = client.objects(Kind::NetworkPolicy)?;
    let named = format!("\"number\":\"{number}\"");
    let count = halves
        .iter()
        .filter(|object| object.manifest.contains(&named))
        .count();
    match (&applied, count) {
        (Ok(_), 2) | (Err(_), 0 | 2) => {}
        (applied, count) => bail!("{applied:?}, and {count} of 2 are there"),
    }
    client.wait_enforced(0)?;
    Ok((hit, applied.is_ok()))
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
