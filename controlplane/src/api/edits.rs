//! The edits of a request: manifests read, references checked. Looks at nothing that is stored.

use std::sync::Arc;

use sallyport_proto::wire::{self, edit};

use super::convert;
use crate::{
    manifest::{self, UnknownKinds},
    transaction::{Edit, MAX_EDITS, Op, Problem, Reason},
};

/// The most objects left out that a response names; one more line counts the rest.
const MAX_IGNORED: usize = 1_000;

/// The edits that a request asks for, in order, or everything that is wrong with them.
pub fn read(requested: Vec<wire::Edit>) -> Result<Vec<Edit>, Vec<Problem>> {
    read_with(requested, UnknownKinds::Refuse).map(|(edits, _)| edits)
}

/// The same, and the objects of unknown kinds that were left out.
pub(super) fn read_with(
    requested: Vec<wire::Edit>,
    unknown: UnknownKinds,
) -> Result<(Vec<Edit>, Vec<String>), Vec<Problem>> {
    let (mut edits, mut problems, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
    for (index, edit) in requested.into_iter().enumerate() {
        match read_one(index, edit, unknown, &mut ignored) {
            Ok(more) => edits.extend(more),
            Err(more) => problems.extend(more),
        }
        if edits.len() > MAX_EDITS {
            // The transaction says so; there is no point in reading on.
            break;
        }
    }
    if ignored.len() > MAX_IGNORED {
        let rest = ignored.len() - MAX_IGNORED;
        ignored.truncate(MAX_IGNORED);
        ignored.push(format!("and {rest} more"));
    }
    if problems.is_empty() {
        Ok((edits, ignored))
    } else {
        Err(problems)
    }
}

fn read_one(
    index: usize,
    edit: wire::Edit,
    unknown: UnknownKinds,
    ignored: &mut Vec<String>,
) -> Result<Vec<Edit>, Vec<Problem>> {
    let invalid = |message: String| {
        vec![Problem {
            reason: Reason::Invalid,
            message: format!("edits[{index}]: {message}"),
        }]
    };
    match edit.op {
        Some(edit::Op::Put(text)) => {
            let parsed =
                manifest::parse_with(&text.text, &text.source, unknown).map_err(from_manifest)?;
            ignored.extend(parsed.ignored);
            Ok(with_source(
                &text.source,
                parsed.found.into_iter().map(Op::Put),
            ))
        }
        Some(edit::Op::DeleteManifest(text)) => {
            let parsed = manifest::parse_keys_with(&text.text, &text.source, unknown)
                .map_err(from_manifest)?;
            ignored.extend(parsed.ignored);
            Ok(with_source(
                &text.source,
                parsed.found.into_iter().map(Op::Delete),
            ))
        }
        Some(edit::Op::Delete(reference)) => {
            let key = convert::checked_key(&reference)
                .map_err(|error| invalid(format!("delete: {error}")))?;
            Ok(with_source("", [Op::Delete(key)]))
        }
        None => Err(invalid(
            "empty, or of a kind that this version does not know".to_owned(),
        )),
    }
}

/// Converts the problems of a manifest into those of a transaction.
fn from_manifest(problems: Vec<manifest::Problem>) -> Vec<Problem> {
    problems.into_iter().map(Problem::from).collect()
}

fn with_source(source: &str, ops: impl IntoIterator<Item = Op>) -> Vec<Edit> {
    let source: Arc<str> = source.into();
    ops.into_iter()
        .map(|op| Edit {
            source: source.clone(),
            op,
        })
        .collect()
}
