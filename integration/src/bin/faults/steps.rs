//! Something that is done again and again, while a program is killed at each of the calls in turn that it takes. Knows
//! neither the program nor what it does.
//!
//! Calls are numbered kind by kind. The tenth of all calls is a commit this time and a wait next time, as there is a
//! wait more or less before it; the third commit is the third commit.

use anyhow::{Context, Result, ensure};
use sallyport_testbed::tracer::{Call, Calls, Fault};

/// The calls of one kind.
#[derive(Clone, Copy)]
pub(crate) struct Steps {
    pub(crate) name: &'static str,
    pub(crate) calls: Calls,
    /// The least number of them, as far as anybody knows.
    pub(crate) least: usize,
}

/// More than any update has, of one kind.
const MOST: usize = 200;

/// Attempts what takes these calls, with a program that is killed at the first one, the second, and so on, until no
/// call of that number came in `last` attempts, one after the other. An attempt returns the call that the program was
/// killed at.
pub(crate) fn kill_at_each(
    steps: &[Steps],
    last: usize,
    mut attempt: impl FnMut(Fault) -> Result<Option<Call>>,
) -> Result<Vec<Call>> {
    let mut hits = Vec::new();
    for &Steps { name, calls, least } in steps {
        let (mut first, mut without) = (1, 0);
        while without < last {
            ensure!(first < MOST, "of {name} there is no end");
            let fault = Fault {
                calls,
                ..Fault::kill_at(first)
            };
            let hit = attempt(fault).with_context(|| format!("of {name}, number {first}"))?;
            match hit {
                Some(call) => {
                    hits.push(call);
                    (first, without) = (first + 1, 0);
                }
                None => without += 1,
            }
        }
        ensure!(
            first > least,
            "of {name} there were {} to be killed at, and {least} must be: {hits:?}",
            first - 1
        );
    }
    Ok(hits)
}

/// The calls that were hit, the most frequent first.
pub(crate) fn summary(hits: &[Call]) -> String {
    let mut kinds: Vec<(usize, String)> = Vec::new();
    for call in hits {
        let name = match call.object.starts_with("snap.") {
            true => format!("{} snapshot", call.name),
            false => call.to_string(),
        };
        match kinds.iter_mut().find(|(_, other)| *other == name) {
            Some((count, _)) => *count += 1,
            None => kinds.push((1, name)),
        }
    }
    kinds.sort_by(|one, other| other.cmp(one));
    let kinds: Vec<String> = kinds
        .iter()
        .take(6)
        .map(|(count, name)| format!("{count} {}", name.trim()))
        .collect();
    format!("{} kills: {}", hits.len(), kinds.join(", "))
}
