//! The restart proof: how soon a control plane serves again and an enforcer has its table again, with a large cluster,
//! on real disks and a real kernel, under a flood that counts every packet that is misjudged.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod cluster;
mod measure;
mod report;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use sallyport_integration::binaries::binaries;

use cluster::Size;
use measure::Bench;

/// Measures restarts on this machine's kernel.
///
/// Loads a cluster into a control plane, with enforcers on two nodes; edits pods one by one from many clients at once;
/// stops and kills the control plane, then an enforcer, and starts them again, under a flood of packets of which those
/// from peers must arrive and no others; and, as a control that must leak, deletes the table before the enforcer
/// starts, which is a boot. Prints a line of JSON each, then `restart: ok` or `restart: FAILED` and what missed its bar
/// (times are judged from 100,000 pods on).
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The number of pods
    #[arg(long, default_value_t = 4_000)]
    pods: usize,

    /// The number of policies
    #[arg(long, default_value_t = 400)]
    policies: usize,

    /// The number of nodes, of which two have enforcers
    #[arg(long, default_value_t = 20)]
    nodes: usize,

    /// The number of pods that may reach the server that is flooded, and are known to its node
    #[arg(long, default_value_t = 4_000)]
    peers: usize,

    /// The number of pods that are edited one by one before the restarts: when the journal has 10,000 transactions its
    /// log is folded into its snapshot
    #[arg(long, default_value_t = 2_000)]
    edits: usize,

    /// The number of restarts of each with each signal
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let size = Size {
        nodes: arguments.nodes,
        pods: arguments.pods,
        policies: arguments.policies,
        peers: arguments.peers,
    };
    if let Some(problem) = size.problem() {
        bail!("give {problem}");
    }
    binaries()?;
    sallyport_testbed::enter()?;
    let mut missed = Vec::new();
    let mut bench = Bench::start(size)?;
    let edits = bench.edit_one_by_one(arguments.edits)?;
    println!("{}", serde_json::to_string(&edits)?);
    for report in [
        bench.restart_control_plane(arguments.rounds)?,
        bench.restart_enforcer(arguments.rounds)?,
        bench.boot(arguments.rounds)?,
    ] {
        println!("{}", serde_json::to_string(&report)?);
        missed.extend(report.missed());
    }
    if missed.is_empty() {
        println!("restart: ok");
        return Ok(ExitCode::SUCCESS);
    }
    println!("restart: FAILED {}", missed.join("; "));
    Ok(ExitCode::FAILURE)
}
