//! From the journal's records to the cluster: reads every record once and believes none unchecked. Writes only what
//! a new journal begins with, and takes out a transaction that was never finished.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeBounds,
    panic::resume_unwind,
    sync::Arc,
    thread,
};

use prost::Message;
use sallyport_policy::{Epoch, NodeName, Revision};
use sallyport_proto::Membership;
use tracing::warn;

use super::{
    Note, Recovered,
    failure::{Damage, JournalError},
    record::{self, NumberRecord, ObjectRecord, SnapshotRecord, TransactionRecord},
    store::Trees,
    values::Value,
};
use crate::{
    cluster::{Cluster, Stored},
    history::{Bounds, Committed, Event, History, Replaced},
    manifest,
};

/// The journal's format: which trees there are and what is in them.
const FORMAT: u64 = 1;

const FORMAT_KEY: &str = "format";
const EPOCH_KEY: &str = "epoch";
pub(super) const SNAPSHOT_KEY: &str = "snapshot";
/// The revision up to which the log is being folded; above the snapshot's revision only while that is unfinished.
pub(super) const FOLDING_KEY: &str = "folding";

/// How many durable notes were taken.
const NOTED_KEY: &str = "noted";
const SETTLED_KEY: &str = "settled";
/// The key of a node that has joined begins so.
const NODE_KEY: &str = "node ";
/// The key of a node that left begins so. Earlier versions do not know it: to them such a node has never joined.
const LEFT_KEY: &str = "left ";

/// What was read.
pub(super) struct Loaded {
    pub(super) recovered: Recovered,
    /// The snapshot as it is, which a fold may have left between two revisions.
    pub(super) snapshot: SnapshotRecord,
    /// The revision up to which a fold was under way.
    pub(super) unfinished: Option<Revision>,
}

/// Reads everything. Up to revision `acknowledged` it must be there.
pub(super) fn load(
    trees: &Trees,
    bounds: Bounds,
    acknowledged: Revision,
) -> Result<Loaded, JournalError> {
    if trees.number(FORMAT_KEY)?.is_none() {
        begin(trees)?;
    }
    let format = trees.number(FORMAT_KEY)?.unwrap_or(FORMAT);
    if format != FORMAT {
        return Err(JournalError::Format {
            path: trees.store.path().to_path_buf(),
            found: format,
            known: FORMAT,
        });
    }
    let epoch = trees
        .number(EPOCH_KEY)?
        .ok_or_else(|| trees.missing_meta(EPOCH_KEY))?;
    let promised: SnapshotRecord = trees
        .meta(SNAPSHOT_KEY)?
        .ok_or_else(|| trees.missing_meta(SNAPSHOT_KEY))?;
    let unfinished = trees
        .number(FOLDING_KEY)?
        .filter(|&to| to > promised.revision);

    let (log, read) = thread::scope(|scope| {
        let snapshot = scope.spawn(|| read_snapshot(trees, promised));
        let log = read_log(
            trees,
            record::revision_key(Revision(promised.trimmed + 1))..,
        );
        (
            log,
            snapshot.join().unwrap_or_else(|panic| resume_unwind(panic)),
        )
    });
    let ((log, torn), read) = (log?, read?);
    if let Some(torn) = torn {
        let whole = log.last().map_or(promised.revision, |last| last.revision);
        if whole < acknowledged.0 {
            let missing = format!("log: revision {}", whole + 1);
            return Err(trees.damaged(missing, Damage::Missing));
        }
        warn!(
            record = torn.name,
            "dropped the last transaction of the journal: its write was cut off, and it was not acknowledged"
        );
        trees.remove_value(&trees.log, &torn.prefix)?;
        trees.store.sync()?;
    }
    let (objects, found) = match unfinished {
        None => whole_snapshot(trees, promised, read)?,
        Some(_) => snapshot_between(trees, promised, read, &log)?,
    };
    let mut cluster = Cluster::of(&parse(trees, objects)?);
    let history = replay(trees, log, &mut cluster, promised, bounds)?;
    if let Some(to) = unfinished.filter(|&to| to > history.latest().0) {
        return Err(trees.damaged(format!("log: revision {to}"), Damage::Missing));
    }
    let joined = joined(trees)?;
    let recovered = Recovered {
        cluster,
        revision: history.latest(),
        epoch: Epoch(epoch),
        history,
        settled: Revision(trees.number(SETTLED_KEY)?.unwrap_or(0)),
        left: left(trees, &joined)?,
        joined,
    };
    Ok(Loaded {
        recovered,
        snapshot: found,
        unfinished: unfinished.map(Revision),
    })
}

/// Writes a note, durably if it has to be.
pub(super) fn note(trees: &Trees, note: &Note) -> Result<(), JournalError> {
    match note {
        Note::Joined { node, membership } => {
            put_joined(trees, node, *membership)?;
            trees.remove_meta(&format!("{LEFT_KEY}{node}"))?;
            make_durable(trees)
        }
        Note::Left { node, at_ms } => {
            let number = *at_ms;
            trees.put_meta(&format!("{LEFT_KEY}{node}"), &NumberRecord { number })?;
            trees.remove_meta(&format!("{NODE_KEY}{node}"))?;
            make_durable(trees)
        }
        Note::Forgotten { node } => {
            trees.remove_meta(&format!("{NODE_KEY}{node}"))?;
            trees.remove_meta(&format!("{LEFT_KEY}{node}"))
        }
        Note::Settled(revision) => {
            trees.put_meta(SETTLED_KEY, &NumberRecord { number: revision.0 })
        }
    }
}

/// Records that a node has joined, as 1 if it has leases and as 0 otherwise.
fn put_joined(trees: &Trees, node: &NodeName, membership: Membership) -> Result<(), JournalError> {
    let number = u64::from(membership.is_leased());
    trees.put_meta(&format!("{NODE_KEY}{node}"), &NumberRecord { number })
}

/// Counts a note that is written, and makes both durable. The count comes after the note: where the count is, the note is.
fn make_durable(trees: &Trees) -> Result<(), JournalError> {
    let number = noted(trees)? + 1;
    trees.put_meta(NOTED_KEY, &NumberRecord { number })?;
    Ok(trees.store.sync()?)
}

/// How many durable notes were taken.
pub(super) fn noted(trees: &Trees) -> Result<u64, JournalError> {
    Ok(trees.number(NOTED_KEY)?.unwrap_or(0))
}

/// The nodes that have joined.
fn joined(trees: &Trees) -> Result<BTreeMap<NodeName, Membership>, JournalError> {
    let mut joined = BTreeMap::new();
    for key in trees.meta_keys(NODE_KEY)? {
        let leased = trees.number(&key)?.unwrap_or(0) != 0;
        joined.insert(
            NodeName::from(&key[NODE_KEY.len()..]),
            Membership::Joined { leased },
        );
    }
    Ok(joined)
}

/// The nodes that left. Of a node that joined again the note that it left may have stayed.
fn left(
    trees: &Trees,
    joined: &BTreeMap<NodeName, Membership>,
) -> Result<BTreeMap<NodeName, u64>, JournalError> {
    let mut left = BTreeMap::new();
    for key in trees.meta_keys(LEFT_KEY)? {
        let node = &key[LEFT_KEY.len()..];
        if !joined.contains_key(node) {
            left.insert(NodeName::from(node), trees.number(&key)?.unwrap_or(0));
        }
    }
    Ok(left)
}

/// The last revision in the journal.
pub(super) fn last_revision(trees: &Trees) -> Result<Revision, JournalError> {
    let snapshot: Option<SnapshotRecord> = trees.meta(SNAPSHOT_KEY)?;
    let folded = snapshot.map_or(0, |snapshot| snapshot.revision);
    match trees.log.iter().keys().next_back().transpose()? {
        None => Ok(Revision(folded)),
        Some(key) => {
            Ok(log_revision(trees, &key[..key.len().saturating_sub(4)])?.max(Revision(folded)))
        }
    }
}

/// What a new journal holds. The format comes last: without it, this is done again.
fn begin(trees: &Trees) -> Result<(), JournalError> {
    if trees.log.iter().next().is_some() || trees.snapshot.iter().next().is_some() {
        return Err(trees.missing_meta(FORMAT_KEY));
    }
    begin_with(trees, Epoch(1), SnapshotRecord::default(), &BTreeMap::new())
}

/// What a journal holds that begins with a snapshot, which is there already. The format comes last: without it, it is none.
pub(super) fn begin_with(
    trees: &Trees,
    epoch: Epoch,
    snapshot: SnapshotRecord,
    joined: &BTreeMap<NodeName, Membership>,
) -> Result<(), JournalError> {
    trees.put_meta(EPOCH_KEY, &NumberRecord { number: epoch.0 })?;
    trees.put_meta(SNAPSHOT_KEY, &snapshot)?;
    for (node, membership) in joined.iter().filter(|(_, one)| one.is_joined()) {
        put_joined(trees, node, *membership)?;
    }
    trees.put_meta(FORMAT_KEY, &NumberRecord { number: FORMAT })?;
    Ok(trees.store.sync()?)
}

/// The objects of a snapshot that no fold is at work on.
fn whole_snapshot(
    trees: &Trees,
    promised: SnapshotRecord,
    (objects, found, torn): Snapshot,
) -> Result<(Vec<ObjectRecord>, SnapshotRecord), JournalError> {
    if let Some(value) = torn.into_iter().next() {
        return Err(trees.damaged(value.name, Damage::Missing));
    }
    if found != promised {
        let damage = Damage::Sum {
            expected: promised.objects,
            expected_sum: promised.sum,
            found: found.objects,
            found_sum: found.sum,
        };
        return Err(trees.damaged("snapshot".to_owned(), damage));
    }
    Ok((objects, found))
}

/// The objects of a snapshot that a fold was at work on when the process died. An object that it had half written
/// is in the log.
fn snapshot_between(
    trees: &Trees,
    promised: SnapshotRecord,
    (objects, found, torn): Snapshot,
    log: &[TransactionRecord],
) -> Result<(Vec<ObjectRecord>, SnapshotRecord), JournalError> {
    let unfolded = log
        .iter()
        .filter(|transaction| transaction.revision > promised.revision);
    let keys: BTreeSet<_> = unfolded
        .flat_map(|transaction| &transaction.events)
        .filter_map(|object| object.key().ok())
        .map(|key| record::object_key(&key))
        .collect();
    for value in torn {
        if !keys.contains(&value.prefix) {
            return Err(trees.damaged(value.name, Damage::Missing));
        }
        trees.remove_value(&trees.snapshot, &value.prefix)?;
    }
    Ok((objects, found))
}

/// The objects of a snapshot, what they add up to, and those that are there only in part.
type Snapshot = (Vec<ObjectRecord>, SnapshotRecord, Vec<Value>);

/// Reads a snapshot.
fn read_snapshot(trees: &Trees, promised: SnapshotRecord) -> Result<Snapshot, JournalError> {
    let (mut objects, mut torn) = (Vec::new(), Vec::new());
    let mut found = SnapshotRecord {
        objects: 0,
        sum: 0,
        ..promised
    };
    for value in trees.values(&trees.snapshot, "snapshot", ..) {
        let value = value?;
        if value.missing > 0 {
            torn.push(value);
            continue;
        }
        let object = ObjectRecord::decode(&value.bytes[..]).map_err(|error| {
            trees.damaged(value.name.clone(), Damage::Payload(error.to_string()))
        })?;
        let key = object
            .key()
            .map_err(|damage| trees.damaged(value.name.clone(), damage))?;
        if record::object_key(&key) != value.prefix {
            return Err(trees.damaged(value.name, Damage::Misplaced(key.to_string())));
        }
        found.objects += 1;
        found.sum = found.sum.wrapping_add(value.sum);
        objects.push(object);
    }
    Ok((objects, found, torn))
}

/// The transactions of a part of the log, and one at its end that is there only in part: then the process died while
/// it was written, and nobody was told of it.
pub(super) fn read_log(
    trees: &Trees,
    range: impl RangeBounds<[u8; 8]>,
) -> Result<(Vec<TransactionRecord>, Option<Value>), JournalError> {
    let mut log: Vec<TransactionRecord> = Vec::new();
    let mut values = trees.values(&trees.log, "log", range);
    while let Some(value) = values.next() {
        let value = value?;
        if value.missing > 0 {
            return match values.next() {
                None => Ok((log, Some(value))),
                Some(_) => Err(trees.damaged(value.name, Damage::Missing)),
            };
        }
        let transaction = TransactionRecord::decode(&value.bytes[..]).map_err(|error| {
            trees.damaged(value.name.clone(), Damage::Payload(error.to_string()))
        })?;
        let revision = log_revision(trees, &value.prefix)?;
        if transaction.revision != revision.0 {
            let other = format!("revision {}", transaction.revision);
            return Err(trees.damaged(value.name, Damage::Misplaced(other)));
        }
        if let Some(previous) = log
            .last()
            .filter(|previous| previous.revision + 1 != revision.0)
        {
            let missing = format!("log: revision {}", previous.revision + 1);
            return Err(trees.damaged(missing, Damage::Missing));
        }
        log.push(transaction);
    }
    Ok((log, None))
}

/// Carries out the log on the snapshot. Each event says what an object is from then on, so that it does no harm to
/// an object that a fold has brought further already.
fn replay(
    trees: &Trees,
    log: Vec<TransactionRecord>,
    cluster: &mut Cluster,
    snapshot: SnapshotRecord,
    bounds: Bounds,
) -> Result<History, JournalError> {
    let first = log
        .first()
        .map_or(snapshot.revision + 1, |transaction| transaction.revision);
    let last = log
        .last()
        .map_or(snapshot.revision, |transaction| transaction.revision);
    let lost = match () {
        () if first > snapshot.trimmed + 1 => Some(snapshot.trimmed + 1),
        () if last < snapshot.revision => Some(last + 1),
        () => None,
    };
    if let Some(revision) = lost {
        return Err(trees.damaged(format!("log: revision {revision}"), Damage::Missing));
    }
    let mut history = History::starting_after(Revision(first - 1), bounds);
    for committed in events(trees, log, cluster)? {
        for event in committed
            .events
            .iter()
            .filter(|_| committed.revision > Revision(snapshot.revision))
        {
            match event {
                Event::Put(stored) => cluster.put_stored(stored.clone()),
                Event::Delete(key) => drop(cluster.remove(key)),
            }
        }
        history.push(Arc::new(committed));
    }
    Ok(history)
}

/// The transactions of the log as they were committed. What the snapshot holds too is shared with it.
fn events(
    trees: &Trees,
    log: Vec<TransactionRecord>,
    snapshot: &Cluster,
) -> Result<Vec<Committed>, JournalError> {
    let mut unread = Vec::new();
    let mut outline = Vec::with_capacity(log.len());
    for transaction in log {
        let mut events = Vec::with_capacity(transaction.events.len());
        for object in transaction.events {
            let name = || format!("log: revision {}", transaction.revision);
            let key = object
                .key()
                .map_err(|damage| trees.damaged(name(), damage))?;
            let shared = snapshot
                .get(&key)
                .filter(|stored| stored.revision == Revision(transaction.revision));
            events.push(match (&object.manifest, shared) {
                (None, _) => Some(Event::Delete(key)),
                (Some(_), Some(stored)) => Some(Event::Put(stored.clone())),
                (Some(_), None) => {
                    unread.push(object);
                    None
                }
            });
        }
        let before = match transaction.before {
            Some(before) => Some(replaced(
                trees,
                Revision(transaction.revision),
                before.objects,
            )?),
            None => None,
        };
        outline.push((events, transaction.revision, transaction.at_ms, before));
    }
    let mut read = parse(trees, unread)?.into_iter();
    let mut fill = |event: Option<Event>| {
        event.unwrap_or_else(|| Event::Put(read.next().expect("one was read for each gap")))
    };
    let filled = outline
        .into_iter()
        .map(|(events, revision, at_ms, before)| Committed {
            revision: Revision(revision),
            events: events.into_iter().map(&mut fill).collect(),
            at_ms,
            before,
        });
    Ok(filled.collect())
}

/// What a transaction replaced or deleted. The manifests are read when somebody goes back to them.
fn replaced(
    trees: &Trees,
    revision: Revision,
    objects: Vec<ObjectRecord>,
) -> Result<Vec<Replaced>, JournalError> {
    let objects = objects.into_iter().map(|object| {
        let name = || format!("log: revision {revision}");
        let key = object
            .key()
            .map_err(|damage| trees.damaged(name(), damage))?;
        Ok(Replaced {
            key,
            manifest: object.manifest.unwrap_or_default().into(),
        })
    });
    objects.collect()
}

/// Reads manifests, on all processors: this is most of the time that opening takes.
fn parse(trees: &Trees, records: Vec<ObjectRecord>) -> Result<Vec<Arc<Stored>>, JournalError> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = records.len().div_ceil(threads).max(1_000);
    let read = |chunk: &[ObjectRecord]| chunk.iter().map(parse_one).collect();
    let parsed: Vec<Result<Vec<_>, _>> = thread::scope(|scope| {
        let mut chunks = records.chunks(share);
        // The first share is this thread's own.
        let own = chunks.next();
        let workers: Vec<_> = chunks
            .map(|chunk| scope.spawn(move || read(chunk)))
            .collect();
        let joined = workers.into_iter().map(|worker| worker.join());
        own.map(read)
            .into_iter()
            .chain(joined.map(|result| result.expect("reading a manifest does not panic")))
            .collect()
    });
    let mut all = Vec::with_capacity(records.len());
    for chunk in parsed {
        let chunk = chunk.map_err(|(name, damage)| trees.damaged(name, damage))?;
        all.extend(chunk);
    }
    Ok(all)
}

fn parse_one(record: &ObjectRecord) -> Result<Arc<Stored>, (String, Damage)> {
    let name = |key: &dyn std::fmt::Display| format!("{key} of revision {}", record.revision);
    let key = record
        .key()
        .map_err(|damage| (name(&"an object"), damage))?;
    let text = record.manifest.as_deref().unwrap_or_default();
    let object = manifest::object_from_json(text)
        .map_err(|problem| (name(&key), Damage::Object(problem.into())))?;
    match object.key == key {
        true => Ok(Arc::new(Stored {
            object,
            revision: Revision(record.revision),
        })),
        false => Err((name(&key), Damage::Misplaced(object.key.to_string()))),
    }
}

fn log_revision(trees: &Trees, prefix: &[u8]) -> Result<Revision, JournalError> {
    let bytes = <[u8; 8]>::try_from(prefix)
        .map_err(|_| trees.damaged(format!("log: key {prefix:02x?}"), Damage::Key))?;
    Ok(Revision(u64::from_be_bytes(bytes)))
}
