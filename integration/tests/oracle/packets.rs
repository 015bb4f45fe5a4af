//! Packets against the oracle: random cases through the conformance runner, on two nodes.

use std::io::Write;

use rand::random;
use sallyport_integration::conformance::{self, Event, Options};
use sallyport_testbed::{
    Mode,
    kernel_tests::{Outcome, Test},
};

use crate::{number, story::random_case};

/// The environment variable that raises the number of random cases in each mode.
const CASES: &str = "SALLYPORT_RANDOM_CASES";

/// The seed of the first one; a failing case tells its own in its name.
const SEED: &str = "SALLYPORT_RANDOM_SEED";

pub(crate) const TESTS: [Test; 2] = [
    ("packets_agree_with_the_oracle_on_routed_nodes", || {
        conform(Mode::Routed)
    }),
    ("packets_agree_with_the_oracle_on_bridged_nodes", || {
        conform(Mode::Bridged)
    }),
];

fn conform(mode: Mode) -> Outcome {
    let first = number(SEED, u64::from(random::<u32>()));
    let cases: Vec<_> = (first..).take(number(CASES, 6)).map(random_case).collect();
    let mut file = tempfile::Builder::new().suffix(".json").tempfile()?;
    file.write_all(serde_json::to_string(&cases)?.as_bytes())?;
    let files = [file.path().to_owned()];
    let replayed = conformance::replay(&files[0])?;
    if !replayed.differences.is_empty() {
        return Err(format!("the cases are not told as they are: {replayed:#?}").into());
    }
    let options = Options {
        nodes: 2,
        mode,
        only: None,
        keep_going: true,
    };
    let mut told = String::new();
    let summary = conformance::run(&options, &files, &mut |event| {
        if let Event::Wrong(text) | Event::Failed(text) = event {
            told += &text;
        }
    })?;
    println!("{mode:?}, seeds from {first}: {summary:?}");
    if summary.is_good() {
        return Ok(());
    }
    let (_, path) = file.keep()?;
    Err(format!("{told}{summary:?}\nthe cases are in {}", path.display()).into())
}
