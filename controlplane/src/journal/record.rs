//! How the journal's records look in bytes, there and back. Touches no file and no tree.
//!
//! A record is: length of the payload (4 bytes), format version (1), CRC32 over the key and all that follows (4),
//! number of parts (4), payload. All numbers are big-endian. A value over [`PART`] bytes is written as several
//! records: sled puts large values into files of their own, and those it never syncs.

use sallyport_policy::Revision;
use sallyport_proto::object::{Kind, ObjectKey};

use super::failure::Damage;
use crate::{
    cluster::Stored,
    history::{Committed, Event, Replaced},
};

/// The version of a record's bytes and of the messages in them.
const VERSION: u8 = 1;
const HEADER: usize = 13;

/// The most payload bytes of one record.
pub(super) const PART: usize = 48 << 10;

/// A record's bytes.
pub(super) fn seal(key: &[u8], parts: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a part is small");
    let mut record = Vec::with_capacity(HEADER + payload.len());
    record.extend(length.to_be_bytes());
    record.push(VERSION);
    record.extend(checksum(key, parts, payload).to_be_bytes());
    record.extend(parts.to_be_bytes());
    record.extend(payload);
    record
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
    let Some((header, payload)) = record.split_at_checked(HEADER) else {
        return Err(Damage::Length {
            expected: HEADER,
            found: record.len(),
        });
    };
    let number = |at: usize| {
        u32::from_be_bytes(
            header[at..at + 4]
                .try_into()
                .expect("the header has four bytes there"),
        )
    };
    let (length, version, expected, parts) = (number(0) as usize, header[4], number(5), number(9));
    if length != payload.len() {
        return Err(Damage::Length {
            expected: HEADER + length,
            found: record.len(),
        });
    }
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let found = checksum(key, parts, payload);
    match found == expected {
        true => Ok(Record {
            parts,
            checksum: found,
            payload,
        }),
        false => Err(Damage::Checksum { expected, found }),
    }
}

fn checksum(key: &[u8], parts: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(&[VERSION]);
    hasher.update(&parts.to_be_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The keys and records of a value. `prefix` is all of the key but the part's number.
pub(super) fn split(prefix: &[u8], value: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let count = value.len().div_ceil(PART).max(1);
    let parts = u32::try_from(count).expect("a value has fewer parts than that");
    let of = |part: u32| {
        let key = [prefix, &part.to_be_bytes()].concat();
        let from = part as usize * PART;
        let record = seal(&key, parts, &value[from..value.len().min(from + PART)]);
        (key, record)
    };
    (0..parts).map(of).collect()
}

/// Takes the part's number off a key.
pub(super) fn split_key(key: &[u8]) -> Result<(&[u8], u32), Damage> {
    let (prefix, part) = key.split_last_chunk::<4>().ok_or(Damage::Key)?;
    Ok((prefix, u32::from_be_bytes(*part)))
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
    fn every_changed_bit_is_noticed() {
        let record = seal(b"key", 1, b"payload");
        assert_eq!(
            unseal(b"key", &record).map(|record| record.payload).ok(),
            Some(&b"payload"[..])
        );
        assert!(unseal(b"kez", &record).is_err(), "another key");
        for bit in 0..record.len() * 8 {
            let mut changed = record.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(b"key", &changed).is_err(), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(
                unseal(b"key", &record[..length]).is_err(),
                "cut to {length}"
            );
        }
    }

    #[test]
    fn large_values_are_several_records() {
        let value = vec![7; PART * 2 + 1];
        let records = split(b"p", &value);
        assert_eq!(records.len(), 3);
        let mut joined: Vec<u8> = Vec::new();
        for (part, (key, record)) in records.iter().enumerate() {
            assert_eq!(
                split_key(key).unwrap(),
                (&b"p"[..], u32::try_from(part).unwrap())
            );
            let record = unseal(key, record).unwrap();
            assert_eq!(record.parts, 3);
            joined.extend(record.payload);
        }
        assert_eq!(joined, value);
        assert_eq!(split(b"p", &[]).len(), 1);
        assert_eq!(split(b"p", &value[..PART]).len(), 1);
    }
}
