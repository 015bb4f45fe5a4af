//! What others do that must hold up nobody: watchers that read nothing, and logs that cannot be written. Where it is about
//! time, it is compared with how it was before, in the same run.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::Signal,
};
use sallyport_integration::{
    deployment::{Deployment, PATIENCE, put},
    tracer,
};

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene, policy},
};

/// As many watches as one client may have, and how many of them share a connection.
const WATCHES: usize = 1_000;
const OF_A_CONNECTION: usize = 100;

/// A policy of nobody, with which edits are timed.
fn tick(number: u16) -> String {
    let port = 1_000 + number;
    policy("tick", "app: server", true, "app: ticker", &[(port, port)])
}

/// The median time from an edit to its being enforced everywhere.
fn edits(scene: &Scene) -> Result<Duration> {
    let times: Result<Vec<Duration>> = (0..40).map(|number| scene.edit(tick(number))).collect();
    let mut times = times?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// The memory of the control plane that is resident, in MiB.
fn resident(scene: &Scene) -> Result<u64> {
    let pid = scene.deployment.control_plane_pid();
    let pid = pid.context("the control plane does not run")?;
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = statm.split(' ').nth(1).context("statm has pages")?;
    Ok((pages.parse::<u64>()? * 4096) >> 20)
}

/// Watchers from the beginning of a long history, which read nothing.
pub(crate) fn watchers(scene: &mut Scene, _: Settings) -> Result<String> {
    let filler = "x".repeat(50_000);
    let mut client = scene.client()?;
    for number in 0..100 {
        client.apply(vec![put(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: filler, annotations: {{a: \"{number} {filler}\"}}}}\n"
        ))])?;
    }
    let (quiet, before) = (edits(scene)?, resident(scene)?);
    let mut watches = Vec::with_capacity(WATCHES);
    for _ in 0..WATCHES / OF_A_CONNECTION {
        let mut watcher = scene.client()?;
        for _ in 0..OF_A_CONNECTION {
            watches.push(watcher.watch(1)?);
        }
    }
    let watched = edits(scene)?;
    let grown = resident(scene)?.saturating_sub(before);
    drop(watches);
    ensure!(
        grown <= 100,
        "the control plane grew by {grown} MiB with {WATCHES} watches"
    );
    ensure!(
        watched <= quiet * 2 + Duration::from_millis(1),
        "an edit took {quiet:?}, and {watched:?} beside the watches"
    );
    Ok(format!(
        "{WATCHES} watches: {grown} MiB more, an edit {watched:.1?} instead of {quiet:.1?}"
    ))
}

/// Standard error is a disk that is full.
pub(crate) fn log_full(scene: &mut Scene, _: Settings) -> Result<String> {
    let full = File::options().write(true).open("/dev/full")?;
    restart(scene, full.into())?;
    work(scene)
}

/// Standard error is a pipe whose reader dies while the programs run, and is dead when they start again.
pub(crate) fn log_reader_dead(scene: &mut Scene, _: Settings) -> Result<String> {
    let (reader, writer) = io::pipe()?;
    let writer = OwnedFd::from(writer);
    restart(scene, writer.try_clone()?)?;
    drop(reader);
    work(scene)?;
    restart(scene, writer)?;
    work(scene)
}

/// Standard error is a pipe that is full and that nobody reads.
pub(crate) fn log_reader_stuck(scene: &mut Scene, _: Settings) -> Result<String> {
    let (reader, mut writer) = io::pipe()?;
    let flags = fcntl(writer.as_fd(), FcntlArg::F_GETFL)?;
    let flags = OFlag::from_bits_retain(flags);
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    while writer.write(&[b'.'; 4096]).is_ok() {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(flags))?;
    restart(scene, writer.into())?;
    let told = work(scene)?;
    drop(reader);
    Ok(told)
}

/// Has all programs stop as a service manager asks them to, and starts them with another standard error.
fn restart(scene: &mut Scene, log: OwnedFd) -> Result<()> {
    stop(scene)?;
    let deployment = &mut scene.deployment;
    deployment.set_log(Some(log));
    deployment.start_control_plane()?;
    for node in [NEAR, FAR] {
        deployment.start_enforcer_unawaited(node)?;
    }
    connected(scene)
}

/// Waits until both nodes enforce all there is.
fn connected(scene: &Scene) -> Result<()> {
    let mut client = scene.client()?;
    let revision = client.status()?.revision;
    for node in [NEAR, FAR] {
        client.wait_enforced_by(&Deployment::node_name(node), revision)?;
    }
    Ok(client.wait_enforced(revision)?)
}

/// Edits, a kill of every program, and a stop: all goes as it does with a log.
fn work(scene: &mut Scene) -> Result<String> {
    for number in 0..40 {
        scene.edit(tick(number))?;
    }
    let deployment = &mut scene.deployment;
    deployment.kill_control_plane();
    deployment.start_control_plane()?;
    for node in [NEAR, FAR] {
        deployment.kill_enforcer(node);
        deployment.start_enforcer_unawaited(node)?;
    }
    connected(scene)?;
    for number in 0..40 {
        scene.edit(tick(number))?;
    }
    Ok("80 edits, every program killed once and stopped once".to_owned())
}

/// Asks every program to stop, and fails if one does not.
fn stop(scene: &mut Scene) -> Result<()> {
    let enforcers = [NEAR, FAR].map(|node| scene.deployment.enforcer_pid(node));
    for pid in enforcers
        .into_iter()
        .chain([scene.deployment.control_plane_pid()])
    {
        scene.signal(pid, Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while !pid.is_none_or(tracer::has_ended) {
            ensure!(Instant::now() < deadline, "SIGTERM stops nothing");
            thread::sleep(Duration::from_millis(5));
        }
    }
    scene.deployment.stop_control_plane();
    for node in [NEAR, FAR] {
        scene.deployment.stop_enforcer(node);
    }
    Ok(())
}
