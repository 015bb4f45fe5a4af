//! An object as an entry of a table that is looked up by its key, so that the key is not kept twice. It owns a
//! reference to the object, nothing else.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use sallyport_proto::object::ObjectKey;

use crate::cluster::Stored;

/// An object that equals its key.
#[derive(Debug)]
pub(super) struct ByKey(pub(super) Arc<Stored>);

impl Borrow<ObjectKey> for ByKey {
    fn borrow(&self) -> &ObjectKey {
        &self.0.object.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.object.key == other.0.object.key
    }
}

impl Eq for ByKey {}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.object.key.hash(state);
    }
}
