//! Random objects and edits of a universe so small that everything in it meets everything else.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};
use sallyport_controlplane::{
    cluster::Cluster,
    model::{
        Body, Established, LabelSelector, Labels, NamedPort, Namespace, NetworkPolicy, Node,
        Object, Operator, Peer, Port, PortMatch, Requirement, Rule, Workload,
    },
};
use sallyport_policy::{Protocol, Revision};
use sallyport_proto::object::{Kind, ObjectKey};

use crate::write::{ip, key, object};

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const NODES: [&str; 3] = ["n0", "n1", "n2"];
const NAMES: [&str; 3] = ["http", "dns", "admin"];
const NUMBERS: [u16; 4] = [53, 80, 81, 8080];
const BLOCKS: [&str; 9] = [
    "0.0.0.0/0",
    "10.0.0.0/28",
    "10.0.0.0/29",
    "10.0.0.8/30",
    "10.0.0.4/32",
    "::/0",
    "fd00::/125",
    "fd00::8/126",
    "fd00::3/128",
];

/// Ranges that workloads claim as allowed sources: equal, nested, with addresses of other workloads and ranges of nodes
/// in them, and without.
const SOURCES: [&str; 11] = [
    "0.0.0.0/0",
    "10.0.0.0/28",
    "10.0.0.0/30",
    "10.0.0.8/30",
    "10.0.0.2/32",
    "10.9.0.0/16",
    "10.9.7.0/24",
    "::/0",
    "fd00::/125",
    "fd00::8/125",
    "fd09::/64",
];

/// One edit of an object.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Put(Object),
    Delete(ObjectKey),
}

impl Edit {
    pub(crate) fn key(&self) -> &ObjectKey {
        match self {
            Edit::Put(object) => &object.key,
            Edit::Delete(key) => key,
        }
    }

    pub(crate) fn apply(&self, cluster: &mut Cluster) {
        match self {
            Edit::Put(object) => cluster.put(object.clone(), Revision(1)),
            Edit::Delete(key) => drop(cluster.remove(key)),
        }
    }
}

/// Puts and deletes, mostly of pods and policies.
pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        4 => any_object().prop_map(Edit::Put),
        1 => any_object().prop_map(|object| Edit::Delete(object.key)),
    ]
}

fn any_object() -> impl Strategy<Value = Object> {
    prop_oneof![10 => workload(), 8 => policy(), 2 => namespace(), 1 => node()]
}

fn address(n: u8, v6: bool) -> IpAddr {
    if v6 {
        ip(&format!("fd00::{n:x}"))
    } else {
        [10, 0, 0, n].into()
    }
}

fn labels() -> impl Strategy<Value = Arc<Labels>> {
    let label = (select(vec!["app", "tier", "team"]), select(vec!["x", "y"]));
    vec(label, 0..3).prop_map(|pairs| {
        Arc::new(
            pairs
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        )
    })
}

fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = LabelSelector> {
    let values = btree_set(select(vec!["x", "y", "z"]).prop_map(String::from), 1..3);
    let operator = prop_oneof![
        4 => values.clone().prop_map(Operator::In),
        1 => values.prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (select(keys), operator).prop_map(|(key, operator)| Requirement {
        key: key.into(),
        operator,
    });
    btree_set(requirement, 0..3).prop_map(LabelSelector)
}

fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    let named = select(&NAMESPACES).prop_map(|name| {
        let values = BTreeSet::from([name.to_string()]);
        LabelSelector(BTreeSet::from([Requirement {
            key: "kubernetes.io/metadata.name".into(),
            operator: Operator::In(values),
        }]))
    });
    prop_oneof![1 => named, 4 => selector(&["team", "tier"])]
}

pub(crate) fn peer() -> impl Strategy<Value = Peer> {
    let pods = (option::of(namespace_selector()), selector(&["app", "tier"]))
        .prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods });
    let network = || select(&BLOCKS).prop_map(|text| text.parse().expect("a CIDR"));
    let block =
        (network(), vec(network(), 0..3)).prop_map(|(cidr, except)| Peer::Block { cidr, except });
    prop_oneof![3 => pods, 1 => block]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 1 => select(&Protocol::ALL)]
}

pub(crate) fn port() -> impl Strategy<Value = Port> {
    let named = select(&NAMES).prop_map(|name| PortMatch::Named(name.into()));
    let range = select(vec![
        (80, 80),
        (53, 81),
        (81, 8080),
        (1, u16::MAX),
        (8080, 8080),
    ]);
    let ports = prop_oneof![
        1 => Just(PortMatch::All),
        3 => range.prop_map(|(first, last)| PortMatch::Range(first, last)),
        3 => named,
    ];
    (protocol(), ports).prop_map(|(protocol, ports)| Port { protocol, ports })
}

pub(crate) fn rule() -> impl Strategy<Value = Rule> {
    (vec(peer(), 0..3), vec(port(), 0..3)).prop_map(|(peers, ports)| Rule { peers, ports })
}

pub(crate) fn policy() -> impl Strategy<Value = Object> {
    let rules = || option::of(vec(rule(), 0..3));
    let names = (select(&NAMESPACES), 0..4u8);
    let mode = option::weighted(0.3, established());
    (names, selector(&["app", "tier"]), rules(), rules(), mode).prop_map(
        |((namespace, n), pod_selector, ingress, egress, established)| {
            let policy = NetworkPolicy {
                pod_selector,
                ingress,
                egress,
                established,
            };
            let body = Body::NetworkPolicy(policy);
            object(Kind::NetworkPolicy, namespace, &format!("x{n}"), body)
        },
    )
}

/// What becomes of established connections.
pub(crate) fn established() -> impl Strategy<Value = Established> {
    select(&[Established::Recheck, Established::Keep])
}

pub(crate) fn workload() -> impl Strategy<Value = Object> {
    let port = (select(&NAMES), protocol(), select(&NUMBERS)).prop_map(|(name, protocol, port)| {
        NamedPort {
            name: name.into(),
            protocol,
            port,
        }
    });
    let kind = prop_oneof![5 => Just(Kind::Pod), 1 => Just(Kind::Workload)];
    let place = (
        kind,
        select(&NAMESPACES),
        0..4u8,
        option::weighted(0.9, select(&NODES)),
    );
    // Few enough that two or three workloads often claim one.
    let number = || prop_oneof![1 => 0..12u8, 1 => 0..3u8];
    let addresses = (
        option::weighted(0.85, number()),
        option::weighted(0.4, number()),
    );
    let host_network = prop::bool::weighted(0.1);
    let sources = prop_oneof![2 => Just(Vec::new()), 1 => vec(select(&SOURCES), 1..4)];
    let named = (
        labels(),
        select(vec!["", "u", "v"]),
        select(vec!["", "veth", "tap"]),
        sources,
    );
    (place, named, addresses, vec(port, 0..3), host_network).prop_map(
        |((kind, namespace, n, node), named, (v4, v6), ports, host_network)| {
            let (labels, uid, interface, sources) = named;
            let v4 = v4.map(|n| address(n, false));
            let workload = Workload {
                labels,
                uid: uid.into(),
                node: node.map(String::from),
                addresses: v4.into_iter().chain(v6.map(|n| address(n, true))).collect(),
                interface: interface.into(),
                allowed_sources: sources
                    .into_iter()
                    .map(|cidr| cidr.parse().expect("a CIDR"))
                    .collect(),
                ports,
                host_network,
            };
            object(kind, namespace, &format!("p{n}"), Body::Workload(workload))
        },
    )
}

pub(crate) fn namespace() -> impl Strategy<Value = Object> {
    (select(&NAMESPACES), labels()).prop_map(|(name, labels)| namespace_object(name, &labels))
}

pub(crate) fn namespace_object(name: &str, labels: &Labels) -> Object {
    let mut labels = labels.clone();
    labels.insert("kubernetes.io/metadata.name".into(), name.into());
    let labels = Arc::new(labels);
    object(
        Kind::Namespace,
        "",
        name,
        Body::Namespace(Namespace { labels }),
    )
}

pub(crate) fn node() -> impl Strategy<Value = Object> {
    let cidr = select(vec!["10.0.0.0/29", "10.0.0.8/29", "fd00::/64"]);
    let own = select(vec!["10.0.0.3", "10.0.0.10", "fd00::3"]);
    (select(&NODES), vec(cidr, 0..3), vec(own, 0..2)).prop_map(|(name, cidrs, own)| {
        let own = own.into_iter().map(|own| own.parse().expect("an address"));
        let node = Node {
            addresses: own.collect(),
            workload_cidrs: cidrs
                .into_iter()
                .map(|cidr| cidr.parse().expect("a CIDR"))
                .collect(),
            ..Node::default()
        };
        object(Kind::Node, "", name, Body::Node(node))
    })
}

/// A cluster in which every namespace and two of three nodes are objects, and no key comes twice.
pub(crate) fn any_cluster() -> impl Strategy<Value = Cluster> {
    let objects = (
        vec(workload(), 0..10),
        vec(policy(), 0..6),
        vec(namespace(), 0..3),
        node(),
        established(),
    );
    objects.prop_map(|(workloads, policies, namespaces, node, established)| {
        let fixed = NAMESPACES
            .into_iter()
            .map(|name| namespace_object(name, &Labels::new()));
        let fixed =
            fixed.chain(["n0", "n1"].map(|name| crate::write::node(name, &["10.0.0.0/24"])));
        let random = workloads
            .into_iter()
            .chain(policies)
            .chain(namespaces)
            .chain([node]);
        crate::write::cluster(fixed.chain(random)).with_established(established)
    })
}

/// A key that no object of the universe has, for transactions that change nothing.
pub(crate) fn nobody() -> ObjectKey {
    key(Kind::Pod, "nowhere", "nobody")
}
