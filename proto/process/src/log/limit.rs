//! The rate at which one place in the code may log: a token bucket each. Lines of `debug` or `trace` are not limited.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tracing::{Level, Metadata, callsite::Identifier};

/// Lines in a row, and lines a second from then on.
const BURST: f64 = 500.0;
const PER_SECOND: f64 = 20.0;

/// Buckets, by place in the code: as many as the code has places.
#[derive(Debug, Default)]
pub(super) struct Limit(Mutex<HashMap<Identifier, Bucket>>);

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    left_out: u64,
}

impl Limit {
    /// How many lines were left out before this one; or none, when it is to be left out, too.
    pub(super) fn take(&self, event: &Metadata<'_>) -> Option<u64> {
        if *event.level() > Level::INFO {
            return Some(0);
        }
        let now = Instant::now();
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets
            .entry(event.callsite())
            .or_insert_with(|| Bucket::new(now));
        bucket.take(now)
    }
}

impl Bucket {
    fn new(now: Instant) -> Bucket {
        Bucket {
            tokens: BURST,
            at: now,
            left_out: 0,
        }
    }

    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * PER_SECOND).min(BURST);
        self.at = now;
        if self.tokens < 1.0 {
            self.left_out += 1;
            return None;
        }
        self.tokens -= 1.0;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_counted_and_told_with_the_next_line() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let passed = (0..2_000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(passed, 500);
        assert_eq!(bucket.take(start + Duration::from_millis(60)), Some(1_500));
        assert_eq!(bucket.take(start + Duration::from_millis(60)), None);
        assert_eq!(bucket.take(start + Duration::from_secs(60)), Some(1));
    }
}
