//! The mistakes that the simulation must find: each is one word that a part of the simulation reads. The product knows
//! nothing of them.

use std::{fmt, str::FromStr};

/// A mistake in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nodes drop the version before at once, and not when all hold the new one.
    BarrierSkipped,
    /// The barrier does not wait for packets under way.
    DrainSkipped,
    /// A node commits an update as one batch.
    SingleBatch,
    /// A node acknowledges a version that is not durable.
    AckBeforeJournal,
    /// A node grants before it revokes.
    GrantBeforeRevoke,
    /// A node whose update stopped half-way reports the versions that it held before, and finishes the update later.
    /// The enforcer answers only when the update is through (docs/decisions/0037-a-deterministic-simulation.md). This
    /// mistake is looked for by hand, and is not one of those that must be found.
    AnswersHalfWay,
}

impl Mutant {
    /// The mutants that must be found.
    pub const ALL: [Mutant; 5] = [
        Mutant::BarrierSkipped,
        Mutant::DrainSkipped,
        Mutant::SingleBatch,
        Mutant::AckBeforeJournal,
        Mutant::GrantBeforeRevoke,
    ];

    fn name(self) -> &'static str {
        match self {
            Mutant::BarrierSkipped => "barrier-skipped",
            Mutant::DrainSkipped => "drain-skipped",
            Mutant::SingleBatch => "single-batch",
            Mutant::AckBeforeJournal => "ack-before-journal",
            Mutant::GrantBeforeRevoke => "grant-before-revoke",
            Mutant::AnswersHalfWay => "answers-half-way",
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Mutant, String> {
        let mut all = Mutant::ALL.into_iter().chain([Mutant::AnswersHalfWay]);
        all.find(|mutant| mutant.name() == text).ok_or_else(|| {
            let names = Mutant::ALL.map(Mutant::name).join(", ");
            format!("there is none of that name; there are: {names}, answers-half-way")
        })
    }
}
