//! A watch: every transaction after a revision, in order, each once, and bookmarks when nothing happens. It reads the
//! published history at its client's pace, so that no client holds up another, or the writer.

use std::{sync::Arc, time::Duration};

use sallyport_proto::{Revision, wire::WatchResponse};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::failure;
use crate::{history::Compacted, writer::Published};

/// Transactions that are made ready before the client takes the first.
const AHEAD: usize = 16;

type Sender = mpsc::Sender<Result<WatchResponse, Status>>;

/// Starts a watch, unless what it asks for is gone or has not come yet.
pub(super) fn start(
    mut published: watch::Receiver<Arc<Published>>,
    after: Revision,
    bookmark_interval: Duration,
    mut stopping: watch::Receiver<bool>,
) -> Result<ReceiverStream<Result<WatchResponse, Status>>, Status> {
    let state = published.borrow_and_update().clone();
    if after > state.revision {
        return Err(failure::future(after, state.revision));
    }
    drop(state.history.after(after).map_err(compacted)?);
    let (client, stream) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let end = tokio::select! {
            end = follow(published, state, after, bookmark_interval, &client) => end,
            _ = stopping.wait_for(|&stopping| stopping) => failure::stopping(),
            () = client.closed() => return,
        };
        // A client that is gone does not need to know.
        let _ = client.send(Err(end)).await;
    });
    Ok(ReceiverStream::new(stream))
}

fn compacted(compacted: Compacted) -> Status {
    Status::out_of_range(compacted.to_string())
}

/// Sends until something ends it.
async fn follow(
    mut published: watch::Receiver<Arc<Published>>,
    mut state: Arc<Published>,
    mut sent: Revision,
    bookmark_interval: Duration,
    client: &Sender,
) -> Status {
    loop {
        sent = match send_after(&state, sent, client).await {
            Ok(sent) => sent,
            Err(end) => return end,
        };
        // An idle watch is to keep no old state alive.
        drop(state);
        loop {
            match timeout(bookmark_interval, published.changed()).await {
                Ok(Ok(())) => break,
                Ok(Err(_)) => return failure::stopping(),
                Err(_) => {
                    let bookmark = WatchResponse {
                        revision: sent,
                        events: Vec::new(),
                        bookmark: true,
                    };
                    if client.send(Ok(bookmark)).await.is_err() {
                        return failure::stopping();
                    }
                }
            }
        }
        state = published.borrow_and_update().clone();
    }
}

/// Sends the transactions after a revision, and returns the last one's.
async fn send_after(
    state: &Published,
    sent: Revision,
    client: &Sender,
) -> Result<Revision, Status> {
    for committed in state.history.after(sent).map_err(compacted)? {
        let response = WatchResponse::from(&**committed);
        client
            .send(Ok(response))
            .await
            .map_err(|_| failure::stopping())?;
    }
    Ok(state.revision)
}
