//! Neighbours that must hold up nobody: watchers that read nothing, a tenant with the worst policy, and logs that
//! cannot be written. Times are compared with those before, in the same run.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::Signal,
    unistd::Pid,
};
use sallyport_controlplane::validate::MAX_RULES;
use sallyport_integration::deployment::{Client, Deployment, PATIENCE, delete, put};
use sallyport_testbed::tracer;

use crate::{
    Settings,
    rows::LEASE,
    scene::{FAR, NEAR, Scene, addresses, policy, workload},
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
    Ok(quantile(times?, 0.5))
}

/// A quantile of some times.
fn quantile(mut times: Vec<Duration>, part: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times[((last as f64) * part).round() as usize]
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

/// The times that the answers to `status` take until `done` is set.
fn statuses(mut client: Client, done: &AtomicBool) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !done.load(Ordering::SeqCst) {
        let started = Instant::now();
        client.status()?;
        times.push(started.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    Ok(times)
}

/// Does something, and tells how long the answers to `status` took meanwhile.
fn beside(scene: &Scene, what: impl FnOnce() -> Result<()>) -> Result<Vec<Duration>> {
    let (client, done) = (scene.client()?, AtomicBool::new(false));
    thread::scope(|scope| {
        let statuses = scope.spawn(|| statuses(client, &done));
        let result = what();
        done.store(true, Ordering::SeqCst);
        let times = statuses.join().expect("it does not panic");
        result?;
        times
    })
}

/// The workloads of the other tenant, on one of the nodes, each with a label of its own.
fn tenants() -> String {
    (0..100)
        .map(|number| {
            let [v4, _] = addresses(NEAR, 100 + number);
            let labels = format!("one: v{number}");
            workload(&format!("other-{number}"), NEAR, &labels, &[v4])
                .replace("namespace: default", "namespace: other")
        })
        .collect()
}

/// A policy with as many rules as there may be, some 1 MiB: their ranges of ports lie in each other, each with peers of
/// its own.
fn worst() -> String {
    let mut rules = String::new();
    for number in 0..MAX_RULES {
        let (first, last) = (1 + number, 65_535 - number);
        rules += &format!(
            "{{\"from\":[{{\"podSelector\":{{\"matchLabels\":{{\"one\":\"v{number}\"}}}}}}],\
             \"ports\":[{{\"port\":{first},\"endPort\":{last}}}]}},"
        );
    }
    format!(
        "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{{\"namespace\":\"other\",\
         \"name\":\"worst\"}},\"spec\":{{\"podSelector\":{{}},\"ingress\":[{}]}}}}",
        rules.trim_end_matches(',')
    )
}

/// The nodes have a processor, and the control plane has another, as machines of their own have. It ends with this.
struct Apart {
    all: CpuSet,
}

impl Apart {
    /// Gives the enforcers the last processor, and the control plane and this process the others. Where there is one
    /// alone they share it.
    fn keep(scene: &Scene) -> Result<Apart> {
        let all = sched_getaffinity(Pid::this())?;
        let mut there = (0..CpuSet::count()).filter(|&n| all.is_set(n).unwrap_or(false));
        let last = there.next_back().context("there is no processor")?;
        let (mut nodes, mut others) = (CpuSet::new(), all);
        nodes.set(last)?;
        if there.next().is_some() {
            others.unset(last)?;
        }
        let apart = Apart { all };
        for node in [NEAR, FAR] {
            let pid = scene.deployment.enforcer_pid(node);
            run_on(pid.context("the enforcer does not run")?, &nodes)?;
        }
        let control_plane = scene.deployment.control_plane_pid();
        run_on(control_plane.context("it does not run")?, &others)?;
        run_on(process::id(), &others)?;
        Ok(apart)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = run_on(process::id(), &self.all);
    }
}

/// Has a process run on some processors alone, with all threads that it has and will have.
fn run_on(pid: u32, processors: &CpuSet) -> Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.file_name();
        let thread = thread.to_str().context("a number")?.parse()?;
        match sched_setaffinity(Pid::from_raw(thread), processors) {
            // The thread ended meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// A tenant applies and deletes the worst policy that there may be, beside one that wants to be left alone.
pub(crate) fn tenant(scene: &mut Scene, settings: Settings) -> Result<String> {
    let _apart = Apart::keep(scene)?;
    let mut client = scene.client()?;
    client.enforce(vec![put(format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: other}}\n---\n{}",
        tenants()
    ))])?;
    let quiet = beside(scene, || {
        thread::sleep(Duration::from_secs(5));
        Ok(())
    })?;
    let worst = worst();
    let started = Instant::now();
    let busy = beside(scene, || {
        for _ in 0..settings.worst {
            for edit in [put(worst.clone()), delete(worst.clone())] {
                let revision = client.apply(vec![edit])?;
                ensure!(
                    client.is_enforced_within(revision, PATIENCE * 15)?,
                    "the nodes do not enforce it"
                );
            }
        }
        Ok(())
    })?;
    let took = started.elapsed() / settings.worst;
    let (before, after) = (quantile(quiet, 0.99), quantile(busy, 0.99));
    let told = format!(
        "a policy of {} KiB {} times, {took:.1?} each; status p99 {after:.1?}, {before:.1?} before",
        worst.len() >> 10,
        settings.worst
    );
    ensure!(after <= before * 5, "{told}");
    ensure!(after <= LEASE / 3, "{told}");
    Ok(told)
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
