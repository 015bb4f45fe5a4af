//! The Pings of one stream: which was sent, which was answered, which is due. Pure: it is told the time, and sends
//! nothing.

use std::time::{Duration, Instant};

use super::rivals::ANSWER;

/// An update that is under way for longer is late, and the enforcer is asked whether it is there.
const LATE: Duration = Duration::from_secs(2);

/// The interval between pings of the enforcer while an update is late.
const INTERVAL: Duration = Duration::from_secs(1);

/// The Pings of one stream.
#[derive(Debug, Default)]
pub(super) struct Pings {
    /// The last one that is to be sent.
    wanted: u64,
    /// The last one that was sent, and when.
    sent: u64,
    sent_at: Option<Instant>,
    answered: u64,
    /// When the first Ping after the last message of the enforcer was sent.
    unanswered: Option<Instant>,
}

impl Pings {
    /// The number of a Ping that was not sent yet.
    pub(super) fn next(&self) -> u64 {
        self.sent + 1
    }

    /// The last one that was answered.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// A Ping is to be sent. Returns whether it is one more.
    pub(super) fn want(&mut self, number: u64) -> bool {
        let more = number > self.wanted;
        self.wanted = self.wanted.max(number);
        more
    }

    /// The Ping to send now, or else when one may be due. `under_way` says since when an update is under way.
    pub(super) fn take(
        &mut self,
        under_way: Option<Instant>,
        now: Instant,
    ) -> Result<u64, Option<Instant>> {
        let due = under_way.map(|since| {
            let again = self.sent_at.map(|sent| sent + INTERVAL);
            again.map_or(since + LATE, |again| again.max(since + LATE))
        });
        if self.wanted <= self.sent && due.is_none_or(|due| due > now) {
            return Err(due);
        }
        self.sent += 1;
        self.wanted = self.wanted.max(self.sent);
        self.sent_at = Some(now);
        self.unanswered.get_or_insert(now);
        Ok(self.sent)
    }

    /// A Ping was answered. A number that was never sent is none.
    pub(super) fn answer(&mut self, number: u64) {
        if number <= self.sent {
            self.answered = self.answered.max(number);
        }
    }

    /// A message of the enforcer came.
    pub(super) fn received(&mut self) {
        self.unanswered = None;
    }

    /// Whether an update is under way for so long that the enforcer is asked.
    pub(super) fn is_late(under_way: Instant, now: Instant) -> bool {
        now.saturating_duration_since(under_way) >= LATE
    }

    /// Whether a Ping has been unanswered for too long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        let passed = |since: Instant| now.saturating_duration_since(since);
        self.unanswered.is_some_and(|since| passed(since) >= ANSWER)
    }
}
