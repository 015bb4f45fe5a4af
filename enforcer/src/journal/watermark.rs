//! The last record that was acted upon, in a file beside sled's. sled cuts its log off where it meets a damaged byte, and
//! says nothing: only what stands outside can tell that records are gone.
//!
//! It is written after a record is durable, and not synced itself: after a power cut it may be behind, never ahead. Two
//! places are written in turn, so that one is whole when a write is torn.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// The file's name.
const NAME: &str = "acknowledged";
const SLOTS: [u64; 2] = [0, 4096];
const SLOT: usize = 12;

/// The open file.
#[derive(Debug)]
pub(super) struct Watermark {
    file: File,
    next: usize,
}

impl Watermark {
    /// Opens the file, or creates it. Returns what it says; `None` when it says nothing.
    pub(super) fn open(directory: &Path) -> io::Result<(Watermark, Option<u64>)> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(NAME))?;
        let slots = SLOTS.map(|slot| read(&file, slot));
        // The older one is written over first.
        let next = usize::from(slots[0] >= slots[1]);
        Ok((Watermark { file, next }, slots.into_iter().flatten().max()))
    }

    /// A record is durable and about to be acted upon.
    pub(super) fn set(&mut self, sequence: u64) -> io::Result<()> {
        let bytes = sequence.to_be_bytes();
        let slot: Vec<u8> = bytes.into_iter().chain(checksum(bytes)).collect();
        self.file.write_all_at(&slot, SLOTS[self.next])?;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn read(file: &File, slot: u64) -> Option<u64> {
    let mut bytes = [0; SLOT];
    file.read_exact_at(&mut bytes, slot).ok()?;
    let (sequence, sum) = bytes.split_first_chunk::<8>()?;
    (sum == checksum(*sequence)).then(|| u64::from_be_bytes(*sequence))
}

fn checksum(sequence: [u8; 8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(NAME.as_bytes());
    hasher.update(&sequence);
    hasher.finalize().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let (mut watermark, nothing) = Watermark::open(directory.path()).unwrap();
        assert_eq!(nothing, None);
        for sequence in 0..=5 {
            watermark.set(sequence).unwrap();
            let (other, last) = Watermark::open(directory.path()).unwrap();
            assert_eq!((other.next, last), (watermark.next, Some(sequence)));
        }
        let written = 1 - watermark.next;
        let at = SLOTS[written] + 7;
        watermark.file.write_all_at(&[9], at).unwrap();
        let (again, last) = Watermark::open(directory.path()).unwrap();
        assert_eq!((again.next, last), (written, Some(4)));
    }
}
