//! The real `sallyport` binary against a small fake of the control plane: what is sent, what is printed, which code.

mod fake;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use sallyport_proto::wire::policy_service_server::PolicyServiceServer;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::Server;

use crate::fake::Fake;

/// A fake with its server; ends with the test.
struct ControlPlane {
    url: String,
    runtime: tokio::runtime::Runtime,
}

/// A finished run: the exit code, standard output, standard error.
#[derive(Debug)]
struct Run(i32, String, String);

impl ControlPlane {
    fn start() -> ControlPlane {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let service = PolicyServiceServer::new(Fake::default());
        let server = Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        ControlPlane { url, runtime }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sallyport"));
        command
            .args(line.split(' '))
            .env("SALLYPORT_SERVER", &self.url);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str, input: &str) -> Run {
        let mut child = self.command(line).spawn().expect("the binary starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(input.as_bytes()).expect("it reads");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Run(
            output.status.code().expect("no signal"),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// Runs a command that must succeed, and returns what it printed.
    fn ok(&self, line: &str, input: &str) -> String {
        let Run(code, stdout, stderr) = self.run(line, input);
        assert_eq!((code, stderr.as_str()), (0, ""), "{line}\n{stdout}");
        stdout
    }
}

const CLUSTER: &str = r#"
kind: List
items:
- {kind: Namespace, metadata: {name: default}}
- {kind: Namespace, metadata: {name: prod, labels: {team: payments}}}
- {kind: Namespace, metadata: {name: test}}
- kind: NetworkPolicy
  metadata: {name: demo-policy}
  spec:
    podSelector: {matchLabels: {app: web}}
    ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}]
      ports: [{port: 80}]
- kind: Pod
  metadata: {name: web, namespace: prod, uid: 7a0f7d4a-1b53, labels: {app: web}}
  spec: {nodeName: node-a}
  status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
"#;

#[test]
fn apply_get_and_apply_again() {
    let plane = ControlPlane::start();
    assert_eq!(
        plane.ok("apply -f -", CLUSTER),
        "namespace/default created\nnamespace/prod created\nnamespace/test created\n\
         networkpolicy/default/demo-policy created\npod/prod/web created\nrevision 1\n"
    );
    assert_eq!(
        plane.ok("get all -A", ""),
        "NAME               LABELS\n\
         namespace/default  <none>\n\
         namespace/prod     team=payments\n\
         namespace/test     <none>\n\
         \n\
         NAMESPACE  NAME                       POD-SELECTOR  POLICY-TYPES  REVISION\n\
         default    networkpolicy/demo-policy  app=web       Ingress       1\n\
         \n\
         NAMESPACE  NAME     NODE    ADDRESSES         LABELS\n\
         prod       pod/web  node-a  10.0.0.1,fd00::1  app=web\n"
    );
    assert_eq!(
        plane.ok("get netpol -o wide", ""),
        "NAME         POD-SELECTOR  POLICY-TYPES  REVISION  INGRESS                    EGRESS\n\
         demo-policy  app=web       Ingress       1         pod(app=client) on 80/TCP  -\n"
    );
    for form in ["yaml", "json"] {
        let stored = plane.ok(&format!("get all -A -o {form}"), "");
        let again = plane.ok("apply -f -", &stored);
        assert!(
            again.ends_with("pod/prod/web unchanged\nrevision 1 (as before)\n"),
            "{again}"
        );
    }
    let names = plane.ok("get ns,netpol -o name", "");
    let expected =
        "namespace/default\nnamespace/prod\nnamespace/test\nnetworkpolicy/default/demo-policy\n";
    assert_eq!(names, expected);
    let one = plane.ok("get pod/prod/web -o yaml", "");
    assert!(
        one.starts_with("kind: Pod\nmetadata:\n  labels:\n    app: web\n"),
        "{one}"
    );
    assert!(one.contains("\n  uid: 7a0f7d4a-1b53\n"), "{one}");

    let Run(code, stdout, stderr) = plane.run("get wl", "");
    let found = (code, stdout.as_str(), stderr.as_str());
    assert_eq!(found, (0, "", "No objects found in namespace default.\n"));
}

#[test]
fn refusals_have_their_codes() {
    let plane = ControlPlane::start();
    plane.ok("apply -f -", CLUSTER);
    for (line, input, expected, message) in [
        ("get netpol none", "", 1, "error: \"none\" not found\n"),
        (
            "apply -f -",
            "kind: X",
            1,
            "error: 2 problems:\n       -: kind: unknown\n       -: spec: missing\n",
        ),
        (
            "apply -f - --expected-revision 7",
            CLUSTER,
            5,
            "error: the revision is 1\n",
        ),
        (
            "delete ns test --expected-revision 0",
            "",
            5,
            "error: the revision is 1\n",
        ),
        (
            "apply -f - --on-unreachable fence",
            CLUSTER,
            1,
            "error: node \"node-a\" has no leases\n",
        ),
        (
            "apply -f -",
            "",
            1,
            "error: the files of -f hold no objects: nothing was changed\n",
        ),
        (
            "apply -f - --dry-run",
            "{kind: List, items: []}",
            1,
            "error: the files of -f hold no objects: nothing was changed\n",
        ),
        (
            "delete -f -",
            "# nothing",
            1,
            "error: the files of -f hold no objects: nothing was changed\n",
        ),
        (
            "label ns prod team=x",
            "",
            1,
            "error: label `team` already has the value `payments`: give --overwrite to change it\n",
        ),
    ] {
        let Run(code, stdout, stderr) = plane.run(line, input);
        assert_eq!(
            (code, stdout.as_str(), stderr.as_str()),
            (expected, "", message),
            "{line}"
        );
    }
    let dry = plane.ok(
        "delete -f - --dry-run",
        "{kind: Namespace, metadata: {name: test}}",
    );
    assert_eq!(
        dry,
        "namespace/test deleted (dry run)\nrevision 1 (as before)\n"
    );
    let done = plane.ok("delete ns test prod", "");
    assert_eq!(
        done,
        "namespace/test deleted\nnamespace/prod deleted\nrevision 2\n"
    );
}

#[test]
fn labels_are_edited_in_place() {
    let plane = ControlPlane::start();
    plane.ok("apply -f -", CLUSTER);
    let labelled = plane.ok("label pod web -n prod tier=1 app-", "");
    assert_eq!(labelled, "pod/prod/web labeled\nrevision 2\n");
    let pods = plane.ok("get pod web -n prod", "");
    assert!(pods.ends_with("10.0.0.1,fd00::1  tier=1\n"), "{pods}");
    let again = plane.ok("label pod/prod/web tier=1", "");
    assert_eq!(
        again,
        "pod/prod/web not labeled (it is so already)\nrevision 2 (as before)\n"
    );
}

#[test]
fn waiting_ends_with_all_nodes_or_with_4() {
    let plane = ControlPlane::start();
    let done = plane.ok("apply -f - --wait", CLUSTER);
    let (_, last) = done.trim_end().rsplit_once('\n').expect("lines");
    assert!(
        last.starts_with("enforced on 2 nodes in ") && last.ends_with('s'),
        "{last}"
    );
    assert_eq!(plane.ok("wait", ""), "revision 1 enforced on 2 nodes\n");

    let stuck = "{kind: Namespace, metadata: {name: stuck}}";
    let Run(code, stdout, stderr) = plane.run("apply -f - --wait --timeout 1s", stuck);
    assert_eq!(
        (code, stdout.as_str()),
        (4, "namespace/stuck created\nrevision 2\n")
    );
    let expected = "error: timed out after 1s waiting for revision 2: 1 node lags\n       \
                    node-b: refusing for 5s, enforces revision 1; no memory\n";
    assert_eq!(stderr, expected);
    assert_eq!(plane.run("wait --revision 2", "").0, 4);
    assert_eq!(
        plane.ok("status", ""),
        "revision 2, epoch 1\n\n\
         NODE    STATE      ENFORCED  LAG  SINCE  VERSION  ENDPOINTS  REASON\n\
         node-a  enforcing  2         0    5s     0.1.0    2\n\
         node-b  refusing   1         1    5s     0.1.0    2          no memory\n"
    );
}

#[test]
fn a_watch_shows_what_is_there_and_what_comes() {
    let plane = ControlPlane::start();
    plane.ok("apply -f -", CLUSTER);
    let mut child = plane
        .command("get ns --watch -o name")
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    for name in ["default", "prod", "test"] {
        assert_eq!(next(), format!("created namespace/{name}"));
    }
    plane.ok("label ns test a=b", "");
    assert_eq!(next(), "configured namespace/test");
    plane.ok("delete ns test", "");
    assert_eq!(next(), "deleted namespace/test");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn a_unix_socket_is_an_address_too() {
    let mut plane = ControlPlane::start();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("api.sock");
    let _context = plane.runtime.enter();
    let socket = tokio::net::UnixListener::bind(&path).expect("a socket");
    let server = Server::builder().add_service(PolicyServiceServer::new(Fake::default()));
    plane
        .runtime
        .spawn(server.serve_with_incoming(UnixListenerStream::new(socket)));
    plane.url = format!("unix://{}", path.display());
    assert_eq!(plane.ok("wait", ""), "revision 0 enforced on 2 nodes\n");
}

#[test]
fn a_backup_that_ends_early_replaces_no_file() {
    let plane = ControlPlane::start();
    plane.ok("apply -f -", "{kind: Namespace, metadata: {name: a}}");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("backup");
    let line = format!("journal backup {}", file.display());
    let expected = format!("{}: 1 objects, revision 1, epoch 1\n", file.display());
    assert_eq!(plane.ok(&line, ""), expected);
    let whole = std::fs::read(&file).expect("a backup");

    plane.ok("apply -f -", "{kind: Namespace, metadata: {name: cut-off}}");
    let Run(code, stdout, stderr) = plane.run(&line, "");
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    assert!(stderr.contains("the backup ended early"), "{stderr}");
    assert_eq!(std::fs::read(&file).expect("a backup"), whole);
}

/// A control plane that froze: the kernel takes connections for it, and nobody reads them.
#[test]
fn a_frozen_control_plane_is_reported_after_the_request_timeout() {
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", frozen.local_addr().expect("bound"));
    let plane = ControlPlane {
        url: url.clone(),
        runtime: tokio::runtime::Runtime::new().expect("a runtime"),
    };
    let namespace = "{kind: Namespace, metadata: {name: a}}";
    for line in [
        "status",
        "get ns",
        "get ns a",
        "get ns --watch",
        "history",
        "delete ns a",
        "rollback 1",
        "label ns a b=c",
        "wait",
        "apply -f -",
        "apply -f - --wait --timeout 60s",
        "journal backup /nonexistent/backup",
    ] {
        let started = std::time::Instant::now();
        let Run(code, stdout, stderr) =
            plane.run(&format!("{line} --request-timeout 500ms"), namespace);
        let took = started.elapsed();
        assert_eq!((code, stdout.as_str()), (3, ""), "{line}: {stderr}");
        assert!(took < std::time::Duration::from_secs(5), "{line}: {took:?}");
        let told = format!("error: no answer from the control plane at {url}: ");
        assert!(stderr.starts_with(&told), "{line}: {stderr}");
        let change = ["apply", "delete", "rollback"]
            .iter()
            .any(|word| line.starts_with(word));
        let doubt = stderr.contains("The change may have been carried out all the same");
        assert_eq!(doubt, change, "{line}: {stderr}");
    }
}
