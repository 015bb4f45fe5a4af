//! Folds the log into the snapshot, so that opening reads each object once and not each change of it. Runs beside the
//! writer, at the cost of the changes; touches no transaction that is not in the snapshot afterwards.
//!
//! A crash at any point leaves a good journal: the log is trimmed only when the snapshot has all of it, and until
//! then opening replays the log from the snapshot's old revision, over objects old and new alike. That the snapshot
//! is between two revisions is written down first, because its checksum is not that of either.

use std::collections::BTreeMap;

use prost::Message as _;
use sallyport_policy::Revision;
use tracing::debug;

use super::{
    failure::{Damage, JournalError},
    load::{FOLDING_KEY, SNAPSHOT_KEY, read_log},
    record::{NumberRecord, ObjectRecord, SnapshotRecord, object_key, revision_key},
    store::Trees,
};

/// How many log records are removed before the next flush.
const TRIMMED_AT_ONCE: usize = 4_096;

/// Brings the snapshot from where it is to a revision, and trims the log to the last `keep` transactions.
pub(super) fn fold(
    trees: &Trees,
    from: SnapshotRecord,
    to: Revision,
    keep: usize,
) -> Result<SnapshotRecord, JournalError> {
    let changes = changes(trees, Revision(from.revision), to)?;

    trees.put_meta(FOLDING_KEY, &NumberRecord { number: to.0 })?;
    trees.store.sync()?;

    let trimmed = to.0.saturating_sub(keep as u64).max(from.trimmed);
    let mut snapshot = SnapshotRecord {
        revision: to.0,
        trimmed,
        ..from
    };
    for (prefix, object) in &changes {
        apply(trees, prefix, object, &mut snapshot)?;
    }
    trees.store.sync()?;

    trees.put_meta(SNAPSHOT_KEY, &snapshot)?;
    trees.store.sync()?;

    trim(trees, Revision(trimmed))?;
    debug!(
        revision = to.0,
        changes = changes.len(),
        "folded the log into the snapshot"
    );
    Ok(snapshot)
}

/// What the transactions after `from` up to `to` come to: the last word on each object.
fn changes(
    trees: &Trees,
    from: Revision,
    to: Revision,
) -> Result<BTreeMap<Vec<u8>, ObjectRecord>, JournalError> {
    let mut changes = BTreeMap::new();
    let (log, _) = read_log(trees, revision_key(from.next())..revision_key(to.next()))?;
    if log.len() as u64 != to.0 - from.0 {
        return Err(trees.damaged(
            format!("log: revisions {} to {to}", from.next()),
            Damage::Missing,
        ));
    }
    for transaction in log {
        for object in transaction.events {
            let name = || format!("log: revision {}", transaction.revision);
            let key = object
                .key()
                .map_err(|damage| trees.damaged(name(), damage))?;
            changes.insert(object_key(&key), object);
        }
    }
    Ok(changes)
}

fn apply(
    trees: &Trees,
    prefix: &[u8],
    object: &ObjectRecord,
    snapshot: &mut SnapshotRecord,
) -> Result<(), JournalError> {
    let tree = &trees.snapshot;
    match &object.manifest {
        Some(_) => {
            let (sum, new) = trees.put_value(tree, prefix, &object.encode_to_vec())?;
            snapshot.sum = snapshot.sum.wrapping_add(sum);
            snapshot.objects += u64::from(new);
        }
        None => {
            let (sum, existed) = trees.remove_value(tree, prefix)?;
            snapshot.sum = snapshot.sum.wrapping_add(sum);
            snapshot.objects -= u64::from(existed);
        }
    }
    Ok(())
}

/// Removes the transactions up to a revision, which are void already.
fn trim(trees: &Trees, up_to: Revision) -> Result<(), JournalError> {
    for (count, item) in trees
        .log
        .range(..revision_key(up_to.next()))
        .keys()
        .enumerate()
    {
        trees.log.remove(item?)?;
        if count % TRIMMED_AT_ONCE == TRIMMED_AT_ONCE - 1 {
            trees.store.sync()?;
        }
    }
    Ok(trees.store.sync()?)
}
