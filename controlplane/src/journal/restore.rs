//! A journal made from a backup, in a directory that has none. Never touches one that is there.

use std::{fs, io, path::Path};

use prost::Message as _;
use sallyport_journal::{Error as StoreError, Watermark};
use sallyport_policy::{Epoch, Revision};
use sallyport_proto::backup::{Contents, Saved};

use super::{
    failure::JournalError,
    load,
    record::{ObjectRecord, SnapshotRecord, object_key},
    store::{Acknowledged, Trees},
};
use crate::{
    cluster::Cluster,
    manifest,
    transaction::{self, Edit, Op},
};

/// Why a backup is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something there.
    #[error(
        "the directory {0} is not empty: give an empty directory for the backup, or move the files away"
    )]
    NotEmpty(String),
    /// Nodes would take it for what they have seen.
    #[error(
        "the epoch must be above the backup's, which is {0}: nodes refuse to go back within an epoch"
    )]
    Epoch(Epoch),
    /// What is in the backup is refused.
    #[error("the backup holds an object that this version does not accept: {0}")]
    Object(String),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Makes a journal of a backup, in a later epoch. When this returns it is durable, and a control plane can start on it.
pub fn restore(path: &Path, contents: &Contents, epoch: Epoch) -> Result<(), RestoreError> {
    if epoch <= contents.epoch {
        return Err(RestoreError::Epoch(contents.epoch));
    }
    check(contents)?;
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err(RestoreError::NotEmpty(path.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let error = StoreError::io(path, "read the directory")(error);
            return Err(JournalError::Store(error).into());
        }
    }
    let trees = Trees::open(path)?;
    let mut snapshot = SnapshotRecord {
        revision: contents.revision.0,
        trimmed: contents.revision.0,
        ..SnapshotRecord::default()
    };
    for saved in &contents.objects {
        let record = ObjectRecord::of(&saved.key, Some(saved.manifest.to_string()), saved.revision);
        let (sum, new) = trees.put_value(
            &trees.snapshot,
            &object_key(&saved.key),
            &record.encode_to_vec(),
        )?;
        snapshot.sum = snapshot.sum.wrapping_add(sum);
        snapshot.objects += u64::from(new);
    }
    load::begin_with(&trees, epoch, snapshot, &contents.nodes)?;
    begin_watermark(path, contents.revision)?;
    Ok(())
}

fn begin_watermark(path: &Path, revision: Revision) -> Result<(), JournalError> {
    let (mut watermark, _) = Watermark::open(path)?;
    let acknowledged = Acknowledged { revision, noted: 0 };
    Ok(watermark.set(acknowledged.into())?)
}

/// The objects are good, one by one and together.
fn check(contents: &Contents) -> Result<(), RestoreError> {
    let put = |saved: &Saved| {
        let object = manifest::object_from_json(&saved.manifest)
            .map_err(|problem| RestoreError::Object(format!("{}: {problem}", saved.key)))?;
        match object.key == saved.key {
            true => Ok(Edit {
                source: "".into(),
                op: Op::Put(object),
            }),
            false => Err(RestoreError::Object(format!(
                "{} is {}",
                saved.key, object.key
            ))),
        }
    };
    let edits = contents
        .objects
        .iter()
        .map(put)
        .collect::<Result<Vec<_>, _>>()?;
    let mut cluster = Cluster::default();
    for edit in &edits {
        if let Op::Put(object) = &edit.op {
            cluster.put(object.clone(), contents.revision);
        }
    }
    transaction::consistent(&cluster).map_err(|problem| RestoreError::Object(problem.to_string()))
}
