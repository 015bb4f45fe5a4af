//! How the journal's records look in bytes, there and back. Touches no file and no tree.
//!
//! A value is written in parts, each a record: a frame of `sallyport-journal` with the number of parts (4 bytes) as its
//! field. The frame is bound to the record's key, then the version.

use sallyport_journal::{frame, parts};
use sallyport_policy::Revision;
use sallyport_proto::object::{Kind, ObjectKey};

use super::failure::Damage;
use crate::{
    cluster::Stored,
    history::{Committed, Event, Replaced},
};

/// The version of a record's bytes and of the messages in them.
const VERSION: u8 = 1;

/// A record's bytes.
pub fn seal(key: &[u8], parts: u32, payload: &[u8]) -> Vec<u8> {
    frame::encode(VERSION, &[key, &[VERSION]], parts.to_be_bytes(), payload)
}

/// A record that is what was written.
pub(super) struct Record<'a> {
    /// How many records make up the value.
    pub(super) parts: u32,
    /// The CRC32.
    pub(super) checksum: u32,
    /// This record's part of the value.
    pub(super) payload: &'a [u8],
}

/// Reads a record's bytes.
pub(super) fn unseal<'a>(key: &[u8], record: &'a [u8]) -> Result<Record<'a>, Damage> {
    let frame = frame::decode(VERSION, &[key, &[VERSION]], record)?;
    Ok(Record {
        parts: u32::from_be_bytes(frame.fields),
        checksum: frame.checksum,
        payload: frame.payload,
    })
}

/// The keys and records of a value. `prefix` is all of the key but the part's number.
pub(super) fn split(prefix: &[u8], value: &[u8]) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let parts = parts::split(value);
    let count = u32::try_from(parts.len()).expect("the number of each part is a u32");
    parts.map(move |(part, payload)| {
        let key = parts::key(prefix, part);
        let record = seal(&key, count, payload);
        (key, record)
    })
}

/// Takes the part's number off a key.
pub(super) fn split_key(key: &[u8]) -> Result<(&[u8], u32), Damage> {
    parts::split_key(key).ok_or(Damage::Key)
}

/// The key of a transaction, but for the part: revisions in order.
pub(super) fn revision_key(revision: Revision) -> [u8; 8] {
    revision.0.to_be_bytes()
}

/// The key of an object, but for the part.
pub(super) fn object_key(key: &ObjectKey) -> Vec<u8> {
    let mut bytes = vec![kind_number(key.kind)];
    for text in [&key.namespace, &key.name] {
        bytes.extend(text.as_bytes());
        // No name has it, so that no key is the start of another.
        bytes.push(0);
    }
    bytes
}

/// A committed transaction, in the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TransactionRecord {
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) events: Vec<ObjectRecord>,
    /// When, in milliseconds since 1970.
    #[prost(uint64, optional, tag = "3")]
    pub(super) at_ms: Option<u64>,
    /// What it replaced or deleted. Absent in the records of earlier versions, which did not note it.
    #[prost(message, optional, tag = "4")]
    pub(super) before: Option<BeforeRecord>,
}

/// Objects as they were before a transaction.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct BeforeRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) objects: Vec<ObjectRecord>,
}

/// An object: in a transaction, what became of it; in the snapshot, what it is.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ObjectRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    name: String,
    /// Absent when the object was deleted.
    #[prost(string, optional, tag = "4")]
    pub(super) manifest: Option<String>,
    /// The revision that last changed it; in a transaction, the transaction's own; not told of what was replaced.
    #[prost(uint64, tag = "5")]
    pub(super) revision: u64,
}

/// How far the snapshot is, in `meta`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct SnapshotRecord {
    /// The last transaction that is in it.
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    /// How many objects it holds.
    #[prost(uint64, tag = "2")]
    pub(super) objects: u64,
    /// The sum of its records' checksums.
    #[prost(uint64, tag = "3")]
    pub(super) sum: u64,
    /// Transactions up to this one are void: they are being trimmed from the log.
    #[prost(uint64, tag = "4")]
    pub(super) trimmed: u64,
}

/// A number, in `meta`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct NumberRecord {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
}

impl From<&Committed> for TransactionRecord {
    fn from(committed: &Committed) -> Self {
        let event = |event: &Event| match event {
            Event::Put(stored) => ObjectRecord::from(&**stored),
            Event::Delete(key) => ObjectRecord::of(key, None, committed.revision),
        };
        let replaced = |object: &Replaced| {
            ObjectRecord::of(&object.key, Some(object.manifest.to_string()), Revision(0))
        };
        TransactionRecord {
            revision: committed.revision.0,
            events: committed.events.iter().map(event).collect(),
            at_ms: committed.at_ms,
            before: committed.before.as_ref().map(|objects| BeforeRecord {
                objects: objects.iter().map(replaced).collect(),
            }),
        }
    }
}

impl From<&Stored> for ObjectRecord {
    fn from(stored: &Stored) -> Self {
        let manifest = stored.object.manifest.to_string();
        ObjectRecord::of(&stored.object.key, Some(manifest), stored.revision)
    }
}

impl ObjectRecord {
    pub(super) fn of(
        key: &ObjectKey,
        manifest: Option<String>,
        revision: Revision,
    ) -> ObjectRecord {
        ObjectRecord {
            kind: kind_number(key.kind).into(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            manifest,
            revision: revision.0,
        }
    }

    /// Which object it is about.
    pub(super) fn key(&self) -> Result<ObjectKey, Damage> {
        let kind = Kind::ALL
            .into_iter()
            .find(|&kind| u32::from(kind_number(kind)) == self.kind);
        let kind = kind.ok_or_else(|| Damage::Payload(format!("kind {} is none", self.kind)))?;
        Ok(ObjectKey {
            kind,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        })
    }
}

/// A kind on the disk. Never to be changed.
fn kind_number(kind: Kind) -> u8 {
    match kind {
        Kind::Namespace => 1,
        Kind::Node => 2,
        Kind::NetworkPolicy => 3,
        Kind::Pod => 4,
        Kind::Workload => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_bound_to_its_key_and_to_the_number_of_parts() {
        let value = vec![7; parts::PART * 2 + 1];
        let records: Vec<_> = split(b"p", &value).collect();
        let mut joined: Vec<u8> = Vec::new();
        for (key, record) in &records {
            let record = unseal(key, record).unwrap();
            assert_eq!(record.parts, 3);
            joined.extend(record.payload);
        }
        assert_eq!(joined, value);
        let [(first, record), (second, _), _] = &records[..] else {
            panic!("{} records", records.len());
        };
        assert!(unseal(first, record).is_ok());
        assert!(unseal(second, record).is_err(), "another key");
        let mut changed = record.clone();
        changed[12] = 4;
        assert!(unseal(first, &changed).is_err(), "another number of parts");
    }
}
