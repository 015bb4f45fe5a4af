//! Short ways to write clusters down: objects from labels and selectors as an operator would type them. Decides
//! nothing about policies.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use sallyport_controlplane::{
    cluster::Cluster,
    model::{
        Body, Established, LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, Node,
        Object, Operator, Peer, Port, PortMatch, Requirement, Rule, Workload,
    },
};
use sallyport_policy::{Protocol, Revision};
use sallyport_proto::object::{Kind, ObjectKey};

/// An object with a key and a meaning.
pub(crate) fn object(kind: Kind, namespace: &str, name: &str, body: Body) -> Object {
    Object {
        key: key(kind, namespace, name),
        body,
        manifest: "{}".into(),
    }
}

pub(crate) fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// A cluster of these objects.
pub(crate) fn cluster(objects: impl IntoIterator<Item = Object>) -> Cluster {
    let mut cluster = Cluster::default();
    for object in objects {
        cluster.put(object, Revision(1));
    }
    cluster
}

/// `"app=web,tier=1"`.
pub(crate) fn labels(text: &str) -> Arc<Labels> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').expect("key=value"));
    Arc::new(pairs.map(|(k, v)| (k.into(), v.into())).collect())
}

/// A selector: `app=web`, `app in a b`, `app notin a b`, `app`, `!app`; several with commas; `""` selects all.
pub(crate) fn selector(text: &str) -> LabelSelector {
    let values = |text: &str| text.split(' ').map(String::from).collect::<BTreeSet<_>>();
    let requirement = |text: &str| {
        let (key, operator) = if let Some((key, value)) = text.split_once('=') {
            (key, Operator::In(values(value)))
        } else if let Some((key, list)) = text.split_once(" in ") {
            (key, Operator::In(values(list)))
        } else if let Some((key, list)) = text.split_once(" notin ") {
            (key, Operator::NotIn(values(list)))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Operator::DoesNotExist)
        } else {
            (text, Operator::Exists)
        };
        Requirement {
            key: key.into(),
            operator,
        }
    };
    LabelSelector(
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(requirement)
            .collect(),
    )
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn node(name: &str, cidrs: &[&str]) -> Object {
    let node = Node {
        workload_cidrs: cidrs
            .iter()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect(),
        ..Node::default()
    };
    object(Kind::Node, "", name, Body::Node(node))
}

/// A namespace with these labels and the one that the API server adds.
pub(crate) fn namespace(name: &str, text: &str) -> Object {
    let mut all = Labels::clone(&labels(text));
    all.insert("kubernetes.io/metadata.name".into(), name.into());
    let namespace = Namespace {
        labels: Arc::new(all),
    };
    object(Kind::Namespace, "", name, Body::Namespace(namespace))
}

/// A pod: namespace, name, node, labels, addresses separated by spaces.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, text: &str, addresses: &str) -> Object {
    let workload = Workload {
        labels: labels(text),
        uid: String::new(),
        node: (!node.is_empty()).then(|| node.into()),
        addresses: addresses.split_whitespace().map(ip).collect(),
        interface: String::new(),
        allowed_sources: Vec::new(),
        ports: Vec::new(),
        host_network: false,
    };
    object(Kind::Pod, namespace, name, Body::Workload(workload))
}

/// A workload that is behind an interface.
pub(crate) fn behind(mut workload: Object, interface: &str) -> Object {
    if let Body::Workload(workload) = &mut workload.body {
        workload.interface = interface.into();
    }
    workload
}

/// A workload that may use these ranges, separated by spaces.
pub(crate) fn allowing(mut workload: Object, sources: &str) -> Object {
    if let Body::Workload(workload) = &mut workload.body {
        let sources = sources.split_whitespace();
        workload.allowed_sources = sources.map(|cidr| cidr.parse().expect("a CIDR")).collect();
    }
    workload
}

/// A pod with named ports.
pub(crate) fn with_ports(mut pod: Object, ports: &[(&str, Protocol, u16)]) -> Object {
    if let Body::Workload(workload) = &mut pod.body {
        workload.ports = ports
            .iter()
            .map(|&(name, protocol, port)| NamedPort {
                name: name.into(),
                protocol,
                port,
            })
            .collect();
    }
    pod
}

pub(crate) fn on_host_network(mut pod: Object) -> Object {
    if let Body::Workload(workload) = &mut pod.body {
        workload.host_network = true;
    }
    pod
}

pub(crate) fn policy(
    namespace: &str,
    name: &str,
    pods: &str,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
) -> Object {
    let policy = NetworkPolicy {
        pod_selector: selector(pods),
        ingress,
        egress,
        established: None,
    };
    object(
        Kind::NetworkPolicy,
        namespace,
        name,
        Body::NetworkPolicy(policy),
    )
}

/// The policy with its say about established connections.
pub(crate) fn established(mut object: Object, mode: Established) -> Object {
    if let Body::NetworkPolicy(policy) = &mut object.body {
        policy.established = Some(mode);
    }
    object
}

pub(crate) fn rule(peers: &[Peer], ports: &[Port]) -> Rule {
    Rule {
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    }
}

/// Pods of the policy's own namespace.
pub(crate) fn pods(text: &str) -> Peer {
    Peer::Pods {
        namespaces: None,
        pods: selector(text),
    }
}

/// Pods of namespaces with these labels.
pub(crate) fn pods_of(namespaces: &str, text: &str) -> Peer {
    Peer::Pods {
        namespaces: Some(selector(namespaces)),
        pods: selector(text),
    }
}

pub(crate) fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Block {
        cidr: cidr.parse().expect("a CIDR"),
        except: except
            .iter()
            .map(|cidr| cidr.parse().expect("a CIDR"))
            .collect(),
    }
}

pub(crate) fn span(protocol: Protocol, first: u16, last: u16) -> Port {
    Port {
        protocol,
        ports: PortMatch::Range(first, last),
    }
}

pub(crate) fn tcp(port: u16) -> Port {
    span(Protocol::Tcp, port, port)
}

pub(crate) fn all_of(protocol: Protocol) -> Port {
    Port {
        protocol,
        ports: PortMatch::All,
    }
}

pub(crate) fn named(protocol: Protocol, name: &str) -> Port {
    Port {
        protocol,
        ports: PortMatch::Named(name.into()),
    }
}
