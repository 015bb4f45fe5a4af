//! The reproducer of the leak that docs/KERNEL.md tells of: a lookup in a hash set that is held up while a commit
//! passes finds the elements of the batch after it, and with them chains whose rules are not there yet.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod batch;
mod marks;
mod mechanism;
mod recreate;
mod sender;
mod stock;
mod storm;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use sallyport_enforcer::table::stamp;
use sallyport_nft::command::{Command, Element, SetKind};

use storm::Storm;

/// Shows on this machine's kernel that a packet can find a chain of the batch before without its rules.
///
/// `mechanism`: packets look an element up while it is pointed at one new chain after another. `adjacent` makes the
/// chain in one batch and points the element at it in the next: it must find chains without rules. `apart` has one more
/// commit between the two, which changes nothing but a stamp: it must find none.
///
/// `recreate`: the scenario of that name of `atomicity`, with the product's plans carried out here. `planned` is the
/// plan as it is: nothing must leak, be lost, or meet the rule at the end of the table. `old-plan` leaves out the steps
/// that change nothing but the stamp: it must leak, or meet that rule.
///
/// Meanwhile the processor that sends is held up by a long interrupt at each edit, as a hypervisor does now and then.
/// It needs two processors. Prints a line of JSON for each measurement, then `generations: ok` or `generations: FAILED`
/// and why.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many edits `apart` makes; `adjacent` makes as many, and up to ten times as many until it shows
    /// something
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    edits: u32,

    /// How many denied, and as many allowed packets `planned` sends; `old-plan` sends a tenth at least, and
    /// up to four times as many until it shows something
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    packets: u32,

    /// Run only this
    #[arg(long, value_name = "NAME")]
    only: Option<Part>,

    /// For how many microseconds the processor that sends is held up
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..100_000))]
    hold: u64,

    /// How many lookups each packet of `mechanism` makes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    lookups: u32,

    /// How many elements are added and deleted again at the end of the batch that points elements at chains, which
    /// makes it take longer: a hold-up must end while the kernel reads it
    #[arg(long, default_value_t = 300)]
    pad: u32,

    /// Have the chains of `recreate` mark packets, and say of each packet that leaked which chains' rules it met
    #[arg(long)]
    trace: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One element, and nothing of the product.
    Mechanism,
    /// A scenario of `atomicity`.
    Recreate,
}

impl Arguments {
    fn selects(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    sallyport_testbed::enter()?;
    let processors = storm::processors()?;
    let storm = Storm::start(processors.1, Duration::from_micros(arguments.hold))?;
    storm::bind(processors.0)?;
    storm::prefer();
    let mut failures = Vec::new();
    if arguments.selects(Part::Mechanism) {
        let trial = mechanism::Trial {
            edits: arguments.edits,
            lookups: arguments.lookups,
            pad: arguments.pad,
        };
        failures.extend(mechanism::run(trial, &storm, processors)?);
    }
    if arguments.selects(Part::Recreate) {
        let trial = recreate::Trial {
            packets: arguments.packets.into(),
            pad: arguments.pad,
            trace: arguments.trace,
        };
        failures.extend(recreate::run(trial, &storm, processors)?);
    }
    if failures.is_empty() {
        println!("generations: ok");
        return Ok(ExitCode::SUCCESS);
    }
    println!("generations: FAILED {}", failures.join("; "));
    Ok(ExitCode::FAILURE)
}

/// Commands that change nothing and take the kernel a while: elements of the stamp's set, added and deleted.
fn padding(elements: u32) -> [Command; 2] {
    let elements: Vec<Element> = (0..elements)
        .map(|number| Element::Number(1_000 + number, "padding".into()))
        .collect();
    let set = || stamp::SET.to_owned();
    [
        Command::AddElements(set(), SetKind::Numbers, elements.clone()),
        Command::DeleteElements(set(), SetKind::Numbers, elements),
    ]
}
