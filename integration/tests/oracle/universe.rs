//! Random API objects of a universe so small that everything in it meets everything else, in every spelling that the
//! API has: what may be absent is absent, null, empty or there. Decides nothing about what they mean.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::{select, subsequence},
};
use sallyport_oracle::{Packet, Transport};
use serde_json::{Map, Value, json};

use crate::pods::{Being, being, named_apart};

pub(crate) type Labels = BTreeMap<String, String>;

pub(crate) const NAMESPACES: [&str; 3] = ["a", "b", "c"];
pub(crate) const NODES: [&str; 3] = ["n0", "n1", "n2"];
pub(crate) const NAMES: [&str; 3] = ["http", "dns", "admin"];
pub(crate) const NUMBERS: [u16; 4] = [53, 80, 81, 8080];
const RANGES: [(u16, u16); 5] = [(80, 80), (53, 81), (81, 8080), (1, u16::MAX), (8080, 8080)];
const KEYS: [&str; 3] = ["app", "tier", "team"];
const VALUES: [&str; 3] = ["x", "y", ""];
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Blocks, each with what may be left out of it.
const BLOCKS: [(&str, &[&str]); 10] = [
    (
        "0.0.0.0/0",
        &["10.0.0.0/28", "10.0.0.4/32", "10.0.0.0/29", "0.0.0.0/1"],
    ),
    (
        "10.0.0.0/28",
        &["10.0.0.0/29", "10.0.0.8/30", "10.0.0.10/31", "10.0.0.4/32"],
    ),
    // Bits past the prefix mean nothing.
    (
        "10.0.0.5/29",
        &["10.0.0.4/32", "10.0.0.7/30", "10.0.0.0/30"],
    ),
    ("10.0.0.4/32", &[]),
    ("192.0.2.0/24", &["192.0.2.1/32"]),
    (
        "::/0",
        &["fd00::/125", "2001:db8::/32", "8000::/1", "fd00::3/128"],
    ),
    (
        "fd00::/124",
        &["fd00::/125", "fd00::8/126", "fd00::6/127", "fd00::3/128"],
    ),
    ("fd00::a/125", &["fd00::b/128", "fd00::8/126"]),
    ("fd00::3/128", &[]),
    // IPv4 in another spelling.
    ("::ffff:10.0.0.0/125", &["::ffff:10.0.0.4/128"]),
];

/// The address that a node's own pods have.
pub(crate) fn node_address(node: &str, v6: bool) -> IpAddr {
    let index = NODES.iter().position(|&one| one == node);
    address(0x20 + index.expect("a node of the universe") as u8, v6)
}

pub(crate) fn address(n: u8, v6: bool) -> IpAddr {
    let text = if v6 {
        format!("fd00::{n:x}")
    } else {
        format!("10.0.0.{n}")
    };
    text.parse().expect("an address")
}

/// Every address that a packet may have: pods', nodes', others of their ranges, and of outside.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let inside = (1..12).chain([15, 0x20, 0x21, 0x22]);
    let outside = ["192.0.2.1", "192.0.2.9", "2001:db8::1", "9000::1"];
    let outside = outside.map(|text| text.parse().expect("an address"));
    inside
        .flat_map(|n| [address(n, false), address(n, true)])
        .chain(outside)
        .collect()
}

/// Every kind of packet that two rules of the universe tell apart.
pub(crate) fn packets() -> Vec<Packet> {
    let numbers = [1, 52, 53, 54, 80, 81, 82, 8080, 8081, u16::MAX];
    let transports = [Transport::Tcp, Transport::Udp, Transport::Sctp].into_iter();
    transports
        .flat_map(|transport| numbers.map(|number| Packet::To(transport, number)))
        .chain([Packet::Portless])
        .collect()
}

/// A field that may be absent, null, or there.
fn maybe(
    weight: u32,
    value: impl Strategy<Value = Value> + 'static,
) -> BoxedStrategy<Option<Value>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Value::Null)),
        weight => value.prop_map(Some),
    ]
    .boxed()
}

fn list(
    item: impl Strategy<Value = Value> + 'static,
    most: usize,
) -> impl Strategy<Value = Value> + 'static {
    vec(item, 0..=most).prop_map(Value::Array)
}

fn object<const N: usize>(
    fields: [(&'static str, BoxedStrategy<Option<Value>>); N],
) -> impl Strategy<Value = Value> {
    let fields = fields.map(|(name, value)| (Just(name.to_owned()), value));
    Vec::from(fields).prop_map(|fields| {
        let fields = fields.into_iter();
        let there = fields.filter_map(|(name, value)| Some((name, value?)));
        Value::Object(there.collect::<Map<_, _>>())
    })
}

pub(crate) fn labels() -> impl Strategy<Value = Labels> {
    let key = select(&KEYS).prop_map(String::from);
    btree_map(key, select(&VALUES).prop_map(String::from), 0..3)
}

/// A selector: half of its requirements by `matchLabels`, half by `matchExpressions`.
fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = Value> + 'static {
    let pair = (select(keys), select(&VALUES));
    let pairs = vec(pair, 0..=1).prop_map(|pairs| {
        let pairs = pairs.into_iter();
        let pairs = pairs.map(|(key, value)| (key.to_owned(), Value::from(value)));
        Value::Object(pairs.collect())
    });
    let values = || subsequence(vec!["x", "y", "", "z"], 1..=2);
    let operator = prop_oneof![
        2 => values().prop_map(|values| json!({"operator": "In", "values": values})),
        2 => values().prop_map(|values| json!({"operator": "NotIn", "values": values})),
        1 => Just(json!({"operator": "Exists"})),
        1 => Just(json!({"operator": "DoesNotExist", "values": []})),
    ];
    let requirement = (select(keys), operator).prop_map(|(key, mut requirement)| {
        requirement["key"] = key.into();
        requirement
    });
    object([
        ("matchLabels", maybe(3, pairs)),
        ("matchExpressions", maybe(2, list(requirement, 2))),
    ])
}

fn namespace_selector() -> impl Strategy<Value = Value> {
    let names = vec!["a", "b", "c", "nowhere"];
    prop_oneof![
        1 => select(&NAMESPACES).prop_map(|name| json!({"matchLabels": {NAMESPACE_NAME: name}})),
        1 => (subsequence(names, 1..=2), select(vec!["In", "NotIn"])).prop_map(|(names, operator)| {
            json!({"matchExpressions": [{"key": NAMESPACE_NAME, "operator": operator, "values": names}]})
        }),
        4 => selector(&["team", "tier"]),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let pods = || selector(&["app", "tier"]);
    let block = select(&BLOCKS).prop_flat_map(|(cidr, within)| {
        let except = subsequence(within.to_vec(), 0..=within.len().min(3));
        let except = maybe(4, except.prop_map(Value::from));
        object([
            ("cidr", Just(Some(cidr.into())).boxed()),
            ("except", except),
        ])
    });
    prop_oneof![
        2 => pods().prop_map(|pods| json!({"podSelector": pods})),
        1 => namespace_selector().prop_map(|spaces| json!({"namespaceSelector": spaces})),
        2 => (namespace_selector(), pods())
            .prop_map(|(spaces, pods)| json!({"namespaceSelector": spaces, "podSelector": pods})),
        2 => block.prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let place = prop_oneof![
        1 => Just(json!({})),
        2 => select(&NUMBERS).prop_map(|number| json!({"port": number})),
        2 => select(&RANGES).prop_map(|(first, last)| json!({"port": first, "endPort": last})),
        3 => select(&NAMES).prop_map(|name| json!({"port": name})),
    ];
    (place, option::weighted(0.5, protocol())).prop_map(|(mut port, protocol)| {
        if let Some(protocol) = protocol {
            port["protocol"] = protocol.into();
        }
        port
    })
}

pub(crate) fn protocol() -> impl Strategy<Value = &'static str> {
    prop_oneof![2 => Just("TCP"), 2 => Just("UDP"), 1 => Just("SCTP")]
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = object([
        (peers, maybe(8, list(peer(), 2))),
        ("ports", maybe(6, list(port(), 2))),
    ]);
    list(rule, 2)
}

/// A policy's spec.
fn spec() -> impl Strategy<Value = Value> {
    let types = select(vec![
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
        json!(["Egress", "Egress"]),
    ]);
    object([
        ("podSelector", maybe(12, selector(&["app", "tier"]))),
        ("policyTypes", maybe(6, types)),
        ("ingress", maybe(8, rules("from"))),
        ("egress", maybe(8, rules("to"))),
    ])
}

/// A policy of one of the namespaces; mostly with a spec.
pub(crate) fn policy() -> impl Strategy<Value = Value> {
    let spec = prop_oneof![1 => Just(None), 30 => spec().prop_map(Some)];
    (select(&NAMESPACES), 0..4u8, spec).prop_map(|(namespace, n, spec)| {
        let mut policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": format!("x{n}")},
        });
        if let Some(spec) = spec {
            policy["spec"] = spec;
        }
        policy
    })
}

/// A namespace. Its own value for the label with its name does not count.
pub(crate) fn namespace(name: &str, labels: &Labels) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn namespace_labels() -> impl Strategy<Value = Labels> {
    (labels(), prop::bool::weighted(0.1)).prop_map(|(mut labels, wrong)| {
        if wrong {
            labels.insert(NAMESPACE_NAME.into(), "b".into());
        }
        labels
    })
}

/// The manifests of a cluster.
#[derive(Clone)]
pub(crate) struct Manifests(pub(crate) Vec<Value>);

impl std::fmt::Debug for Manifests {
    /// As they can be applied.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|object| write!(f, "\n{object}"))
    }
}

/// A cluster that a control plane accepts.
pub(crate) fn cluster() -> impl Strategy<Value = Manifests> {
    let spaces = vec(namespace_labels(), NAMESPACES.len());
    // In half of the clusters most pods share their addresses with others.
    let beings = (vec(being(), 0..10), any::<bool>());
    let beings = beings.prop_map(|(beings, is_crowded)| named_apart(beings, is_crowded));
    (spaces, beings, vec(policy(), 0..6)).prop_map(|(spaces, beings, policies)| {
        let nodes = NODES.map(|name| match name {
            "n0" => json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}),
            _ => json!({"apiVersion": "sallyport.dev/v1", "kind": "Node", "metadata": {"name": name}}),
        });
        let spaces = NAMESPACES.iter().zip(&spaces);
        let spaces = spaces.map(|(name, labels)| namespace(name, labels));
        let identity = |policy: &Value| {
            let text = |field| policy["metadata"][field].as_str().unwrap_or_default().to_owned();
            (text("namespace"), text("name"))
        };
        let policies: BTreeMap<_, Value> = policies
            .into_iter()
            .map(|policy| (identity(&policy), policy))
            .collect();
        let beings = beings.iter().map(Being::manifest);
        let all = nodes.into_iter().chain(spaces).chain(beings);
        Manifests(all.chain(policies.into_values()).collect())
    })
}
