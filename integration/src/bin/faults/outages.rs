//! Machines and control planes that go down, come back, come back as they were long ago, or are two at once.

use std::{
    fs,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sallyport_integration::{
    deployment::{Deployment, put},
    ledger::pair,
};

use crate::{
    Settings,
    scene::{self, FAR, NEAR, Scene},
};

/// Everything is switched off. Fresh network namespaces, enforcers that start with their journals and nobody to ask,
/// and only then links: the first packet is judged.
pub(crate) fn reboot(scene: &mut Scene, _: Settings) -> Result<String> {
    // Traffic of before is over.
    let mut before = 0;
    for (name, stream) in scene.probes.allowed.drain(..) {
        let counts = stream.stop();
        ensure!(counts.lost() == 0, "before the reboot: {name}: {counts:?}");
        before += counts.sent;
    }
    scene.probes.denied.clear();
    let bed = scene::bed()?;
    for name in ["default/client", "default/server"] {
        bed.cut_off(name)?;
    }
    let host = |name: &str| bed.host(name).context("a pod is missing");
    (scene.client, scene.server) = (host("default/client")?, host("default/server")?);
    scene.deployment.reboot(bed);
    let mut starts = Vec::new();
    for node in [NEAR, FAR] {
        let started = Instant::now();
        scene.deployment.start_enforcer(node)?;
        starts.push(format!("{} ms", started.elapsed().as_millis()));
    }
    for name in ["default/server", "default/client"] {
        scene.deployment.bed.join(name)?;
    }
    scene.send()?;
    scene.flows()?;
    thread::sleep(Duration::from_millis(500));
    scene.deployment.start_control_plane()?;
    scene.edit(pair(1))?;
    Ok(format!(
        "{before} packets before it; enforcing from the journal after {}",
        starts.join(" and ")
    ))
}

/// No control plane for a while, in which an enforcer starts anew.
pub(crate) fn down(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.deployment.kill_control_plane();
    for node in [NEAR, FAR] {
        scene.await_log(&Deployment::node_name(node), "no session")?;
    }
    thread::sleep(Duration::from_secs(1));
    scene.deployment.kill_enforcer(FAR);
    scene.deployment.start_enforcer(FAR)?;
    thread::sleep(Duration::from_secs(1));
    scene.deployment.start_control_plane()?;
    let took = scene.edit(pair(1))?;
    for _ in 0..5 {
        scene.deployment.kill_control_plane();
        scene.deployment.start_control_plane()?;
    }
    scene.edit(pair(2))?;
    Ok(format!(
        "an edit was enforced {} ms after it was back; 5 restarts",
        took.as_millis()
    ))
}

/// The control plane's directory is set back to an older copy. Nodes refuse it, until its backup is restored, which
/// raises the epoch.
pub(crate) fn older_copy(scene: &mut Scene, _: Settings) -> Result<String> {
    let data = scene.deployment.data_dir("controlplane");
    let old = scene.deployment.data_dir("older-copy");
    let backup = scene.deployment.data_dir("backup");
    scene.deployment.kill_control_plane();
    scene::copy(&data, &old)?;
    scene.deployment.start_control_plane()?;
    for number in 1..=3 {
        scene.edit(pair(number))?;
    }
    scene.deployment.kill_control_plane();
    fs::rename(&data, scene.deployment.data_dir("latest"))?;
    scene::copy(&old, &data)?;
    scene.deployment.start_control_plane()?;
    scene.await_log("controlplane", "refused a session to an enforcer")?;
    for node in [NEAR, FAR] {
        scene.await_log(
            &Deployment::node_name(node),
            "restored from a backup, or is another one",
        )?;
    }
    let revision = scene.client()?.apply(vec![put(pair(50))])?;
    ensure!(
        !scene
            .client()?
            .is_enforced_within(revision, Duration::from_millis(500))?,
        "nodes that are ahead enforce what an older copy says"
    );
    for node in [NEAR, FAR] {
        let ruleset = scene.deployment.ruleset(node)?;
        ensure!(
            ruleset.contains("epoch 1 revision 4 "),
            "the node went back:\n{ruleset}"
        );
    }
    // As docs/OPERATING.md says.
    let directory = scene.deployment.data_dir("");
    let done = |what: &str, output: Output| -> Result<()> {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{what}: {text}");
        Ok(())
    };
    let (backup, data) = (backup.display().to_string(), data.display().to_string());
    let backed_up = scene
        .deployment
        .sallyport(&directory, &["journal", "backup", &backup])?;
    done("sallyport journal backup", backed_up)?;
    scene.deployment.kill_control_plane();
    fs::remove_dir_all(&data)?;
    let restore = ["journal", "restore", &backup, "--data-dir", &data];
    let restored = scene.deployment.offline(&restore)?;
    done("sallyport-controlplane journal restore", restored)?;
    scene.deployment.start_control_plane()?;
    scene.edit(pair(51))?;
    for node in [NEAR, FAR] {
        let ruleset = scene.deployment.ruleset(node)?;
        ensure!(
            ruleset.contains("epoch 2 revision "),
            "the restored one is not heard:\n{ruleset}"
        );
    }
    Ok("refused while older, heard after `journal restore`".into())
}

/// Two control planes on one directory: the second refuses. Two on two directories behind one address: nodes refuse the
/// one that is behind them.
pub(crate) fn two_at_once(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.edit(pair(1))?;
    let started = Instant::now();
    let (status, log) = scene.deployment.run_control_plane("controlplane")?;
    ensure!(
        !status.success() && log.contains("error: ") && log.contains("journal"),
        "a second one on the same directory ({status}): {log}"
    );
    let refused = started.elapsed();
    scene.edit(pair(2))?;

    // Another one, with a directory of its own, and a policy that allows everything.
    scene.deployment.start_other_control_plane(1, "another")?;
    let mut another = scene.deployment.client_of(1)?;
    another.apply(vec![put(ANOTHER)])?;
    for round in 0..6 {
        let target = scene.deployment.control_plane_address((round + 1) % 2);
        for node in [NEAR, FAR] {
            let relay = scene.deployment.relay(node).context("no relay")?;
            relay.set_target(target);
            relay.cut();
        }
        if round % 2 == 0 {
            let is_turned_away = |node| {
                let log = scene.deployment.log(&Deployment::node_name(node));
                log.contains("restored from a backup, or is another one")
            };
            let deadline = Instant::now() + sallyport_integration::deployment::PATIENCE;
            while ![NEAR, FAR].into_iter().all(is_turned_away) {
                if Instant::now() > deadline {
                    bail!("nodes do not refuse the other one");
                }
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(300));
        } else {
            scene.edit(pair(3 + round as u32))?;
        }
    }
    Ok(format!(
        "a second on the same directory ended after {:.1} s; nodes turned away 3 times from one that is behind them",
        refused.as_secs_f64()
    ))
}

const ANOTHER: &str = "
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-2}
";
