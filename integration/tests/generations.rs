//! The reproducer of a packet that meets a chain without its rules: what it prints, and that a commit between what makes a
//! chain and what leads to it is enough. That it is needed is rare to see in so short a time, and not asked here.

use std::process::{Command, ExitCode};

use sallyport_integration::kernel_tests::{self, Failed, Outcome};
use serde_json::Value;

fn main() -> ExitCode {
    kernel_tests::run(&[
        ("a_commit_apart_is_enough", mechanism),
        ("a_scenario_is_carried_out_and_counted", recreate),
    ])
}

/// What the program measured, and the line that it ended with.
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

fn mechanism() -> Outcome {
    let (measured, last) = generations(&["--only", "mechanism", "--edits", "300"])?;
    let [adjacent, apart] = &measured[..] else {
        panic!("two measurements, not {measured:?}");
    };
    assert_eq!(adjacent["measurement"], "mechanism/adjacent");
    assert_eq!(apart["measurement"], "mechanism/apart");
    assert_eq!(number(apart, "found_empty"), 0, "{apart}");
    assert_eq!(number(apart, "edits"), 300);
    for one in &measured {
        assert!(number(one, "lookups") > number(one, "edits"), "{one}");
    }
    let shown = number(adjacent, "found_empty") > 0;
    assert_eq!(last == "generations: ok", shown, "{last}");
    Ok(())
}

fn recreate() -> Outcome {
    let (measured, _) = generations(&["--only", "recreate", "--packets", "20000", "--trace"])?;
    let names: Vec<_> = measured.iter().map(|one| &one["measurement"]).collect();
    assert_eq!(names, ["recreate/old-plan", "recreate/planned"]);
    for one in &measured {
        let denied = number(one, "denied_packets");
        assert!(
            denied >= 2_000 && number(one, "allowed_packets") >= 2_000,
            "{one}"
        );
        assert!(number(one, "leaked") * 1_000 < denied, "{one}");
        // What a packet bears is a mark that the chains' rules set.
        let unmarked = number(one, "allowed_packets") - number(one, "allowed_marked");
        assert!(unmarked * 1_000 < denied, "{one}");
        assert!(number(one, "lost") <= number(one, "machine_drops"), "{one}");
    }
    assert!(number(&measured[1], "denied_packets") >= 20_000);
    Ok(())
}
