//! Control plane and enforcers as one deterministic process, from one seed: real tables, compilers, agents and plans on
//! kernels, disks, clocks and streams that are not there. It owns no socket, no file and no thread.
//!
//! A run edits a small cluster while messages are late, streams break, processes die at any operation, machines reboot,
//! kernels and disks refuse. After every step it is asked of every flow whether a packet that is under way can meet a
//! verdict that no revision of the moment explains (docs/decisions/0037-a-deterministic-simulation.md).

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod control;
mod conversation;
mod enforcer;
mod faults;
mod invariants;
mod judge;
mod machine;
mod mutant;
mod network;
mod schedule;
mod universe;
mod versions;
mod world;

use std::fmt;

use self::world::World;
pub use self::{judge::Violation, mutant::Mutant};

/// Microseconds since a run began.
type Time = u64;

fn milliseconds(number: u64) -> Time {
    number * 1_000
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many events there were.
    pub steps: u64,
    /// How many verdicts on flows were judged.
    pub flows: u64,
}

/// A run in which a promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// The mistake that was asked for.
    pub mutant: Option<Mutant>,
    pub violation: Violation,
    /// The events, one a line.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        let mutant = self
            .mutant
            .map_or(String::new(), |mutant| format!(" --mutant {mutant}"));
        write!(
            f,
            "replay: cargo run --release -p sallyport-simulation --bin simulate -- --seeds {}..{} --trace{mutant}",
            self.seed,
            self.seed + 1
        )
    }
}

/// Runs a seed, with a mistake perhaps.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(seed, mutant, false);
    match world.run() {
        Ok(()) => Ok(Outcome {
            steps: world.steps,
            flows: world.judge.judged,
        }),
        Err(_) => {
            // Again, and now it is written down.
            let (result, trace) = trace(seed, mutant);
            let violation = result.expect_err("the same seed, the same run");
            Err(Box::new(Failure {
                seed,
                mutant,
                violation,
                trace,
            }))
        }
    }
}

/// Runs a seed, and tells what happens, line by line.
pub fn trace(seed: u64, mutant: Option<Mutant>) -> (Result<(), Violation>, Vec<String>) {
    let mut world = World::new(seed, mutant, true);
    let result = world.run();
    (result, world.trace.take().unwrap_or_default())
}
