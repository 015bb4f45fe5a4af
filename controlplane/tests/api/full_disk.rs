//! The real binary when its journal cannot grow: it refuses, goes on serving, and goes on when there is room again.

use std::process::{Command, Stdio};

use sallyport_proto::wire::{
    ApplyRequest, Kind, ListRequest, StatusRequest, policy_service_client::PolicyServiceClient,
};
use tonic::{Code, transport::Channel};

use crate::{
    crash::{Process, connect, socket, start},
    world::{namespace, put},
};

/// A namespace that takes 200 kB.
fn transaction(n: u32) -> ApplyRequest {
    let filler = format!("{{annotations: {{x: {}}}, name", "x".repeat(200_000));
    let text = namespace(&format!("n{n}")).replace("{name", &filler);
    ApplyRequest {
        edits: vec![put(&text)],
        ..ApplyRequest::default()
    }
}

async fn count(client: &mut PolicyServiceClient<Channel>) -> (u64, u32) {
    let revision = client
        .status(StatusRequest {})
        .await
        .unwrap()
        .into_inner()
        .revision;
    let (mut count, mut page_token) = (0, String::new());
    loop {
        let request = ListRequest {
            kind: Kind::Namespace.into(),
            page_token,
            ..ListRequest::default()
        };
        let page = client.list(request).await.unwrap().into_inner();
        count += u32::try_from(page.objects.len()).unwrap();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return (revision, count);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_and_forgets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    // No file over 5 MiB, which stops sled's in its second segment.
    let limited = "trap '' XFSZ; ulimit -S -f 10240; exec \"$@\"";
    let child = Command::new("sh")
        .args([
            "-c",
            limited,
            "sh",
            env!("CARGO_BIN_EXE_sallyport-controlplane"),
        ])
        .args(["--listen", &socket(directory), "--log-level", "error"])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let process = Process(child);
    let mut client = connect(directory).await;
    let mut done = 0;
    let refused = loop {
        match client.apply(transaction(done)).await {
            Ok(_) => done += 1,
            Err(status) => break status,
        }
        assert!(done < 100, "it never fills up");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(
        refused
            .message()
            .starts_with("nothing was changed: the journal "),
        "{refused}"
    );
    assert!(
        refused.message().ends_with("Make room and try again"),
        "{refused}"
    );
    assert_eq!(count(&mut client).await, (done.into(), done));
    let again = client.apply(transaction(done)).await.unwrap_err();
    assert_eq!(again.code(), Code::ResourceExhausted, "{again}");
    assert_eq!(count(&mut client).await, (done.into(), done));

    // Room again: it gets up without a restart.
    let pid = process.0.id().to_string();
    let lifted = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=unlimited"])
        .status()
        .unwrap();
    assert!(lifted.success());
    client.apply(transaction(done)).await.unwrap();
    done += 1;
    assert_eq!(count(&mut client).await, (done.into(), done));
    drop(process);

    let _process = start(directory, 10_000);
    let mut client = connect(directory).await;
    assert_eq!(count(&mut client).await, (done.into(), done));
}
