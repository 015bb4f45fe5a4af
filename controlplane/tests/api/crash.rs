//! The real binary, killed at random moments under load: what it acknowledged is there, and nothing is there in part.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use sallyport_proto::wire::{
    ApplyRequest, Kind, ListRequest, StatusRequest, policy_service_client::PolicyServiceClient,
};
use tonic::transport::Channel;

use crate::world::{namespace, put};

/// Transactions that are to be acknowledged before the test is content.
const APPLIES: usize = 200;
const WRITERS: usize = 4;

pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn start(directory: &Path, history: u32) -> Process {
    let child = Command::new(env!("CARGO_BIN_EXE_sallyport-controlplane"))
        .arg("--listen")
        .arg(socket(directory))
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--history", &history.to_string(), "--log-level", "warn"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Process(child)
}

pub(crate) fn socket(directory: &Path) -> String {
    format!("unix://{}", directory.join("api.sock").display())
}

pub(crate) async fn connect(directory: &Path) -> PolicyServiceClient<Channel> {
    let started = Instant::now();
    loop {
        match PolicyServiceClient::connect(socket(directory)).await {
            Ok(client) => return client,
            Err(error) if started.elapsed() > Duration::from_secs(20) => {
                panic!("it does not come up: {error}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Three namespaces by one transaction.
fn transaction(n: u32) -> ApplyRequest {
    let text: String = ["x", "y", "z"]
        .map(|part| namespace(&format!("t{n}-{part}")))
        .concat();
    ApplyRequest {
        edits: vec![put(&text)],
        ..ApplyRequest::default()
    }
}

async fn stored(client: &mut PolicyServiceClient<Channel>) -> BTreeSet<String> {
    let request = ListRequest {
        kind: Kind::Namespace.into(),
        ..ListRequest::default()
    };
    let objects = client.list(request).await.unwrap().into_inner().objects;
    objects
        .into_iter()
        .map(|object| object.r#ref.unwrap().name)
        .collect()
}

/// Applies until the process dies.
async fn apply_until_killed(
    directory: &Path,
    next: &AtomicU32,
    acknowledged: &Mutex<Vec<(u64, u32)>>,
) {
    let mut client = connect(directory).await;
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        match client.apply(transaction(n)).await {
            Ok(response) => acknowledged
                .lock()
                .unwrap()
                .push((response.into_inner().revision, n)),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_a_kill_and_nothing_half() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (next, acknowledged) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let mut kills = 0u64;
    while acknowledged.lock().unwrap().len() < APPLIES || kills < 8 {
        // A short history, so that it folds and trims all the time.
        let mut process = start(directory, 10);
        let writers = (0..WRITERS).map(|_| apply_until_killed(directory, &next, &acknowledged));
        let killer = async {
            drop(connect(directory).await);
            // Moments that are different each time, and the same in each run.
            tokio::time::sleep(Duration::from_millis(10 + (kills * 37) % 120)).await;
            process.0.kill().unwrap();
        };
        futures::future::join(futures::future::join_all(writers), killer).await;
        process.0.wait().unwrap();
        kills += 1;

        let process = start(directory, 10);
        let mut client = connect(directory).await;
        let names = stored(&mut client).await;
        let whole = |n: u32| {
            ["x", "y", "z"]
                .iter()
                .filter(|part| names.contains(&format!("t{n}-{part}")))
                .count()
        };
        for (revision, n) in acknowledged.lock().unwrap().iter() {
            assert_eq!(
                whole(*n),
                3,
                "transaction {n}, acknowledged as revision {revision}, kill {kills}"
            );
        }
        let transactions = (0..next.load(Ordering::Relaxed)).filter(|&n| match whole(n) {
            0 => false,
            3 => true,
            count => panic!("transaction {n} is there in part: {count} of 3"),
        });
        let count = transactions.count() as u64;
        let status = client.status(StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.revision, count, "one revision a transaction");
        drop(process);
    }
    let mut revisions: Vec<_> = acknowledged
        .lock()
        .unwrap()
        .iter()
        .map(|(revision, _)| *revision)
        .collect();
    let count = revisions.len();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), count, "no revision was given twice");
}
