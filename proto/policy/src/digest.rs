//! The digest of a node's policy: a sum of one hash an entry, so that it follows a change at the change's cost and
//! does not depend on the order of changes.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// A 128-bit sum of entry hashes. It detects lost and repeated changes; it is no defence against an adversary who
/// chooses entries.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// Adds an entry.
    pub(crate) fn add(&mut self, entry: u128) {
        self.0 = self.0.wrapping_add(entry);
    }

    /// Takes an entry away.
    pub(crate) fn remove(&mut self, entry: u128) {
        self.0 = self.0.wrapping_sub(entry);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes fields unambiguously: each is preceded by its length. Nobody finds two lists of fields with one hash.
pub struct Hasher(Sha256);

impl Hasher {
    /// Starts a hash of the given kind; hashes of different kinds never meet.
    pub fn new(kind: &str) -> Self {
        Hasher(Sha256::new()).field(kind.as_bytes())
    }

    /// Takes a field in.
    pub fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    /// The first 128 bits.
    pub fn finish(self) -> u128 {
        let hash = self.0.finalize();
        u128::from_be_bytes(hash[..16].try_into().expect("SHA-256 has 32 bytes"))
    }
}
