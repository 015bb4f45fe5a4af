//! The enforcers that want one node's name, and which of them has it. Pure: it is told the time and who answered, and
//! sends nothing.
//!
//! An enforcer whose Hello proves that it is the successor of the one before has the name at once. In all other cases
//! both are sent a Ping, and the answers decide:
//!
//! ```text
//!                       the first answers        the first is silent, or not connected
//! the newcomer answers  another instance: refused    it has the name
//!                       the same: both are clones    (the same instance, not connected: clones)
//! the newcomer is silent                refused: its Hello came late
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::StreamId;

/// An enforcer that is there answers a Ping within this time.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// The most enforcers that are remembered of one node.
const MOST: usize = 8;

/// One process of an enforcer, as its Hello says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforcer {
    /// The id of its data directory.
    pub instance: [u8; 16],
    /// How many enforcers were started on that data directory, this one included.
    pub start: u64,
    /// The process: a random number.
    pub process: u64,
}

impl fmt::Display for Enforcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instance = u128::from_be_bytes(self.instance);
        let (start, process) = (self.start, self.process);
        write!(
            f,
            "instance {instance:032x}, start {start}, process {process:016x}"
        )
    }
}

/// A newcomer that waits until it is known who answers.
#[derive(Clone, Debug)]
pub struct Contested {
    /// Wakes the newcomer's stream: there may be a decision.
    pub wake: Arc<Notify>,
    /// When there is a decision at the latest.
    pub until: Instant,
}

/// The enforcer that has the name, while it is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    /// Its stream.
    pub(super) session: StreamId,
    /// Which one it is.
    pub(super) enforcer: Enforcer,
    /// The number of a Ping that was not sent before now.
    pub(super) next_ping: u64,
    /// The number of the last Ping that it answered.
    pub(super) answered: u64,
}

/// What becomes of a Hello.
#[derive(Debug)]
pub(super) enum Ruling {
    /// The newcomer has the name.
    Admit,
    /// The newcomer has the name, since the first is silent.
    Replace,
    /// It is not known yet. The first is to be sent the Ping of this number.
    Wait { contested: Contested, ping: u64 },
    /// The first has the name.
    Taken,
    /// The newcomer is silent.
    Late,
    /// There are clones: just found, or found before.
    Cloned,
    /// An administrator believes another enforcer.
    NotBelieved,
}

/// A newcomer.
#[derive(Debug)]
struct Claim {
    contested: Contested,
    /// The stream of the first, and the Ping that was sent on it.
    first: Option<(StreamId, u64)>,
    /// Whether the newcomer answered.
    answered: bool,
}

/// What is known of the enforcers that want one name.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    /// The last enforcer that had the name.
    last: Option<Enforcer>,
    /// The newcomers, by their streams.
    claims: BTreeMap<StreamId, Claim>,
    /// The enforcers of which none is believed, and since when; set while there are clones.
    clones: Option<(Vec<Enforcer>, Instant)>,
    /// The processes that an administrator does not believe.
    disbelieved: Vec<u64>,
}

impl Rivals {
    /// What becomes of a Hello, as far as it is known by now.
    pub(super) fn rule(
        &mut self,
        stream: StreamId,
        newcomer: Option<Enforcer>,
        first: Option<First>,
        at: Instant,
    ) -> Ruling {
        // An enforcer of an earlier version says nothing of itself, and cannot be asked.
        let (Some(newcomer), Some(last)) = (newcomer, self.last) else {
            return Ruling::Admit;
        };
        if self.disbelieved.contains(&newcomer.process) {
            return Ruling::NotBelieved;
        }
        if self.clones.is_some() {
            self.is_clone(newcomer, at);
            return Ruling::Cloned;
        }
        let same = newcomer.instance == last.instance;
        let lower = newcomer.start < last.start;
        let succeeds = match same {
            true => newcomer.process == last.process || newcomer.start > last.start,
            false => first.is_none(),
        };
        if succeeds || first.is_none() && !lower {
            return Ruling::Admit;
        }
        let claim = self.claim(stream, first, at);
        let (contested, asked) = (claim.contested.clone(), claim.first);
        let ping = asked.map_or(0, |(_, ping)| ping);
        let first_answers = first.is_some_and(|first| first.answered >= ping);
        if first_answers && !same {
            return Ruling::Taken;
        }
        // A lower counter after the higher one was gone can only be that of a copy.
        if claim.answered && same && (first_answers || first.is_none()) {
            self.is_clone(first.map_or(last, |first| first.enforcer), at);
            self.is_clone(newcomer, at);
            return Ruling::Cloned;
        }
        match (at < contested.until, claim.answered) {
            (true, _) => Ruling::Wait { contested, ping },
            (false, true) => Ruling::Replace,
            (false, false) => Ruling::Late,
        }
    }

    /// A newcomer's claim. It begins anew when another stream is the first one's.
    fn claim(&mut self, stream: StreamId, first: Option<First>, at: Instant) -> &Claim {
        let claim = self.claims.entry(stream).or_insert_with(|| Claim {
            contested: Contested {
                wake: Arc::default(),
                until: at + ANSWER,
            },
            first: first.map(|first| (first.session, first.next_ping)),
            answered: false,
        });
        if claim.first.map(|(session, _)| session) != first.map(|first| first.session) {
            claim.first = first.map(|first| (first.session, first.next_ping));
            claim.contested.until = at + ANSWER;
        }
        claim
    }

    /// An enforcer is one of the clones.
    fn is_clone(&mut self, enforcer: Enforcer, at: Instant) {
        let (seen, _) = self.clones.get_or_insert_with(|| (Vec::new(), at));
        seen.retain(|other| other.process != enforcer.process);
        seen.push(enforcer);
        if seen.len() > MOST {
            seen.remove(0);
        }
    }

    /// A newcomer answered its Ping.
    pub(super) fn answered(&mut self, stream: StreamId) {
        if let Some(claim) = self.claims.get_mut(&stream) {
            claim.answered = true;
        }
    }

    /// A newcomer waits no longer.
    pub(super) fn withdraw(&mut self, stream: StreamId) {
        self.claims.remove(&stream);
    }

    /// Has every newcomer look whether there is a decision.
    pub(super) fn wake(&self) {
        for claim in self.claims.values() {
            claim.contested.wake.notify_one();
        }
    }

    /// An enforcer has the name.
    pub(super) fn admitted(&mut self, enforcer: Option<Enforcer>) {
        self.last = enforcer;
        // Of an earlier version: it is not known of whom the others were copies.
        if enforcer.is_none() {
            self.clones = None;
        }
    }

    /// The enforcers of which none is believed, and since when.
    pub(super) fn clones(&self) -> Option<(&[Enforcer], Instant)> {
        let (seen, since) = self.clones.as_ref()?;
        Some((seen, *since))
    }

    /// An administrator believes a process. Returns whether it is one of the clones.
    pub(super) fn believe(&mut self, process: u64) -> bool {
        let Some((seen, _)) = &self.clones else {
            return false;
        };
        let Some(believed) = seen.iter().find(|enforcer| enforcer.process == process) else {
            return false;
        };
        self.last = Some(*believed);
        let others = seen.iter().map(|enforcer| enforcer.process);
        self.disbelieved = others.filter(|&other| other != process).collect();
        self.clones = None;
        true
    }
}
