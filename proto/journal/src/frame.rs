//! A record in bytes: length of the payload (4 bytes), format (1), CRC-32 (4), fields of the format, payload. Numbers
//! are big-endian. The CRC-32 covers bytes that the record is bound to but does not contain, then the fields, then
//! the payload.

/// The length of the header before the fields of the format.
pub const HEADER: usize = 9;

/// A record whose bytes are those that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a, const FIELDS: usize> {
    /// The CRC-32.
    pub checksum: u32,
    /// The part of the header that only this format has.
    pub fields: [u8; FIELDS],
    /// The content.
    pub payload: &'a [u8],
}

/// A record is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The record is cut off, or longer than its header says.
    #[error("the record is {found} bytes long and should be {expected}")]
    Length {
        /// The length that the header says.
        expected: usize,
        /// The length of the record.
        found: usize,
    },
    /// The record has another format.
    #[error("the record has format {0}, which this version of Sallyport does not know")]
    Format(u8),
    /// Bits changed.
    #[error("the checksum is {found:08x} and should be {expected:08x}")]
    Checksum {
        /// The checksum that the header says.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
}

/// The bytes of a record. Its checksum also covers the bytes `bound`, such as the key of the record.
pub fn encode<const FIELDS: usize>(
    format: u8,
    bound: &[&[u8]],
    fields: [u8; FIELDS],
    payload: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a record has less than 4 GiB");
    let mut record = Vec::with_capacity(HEADER + FIELDS + payload.len());
    record.extend(length.to_be_bytes());
    record.push(format);
    record.extend(checksum(bound, &fields, payload).to_be_bytes());
    record.extend(fields);
    record.extend(payload);
    record
}

/// Reads a record of a format, and refuses one that is not what was written.
pub fn decode<'a, const FIELDS: usize>(
    format: u8,
    bound: &[&[u8]],
    record: &'a [u8],
) -> Result<Frame<'a, FIELDS>, FrameError> {
    let cut_off = FrameError::Length {
        expected: HEADER + FIELDS,
        found: record.len(),
    };
    let (length, rest) = record.split_first_chunk::<4>().ok_or(cut_off)?;
    let (&found_format, rest) = rest.split_first().ok_or(cut_off)?;
    let (expected, rest) = rest.split_first_chunk::<4>().ok_or(cut_off)?;
    let (fields, payload) = rest.split_first_chunk::<FIELDS>().ok_or(cut_off)?;
    // A later format may count its length otherwise.
    if found_format != format {
        return Err(FrameError::Format(found_format));
    }
    let length = u32::from_be_bytes(*length) as usize;
    if length != payload.len() {
        return Err(FrameError::Length {
            expected: HEADER + FIELDS + length,
            found: record.len(),
        });
    }
    let (expected, found) = (
        u32::from_be_bytes(*expected),
        checksum(bound, fields, payload),
    );
    if found != expected {
        return Err(FrameError::Checksum { expected, found });
    }
    Ok(Frame {
        checksum: found,
        fields: *fields,
        payload,
    })
}

fn checksum(bound: &[&[u8]], fields: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for bytes in bound {
        hasher.update(bytes);
    }
    hasher.update(fields);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_is_noticed() {
        let record = encode(1, &[b"key"], [0, 0, 0, 2], b"payload");
        let read = |key: &[u8], record: &[u8]| {
            let frame = decode::<4>(1, &[key], record)?;
            Ok::<_, FrameError>((frame.fields, frame.payload.to_vec()))
        };
        assert_eq!(
            read(b"key", &record),
            Ok(([0, 0, 0, 2], b"payload".to_vec()))
        );
        assert!(read(b"kez", &record).is_err(), "another key");
        for bit in 0..record.len() * 8 {
            let mut changed = record.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(read(b"key", &changed).is_err(), "bit {bit}");
        }
        for length in 0..record.len() {
            assert!(read(b"key", &record[..length]).is_err(), "cut to {length}");
        }
        let longer = [&record[..], b"."].concat();
        assert!(read(b"key", &longer).is_err(), "with a byte behind it");
    }

    /// The bytes of both journals' layouts, as the releases before this crate wrote them. The checksum of "123456789"
    /// is the check value of CRC-32/ISO-HDLC.
    #[test]
    fn the_layouts_on_disk_stay() {
        let payload = b"123456789";
        let plain = encode(2, &[], [], payload);
        let header = [0, 0, 0, 9, 2, 0xcb, 0xf4, 0x39, 0x26];
        assert_eq!(plain, [&header[..], payload].concat());
        let bound = encode(b'5', &[b"1234", b"5"], *b"6789", b"");
        let header = [0, 0, 0, 0, b'5', 0xcb, 0xf4, 0x39, 0x26];
        assert_eq!(bound, [&header[..], b"6789"].concat());
    }
}
