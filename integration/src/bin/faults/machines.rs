//! Machines that take another's name, and machines that leave. They stand beside the scene's nodes, which have their
//! own enforcers; packets flow between those.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sallyport_integration::{
    binaries::binaries,
    deployment::{Client, Deployment, PATIENCE, delete, put},
    ledger::Load,
};
use sallyport_proto::wire::{NodeStatus, node_status::State};
use sallyport_testbed::Host;

use crate::{
    Settings,
    scene::{FAR, Scene, workload},
};

/// An enforcer on a machine that is none of the scene's nodes. It dies with this.
struct Elsewhere<'a> {
    machine: &'a Host,
    data_dir: &'a Path,
    child: Child,
}

impl<'a> Elsewhere<'a> {
    fn start(
        scene: &Scene,
        machine: &'a Host,
        data_dir: &'a Path,
        node: &str,
    ) -> Result<Elsewhere<'a>> {
        let mut command = machine.netns().command(binaries()?.enforcer);
        command
            .args(["--node-name", node, "--lease", "2s", "--control-plane"])
            .arg(scene.deployment.server())
            .arg("--data-dir")
            .arg(data_dir);
        let child = machine.netns().spawn(silent(command))?;
        Ok(Elsewhere {
            machine,
            data_dir,
            child,
        })
    }

    /// Stops it as a service manager does, and takes its node out.
    fn uninstall(mut self, scene: &Scene) -> Result<Output> {
        scene.signal(Some(self.child.id()), Signal::SIGTERM)?;
        self.child.wait()?;
        let mut command = self.machine.netns().command(binaries()?.enforcer);
        command
            .arg("uninstall")
            .arg("--data-dir")
            .arg(self.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.machine.netns().spawn(command)?;
        Ok(child.wait_with_output()?)
    }
}

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        // The program may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn silent(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Waits until what the control plane says of a node is so.
fn shows(client: &mut Client, node: &str, is_so: impl Fn(&NodeStatus) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.status()?;
        let found = status.nodes.into_iter().find(|found| found.name == node);
        let found = found.context("the node is there")?;
        if is_so(&found) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the status stays {found:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Two machines that take each other for one node: the one that answers has the name, and edits go on.
pub(crate) fn one_name(scene: &mut Scene, _: Settings) -> Result<String> {
    let (mut client, directory) = (scene.client()?, tempfile::tempdir()?);
    let machine = outside(scene)?;
    let name = Deployment::node_name(FAR);
    let first = scene.deployment.enforcer_pid(FAR);
    let load = Load::start(scene.client()?, Duration::from_millis(10));

    let second = Elsewhere::start(scene, &machine, directory.path(), &name)?;
    shows(&mut client, &name, |node| !node.turned_away.is_empty())?;
    ensure!(
        client
            .status()?
            .nodes
            .iter()
            .all(|node| node.conditions.is_empty()),
        "one that was refused replaced nobody"
    );
    let edits = load.acknowledged();
    client.wait_enforced(0)?;
    // The first one does not answer: the second one has the name, and then the first one is the second.
    scene.signal(first, Signal::SIGSTOP)?;
    shows(&mut client, &name, |node| !node.conditions.is_empty())?;
    let turned_away = client.status()?.nodes;
    let turned_away: u64 = turned_away
        .iter()
        .flat_map(|node| &node.turned_away)
        .map(|enforcer| enforcer.count)
        .sum();
    scene.signal(first, Signal::SIGCONT)?;
    shows(&mut client, &name, |node| {
        let count = node.turned_away.iter().map(|enforcer| enforcer.count);
        count.sum::<u64>() > turned_away
    })?;
    drop(second);
    shows(&mut client, &name, |node| {
        node.state() == State::Enforcing || node.state() == State::Holding
    })?;
    let done = load.stop()?;
    ensure!(done.len() > edits as usize, "no edit was acknowledged");
    done.compare(&mut scene.deployment)?;
    Ok(format!(
        "{} edits; the namesake was turned away {turned_away} times",
        done.len()
    ))
}

/// A machine that leaves in the middle of edits, and comes back, and leaves: edits go on without it, and nobody says
/// that it is closed.
pub(crate) fn uninstall(scene: &mut Scene, _: Settings) -> Result<String> {
    let (mut client, directory) = (scene.client()?, tempfile::tempdir()?);
    let machine = outside(scene)?;
    let address = IpAddr::from(Ipv4Addr::new(10, 9, 3, 2));
    let objects = [
        "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {name: node-3}\n---\n".to_owned(),
        workload("leaver", 2, "app: leaver", &[address]),
    ]
    .concat();
    // Not waited for: it has no enforcer yet.
    client.apply(vec![put(objects.clone())])?;
    let load = Load::start(scene.client()?, Duration::from_millis(2));
    for _ in 0..5 {
        let enforcer = Elsewhere::start(scene, &machine, directory.path(), "node-3")?;
        shows(&mut client, "node-3", |node| node.enforced_revision > 0)?;
        thread::sleep(Duration::from_millis(200));
        let output = enforcer.uninstall(scene)?;
        ensure!(output.status.success(), "{output:?}");
        let edits = load.acknowledged();
        // Longer than a lease: with it gone the node would be taken for closed.
        let until = Instant::now() + Duration::from_millis(2_500);
        while Instant::now() < until {
            shows(&mut client, "node-3", |node| node.state() == State::Left)?;
            thread::sleep(Duration::from_millis(50));
        }
        ensure!(load.acknowledged() > edits, "edits wait for it");
        let revision = client.status()?.revision;
        ensure!(
            client.is_enforced_within(revision, PATIENCE)?,
            "edits wait for it to enforce them"
        );
    }
    let done = load.stop()?;
    client.enforce(vec![delete(objects)])?;
    Ok(format!("left 5 times, {} edits meanwhile", done.len()))
}

/// A machine outside.
fn outside(scene: &Scene) -> Result<Host> {
    let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, 9));
    Ok(scene
        .deployment
        .bed
        .add_external("default/elsewhere", &[address])?)
}
