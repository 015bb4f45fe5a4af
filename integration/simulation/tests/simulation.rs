//! Control plane and enforcers, together and deterministic: whatever goes wrong, every promise is kept; and mistakes in
//! the protocol are found.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use sallyport_simulation::{Failure, Mutant};

/// How many runs there are; the environment variable of this name says another number.
const SEEDS: &str = "SALLYPORT_SIMULATION_SEEDS";

/// Within so many runs a mistake must be found.
const MUTANT_SEEDS: u64 = 1_000;

/// Runs seeds on all cores until one fails. Returns how many ran, and the failure.
fn run(seeds: u64, mutant: Option<Mutant>) -> (u64, Option<Box<Failure>>) {
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return None;
            }
            if let Err(failure) = sallyport_simulation::run(seed, mutant) {
                next.fetch_max(seeds, Ordering::Relaxed);
                return Some(failure);
            }
        }
    };
    thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let failures = threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("no panic"));
        let first = failures.min_by_key(|failure| failure.seed);
        (first.as_ref().map_or(seeds, |first| first.seed + 1), first)
    })
}

#[test]
fn every_promise_is_kept() {
    let seeds = std::env::var(SEEDS).map_or(10_000, |text| text.parse().expect("a number"));
    if let (_, Some(failure)) = run(seeds, None) {
        panic!("{failure}");
    }
}

#[test]
fn every_mistake_is_found() {
    for mutant in Mutant::ALL {
        match run(MUTANT_SEEDS, Some(mutant)) {
            (seed, Some(failure)) => {
                println!("{mutant}: found by run {seed}: {}", failure.violation)
            }
            (seeds, None) => panic!("{mutant}: not found in {seeds} runs"),
        }
    }
}

/// One seed, one run, to the last line.
#[test]
fn a_run_is_the_same_again() {
    for seed in 0..20 {
        assert_eq!(
            sallyport_simulation::trace(seed, None),
            sallyport_simulation::trace(seed, None)
        );
        assert_eq!(
            sallyport_simulation::run(seed, None),
            sallyport_simulation::run(seed, None)
        );
    }
}

/// A failure says how to see it again, and what happened.
#[test]
fn a_failure_can_be_replayed() {
    let (_, failure) = run(MUTANT_SEEDS, Some(Mutant::BarrierSkipped));
    let failure = failure.expect("it is found");
    let text = failure.to_string();
    let replay = format!(
        "--seeds {}..{} --trace --mutant barrier-skipped",
        failure.seed,
        failure.seed + 1
    );
    assert!(text.contains(&replay), "{text}");
    assert!(
        text.contains("control plane starts at revision 1"),
        "{text}"
    );
}
