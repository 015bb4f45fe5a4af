//! Refusals as statuses: the code that a program acts on, the message that a person reads. Never decides what is
//! refused.

use sallyport_policy::{NodeName, Revision};
use sallyport_proto::reason::{REASON, REVISION_CONFLICT};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    nodes::BeliefError,
    transaction::{Problem, Reason},
    writer::ApplyError,
};

/// A status's message travels in a header, percent-encoded, and clients take no more than 16 KiB of headers.
const MAX_MESSAGE: usize = 8_000;

/// The status of a transaction that was not applied.
pub(super) fn apply_error(error: &ApplyError) -> Status {
    let code = match error {
        ApplyError::Problems(list) => return problems(list),
        ApplyError::Stale { .. } => {
            let mut status = Status::failed_precondition(error.to_string());
            let reason = MetadataValue::from_static(REVISION_CONFLICT);
            status.metadata_mut().insert(REASON, reason);
            return status;
        }
        ApplyError::Journal(cause) if cause.is_full() => Code::ResourceExhausted,
        ApplyError::Journal(_) => Code::Internal,
        ApplyError::Stopping => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// Everything that is wrong with a transaction, one a line; a code other than INVALID_ARGUMENT when it fits all.
pub(super) fn problems(problems: &[Problem]) -> Status {
    let first = problems.first().map(|problem| problem.reason);
    let same = problems.iter().all(|problem| Some(problem.reason) == first);
    let code = match first.filter(|_| same) {
        Some(Reason::NotFound) => Code::NotFound,
        Some(Reason::AlreadyExists) => Code::AlreadyExists,
        Some(Reason::Invalid) | None => Code::InvalidArgument,
    };
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    Status::new(code, fitting(&lines))
}

/// A word about clones that has no effect.
pub(super) fn belief(error: &BeliefError) -> Status {
    let code = match error {
        BeliefError::Unregistered { .. } | BeliefError::Unseen { .. } => Code::NotFound,
        BeliefError::NotCloned { .. } => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

/// A revision that was not committed yet.
pub(super) fn future(asked: Revision, current: Revision) -> Status {
    Status::out_of_range(format!(
        "revision {asked} lies in the future: the current revision is {current}"
    ))
}

/// A fence is refused while there are nodes that nothing closes.
pub(super) fn fences_all(without_leases: &[NodeName]) -> Result<(), Status> {
    if without_leases.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = without_leases
        .iter()
        .map(|node| {
            format!("node \"{node}\" has no leases, so nothing closes it when it cannot be reached: start its enforcer with --lease")
        })
        .chain(["nothing was changed".to_owned()])
        .collect();
    Err(Status::failed_precondition(fitting(&lines)))
}

/// The control plane is going down.
pub(super) fn stopping() -> Status {
    Status::unavailable("the control plane is stopping")
}

/// As many lines as fit, and how many do not.
fn fitting(lines: &[String]) -> String {
    let mut text = String::new();
    let mut size = 0;
    for (index, line) in lines.iter().enumerate() {
        size += encoded(line) + encoded("\n");
        let rest = lines.len() - index;
        if size > MAX_MESSAGE && index > 0 {
            return format!("{text}\nand {rest} more");
        }
        if index > 0 {
            text.push('\n');
        }
        text.extend(line.chars().scan(0, |length, c| {
            *length += encoded(c.encode_utf8(&mut [0; 4]));
            (*length <= MAX_MESSAGE).then_some(c)
        }));
    }
    text
}

/// The length of a text when it is percent-encoded.
fn encoded(text: &str) -> usize {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\"#%<>`?{}".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { 1 } else { 3 })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(reason: Reason, message: &str) -> Problem {
        Problem {
            reason,
            message: message.to_owned(),
        }
    }

    #[test]
    fn one_a_line_and_one_code() {
        let missing = problem(Reason::NotFound, r#"namespaces "x" not found"#);
        let held = problem(Reason::AlreadyExists, "address 10.0.0.1 is held");
        let invalid = problem(Reason::Invalid, "wrong");
        let code = |list: &[Problem]| problems(list).code();
        assert_eq!(code(&[missing.clone(), missing.clone()]), Code::NotFound);
        assert_eq!(code(std::slice::from_ref(&held)), Code::AlreadyExists);
        assert_eq!(code(std::slice::from_ref(&invalid)), Code::InvalidArgument);
        assert_eq!(code(&[missing.clone(), held]), Code::InvalidArgument);
        let status = problems(&[missing, invalid]);
        assert_eq!(status.message(), "namespaces \"x\" not found\nwrong");
    }

    #[test]
    fn a_message_fits_into_a_header() {
        let many: Vec<_> = (0..1_000)
            .map(|n| problem(Reason::Invalid, &format!("{n}: {}", "ä ".repeat(50))))
            .collect();
        let status = problems(&many);
        assert!(encoded(status.message()) <= MAX_MESSAGE + 100);
        assert!(status.message().ends_with(" more"), "{}", status.message());
        let shown = status.message().lines().count() - 1;
        assert!(
            status
                .message()
                .ends_with(&format!("\nand {} more", 1_000 - shown))
        );

        let long = problems(&[problem(Reason::Invalid, &"x".repeat(100_000))]);
        assert_eq!(long.message().len(), MAX_MESSAGE);
    }
}
