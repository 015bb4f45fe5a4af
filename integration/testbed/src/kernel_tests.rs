//! Owns how a test file runs on the real kernel: privileges first, then each test, ignored with the reason where the
//! kernel cannot be had; never owns a test itself.
//!
//! A test file with `harness = false` is
//!
//! ```no_run
//! use sallyport_testbed::kernel_tests::{self, Outcome};
//!
//! fn packets_flow() -> Outcome {
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     kernel_tests::run(&[("packets_flow", packets_flow)])
//! }
//! ```

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::enter;

pub use libtest_mimic::Failed;

/// The result of a test: any error that displays itself fails it.
pub type Outcome = Result<(), Failed>;

/// A test and its name.
pub type Test = (&'static str, fn() -> Outcome);

/// Enters the privileges a testbed needs and runs the tests; call it first in `main`, while there is one thread.
///
/// Without privileges every test is shown as ignored, with the reason. `SALLYPORT_REQUIRE_KERNEL=1` makes each a
/// failure, as in continuous integration.
pub fn run(tests: &[Test]) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), trials(tests)).exit_code()
}

/// The same for tests that need programs beside the kernel. A program that is missing counts as a missing privilege.
pub fn run_with(programs: &[&str], tests: &[Test]) -> ExitCode {
    let trials = trials_where(found(programs), tests);
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Enters the privileges like [`run`], and returns the tests, for a file that has others beside them.
pub fn trials(tests: &[Test]) -> Vec<Trial> {
    trials_where(Ok(()), tests)
}

fn trials_where(found: Result<(), String>, tests: &[Test]) -> Vec<Trial> {
    let entered = enter().map_err(|error| error.to_string());
    let entered = found.and(entered);
    let required = std::env::var_os("SALLYPORT_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    let trials = tests.iter().map(|&(name, test)| {
        let entered = entered.clone();
        Trial::ignorable_test(name, move || match entered {
            Ok(_) => test().map(|()| Completion::Completed),
            Err(reason) if required => Err(reason.into()),
            Err(reason) => Ok(Completion::ignored_with(reason)),
        })
    });
    trials.collect()
}

/// Whether the programs are on the path.
fn found(programs: &[&str]) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| {
        let mut folders = std::env::split_paths(&path);
        folders.any(|folder| folder.join(program).exists())
    };
    match programs.iter().find(|program| !is_there(program)) {
        Some(program) => Err(format!(
            "there is no {program}: deploy/dependencies installs it"
        )),
        None => Ok(()),
    }
}
