//! The acknowledgements of all nodes of a process, and the callers that wait for them. Sends nothing.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

/// The nodes' revisions, and counts of what they heard.
#[derive(Debug)]
pub(crate) struct Board {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    revisions: Vec<u64>,
    awaited: u64,
    /// The nodes that have not acknowledged what is awaited.
    missing: usize,
    counts: Counts,
}

/// The counts since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counts {
    /// Messages.
    pub(crate) messages: u64,
    /// The bytes of the messages as gRPC frames them.
    pub(crate) bytes: u64,
    /// Streams that ended without being told to.
    pub(crate) lost_streams: u64,
}

impl Board {
    pub(crate) fn new(nodes: usize) -> Board {
        Board {
            state: Mutex::new(State {
                revisions: vec![0; nodes],
                ..State::default()
            }),
            moved: Notify::new(),
        }
    }

    /// Counts a message to a node, of so many bytes.
    pub(crate) fn count_message(&self, bytes: usize) {
        let mut state = self.lock();
        state.counts.messages += 1;
        state.counts.bytes += bytes as u64;
    }

    /// A stream ended. Returns how many have, with it.
    pub(crate) fn lost_stream(&self) -> u64 {
        let mut state = self.lock();
        state.counts.lost_streams += 1;
        state.counts.lost_streams
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// A node acknowledged a revision.
    pub(crate) fn acked(&self, node: usize, revision: u64) {
        let mut state = self.lock();
        let awaited = state.awaited;
        let before = std::mem::replace(&mut state.revisions[node], revision);
        if before < awaited && revision >= awaited {
            state.missing -= 1;
            if state.missing == 0 {
                self.moved.notify_one();
            }
        }
    }

    /// Returns once every node has acknowledged a revision, or a later one. One waits at a time.
    pub(crate) async fn all_acked(&self, revision: u64) {
        {
            let mut state = self.lock();
            state.awaited = revision;
            state.missing = state.revisions.iter().filter(|&&at| at < revision).count();
        }
        while self.lock().missing > 0 {
            self.moved.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while holding it")
    }
}
