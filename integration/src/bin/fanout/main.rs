//! The scale proof: one real control plane, thousands of simulated enforcers in a process of their own, and what it
//! costs to keep them all up to date, beside a plain TCP fan-out of as many bytes.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod board;
mod cluster;
mod load;
mod measure;
mod node;
mod process;
mod raw;
mod report;
mod simulate;

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sallyport_integration::binaries::binaries;

use cluster::Size;

/// Measures a control plane with thousands of nodes on this machine.
///
/// Loads a cluster, connects a simulated enforcer for each node (real streams over loopback; each keeps its whole
/// policy and checks every digest), edits, freezes one, disconnects all. Prints a line of JSON, then `fanout: ok` or
/// `fanout: FAILED` and which bars were missed (those of time and memory are judged from 1,000 nodes on).
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The number of nodes; at least 3
    #[arg(long, default_value_t = 200)]
    nodes: usize,

    /// The number of pods
    #[arg(long, default_value_t = 2_000)]
    pods: usize,

    /// The number of policies
    #[arg(long, default_value_t = 200)]
    policies: usize,

    /// The number of repetitions of repeated measurements
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Be simulated enforcers, told what to do on standard input
    #[command(hide = true)]
    Simulate {
        server: String,
        first: usize,
        count: usize,
    },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    if let Some(Role::Simulate {
        server,
        first,
        count,
    }) = arguments.role
    {
        simulate::run(server, first, count)?;
        return Ok(ExitCode::SUCCESS);
    }
    let size = Size {
        nodes: arguments.nodes,
        pods: arguments.pods,
        policies: arguments.policies,
    };
    if let Some(problem) = size.problem() {
        bail!("give {problem}");
    }
    if (size.nodes as u64) + 100 > most {
        bail!(
            "{} nodes need as many descriptors, and the limit is {most}: raise it (ulimit -Hn)",
            size.nodes
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let report = measure::run(&runtime, &binaries()?.controlplane, size, arguments.rounds)?;
    if std::io::stdout().is_terminal() {
        println!("{}", report.table());
    }
    println!("{}", serde_json::to_string(&report)?);
    let missed = report.missed();
    if missed.is_empty() {
        println!("fanout: ok");
        return Ok(ExitCode::SUCCESS);
    }
    println!("fanout: FAILED {}", missed.join("; "));
    Ok(ExitCode::FAILURE)
}
