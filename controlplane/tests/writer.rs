//! The writer with a journal that fails when it is told to: groups, and that nothing of a failed group is visible.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sallyport_controlplane::{
    cluster::Cluster,
    history::{Bounds, Committed, History},
    journal::{Journal, JournalError, Note, Recovered, StoreError},
    manifest,
    nodes::Settings,
    transaction::{Edit, Op},
    writer::{Applied, ApplyError, Running, Submission, Writer},
};
use sallyport_policy::{Epoch, Revision};

/// Remembers the sizes of the groups that it was given, takes its time, and fails on demand.
#[derive(Clone, Default)]
struct FakeJournal {
    groups: Arc<Mutex<Vec<usize>>>,
    fails: Arc<AtomicBool>,
}

impl Journal for FakeJournal {
    fn append(&mut self, group: &[Arc<Committed>]) -> Result<(), JournalError> {
        if group.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
        if self.fails.load(Ordering::SeqCst) {
            return Err(JournalError::Store(StoreError::Io {
                path: "fake".into(),
                step: "append to it",
                cause: io::Error::from_raw_os_error(5),
            }));
        }
        self.groups.lock().unwrap().push(group.len());
        Ok(())
    }

    fn note(&mut self, _: &Note) -> Result<(), JournalError> {
        Ok(())
    }
}

fn start(journal: &FakeJournal) -> (Writer, Running) {
    let recovered = Recovered {
        cluster: Cluster::default(),
        revision: Revision(0),
        epoch: Epoch(1),
        history: History::starting_after(Revision(0), Bounds::default()),
        settled: Revision(0),
        joined: BTreeMap::new(),
        left: BTreeMap::new(),
    };
    let journal = Box::new(journal.clone());
    let (writer, _, running) = Writer::start(journal, recovered, Settings::default()).unwrap();
    (writer, running)
}

fn namespace(name: &str) -> Submission {
    let json =
        format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}"}}}}"#);
    let object = manifest::object_from_json(&json).unwrap();
    let edit = Edit {
        source: "t".into(),
        op: Op::Put(object),
    };
    Submission {
        edits: vec![edit],
        expected_revision: None,
        dry_run: false,
        unreachable: None,
    }
}

async fn all(
    writer: &Writer,
    names: impl IntoIterator<Item = String>,
) -> Vec<Result<Applied, ApplyError>> {
    let submissions = names
        .into_iter()
        .map(|name| async move { writer.submit(namespace(&name)).await });
    futures::future::join_all(submissions).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_is_journaled_as_a_group() {
    let journal = FakeJournal::default();
    let (writer, running) = start(&journal);
    let results = all(&writer, (0..500).map(|n| format!("n{n}"))).await;
    let mut revisions: Vec<_> = results
        .into_iter()
        .map(|result| result.unwrap().revision)
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=500).map(Revision).collect::<Vec<_>>());
    let groups = journal.groups.lock().unwrap().clone();
    assert_eq!(groups.iter().sum::<usize>(), 500);
    assert!(groups.len() < 50, "{groups:?}");
    assert_eq!(writer.current().history.latest(), Revision(500));
    tokio::task::spawn_blocking(|| running.stop())
        .await
        .unwrap();
    assert!(matches!(
        writer.submit(namespace("late")).await,
        Err(ApplyError::Stopping)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_group_that_failed_is_visible() {
    let journal = FakeJournal::default();
    let (writer, _running) = start(&journal);
    writer.submit(namespace("a")).await.unwrap();
    let before = writer.current();
    let mut watch = writer.watch();
    watch.mark_unchanged();

    journal.fails.store(true, Ordering::SeqCst);
    for refused in all(&writer, (0..50).map(|n| format!("n{n}"))).await {
        let error = refused.unwrap_err().to_string();
        assert_eq!(
            error,
            "nothing was changed: the journal fake: cannot append to it: Input/output error (os error 5)"
        );
    }
    // What rests on nothing that failed is answered for what it is.
    assert_eq!(
        writer.submit(namespace("a")).await.unwrap().revision,
        Revision(1)
    );
    assert!(!watch.has_changed().unwrap());
    assert!(Arc::ptr_eq(&before, &writer.current()));

    journal.fails.store(false, Ordering::SeqCst);
    assert_eq!(
        writer.submit(namespace("n1")).await.unwrap().revision,
        Revision(2)
    );
    assert_eq!(writer.current().cluster.len(), 2);
}
