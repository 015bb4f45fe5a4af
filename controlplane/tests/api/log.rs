//! The real binary with a log that cannot be written, in three ways: it serves, edits reach nodes, signals end it.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use sallyport_policy::Window;
use sallyport_proto::wire::{ApplyRequest, WaitEnforcedRequest};

use crate::{
    crash::{Process, connect, socket},
    node::FakeNode,
    world::{namespace, node, pod, put},
};

fn start(directory: &Path, level: &str, stderr: impl Into<Stdio>) -> Process {
    let child = Command::new(env!("CARGO_BIN_EXE_sallyport-controlplane"))
        .args(["--listen", &socket(directory), "--log-level", level])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn();
    Process(child.unwrap())
}

/// An edit that a node enforces, and an end by SIGTERM.
async fn serves_and_ends(directory: &Path, process: Process) {
    let all = tokio::time::timeout(Duration::from_secs(30), serves(directory, process)).await;
    all.expect("nothing waits for the log");
}

async fn serves(directory: &Path, mut process: Process) {
    let mut client = connect(directory).await;
    let text = [
        namespace("a"),
        node("n"),
        pod("a", "web", "n", "10.0.0.1", "web"),
    ];
    let request = ApplyRequest {
        edits: vec![put(&text.concat())],
        ..ApplyRequest::default()
    };
    client.apply(request).await.unwrap();
    let mut connected = Vec::new();
    for _ in 0..3 {
        // Each connection is a line of the log.
        let mut n = FakeNode::connect(socket(directory), "n", Window::default()).await;
        n.follow().await;
        connected.push(n);
    }
    let request = WaitEnforcedRequest {
        revision: 1,
        timeout_ms: 5_000,
    };
    assert!(
        client
            .wait_enforced(request)
            .await
            .unwrap()
            .into_inner()
            .enforced
    );
    drop((client, connected));
    assert_eq!(ends(&mut process).await, Some(0));
}

/// How a process ends when it is told to.
async fn ends(process: &mut Process) -> Option<i32> {
    let pid = process.0.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    let told = Instant::now();
    loop {
        match process.0.try_wait().unwrap() {
            Some(status) => return status.code(),
            None if told.elapsed() > Duration::from_secs(8) => panic!("SIGTERM does not end it"),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_a_full_disk_costs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let process = start(directory.path(), "debug", full);
    serves_and_ends(directory.path(), process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_reader_left_costs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let process = start(directory.path(), "debug", writer);
    serves_and_ends(directory.path(), process).await;
}

/// With `trace` there is more at the start than a pipe holds (64 KiB).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_reader_is_stuck_costs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (mut reader, writer) = io::pipe().unwrap();
    let process = start(directory.path(), "trace", writer);
    serves_and_ends(directory.path(), process).await;
    let mut text = Vec::new();
    reader.read_to_end(&mut text).unwrap();
    assert!(text.len() >= 60_000, "{} bytes filled the pipe", text.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_at_the_start_is_an_exit_code_wherever_the_log_is() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("data"), "no folder").unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut process = start(directory.path(), "info", full);
    assert_eq!(process.0.wait().unwrap().code(), Some(1));
}
