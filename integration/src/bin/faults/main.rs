//! Every fault that Sallyport must survive, done for real: real programs, real journals, real kernel, while packets go
//! both ways. Owns the command line; what a row does is its family's.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod bridged;
mod conntrack;
mod flows;
mod hostile;
mod journals;
mod kernel;
mod kills;
mod machines;
mod neighbours;
mod outages;
mod picked_up;
mod report;
mod rows;
mod scene;
mod steps;
mod streams;
mod unlisted;
mod upgrade;

use std::{
    panic::{self, AssertUnwindSafe},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Result, anyhow, bail};
use clap::{Parser, ValueEnum};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use sallyport_integration::binaries::binaries;

use report::{Outcome, Report};
use rows::{ROWS, Row};
use scene::Scene;

/// Does to Sallyport what can happen to it, and counts packets meanwhile.
///
/// Each row starts a control plane and two nodes with an enforcer each, lets packets flow that must pass and packets
/// that must not, in both families, over TCP and UDP, and lets something go wrong. It passes if no packet was judged
/// wrongly and all is well in the end. Then the row takes the nodes' tables away, and fails unless packets that must
/// not pass do now: else their absence would have meant nothing. Rows called `control` do what others do, and must
/// leak.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Run the rows whose name contains this (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Tell which rows there are, and run none
    #[arg(long)]
    list: bool,

    /// How often the row `random-kills` kills a program
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,

    /// How often the row `tenant-worst-policy` applies and deletes the policy; each takes two minutes
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    worst: u32,

    /// The seed of the random choices
    #[arg(long, default_value_t = 5)]
    seed: u64,

    /// The form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// The settings of the rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) kills: u32,
    pub(crate) worst: u32,
    pub(crate) seed: u64,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for row in ROWS {
            println!("{:<26}{}", row.name, row.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let is_wanted = |row: &&Row| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| row.name.contains(name))
    };
    let selected: Vec<&Row> = ROWS.iter().filter(is_wanted).collect();
    if selected.is_empty() {
        bail!("there is no such row; --list tells which there are");
    }
    let binaries = binaries()?;
    for row in &selected {
        // Builds while cargo can still run. The row reports an error.
        let _ = (row.spec.programs)();
    }
    sallyport_testbed::enter()?;
    // File systems that rows mount are gone with this process.
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    let settings = Settings {
        kills: arguments.kills,
        worst: arguments.worst,
        seed: arguments.seed,
    };
    let mut report = Report::default();
    for row in selected {
        let mut asks = Command::new(&binaries.enforcer);
        let answer = asks.args(row.spec.enforcers).arg("--version").output()?;
        if !answer.status.success() {
            report.not_run.push(format!(
                "{}: this enforcer does not know {}",
                row.name,
                row.spec.enforcers.join(" ")
            ));
            continue;
        }
        eprint!("{:<26}", row.name);
        let outcome = run(row, settings);
        eprintln!("{}", outcome.line());
        report.rows.push(outcome);
    }
    match arguments.output {
        Output::Table => print!("\n{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    println!("{}", report.verdict());
    Ok(match report.failed() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Runs a row on a scene of its own.
fn run(row: &Row, settings: Settings) -> Outcome {
    let started = Instant::now();
    let mut outcome = Outcome::of(row);
    let scene = Scene::start(&row.spec);
    let result = scene.and_then(|mut scene| {
        let happens = panic::catch_unwind(AssertUnwindSafe(|| (row.run)(&mut scene, settings)));
        let happened = happens.unwrap_or_else(|_| Err(anyhow!("it panicked")));
        outcome.note = happened.as_ref().map(String::clone).unwrap_or_default();
        let judged = scene.judge(row.leaks, &mut outcome);
        if happened.is_err() || judged.is_err() {
            outcome.logs = Some(scene.deployment.keep());
        }
        happened.and(judged)
    });
    outcome.failure = result.err().map(|error| format!("{error:#}"));
    outcome.seconds = started.elapsed().as_secs_f64();
    outcome
}
