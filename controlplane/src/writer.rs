//! The only mutator of the cluster: one thread that decides transactions in turn, journals them in groups, and only
//! then lets anyone see them. Parses nothing, sends nothing to nodes.

mod group;

use std::{
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use sallyport_policy::{Epoch, NodeName, Revision};
use sallyport_proto::object::ObjectKey;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error};

use self::group::Group;
use crate::{
    cluster::Cluster,
    compile::Compiler,
    history::{Committed, Event, History},
    journal::{Journal, JournalError, Note, Recovered},
    nodes::{Affected, Coordinator, Membership, Nodes, Settings, Start, UnreachablePolicy},
    transaction::{Change, Edit, Problem},
};

/// The number of transactions that may wait. Later callers wait for a place in the queue.
const QUEUE: usize = 1_024;

/// The published state: the last commit.
#[derive(Clone, Debug)]
pub struct Published {
    /// The last transaction.
    pub revision: Revision,
    /// The number of restores from a backup.
    pub epoch: Epoch,
    /// The cluster after the last transaction.
    pub cluster: Cluster,
    /// The recent transactions.
    pub history: History,
    /// The nodes that have joined and have not left, and whether each closes by itself when it gets no lease.
    pub joined: Arc<BTreeMap<NodeName, Membership>>,
}

/// The result of a transaction that was applied, or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision that it became; the current one if it changed nothing or was only tried.
    pub revision: Revision,
    /// The changes, one entry an object.
    pub changes: Vec<Change>,
    /// The warnings for an operator, each on one line.
    pub warnings: Vec<String>,
}

/// The journal could not be written the last time that was tried: transactions are refused.
#[derive(Clone, Debug)]
pub struct Unwritable {
    /// When it began.
    pub since: Instant,
    /// The error of the last attempt.
    pub error: Arc<JournalError>,
}

/// Why a transaction was not applied, or a note not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The transaction is invalid: all its problems.
    #[error("{}", lines(.0))]
    Problems(Vec<Problem>),
    /// The expected revision is not the current one.
    #[error(
        "the current revision is {current}, not {expected}: nothing was changed. Look at the changes and try again"
    )]
    Stale {
        /// The revision that the caller expected.
        expected: Revision,
        current: Revision,
    },
    /// The journal could not be written.
    #[error("nothing was changed: {0}")]
    Journal(Arc<JournalError>),
    /// The control plane is going down.
    #[error("the control plane is stopping: nothing was changed")]
    Stopping,
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// A transaction on its way to the writer.
#[derive(Debug)]
pub struct Submission {
    pub edits: Vec<Edit>,
    /// Refuse unless this is the current revision.
    pub expected_revision: Option<Revision>,
    /// Decide, and change nothing.
    pub dry_run: bool,
    /// The treatment of a node that does not acknowledge its revokes, if not the usual one.
    pub unreachable: Option<UnreachablePolicy>,
}

struct Queued {
    submission: Submission,
    answer: oneshot::Sender<Result<Applied, ApplyError>>,
}

enum Message {
    Transaction(Queued),
    Note(Note, oneshot::Sender<Result<(), Arc<JournalError>>>),
    /// Commit what is queued, and end.
    Stop,
}

/// The way to the writer, for all who have transactions.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Message>,
    published: watch::Receiver<Arc<Published>>,
    unwritable: watch::Receiver<Option<Unwritable>>,
}

/// The writer's thread, for who started it.
#[derive(Debug)]
pub struct Running {
    /// Ends when the writer ends; with an error when it panicked.
    pub ended: oneshot::Receiver<()>,
    queue: mpsc::Sender<Message>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    /// Starts the writer on what the journal held.
    pub fn start(
        journal: Box<dyn Journal>,
        recovered: Recovered,
        settings: Settings,
    ) -> std::io::Result<(Writer, Arc<Nodes>, Running)> {
        let Recovered {
            cluster,
            revision,
            epoch,
            history,
            settled,
            joined,
            left,
        } = recovered;
        let compiler = Compiler::new(&cluster);
        let policies = compiler
            .policies()
            .map(|(name, policy)| (NodeName::from(name), policy.clone()));
        let (publish, published) = watch::channel(Arc::new(Published {
            revision,
            epoch,
            cluster,
            history,
            joined: Arc::new(joined.clone()),
        }));
        let now_ms = now_ms();
        let ago = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms));
        let start = Start {
            epoch,
            revision,
            settled,
            joined,
            left: left
                .into_iter()
                .map(|(node, at_ms)| (node, ago(at_ms)))
                .collect(),
        };
        let coordinator = Coordinator::new(start, settings, policies, Instant::now());
        let nodes = Arc::new(Nodes::new(coordinator));
        let (queue, queued) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let (publish_unwritable, unwritable) = watch::channel(None);
        let state = State {
            journal,
            compiler,
            nodes: nodes.clone(),
            publish,
            unwritable: publish_unwritable,
        };
        let thread = thread::Builder::new()
            .name("writer".to_owned())
            .spawn(move || {
                // A panic drops `end`, which tells who started us.
                if panic::catch_unwind(AssertUnwindSafe(|| state.run(queued))).is_ok() {
                    let _ = end.send(());
                }
            })?;
        let running = Running {
            ended,
            queue: queue.clone(),
            thread,
        };
        let writer = Writer {
            queue,
            published,
            unwritable,
        };
        Ok((writer, nodes, running))
    }

    /// Submits a transaction. Returns when it is durable and visible, or refused.
    pub async fn submit(&self, submission: Submission) -> Result<Applied, ApplyError> {
        let (answer, answered) = oneshot::channel();
        let message = Message::Transaction(Queued { submission, answer });
        self.queue
            .send(message)
            .await
            .map_err(|_| ApplyError::Stopping)?;
        answered.await.map_err(|_| ApplyError::Stopping)?
    }

    /// Has something about the nodes noted in the journal. Returns when what has to be durable is.
    pub async fn note(&self, note: Note) -> Result<(), ApplyError> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .send(Message::Note(note, answer))
            .await
            .map_err(|_| ApplyError::Stopping)?;
        let noted = answered.await.map_err(|_| ApplyError::Stopping)?;
        noted.map_err(ApplyError::Journal)
    }

    /// The last committed state.
    pub fn current(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// The error of the journal, if the last attempt to write it failed.
    pub fn unwritable(&self) -> Option<Unwritable> {
        self.unwritable.borrow().clone()
    }

    /// Every committed state from now on; a state that is overtaken may be skipped.
    pub fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }
}

impl Running {
    /// Ends the writer once all that is queued is committed, and closes the journal. Blocks.
    pub fn stop(self) {
        // A writer that panicked takes nothing more.
        let _ = self.queue.blocking_send(Message::Stop);
        if self.thread.join().is_err() {
            error!("the thread that applies transactions panicked");
        }
    }
}

/// The time, in milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "operators read it; nothing is measured by it"
)]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

struct State {
    journal: Box<dyn Journal>,
    compiler: Compiler,
    nodes: Arc<Nodes>,
    publish: watch::Sender<Arc<Published>>,
    unwritable: watch::Sender<Option<Unwritable>>,
}

impl State {
    fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.blocking_recv() {
            match message {
                Message::Transaction(first) => {
                    let group = self.decide(first, &mut queue);
                    self.commit(group);
                }
                Message::Note(note, answer) => self.note(&note, answer),
                // The queue is still drained: queued transactions are committed.
                Message::Stop => queue.close(),
            }
        }
    }

    /// Decides what is queued, each on top of those before it.
    fn decide(&mut self, first: Queued, queue: &mut mpsc::Receiver<Message>) -> Group {
        let mut group = Group::on(self.publish.borrow().clone(), now_ms());
        group.decide(first);
        while !group.is_full()
            && let Ok(message) = queue.try_recv()
        {
            match message {
                Message::Transaction(next) => group.decide(next),
                Message::Note(note, answer) => self.note(&note, answer),
                Message::Stop => queue.close(),
            }
        }
        group
    }

    fn note(&mut self, note: &Note, answer: oneshot::Sender<Result<(), Arc<JournalError>>>) {
        let noted = self.journal.note(note).map_err(Arc::new);
        self.publish_unwritable(&noted);
        if let Err(error) = &noted {
            error!(%error, ?note, "cannot write a note about a node to the journal");
        } else {
            self.publish_joined(note);
        }
        // The caller may be gone.
        let _ = answer.send(noted);
    }

    /// Lets everyone see which nodes have joined.
    fn publish_joined(&self, note: &Note) {
        self.publish.send_if_modified(|published| {
            let mut joined = BTreeMap::clone(&published.joined);
            let changed = match note {
                Note::Joined { node, membership } => {
                    joined.insert(node.clone(), *membership) != Some(*membership)
                }
                Note::Left { node, .. } | Note::Forgotten { node } => joined.remove(node).is_some(),
                Note::Settled(_) => false,
            };
            if changed {
                Arc::make_mut(published).joined = Arc::new(joined);
            }
            changed
        });
    }

    /// Publishes whether the last write to the journal failed.
    fn publish_unwritable(&self, written: &Result<(), Arc<JournalError>>) {
        self.unwritable.send_if_modified(|unwritable| {
            let was = unwritable.take();
            let since = was.as_ref().map_or_else(Instant::now, |was| was.since);
            *unwritable = written.as_ref().err().map(|error| Unwritable {
                since,
                error: error.clone(),
            });
            was.is_some() || unwritable.is_some()
        });
    }

    /// Commits a group: makes it durable, then visible, then answers.
    fn commit(&mut self, group: Group) {
        let committed = group.committed();
        let appended = self.journal.append(&committed).map_err(Arc::new);
        if !committed.is_empty() {
            self.publish_unwritable(&appended);
        }
        if let Err(error) = appended {
            error!(%error, transactions = committed.len(), "refused transactions: the journal cannot be written");
            return group.refuse(&error);
        }
        for (committed, cluster, unreachable) in group.accepted() {
            self.compile(committed, cluster, unreachable);
        }
        if !committed.is_empty() {
            debug!(
                revision = group.published().revision.0,
                transactions = committed.len(),
                "committed transactions"
            );
            self.publish.send_replace(group.published());
        }
        group.answer();
    }

    /// Tells the nodes that a transaction affects, and no others.
    fn compile(
        &mut self,
        committed: &Committed,
        cluster: &Cluster,
        unreachable: Option<UnreachablePolicy>,
    ) {
        let changed: Vec<ObjectKey> = committed.events.iter().map(Event::key).cloned().collect();
        let mut affected = Affected::default();
        for (name, policy) in self.compiler.update(cluster, &changed) {
            let name = NodeName::from(name);
            match policy {
                Some(policy) => affected.policies.push((name, policy)),
                None => affected.gone.push(name),
            }
        }
        for node in &affected.gone {
            let note = Note::Forgotten { node: node.clone() };
            let noted = self.journal.note(&note).map_err(Arc::new);
            self.publish_unwritable(&noted);
            if let Err(error) = noted {
                error!(%error, "cannot write a note about a deleted node to the journal");
            }
            self.publish_joined(&note);
        }
        self.nodes.commit(committed.revision, affected, unreachable);
    }
}
