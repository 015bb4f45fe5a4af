//! A control plane's journal as a disk may hold it: records of any kind, under any key, many of them with the right
//! checksum. The records are read as at a start, from a real sled.
//!
//! An input is text: each line a record, `TREE KEY PARTS PAYLOAD` (with Rust's escapes in key and payload). PARTS is
//! the number of parts that the record claims, or `-` for a record without length and checksum.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use sallyport_controlplane::journal::forged::{Forged, Tree, seal};
use sallyport_policy::Revision;

/// After so many inputs sled gets a new directory, since its file only grows.
const INPUTS: u32 = 20_000;

struct Disk {
    forged: Forged,
    inputs: u32,
    _directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let directory = tempfile::tempdir_in("/dev/shm").expect("memory that is a file system");
        Disk {
            forged: Forged::open(directory.path()).expect("an empty journal"),
            inputs: 0,
            _directory: directory,
        }
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
        let Ok(first) = disk.forged.read(records, acknowledged) else {
            return;
        };
        let again = disk.forged.read_again(acknowledged);
        assert_eq!(again.expect("what was read once can be read again"), first);
    });
});

fn number(text: &[u8]) -> u64 {
    str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn record(line: &[u8]) -> Option<(Tree, Vec<u8>, Vec<u8>)> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let tree = match fields.next()? {
        b"log" => Tree::Log,
        b"snapshot" => Tree::Snapshot,
        _ => Tree::Meta,
    };
    let key = unescaped(fields.next()?);
    let parts = fields.next()?;
    let payload = unescaped(fields.next()?);
    let record = match parts {
        b"-" => payload,
        parts => seal(&key, number(parts) as u32, &payload),
    };
    Some((tree, key, record))
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
