//! Journals that are not what was written: every kind of damage is named, nothing is skipped, nothing is changed.

use std::path::{Path, PathBuf};

use sallyport_controlplane::{
    history::{Bounds, Unrecorded},
    journal::{Journal as _, Settings, SledJournal},
};
use sallyport_journal::Store;
use sallyport_policy::Revision;
use sallyport_proto::object::Kind;

use crate::objects::{Model, delete, edit_of, put};

/// A journal with six transactions, of which four are folded.
fn journal(directory: &tempfile::TempDir) -> Settings {
    let settings = Settings {
        history: Bounds {
            transactions: 3,
            bytes: 1 << 20,
        },
        fold_after: 4,
        ..Settings::at(directory.path().join("journal"))
    };
    let mut model = Model::new(&settings);
    let (mut journal, _) = SledJournal::open(settings.clone()).unwrap();
    let ops = [
        put("Namespace", "", "a", "", 0),
        put("Node", "", "p", "", 0),
        put("Pod", "a", "web", "", 2),
        put("NetworkPolicy", "a", "np", "", 0),
        put("Pod", "a", "big", &"x".repeat(100_000), 4),
        delete(Kind::NetworkPolicy, "a", "np"),
    ];
    for op in ops {
        let committed = model.commit(edit_of(op)).unwrap();
        journal.append(&[committed]).unwrap();
        journal.join_fold();
    }
    settings
}

fn store_of(path: &Path) -> Store {
    Store::open(path, 16 << 20).unwrap()
}

/// Changes the trees behind the journal's back, and opens it.
fn after(tamper: impl FnOnce(&Store)) -> (PathBuf, String) {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal(&directory);
    let store = store_of(&settings.path);
    tamper(&store);
    drop(store);
    let first = SledJournal::open(settings.clone())
        .err()
        .expect("damage is refused")
        .to_string();
    let second = SledJournal::open(settings.clone())
        .err()
        .expect("and refused again")
        .to_string();
    assert_eq!(first, second);
    (settings.path, first)
}

fn refused(expected: &str, tamper: impl FnOnce(&Store)) {
    let (path, message) = after(tamper);
    let expected = format!(
        "the journal {}: {expected}. The record was not skipped and nothing was changed. `sallyport-controlplane \
         journal verify` checks the journal without changing it. Move the directory away, and restore a backup into \
         an empty one with `sallyport-controlplane journal restore`. Nodes keep enforcing their last policy",
        path.display()
    );
    assert_eq!(message, expected);
}

fn log_key(revision: u64, part: u32) -> Vec<u8> {
    [&revision.to_be_bytes()[..], &part.to_be_bytes()].concat()
}

fn change(store: &Store, tree: &str, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
    let tree = store.tree(tree).unwrap();
    let mut bytes = tree.get(key).unwrap().expect("the record is there");
    change(&mut bytes);
    tree.insert(key, &bytes).unwrap();
}

fn remove(store: &Store, tree: &str, key: &[u8]) {
    let tree = store.tree(tree).unwrap();
    assert!(tree.get(key).unwrap().is_some(), "the record is there");
    tree.remove(key).unwrap();
}

#[test]
fn an_untouched_journal_opens() {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal(&directory);
    let (_, recovered) = SledJournal::open(settings).unwrap();
    assert_eq!(
        (
            recovered.revision,
            recovered.history.oldest(),
            recovered.cluster.len()
        ),
        (Revision(6), Revision(3), 4)
    );
}

#[test]
fn changed_bits_are_named() {
    let (_, message) = after(|store| change(store, "log", &log_key(5, 1), |bytes| bytes[20] ^= 1));
    assert!(
        message.contains("log: revision 5, part 1: the checksum is "),
        "{message}"
    );
    let (_, message) = after(|store| change(store, "meta", b"epoch", |bytes| bytes[14] ^= 1));
    assert!(
        message.contains("meta: epoch: the checksum is "),
        "{message}"
    );
    let pod = b"\x04a\0web\0\0\0\0\0";
    let (_, message) = after(|store| {
        change(store, "snapshot", pod, |bytes| {
            *bytes.last_mut().unwrap() ^= 1
        })
    });
    assert!(
        message.contains("snapshot: a/web, part 0: the checksum is "),
        "{message}"
    );
}

#[test]
fn cut_and_foreign_records_are_named() {
    refused(
        "log: revision 6, part 0: the record is 5 bytes long and should be 13",
        |store| {
            change(store, "log", &log_key(6, 0), |bytes| bytes.truncate(5));
        },
    );
    refused(
        "log: revision 6, part 0: the record has format 9, which this version of Sallyport does not know",
        |store| {
            change(store, "log", &log_key(6, 0), |bytes| bytes[4] = 9);
        },
    );
}

#[test]
fn missing_records_are_named() {
    refused("log: revision 5: the record is missing", |store| {
        for part in 0..3 {
            remove(store, "log", &log_key(5, part));
        }
    });
    refused("log: revision 5: the record is missing", |store| {
        remove(store, "log", &log_key(5, 2))
    });
    refused("log: revision 5, part 0: the record is missing", |store| {
        remove(store, "log", &log_key(5, 0))
    });
    refused("meta: snapshot: the record is missing", |store| {
        remove(store, "meta", b"snapshot")
    });
    refused("meta: format: the record is missing", |store| {
        remove(store, "meta", b"format")
    });
    let (_, message) = after(|store| remove(store, "snapshot", b"\x04a\0web\0\0\0\0\0"));
    assert!(
        message.contains("snapshot: should hold 4 objects with checksum "),
        "{message}"
    );
}

#[test]
fn a_later_format_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal(&directory);
    let store = store_of(&settings.path);
    let meta = store.tree("meta").unwrap();
    meta.insert("format", &later_format()).unwrap();
    drop((meta, store));
    let message = SledJournal::open(settings)
        .err()
        .expect("refused")
        .to_string();
    assert!(
        message.ends_with(
            "has format 2, and this version reads formats up to 1: start the version that wrote it, or a later one"
        ),
        "{message}"
    );
}

/// A record as a later version would write it: length, version, CRC32 of key, version, parts and payload, parts,
/// payload.
fn later_format() -> Vec<u8> {
    let (payload, parts) = ([8u8, 2], 1u32.to_be_bytes());
    let checked = [&b"format"[..], &[1], &parts, &payload].concat();
    let checksum = crc32fast::hash(&checked).to_be_bytes();
    [&2u32.to_be_bytes()[..], &[1], &checksum, &parts, &payload].concat()
}

/// Writes the first of two parts of a revision: all of a large transaction that came to the disk.
fn cut_off(store: &Store, revision: u64) {
    let key = log_key(revision, 0);
    let checked = [&key[..], &[1], &2u32.to_be_bytes(), b"x"].concat();
    let checksum = crc32fast::hash(&checked).to_be_bytes();
    let record = [
        &1u32.to_be_bytes()[..],
        &[1],
        &checksum,
        &2u32.to_be_bytes(),
        b"x",
    ]
    .concat();
    store.tree("log").unwrap().insert(key, &record).unwrap();
}

#[test]
fn a_transaction_that_was_cut_off_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal(&directory);
    let store = store_of(&settings.path);
    cut_off(&store, 7);
    drop(store);
    for _ in 0..2 {
        let (_, recovered) = SledJournal::open(settings.clone()).unwrap();
        assert_eq!(recovered.revision, Revision(6));
    }
}

#[test]
fn a_transaction_that_was_cut_off_does_not_stand_for_a_lost_one() {
    refused("log: revision 6: the record is missing", |store| {
        remove(store, "log", &log_key(6, 0));
        cut_off(store, 7);
    });
    refused("log: revision 5: the record is missing", |store| {
        for part in 0..3 {
            remove(store, "log", &log_key(5, part));
        }
        remove(store, "log", &log_key(6, 0));
        cut_off(store, 7);
    });
}

#[test]
fn files_that_are_no_journal_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal(&directory);
    std::fs::write(
        settings.path.join("conf"),
        "no configuration, and longer than eight bytes",
    )
    .unwrap();
    let message = SledJournal::open(settings.clone())
        .err()
        .expect("refused")
        .to_string();
    let expected = format!("the journal {}: cannot open it: ", settings.path.display());
    assert!(message.starts_with(&expected), "{message}");

    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let message = SledJournal::open(Settings::at(file.join("journal")))
        .err()
        .expect("refused")
        .to_string();
    assert!(
        message.contains("cannot create the directory: Not a directory"),
        "{message}"
    );
}

/// sled cuts its log off at the first damaged byte and says nothing. We do.
#[test]
fn damage_to_the_files_never_loses_a_transaction_silently() {
    let directory = tempfile::tempdir().unwrap();
    let settings = journal(&directory);
    let whole = std::fs::read(settings.path.join("db")).unwrap();
    let written = whole.iter().rposition(|&byte| byte != 0).unwrap();
    let mut refusals = 0;
    for step in 0..24 {
        let mut damaged = whole.clone();
        let at = written * step / 24;
        damaged[at] ^= 0x10;
        let copy = directory.path().join(format!("copy-{step}"));
        std::fs::create_dir_all(copy.join("blobs")).unwrap();
        for file in std::fs::read_dir(&settings.path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            if file.is_file() {
                std::fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
            }
        }
        std::fs::write(copy.join("db"), damaged).unwrap();
        match SledJournal::open(Settings {
            path: copy,
            ..settings.clone()
        }) {
            Ok((_, recovered)) => assert_eq!(recovered.revision, Revision(6), "byte {at}"),
            Err(error) => {
                refusals += 1;
                assert!(
                    error.to_string().starts_with("the journal "),
                    "byte {at}: {error}"
                );
            }
        }
    }
    assert!(refusals > 0, "some damage matters");
}

/// A record as an earlier version wrote it: it says neither when it was nor what it replaced.
#[test]
fn what_an_earlier_version_wrote_is_read_and_cannot_be_gone_back_behind() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings::at(directory.path().join("journal"));
    let mut model = Model::new(&settings);
    let (mut journal, _) = SledJournal::open(settings.clone()).unwrap();
    for (number, op) in [
        put("Namespace", "", "a", "", 0),
        put("Namespace", "", "a", "x", 0),
        put("Namespace", "", "a", "y", 0),
    ]
    .into_iter()
    .enumerate()
    {
        let mut committed = (*model.commit(edit_of(op)).unwrap()).clone();
        if number == 1 {
            committed.before = None;
        } else {
            committed.at_ms = Some(7);
        }
        journal.append(&[committed.into()]).unwrap();
    }
    drop(journal);
    let (_, recovered) = SledJournal::open(settings).unwrap();
    let history = &recovered.history;
    let times: Vec<_> = history
        .after(Revision(0))
        .unwrap()
        .map(|committed| (committed.revision, committed.at_ms))
        .collect();
    assert_eq!(
        times,
        [
            (Revision(1), Some(7)),
            (Revision(2), None),
            (Revision(3), Some(7))
        ]
    );
    let went = history.undone(Revision(2)).unwrap();
    let was: Vec<_> = went
        .values()
        .map(|was| was.unwrap().contains(r#""filler":"x""#))
        .collect();
    assert_eq!(was, [true]);
    assert_eq!(
        history.undone(Revision(1)).err(),
        Some(Unrecorded::NotNoted {
            revision: Revision(2)
        })
    );
}
