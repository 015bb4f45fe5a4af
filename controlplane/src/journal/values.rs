//! Values in trees: read from their records, each checked, and replaced. Knows parts and checksums, not what a value
//! means.

use std::{
    iter::{self, Peekable},
    ops::RangeBounds,
};

use prost::Message;
use sallyport_journal::{Error as StoreError, KeyValue, KeyValues, Tree};

use super::{
    failure::{Damage, JournalError},
    record::{self, NumberRecord},
    store::Trees,
};

/// A value, joined from its parts.
pub(super) struct Value {
    /// Its key, but for the part.
    pub(super) prefix: Vec<u8>,
    /// What messages call it.
    pub(super) name: String,
    /// The value.
    pub(super) bytes: Vec<u8>,
    /// The sum of the parts' checksums.
    pub(super) sum: u64,
    /// How many parts are missing at the end.
    pub(super) missing: u32,
}

impl Trees {
    /// The values of a tree whose keys begin in a range.
    pub(super) fn values<'a>(
        &'a self,
        tree: &Tree,
        label: &'static str,
        range: impl RangeBounds<[u8; 8]>,
    ) -> impl Iterator<Item = Result<Value, JournalError>> + 'a {
        let mut records = tree.range(range).peekable();
        iter::from_fn(move || {
            let first = records.next()?;
            Some(self.value(label, first, &mut records))
        })
    }

    /// One value, from its first record on. The record after its last stays in `records`.
    fn value(
        &self,
        label: &'static str,
        first: Result<KeyValue, StoreError>,
        records: &mut Peekable<KeyValues>,
    ) -> Result<Value, JournalError> {
        let (mut key, mut bytes) = first?;
        let (prefix, _) = self.part_of(label, &key)?;
        let name = name(label, prefix);
        let mut value = Value {
            prefix: prefix.to_vec(),
            name,
            bytes: Vec::new(),
            sum: 0,
            missing: 0,
        };
        for expected in 0u32.. {
            let (_, part) = self.part_of(label, &key)?;
            let part_name = || format!("{}, part {part}", value.name);
            let record =
                record::unseal(&key, &bytes).map_err(|damage| self.damaged(part_name(), damage))?;
            if part != expected || part >= record.parts {
                return Err(
                    self.damaged(format!("{}, part {expected}", value.name), Damage::Missing)
                );
            }
            value.missing = record.parts - part - 1;
            value.sum = value.sum.wrapping_add(record.checksum.into());
            value.bytes.extend(record.payload);
            match records.peek() {
                Some(Ok((later, _))) if self.part_of(label, later)?.0 == value.prefix => {}
                _ => break,
            }
            let Some(following) = records.next() else {
                break;
            };
            (key, bytes) = following?;
        }
        Ok(value)
    }

    fn part_of<'k>(
        &self,
        label: &'static str,
        key: &'k [u8],
    ) -> Result<(&'k [u8], u32), JournalError> {
        record::split_key(key).map_err(|damage| self.damaged(name(label, key), damage))
    }

    /// Writes a value over what was there. Returns how the sum of the tree's checksums changes, and whether the
    /// value is new.
    pub(super) fn put_value(
        &self,
        tree: &Tree,
        prefix: &[u8],
        bytes: &[u8],
    ) -> Result<(u64, bool), JournalError> {
        let (removed, existed) = self.remove_value(tree, prefix)?;
        let mut sum = removed;
        for (key, sealed) in record::split(prefix, bytes) {
            let checksum = record::unseal(&key, &sealed).map_or(0, |record| record.checksum);
            sum = sum.wrapping_add(checksum.into());
            tree.insert(key, &sealed)?;
        }
        Ok((sum, !existed))
    }

    /// Removes a value, its last part first, so that of a value that is there in part the first parts are there.
    /// Returns how the sum of the tree's checksums changes, and whether the value was there.
    pub(super) fn remove_value(
        &self,
        tree: &Tree,
        prefix: &[u8],
    ) -> Result<(u64, bool), JournalError> {
        let (mut sum, mut existed) = (0u64, false);
        for item in tree.scan_prefix(prefix).rev() {
            let (key, bytes) = item?;
            if key.len() != prefix.len() + 4 {
                continue;
            }
            let checksum = record::unseal(&key, &bytes).map_or(0, |record| record.checksum);
            sum = sum.wrapping_sub(checksum.into());
            existed = true;
            tree.remove(key)?;
        }
        Ok((sum, existed))
    }

    /// A message in `meta`.
    pub(super) fn meta<M: Message + Default>(&self, key: &str) -> Result<Option<M>, JournalError> {
        let Some(bytes) = self.meta.get(key)? else {
            return Ok(None);
        };
        let damaged = |damage| self.damaged(format!("meta: {key}"), damage);
        let record = record::unseal(key.as_bytes(), &bytes).map_err(damaged)?;
        let message = M::decode(record.payload)
            .map_err(|error| damaged(Damage::Payload(error.to_string())))?;
        Ok(Some(message))
    }

    /// A number in `meta`.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, JournalError> {
        Ok(self.meta::<NumberRecord>(key)?.map(|record| record.number))
    }

    /// Writes a message to `meta`.
    pub(super) fn put_meta(&self, key: &str, message: &impl Message) -> Result<(), JournalError> {
        let record = record::seal(key.as_bytes(), 1, &message.encode_to_vec());
        Ok(self.meta.insert(key, &record)?)
    }

    /// Removes a message from `meta`.
    pub(super) fn remove_meta(&self, key: &str) -> Result<(), JournalError> {
        Ok(self.meta.remove(key)?)
    }

    /// The keys in `meta` that begin so.
    pub(super) fn meta_keys(&self, prefix: &str) -> Result<Vec<String>, JournalError> {
        let keys = self.meta.scan_prefix(prefix).keys();
        keys.map(|key| {
            String::from_utf8(key?).map_err(|_| {
                self.damaged(
                    "meta: a key".to_owned(),
                    Damage::Payload("no text".to_owned()),
                )
            })
        })
        .collect()
    }

    /// A message in `meta` is not there.
    pub(super) fn missing_meta(&self, key: &str) -> JournalError {
        self.damaged(format!("meta: {key}"), Damage::Missing)
    }

    /// A record is damaged.
    pub(super) fn damaged(&self, record: String, damage: Damage) -> JournalError {
        JournalError::Damaged {
            path: self.store.path().to_path_buf(),
            record,
            damage,
        }
    }
}

/// What messages call a value.
fn name(label: &str, prefix: &[u8]) -> String {
    match <[u8; 8]>::try_from(prefix) {
        Ok(revision) if label == "log" => format!("log: revision {}", u64::from_be_bytes(revision)),
        _ => {
            let names = prefix.get(1..).unwrap_or_default().split(|&byte| byte == 0);
            let names = names
                .map(String::from_utf8_lossy)
                .filter(|name| !name.is_empty());
            format!("{label}: {}", names.collect::<Vec<_>>().join("/"))
        }
    }
}
