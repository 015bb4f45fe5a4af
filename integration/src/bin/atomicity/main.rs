//! The proof of the promise: packets flood a pod while policies, pods and namespaces are edited. Counts packets that
//! passed although every state denies them, and packets that were lost although every state allows them; beside each
//! scenario, the same edits as others carry them out, which must leak.

mod naive;
mod outcome;
mod real;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use sallyport_integration::{
    binaries::binaries,
    progress::Progress,
    scenario::{Control, SCENARIOS, Scenario},
};

use outcome::{Bounds, Measured, Outcome};

/// Proves on this machine's kernel that edits never open a path and never break one.
///
/// Prints one JSON line for each scenario and each control, then `atomicity: ok` or `atomicity: FAILED` and why. The
/// controls make the same edits carelessly, until a packet leaks; if none does, the run was too short to show
/// anything, and fails.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many edits each scenario makes
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    edits: u32,

    /// Run every scenario, not only the first
    #[arg(long)]
    all: bool,

    /// Run the scenarios whose name contains this (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Tell which scenarios there are, and run none
    #[arg(long)]
    list: bool,
}

impl Arguments {
    fn selects(&self, scenario: &Scenario) -> bool {
        match &self.only[..] {
            [] => self.all || scenario.basic,
            names => names.iter().any(|name| scenario.name.contains(name)),
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for scenario in SCENARIOS {
            println!("{:<18}{}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let selected: Vec<Scenario> = SCENARIOS
        .into_iter()
        .filter(|scenario| arguments.selects(scenario))
        .collect();
    if selected.is_empty() {
        bail!("there is no such scenario; --list tells which there are");
    }
    binaries()?;
    sallyport_testbed::enter()?;
    let mut failures = Vec::new();
    for scenario in selected {
        let transactions = arguments.edits.div_ceil(scenario.edits_in_one);
        let runs = std::iter::once(None).chain(scenario.controls.iter().copied().map(Some));
        for control in runs {
            let outcome = run(scenario, control, transactions)?;
            println!("{}", outcome.json());
            failures.extend(outcome.failure());
        }
    }
    if failures.is_empty() {
        println!("atomicity: ok");
        return Ok(ExitCode::SUCCESS);
    }
    println!("atomicity: FAILED {}", failures.join("; "));
    Ok(ExitCode::FAILURE)
}

/// Runs a scenario, or one of its controls, on a fresh testbed.
fn run(scenario: Scenario, control: Option<Control>, transactions: u32) -> Result<Outcome> {
    let name = scenario.name_of(control);
    let mut progress = Progress::of(name.clone(), "transactions");
    let bounds = |control| Bounds::beside(transactions, control);
    let measured: Result<Measured> = match control {
        None => real::run(&scenario, transactions, &mut progress),
        Some(one @ Control::OneBatch) => naive::one_batch(&scenario, bounds(one), &mut progress),
        Some(one @ Control::RemoveThenAdd) => {
            naive::remove_then_add(&scenario, bounds(one), &mut progress)
        }
        Some(one @ Control::Uncoordinated) => {
            real::uncoordinated(&scenario, bounds(one), &mut progress)
        }
        Some(one @ Control::TwoTransactions) => {
            real::two_transactions(&scenario, bounds(one), &mut progress)
        }
    };
    Ok(Outcome {
        scenario,
        control,
        measured: measured.with_context(|| name)?,
    })
}
