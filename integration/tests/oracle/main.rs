//! The oracle against tables that others computed, against the compiler on random manifests, and against packets on
//! random clusters; owns the list of these tests.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod compiler;
mod files;
mod packets;
mod pods;
mod story;
mod universe;

use std::{env, process::ExitCode};

use libtest_mimic::Arguments;
use sallyport_integration::binaries::binaries;
use sallyport_testbed::kernel_tests;

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let mut trials = kernel_tests::trials(&packets::TESTS);
    trials.extend(files::trials());
    trials.extend(compiler::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A number that an environment variable may set.
fn number<T: std::str::FromStr>(variable: &str, default: T) -> T {
    match env::var(variable) {
        Err(_) => default,
        Ok(text) => match text.parse() {
            Ok(number) => number,
            Err(_) => panic!("{variable} is no number: {text:?}"),
        },
    }
}
