//! The last revision that was acknowledged, and how many durable notes were taken, in a file beside sled's. sled cuts its log off where it meets a damaged
//! byte, and says nothing: only what stands outside can tell that acknowledged transactions are gone.
//!
//! It is written after the transactions are durable, and not synced itself: after a power cut it may be behind them,
//! never ahead. Two places are written in turn, so that one is whole when a write is torn.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use sallyport_policy::Revision;

const NAME: &str = "acknowledged";
const SLOTS: [u64; 2] = [0, 4096];
const SLOT: usize = 20;
/// Earlier versions counted no notes.
const SLOT_BEFORE: usize = 12;

/// What a journal must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Acknowledged {
    /// The last revision.
    pub(super) revision: Revision,
    /// How many durable notes.
    pub(super) noted: u64,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Watermark {
    file: File,
    next: usize,
}

impl Watermark {
    /// Opens the file, or creates it. Returns what it says; `None` when it says nothing.
    pub(super) fn open(directory: &Path) -> io::Result<(Watermark, Option<Acknowledged>)> {
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

    /// It is durable and about to be acknowledged.
    pub(super) fn set(&mut self, Acknowledged { revision, noted }: Acknowledged) -> io::Result<()> {
        let bytes = [revision.0.to_be_bytes(), noted.to_be_bytes()].concat();
        let slot = [&bytes[..], &checksum(&bytes)].concat();
        self.file.write_all_at(&slot, SLOTS[self.next])?;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn read(file: &File, slot: u64) -> Option<Acknowledged> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_be_bytes);
    let now = whole::<SLOT>(file, slot).map(|bytes| Acknowledged {
        revision: Revision(number(&bytes[..8])),
        noted: number(&bytes[8..16]),
    });
    now.or_else(|| {
        let bytes = whole::<SLOT_BEFORE>(file, slot)?;
        Some(Acknowledged {
            revision: Revision(number(&bytes[..8])),
            noted: 0,
        })
    })
}

/// The bytes of a slot, if its checksum is right.
fn whole<const LENGTH: usize>(file: &File, slot: u64) -> Option<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, slot).ok()?;
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    (*sum == checksum(content)).then_some(bytes)
}

fn checksum(content: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(NAME.as_bytes());
    hasher.update(content);
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
        let at = |revision| Acknowledged { revision, noted: 7 };
        for revision in 1..=5 {
            watermark.set(at(Revision(revision))).unwrap();
            let (other, last) = Watermark::open(directory.path()).unwrap();
            assert_eq!(
                (other.next, last),
                (watermark.next, Some(at(Revision(revision))))
            );
        }
        let written = 1 - watermark.next;
        watermark
            .file
            .write_all_at(&[9], SLOTS[written] + 7)
            .unwrap();
        let (again, last) = Watermark::open(directory.path()).unwrap();
        assert_eq!((again.next, last), (written, Some(at(Revision(4)))));
    }

    #[test]
    fn what_an_earlier_version_wrote_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = 9u64.to_be_bytes();
        let slot = [&bytes[..], &checksum(&bytes)].concat();
        std::fs::write(directory.path().join(NAME), slot).unwrap();
        let (mut watermark, last) = Watermark::open(directory.path()).unwrap();
        let was = Acknowledged {
            revision: Revision(9),
            noted: 0,
        };
        assert_eq!(last, Some(was));
        let is = Acknowledged {
            revision: Revision(9),
            noted: 1,
        };
        watermark.set(is).unwrap();
        assert_eq!(Watermark::open(directory.path()).unwrap().1, Some(is));
    }
}
