//! The name of a node with a type, so that it is not taken for another text.

use std::{borrow::Borrow, fmt, sync::Arc};

/// The name of a node, as its Node object has it. A copy shares the text.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use sallyport_policy::NodeName;
///
/// let revisions = BTreeMap::from([(NodeName::from("web-1"), 7)]);
/// assert_eq!(revisions.get("web-1"), Some(&7));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> NodeName {
        NodeName(name.into())
    }
}

impl From<String> for NodeName {
    fn from(name: String) -> NodeName {
        NodeName(name.into())
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for NodeName {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for NodeName {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for NodeName {
    /// As the text: logs quote a name in the same way as other texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
