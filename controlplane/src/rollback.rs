//! Going back to an earlier revision: the edits of a new transaction that makes objects what they were. Pure: it
//! commits nothing, and what it returns is checked like any other transaction.

use std::sync::Arc;

use sallyport_policy::Revision;
use sallyport_proto::object::{Kind, ObjectKey};

use crate::{
    cluster::Cluster,
    history::{History, Unrecorded},
    manifest,
    transaction::{Edit, Op},
};

/// Why it is not known how to go back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// What happened since is not known.
    #[error(transparent)]
    Unrecorded(#[from] Unrecorded),
    /// An object was stored by a version that accepted more.
    #[error("as of revision {revision}, {key} is no object that this version accepts: {problem}")]
    Object {
        /// The revision that was asked for.
        revision: Revision,
        /// Which object.
        key: ObjectKey,
        /// What is wrong with it.
        problem: Box<manifest::Problem>,
    },
}

/// The edits that make the objects of some kinds (of all, if none are named) what they were at a revision.
pub fn edits(
    history: &History,
    cluster: &Cluster,
    to: Revision,
    kinds: &[Kind],
) -> Result<Vec<Edit>, RollbackError> {
    let (mut puts, mut deletes, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for (key, was) in history.undone(to)? {
        if !kinds.is_empty() && !kinds.contains(&key.kind) {
            continue;
        }
        let is = cluster.get(key).map(|stored| &stored.object.manifest);
        match (was, is) {
            (Some(was), is) if Some(was) != is => {
                let object = manifest::object_from_json(was);
                let object = object.map_err(|problem| RollbackError::Object {
                    revision: to,
                    key: key.clone(),
                    problem: problem.into(),
                })?;
                puts.push(Op::Put(object));
            }
            (None, Some(_)) if key.kind.is_namespaced() => deletes.push(Op::Delete(key.clone())),
            // A namespace takes along what is in it, so it goes when that is gone.
            (None, Some(_)) => last.push(Op::Delete(key.clone())),
            _ => {}
        }
    }
    // Addresses are free before others have them again.
    let ops = deletes.into_iter().chain(last).chain(puts);
    let source: Arc<str> = format!("rollback to revision {to}").into();
    let edit = |op| Edit {
        source: source.clone(),
        op,
    };
    Ok(ops.map(edit).collect())
}
