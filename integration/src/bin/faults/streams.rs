//! Streams between nodes and control plane that are slow, break, bring late what was given up, or stand still.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_integration::{
    deployment::put,
    ledger::{Load, pair},
};
use sallyport_testbed::relay::Relay;

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene, addresses, policy, workload},
};

fn relay(scene: &Scene, node: usize) -> Result<&Relay> {
    scene.deployment.relay(node).context("there is no relay")
}

/// Streams break again and again while transactions follow each other; what was under way is lost for the node and late
/// for the control plane.
pub(crate) fn cut(scene: &mut Scene, settings: Settings) -> Result<String> {
    let load = Load::start(scene.client()?, Duration::from_millis(2));
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let until = Instant::now() + Duration::from_secs(8);
    let mut cuts = 0;
    while Instant::now() < until {
        let line = relay(scene, rng.random_range(0..2))?;
        line.set_delay(Duration::from_millis(rng.random_range(0..150)));
        thread::sleep(Duration::from_millis(rng.random_range(0..200)));
        line.cut();
        // The next connection is faster: what the last one said comes after it.
        line.set_delay(Duration::from_millis(rng.random_range(0..20)));
        cuts += 1;
    }
    for node in [NEAR, FAR] {
        relay(scene, node)?.set_delay(Duration::ZERO);
    }
    let ledger = load.stop()?;
    ledger.compare(&mut scene.deployment)?;
    Ok(format!("{cuts} cuts, {} transactions", ledger.len()))
}

/// A node whose stream is late holds up what concerns it, and nothing else.
pub(crate) fn slow(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.edit(workload("idle", NEAR, "app: idle", &addresses(NEAR, 50)))?;
    let one = |name: &str, app: &str, number: u16| {
        let port = 9000 + number % 7;
        policy(
            name,
            &format!("app: {app}"),
            true,
            "app: nobody",
            &[(port, port)],
        )
    };
    let far_edits = |beside: bool| -> Result<Duration> {
        let mut times = Vec::new();
        for number in 0..15 {
            let mut client = scene.client()?;
            if beside {
                // Something is under way to the slow node all the time.
                client.apply(vec![put(one("near-only", "idle", number))])?;
            }
            let started = Instant::now();
            let revision = client.apply(vec![put(one("far-only", "server", number))])?;
            client.wait_enforced_by("node-2", revision)?;
            times.push(started.elapsed());
        }
        times.sort();
        Ok(times[7])
    };
    let without = far_edits(false)?;
    let late = Duration::from_millis(400);
    relay(scene, NEAR)?.set_delay(late);
    let beside = far_edits(true)?;
    let concerned = scene.edit(pair(77))?;
    ensure!(
        concerned >= late,
        "the stream is {late:?} late, and an edit took {concerned:?}"
    );
    relay(scene, NEAR)?.set_delay(Duration::ZERO);
    ensure!(
        beside < late / 2,
        "an edit of the other node took {beside:?} beside a node that is {late:?} late, and {without:?} without"
    );
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(format!(
        "edits of the other node: {:.1} ms, beside a node that is 400 ms late {:.1} ms; of both {:.0} ms",
        ms(without),
        ms(beside),
        ms(concerned)
    ))
}

/// An enforcer that is frozen: what its node enforces stays, edits that do not concern it go on, those that do wait,
/// and none is lost when it thaws.
pub(crate) fn frozen(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.signal(scene.deployment.enforcer_pid(NEAR), Signal::SIGSTOP)?;
    let far = |port: u16| policy("far-only", "app: server", true, "app: far", &[(port, port)]);
    let mut slowest = Duration::ZERO;
    for number in 0..20 {
        slowest = slowest.max(scene.edit(far(9000 + number))?);
    }
    let mut client = scene.client()?;
    let revision = client.apply(vec![put(pair(1))])?;
    ensure!(
        !client.is_enforced_within(revision, Duration::from_millis(1500))?,
        "a frozen node is said to enforce"
    );
    let status = client.status()?;
    let lags = status
        .nodes
        .iter()
        .any(|node| node.name == "node-1" && node.pending_revision == revision);
    ensure!(lags, "the status does not name the frozen node: {status:?}");
    scene.signal(scene.deployment.enforcer_pid(NEAR), Signal::SIGCONT)?;
    client.wait_enforced(revision)?;
    Ok(format!(
        "20 edits of the other node meanwhile, the slowest {:.0} ms",
        slowest.as_secs_f64() * 1e3
    ))
}
