//! A kernel that others use as well: they flush, delete and commit; it refuses, and its answers are lost.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::{
    io::Write as _,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    sys::socket::{self, sockopt},
};
use sallyport_integration::{
    deployment::Deployment,
    ledger::{Ledger, pair},
};
use sallyport_testbed::{
    Netns, listing,
    tracer::{Act, Call, Calls, Fault, Tracer},
};

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene},
};

/// Others flush the whole ruleset, and delete our table, chains and elements, while edits are made.
pub(crate) fn attacked(scene: &mut Scene, _: Settings) -> Result<String> {
    let attempts: [&[&str]; 5] = [
        &["flush", "ruleset"],
        &["delete", "table", "inet", "sallyport"],
        &["flush", "table", "inet", "sallyport"],
        &["delete", "chain", "inet", "sallyport", "forward_ingress"],
        &["flush", "map", "inet", "sallyport", "egress4"],
    ];
    let mut refused = 0;
    for round in 0..10 {
        for arguments in attempts {
            for node in [NEAR, FAR] {
                let done = scene.deployment.nft(node, arguments)?;
                ensure!(
                    !done || arguments == ["flush", "ruleset"],
                    "nft {arguments:?} was done to a table that has an owner"
                );
                refused += usize::from(!done);
            }
        }
        scene.edit(pair(round))?;
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "20 flushes that passed it by, {refused} attempts that were refused"
    ))
}

/// A table of somebody else, edited as fast as stock nft does it.
struct Committer {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Committer {
    fn start(netns: &Netns) -> Result<Committer> {
        let (stop, commits) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        // One nft that reads commands as they come: each line is a commit.
        let mut command = netns.command("nft");
        command
            .arg("-i")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut nft = netns.spawn(command)?;
        let mut lines = nft.stdin.take().context("nft reads")?;
        let (stopped, counts) = (stop.clone(), commits.clone());
        let thread = thread::spawn(move || {
            writeln!(lines, "add table inet other")?;
            writeln!(
                lines,
                "add set inet other s {{ type ipv4_addr; flags interval; }}"
            )?;
            while !stopped.load(Ordering::SeqCst) {
                for verb in ["add", "delete"] {
                    writeln!(
                        lines,
                        "{verb} element inet other s {{ 192.0.2.0/25, 198.51.100.0/24 }}"
                    )?;
                    counts.fetch_add(1, Ordering::SeqCst);
                }
            }
            drop(lines);
            ensure!(nft.wait()?.success(), "nft failed");
            Ok(())
        });
        Ok(Committer {
            stop,
            commits,
            thread,
        })
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("the committer panicked"),
        }
        Ok(self.commits.load(Ordering::SeqCst))
    }
}

/// Another tool commits all the time, in both nodes' namespaces, while edits are made and an enforcer starts anew.
pub(crate) fn committers(scene: &mut Scene, _: Settings) -> Result<String> {
    let others = [NEAR, FAR].map(|node| Committer::start(scene.deployment.bed.node(node).netns()));
    for number in 0..30 {
        scene.edit(pair(number))?;
        if number % 10 == 5 {
            scene.deployment.kill_enforcer(FAR);
            scene.deployment.start_enforcer(FAR)?;
        }
    }
    let mut commits = 0;
    for other in others {
        commits += other?.stop()?;
    }
    ensure!(commits > 200, "only {commits} commits of others");
    for node in [NEAR, FAR] {
        ensure!(
            scene
                .deployment
                .nft(node, &["delete", "table", "inet", "other"])?,
            "the other's table is gone"
        );
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!("30 edits, {commits} commits of others"))
}

fn is_answer(call: &Call) -> bool {
    call.name == "recvfrom" && call.object == "netlink"
}

/// The kernel refuses, interrupts, runs out of memory, and loses its answers, each at any message of an update.
pub(crate) fn errors(scene: &mut Scene, _: Settings) -> Result<String> {
    let cases: [(&str, Calls, Act); 8] = [
        (
            "ENOBUFS for an answer",
            is_answer,
            Act::Lose(Errno::ENOBUFS),
        ),
        ("EINTR for an answer", is_answer, Act::Fail(Errno::EINTR)),
        ("EINTR", Call::is_commit, Act::Fail(Errno::EINTR)),
        ("ENOMEM", Call::is_commit, Act::Fail(Errno::ENOMEM)),
        ("ENOBUFS", Call::is_commit, Act::Fail(Errno::ENOBUFS)),
        ("EBUSY", Call::is_commit, Act::Fail(Errno::EBUSY)),
        ("ERESTART", Call::is_commit, Act::Fail(Errno::ERESTART)),
        ("EMSGSIZE", Call::is_commit, Act::Fail(Errno::EMSGSIZE)),
    ];
    let (mut number, mut failed) = (0, 0);
    for (name, calls, act) in cases {
        for first in [1, 2, 3, 5, 8] {
            number += 1;
            let fault = Fault {
                calls,
                first,
                count: 1,
                act,
            };
            let pid = scene.deployment.enforcer_pid(FAR);
            let tracer = Tracer::attach(pid.context("it does not run")?, fault)?;
            let took = scene
                .edit(pair(number))
                .with_context(|| format!("{name} at message {first}"))?;
            failed += tracer.finish().1.len();
            ensure!(
                took < Duration::from_secs(10),
                "{name} at message {first}: enforced after {took:?}"
            );
        }
    }
    let log = scene.deployment.log(&Deployment::node_name(FAR));
    if log.contains("cannot delete all unused objects") {
        // The next start deletes them.
        scene.deployment.kill_enforcer(FAR);
        scene.deployment.start_enforcer(FAR)?;
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!("{number} edits, {failed} calls failed"))
}

/// The enforcer's sockets to netfilter have room for next to nothing.
pub(crate) fn tiny_buffer(scene: &mut Scene, _: Settings) -> Result<String> {
    let mut shrunk = 0;
    for node in [NEAR, FAR] {
        let pid = scene.deployment.enforcer_pid(node);
        shrunk += shrink_netlink(pid.context("it does not run")?)?;
    }
    ensure!(shrunk >= 2, "no socket was found");
    for number in 0..40 {
        scene.edit(pair(number))?;
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "{shrunk} sockets with a receive buffer of 2 KiB, 40 edits"
    ))
}

/// Gives every netlink socket of a process the smallest receive buffer there is. Returns how many there are.
fn shrink_netlink(pid: u32) -> Result<usize> {
    let open = |number: libc::c_long, one: i64, other: i64| {
        // SAFETY: the system calls below take numbers alone.
        let descriptor = unsafe { libc::syscall(number, one, other, 0) };
        let descriptor = Errno::result(descriptor)?;
        // SAFETY: the call has just returned this descriptor, and nobody else has it.
        nix::Result::Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
    };
    let process = open(libc::SYS_pidfd_open, pid.into(), 0)?;
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let target = std::fs::read_link(entry.path())?;
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i64>().ok())
            .filter(|_| target.to_string_lossy().starts_with("socket:"))
        else {
            continue;
        };
        let process = i64::from(process.as_raw_fd());
        let socket = open(libc::SYS_pidfd_getfd, process, number)?;
        let name = socket::getsockname::<socket::SockaddrStorage>(socket.as_raw_fd())?;
        if name.as_netlink_addr().is_some() {
            socket::setsockopt(&socket, sockopt::RcvBuf, &1)?;
            count += 1;
        }
    }
    Ok(count)
}

/// An enforcer without a table: somebody took it while no enforcer lived. It is there again when the enforcer is up.
pub(crate) fn orphan_flushed(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.deployment.kill_enforcer(FAR);
    ensure!(
        scene.deployment.nft(FAR, &["flush", "ruleset"])?,
        "a table without an owner can be flushed"
    );
    scene.deployment.start_enforcer(FAR)?;
    let name = Deployment::node_name(FAR);
    scene.await_log(&name, "made the table from the journal")?;
    scene.edit(pair(1))?;
    Ok("the table was gone until the enforcer was up".into())
}

/// A table that the kernel does not protect, as before Linux 6.9: objects that others delete are back within a second.
/// Nobody can prevent packets from passing until then; the time is measured.
pub(crate) fn unprotected(scene: &mut Scene, _: Settings) -> Result<String> {
    let attacks: [&[&str]; 4] = [
        &["flush", "ruleset"],
        &["delete", "table", "inet", "sallyport"],
        &["flush", "chain", "inet", "sallyport", "forward_ingress"],
        &["flush", "map", "inet", "sallyport", "ingress4"],
    ];
    let mut holes = Vec::new();
    for round in 0..12 {
        scene.edit(pair(round))?;
        thread::sleep(Duration::from_millis(300));
        let whole = listing::objects(scene.deployment.bed.node(FAR).netns())?;
        let before = scene.misjudged();
        ensure!(
            before.leaked == scene.unpreventable.leaked && before.lost <= scene.unpreventable.lost,
            "misjudged before an attack: {before:?}, not {:?}",
            scene.unpreventable
        );
        ensure!(
            scene
                .deployment
                .nft(FAR, attacks[round as usize % attacks.len()])?,
            "a table without protection can be changed"
        );
        let at = Instant::now();
        // The stamp may be another: a repair is an update.
        let is_whole = |now: listing::Listing| {
            let mut both = now.iter().zip(&whole);
            now.len() == whole.len() && both.all(|(now, was)| now.0.contains("stamp") || now == was)
        };
        while !is_whole(listing::objects(scene.deployment.bed.node(FAR).netns())?) {
            ensure!(at.elapsed() < Duration::from_secs(5), "it is not mended");
            thread::sleep(Duration::from_millis(1));
        }
        // By the probes, of which each packet is a millisecond.
        let mut last = scene.passed();
        let mut mended = at.elapsed();
        while at.elapsed() < mended + Duration::from_millis(100) {
            let now = scene.passed();
            if now != last {
                (last, mended) = (now, at.elapsed());
            }
            thread::sleep(Duration::from_millis(1));
        }
        scene.unpreventable = scene.misjudged();
        holes.push(mended);
    }
    let longest = holes.iter().max().copied().unwrap_or_default();
    ensure!(
        longest < Duration::from_secs(1),
        "mended after {longest:?} only"
    );
    Ok(format!(
        "{} attacks, mended within {:.0} ms; until then {} packets passed and {} were lost, which nobody can prevent",
        holes.len(),
        longest.as_secs_f64() * 1e3,
        scene.unpreventable.leaked,
        scene.unpreventable.lost
    ))
}
