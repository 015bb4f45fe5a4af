//! Runs conformance files against a real deployment; owns the command line and what people see of a run.

use std::{
    io::{IsTerminal, Write, stderr},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;
use clap::Parser;
use sallyport_integration::{
    binaries::binaries,
    conformance::{self, Event, Options, Summary},
};
use sallyport_testbed::Mode;

/// Compares what packets do with what somebody else says NetworkPolicies mean.
///
/// Builds each case's cluster as network namespaces over some nodes, makes its edits through the API, waits until they
/// are enforced, and sends TCP, UDP and SCTP packets for every cell. Expectations for one direction alone are compared
/// with the compiled policy. The last line says how much was compared and how much of it was wrong.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many nodes the pods are spread over
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    nodes: u16,

    /// Pods are on a bridge of their node, instead of routed
    #[arg(long)]
    bridged: bool,

    /// Only cases with this in their id, their description or a tag
    #[arg(long, value_name = "SUBSTRING")]
    only: Option<String>,

    /// Go on after a case that is wrong
    #[arg(long)]
    keep_going: bool,

    /// Files of cases, gzipped or not
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    binaries()?;
    sallyport_testbed::enter()?;
    let options = Options {
        nodes: arguments.nodes.into(),
        mode: if arguments.bridged {
            Mode::Bridged
        } else {
            Mode::Routed
        },
        only: arguments.only,
        keep_going: arguments.keep_going,
    };
    let mut progress = Progress::new();
    let summary = conformance::run(&options, &arguments.files, &mut |event| {
        progress.report(event);
    })?;
    println!(
        "conformance: {}",
        figures(&summary) + &failures(summary.failed)
    );
    Ok(if summary.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn figures(summary: &Summary) -> String {
    let Summary {
        cases,
        steps,
        cells,
        wrong,
        ..
    } = summary;
    format!("cases={cases} steps={steps} cells={cells} wrong={wrong}")
}

/// The number of cases that could not be run, if there are any.
fn failures(failed: u64) -> String {
    match failed {
        0 => String::new(),
        failed => format!(" failed={failed}"),
    }
}

/// The progress of a run: a line that moves on a terminal, elsewhere a line for each tenth.
struct Progress {
    moves: bool,
    cases: usize,
    tenths: usize,
    started: Instant,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            moves: stderr().is_terminal(),
            cases: 0,
            tenths: 0,
            started: Instant::now(),
        }
    }

    fn report(&mut self, event: Event<'_>) {
        match event {
            Event::Read { path, cases } => {
                (self.cases, self.tenths, self.started) = (cases, 0, Instant::now());
                eprintln!("{}: {cases} cases", path.display());
            }
            Event::Step {
                case,
                done,
                summary,
            } => self.step(case, done, &summary),
            Event::Wrong(text) | Event::Failed(text) => {
                self.clear();
                print!("{text}");
            }
            Event::Done { path, summary } => {
                self.clear();
                println!(
                    "{}: {}; {} verdicts of one direction compared with the compiled policy, {} cells asked again, \
                     {} left out (a node and its own pod), {:.1} s",
                    path.display(),
                    figures(&summary) + &failures(summary.failed),
                    summary.compiled,
                    summary.again,
                    summary.local,
                    self.started.elapsed().as_secs_f64(),
                );
            }
        }
    }

    fn step(&mut self, case: &str, done: usize, summary: &Summary) {
        let percent = 100 * done / self.cases.max(1);
        let line = format!("{percent:3} % {case}: {}", figures(summary));
        if self.moves {
            eprint!("\r\x1b[2K{line}");
            // A progress line that is not shown does no harm.
            let _ = stderr().flush();
        } else if percent / 10 > self.tenths {
            self.tenths = percent / 10;
            eprintln!("{line}, {:.0} s", self.started.elapsed().as_secs_f64());
        }
    }

    fn clear(&self) {
        if self.moves {
            eprint!("\r\x1b[2K");
        }
    }
}
