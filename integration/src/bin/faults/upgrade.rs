//! An older version's journals, tables and streams, taken over by these programs while packets flow. Names the version;
//! `deploy/build-revision` builds it.

use std::{fs, path::Path, sync::OnceLock, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use sallyport_integration::{
    binaries::{self, Binaries, binaries, binaries_of},
    deployment::put,
    ledger::{Ledger, Load},
};
use sallyport_testbed::tracer::{Call, Fault, Tracer};

use crate::{
    Settings,
    kills::{OF_UPDATE, await_hit_or_enforced, version},
    rows::LANDED,
    scene::{FAR, NEAR, Scene},
    steps::{kill_at_each, summary},
};

/// The revision that is upgraded from: the last one with all chains behind one of the forward hook. It is what
/// everybody has who has not built what came after.
const REVISION: &str = "ff0c4b22327da37a06f8fb89d6430061f9c6ed01";

/// The programs of the landed version.
pub(crate) fn landed() -> Result<Binaries, binaries::Error> {
    static FOUND: OnceLock<Result<Binaries, binaries::Error>> = OnceLock::new();
    FOUND.get_or_init(|| binaries_of(REVISION)).clone()
}

/// Checks which program runs.
fn runs(pid: Option<u32>, program: &Path) -> Result<()> {
    let pid = pid.context("the program does not run")?;
    let found = fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(
        found == fs::canonicalize(program)?,
        "{} runs instead of {}",
        found.display(),
        program.display()
    );
    Ok(())
}

/// Replaces a node's enforcer as a package manager does.
fn replace_enforcer(scene: &mut Scene, node: usize) -> Result<()> {
    scene.deployment.stop_enforcer(node);
    scene.deployment.start_enforcer(node)?;
    runs(scene.deployment.enforcer_pid(node), &binaries()?.enforcer)
}

/// The control plane is replaced on the same directory, then one enforcer after the other, while transactions come all
/// the time. Each mixture of versions carries out edits.
pub(crate) fn in_order(scene: &mut Scene, _: Settings) -> Result<String> {
    let (old, new) = (landed()?, binaries()?);
    for node in [NEAR, FAR] {
        runs(scene.deployment.enforcer_pid(node), &old.enforcer)?;
    }
    runs(scene.deployment.control_plane_pid(), &old.controlplane)?;
    // Far from the numbers of the transactions that go on meanwhile.
    let mut number = 100_000;
    let mut edits = |scene: &Scene| -> Result<()> {
        for _ in 0..3 {
            scene.edit(version(number))?;
            number += 1;
        }
        Ok(())
    };
    edits(scene)?;
    let load = Load::start(scene.client()?, Duration::from_millis(10));
    thread::sleep(Duration::from_millis(300));
    scene.deployment.set_binaries(new.clone());
    scene.deployment.stop_control_plane();
    scene.deployment.start_control_plane()?;
    runs(scene.deployment.control_plane_pid(), &new.controlplane)?;
    edits(scene)?;
    for node in [NEAR, FAR] {
        thread::sleep(Duration::from_millis(300));
        replace_enforcer(scene, node)?;
        edits(scene)?;
    }
    let ledger = load.stop()?;
    ledger.compare(&mut scene.deployment)?;
    Ok(format!(
        "{} transactions acknowledged meanwhile: none lost; API, journals and kernels agree",
        ledger.len()
    ))
}

/// The packets of finished scenes.
#[derive(Default)]
struct Seen {
    allowed: u64,
    denied: u64,
}

impl Seen {
    /// Ends a scene's packets, none of which may be misjudged.
    fn judge(&mut self, scene: &mut Scene) -> Result<()> {
        for (name, stream) in scene.probes.allowed.drain(..) {
            let counts = stream.stop();
            ensure!(counts.lost() == 0, "lost: {name}, {counts:?}");
            self.allowed += counts.sent;
        }
        for (name, stream) in scene.probes.denied.drain(..) {
            let counts = stream.counts();
            ensure!(counts.received == 0, "passed: {name}, {counts:?}");
            self.denied += counts.sent;
        }
        Ok(())
    }
}

/// An enforcer of the landed version is killed at each call of an update, under the new control plane, and succeeded by
/// the new one. Each time on a scene of its own, as nothing goes back to the version before.
pub(crate) fn half_way(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut seen = Seen::default();
    let mut hits = kill_at_each(&OF_UPDATE, 1, |fault| succeed(scene, FAR, fault, &mut seen))?;
    hits.extend(kill_at_each(&OF_UPDATE[1..=1], 1, |fault| {
        succeed(scene, NEAR, fault, &mut seen)
    })?);
    Ok(format!(
        "{}, each on a scene of its own; on all but the last {} packets that must pass did, and none of {} that must not",
        summary(&hits),
        seen.allowed,
        seen.denied
    ))
}

/// One fresh scene, one enforcer that is killed at some call of an update, and what comes after.
fn succeed(scene: &mut Scene, node: usize, fault: Fault, seen: &mut Seen) -> Result<Option<Call>> {
    seen.judge(scene).context("on the scene before this one")?;
    *scene = Scene::start(&LANDED)?;
    scene.deployment.set_binaries(binaries()?);
    scene.edit(version(0))?;
    scene.deployment.stop_control_plane();
    scene.deployment.start_control_plane()?;
    scene.client()?.wait_enforced(0)?;
    // The garbage is deleted.
    thread::sleep(Duration::from_millis(200));
    let pid = scene.deployment.enforcer_pid(node);
    runs(pid, &landed()?.enforcer)?;
    let tracer = Tracer::attach(pid.context("it does not run")?, fault)?;
    let revision = scene.client()?.apply(vec![put(version(1))])?;
    let hit = await_hit_or_enforced(scene, &tracer, revision)?;
    drop(tracer);
    if hit.is_some() {
        scene.deployment.kill_enforcer(node);
    }
    replace_enforcer(scene, node)?;
    scene.client()?.wait_enforced(revision)?;
    replace_enforcer(scene, 1 - node)?;
    scene.edit(version(2))?;
    scene.flows()?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(hit)
}
