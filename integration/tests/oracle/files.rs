//! The oracle against every verdict of the shared files, which others computed. They lie beside the checkout, never in
//! it; where they do not, these tests show as ignored.

use std::path::Path;

use libtest_mimic::{Completion, Failed, Trial};
use sallyport_integration::conformance;

/// The files, and how many verdicts each has at least.
const FILES: [(&str, u64); 3] = [
    ("cyclonus-cases.json.gz", 120_000),
    ("cyclonus-recipes.json.gz", 1_200),
    ("e2e-netpol.json.gz", 500),
];

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance");

pub(crate) fn trials() -> Vec<Trial> {
    let trials = FILES.map(|(file, least)| {
        let (stem, _) = file.split_once('.').expect("an ending");
        let name = format!("the_oracle_agrees_with_{}", stem.replace('-', "_"));
        Trial::ignorable_test(name, move || {
            if Path::new(FOLDER).is_dir() {
                agree(file, least).map(|()| Completion::Completed)
            } else {
                let reason = format!("no conformance files: {FOLDER} is not there");
                Ok(Completion::ignored_with(reason))
            }
        })
    });
    trials.into()
}

fn agree(file: &str, least: u64) -> Result<(), Failed> {
    let replayed = conformance::replay(&Path::new(FOLDER).join(file))?;
    let differences = replayed.differences.len();
    println!(
        "{file}: cases={} steps={} verdicts={} differences={differences}",
        replayed.cases, replayed.steps, replayed.verdicts
    );
    if replayed.verdicts < least {
        return Err(format!("only {} verdicts of {file}", replayed.verdicts).into());
    }
    if differences > 0 {
        let first = &replayed.differences[..differences.min(20)];
        return Err(format!("{differences} differences:\n{}", first.join("\n")).into());
    }
    Ok(())
}
