//! Reopening gives exactly what was appended: cluster, revision, epoch, history; folded or not.

use std::{path::Path, time::Instant};

use proptest::prelude::*;
use sallyport_controlplane::{
    history::Bounds,
    journal::{Journal as _, Note, Settings, SledJournal},
    transaction::Edit,
};
use sallyport_policy::{NodeName, Revision};

use crate::objects::{Model, edit, edit_of, put};

fn settings(path: &Path, keep: usize, fold_after: u64) -> Settings {
    Settings {
        history: Bounds {
            transactions: keep,
            bytes: 1 << 20,
        },
        fold_after,
        ..Settings::at(path.join("journal"))
    }
}

/// What is done to a journal.
#[derive(Clone, Debug)]
enum Step {
    /// Transactions that are appended together.
    Append(Vec<Vec<Edit>>),
    /// A note about nodes.
    Note(Note),
    /// Waits for the fold.
    JoinFold,
    /// Closes and opens.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let transaction = prop::collection::vec(edit(), 1..6);
    prop_oneof![
        8 => prop::collection::vec(transaction, 1..8).prop_map(Step::Append),
        3 => note().prop_map(Step::Note),
        1 => Just(Step::JoinFold),
        1 => Just(Step::Reopen),
    ]
}

fn note() -> impl Strategy<Value = Note> {
    let node = || prop::sample::select(vec!["n0", "n1"]).prop_map(NodeName::from);
    prop_oneof![
        (node(), any::<bool>()).prop_map(|(node, leased)| Note::Joined {
            node,
            membership: leased.into()
        }),
        (node(), any::<u64>()).prop_map(|(node, at_ms)| Note::Left { node, at_ms }),
        node().prop_map(|node| Note::Forgotten { node }),
        (0..20u64).prop_map(|revision| Note::Settled(Revision(revision))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn reopening_equals_never_having_stopped(
        steps in prop::collection::vec(step(), 1..30),
        keep in 1usize..6,
        fold_after in prop::sample::select(vec![1u64, 3, 1_000]),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let settings = settings(directory.path(), keep, fold_after);
        let mut model = Model::new(&settings);
        let (mut journal, recovered) = SledJournal::open(settings.clone()).unwrap();
        prop_assert_eq!(&recovered, &model.state);
        for step in steps.into_iter().chain([Step::Reopen]) {
            match step {
                Step::Append(transactions) => {
                    let group: Vec<_> =
                        transactions.into_iter().filter_map(|edits| model.commit(edits)).collect();
                    journal.append(&group).unwrap();
                }
                Step::Note(note) => {
                    journal.note(&note).unwrap();
                    model.note(&note);
                }
                Step::JoinFold => journal.join_fold(),
                Step::Reopen => {
                    drop(journal);
                    let (opened, recovered) = SledJournal::open(settings.clone()).unwrap();
                    prop_assert_eq!(&recovered, &model.state);
                    journal = opened;
                }
            }
        }
    }
}

#[test]
fn one_flush_makes_a_whole_group_durable() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), 100_000, 1_000_000);
    let mut model = Model::new(&settings);
    let (mut journal, _) = SledJournal::open(settings).unwrap();
    let mut commit = |n: u32| {
        let label = n.to_string();
        let edits = edit_of(put("Namespace", "", "a", &label, 0));
        model.commit(edits).unwrap()
    };
    let singles: Vec<_> = (0..50).map(&mut commit).collect();
    let started = Instant::now();
    for committed in singles {
        journal.append(&[committed]).unwrap();
    }
    let each = started.elapsed() / 50;
    let group: Vec<_> = (50..1_050).map(&mut commit).collect();
    let started = Instant::now();
    journal.append(&group).unwrap();
    let grouped = started.elapsed() / 1_000;
    println!("one by one {each:?} each, as a group {grouped:?} each");
    assert!(
        grouped * 2 < each,
        "one by one {each:?} each, as a group {grouped:?} each"
    );
}

#[test]
fn a_journal_has_one_owner() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), 3, 3);
    let (journal, _) = SledJournal::open(settings.clone()).unwrap();
    let second = SledJournal::open(settings.clone())
        .err()
        .expect("it is locked")
        .to_string();
    assert!(second.ends_with(
        "journal is in use by another process: is a second sallyport-controlplane running with the same --data-dir?"
    ), "{second}");
    // A lock that goes within five seconds is waited for.
    let closing = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(journal);
    });
    SledJournal::open(settings).unwrap();
    closing.join().unwrap();
}

#[test]
fn the_log_stays_short() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), 10, 20);
    let mut model = Model::new(&settings);
    let (mut journal, _) = SledJournal::open(settings.clone()).unwrap();
    for n in 0..500u32 {
        let committed = model
            .commit(edit_of(put("Namespace", "", "a", &n.to_string(), 0)))
            .unwrap();
        journal.append(&[committed]).unwrap();
        if n % 25 == 0 {
            journal.join_fold();
        }
    }
    drop(journal);
    let (journal, recovered) = SledJournal::open(settings).unwrap();
    assert_eq!(recovered, model.state);
    assert!(
        journal.logged() <= 60,
        "{} transactions are in the log",
        journal.logged()
    );
}
