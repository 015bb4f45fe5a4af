//! Objects as the API names them: the kinds that there are, and what one object is called. Knows nothing of what they mean.

use std::fmt;

use crate::wire::{self, ObjectRef};

/// The namespace of a namespaced object that names none, as for `kubectl apply`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The kinds of object that the control plane keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Kubernetes v1 Namespace.
    Namespace,
    /// A machine that runs an enforcer.
    Node,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// Kubernetes v1 Pod.
    Pod,
    /// sallyport.dev/v1 Workload.
    Workload,
}

impl Kind {
    /// Every kind, in the order in which a listing shows them.
    pub const ALL: [Kind; 5] = [
        Kind::Namespace,
        Kind::Node,
        Kind::NetworkPolicy,
        Kind::Pod,
        Kind::Workload,
    ];

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node)
    }

    /// The kind that a message means; none where it says none.
    pub fn of_wire(kind: wire::Kind) -> Option<Kind> {
        match kind {
            wire::Kind::Unspecified => None,
            wire::Kind::Namespace => Some(Kind::Namespace),
            wire::Kind::Node => Some(Kind::Node),
            wire::Kind::NetworkPolicy => Some(Kind::NetworkPolicy),
            wire::Kind::Pod => Some(Kind::Pod),
            wire::Kind::Workload => Some(Kind::Workload),
        }
    }

    /// The kind's name as manifests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::Pod => "Pod",
            Kind::Workload => "Workload",
        }
    }

    /// The API server's plural resource name, as its error messages use it: `namespaces "x" not found`.
    pub fn resource(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::Node => "nodes",
            Kind::NetworkPolicy => "networkpolicies.networking.k8s.io",
            Kind::Pod => "pods",
            Kind::Workload => "workloads.sallyport.dev",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of an object with its kind. `namespace` is empty for kinds that have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace, or empty.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl From<Kind> for wire::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Namespace => wire::Kind::Namespace,
            Kind::Node => wire::Kind::Node,
            Kind::NetworkPolicy => wire::Kind::NetworkPolicy,
            Kind::Pod => wire::Kind::Pod,
            Kind::Workload => wire::Kind::Workload,
        }
    }
}

impl From<&ObjectKey> for ObjectRef {
    fn from(key: &ObjectKey) -> Self {
        ObjectRef {
            kind: wire::Kind::from(key.kind).into(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}
