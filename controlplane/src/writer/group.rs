//! The transactions that are journaled together: what each comes to on top of those before it. Touches neither journal
//! nor anything that others see.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Applied, ApplyError, Published, Queued, Submission};
use crate::{
    cluster::Cluster,
    history::Committed,
    journal::JournalError,
    nodes::UnreachablePolicy,
    transaction::{self, Outcome, Step},
};

/// A group ends here, so that the first in it does not wait for long.
const MAX_TRANSACTIONS: usize = 1_024;
const MAX_EDITS: usize = 16_384;

/// The answer to a transaction, sent once the group is durable.
pub(super) struct Decision {
    answer: oneshot::Sender<Result<Applied, ApplyError>>,
    result: Result<Applied, ApplyError>,
    /// Whether the decision builds on a transaction that is not durable yet.
    rests_on_group: bool,
}

/// Transactions that are decided, and what they lead to.
pub(super) struct Group {
    after: Published,
    decisions: Vec<Decision>,
    accepted: Vec<(Arc<Committed>, Cluster, Option<UnreachablePolicy>)>,
    edits: usize,
    /// When it is decided, in milliseconds since 1970.
    at_ms: u64,
}

impl Group {
    /// An empty group on top of what is committed.
    pub(super) fn on(published: Arc<Published>, at_ms: u64) -> Group {
        Group {
            after: Published::clone(&published),
            decisions: Vec::new(),
            accepted: Vec::new(),
            edits: 0,
            at_ms,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.decisions.len() >= MAX_TRANSACTIONS || self.edits >= MAX_EDITS
    }

    /// Decides one more.
    pub(super) fn decide(&mut self, queued: Queued) {
        let Queued { submission, answer } = queued;
        self.edits += submission.edits.len();
        let result = self.try_out(submission);
        let rests_on_group = !self.accepted.is_empty();
        self.decisions.push(Decision {
            answer,
            result,
            rests_on_group,
        });
    }

    fn try_out(&mut self, submission: Submission) -> Result<Applied, ApplyError> {
        let Submission {
            edits,
            expected_revision,
            dry_run,
            unreachable,
        } = submission;
        let current = self.after.revision;
        if let Some(expected) = expected_revision.filter(|&expected| expected != current) {
            return Err(ApplyError::Stale { expected, current });
        }
        let outcome = transaction::apply(&self.after.cluster, edits, current.next());
        let Outcome {
            cluster,
            changes,
            committed,
            warnings,
            removal,
        } = outcome.map_err(ApplyError::Problems)?;
        let last = committed.map(|committed| Step { cluster, committed });
        let steps = removal.into_iter().chain(last);
        for step in steps.filter(|_| !dry_run) {
            let committed = Arc::new(Committed {
                at_ms: Some(self.at_ms),
                ..step.committed
            });
            self.after.revision = committed.revision;
            self.after.cluster = step.cluster.clone();
            self.after.history.push(committed.clone());
            self.accepted.push((committed, step.cluster, unreachable));
        }
        Ok(Applied {
            revision: self.after.revision,
            changes,
            warnings,
        })
    }

    /// The transactions that change something, in order.
    pub(super) fn committed(&self) -> Vec<Arc<Committed>> {
        self.accepted
            .iter()
            .map(|(committed, ..)| committed.clone())
            .collect()
    }

    /// The same, each with the cluster after it, and what becomes of it when a node cannot be reached.
    pub(super) fn accepted(
        &self,
    ) -> impl Iterator<Item = (&Committed, &Cluster, Option<UnreachablePolicy>)> {
        self.accepted
            .iter()
            .map(|(committed, cluster, unreachable)| (&**committed, cluster, *unreachable))
    }

    /// The state after the whole group.
    pub(super) fn published(&self) -> Arc<Published> {
        Arc::new(self.after.clone())
    }

    /// Answers each transaction with its result.
    pub(super) fn answer(self) {
        for decision in self.decisions {
            // The caller may be gone.
            let _ = decision.answer.send(decision.result);
        }
    }

    /// The group did not become durable. Every transaction decided on top of it gets that error, even a refused one.
    pub(super) fn refuse(self, error: &Arc<JournalError>) {
        for decision in self.decisions {
            let _ = decision.answer.send(match decision.rests_on_group {
                true => Err(ApplyError::Journal(error.clone())),
                false => decision.result,
            });
        }
    }
}
