//! Files of a journal that are not what was written: bytes flipped and files cut, at every offset. Either all that was
//! acknowledged is there, or opening is refused; nothing panics and nothing is lost in silence.

use std::{fs, path::Path};

use sallyport_controlplane::journal::{self, Journal as _, Note, Recovered, Settings, SledJournal};
use sallyport_proto::Membership;

use crate::objects::{Model, edit_of, put};

/// How far apart the offsets are that are tried. With SALLYPORT_EVERY_OFFSET every byte is.
fn stride(length: usize, tries: usize) -> usize {
    let all = std::env::var_os("SALLYPORT_EVERY_OFFSET").is_some();
    if all { 1 } else { (length / tries).max(1) }
}

/// A small journal, of which a part is folded, and what it holds.
fn small(path: &Path) -> Recovered {
    let settings = settings(path);
    let mut model = Model::new(&settings);
    let (mut journal, _) = SledJournal::open(settings.clone()).unwrap();
    for op in [
        put("Namespace", "", "a", "", 0),
        put("Node", "", "p", "", 0),
        put("Pod", "a", "web", "", 2),
        put("Pod", "a", "web", "x", 2),
    ] {
        let committed = model.commit(edit_of(op)).unwrap();
        journal.append(&[committed]).unwrap();
        journal.join_fold();
    }
    let note = Note::Joined {
        node: "p".into(),
        membership: Membership::Joined { leased: true },
    };
    journal.note(&note).unwrap();
    model.note(&note);
    drop(journal);
    // sled makes a snapshot of its own when it opens a log.
    let (journal, recovered) = SledJournal::open(settings).unwrap();
    drop(journal);
    assert_eq!(recovered, model.state);
    recovered
}

fn settings(path: &Path) -> Settings {
    Settings {
        fold_after: 3,
        ..Settings::at(path)
    }
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

fn written(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1)
}

/// Opens a damaged copy of a journal, and judges what comes of it. Returns whether it opened.
fn opens(whole: &Path, expected: &Recovered, name: &str, bytes: &[u8], what: &str) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for (other, content) in files(whole) {
        fs::write(path.join(other), content).unwrap();
    }
    fs::create_dir_all(path.join("blobs")).unwrap();
    fs::write(path.join(name), bytes).unwrap();
    match SledJournal::open(settings(path)) {
        Ok((_, recovered)) => {
            assert!(&recovered == expected, "{what}: something is lost");
            true
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("the journal {}", path.display())),
                "{what}: {text}"
            );
            false
        }
    }
}

/// Tries a change at many offsets of every file.
fn tries(count: usize, change: impl Fn(&mut Vec<u8>, usize)) {
    let whole = tempfile::tempdir().unwrap();
    let expected = small(whole.path());
    for (name, bytes) in files(whole.path()) {
        let (length, mut opened, mut refused) = (written(&bytes), 0, 0);
        for at in (0..length).step_by(stride(length, count)) {
            let mut damaged = bytes.clone();
            change(&mut damaged, at);
            let what = format!("{name}, byte {at} of {length}");
            match opens(whole.path(), &expected, &name, &damaged, &what) {
                true => opened += 1,
                false => refused += 1,
            }
        }
        println!("{name}, {length} bytes: {opened} opened with all in them, {refused} refused");
        match name.as_str() {
            "db" => assert!(refused > 0),
            name if name.starts_with("snap.") => assert_eq!(refused, 0, "it is whole without it"),
            _ => {}
        }
    }
}

#[test]
fn flipped_bytes_lose_nothing_in_silence() {
    tries(25, |bytes, at| bytes[at] ^= 0x10);
}

#[test]
fn cut_files_lose_nothing_in_silence() {
    tries(15, |bytes, at| bytes.truncate(at));
}

#[test]
fn a_torn_snapshot_of_sleds_is_moved_aside() {
    let directory = tempfile::tempdir().unwrap();
    let expected = small(directory.path());
    let snapshot = |path: &Path| {
        let names = files(path).into_iter().map(|(name, _)| name);
        names
            .into_iter()
            .find(|name| name.starts_with("snap."))
            .map(|name| path.join(name))
    };
    let torn = snapshot(directory.path()).expect("sled made one");
    let bytes = fs::read(&torn).unwrap();
    fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();
    let looked = journal::inspect(directory.path()).unwrap_err().to_string();
    assert!(
        looked.contains("`sallyport-controlplane journal verify`"),
        "{looked}"
    );
    assert!(torn.exists(), "who looks moves nothing");

    let (_, recovered) = SledJournal::open(settings(directory.path())).unwrap();
    assert_eq!(recovered, expected);
    let quarantine = directory.path().join("quarantine");
    let aside: Vec<_> = fs::read_dir(quarantine)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(aside.len(), 1);
    let kept = aside[0].path().join(torn.file_name().unwrap());
    assert_eq!(fs::read(kept).unwrap(), bytes[..bytes.len() / 2]);
}
