//! What is known of every node: what it must enforce, what it said that it enforces, how it stands. The writer tells
//! it of commits, the streams of answers; it sends nothing itself.
//!
//! A commit costs as much as the nodes that it affects, and wakes only their streams.

mod entry;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sallyport_proto::{Epoch, Position, Revision, policy::NodePolicy};
use tokio::sync::{oneshot, watch};

use self::entry::Entry;
pub use self::session::{Hello, Session, SessionError, Update};

/// How a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All that it must enforce is in its kernel.
    Enforcing,
    /// Connected, and behind.
    Updating,
    /// Connected, and it refused the last update.
    Refusing,
    /// Not connected; it goes on enforcing what it has.
    Disconnected,
    /// Never seen by this process.
    Unknown,
}

/// What is known of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The node's name.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// What it last said that it enforces.
    pub enforced: Option<Position>,
    /// The first revision that changes what it must enforce and that it does not enforce.
    pub pending: Option<Revision>,
    /// How long it has been standing so.
    pub since: Duration,
    /// Why it refuses; empty when it does not.
    pub reason: String,
    /// Its enforcer's version; empty when it was never seen.
    pub version: String,
    /// How many endpoints it must judge traffic of.
    pub endpoints: usize,
}

/// What a commit means for the nodes.
#[derive(Clone, Debug, Default)]
pub struct Affected {
    /// The nodes that are new or whose policy changed, with their policy.
    pub policies: Vec<(String, Arc<NodePolicy>)>,
    /// The nodes that are gone.
    pub gone: Vec<String>,
}

/// Every node.
#[derive(Debug)]
pub struct Nodes {
    table: Mutex<Table>,
    /// Moves whenever a node may hold back less than before.
    progress: watch::Sender<()>,
}

#[derive(Debug)]
struct Table {
    epoch: Epoch,
    revision: Revision,
    entries: BTreeMap<String, Entry>,
    /// The nodes that lag, by the first revision that they lack.
    pending: BTreeSet<(Revision, String)>,
    sessions: u64,
    /// Whether the index of those that lag changed since the last release.
    moved: bool,
}

impl Nodes {
    /// The nodes as of a revision, all of them unknown so far.
    pub fn new(
        epoch: Epoch,
        revision: Revision,
        policies: impl IntoIterator<Item = (String, Arc<NodePolicy>)>,
    ) -> Nodes {
        let mut table = Table {
            epoch,
            revision,
            entries: BTreeMap::new(),
            pending: BTreeSet::new(),
            sessions: 0,
            moved: false,
        };
        for (name, policy) in policies {
            // Which revision made the policy what it is was forgotten: perhaps the first.
            table.entries.insert(name.clone(), Entry::new());
            table.update(&name, |entry, _| entry.changed(1, policy));
        }
        Nodes {
            table: Mutex::new(table),
            progress: watch::Sender::new(()),
        }
    }

    /// A transaction was committed. Every one has to be told, in order.
    pub fn commit(&self, revision: Revision, affected: Affected) {
        let mut table = self.lock();
        table.revision = revision;
        for (name, policy) in affected.policies {
            table.entries.entry(name.clone()).or_insert_with(Entry::new);
            table.update(&name, |entry, _| entry.changed(revision, policy));
        }
        for name in affected.gone {
            table.forget(&name);
        }
        self.release(table);
    }

    /// The state of every node, by name.
    pub fn status(&self) -> Vec<Status> {
        let table = self.lock();
        table
            .entries
            .iter()
            .map(|(name, entry)| entry.status(name))
            .collect()
    }

    /// The nodes that do not enforce a revision yet.
    pub fn lagging(&self, revision: Revision) -> Vec<Status> {
        let table = self.lock();
        let lagging = table
            .pending
            .range(..(revision.saturating_add(1), String::new()));
        let names: BTreeSet<_> = lagging.map(|(_, name)| name).collect();
        names
            .into_iter()
            .map(|name| table.entries[name].status(name))
            .collect()
    }

    /// Whether every node that must enforces a revision.
    pub fn enforce(&self, revision: Revision) -> bool {
        self.lock()
            .pending
            .first()
            .is_none_or(|(first, _)| *first > revision)
    }

    /// Returns once every node that must enforces a revision.
    pub async fn enforced(&self, revision: Revision) {
        let mut progress = self.progress.subscribe();
        while !self.enforce(revision) {
            // The sender is ours, so that this ends only with a change.
            let _ = progress.changed().await;
        }
    }

    /// A node opens a stream. A stream that it had is ended.
    pub fn connect(self: &Arc<Self>, hello: Hello) -> Result<Session, SessionError> {
        let mut table = self.lock();
        let (epoch, revision) = (table.epoch, table.revision);
        if !table.entries.contains_key(&hello.name) {
            return Err(SessionError::Unregistered { name: hello.name });
        }
        if let Some(position) = hello
            .position
            .filter(|at| (at.epoch, at.revision) > (epoch, revision))
        {
            return Err(SessionError::Ahead {
                name: hello.name,
                node: (position.epoch, position.revision),
                ours: (epoch, revision),
            });
        }
        table.sessions += 1;
        let id = table.sessions;
        let (end, ended) = oneshot::channel();
        let name = hello.name.clone();
        let wake = table.update(&name, |entry, now| entry.connected(id, end, hello, now));
        self.release(table);
        let wake = wake.expect("the node was looked up under the same lock");
        Ok(Session::new(self.clone(), name, id, wake, ended))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics with the lock held; if it did, each entry would still be one that was.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back, and wakes those who wait for nodes if one moved.
    fn release(&self, mut table: MutexGuard<'_, Table>) {
        let moved = std::mem::take(&mut table.moved);
        drop(table);
        if moved {
            self.progress.send_replace(());
        }
    }

    /// Changes an entry on behalf of a session, unless another one took its place.
    fn with_session<T>(
        &self,
        name: &str,
        id: u64,
        change: impl FnOnce(&mut Entry, Now) -> T,
    ) -> Result<T, SessionError> {
        let mut table = self.lock();
        match table.entries.get(name) {
            None => Err(SessionError::Removed {
                name: name.to_owned(),
            }),
            Some(entry) if !entry.is_session(id) => Err(SessionError::Replaced {
                name: name.to_owned(),
            }),
            Some(_) => {
                let result = table.update(name, change);
                self.release(table);
                Ok(result.expect("the node was looked up under the same lock"))
            }
        }
    }
}

/// Where the control plane is.
#[derive(Clone, Copy, Debug)]
struct Now {
    epoch: Epoch,
    revision: Revision,
}

impl Table {
    /// Changes an entry, and keeps the index of those that lag.
    fn update<T>(&mut self, name: &str, change: impl FnOnce(&mut Entry, Now) -> T) -> Option<T> {
        let now = Now {
            epoch: self.epoch,
            revision: self.revision,
        };
        let entry = self.entries.get_mut(name)?;
        let before = entry.pending();
        let result = change(entry, now);
        entry.settle(Instant::now());
        let after = entry.pending();
        if before != after {
            self.moved = true;
            let index = |revision| (revision, name.to_owned());
            before.map(|revision| self.pending.remove(&index(revision)));
            after.map(|revision| self.pending.insert(index(revision)));
        }
        Some(result)
    }

    /// Forgets a node. Its stream is told by the end of its channel.
    fn forget(&mut self, name: &str) {
        if let Some(mut entry) = self.entries.remove(name) {
            if let Some(pending) = entry.pending() {
                self.pending.remove(&(pending, name.to_owned()));
                self.moved = true;
            }
            entry.end(SessionError::Removed {
                name: name.to_owned(),
            });
        }
    }
}
