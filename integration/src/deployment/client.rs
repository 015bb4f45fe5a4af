//! The API as a test uses it: transactions, and waiting for what becomes of them. It starts and stops nothing.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use sallyport_proto::wire::{self, policy_service_client::PolicyServiceClient};
use sallyport_testbed::reactor;
use tonic::transport::Channel;

use super::{Error, PATIENCE};

/// A client of the API that waits for answers.
#[derive(Clone)]
pub struct Client {
    service: PolicyServiceClient<Channel>,
}

/// A manifest, to be put.
pub fn put(text: impl Into<String>) -> wire::Edit {
    edit(wire::edit::Op::Put(manifest(text)))
}

/// A manifest, whose objects are to be deleted.
pub fn delete(text: impl Into<String>) -> wire::Edit {
    edit(wire::edit::Op::DeleteManifest(manifest(text)))
}

fn manifest(text: impl Into<String>) -> wire::Manifest {
    wire::Manifest {
        text: text.into(),
        source: "test".into(),
    }
}

fn edit(op: wire::edit::Op) -> wire::Edit {
    wire::Edit { op: Some(op) }
}

impl Client {
    pub(super) fn over(channel: Channel) -> Client {
        Client {
            service: PolicyServiceClient::new(channel),
        }
    }

    /// Applies edits as one transaction. Returns its revision.
    pub fn apply(&mut self, edits: Vec<wire::Edit>) -> Result<u64, Error> {
        let request = wire::ApplyRequest {
            edits,
            ..wire::ApplyRequest::default()
        };
        Ok(self.apply_request(request)?.revision)
    }

    /// Applies a request.
    pub fn apply_request(
        &mut self,
        request: wire::ApplyRequest,
    ) -> Result<wire::ApplyResponse, Error> {
        let mut service = self.service.clone();
        let response = reactor::wait(async move { service.apply(request).await })?;
        Ok(response.into_inner())
    }

    /// Whether every node that must has a revision in its kernel, or comes to have it in time.
    pub fn is_enforced_within(&mut self, revision: u64, time: Duration) -> Result<bool, Error> {
        Ok(self.enforced(revision, time)?.enforced)
    }

    fn enforced(
        &mut self,
        revision: u64,
        time: Duration,
    ) -> Result<wire::WaitEnforcedResponse, Error> {
        let request = wire::WaitEnforcedRequest {
            revision,
            timeout_ms: time.as_millis() as u32,
        };
        let mut service = self.service.clone();
        let response = reactor::wait(async move { service.wait_enforced(request).await })?;
        Ok(response.into_inner())
    }

    /// Waits until every node that must has a revision in its kernel.
    pub fn wait_enforced(&mut self, revision: u64) -> Result<(), Error> {
        let response = self.enforced(revision, PATIENCE)?;
        if response.enforced {
            return Ok(());
        }
        let lagging = response
            .lagging
            .iter()
            .map(|node| format!("{} ({})", node.name, node.reason));
        Err(Error::NotEnforced {
            revision,
            lagging: lagging.collect::<Vec<_>>().join(", "),
        })
    }

    /// Waits until one node has a revision in its kernel, whatever others have.
    pub fn wait_enforced_by(&mut self, node: &str, revision: u64) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status()?;
            let is_it = |one: &wire::NodeStatus| {
                one.name == node && !(1..=revision).contains(&one.pending_revision)
            };
            if status.nodes.iter().any(is_it) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let lagging = node.to_owned();
                return Err(Error::NotEnforced { revision, lagging });
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The status of the control plane and of its nodes.
    pub fn status(&mut self) -> Result<wire::StatusResponse, Error> {
        let mut service = self.service.clone();
        let status = reactor::wait(async move { service.status(wire::StatusRequest {}).await })?;
        Ok(status.into_inner())
    }

    /// Watches all transactions after a revision. Nothing is read before somebody reads.
    pub fn watch(
        &mut self,
        after_revision: u64,
    ) -> Result<tonic::Streaming<wire::WatchResponse>, Error> {
        let request = wire::WatchRequest {
            after_revision,
            ..wire::WatchRequest::default()
        };
        let mut service = self.service.clone();
        let watch = reactor::wait(async move { service.watch(request).await })?;
        Ok(watch.into_inner())
    }

    /// The names of all objects of a kind, as `namespace/name`.
    pub fn names(&mut self, kind: wire::Kind) -> Result<BTreeSet<String>, Error> {
        let references = self.objects(kind)?.into_iter();
        let references = references.filter_map(|object| object.r#ref);
        Ok(references
            .map(|one| format!("{}/{}", one.namespace, one.name))
            .collect())
    }

    /// All objects of a kind.
    pub fn objects(&mut self, kind: wire::Kind) -> Result<Vec<wire::Object>, Error> {
        let mut objects = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = wire::ListRequest {
                kind: kind.into(),
                page_token,
                ..wire::ListRequest::default()
            };
            let mut service = self.service.clone();
            let page = reactor::wait(async move { service.list(request).await })?.into_inner();
            objects.extend(page.objects);
            if page.next_page_token.is_empty() {
                return Ok(objects);
            }
            page_token = page.next_page_token;
        }
    }

    /// Carries out a transaction, and waits until it is enforced. Returns its revision.
    pub fn enforce(&mut self, edits: Vec<wire::Edit>) -> Result<u64, Error> {
        let revision = self.apply(edits)?;
        self.wait_enforced(revision)?;
        Ok(revision)
    }
}
