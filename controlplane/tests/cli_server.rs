//! The real `sallyport` binary against a small fake of the control plane: what is sent, what is printed, which code.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt as _};
use sallyport_proto::wire::{
    change::Action,
    edit::Op,
    node_status::State,
    policy_service_server::{PolicyService, PolicyServiceServer},
    watch_event::Event,
    *,
};
use serde_json::Value;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Request, Response, Status, transport::Server};

/// Objects in a map, pages of two, and one node that lags while `namespace/stuck` exists.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Store>>);

#[derive(Default)]
struct Store {
    objects: BTreeMap<(i32, String, String), Object>,
    history: Vec<WatchResponse>,
}

type Answer<T> = Result<Response<T>, Status>;

fn key(reference: &ObjectRef) -> (i32, String, String) {
    let ObjectRef {
        kind,
        namespace,
        name,
    } = reference.clone();
    (kind, namespace, name)
}

/// Reads one YAML document, which may be a List.
fn read(manifest: &Manifest) -> Result<Vec<(ObjectRef, String)>, Status> {
    let value: Value = serde_saphyr::from_str(&manifest.text)
        .map_err(|_| Status::invalid_argument(format!("{}: not YAML", manifest.source)))?;
    let items = match value["kind"].as_str() {
        Some("List") => value["items"].as_array().cloned().unwrap_or_default(),
        _ => vec![value],
    };
    let object = |item: Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let metadata = &item["metadata"];
        let kind = match item["kind"].as_str() {
            Some("Namespace") => Kind::Namespace,
            Some("NetworkPolicy") => Kind::NetworkPolicy,
            Some("Pod") => Kind::Pod,
            _ => {
                let source = &manifest.source;
                let text = format!("2 problems:\n{source}: kind: unknown\n{source}: spec: missing");
                return Err(Status::invalid_argument(text));
            }
        };
        let namespace = match kind {
            Kind::Namespace => String::new(),
            _ => text(&metadata["namespace"]).unwrap_or("default".to_owned()),
        };
        let reference = ObjectRef {
            kind: kind.into(),
            namespace,
            name: text(&metadata["name"]).unwrap_or_default(),
        };
        Ok((reference, item.to_string()))
    };
    items.into_iter().map(object).collect()
}

impl Store {
    fn revision(&self) -> u64 {
        self.history.len() as u64
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        let stuck = self.objects.keys().any(|(_, _, name)| name == "stuck");
        let node = |name: &str, stuck: bool| NodeStatus {
            name: name.to_owned(),
            state: if stuck {
                State::Refusing
            } else {
                State::Enforcing
            }
            .into(),
            enforced_revision: self.revision() - u64::from(stuck),
            pending_revision: if stuck { self.revision() } else { 0 },
            reason: if stuck { "no memory" } else { "" }.to_owned(),
            since_ms: 5_000,
            version: "0.1.0".to_owned(),
            endpoints: 2,
        };
        vec![node("node-a", false), node("node-b", stuck)]
    }

    fn apply(&mut self, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        if request
            .expected_revision
            .is_some_and(|expected| expected != self.revision())
        {
            return Err(Status::failed_precondition(format!(
                "the revision is {}",
                self.revision()
            )));
        }
        let (revision, mut objects) = (self.revision() + 1, self.objects.clone());
        let (mut changes, mut events) = (Vec::new(), Vec::new());
        for edit in request.edits {
            let (puts, deletes) = match edit.op.expect("an op") {
                Op::Put(manifest) => (read(&manifest)?, vec![]),
                Op::DeleteManifest(manifest) => (vec![], read(&manifest)?),
                Op::Delete(reference) => (vec![], vec![(reference, String::new())]),
            };
            for (reference, manifest) in puts {
                let object = Object {
                    r#ref: Some(reference.clone()),
                    manifest,
                    revision,
                };
                let action = match objects.insert(key(&reference), object.clone()) {
                    None => Action::Created,
                    Some(old) if old.manifest == object.manifest => Action::Unchanged,
                    Some(_) => Action::Configured,
                };
                changes.push(Change {
                    r#ref: Some(reference),
                    action: action.into(),
                });
                events.push(WatchEvent {
                    event: Some(Event::Put(object)),
                });
            }
            for (reference, _) in deletes {
                if objects.remove(&key(&reference)).is_none() {
                    return Err(Status::not_found(format!("{} not found", reference.name)));
                }
                events.push(WatchEvent {
                    event: Some(Event::Delete(reference.clone())),
                });
                changes.push(Change {
                    r#ref: Some(reference),
                    action: Action::Deleted.into(),
                });
            }
        }
        let unchanged = changes
            .iter()
            .all(|change| change.action() == Action::Unchanged);
        if !request.dry_run && !unchanged {
            self.objects = objects;
            self.history.push(WatchResponse {
                revision,
                events,
                bookmark: false,
            });
        }
        Ok(ApplyResponse {
            revision: self.revision(),
            changes,
        })
    }
}

#[tonic::async_trait]
impl PolicyService for Fake {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let mut store = self.0.lock().expect("no panic");
        store.apply(request.into_inner()).map(Response::new)
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let reference = request.into_inner().r#ref.expect("a reference");
        let object = self
            .0
            .lock()
            .expect("no panic")
            .objects
            .get(&key(&reference))
            .cloned();
        let missing = || Status::not_found(format!("\"{}\" not found", reference.name));
        Ok(Response::new(GetResponse {
            object: Some(object.ok_or_else(missing)?),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListResponse> {
        let request = request.into_inner();
        let start: usize = request.page_token.parse().unwrap_or(0);
        let store = self.0.lock().expect("no panic");
        let wanted = |object: &&Object| {
            let reference = object.r#ref.as_ref().expect("set by apply");
            reference.kind == request.kind
                && (request.namespace.is_empty() || reference.namespace == request.namespace)
        };
        let all: Vec<_> = store.objects.values().filter(wanted).cloned().collect();
        let end = all.len().min(start + 2);
        Ok(Response::new(ListResponse {
            objects: all[start..end].to_vec(),
            revision: store.revision(),
            next_page_token: if end < all.len() {
                end.to_string()
            } else {
                String::new()
            },
        }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let next = request.into_inner().after_revision as usize;
        let stream = stream::unfold((self.clone(), next), |(fake, next)| async move {
            loop {
                let found = fake.0.lock().expect("no panic").history.get(next).cloned();
                if let Some(transaction) = found {
                    return Some((Ok(transaction), (fake, next + 1)));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(Response::new(stream.boxed()))
    }

    async fn wait_enforced(
        &self,
        request: Request<WaitEnforcedRequest>,
    ) -> Answer<WaitEnforcedResponse> {
        let (request, store) = (request.into_inner(), self.0.lock().expect("no panic"));
        let nodes = store.nodes().into_iter();
        let lagging: Vec<_> = nodes.filter(|node| node.pending_revision != 0).collect();
        Ok(Response::new(WaitEnforcedResponse {
            revision: if request.revision == 0 {
                store.revision()
            } else {
                request.revision
            },
            enforced: lagging.is_empty(),
            lagging,
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let store = self.0.lock().expect("no panic");
        let (revision, nodes) = (store.revision(), store.nodes());
        Ok(Response::new(StatusResponse {
            revision,
            epoch: 1,
            nodes,
        }))
    }
}

/// A fake with its server; ends with the test.
struct ControlPlane {
    url: String,
    runtime: tokio::runtime::Runtime,
}

/// What a run left: the exit code, standard output, standard error.
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
  metadata: {name: web, namespace: prod, labels: {app: web}}
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
    use std::io::{BufRead as _, BufReader};
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
