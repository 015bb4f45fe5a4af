//! Journals that are damaged, and disks that are full, fail, or cannot be written.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_controlplane::journal::{Settings as Kept, SledJournal, within};
use sallyport_enforcer::{journal as node_journal, plan::Installed};
use sallyport_integration::{
    deployment::{Deployment, PATIENCE, put},
    ledger::{Ledger, pair},
};
use sallyport_proto::wire::{NodeStatus, Trouble, node_status::State, trouble};
use sallyport_testbed::tracer::{Act, Call, Calls, Fault, Tracer};

use crate::{
    Settings,
    scene::{FAR, NEAR, Scene, copy},
};

/// The number of offsets that are tried with the library, in each way that a file is damaged.
const SAMPLES: usize = 60;
/// The number of offsets that are tried with the programs.
const REAL: usize = 4;

/// Damages a file at an offset.
type Damage = fn(&mut Vec<u8>, usize);

/// The ways to damage a file.
const DAMAGES: [(&str, Damage); 2] = [
    ("flipped", |bytes, at| bytes[at] ^= 0x10),
    ("cut", |bytes, at| bytes.truncate(at)),
];

/// The files of a journal, each with how much of it is not zeros at its end.
fn files(journal: &Path) -> Result<Vec<(PathBuf, usize)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(journal)? {
        let path = entry?.path();
        if path.is_file() {
            let bytes = fs::read(&path)?;
            let written = bytes.iter().rposition(|&byte| byte != 0);
            files.push((path, written.map_or(0, |last| last + 1)));
        }
    }
    Ok(files)
}

/// Offsets into the journal's files, evenly spread over all that is written.
fn offsets(files: &[(PathBuf, usize)], count: usize) -> Vec<(PathBuf, usize)> {
    let mut offsets = Vec::new();
    for (path, length) in files {
        let step = (length / count).max(1);
        offsets.extend(
            (0..*length)
                .step_by(step)
                .map(|offset| (path.clone(), offset)),
        );
    }
    offsets
}

/// Damages every sampled offset of a copy of a journal, and looks at what comes of it. Returns how many were whole.
fn with_the_library(
    journal: &Path,
    is_whole: impl Fn(&Path, &str) -> Result<bool>,
) -> Result<(usize, usize)> {
    let files = files(journal)?;
    let (mut whole, mut refused) = (0, 0);
    for (damage, change) in DAMAGES {
        for (path, offset) in offsets(&files, SAMPLES) {
            let directory = tempfile::tempdir()?;
            copy(journal, directory.path())?;
            let name = path.file_name().context("a file has a name")?;
            let mut bytes = fs::read(&path)?;
            change(&mut bytes, offset);
            fs::write(directory.path().join(name), bytes)?;
            let what = format!("{} {damage} at {offset}", name.display());
            match is_whole(directory.path(), &what).context(what.clone())? {
                true => whole += 1,
                false => refused += 1,
            }
        }
    }
    Ok((whole, refused))
}

/// A node's journal, damaged at many offsets: it holds all that it should, or is moved aside whole; with the real
/// enforcer at some of them, nobody to ask, and packets.
pub(crate) fn node_damaged(scene: &mut Scene, settings: Settings) -> Result<String> {
    for number in 0..4 {
        scene.edit(pair(number))?;
    }
    scene.deployment.kill_control_plane();
    scene.deployment.kill_enforcer(FAR);
    let name = Deployment::node_name(FAR);
    let journal = scene.deployment.data_dir(&name);
    let good = scene.deployment.data_dir("good");
    copy(&journal, &good)?;
    let opened = |path: &Path| -> Result<(Installed, bool)> {
        let (_, recovered, quarantined) = node_journal::open(path)?;
        let installed = match recovered.pending {
            Some((_, after)) => after,
            None => recovered.installed,
        };
        Ok((installed, quarantined.is_none_or(|aside| aside.whole)))
    };
    let pristine = tempfile::tempdir()?;
    copy(&good, pristine.path())?;
    let (expected, _) = opened(pristine.path())?;
    let (whole, aside) = with_the_library(&good, |path, what| {
        let (installed, is_whole) = opened(path)?;
        let should = if is_whole {
            &expected
        } else {
            &Installed::default()
        };
        ensure!(&installed == should, "{what}: something is lost in silence");
        Ok(is_whole)
    })?;
    ensure!(whole > 0 && aside > 0, "{whole} whole, {aside} moved aside");

    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut moved = 0;
    for (damage, change) in DAMAGES {
        for _ in 0..REAL {
            fs::remove_dir_all(&journal)?;
            copy(&good, &journal)?;
            let files = files(&journal)?;
            let written: Vec<_> = files.iter().filter(|(_, length)| *length > 0).collect();
            let (path, length) = written[rng.random_range(0..written.len())];
            let mut bytes = fs::read(path)?;
            let offset = rng.random_range(0..*length);
            change(&mut bytes, offset);
            fs::write(path, bytes)?;
            scene
                .deployment
                .start_enforcer(FAR)
                .with_context(|| format!("{} {damage} at {offset}", path.display()))?;
            thread::sleep(Duration::from_millis(50));
            scene.deployment.kill_enforcer(FAR);
            moved += usize::from(journal.join("quarantine").exists());
        }
    }
    fs::remove_dir_all(&journal)?;
    copy(&good, &journal)?;
    scene.deployment.start_enforcer(FAR)?;
    scene.deployment.start_control_plane()?;
    scene.edit(pair(5))?;
    Ok(format!(
        "{} offsets: {whole} whole, {aside} moved aside; {} starts, {moved} after moving it aside",
        whole + aside,
        2 * REAL
    ))
}

/// A node's journal is damaged, and what the control plane sends replaces the table.
pub(crate) fn node_resynchronised(scene: &mut Scene, _: Settings) -> Result<String> {
    scene.edit(pair(1))?;
    let name = Deployment::node_name(FAR);
    let journal = scene.deployment.data_dir(&name);
    for round in 2..7 {
        scene.deployment.kill_enforcer(FAR);
        let log = journal.join("db");
        let mut bytes = fs::read(&log)?;
        let written = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
        bytes[written / 2] ^= 0x10;
        fs::write(log, bytes)?;
        scene.deployment.start_enforcer(FAR)?;
        scene.await_log(&name, "moved aside")?;
        scene.edit(pair(round))?;
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok("5 times".into())
}

/// The control plane's journal, damaged at many offsets: it holds all that was acknowledged, or the control plane
/// refuses to start and says which record; nodes go on, and so does it with an undamaged copy.
pub(crate) fn control_plane_damaged(scene: &mut Scene, settings: Settings) -> Result<String> {
    for number in 0..4 {
        scene.edit(pair(number))?;
    }
    // The note of the settled revision is never acknowledged, so that damage of it may be silent. Without enforcers no
    // transaction settles: the journal ends with acknowledged ones, and damage of the note cuts these off.
    for node in [NEAR, FAR] {
        scene.deployment.kill_enforcer(node);
    }
    for number in 4..6 {
        scene.client()?.apply(vec![put(pair(number))])?;
    }
    scene.deployment.kill_control_plane();
    for node in [NEAR, FAR] {
        scene.deployment.start_enforcer(node)?;
    }
    let data = scene.deployment.data_dir("controlplane");
    let good = scene.deployment.data_dir("good");
    copy(&data, &good)?;
    let pristine = tempfile::tempdir()?;
    copy(&within(&good), pristine.path())?;
    let (_, expected) = SledJournal::open(Kept::at(pristine.path()))?;
    let (whole, refused) =
        with_the_library(&within(&good), |path, what| {
            match SledJournal::open(Kept::at(path)) {
                Ok((_, recovered)) => {
                    ensure!(
                        recovered == expected,
                        "{what}: something is lost in silence"
                    );
                    Ok(true)
                }
                Err(error) => {
                    ensure!(error.to_string().contains("journal"), "{what}: {error}");
                    Ok(false)
                }
            }
        })?;
    ensure!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");

    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut ended = 0;
    for (damage, change) in DAMAGES {
        for _ in 0..REAL {
            fs::remove_dir_all(&data)?;
            copy(&good, &data)?;
            let log = within(&data).join("db");
            let mut bytes = fs::read(&log)?;
            let written = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(1);
            let offset = rng.random_range(0..written);
            change(&mut bytes, offset);
            fs::write(&log, bytes)?;
            match scene.deployment.start_control_plane() {
                Ok(()) => scene.edit(pair(rng.random_range(10..20))).map(drop)?,
                Err(_) => {
                    let log = scene.deployment.log("controlplane");
                    ensure!(
                        log.contains("error: ") && log.contains("journal"),
                        "{damage} at {offset}: {log}"
                    );
                    ended += 1;
                }
            }
            scene.deployment.kill_control_plane();
        }
    }
    fs::remove_dir_all(&data)?;
    copy(&good, &data)?;
    Ok(format!(
        "{} offsets: {whole} whole, {refused} refused; {} starts, of which {ended} were refused",
        whole + refused,
        2 * REAL
    ))
}

/// Puts what a program keeps on a file system of its own, of some size. The program must not run.
fn on_a_small_disk(path: &Path, size: &str) -> Result<()> {
    let aside = path.with_extension("aside");
    fs::rename(path, &aside)?;
    fs::create_dir(path)?;
    let options = format!("size={size},mode=700");
    mount(
        Some("faults"),
        path,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    copy(&aside, path)
}

/// Fills a disk up to the last byte.
fn fill(path: &Path) -> Result<PathBuf> {
    let filler = path.join("filler");
    let mut file = fs::File::create(&filler)?;
    for size in [1 << 20, 1 << 12] {
        let block = vec![1; size];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
    Ok(filler)
}

/// Waits until a node refuses an update for a reason.
fn await_refusal(scene: &Scene, node: &str, reason: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut client = scene.client()?;
    loop {
        let status = client.status()?;
        let refuses = |one: &NodeStatus| {
            one.name == node
                && one.state() == State::Refusing
                && one.reason.contains(reason)
                && one.troubles.iter().any(is_journal)
        };
        if status.nodes.iter().any(refuses) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{node} does not refuse because of {reason:?}: {status:?}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_journal(trouble: &Trouble) -> bool {
    trouble.kind() == trouble::Kind::Journal
}

/// Checks that nobody has trouble with a journal any more.
fn all_can_write(scene: &Scene) -> Result<()> {
    let status = scene.client()?.status()?;
    let nodes = status.nodes.iter().flat_map(|node| &node.troubles);
    let trouble = nodes
        .chain(&status.trouble)
        .find(|trouble| is_journal(trouble));
    ensure!(trouble.is_none(), "the status still says {trouble:?}");
    Ok(())
}

/// A policy that takes some room in a journal.
fn bulky(number: u32) -> String {
    // None beside another, or they would be one range.
    let block = |n| {
        format!(
            "{{ipBlock: {{cidr: 172.{}.{}.{}/32}}}}",
            16 + number % 16,
            n / 100,
            n % 100 * 2
        )
    };
    let blocks: Vec<String> = (0..2_000).map(block).collect();
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: bulky-{}}}
spec:
  podSelector: {{}}
  ingress: [{{from: [{}], ports: [{{port: {}}}]}}]
---
",
        number % 4,
        blocks.join(", "),
        1000 + number
    ) + &pair(number)
}

/// Edits until one is not enforced.
fn edit_until_refused(scene: &Scene, node: &str, reason: &str) -> Result<u64> {
    let mut client = scene.client()?;
    for number in 0..500 {
        let revision = client.apply(vec![put(bulky(number))])?;
        if !client.is_enforced_within(revision, Duration::from_millis(400))? {
            await_refusal(scene, node, reason)?;
            return Ok(revision);
        }
    }
    bail!("no edit was refused")
}

pub(crate) fn node_disk_full(scene: &mut Scene, _: Settings) -> Result<String> {
    let name = Deployment::node_name(FAR);
    let path = scene.deployment.data_dir(&name);
    scene.deployment.kill_enforcer(FAR);
    on_a_small_disk(&path, "12m")?;
    scene.deployment.start_enforcer(FAR)?;
    scene.edit(pair(1))?;
    let filler = fill(&path)?;
    let revision = edit_until_refused(scene, &name, "journal")?;
    // The node enforces its last accepted policy.
    thread::sleep(Duration::from_millis(300));
    fs::remove_file(filler)?;
    let started = Instant::now();
    scene.client()?.wait_enforced(revision)?;
    let recovered = started.elapsed();
    scene.edit(pair(600))?;
    all_can_write(scene)?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "refused while full; enforced {:.1} s after there was room",
        recovered.as_secs_f64()
    ))
}

pub(crate) fn control_plane_disk_full(scene: &mut Scene, _: Settings) -> Result<String> {
    let path = scene.deployment.data_dir("controlplane");
    scene.deployment.kill_control_plane();
    on_a_small_disk(&path, "24m")?;
    scene.deployment.start_control_plane()?;
    scene.edit(pair(1))?;
    let filler = fill(&path)?;
    let refused = apply_until_refused(scene)?;
    ensure!(
        refused.contains("nothing was changed"),
        "it does not say that nothing was changed: {refused}"
    );
    let before = scene.client()?.status()?.revision;
    ensure!(
        scene.client()?.apply(vec![put(pair(999))]).is_err()
            && scene.client()?.status()?.revision == before,
        "what was refused is there"
    );
    let told = scene.client()?.status()?.trouble;
    ensure!(
        told.as_ref().is_some_and(is_journal),
        "the status says nothing: {told:?}"
    );
    fs::remove_file(filler)?;
    scene.edit(pair(1000))?;
    all_can_write(scene)?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok("refused while full; the next edit after there was room was enforced".into())
}

fn apply_until_refused(scene: &Scene) -> Result<String> {
    let mut client = scene.client()?;
    for number in 0..2_000 {
        if let Err(error) = client.apply(vec![put(bulky(number))]) {
            return Ok(error.to_string());
        }
    }
    bail!("it never fills up")
}

/// Writes to the journal's log, or its way to the disk.
fn is_of_the_log(call: &Call) -> bool {
    let is_write = matches!(call.name, "pwrite64" | "fdatasync" | "sync_file_range");
    is_write && call.object == "db"
}

/// The disk fails: every write to the journal is EIO, for a while.
fn failing_disk() -> Fault {
    let (calls, first, count) = (is_of_the_log as Calls, 1, usize::MAX / 2);
    let act = Act::Fail(Errno::EIO);
    Fault {
        calls,
        first,
        count,
        act,
    }
}

pub(crate) fn node_disk_fails(scene: &mut Scene, _: Settings) -> Result<String> {
    let name = Deployment::node_name(FAR);
    let pid = scene.deployment.enforcer_pid(FAR);
    let tracer = Tracer::attach(pid.context("it does not run")?, failing_disk())?;
    let revision = edit_until_refused(scene, &name, "journal")?;
    let (_, hits) = tracer.finish();
    let started = Instant::now();
    scene.client()?.wait_enforced(revision)?;
    let recovered = started.elapsed();
    scene.edit(pair(601))?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "{} calls failed; enforced {:.1} s after the disk was well",
        hits.len(),
        recovered.as_secs_f64()
    ))
}

pub(crate) fn control_plane_disk_fails(scene: &mut Scene, _: Settings) -> Result<String> {
    let pid = scene.deployment.control_plane_pid();
    let tracer = Tracer::attach(pid.context("it does not run")?, failing_disk())?;
    let refused = apply_until_refused(scene)?;
    let (_, hits) = tracer.finish();
    ensure!(
        refused.contains("nothing was changed"),
        "it does not say that nothing was changed: {refused}"
    );
    scene.edit(pair(1000))?;
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "{} calls failed; the next edit was enforced",
        hits.len()
    ))
}

/// A disk that can only be read: the enforcer refuses to start and says why, the table stays.
pub(crate) fn node_disk_read_only(scene: &mut Scene, _: Settings) -> Result<String> {
    let path = scene.deployment.data_dir(&Deployment::node_name(FAR));
    scene.deployment.kill_enforcer(FAR);
    on_a_small_disk(&path, "32m")?;
    let remount = |flags| {
        mount(
            None::<&str>,
            &path,
            None::<&str>,
            MsFlags::MS_REMOUNT | flags,
            None::<&str>,
        )
    };
    remount(MsFlags::MS_RDONLY)?;
    let (status, log) = scene.deployment.run_enforcer(FAR)?;
    ensure!(
        !status.success() && log.contains("Read-only file system"),
        "it must say what is wrong ({status}): {log}"
    );
    thread::sleep(Duration::from_millis(300));
    remount(MsFlags::empty())?;
    scene.deployment.start_enforcer(FAR)?;
    scene.edit(pair(1))?;
    Ok("refused to start while it was, started when it was not".into())
}
