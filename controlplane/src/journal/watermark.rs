//! The last revision that was acknowledged, in a file beside sled's. sled cuts its log off where it meets a damaged
//! byte, and says nothing: only what stands outside can tell that acknowledged transactions are gone.
//!
//! It is written after the transactions are durable, and not synced itself: after a power cut it may be behind them,
//! never ahead. Two places are written in turn, so that one is whole when a write is torn.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use sallyport_proto::Revision;

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
    pub(super) fn open(directory: &Path) -> io::Result<(Watermark, Option<Revision>)> {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(NAME))?;
        let slots = SLOTS.map(|slot| read(&file, slot));
        let last = slots.into_iter().flatten().max();
        // The older one is written over first.
        let next = usize::from(slots[0] >= slots[1]);
        Ok((Watermark { file, next }, last))
    }

    /// A revision is durable and about to be acknowledged.
    pub(super) fn set(&mut self, revision: Revision) -> io::Result<()> {
        let bytes = revision.to_be_bytes();
        let slot: Vec<u8> = bytes.into_iter().chain(checksum(bytes)).collect();
        self.file.write_all_at(&slot, SLOTS[self.next])?;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn read(file: &File, slot: u64) -> Option<Revision> {
    let mut bytes = [0; SLOT];
    file.read_exact_at(&mut bytes, slot).ok()?;
    let (revision, sum) = bytes.split_first_chunk::<8>()?;
    (sum == checksum(*revision)).then(|| Revision::from_be_bytes(*revision))
}

fn checksum(revision: [u8; 8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(NAME.as_bytes());
    hasher.update(&revision);
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
        for revision in 1..=5 {
            watermark.set(revision).unwrap();
            let (other, last) = Watermark::open(directory.path()).unwrap();
            assert_eq!((other.next, last), (watermark.next, Some(revision)));
        }
        let written = 1 - watermark.next;
        watermark
            .file
            .write_all_at(&[9], SLOTS[written] + 7)
            .unwrap();
        let (again, last) = Watermark::open(directory.path()).unwrap();
        assert_eq!((again.next, last), (written, Some(4)));
    }
}
