//! The cluster's objects as the control plane thinks of them: what the manifests say, reduced to what enforcement
//! needs, already validated. No parsing, no compiling, no state.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use sallyport_policy::Protocol;
use sallyport_proto::object::ObjectKey;

/// Labels of a namespace, node or workload.
pub type Labels = BTreeMap<String, String>;

/// One validated object: its key, its meaning, and the manifest it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What it is called.
    pub key: ObjectKey,
    /// What it means.
    pub body: Body,
    /// The object as compact JSON, as it was put.
    pub manifest: Arc<str>,
}

/// What an object means to enforcement.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A namespace.
    Namespace(Namespace),
    /// A node.
    Node(Node),
    /// A policy.
    NetworkPolicy(NetworkPolicy),
    /// A pod or a workload: the same thing, from here on.
    Workload(Workload),
}

/// A namespace: its labels, including `kubernetes.io/metadata.name`, which the API server sets and so do we.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// The labels.
    pub labels: Arc<Labels>,
}

/// A machine that runs an enforcer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The labels.
    pub labels: Arc<Labels>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The ranges that its workloads' addresses are taken from (`spec.podCIDRs`).
    pub workload_cidrs: Vec<IpNetwork>,
}

/// A pod, container, virtual machine or process group with addresses on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The labels.
    pub labels: Arc<Labels>,
    /// `metadata.uid`: which of the objects that had this name, one after another, it is. Empty when it is unknown.
    pub uid: String,
    /// The node it runs on; `None` while it is not scheduled, and for a pod that ended.
    pub node: Option<String>,
    /// Its addresses: none before it has any and after it ended; at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The interface of its node behind which it is, and nothing else that has other addresses. Empty when it is not known.
    pub interface: String,
    /// Ranges of addresses beside its own that it may use, each once, without host bits (`spec.allowedSources`).
    pub allowed_sources: Vec<IpNetwork>,
    /// Its named ports, in the order of the manifest.
    pub ports: Vec<NamedPort>,
    /// Whether it shares its node's network: then no policy selects it, and peers match it by `ipBlock` only.
    pub host_network: bool,
}

impl Workload {
    /// The number that a named port has here: the first one of that name and protocol, as Kubernetes resolves it.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.protocol == protocol && port.name == name)
            .map(|port| port.port)
    }
}

/// A container port that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}

/// What becomes of connections that are established when they are no longer allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Established {
    /// They are judged like new ones: a revoke cuts them at once.
    #[default]
    Recheck,
    /// They go on until they end by themselves.
    Keep,
}

/// A NetworkPolicy. A direction that is `None` is not in its policyTypes: the policy does not isolate for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Which pods of the policy's namespace it isolates.
    pub pod_selector: LabelSelector,
    /// What may come to them.
    pub ingress: Option<Vec<Rule>>,
    /// What they may send.
    pub egress: Option<Vec<Rule>>,
    /// What becomes of established connections; `None` leaves it to the cluster.
    pub established: Option<Established>,
}

impl Established {
    /// What they are called, in annotations and on the command line.
    pub const NAMES: [&str; 2] = ["keep", "recheck"];

    /// The one that is called so.
    pub fn named(name: &str) -> Option<Established> {
        match name {
            "keep" => Some(Established::Keep),
            "recheck" => Some(Established::Recheck),
            _ => None,
        }
    }
}

impl NetworkPolicy {
    /// Whether the policy keeps established connections, in a cluster with this default.
    pub fn keeps(&self, default: Established) -> bool {
        self.established.unwrap_or(default) == Established::Keep
    }
}

/// One ingress or egress rule: these peers on these ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The peers; empty means everyone.
    pub peers: Vec<Peer>,
    /// The ports; empty means every port of every protocol.
    pub ports: Vec<Port>,
}

/// Who may be at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods, by labels.
    Pods {
        /// Which namespaces; `None` means the policy's own.
        namespaces: Option<LabelSelector>,
        /// Which pods in them. An absent podSelector selects all, like an empty one.
        pods: LabelSelector,
    },
    /// Addresses, whoever has them.
    Block {
        /// The range.
        cidr: IpNetwork,
        /// Ranges inside it that are left out.
        except: Vec<IpNetwork>,
    },
}

/// A port that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The protocol; TCP where the manifest has none.
    pub protocol: Protocol,
    /// Which of the protocol's ports.
    pub ports: PortMatch,
}

/// Which ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortMatch {
    /// All of them.
    All,
    /// `first..=last` (`endPort`; the same number twice without).
    Range(u16, u16),
    /// The port that the destination pod calls so.
    Named(String),
}

/// A label selector in canonical form: `matchLabels` and `matchExpressions` that mean the same are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabelSelector(pub BTreeSet<Requirement>);

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What must hold of it.
    pub operator: Operator,
}

/// What a requirement asks of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// It is there and has one of the values.
    In(BTreeSet<String>),
    /// It is not there, or has none of the values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether labels satisfy every requirement. The empty selector matches all.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

impl fmt::Display for LabelSelector {
    /// As `kubectl get -l` takes it: `app=web,tier in (a,b),!legacy`; the empty selector is `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("*");
        }
        for (i, Requirement { key, operator }) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let list = |values: &BTreeSet<String>| {
                values
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(",")
            };
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values))?,
                Operator::In(values) => write!(f, "{key} in ({})", list(values))?,
                Operator::NotIn(values) if values.len() == 1 => {
                    write!(f, "{key}!={}", list(values))?;
                }
                Operator::NotIn(values) => write!(f, "{key} notin ({})", list(values))?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}
