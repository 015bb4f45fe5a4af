//! The reproducer of a packet that meets a chain without its rules: what it prints, and that a commit between what
//! makes a chain and what leads to it is enough. That it is needed is rare to see in so short a time, and not asked
//! here.

use std::process::{Command, ExitCode};

use sallyport_testbed::kernel_tests::{self, Failed, Outcome};
use serde_json::Value;

fn main() -> ExitCode {
    // One test: two storms at once would keep each other from sending.
    kernel_tests::run(&[("a_commit_apart_is_enough", reproducer)])
}

/// The measurements of the program, and the line that it ended with.
fn generations(arguments: &[&str]) -> Result<(Vec<Value>, String), Failed> {
    let output = Command::new(env!("CARGO_BIN_EXE_generations"))
        .args(arguments)
        .output()?;
    let (said, told) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    let mut lines: Vec<&str> = said.lines().collect();
    let last = lines.pop().unwrap_or_default().to_owned();
    assert!(last.starts_with("generations: "), "{said}{told}");
    assert_eq!(output.status.success(), last == "generations: ok", "{said}");
    let measured: serde_json::Result<_> = lines
        .into_iter()
        .map(serde_json::from_str::<Value>)
        .collect();
    Ok((measured?, last))
}

fn number(measured: &Value, name: &str) -> u64 {
    let number = measured[name].as_u64();
    number.unwrap_or_else(|| panic!("{measured} has no number {name}"))
}

fn reproducer() -> Outcome {
    let arguments = ["--edits", "300", "--packets", "20000", "--trace"];
    let (measured, last) = generations(&arguments)?;
    let names: Vec<_> = measured.iter().map(|one| &one["measurement"]).collect();
    let wanted = [
        "mechanism/adjacent",
        "mechanism/apart",
        "recreate/old-plan",
        "recreate/planned",
    ];
    assert_eq!(names, wanted, "{last}");
    let (mechanism, recreate) = measured.split_at(2);

    let apart = &mechanism[1];
    assert_eq!(number(apart, "found_empty"), 0, "{apart}");
    assert_eq!(number(apart, "edits"), 300);
    for one in mechanism {
        assert!(number(one, "lookups") > number(one, "edits"), "{one}");
    }
    for one in recreate {
        let denied = number(one, "denied_packets");
        assert!(denied >= 2_000, "{one}");
        assert!(number(one, "leaked") * 1_000 < denied, "{one}");
        // The chains' rules set a mark that a packet then bears.
        let unmarked = number(one, "allowed_packets") - number(one, "allowed_marked");
        assert!(unmarked * 1_000 < denied, "{one}");
        assert!(number(one, "lost") <= number(one, "machine_drops"), "{one}");
    }
    let planned = &recreate[1];
    assert!(number(planned, "denied_packets") >= 20_000);
    assert_eq!(number(planned, "leaked"), 0, "{planned}");
    let dropped = &planned["nothing_allowed_it"];
    for base in ["forward_egress", "forward_ingress"] {
        assert_eq!(number(dropped, base), 0, "{planned}");
    }
    Ok(())
}
