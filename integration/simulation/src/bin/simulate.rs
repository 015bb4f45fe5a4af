//! Many runs of the simulation, on all cores: the long ones are started by hand. Decides nothing itself.

use std::{
    ops::Range,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use clap::Parser;
use sallyport_simulation::{Failure, Mutant};

/// Runs control plane and enforcers as one deterministic process, again and again, while everything goes wrong.
#[derive(Debug, Parser)]
struct Arguments {
    /// The seeds: FROM..TO
    #[arg(long, default_value = "0..1000", value_parser = range)]
    seeds: Range<u64>,
    /// A mistake in the protocol, which is to be found
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Tell what happens in each run
    #[arg(long)]
    trace: bool,
    /// Go on after a violation
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").ok_or("it is FROM..TO")?;
    let number = |text: &str| {
        text.parse::<u64>()
            .map_err(|error| format!("{text}: {error}"))
    };
    Ok(number(ends.0)?..number(ends.1)?)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.trace {
        for seed in arguments.seeds.clone() {
            let (result, lines) = sallyport_simulation::trace(seed, arguments.mutant);
            println!("seed {seed}");
            lines.iter().for_each(|line| println!("{line}"));
            match result {
                Ok(()) => println!("seed {seed}: all is as promised"),
                Err(violation) => println!("seed {seed}: {violation}"),
            }
        }
    }
    match simulate(&arguments) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn simulate(arguments: &Arguments) -> u64 {
    let next = AtomicU64::new(arguments.seeds.start);
    let (steps, flows, violations) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let last: Mutex<Instant> = Mutex::new(Instant::now());
    let work = || {
        while arguments.keep_going || violations.load(Ordering::Relaxed) == 0 {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= arguments.seeds.end {
                return;
            }
            match sallyport_simulation::run(seed, arguments.mutant) {
                Ok(outcome) => {
                    steps.fetch_add(outcome.steps, Ordering::Relaxed);
                    flows.fetch_add(outcome.flows, Ordering::Relaxed);
                }
                Err(failure) => {
                    violations.fetch_add(1, Ordering::Relaxed);
                    report(&failure, arguments.keep_going);
                }
            }
            let mut last = last.lock().expect("nobody panics with it");
            if last.elapsed().as_secs() >= 30 {
                *last = Instant::now();
                eprintln!("at seed {seed}");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let done = next.into_inner().min(arguments.seeds.end) - arguments.seeds.start;
    let violations = violations.into_inner();
    println!(
        "simulation: seeds={done} steps={} flows={} violations={violations}",
        steps.into_inner(),
        flows.into_inner()
    );
    violations
}

fn report(failure: &Failure, briefly: bool) {
    match briefly {
        true => println!("seed {}: {}", failure.seed, failure.violation),
        false => println!("{failure}"),
    }
}
