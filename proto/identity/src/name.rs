//! The names of identities: `spiffe://CLUSTER/node/NAME`, `/operator/NAME` and `/controlplane`
//! (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>).

use std::{fmt, str::FromStr};

/// The longest name of a node: that of a DNS subdomain (RFC 1123), as its Node object's.
const LONGEST_NODE: usize = 253;

/// The longest name of an operator: that of a DNS label.
const LONGEST_OPERATOR: usize = 63;

const SCHEME: &str = "spiffe://";

/// Why a text is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is no id of a cluster.
    #[error("a cluster id has 32 digits of 0-9 and a-f")]
    Cluster,
    /// The URI has another scheme.
    #[error("a name begins with spiffe://CLUSTER/")]
    Scheme,
    /// The path names no kind of identity.
    #[error("a name ends with /node/NAME, /operator/NAME or /controlplane")]
    Kind,
    /// The node's name cannot be that of a Node object.
    #[error(
        "a node's name has at most 253 characters of a-z, 0-9, `-` and `.`, and each part between dots begins and ends \
         with a letter or digit"
    )]
    Node,
    /// The operator's name has other characters.
    #[error(
        "an operator's name has 1 to 63 characters of a-z, A-Z, 0-9, `-`, `_` and `.`, and begins with a letter or \
         digit"
    )]
    Operator,
}

/// The id of a cluster: 128 random bits, which no two clusters share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(u128);

impl ClusterId {
    /// An id for a new cluster.
    pub fn random() -> ClusterId {
        ClusterId(rand::random())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for ClusterId {
    type Err = NameError;

    /// Reads only the form that is written, so that equal ids have equal texts.
    fn from_str(text: &str) -> Result<ClusterId, NameError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.len() == 32 && text.bytes().all(is_digit) {
            true => u128::from_str_radix(text, 16)
                .map(ClusterId)
                .map_err(|_| NameError::Cluster),
            false => Err(NameError::Cluster),
        }
    }
}

/// The owner of a certificate within its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A node, by the name of its Node object.
    Node(String),
    /// A person or program that uses the API.
    Operator(String),
    /// A control plane.
    ControlPlane,
}

impl Subject {
    /// A node of this name.
    pub fn node(name: &str) -> Result<Subject, NameError> {
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_label = |label: &str| {
            let bytes = label.as_bytes();
            bytes.iter().all(|&byte| is_inner(byte) || byte == b'-')
                && bytes.first().is_some_and(|&byte| is_inner(byte))
                && bytes.last().is_some_and(|&byte| is_inner(byte))
        };
        match name.len() <= LONGEST_NODE && name.split('.').all(is_label) {
            true => Ok(Subject::Node(name.to_owned())),
            false => Err(NameError::Node),
        }
    }

    /// An operator of this name.
    pub fn operator(name: &str) -> Result<Subject, NameError> {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let begins = name.bytes().next();
        let begins_well = begins.is_some_and(|byte| byte.is_ascii_alphanumeric());
        match begins_well && name.len() <= LONGEST_OPERATOR && name.bytes().all(is_known) {
            true => Ok(Subject::Operator(name.to_owned())),
            false => Err(NameError::Operator),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Node(name) => write!(f, "node {name}"),
            Subject::Operator(name) => write!(f, "operator {name}"),
            Subject::ControlPlane => f.write_str("the control plane"),
        }
    }
}

/// The identity that a certificate proves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its owner there.
    pub subject: Subject,
}

impl Identity {
    /// The URI that stands in the certificate.
    pub fn uri(&self) -> String {
        let cluster = self.cluster;
        match &self.subject {
            Subject::Node(name) => format!("{SCHEME}{cluster}/node/{name}"),
            Subject::Operator(name) => format!("{SCHEME}{cluster}/operator/{name}"),
            Subject::ControlPlane => format!("{SCHEME}{cluster}/controlplane"),
        }
    }

    /// The identity that a URI names. Only the form that is written is read.
    pub fn from_uri(uri: &str) -> Result<Identity, NameError> {
        let rest = uri.strip_prefix(SCHEME).ok_or(NameError::Scheme)?;
        let (cluster, path) = rest.split_once('/').ok_or(NameError::Kind)?;
        let subject = match path.split_once('/') {
            None if path == "controlplane" => Subject::ControlPlane,
            Some(("node", name)) => Subject::node(name)?,
            Some(("operator", name)) => Subject::operator(name)?,
            _ => return Err(NameError::Kind),
        };
        Ok(Identity {
            cluster: cluster.parse()?,
            subject,
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of cluster {}", self.subject, self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn an_id_of_a_cluster_reads_as_it_is_written() {
        let id = ClusterId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(id, ClusterId::random());
        assert_eq!(ClusterId(1).to_string().len(), 32);
        for text in [
            "",
            "1",
            &CLUSTER.to_uppercase(),
            &format!("+{}", &CLUSTER[1..]),
        ] {
            assert_eq!(text.parse::<ClusterId>(), Err(NameError::Cluster), "{text}");
        }
    }

    #[test]
    fn an_identity_reads_as_it_is_written() {
        let cluster = ClusterId::random();
        for subject in [
            Subject::node("web-1.example").expect("a name"),
            Subject::operator("Alice_B.c").expect("a name"),
            Subject::ControlPlane,
        ] {
            let identity = Identity { cluster, subject };
            assert_eq!(Identity::from_uri(&identity.uri()), Ok(identity));
        }
    }

    #[test]
    fn a_malformed_uri_is_no_identity() {
        for (uri, error) in [
            ("", NameError::Scheme),
            ("https://{}/node/a", NameError::Scheme),
            ("SPIFFE://{}/node/a", NameError::Scheme),
            ("spiffe://{}", NameError::Kind),
            ("spiffe://{}/", NameError::Kind),
            ("spiffe://{}/node", NameError::Kind),
            ("spiffe://{}/Node/a", NameError::Kind),
            ("spiffe://{}/node/", NameError::Node),
            ("spiffe://{}/node/a/", NameError::Node),
            ("spiffe://{}/node/a/b", NameError::Node),
            ("spiffe://{}/node/A", NameError::Node),
            ("spiffe://{}/node/-a", NameError::Node),
            ("spiffe://{}/node/a..b", NameError::Node),
            ("spiffe://{}/node/a%2e", NameError::Node),
            ("spiffe://{}/node/a?b", NameError::Node),
            ("spiffe://{}/node/a\n", NameError::Node),
            ("spiffe://{}/operator/..", NameError::Operator),
            ("spiffe://{}/operator/a b", NameError::Operator),
            ("spiffe://{}/controlplane/", NameError::Kind),
            ("spiffe://{}/controlplane/a", NameError::Kind),
            ("spiffe://me@{}/controlplane", NameError::Cluster),
            ("spiffe://{}:1/controlplane", NameError::Cluster),
            ("spiffe:///controlplane", NameError::Cluster),
        ] {
            let uri = uri.replace("{}", CLUSTER);
            assert_eq!(Identity::from_uri(&uri), Err(error), "{uri}");
        }
        let long = format!("spiffe://{CLUSTER}/node/{}", "a".repeat(254));
        assert_eq!(Identity::from_uri(&long), Err(NameError::Node));
    }
}
