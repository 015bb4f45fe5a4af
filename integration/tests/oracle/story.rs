//! Random conformance cases: a cluster, and steps of edits with what the oracle expects after each. Owns the state of
//! the cluster that it describes; never runs a case.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use sallyport_oracle::{Oracle, Packet, Side, Transport};
use serde_json::{Value, json};

use crate::{
    pods::{Being, distinct, running},
    universe::{Labels, NAMESPACES, NODES, labels, namespace, node_address, policy},
};

/// Hosts outside the cluster.
const OUTSIDE: [(&str, &[&str]); 3] = [
    ("far", &["192.0.2.1", "2001:db8::1"]),
    ("far-v4", &["192.0.2.9"]),
    // In a range that blocks name, and no pod's.
    ("near", &["10.0.0.15", "fd00::f"]),
];

/// The services that each step probes.
const SERVICES: [(&str, Transport, u16); 5] = [
    ("TCP", Transport::Tcp, 80),
    ("TCP", Transport::Tcp, 8080),
    ("UDP", Transport::Udp, 53),
    ("UDP", Transport::Udp, 80),
    ("SCTP", Transport::Sctp, 81),
];

/// One edit; whom it is of is decided when the state is known.
#[derive(Clone, Debug)]
enum Edit {
    PutPolicy(Value),
    DeletePolicy(usize),
    SetNamespaceLabels(usize, Labels),
    DeleteNamespace(usize),
    CreatePod(Being),
    SetPodLabels(usize, Labels),
    DeletePod(usize),
    /// Another pod gets the addresses of one that is deleted.
    Replace(usize, Being),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => policy().prop_map(Edit::PutPolicy),
        2 => (0..100usize).prop_map(Edit::DeletePolicy),
        2 => (0..NAMESPACES.len(), labels()).prop_map(|(n, labels)| Edit::SetNamespaceLabels(n, labels)),
        1 => (0..NAMESPACES.len()).prop_map(Edit::DeleteNamespace),
        3 => running().prop_map(Edit::CreatePod),
        3 => (0..100usize, labels()).prop_map(|(n, labels)| Edit::SetPodLabels(n, labels)),
        2 => (0..100usize).prop_map(Edit::DeletePod),
        3 => (0..100usize, running()).prop_map(|(n, being)| Edit::Replace(n, being)),
    ]
}

/// The case of a seed, as the conformance runner takes it.
pub(crate) fn random_case(seed: u64) -> Value {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut story = Story::default();
    for name in NAMESPACES {
        let labels = draw(&labels(), &mut runner);
        story.put_namespace(name, labels);
    }
    // At least two, so that there is somebody to reach.
    for being in distinct(draw(&vec(running(), 4..10), &mut runner)) {
        story.put(spread(being));
    }
    let cluster = story.cluster();
    let mut steps = Vec::new();
    let policies = draw(&vec(policy(), 1..6), &mut runner).into_iter();
    steps.push(story.step(policies.map(Edit::PutPolicy).collect()));
    for edits in draw(&vec(vec(edit(), 1..6), 3..6), &mut runner) {
        steps.push(story.step(edits));
    }
    json!({
        "id": format!("random-{seed}"),
        "description": "a random cluster, judged by the oracle",
        "tags": ["random"],
        "cluster": cluster,
        "steps": steps,
    })
}

fn draw<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> S::Value {
    let tree = strategy.new_tree(runner);
    tree.expect("nothing is filtered out").current()
}

/// Files know one list of ports for a pod, and two nodes are enough.
fn spread(mut being: Being) -> Being {
    being.ports.truncate(1);
    if being.node == Some(NODES[2]) {
        being.node = Some(NODES[0]);
        if being.host_network {
            let own = |ip: &IpAddr| node_address(NODES[0], ip.is_ipv6());
            being.addresses = being.addresses.iter().map(own).collect();
        }
    }
    being
}

/// The state of the cluster under way.
#[derive(Default)]
struct Story {
    oracle: Oracle,
    namespaces: BTreeMap<String, Labels>,
    beings: Vec<Being>,
    policies: BTreeMap<(String, String), Value>,
}

impl Story {
    fn put_namespace(&mut self, name: &str, labels: Labels) {
        let put = self.oracle.put(&namespace(name, &labels));
        put.expect("a namespace is of its schema");
        self.namespaces.insert(name.to_owned(), labels);
    }

    fn put(&mut self, being: Being) {
        let put = self.oracle.put(&being.manifest());
        put.expect("a pod is of its schema");
        let name = endpoint(&being);
        match self.beings.iter_mut().find(|other| endpoint(other) == name) {
            Some(old) => *old = being,
            None => self.beings.push(being),
        }
    }

    /// The actions of edits, and what is so after them.
    fn step(&mut self, edits: Vec<Edit>) -> Value {
        let mut actions = Vec::new();
        for edit in edits {
            self.act(edit, &mut actions);
        }
        let endpoints = self.endpoints();
        let names: Vec<&String> = endpoints.iter().map(|(name, _)| name).collect();
        let mut expect = Vec::new();
        for service in SERVICES {
            for v6 in [false, true] {
                expect.push(self.expect(&endpoints, service, v6));
            }
        }
        json!({
            "actions": actions,
            "cluster": self.cluster(),
            "policies": self.policies.values().collect::<Vec<_>>(),
            "endpoints": names,
            "expect": expect,
        })
    }

    /// Carries an edit out where it makes sense.
    fn act(&mut self, edit: Edit, actions: &mut Vec<Value>) {
        match edit {
            Edit::PutPolicy(policy) => self.put_policy(policy, actions),
            Edit::DeletePolicy(n) => {
                let mut keys = self
                    .policies
                    .keys()
                    .cycle()
                    .skip(n % self.policies.len().max(1));
                if let Some((namespace, name)) = keys.next().cloned() {
                    let policy = self.policies.remove(&(namespace.clone(), name.clone()));
                    let gone = policy.map(|policy| self.oracle.delete(&policy));
                    gone.expect("it was there").expect("it was put");
                    actions
                        .push(json!({"op": "delete-policy", "namespace": namespace, "name": name}));
                }
            }
            Edit::SetNamespaceLabels(n, labels) => {
                let op = match self.namespaces.contains_key(NAMESPACES[n]) {
                    true => "set-namespace-labels",
                    false => "create-namespace",
                };
                self.label_namespace(op, NAMESPACES[n], labels, actions);
            }
            Edit::DeleteNamespace(n) => self.delete_namespace(NAMESPACES[n], actions),
            Edit::CreatePod(being) => self.create(spread(being), actions),
            Edit::SetPodLabels(n, labels) => {
                if let Some(mut being) = self.nth(n).cloned() {
                    being.labels = labels;
                    actions.push(json!({"op": "set-pod-labels", "namespace": being.namespace,
                        "name": being.name, "labels": being.labels}));
                    self.put(being);
                }
            }
            Edit::DeletePod(n) => {
                if let Some(being) = self.nth(n).cloned() {
                    self.delete(&being, actions);
                }
            }
            Edit::Replace(n, new) => {
                if let Some(old) = self.nth(n).cloned() {
                    self.delete(&old, actions);
                    let mut new = spread(new);
                    new.host_network = old.host_network;
                    if old.host_network {
                        new.node = old.node;
                    }
                    new.addresses = old.addresses;
                    self.create(new, actions);
                }
            }
        }
    }

    fn nth(&self, n: usize) -> Option<&Being> {
        self.beings.get(n % self.beings.len().max(1))
    }

    fn put_policy(&mut self, policy: Value, actions: &mut Vec<Value>) {
        let text = |field| {
            policy["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = (text("namespace"), text("name"));
        self.need_namespace(&key.0, actions);
        let put = self.oracle.put(&policy);
        put.expect("a policy is of its schema");
        let op = match self.policies.contains_key(&key) {
            true => "update-policy",
            false => "create-policy",
        };
        actions.push(json!({"op": op, "policy": policy}));
        self.policies.insert(key, policy);
    }

    fn label_namespace(&mut self, op: &str, name: &str, labels: Labels, actions: &mut Vec<Value>) {
        actions.push(json!({"op": op, "namespace": name, "labels": labels}));
        self.put_namespace(name, labels);
    }

    /// One that was deleted is created again, when somebody is to be in it.
    fn need_namespace(&mut self, name: &str, actions: &mut Vec<Value>) {
        if !self.namespaces.contains_key(name) {
            self.label_namespace("create-namespace", name, Labels::new(), actions);
        }
    }

    fn delete_namespace(&mut self, name: &str, actions: &mut Vec<Value>) {
        let stay = self
            .beings
            .iter()
            .filter(|being| being.namespace != name)
            .count();
        if stay < 2 || self.namespaces.remove(name).is_none() {
            return;
        }
        let gone = self.oracle.delete(&namespace(name, &Labels::new()));
        gone.expect("it was put");
        self.beings.retain(|being| being.namespace != name);
        self.policies.retain(|(within, _), _| within != name);
        actions.push(json!({"op": "delete-namespace", "namespace": name}));
    }

    fn create(&mut self, being: Being, actions: &mut Vec<Value>) {
        if self.beings.iter().any(|other| other.clashes_with(&being)) {
            return;
        }
        self.need_namespace(&being.namespace, actions);
        let mut action = described(&being);
        action["op"] = "create-pod".into();
        actions.push(action);
        self.put(being);
    }

    fn delete(&mut self, being: &Being, actions: &mut Vec<Value>) {
        let gone = self.oracle.delete(&being.manifest());
        gone.expect("it was put");
        self.beings
            .retain(|other| endpoint(other) != endpoint(being));
        actions.push(json!({"op": "delete-pod", "namespace": being.namespace, "name": being.name}));
    }

    fn cluster(&self) -> Value {
        let outside: BTreeMap<_, _> = OUTSIDE.into_iter().collect();
        let nodes = NODES[..2].iter().map(|name| json!({"name": name}));
        json!({
            "namespaces": self.namespaces,
            "pods": self.beings.iter().map(described).collect::<Vec<_>>(),
            "externals": outside,
            "nodes": nodes.collect::<Vec<_>>(),
        })
    }

    fn endpoints(&self) -> Vec<(String, Vec<IpAddr>)> {
        let beings = self.beings.iter();
        let beings = beings.map(|being| (endpoint(being), being.addresses.clone()));
        let outside = OUTSIDE.map(|(name, addresses)| {
            let addresses = addresses
                .iter()
                .map(|text| text.parse().expect("an address"));
            (name.to_owned(), addresses.collect())
        });
        beings.chain(outside).collect()
    }

    /// The oracle's verdict on a service over one address family.
    fn expect(
        &self,
        endpoints: &[(String, Vec<IpAddr>)],
        (protocol, transport, port): (&str, Transport, u16),
        v6: bool,
    ) -> Value {
        let packet = Packet::To(transport, port);
        let table = |side: Option<Side>| -> Vec<String> {
            let row = |from: &(String, Vec<IpAddr>)| {
                let cell = |to: &(String, Vec<IpAddr>)| {
                    let of_family =
                        |all: &[IpAddr]| all.iter().copied().find(|ip| ip.is_ipv6() == v6);
                    let (Some(source), Some(target)) = (of_family(&from.1), of_family(&to.1))
                    else {
                        return '-';
                    };
                    let flow = self.oracle.flow(source, target);
                    let open = match side {
                        None => flow.allows(packet),
                        Some(side) => flow.allowed_by(side, packet),
                    };
                    match open {
                        _ if from.0 == to.0 => '-',
                        true => '.',
                        false => 'X',
                    }
                };
                endpoints.iter().map(cell).collect()
            };
            endpoints.iter().map(row).collect()
        };
        json!({
            "protocol": protocol,
            "port": port,
            "family": if v6 { "v6" } else { "v4" },
            "ingress": table(Some(Side::Ingress)),
            "egress": table(Some(Side::Egress)),
            "combined": table(None),
        })
    }
}

fn endpoint(being: &Being) -> String {
    format!("{}/{}", being.namespace, being.name)
}

/// A pod as files describe it.
fn described(being: &Being) -> Value {
    let ports = being.ports[0].iter().map(|&(name, port, protocol)| {
        let mut declared = json!({"port": port, "protocol": protocol});
        if let Some(name) = name {
            declared["name"] = name.into();
        }
        declared
    });
    json!({
        "namespace": being.namespace,
        "name": being.name,
        "labels": being.labels,
        "node": being.node,
        "ip": being.addresses[0],
        "ips": being.addresses,
        "hostNetwork": being.host_network,
        "ports": ports.collect::<Vec<_>>(),
    })
}
