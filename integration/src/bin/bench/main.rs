//! The benchmarks of docs/MEASUREMENTS.md, each beside what it is compared with. Owns the command line and the table of
//! benchmarks; what one measures is its module's.

mod beds;
mod cluster;
mod memory;
mod npm;
mod packets;
mod programs;
mod report;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use sallyport_integration::binaries::{self, Binaries};
use sallyport_testbed::Mode;

use report::Report;

/// Measures Sallyport beside what it is compared with, on this machine's kernel.
///
/// Everything that is compared exists at once and is measured in turns, in an order that is shuffled for each round.
/// The first figure is a ratio: it is computed within each round, and its median, least and most over the rounds are
/// shown. No time makes a benchmark fail. It fails if what it measures did not do its work: a packet that had to arrive
/// did not, or one arrived that must not.
///
/// B10 is the cost of a packet: the CPU time of a forwarded UDP packet of 46 bytes on its whole way through the node to
/// a pod, with policies that select the receiver. The kernel carries a packet in the thread that sends it, so that
/// thread's CPU time has all of it. Packets of another node's pods come in by a host that is no workload: they each
/// begin a flow (`new`), or are of 32 flows that were answered (`known`). A pod of the node itself sends packets of one
/// such flow from its own address (`local`). Compared are: no table at all (`no-filter`); a table that does nothing but
/// ask conntrack for the state (`conntrack`); iptables and ipset with the rules that Azure Network Policy Manager
/// writes (`ipset`), where the policy that allows the packets is the oldest, which it asks last; and Sallyport's table,
/// made by its programs. The last figure is the memory of an enforcer with one policy and many peers.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The benchmarks to run; all, if none is named
    #[arg(value_name = "BENCHMARK")]
    benchmarks: Vec<String>,

    /// Tell which benchmarks there are, and run none
    #[arg(long)]
    list: bool,

    /// The number of measurements of each
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// B10: how many policies select the pod, separated by commas
    #[arg(long, value_name = "COUNT", value_delimiter = ',', default_values_t = [1, 100, 1_000, 10_000],
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    policies: Vec<u32>,

    /// B10: also measure the programs sallyport-controlplane and sallyport-enforcer of a directory, under this name,
    /// and compare them with this checkout's (repeatable)
    #[arg(long, value_name = "NAME=DIR", value_parser = beside)]
    beside: Vec<(String, PathBuf)>,

    /// B10: all hosts are behind ports of a bridge, the receiver's object names its interface, and the gateway's port
    /// is an uplink; programs that are measured beside must know both
    #[arg(long)]
    bridged: bool,

    /// B10: leave this out (repeatable)
    #[arg(long, value_name = "PART")]
    without: Vec<Part>,

    /// B10: the number of peers of the enforcer whose memory is measured
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    peers: u32,

    /// The CPU that sends, counted from 0; the last that this process may use, unless told
    #[arg(long)]
    cpu: Option<usize>,

    /// The form of the report
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// A JSON object for each line of the table.
    Json,
}

/// A part of B10 that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The node without any table.
    NoFilter,
    /// iptables and ipset.
    Ipset,
    /// The memory of an enforcer.
    Memory,
}

/// The settings of the benchmarks.
pub(crate) struct Settings {
    pub(crate) rounds: u32,
    pub(crate) policies: Vec<u32>,
    /// The programs to be measured and their names, this checkout's first.
    pub(crate) programs: Vec<(String, Binaries)>,
    pub(crate) mode: Mode,
    pub(crate) without: Vec<Part>,
    pub(crate) peers: u32,
    pub(crate) cpu: usize,
}

/// A benchmark.
struct Benchmark {
    id: &'static str,
    about: &'static str,
    run: fn(&Settings, &mut Report) -> Result<()>,
}

/// The benchmarks, in the order in which they run.
const BENCHMARKS: &[Benchmark] = &[Benchmark {
    id: "B10",
    about: "packet cost against the same path with conntrack only, 1 to 10,000 policies on the pod; memory of the enforcer",
    run: packets::run,
}];

/// The name of the programs of this checkout.
pub(crate) const OURS: &str = "sallyport";

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for benchmark in BENCHMARKS {
            println!("{:<6}{}", benchmark.id, benchmark.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let selected = selected(&arguments.benchmarks)?;
    let mut policies = arguments.policies;
    policies.sort_unstable();
    policies.dedup();
    let settings = Settings {
        rounds: arguments.rounds,
        policies,
        programs: programs(&arguments.beside)?,
        mode: match arguments.bridged {
            true => Mode::Bridged,
            false => Mode::Routed,
        },
        without: arguments.without,
        peers: arguments.peers,
        cpu: arguments.cpu.map_or_else(last_cpu, Ok)?,
    };
    sallyport_testbed::enter()?;
    let mut report = Report::default();
    for benchmark in selected {
        (benchmark.run)(&settings, &mut report)
            .with_context(|| format!("{} failed", benchmark.id))?;
    }
    match arguments.output {
        Output::Table => print!("{}", report.table()),
        Output::Json => print!("{}", report.json()?),
    }
    println!("{}", report.verdict());
    Ok(match report.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn selected(names: &[String]) -> Result<Vec<&'static Benchmark>> {
    let named = |name: &String| {
        let mut found = BENCHMARKS.iter().filter(|one| one.id == name);
        found
            .next()
            .with_context(|| format!("there is no benchmark {name}; --list tells which there are"))
    };
    match names.is_empty() {
        true => Ok(BENCHMARKS.iter().collect()),
        false => names.iter().map(named).collect(),
    }
}

fn beside(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, directory)) if !name.is_empty() && !directory.is_empty() => {
            Ok((name.to_owned(), directory.into()))
        }
        _ => Err("give NAME=DIR".to_owned()),
    }
}

fn programs(beside: &[(String, PathBuf)]) -> Result<Vec<(String, Binaries)>> {
    let mut programs = vec![(OURS.to_owned(), binaries::binaries()?)];
    for (name, directory) in beside {
        let is_taken =
            beds::NAMES.contains(&name.as_str()) || programs.iter().any(|(other, _)| other == name);
        ensure!(!is_taken, "--beside {name}: something else has this name");
        programs.push((name.clone(), Binaries::within(directory)?));
    }
    Ok(programs)
}

fn last_cpu() -> Result<usize> {
    let usable = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    for cpu in (0..nix::sched::CpuSet::count()).rev() {
        if usable.is_set(cpu)? {
            return Ok(cpu);
        }
    }
    bail!("there is no CPU that this process may use")
}
