//! The last write that was acted upon, in a file beside sled's. sled cuts its log off at a damaged byte, without an
//! error: only a file outside sled can show that records are gone.
//!
//! It is written after the records are durable, and is not synced itself: after a power cut it may be behind, never
//! ahead. Two slots are written in turn, so that one is whole when a write is torn. A slot is the numbers (8 bytes
//! each, big-endian) and a CRC-32 over the file's name and the numbers.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use crate::Error;

const NAME: &str = "acknowledged";
const SLOTS: [u64; 2] = [0, 4096];

/// The open file. The numbers of a later write are greater, the first number first.
#[derive(Debug)]
pub struct Watermark<const NUMBERS: usize> {
    path: Box<Path>,
    file: File,
    next: usize,
}

impl<const NUMBERS: usize> Watermark<NUMBERS> {
    /// Opens the file in the directory of a journal, or creates it. Returns its numbers; `None` if no slot is whole. An
    /// earlier version may have written fewer numbers: the others are 0.
    pub fn open(directory: &Path) -> Result<(Self, Option<[u64; NUMBERS]>), Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(NAME))
            .map_err(Error::io(directory, "open the file acknowledged"))?;
        let slots = SLOTS.map(|slot| read(&file, slot));
        let watermark = Watermark {
            path: directory.into(),
            file,
            // The older slot is written over first.
            next: usize::from(slots[0] >= slots[1]),
        };
        Ok((watermark, slots.into_iter().flatten().max()))
    }

    /// Writes the numbers of a write that is durable and about to be acted upon.
    pub fn set(&mut self, numbers: [u64; NUMBERS]) -> Result<(), Error> {
        let bytes = numbers.map(u64::to_be_bytes).concat();
        let slot = [&bytes[..], &checksum(&bytes)].concat();
        self.file
            .write_all_at(&slot, SLOTS[self.next])
            .map_err(Error::io(&self.path, "write the file acknowledged"))?;
        self.next = 1 - self.next;
        Ok(())
    }
}

/// The numbers of a slot, if its checksum is right for any count of them up to `NUMBERS`.
fn read<const NUMBERS: usize>(file: &File, slot: u64) -> Option<[u64; NUMBERS]> {
    (1..=NUMBERS).rev().find_map(|count| {
        let mut bytes = vec![0; 8 * count + 4];
        file.read_exact_at(&mut bytes, slot).ok()?;
        let (content, sum) = bytes.split_last_chunk::<4>()?;
        if *sum != checksum(content) {
            return None;
        }
        let mut numbers = [0; NUMBERS];
        for (number, bytes) in numbers.iter_mut().zip(content.as_chunks::<8>().0) {
            *number = u64::from_be_bytes(*bytes);
        }
        Some(numbers)
    })
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
        for number in 0..=5 {
            watermark.set([number, 7]).unwrap();
            let (other, last) = Watermark::open(directory.path()).unwrap();
            assert_eq!((other.next, last), (watermark.next, Some([number, 7])));
        }
        let written = 1 - watermark.next;
        watermark
            .file
            .write_all_at(&[9], SLOTS[written] + 7)
            .unwrap();
        let (again, last) = Watermark::open(directory.path()).unwrap();
        assert_eq!((again.next, last), (written, Some([4, 7])));
    }

    /// The control plane's first version counted no notes.
    #[test]
    fn a_slot_of_an_earlier_version_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let (mut earlier, _) = Watermark::open(directory.path()).unwrap();
        earlier.set([9]).unwrap();
        let (mut watermark, last) = Watermark::open(directory.path()).unwrap();
        assert_eq!(last, Some([9, 0]));
        watermark.set([9, 1]).unwrap();
        assert_eq!(
            Watermark::open(directory.path()).unwrap().1,
            Some([9u64, 1])
        );
    }

    #[test]
    fn the_layout_on_disk_stays() {
        let directory = tempfile::tempdir().unwrap();
        let (mut watermark, _) = Watermark::open(directory.path()).unwrap();
        watermark.set([1]).unwrap();
        watermark.set([2]).unwrap();
        let bytes = std::fs::read(directory.path().join("acknowledged")).unwrap();
        let slot = |number: u64| {
            let number = number.to_be_bytes();
            let sum = crc32fast::hash(&[&b"acknowledged"[..], &number].concat());
            [&number[..], &sum.to_be_bytes()].concat()
        };
        assert_eq!(bytes.len(), 4096 + 12);
        assert_eq!(bytes[4096..], slot(1));
        assert_eq!(bytes[..12], slot(2));
    }
}
