//! The smaller files of cases that others computed, on the real kernel: recipes and Kubernetes' own end-to-end tests.

use std::{path::Path, process::ExitCode};

use libtest_mimic::{Arguments, Completion, Trial};
use sallyport_integration::{
    binaries::binaries,
    conformance::{self, Event, Options},
};
use sallyport_testbed::{
    Mode,
    kernel_tests::{self, Outcome, Test},
};

const TESTS: [Test; 3] = [
    ("recipes_on_one_node", || {
        conform("cyclonus-recipes.json.gz", 1, Mode::Routed)
    }),
    ("recipes_on_two_nodes_with_bridges", || {
        conform("cyclonus-recipes.json.gz", 2, Mode::Bridged)
    }),
    ("kubernetes_own_tests_on_two_nodes", || {
        conform("e2e-netpol.json.gz", 2, Mode::Routed)
    }),
];

/// The folder of the files: beside the checkout, never in it.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance");

fn main() -> ExitCode {
    if !Path::new(FOLDER).is_dir() {
        return ignore();
    }
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&TESTS)
}

/// Shows every test as ignored.
fn ignore() -> ExitCode {
    let reason = format!("no conformance files: {FOLDER} is not there");
    let trials = TESTS.map(|(name, _)| {
        let reason = reason.clone();
        Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
}

fn conform(file: &str, nodes: usize, mode: Mode) -> Outcome {
    let options = Options {
        nodes,
        mode,
        only: None,
        keep_going: true,
    };
    let mut told = String::new();
    let summary = conformance::run(&options, &[Path::new(FOLDER).join(file)], &mut |event| {
        if let Event::Wrong(text) | Event::Failed(text) = event {
            told += &text;
        }
    })?;
    if summary.is_good() {
        Ok(())
    } else {
        Err(format!("{told}{summary:?}").into())
    }
}
