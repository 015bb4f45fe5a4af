//! The journal's records in bytes, there and back, and what they add up to. A record is a frame of `sallyport-journal`
//! without fields, bound to nothing. Touches no file and no tree.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;
use prost::Message;
use sallyport_journal::frame;
use sallyport_policy::{
    Change, Delta, Endpoint, GroupId, NodePolicy, Position, Ranges, UnknownAddresses, Update,
    Version, Window,
};
use sallyport_proto::wire;

use super::{Intent, Recovered};
use crate::{plan::Installed, table::names::UpdateSeq};

/// Raised when a record changes its meaning.
pub const FORMAT: u8 = 2;

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Snapshot(SnapshotRecord),
    #[prost(message, tag = "2")]
    Intent(IntentRecord),
    /// The generation that is not to be used again.
    #[prost(uint64, tag = "3")]
    Abort(u64),
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotRecord {
    /// The versions, oldest first, each as changes from the one before.
    #[prost(message, repeated, tag = "1")]
    versions: Vec<VersionRecord>,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(uint64, tag = "3")]
    made: u64,
    #[prost(message, repeated, tag = "4")]
    births: Vec<Birth>,
    #[prost(message, optional, tag = "5")]
    dropped: Option<wire::WorkloadRanges>,
    /// As an earlier enforcer wrote it: without whose the addresses were.
    #[prost(bytes = "vec", repeated, tag = "6")]
    departed_addresses: Vec<Vec<u8>>,
    /// The endpoints that are gone, each as the change that made it.
    #[prost(message, repeated, tag = "7")]
    departed: Vec<wire::PolicyChange>,
}

#[derive(Clone, PartialEq, Message)]
struct VersionRecord {
    #[prost(message, optional, tag = "1")]
    position: Option<wire::Position>,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<wire::PolicyChange>,
}

#[derive(Clone, PartialEq, Message)]
struct Birth {
    #[prost(bytes = "vec", tag = "1")]
    group: Vec<u8>,
    #[prost(uint64, tag = "2")]
    generation: u64,
}

#[derive(Clone, PartialEq, Message)]
struct IntentRecord {
    #[prost(message, optional, tag = "1")]
    target: Option<wire::Position>,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<wire::PolicyChange>,
    #[prost(message, optional, tag = "3")]
    base: Option<wire::Position>,
    /// The ranges in which unknown addresses are dropped beside the policy's; absent where they are let pass.
    #[prost(message, optional, tag = "4")]
    dropped: Option<wire::WorkloadRanges>,
    #[prost(uint64, tag = "5")]
    batch: u64,
    #[prost(message, repeated, tag = "6")]
    keep: Vec<wire::Position>,
}

impl From<&Intent> for IntentRecord {
    fn from(intent: &Intent) -> IntentRecord {
        let Update {
            base,
            target,
            keep,
            delta,
        } = &intent.update;
        IntentRecord {
            target: Some((*target).into()),
            changes: sallyport_proto::changes(delta),
            base: base.map(Into::into),
            dropped: dropped(&intent.unknown),
            batch: intent.batch as u64,
            keep: keep.iter().copied().map(Into::into).collect(),
        }
    }
}

fn snapshot_record(installed: &Installed) -> SnapshotRecord {
    let empty = NodePolicy::default();
    let mut before = &empty;
    let mut versions = Vec::new();
    for Version { position, policy } in installed.window.versions() {
        versions.push(VersionRecord {
            position: Some((*position).into()),
            changes: sallyport_proto::changes(&Delta::between(before, policy)),
        });
        before = policy;
    }
    let births = installed.births.iter().map(|(id, &generation)| Birth {
        group: id.0.to_vec(),
        generation: generation.0,
    });
    let departed = installed.departed.iter();
    let departed = Delta {
        changes: departed
            .map(|(&address, endpoint)| Change::SetEndpoint(address, endpoint.clone()))
            .collect(),
    };
    SnapshotRecord {
        versions,
        generation: installed.generation.0,
        made: installed.made.0,
        births: births.collect(),
        dropped: dropped(&installed.unknown),
        departed_addresses: Vec::new(),
        departed: sallyport_proto::changes(&departed),
    }
}

/// The record of an intent.
pub fn intent(intent: &Intent) -> Vec<u8> {
    encode(Kind::Intent(intent.into()))
}

/// The record of an intent that is taken back.
pub fn abort(generation: UpdateSeq) -> Vec<u8> {
    encode(Kind::Abort(generation.0))
}

/// The record of what is installed.
pub fn snapshot(installed: &Installed) -> Vec<u8> {
    encode(Kind::Snapshot(snapshot_record(installed)))
}

fn encode(kind: Kind) -> Vec<u8> {
    let record = Record { kind: Some(kind) };
    frame::encode(FORMAT, &[], [], &record.encode_to_vec())
}

/// Takes in the next record of a journal. Returns its description, for an operator.
pub fn fold(recovered: &mut Recovered, record: &[u8]) -> Result<String, String> {
    let frame = frame::decode::<0>(FORMAT, &[], record).map_err(|error| error.to_string())?;
    let record = Record::decode(frame.payload).map_err(|error| error.to_string())?;
    let description = describe(&record);
    apply(recovered, record)?;
    Ok(description)
}

fn apply(recovered: &mut Recovered, record: Record) -> Result<(), String> {
    match record
        .kind
        .ok_or("the record is empty, or of a later version")?
    {
        Kind::Snapshot(snapshot) => recovered.snapshot(installed(&snapshot)?),
        Kind::Intent(record) => {
            let intent = Intent {
                update: Update {
                    base: match &record.base {
                        Some(base) => Some(position(Some(base))?),
                        None => None,
                    },
                    target: position(record.target.as_ref())?,
                    keep: positions(&record.keep)?,
                    delta: delta(&record.changes)?,
                },
                unknown: unknown(record.dropped.as_ref())?,
                batch: usize::try_from(record.batch).unwrap_or(usize::MAX),
            };
            recovered
                .intend(intent)
                .map_err(|error| error.to_string())?;
        }
        Kind::Abort(generation) => recovered.abort(UpdateSeq(generation)),
    }
    Ok(())
}

fn installed(snapshot: &SnapshotRecord) -> Result<Installed, String> {
    let mut versions: Vec<Version> = Vec::new();
    let empty = NodePolicy::default();
    for record in &snapshot.versions {
        let position = position(record.position.as_ref())?;
        let before = versions.last().map_or(&empty, |version| &version.policy);
        let policy = before
            .applied(&delta(&record.changes)?, position.digest)
            .map_err(|error| error.to_string())?;
        versions.push(Version {
            position,
            policy: Arc::new(policy),
        });
    }
    let window = Window::new(versions);
    let births = snapshot.births.iter().map(|birth| {
        let id: [u8; 16] = birth.group[..]
            .try_into()
            .map_err(|_| "a group's id is not 16 bytes")?;
        Ok((GroupId(id), UpdateSeq(birth.generation)))
    });
    let unknown = unknown(snapshot.dropped.as_ref())?;
    Ok(Installed {
        policy: window.enforced(&unknown),
        window,
        unknown,
        generation: UpdateSeq(snapshot.generation),
        made: UpdateSeq(snapshot.made),
        births: births.collect::<Result<_, String>>()?,
        departed: departed(snapshot)?,
    })
}

fn departed(snapshot: &SnapshotRecord) -> Result<OrdMap<IpAddr, Arc<Endpoint>>, String> {
    let nobody = Arc::new(Endpoint::default());
    let addresses = snapshot.departed_addresses.iter();
    let mut departed = addresses
        .map(|bytes| Ok((address(bytes)?, nobody.clone())))
        .collect::<Result<OrdMap<_, _>, String>>()?;
    for change in delta(&snapshot.departed)?.changes {
        let Change::SetEndpoint(address, endpoint) = change else {
            return Err("a departed object is no endpoint".into());
        };
        departed.insert(address, endpoint);
    }
    Ok(departed)
}

fn unknown(dropped: Option<&wire::WorkloadRanges>) -> Result<UnknownAddresses, String> {
    let Some(dropped) = dropped else {
        return Ok(UnknownAddresses::Allow);
    };
    let ranges = Ranges::try_from(dropped).map_err(|error| error.to_string())?;
    Ok(UnknownAddresses::Drop(Arc::new(ranges)))
}

fn dropped(unknown: &UnknownAddresses) -> Option<wire::WorkloadRanges> {
    match unknown {
        UnknownAddresses::Drop(ranges) => Some((&**ranges).into()),
        UnknownAddresses::Allow => None,
    }
}

fn positions(found: &[wire::Position]) -> Result<Vec<Position>, String> {
    found.iter().map(|found| position(Some(found))).collect()
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .map_err(|_| format!("an address has {} bytes", bytes.len()))
}

fn position(found: Option<&wire::Position>) -> Result<Position, String> {
    let found = found.ok_or("the record has no position")?;
    Position::try_from(found).map_err(|error| error.to_string())
}

fn delta(changes: &[wire::PolicyChange]) -> Result<Delta, String> {
    sallyport_proto::delta(changes).map_err(|error| error.to_string())
}

/// What a record says, for people.
fn describe(record: &Record) -> String {
    let name = |position: &Option<wire::Position>| match position {
        Some(position) => format!("epoch {} revision {}", position.epoch, position.revision),
        None => "nothing".to_owned(),
    };
    match &record.kind {
        None => "nothing that this version knows".to_owned(),
        Some(Kind::Snapshot(snapshot)) => {
            let versions = snapshot.versions.iter();
            let names: Vec<_> = versions.map(|version| name(&version.position)).collect();
            format!("snapshot: holds {}", names.join(", "))
        }
        Some(Kind::Intent(intent)) => {
            let kept: Vec<_> = intent
                .keep
                .iter()
                .map(|kept| name(&Some(kept.clone())))
                .collect();
            let kept = match kept.is_empty() {
                true => String::new(),
                false => format!(", beside {}", kept.join(", ")),
            };
            let (to, from) = (name(&intent.target), name(&intent.base));
            format!(
                "intent: to {to} from {from}, {} changes{kept}",
                intent.changes.len()
            )
        }
        Some(Kind::Abort(generation)) => {
            format!("abort: the kernel refused the intent before; generation {generation} is burnt")
        }
    }
}
