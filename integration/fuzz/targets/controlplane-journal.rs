//! A control plane's journal as a disk may hold it: records of any kind, under any key, many of them with the right
//! checksum. The records are read as at a start, from a real sled.
//!
//! An input is text: each line a record, `TREE KEY PARTS PAYLOAD` (with Rust's escapes in key and payload). PARTS is
//! the number of parts that the record claims, or `-` for a record without length and checksum.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use sallyport_controlplane::{
    history::Bounds,
    journal::{Acknowledged, JournalError, Recovered, StoreError, Trees, record::seal},
};
use sallyport_journal::Tree;
use sallyport_policy::Revision;

/// After so many inputs sled gets a new directory, since its file only grows.
const INPUTS: u32 = 20_000;

/// A record, and the name of its tree.
struct Record<'a> {
    tree: &'a [u8],
    key: Vec<u8>,
    bytes: Vec<u8>,
}

struct Disk {
    trees: Trees,
    inputs: u32,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let directory = tempfile::tempdir_in("/dev/shm").expect("memory that is a file system");
        Disk {
            trees: Trees::open(directory.path()).expect("an empty journal"),
            inputs: 0,
            _directory: directory,
        }
    }

    /// Replaces all records by others.
    fn replace<'a>(&self, records: impl Iterator<Item = Record<'a>>) -> Result<(), StoreError> {
        let Trees {
            log,
            snapshot,
            meta,
            ..
        } = &self.trees;
        for tree in [log, snapshot, meta] {
            for key in tree.iter().keys() {
                tree.remove(key?)?;
            }
        }
        for record in records {
            let tree: &Tree = match record.tree {
                b"log" => log,
                b"snapshot" => snapshot,
                _ => meta,
            };
            tree.insert(record.key, &record.bytes)?;
        }
        Ok(())
    }

    /// Reads the records that are there.
    fn read(&self, acknowledged: Revision) -> Result<Recovered, JournalError> {
        let acknowledged = Acknowledged {
            revision: acknowledged,
            noted: 0,
        };
        self.trees.recover(Bounds::default(), acknowledged)
    }
}

thread_local! {
    static DISK: RefCell<Disk> = RefCell::new(Disk::new());
}

fuzz_target!(|data: &[u8]| {
    let mut lines = data.split(|&byte| byte == b'\n');
    let acknowledged = Revision(lines.next().map_or(0, number));
    let records = lines.filter_map(record).take(64);
    DISK.with_borrow_mut(|disk| {
        disk.inputs += 1;
        if disk.inputs > INPUTS {
            *disk = Disk::new();
        }
        disk.replace(records).expect("the trees can be written");
        let Ok(first) = disk.read(acknowledged) else {
            return;
        };
        let again = disk.read(acknowledged);
        assert_eq!(again.expect("what was read once can be read again"), first);
    });
});

fn number(text: &[u8]) -> u64 {
    str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn record(line: &[u8]) -> Option<Record<'_>> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let tree = fields.next()?;
    let key = unescaped(fields.next()?);
    let parts = fields.next()?;
    let payload = unescaped(fields.next()?);
    let bytes = match parts {
        b"-" => payload,
        parts => seal(&key, number(parts) as u32, &payload),
    };
    Some(Record { tree, key, bytes })
}

/// `\xHH` is a byte, everything else is itself.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((&first, rest)) = text.split_first() {
        let escaped = text.strip_prefix(b"\\x").and_then(|rest| {
            let (digits, rest) = rest.split_at_checked(2)?;
            let byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
            Some((byte, rest))
        });
        let (byte, after) = escaped.unwrap_or((first, rest));
        bytes.push(byte);
        text = after;
    }
    bytes
}
