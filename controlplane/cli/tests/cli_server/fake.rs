//! A control plane in memory that keeps the promises of `policy.proto` the CLI relies on. Enforces nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt as _};
use sallyport_proto::{
    reason::{REASON, REVISION_CONFLICT},
    wire::{
        change::Action, edit::Op, node_status::State, policy_service_server::PolicyService,
        watch_event::Event, *,
    },
};
use serde_json::Value;
use tonic::{Request, Response, Status, metadata::MetadataValue};

/// Objects in a map, pages of two, and one node that lags while `namespace/stuck` exists. A backup ends early while
/// `namespace/cut-off` exists, which no real control plane does on demand.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Store>>);

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
        None if value.is_null() => vec![],
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
            troubles: Vec::new(),
            lease_over_ms: 0,
            held_revision: self.revision() - u64::from(stuck),
            ..NodeStatus::default()
        };
        vec![node("node-a", false), node("node-b", stuck)]
    }

    fn apply(&mut self, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        if request
            .expected_revision
            .is_some_and(|expected| expected != self.revision())
        {
            let mut status =
                Status::failed_precondition(format!("the revision is {}", self.revision()));
            let reason = MetadataValue::from_static(REVISION_CONFLICT);
            status.metadata_mut().insert(REASON, reason);
            return Err(status);
        }
        if request.unreachable() == Unreachable::Fence {
            return Err(Status::failed_precondition("node \"node-a\" has no leases"));
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
            ..ApplyResponse::default()
        })
    }
}

#[tonic::async_trait]
impl PolicyService for Fake {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;
    type BackupStream = BoxStream<'static, Result<BackupResponse, Status>>;

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
        let next =
            usize::try_from(request.into_inner().after_revision).expect("a place in the history");
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
            passed_over: Vec::new(),
        }))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Answer<HistoryResponse> {
        Err(Status::unimplemented(
            "the real one is asked in its own tests",
        ))
    }

    async fn rollback(&self, _: Request<RollbackRequest>) -> Answer<ApplyResponse> {
        Err(Status::unimplemented(
            "the real one is asked in its own tests",
        ))
    }

    async fn backup(&self, _: Request<BackupRequest>) -> Answer<Self::BackupStream> {
        let store = self.0.lock().expect("no panic");
        let mut objects: Vec<_> = store.objects.values().cloned().collect();
        let header = BackupHeader {
            epoch: 1,
            revision: store.revision(),
            objects: objects.len() as u64,
            ..BackupHeader::default()
        };
        if store.objects.keys().any(|(_, _, name)| name == "cut-off") {
            objects.pop();
        }
        let part = BackupResponse {
            header: Some(header),
            objects,
        };
        Ok(Response::new(stream::iter([Ok(part)]).boxed()))
    }

    async fn believe(&self, _: Request<BelieveRequest>) -> Answer<BelieveResponse> {
        Err(Status::unimplemented(
            "the real one is asked in its own tests",
        ))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let store = self.0.lock().expect("no panic");
        let (revision, nodes) = (store.revision(), store.nodes());
        Ok(Response::new(StatusResponse {
            revision,
            epoch: 1,
            nodes,
            ..StatusResponse::default()
        }))
    }
}
