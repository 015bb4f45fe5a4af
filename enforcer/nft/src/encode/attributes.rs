//! Netlink attributes: written, and read back.

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A run of encoded attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The bytes, aligned to four.
    pub bytes: Vec<u8>,
}

impl Attributes {
    /// Appends raw bytes.
    ///
    /// # Panics
    ///
    /// If the attribute is over 64 KiB: its length has 16 bits. A caller with more bytes splits them.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("callers split what is over 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a text with its NUL.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.bytes(kind, &value)
    }

    /// Appends a number in network byte order, as nf_tables has all its numbers.
    pub fn u32(&mut self, kind: u16, number: u32) -> &mut Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// Appends a number of 64 bits in network byte order.
    pub fn u64(&mut self, kind: u16, number: u64) -> &mut Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    /// Appends attributes as one that nests them.
    pub fn nest(&mut self, kind: u16, inner: &Attributes) -> &mut Self {
        self.bytes(kind | NESTED, &inner.bytes)
    }
}

/// Reads attributes: pairs of type (without flags) and value. Stops at the first that is cut off.
pub fn read(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    read(bytes)
        .find(|&(found, _)| found == kind)
        .map(|(_, value)| value)
}

/// A text, without its NUL.
pub fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A number in network byte order.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut inner = Attributes::default();
        inner.u32(1, 7);
        let mut all = Attributes::default();
        all.text(2, "abc").nest(3, &inner).bytes(4, &[1]);
        let found: Vec<_> = read(&all.bytes).collect();
        assert_eq!(found[0], (2, &b"abc\0"[..]));
        assert_eq!(number(find(found[1].1, 1).unwrap()), Some(7));
        assert_eq!(found[2], (4, &[1][..]));
        assert_eq!(text(found[0].1), "abc");
        assert_eq!(read(&all.bytes[..6]).count(), 0);
    }
}
