//! A watch: every transaction after a revision, in order, each once, and bookmarks when nothing happens. It reads the
//! published history when its client takes what comes, and makes nothing ready before: a client that does not read
//! costs next to nothing, and holds up neither another nor the writer. A client that falls behind the kept history gets
//! an error that asks it to list and to watch from there.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{Stream, stream};
use sallyport_policy::Revision;
use sallyport_proto::wire::WatchResponse;
use tokio::{sync::watch, time::timeout};
use tonic::Status;

use super::failure;
use crate::{history::Compacted, writer::Published};

/// The most watches of one client, by its address, and of all.
const OF_ONE: usize = 1_000;
const IN_ALL: usize = 10_000;

/// The number of open watches by client address. Clients on a unix socket have no address.
#[derive(Clone, Debug, Default)]
pub struct Watches(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    counts: Mutex<HashMap<Option<IpAddr>, usize>>,
    refused: AtomicU64,
}

/// The permit of one watch, which its drop returns.
#[derive(Debug)]
struct WatchPermit {
    watches: Watches,
    client: Option<IpAddr>,
}

impl Watches {
    /// The number of open watches.
    pub fn open(&self) -> u64 {
        self.counts().values().sum::<usize>() as u64
    }

    /// The watches that were refused since the start: there were too many.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Option<IpAddr>, usize>> {
        // Nothing panics with the lock held.
        let counts = self.0.counts.lock();
        counts.unwrap_or_else(PoisonError::into_inner)
    }

    /// Acquires a permit, unless the client or the server has too many watches.
    fn acquire(&self, client: Option<IpAddr>) -> Result<WatchPermit, Status> {
        let mut counts = self.counts();
        let all: usize = counts.values().sum();
        let of_client = counts.entry(client).or_default();
        let too_many = |whose: &str, most| {
            self.0.refused.fetch_add(1, Relaxed);
            Status::resource_exhausted(format!(
                "there are {most} watches {whose}, the limit: end some watches, or let several readers share one"
            ))
        };
        if *of_client >= OF_ONE {
            return Err(too_many("of this client", OF_ONE));
        }
        if all >= IN_ALL {
            return Err(too_many("in all", IN_ALL));
        }
        *of_client += 1;
        Ok(WatchPermit {
            watches: self.clone(),
            client,
        })
    }
}

impl Drop for WatchPermit {
    fn drop(&mut self) {
        let mut counts = self.watches.counts();
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

/// The position of a watch.
struct Follower {
    published: watch::Receiver<Arc<Published>>,
    stopping: watch::Receiver<bool>,
    bookmark_interval: Duration,
    sent: Revision,
    _permit: WatchPermit,
}

/// Starts a client's watch, unless what it asks for is gone or has not come yet.
pub(super) fn start(
    watches: &Watches,
    client: Option<IpAddr>,
    published: watch::Receiver<Arc<Published>>,
    after: Revision,
    bookmark_interval: Duration,
    stopping: watch::Receiver<bool>,
) -> Result<impl Stream<Item = Result<WatchResponse, Status>> + Send + use<>, Status> {
    {
        let state = published.borrow();
        if after > state.revision {
            return Err(failure::future(after, state.revision));
        }
        drop(state.history.after(after).map_err(compacted)?);
    }
    let follower = Follower {
        published,
        stopping,
        bookmark_interval,
        sent: after,
        _permit: watches.acquire(client)?,
    };
    Ok(stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Ok(response) => Some((Ok(response), Some(follower))),
            Err(end) => Some((Err(end), None)),
        }
    }))
}

impl Follower {
    /// The next transaction, or a bookmark.
    async fn next(&mut self) -> Result<WatchResponse, Status> {
        loop {
            if *self.stopping.borrow() {
                return Err(failure::stopping());
            }
            // A watch that waits is to keep no old state alive.
            let next = {
                let state = self.published.borrow_and_update();
                let mut later = state.history.after(self.sent).map_err(compacted)?;
                later.next().cloned()
            };
            if let Some(committed) = next {
                self.sent = committed.revision;
                return Ok(WatchResponse::from(&*committed));
            }
            tokio::select! {
                changed = timeout(self.bookmark_interval, self.published.changed()) => match changed {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(failure::stopping()),
                    Err(_) => {
                        return Ok(WatchResponse {
                            revision: self.sent.0,
                            events: Vec::new(),
                            bookmark: true,
                        });
                    }
                },
                _ = self.stopping.changed() => {}
            }
        }
    }
}

fn compacted(compacted: Compacted) -> Status {
    Status::out_of_range(compacted.to_string())
}
