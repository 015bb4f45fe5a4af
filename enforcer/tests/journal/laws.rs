//! The journal's laws: reopening it equals never having stopped, and damaged records are refused, never skipped.

use std::{net::IpAddr, path::Path, sync::Arc};

use proptest::prelude::*;
use sallyport_enforcer::{
    journal::{Error, Intent, Journal, Log},
    plan::Installed,
};
use sallyport_journal::{Store, Tree, parts};
use sallyport_policy::{
    Delta, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, Position, Ranges, Revision,
    UnknownAddresses, Update,
};

/// An operation of an agent on its journal.
#[derive(Clone, Debug)]
enum Act {
    /// An update to this policy, by delta or by snapshot. The kernel refuses the update or not.
    Update {
        members: Vec<u8>,
        groups: u8,
        snapshot: bool,
        /// Whether the version before stays beside the new one.
        hold: bool,
        refused: bool,
    },
    /// A snapshot replaces the log.
    Snapshot,
    /// The process is stopped and started again.
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let update = (
        proptest::collection::vec(0..6u8, 0..5),
        0..3u8,
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(members, groups, snapshot, hold, refused)| Act::Update {
            members,
            groups,
            snapshot,
            hold,
            refused,
        });
    let act = prop_oneof![6 => update, 1 => Just(Act::Snapshot), 2 => Just(Act::Reopen)];
    proptest::collection::vec(act, 1..16)
}

pub(crate) fn policy(members: &[u8], groups: u8) -> NodePolicy {
    let address = |n: u8| IpAddr::from([10, 0, 0, n]);
    let mut policy = NodePolicy::default();
    for n in 0..groups {
        let name = format!("group {n}");
        let mut group = PeerGroup::new(name.clone(), Ranges::EMPTY);
        group.addresses = members.iter().map(|&n| address(n)).collect();
        policy.set_group(
            GroupId::of([name.as_str()], &Ranges::EMPTY),
            Arc::new(group),
        );
    }
    for &n in members {
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            uid: String::new(),
            // An interface that changes, and often is none.
            interface: "veth".repeat(usize::from(groups)),
            ingress: None,
            egress: None,
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    policy
}

/// An update to a policy. The newest version that was held stays beside the new one or not.
pub(crate) fn intent(
    before: &Installed,
    policy: &NodePolicy,
    revision: u64,
    snapshot: bool,
    hold: bool,
) -> Intent {
    let newest = before.window.newest();
    let base = newest.filter(|_| !snapshot);
    let empty = NodePolicy::default();
    Intent {
        update: Update {
            base: base.map(|base| base.position),
            target: Position {
                epoch: Epoch(1),
                revision: Revision(revision),
                digest: policy.digest(),
            },
            keep: newest
                .filter(|_| hold)
                .map(|newest| newest.position)
                .into_iter()
                .collect(),
            delta: Delta::between(base.map_or(&empty, |base| &base.policy), policy),
        },
        unknown: UnknownAddresses::drop(),
        batch: 1 << 20,
    }
}

/// The installed state after the last intent of a journal.
pub(crate) fn reopened(path: &Path) -> Result<(Journal, Installed), Error> {
    let (journal, recovered) = Journal::open(path)?;
    let installed = match recovered.pending {
        Some((_, after)) => after,
        None => recovered.installed,
    };
    Ok((journal, installed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn reopening_equals_never_having_stopped(acts in acts()) {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, mut installed) = reopened(directory.path()).unwrap();
        prop_assert_eq!(&installed, &Installed::default());
        for (revision, act) in (1..).zip(acts) {
            match act {
                Act::Update { members, groups, snapshot, hold, refused } => {
                    let policy = policy(&members, groups);
                    let intent = intent(&installed, &policy, revision, snapshot, hold);
                    journal.intend(&intent).unwrap();
                    let after = intent.after(&installed).unwrap();
                    prop_assert_eq!(&*after.window.newest().unwrap().policy, &policy);
                    if refused {
                        journal.abort(after.generation).unwrap();
                        installed.generation = after.generation;
                    } else {
                        installed = after;
                    }
                    // The departed are workloads that are gone, and none that is there.
                    let is_there = |address| installed.policy.endpoints().contains_key(address);
                    prop_assert!(!installed.departed.keys().any(is_there));
                }
                Act::Snapshot => journal.snapshot(&installed).unwrap(),
                Act::Reopen => {
                    drop(journal);
                    let (again, found) = reopened(directory.path()).unwrap();
                    prop_assert_eq!(&found, &installed);
                    journal = again;
                }
            }
        }
        drop(journal);
        prop_assert_eq!(&reopened(directory.path()).unwrap().1, &installed);
    }
}

/// The key of a part of a record.
fn key(sequence: u64, part: u32) -> Vec<u8> {
    parts::key(&sequence.to_be_bytes(), part)
}

/// Writes three records, applies a change to the log, and reopens the journal.
fn damaged(change: impl FnOnce(&Tree)) -> Result<Installed, Error> {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, mut installed) = reopened(directory.path()).unwrap();
    for revision in 1..=3 {
        let policy = policy(&[revision as u8], 1);
        let intent = intent(&installed, &policy, revision, false, false);
        journal.intend(&intent).unwrap();
        installed = intent.after(&installed).unwrap();
    }
    drop(journal);
    let store = Store::open(directory.path(), 16 << 20).unwrap();
    change(&store.tree("log").unwrap());
    drop(store);
    reopened(directory.path()).map(|(_, installed)| installed)
}

#[test]
fn every_flipped_byte_of_a_record_is_noticed() {
    let key = key(1, 0);
    assert_eq!(
        damaged(|_| {}).unwrap().position().unwrap().revision,
        Revision(3)
    );
    for at in [0, 3, 4, 5, 8, 9, 20, 60] {
        let error = damaged(|log| {
            let mut record = log.get(&key).unwrap().unwrap();
            record[at] ^= 0x10;
            log.insert(&key, &record).unwrap();
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("record 1 is damaged"), "byte {at}: {error}");
    }
}

#[test]
fn a_missing_record_and_a_torn_one_are_noticed() {
    let missing = damaged(|log| log.remove(key(1, 0)).unwrap());
    let text = missing.unwrap_err().to_string();
    assert!(text.contains("record 1 is missing before it"), "{text}");
    let torn = damaged(|log| {
        let record = log.get(key(2, 0)).unwrap().unwrap();
        log.insert(key(2, 0), &record[..record.len() - 1]).unwrap();
    });
    let text = torn.unwrap_err().to_string();
    assert!(
        text.contains("record 2 is damaged: the record is ")
            && text.contains(" bytes long and should be "),
        "{text}"
    );
}

#[test]
fn what_a_crash_left_of_a_record_never_was() {
    let installed = damaged(|log| log.insert(key(3, 1), b"the end of something").unwrap());
    assert_eq!(installed.unwrap().position().unwrap().revision, Revision(3));
}

/// The record is large enough for many parts. As one value sled would keep the record elsewhere.
#[test]
fn a_large_policy_is_journalled_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (mut journal, installed) = reopened(directory.path()).unwrap();
    let mut policy = NodePolicy::default();
    let mut group = PeerGroup::new("all".into(), Ranges::EMPTY);
    group.addresses = (0..100_000u32)
        .map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()))
        .collect();
    policy.set_group(GroupId::of(["all"], &Ranges::EMPTY), Arc::new(group));
    let intent = intent(&installed, &policy, 1, true, false);
    journal.intend(&intent).unwrap();
    let installed = intent.after(&installed).unwrap();
    drop(journal);
    let (mut journal, found) = reopened(directory.path()).unwrap();
    assert_eq!(found, installed);
    journal.snapshot(&installed).unwrap();
    drop(journal);
    assert_eq!(reopened(directory.path()).unwrap().1, installed);
    assert!(
        !directory
            .path()
            .join("blobs")
            .read_dir()
            .is_ok_and(|mut blobs| blobs.next().is_some()),
        "sled does not sync what it keeps in files of their own"
    );
}
