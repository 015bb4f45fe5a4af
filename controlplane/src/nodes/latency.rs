//! The time of transactions from commit to enforcement by every node that they change.

use std::{collections::VecDeque, time::Instant};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use sallyport_policy::Revision;

/// Transactions that are remembered while they are not enforced; those after them are not measured.
const LONGEST: usize = 10_000;

/// Transactions on their way, and how long the others took.
#[derive(Debug)]
pub(super) struct Latency {
    pending: VecDeque<(Revision, Instant)>,
    histogram: Histogram,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            pending: VecDeque::new(),
            // 1 ms to 131 s.
            histogram: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
        }
    }
}

impl Latency {
    /// A transaction that changes nodes was committed.
    pub(super) fn committed(&mut self, revision: Revision, now: Instant) {
        if self.pending.len() < LONGEST {
            self.pending.push_back((revision, now));
        }
    }

    /// Records that all revisions before the first unenforced one are enforced; all are if there is none.
    pub(super) fn enforced_before(&mut self, first_unenforced: Option<Revision>, now: Instant) {
        while let Some(&(revision, since)) = self.pending.front()
            && first_unenforced.is_none_or(|first| revision < first)
        {
            self.pending.pop_front();
            let took = now.saturating_duration_since(since);
            self.histogram.observe(took.as_secs_f64());
        }
    }

    /// The times that the transactions took.
    pub(super) fn histogram(&self) -> Histogram {
        self.histogram.clone()
    }
}
