//! The history, for operators: the recent transactions, the rollback to one of them, and the whole state, for a backup.
//! Reads the published state; a rollback is a transaction like any other.

use std::sync::Arc;

use prost::Message as _;
use sallyport_policy::Revision;
use sallyport_proto::wire::{
    self, BackupHeader, BackupResponse, HistoryRequest, HistoryResponse, RollbackRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{convert, failure};
use crate::{
    nodes::UnreachablePolicy,
    rollback::{self, RollbackError},
    writer::{Applied, ApplyError, Published, Submission, Writer},
};

/// The number of transactions in an answer if the request names none.
const USUAL: usize = 20;

/// The most transactions in an answer, and their most bytes: clients take 4 MiB.
const MOST: usize = 1_000;
const MOST_BYTES: usize = 3 << 20;

/// The most attempts to decide a rollback while others commit first.
const ATTEMPTS: usize = 100;

/// The most bytes of objects in a part of a backup.
const PART: usize = 1 << 20;

/// Parts that are made ready before the client takes the first.
const AHEAD: usize = 4;

/// The recent transactions, the latest first.
pub(super) fn history(state: &Published, request: &HistoryRequest) -> HistoryResponse {
    let limit = match request.limit {
        0 => USUAL,
        limit => (limit as usize).min(MOST),
    };
    let before = match request.before_revision {
        0 => u64::MAX,
        before => before,
    };
    let (mut transactions, mut size) = (Vec::new(), 0);
    for committed in state.history.before(Revision(before)).take(limit) {
        let transaction = wire::Transaction::from(&**committed);
        size += transaction.encoded_len();
        if size > MOST_BYTES && !transactions.is_empty() {
            break;
        }
        transactions.push(transaction);
    }
    HistoryResponse {
        transactions,
        oldest_revision: state.history.oldest().0,
        revision: state.revision.0,
    }
}

/// Rolls back, in a new transaction. Its edits are decided on the current state, and again if that state moves on
/// meanwhile.
pub(super) async fn roll_back(
    writer: &Writer,
    request: RollbackRequest,
) -> Result<Applied, Status> {
    let RollbackRequest {
        revision,
        kinds,
        expected_revision,
        dry_run,
        unreachable,
    } = request;
    let unreachable = wire::Unreachable::try_from(unreachable)
        .map_err(|error| Status::invalid_argument(format!("unreachable: {error}")))?;
    let kinds = kinds.into_iter().map(convert::kind);
    let kinds = kinds.collect::<Result<Vec<_>, _>>();
    let kinds = kinds.map_err(Status::invalid_argument)?;
    let mut last_error = None;
    for _ in 0..ATTEMPTS {
        let state = writer.current();
        if revision > state.revision.0 {
            return Err(failure::future(Revision(revision), state.revision));
        }
        let edits = rollback::edits(&state.history, &state.cluster, Revision(revision), &kinds);
        let submission = Submission {
            edits: edits.map_err(unknown)?,
            expected_revision: Some(Revision(expected_revision.unwrap_or(state.revision.0))),
            dry_run,
            unreachable: UnreachablePolicy::from_wire(unreachable),
        };
        match writer.submit(submission).await {
            Ok(applied) => return Ok(applied),
            Err(stale @ ApplyError::Stale { .. }) if expected_revision.is_none() => {
                last_error = Some(stale);
            }
            Err(error) => return Err(failure::apply_error(&error)),
        }
    }
    let error = last_error.unwrap_or(ApplyError::Stopping);
    Err(failure::apply_error(&error))
}

fn unknown(error: RollbackError) -> Status {
    match error {
        RollbackError::Unrecorded(_) => Status::out_of_range(error.to_string()),
        RollbackError::Object { .. } => Status::invalid_argument(error.to_string()),
    }
}

/// All that a control plane has to have, at one revision. The state is kept until the client has it.
pub(super) fn backup(state: Arc<Published>) -> ReceiverStream<Result<BackupResponse, Status>> {
    let (client, stream) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let header = BackupHeader {
            epoch: state.epoch.0,
            revision: state.revision.0,
            objects: state.cluster.len() as u64,
            nodes: state
                .joined
                .iter()
                .map(|(name, membership)| (name.to_string(), membership.is_leased()))
                .collect(),
        };
        let mut part = BackupResponse {
            header: Some(header),
            objects: Vec::new(),
        };
        let mut size = 0;
        for stored in state.cluster.objects() {
            if size > PART {
                if client.send(Ok(std::mem::take(&mut part))).await.is_err() {
                    return;
                }
                size = 0;
            }
            let object = wire::Object::from(&**stored);
            size += object.encoded_len();
            part.objects.push(object);
        }
        // A client that is gone does not need to know.
        let _ = client.send(Ok(part)).await;
    });
    ReceiverStream::new(stream)
}
