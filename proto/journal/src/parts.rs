//! A value in parts, each under a key of its own: the key of the value and the number of the part (4 bytes,
//! big-endian).

/// The most bytes of a part. sled keeps a value, and a page of up to 17 of them, in a file that it never syncs if the
/// length is over a quarter of a segment. 17 parts are shorter.
pub const PART: usize = 48 << 10;

/// The parts of a value with their numbers, in order. An empty value has one part.
pub fn split(
    value: &[u8],
) -> impl DoubleEndedIterator<Item = (u32, &[u8])> + ExactSizeIterator<Item = (u32, &[u8])> {
    let count = value.len().div_ceil(PART).max(1);
    let count = u32::try_from(count).expect("a value has fewer parts than that");
    (0..count).map(move |part| {
        let from = part as usize * PART;
        (part, &value[from..value.len().min(from + PART)])
    })
}

/// The key of a part of the value under `prefix`.
pub fn key(prefix: &[u8], part: u32) -> Vec<u8> {
    [prefix, &part.to_be_bytes()].concat()
}

/// Splits the key of a part into the key of its value and the number of the part. `None` if the key is too short.
pub fn split_key(key: &[u8]) -> Option<(&[u8], u32)> {
    let (prefix, part) = key.split_last_chunk::<4>()?;
    Some((prefix, u32::from_be_bytes(*part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_is_several_parts() {
        let value = vec![7; PART * 2 + 1];
        assert_eq!(split(&value).len(), 3);
        let mut joined: Vec<u8> = Vec::new();
        for (expected, (part, bytes)) in (0..).zip(split(&value)) {
            let key = key(b"p", part);
            assert_eq!(split_key(&key), Some((&b"p"[..], expected)));
            joined.extend(bytes);
        }
        assert_eq!(joined, value);
        assert_eq!(split(&value[..PART]).len(), 1);
        assert_eq!(split(&[]).collect::<Vec<_>>(), [(0, &[][..])]);
        assert_eq!(split_key(b"abc"), None);
    }
}
