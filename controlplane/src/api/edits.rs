//! The edits of a request: manifests read, references checked. Looks at nothing that is stored.

use std::sync::Arc;

use sallyport_proto::wire::{self, edit};

use super::convert;
use crate::{
    manifest,
    transaction::{Edit, MAX_EDITS, Op, Problem, Reason},
};

/// The edits that a request asks for, in order, or everything that is wrong with them.
pub fn read(requested: Vec<wire::Edit>) -> Result<Vec<Edit>, Vec<Problem>> {
    let (mut edits, mut problems) = (Vec::new(), Vec::new());
    for (index, edit) in requested.into_iter().enumerate() {
        match read_one(index, edit) {
            Ok(more) => edits.extend(more),
            Err(more) => problems.extend(more),
        }
        if edits.len() > MAX_EDITS {
            // The transaction says so; there is no point in reading on.
            break;
        }
    }
    if problems.is_empty() {
        Ok(edits)
    } else {
        Err(problems)
    }
}

fn read_one(index: usize, edit: wire::Edit) -> Result<Vec<Edit>, Vec<Problem>> {
    let invalid = |message: String| {
        vec![Problem {
            reason: Reason::Invalid,
            message: format!("edits[{index}]: {message}"),
        }]
    };
    match edit.op {
        Some(edit::Op::Put(text)) => {
            let objects = manifest::parse(&text.text, &text.source).map_err(told)?;
            Ok(with_source(&text.source, objects.into_iter().map(Op::Put)))
        }
        Some(edit::Op::DeleteManifest(text)) => {
            let keys = manifest::parse_keys(&text.text, &text.source).map_err(told)?;
            Ok(with_source(&text.source, keys.into_iter().map(Op::Delete)))
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

fn told(problems: Vec<manifest::Problem>) -> Vec<Problem> {
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
