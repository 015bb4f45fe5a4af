//! The operators' side of the API: every call of PolicyService. Turns messages into edits and state into messages;
//! decides nothing about transactions.

mod convert;
mod edits;
mod failure;
mod list;
mod past;
mod watching;

use std::{sync::Arc, time::Duration};

use futures::stream::BoxStream;
use sallyport_policy::{NodeName, Revision};
use sallyport_proto::wire::{
    self, ApplyRequest, ApplyResponse, BackupRequest, BackupResponse, BelieveRequest,
    BelieveResponse, GetRequest, GetResponse, HistoryRequest, HistoryResponse, ListRequest,
    ListResponse, RollbackRequest, StatusRequest, StatusResponse, WaitEnforcedRequest,
    WaitEnforcedResponse, WatchRequest, WatchResponse, policy_service_server::PolicyService,
};
use tokio::{sync::watch, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

#[doc(hidden)]
pub use self::edits::read as edits;
use self::list::Listings;
pub use self::watching::Watches;
use crate::{
    contests,
    listener::Client,
    manifest::UnknownKinds,
    nodes::{self, Nodes, UnreachablePolicy},
    transaction::not_found,
    writer::{Applied, Submission, Writer},
};

/// The largest request that is read.
pub const MAX_REQUEST: usize = 64 << 20;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);

/// Serves PolicyService.
#[derive(Debug)]
pub struct Api {
    writer: Writer,
    nodes: Arc<Nodes>,
    listings: Listings,
    watches: Watches,
    stopping: watch::Receiver<bool>,
}

impl Api {
    /// An API whose long calls end when `stopping` turns true, and which counts its watches.
    pub fn new(
        writer: Writer,
        nodes: Arc<Nodes>,
        watches: Watches,
        stopping: watch::Receiver<bool>,
    ) -> Api {
        Api {
            writer,
            nodes,
            listings: Listings::default(),
            watches,
            stopping,
        }
    }
}

impl Api {
    /// Waits until a revision is enforced, or the time is over.
    async fn wait(
        &self,
        revision: Revision,
        limit_ms: u32,
    ) -> Result<WaitEnforcedResponse, Status> {
        let mut stopping = self.stopping.clone();
        let limit = or_default(limit_ms, DEFAULT_TIMEOUT);
        let enforced = tokio::select! {
            waited = timeout(limit, self.nodes.enforced(revision)) => waited.is_ok(),
            _ = stopping.wait_for(|&stopping| stopping) => return Err(failure::stopping()),
        };
        let messages = |nodes: Vec<nodes::Status>| nodes.iter().map(Into::into).collect();
        let lagging = match enforced {
            true => Vec::new(),
            false => messages(self.nodes.lagging(revision)),
        };
        Ok(WaitEnforcedResponse {
            revision: revision.0,
            enforced,
            lagging,
            passed_over: messages(self.nodes.bypassed()),
        })
    }
}

#[tonic::async_trait]
impl PolicyService for Api {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;
    type BackupStream = ReceiverStream<Result<BackupResponse, Status>>;

    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let ApplyRequest {
            edits,
            expected_revision,
            dry_run,
            enforced_within_ms,
            unreachable,
            ignore_unknown_kinds,
        } = request.into_inner();
        let unknown = match ignore_unknown_kinds {
            true => UnknownKinds::Ignore,
            false => UnknownKinds::Refuse,
        };
        let unreachable = wire::Unreachable::try_from(unreachable)
            .map_err(|error| Status::invalid_argument(format!("unreachable: {error}")))?;
        // Reading megabytes of YAML takes a while, and others are served meanwhile.
        let reading = tokio::task::spawn_blocking(move || edits::read_with(edits, unknown));
        let (edits, ignored) = reading
            .await
            .map_err(|error| Status::internal(format!("reading the manifests failed: {error}")))?
            .map_err(|problems| failure::problems(&problems))?;
        let unreachable = UnreachablePolicy::from_wire(unreachable);
        if unreachable == Some(UnreachablePolicy::Fence) {
            failure::fences_all(&self.nodes.without_leases())?;
        }
        let submission = Submission {
            edits,
            expected_revision: expected_revision.map(Revision),
            dry_run,
            unreachable,
        };
        let applied = self
            .writer
            .submit(submission)
            .await
            .map_err(|error| failure::apply_error(&error))?;
        let mut response = to_response(&applied, dry_run);
        response.ignored = ignored;
        if let Some(limit) = enforced_within_ms.filter(|_| !dry_run) {
            let waited = self.wait(applied.revision, limit).await?;
            response.enforced = Some(waited.enforced);
            response.lagging = waited.lagging;
            response.passed_over = waited.passed_over;
        }
        Ok(Response::new(response))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let key = convert::key(request.into_inner().r#ref.as_ref())?;
        let state = self.writer.current();
        let stored = state.cluster.get(&key);
        let stored = stored.ok_or_else(|| Status::not_found(not_found(key.kind, &key.name)))?;
        Ok(Response::new(GetResponse {
            object: Some((&**stored).into()),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let response = self
            .listings
            .page(&self.writer.current(), &request.into_inner())?;
        Ok(Response::new(response))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let client = request.extensions().get::<Client>();
        let client = client.and_then(|client| client.address);
        let WatchRequest {
            after_revision,
            bookmark_interval_ms,
        } = request.into_inner();
        let interval = or_default(bookmark_interval_ms, DEFAULT_BOOKMARK_INTERVAL);
        let stream = watching::start(
            &self.watches,
            client,
            self.writer.watch(),
            Revision(after_revision),
            interval,
            self.stopping.clone(),
        )?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn wait_enforced(
        &self,
        request: Request<WaitEnforcedRequest>,
    ) -> Result<Response<WaitEnforcedResponse>, Status> {
        let WaitEnforcedRequest {
            revision,
            timeout_ms,
        } = request.into_inner();
        let current = self.writer.current().revision;
        let revision = if revision == 0 {
            current
        } else {
            Revision(revision)
        };
        if revision > current {
            return Err(failure::future(revision, current));
        }
        Ok(Response::new(self.wait(revision, timeout_ms).await?))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryResponse>, Status> {
        let state = self.writer.current();
        Ok(Response::new(past::history(&state, &request.into_inner())))
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let request = request.into_inner();
        let dry_run = request.dry_run;
        let applied = past::roll_back(&self.writer, request).await?;
        Ok(Response::new(to_response(&applied, dry_run)))
    }

    async fn backup(
        &self,
        _: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        Ok(Response::new(past::backup(self.writer.current())))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let state = self.writer.current();
        Ok(Response::new(StatusResponse {
            revision: state.revision.0,
            epoch: state.epoch.0,
            nodes: self.nodes.status().iter().map(Into::into).collect(),
            rollouts: self.nodes.rollouts().iter().map(Into::into).collect(),
            trouble: self.writer.unwritable().as_ref().map(Into::into),
            turned_away: convert::strangers(&self.nodes.strangers()),
            contests: convert::contests(&contests::first(&state.cluster)),
        }))
    }

    async fn believe(
        &self,
        request: Request<BelieveRequest>,
    ) -> Result<Response<BelieveResponse>, Status> {
        let BelieveRequest { node, process } = request.into_inner();
        let belief = self.nodes.believe(&NodeName::from(node.as_str()), process);
        belief.map_err(|error| failure::belief(&error))?;
        info!(
            node,
            process = format!("{process:016x}"),
            "an administrator chose the enforcer that may have a session for the node"
        );
        Ok(Response::new(BelieveResponse {}))
    }
}

/// Converts the result of a transaction. Logs its first warning if it was committed.
fn to_response(applied: &Applied, dry_run: bool) -> ApplyResponse {
    let Applied {
        revision, warnings, ..
    } = applied;
    if let Some(first) = warnings.first().filter(|_| !dry_run) {
        warn!(
            revision = revision.0,
            warnings = warnings.len(),
            first,
            "committed a transaction with warnings"
        );
    }
    ApplyResponse {
        revision: revision.0,
        warnings: warnings.clone(),
        changes: applied.changes.iter().map(Into::into).collect(),
        ..ApplyResponse::default()
    }
}

fn or_default(millis: u32, default: Duration) -> Duration {
    match millis {
        0 => default,
        millis => Duration::from_millis(millis.into()),
    }
}
