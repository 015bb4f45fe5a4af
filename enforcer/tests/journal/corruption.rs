//! Damaged files of a journal: bytes flipped and files cut, at every offset. Either the journal has every record that
//! was acted upon, or it is moved aside. No case panics, and no record is lost in silence.

use std::{fs, path::Path};

use sallyport_enforcer::{
    journal::{self, Journal, Log as _},
    plan::Installed,
};

use crate::laws::{intent, policy, reopened};

/// The distance of the offsets that every run tries. Each run of the test begins at 0. `1` tries every byte.
fn stride(length: usize, tries: usize) -> usize {
    let all = std::env::var_os("SALLYPORT_EVERY_OFFSET").is_some();
    if all { 1 } else { (length / tries).max(1) }
}

/// A journal of three updates, and its content.
fn small(path: &Path) -> Installed {
    let (mut journal, mut installed) = reopened(path).unwrap();
    for revision in 1..=3 {
        let policy = policy(&[revision as u8, 9], 1);
        let intent = intent(&installed, &policy, revision, false, false);
        journal.intend(&intent).unwrap();
        installed = intent.after(&installed).unwrap();
        if revision == 2 {
            journal.snapshot(&installed).unwrap();
        }
    }
    drop(journal);
    // sled makes a snapshot of its own when it opens a log.
    assert_eq!(reopened(path).unwrap().1, installed);
    assert!(
        files(path)
            .iter()
            .any(|(name, _)| name.starts_with("snap."))
    );
    installed
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// The numbers of damaged journals that were opened whole, opened whole without sled's own snapshot, and moved aside.
#[derive(Debug, Default)]
struct Tally {
    whole: usize,
    mended: usize,
    aside: usize,
}

/// Opens a damaged copy of a journal as an enforcer does, and judges the outcome.
fn judge(
    whole: &Path,
    expected: &Installed,
    name: &str,
    bytes: &[u8],
    what: &str,
    tally: &mut Tally,
) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    copy(whole, path);
    fs::write(path.join(name), bytes).unwrap();
    let (mut journal, recovered, quarantined) =
        journal::open(path).unwrap_or_else(|error| panic!("{what}: {error}"));
    let installed = match recovered.pending {
        Some((_, after)) => after,
        None => recovered.installed,
    };
    match quarantined {
        None => {
            assert_eq!(&installed, expected, "{what}");
            tally.whole += 1;
        }
        Some(quarantined) if quarantined.whole => {
            assert_eq!(&installed, expected, "{what}");
            assert!(!quarantined.path.join("db").exists(), "{what}");
            tally.mended += 1;
        }
        Some(quarantined) => {
            assert_eq!(installed, Installed::default(), "{what}");
            assert_eq!(quarantined.count, 1, "{what}");
            assert!(quarantined.path.join("db").exists(), "{what}: it is kept");
            tally.aside += 1;
        }
    }
    // The journal can be used, whatever its content is.
    let policy = policy(&[1], 1);
    let next = intent(&installed, &policy, 9, true, false);
    journal
        .intend(&next)
        .unwrap_or_else(|error| panic!("{what}: {error}"));
}

fn files(path: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(path).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    files.map(read).collect()
}

/// The length of the part of a file that can be damaged. sled's file has a long tail of zeros.
fn written(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1)
}

#[test]
fn flipped_bytes_lose_nothing_in_silence() {
    let whole = tempfile::tempdir().unwrap();
    let expected = small(whole.path());
    for (name, bytes) in files(whole.path()) {
        let mut tally = Tally::default();
        let length = written(&bytes);
        for at in (0..length).step_by(stride(length, 30)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let what = format!("{name}, byte {at} of {length}");
            judge(whole.path(), &expected, &name, &damaged, &what, &mut tally);
        }
        println!("{name}, {length} bytes: {tally:?}");
        if name.starts_with("snap.") {
            assert!(tally.mended > 0 && tally.aside == 0, "{tally:?}");
        }
    }
}

#[test]
fn cut_files_lose_nothing_in_silence() {
    let whole = tempfile::tempdir().unwrap();
    let expected = small(whole.path());
    for (name, bytes) in files(whole.path()) {
        let mut tally = Tally::default();
        let length = written(&bytes);
        for at in (0..length).step_by(stride(length, 20)) {
            let what = format!("{name}, cut at {at} of {length}");
            judge(
                whole.path(),
                &expected,
                &name,
                &bytes[..at],
                &what,
                &mut tally,
            );
        }
        println!("{name}, {length} bytes: {tally:?}");
        if name.starts_with("snap.") {
            assert!(tally.mended > 0 && tally.aside == 0, "{tally:?}");
        }
    }
}

#[test]
fn a_journal_that_lost_its_end_is_moved_aside_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let earlier = tempfile::tempdir().unwrap();
    let (mut journal, mut installed) = reopened(path).unwrap();
    for revision in 1..=2 {
        let policy = policy(&[revision as u8], 1);
        let intent = intent(&installed, &policy, revision, false, false);
        journal.intend(&intent).unwrap();
        installed = intent.after(&installed).unwrap();
        if revision == 1 {
            drop(journal);
            copy(path, earlier.path());
            journal = Journal::open(path).unwrap().0;
        }
    }
    drop(journal);
    // An old copy of everything but the watermark, as sled leaves it when it cuts off its log.
    let acknowledged = fs::read(path.join("acknowledged")).unwrap();
    for (name, _) in files(path) {
        fs::remove_file(path.join(name)).unwrap();
    }
    copy(earlier.path(), path);
    fs::write(path.join("acknowledged"), acknowledged).unwrap();

    let error = Journal::open(path).unwrap_err();
    let text = "the journal ends before record 1, and record 1 was acted upon";
    assert!(error.to_string().contains(text), "{error}");
    let looked = journal::inspect(path).unwrap_err().to_string();
    assert!(looked.contains(text), "{looked}");
    assert!(
        looked.starts_with(&format!("journal {}: ", path.display())),
        "{looked}"
    );

    let (journal, recovered, quarantined) = journal::open(path).unwrap();
    let quarantined = quarantined.expect("it is moved aside");
    assert_eq!(recovered.installed, Installed::default());
    drop(journal);
    // The moved journal is complete, and is refused again.
    let again = Journal::open(&quarantined.path).unwrap_err();
    assert!(again.to_string().contains(text), "{again}");
    let report = journal::inspect(path).unwrap();
    assert_eq!((report.entries.len(), report.quarantined), (0, 1));
}

#[test]
fn what_is_looked_at_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let expected = small(directory.path());
    let before = files(directory.path());
    let report = journal::inspect(directory.path()).unwrap();
    assert_eq!(files(directory.path()), before);
    let (_, after) = report.recovered.pending.as_ref().expect("the last intent");
    assert_eq!(after, &expected);
    let texts: Vec<_> = report.entries.iter().map(|entry| &*entry.text).collect();
    let expected = [
        "snapshot: holds epoch 1 revision 2",
        "intent: to epoch 1 revision 3 from epoch 1 revision 2, 3 changes",
    ];
    assert_eq!(texts, expected);

    let (_journal, _) = Journal::open(directory.path()).unwrap();
    let error = journal::inspect(directory.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("an enforcer has it open: stop the enforcer first"),
        "{error}"
    );
}

#[test]
fn a_disk_that_fails_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = journal::open(&file.join("journal")).unwrap_err();
    assert!(!error.is_damage(), "{error}");
    assert!(file.exists());
}
