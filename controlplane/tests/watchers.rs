//! Watchers that never read cost little memory and hold up no edit. A process of its own, since its memory is measured.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

use std::time::{Duration, Instant};

use sallyport_controlplane::{config::Config, server};
use sallyport_proto::wire::{
    ApplyRequest, Edit, Manifest, WatchRequest, edit::Op,
    policy_service_client::PolicyServiceClient,
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

/// As many as one client may have.
const WATCHERS: usize = 1_000;

/// A server lets a connection have 200 streams at a time.
const OF_A_CONNECTION: usize = 100;

const EDITS: u32 = 60;

/// A policy of some 60 KB.
fn policy(number: u32) -> String {
    let blocks: String = (0..2_000)
        .map(|n| format!("{{ipBlock: {{cidr: 10.{}.{}.0/24}}}}, ", n / 256, n % 256))
        .collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: default, name: large, labels: {{number: n{number}}}}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{{from: [{blocks}]}}]}}\n"
    )
}

async fn apply(client: &PolicyServiceClient<Channel>, text: String) {
    let edit = Edit {
        op: Some(Op::Put(Manifest {
            text,
            ..Manifest::default()
        })),
    };
    let request = ApplyRequest {
        edits: vec![edit],
        ..ApplyRequest::default()
    };
    client.clone().apply(request).await.unwrap();
}

/// The median time of an edit.
async fn edits(client: &PolicyServiceClient<Channel>) -> Duration {
    let mut took = Vec::new();
    for number in 0..EDITS {
        let text = policy(number);
        let started = Instant::now();
        apply(client, text).await;
        took.push(started.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

/// The memory of this process that is resident, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_never_read_cost_little_and_hold_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let handle = server::start(Config::local(directory.path()))
        .await
        .unwrap();
    let url = format!("http://{}", handle.address);
    let connect = || PolicyServiceClient::connect(url.clone());
    let client = connect().await.unwrap();
    apply(
        &client,
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n".into(),
    )
    .await;
    let quiet = edits(&client).await;
    let before = resident();

    let mut watches = Vec::new();
    for _ in 0..WATCHERS / OF_A_CONNECTION {
        let watcher = connect().await.unwrap();
        for _ in 0..OF_A_CONNECTION {
            let request = WatchRequest {
                after_revision: 1,
                bookmark_interval_ms: 0,
            };
            watches.push(watcher.clone().watch(request).await.unwrap().into_inner());
        }
    }
    let request = WatchRequest::default();
    let error = connect().await.unwrap().watch(request).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    // Another client has a number of its own.
    let other = Endpoint::from_shared(url.clone()).unwrap();
    let other = other.local_address(Some([127, 0, 0, 2].into()));
    let mut other = PolicyServiceClient::new(other.connect().await.unwrap());
    drop(
        other
            .watch(request)
            .await
            .expect("a watch of another client"),
    );

    let watched = edits(&client).await;
    let grown = resident().saturating_sub(before) >> 20;
    println!("an edit: {quiet:?} before, {watched:?} beside them; {grown} MiB more");
    assert!(watched < 3 * quiet, "{watched:?} instead of {quiet:?}");
    // The clients are in this process, too.
    assert!(grown < 200, "{grown} MiB");

    // A watch that ends makes room for another.
    watches.truncate(WATCHERS / 2);
    let again = async {
        loop {
            let request = WatchRequest::default();
            if let Ok(watch) = client.clone().watch(request).await {
                break watch;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let watch = tokio::time::timeout(Duration::from_secs(10), again).await;
    let mut watch = watch.expect("there is room again").into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.revision, 1);
}
