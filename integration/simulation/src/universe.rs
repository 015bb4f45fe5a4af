//! The simulated cluster and random edits of it: so small that everything in it meets everything else. It compiles
//! nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use rand::{RngExt, rngs::StdRng};
use sallyport_controlplane::{
    cluster::Cluster,
    model::{
        Body, LabelSelector, Labels, Namespace, NetworkPolicy, Node, Object, Operator, Peer, Port,
        PortMatch, Requirement, Rule, Workload,
    },
};
use sallyport_policy::{NodeName, Protocol, Revision};
use sallyport_proto::object::{Kind, ObjectKey};

/// The ports that policies tell apart.
pub(crate) const PORTS: [u16; 2] = [80, 81];

const NAMESPACE: &str = "a";
const LABELS: [&str; 3] = ["x", "y", "z"];

/// The cluster as it is, and as it was.
#[derive(Debug)]
pub(crate) struct Universe {
    nodes: usize,
    pods: usize,
    cluster: Cluster,
    past: Vec<Cluster>,
}

/// A node's name.
pub(crate) fn node_name(node: usize) -> NodeName {
    format!("n{node}").into()
}

/// The address of a node's pod.
pub(crate) fn address(node: usize, pod: usize) -> IpAddr {
    [10, 0, node as u8, pod as u8 + 1].into()
}

/// The interface of what is put at a revision: some edits change nothing else.
fn interface(revision: Revision) -> String {
    ["", "veth", "tap"][revision.0 as usize % 3].to_owned()
}

impl Universe {
    /// A cluster with so many nodes, so many pods on each, and a few policies. Revision 1.
    pub(crate) fn new(nodes: usize, pods: usize, rng: &mut StdRng) -> Universe {
        let mut universe = Universe {
            nodes,
            pods,
            cluster: Cluster::default(),
            past: Vec::new(),
        };
        let labels = Arc::new(Labels::from([(
            "kubernetes.io/metadata.name".to_owned(),
            NAMESPACE.to_owned(),
        )]));
        let namespace = Body::Namespace(Namespace { labels });
        universe.put(object(Kind::Namespace, NAMESPACE, namespace), Revision(1));
        for node in 0..nodes {
            let body = Node {
                workload_cidrs: vec![format!("10.0.{node}.0/24").parse().expect("a CIDR")],
                ..Node::default()
            };
            universe.put(
                object(Kind::Node, node_name(node).as_str(), Body::Node(body)),
                Revision(1),
            );
            for pod in 0..pods {
                universe.put_pod(node, pod, LABELS[rng.random_range(0..3)], Revision(1));
            }
        }
        for _ in 0..rng.random_range(0..3) {
            universe.put_policy(rng, Revision(1));
        }
        universe
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Edits the cluster. Returns what changed, and what it is in words.
    pub(crate) fn edit(
        &mut self,
        rng: &mut StdRng,
        revision: Revision,
    ) -> (Vec<ObjectKey>, String) {
        self.past.push(self.cluster.clone());
        let (mut keys, mut words) = (Vec::new(), Vec::new());
        for _ in 0..[1, 1, 2, 3][rng.random_range(0..4)] {
            let (touched, what) = self.one_edit(rng, revision);
            keys.extend(touched);
            words.push(what);
        }
        (keys, words.join("; "))
    }

    fn one_edit(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        match rng.random_range(0..100) {
            0..30 => {
                let (key, what) = self.put_policy(rng, revision);
                (vec![key], what)
            }
            30..40 => self.delete_policy(rng),
            40..62 => self.relabel(rng, revision),
            62..73 => self.swap(rng, revision),
            73..78 => self.contest(rng, revision),
            78..86 => self.come_or_go(rng, revision),
            86..92 => self.other_owner(rng, revision),
            _ => self.go_back(rng, revision),
        }
    }

    fn put(&mut self, object: Object, revision: Revision) -> ObjectKey {
        let key = object.key.clone();
        self.cluster.put(object, revision);
        key
    }

    fn put_pod(&mut self, node: usize, pod: usize, label: &str, revision: Revision) -> ObjectKey {
        self.put_named(&format!("p{node}{pod}"), node, pod, label, revision)
    }

    fn put_named(
        &mut self,
        name: &str,
        node: usize,
        pod: usize,
        label: &str,
        revision: Revision,
    ) -> ObjectKey {
        let body = Workload {
            labels: Arc::new(Labels::from([("app".to_owned(), label.to_owned())])),
            node: Some(node_name(node).to_string()),
            addresses: vec![address(node, pod)],
            interface: interface(revision),
            ..Workload::default()
        };
        self.put(object(Kind::Pod, name, Body::Workload(body)), revision)
    }

    fn put_policy(&mut self, rng: &mut StdRng, revision: Revision) -> (ObjectKey, String) {
        let name = format!("p{}", rng.random_range(0..4));
        let (selects, pod_selector) = some_pods(rng);
        let mut words = format!("policy {name} for {selects}:");
        let mut rules = |direction: &str, rng: &mut StdRng| {
            let rules: Vec<(String, Rule)> = (0..rng.random_range(0..3))
                .map(|_| self.rule(rng))
                .collect();
            let told: Vec<&str> = rules.iter().map(|(told, _)| told.as_str()).collect();
            words += &format!(" {direction} [{}]", told.join(", "));
            Some(rules.into_iter().map(|(_, rule)| rule).collect())
        };
        let directions = rng.random_range(0..5);
        let policy = NetworkPolicy {
            pod_selector,
            ingress: if directions != 0 {
                rules("from", rng)
            } else {
                None
            },
            egress: if directions < 3 {
                rules("to", rng)
            } else {
                None
            },
            established: None,
        };
        let body = Body::NetworkPolicy(policy);
        let key = self.put(object(Kind::NetworkPolicy, &name, body), revision);
        (key, words)
    }

    fn rule(&self, rng: &mut StdRng) -> (String, Rule) {
        let (who, peers) = match rng.random_range(0..6) {
            0 => ("all".to_owned(), Vec::new()),
            1 => {
                let cidr = format!("10.0.{}.0/24", rng.random_range(0..self.nodes));
                let except = match rng.random_bool(0.5) {
                    true => vec![format!("{}/32", self.some_address(rng))],
                    false => Vec::new(),
                };
                let told = format!("{cidr} but {except:?}");
                let within = except
                    .iter()
                    .filter(|out| out.starts_with(&cidr[..cidr.len() - 4]));
                let block = Peer::Block {
                    except: within.map(|out| out.parse().expect("a CIDR")).collect(),
                    cidr: cidr.parse().expect("a CIDR"),
                };
                (told, vec![block])
            }
            _ => {
                let (told, pods) = some_pods(rng);
                let namespaces = None;
                (told, vec![Peer::Pods { namespaces, pods }])
            }
        };
        let (which, ports) = match rng.random_range(0..4) {
            0 | 1 => ("", Vec::new()),
            n => {
                let port = PORTS[n - 2];
                let ports = PortMatch::Range(port, port);
                let protocol = Protocol::Tcp;
                (
                    if n == 2 { ":80" } else { ":81" },
                    vec![Port { protocol, ports }],
                )
            }
        };
        (format!("{who}{which}"), Rule { peers, ports })
    }

    fn some_address(&self, rng: &mut StdRng) -> IpAddr {
        address(
            rng.random_range(0..self.nodes),
            rng.random_range(0..self.pods),
        )
    }

    fn delete_policy(&mut self, rng: &mut StdRng) -> (Vec<ObjectKey>, String) {
        let keys: Vec<ObjectKey> = self
            .cluster
            .policies()
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return (Vec::new(), "nothing".into());
        }
        let key = keys[rng.random_range(0..keys.len())].clone();
        self.cluster.remove(&key);
        let what = format!("no policy {}", key.name);
        (vec![key], what)
    }

    fn relabel(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        let Some((key, node, pod)) = self.some_pod(rng) else {
            return (Vec::new(), "nothing".into());
        };
        let label = LABELS[rng.random_range(0..3)];
        let key = self.put_named(&key.name, node, pod, label, revision);
        let what = format!("pod {} is {label}", key.name);
        (vec![key], what)
    }

    /// Swaps the ends of a denial: the other end of a flow then denies it.
    fn swap(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        let turn = self.past.len().is_multiple_of(2);
        let mut deny = |name: &str, ingress: bool, label: &str| {
            let policy = NetworkPolicy {
                pod_selector: labelled(label),
                ingress: ingress.then(Vec::new),
                egress: (!ingress).then(Vec::new),
                established: None,
            };
            self.put(
                object(Kind::NetworkPolicy, name, Body::NetworkPolicy(policy)),
                revision,
            )
        };
        let at_server = key(Kind::NetworkPolicy, "at-server");
        let at_client = key(Kind::NetworkPolicy, "at-client");
        let label = LABELS[rng.random_range(0..3)];
        let (put, gone, what) = if turn {
            (
                deny("at-server", true, label),
                at_client,
                "nothing may come to",
            )
        } else {
            (deny("at-client", false, label), at_server, "nobody hears")
        };
        let was_there = self.cluster.remove(&gone).is_some();
        let mut keys = vec![put];
        keys.extend(was_there.then_some(gone));
        let instead = if was_there { ", instead" } else { "" };
        (keys, format!("{what} {label}{instead}"))
    }

    fn come_or_go(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        let (node, pod) = (
            rng.random_range(0..self.nodes),
            rng.random_range(0..self.pods),
        );
        let holders: Vec<ObjectKey> = self.cluster.holders(address(node, pod)).cloned().collect();
        match holders.first() {
            Some(key) => {
                self.cluster.remove(key);
                let what = format!("pod {} goes", key.name);
                (vec![key.clone()], what)
            }
            None => {
                let key = self.put_pod(node, pod, LABELS[rng.random_range(0..3)], revision);
                let what = format!("pod {} comes", key.name);
                (vec![key], what)
            }
        }
    }

    /// A pod goes, and another has its address.
    fn other_owner(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        let Some((gone, node, pod)) = self.some_pod(rng) else {
            return (Vec::new(), "nothing".into());
        };
        self.cluster.remove(&gone);
        let label = LABELS[rng.random_range(0..3)];
        let name = format!("q{revision}{node}{pod}");
        let key = self.put_named(&name, node, pod, label, revision);
        let what = format!("pod {name} ({label}) has the address of {}", gone.name);
        (vec![gone, key], what)
    }

    /// Another pod, on any node, claims the address of one; or the last of several that claim one goes.
    fn contest(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        let Some((first, node, pod)) = self.some_pod(rng) else {
            return (Vec::new(), "nothing".into());
        };
        let claimants = self.cluster.holders(address(node, pod));
        let last = claimants.last().expect("there is one").clone();
        if last != first {
            self.cluster.remove(&last);
            let what = format!("pod {} goes, which had an address of others", last.name);
            return (vec![last], what);
        }
        let label = LABELS[rng.random_range(0..3)];
        let beside = rng.random_range(0..self.nodes);
        let name = format!("r{revision}{node}{pod}");
        let what = format!(
            "pod {name} ({label}) on n{beside} claims the address of {}",
            first.name
        );
        let body = Workload {
            labels: Arc::new(Labels::from([("app".to_owned(), label.to_owned())])),
            node: Some(node_name(beside).to_string()),
            addresses: vec![address(node, pod)],
            interface: interface(revision),
            ..Workload::default()
        };
        let key = self.put(object(Kind::Pod, &name, Body::Workload(body)), revision);
        (vec![key], what)
    }

    /// The cluster is as it was once.
    fn go_back(&mut self, rng: &mut StdRng, revision: Revision) -> (Vec<ObjectKey>, String) {
        let back = rng.random_range(0..self.past.len());
        let then = self.past[back].clone();
        let objects = |cluster: &Cluster| -> BTreeMap<ObjectKey, Object> {
            let objects = cluster.objects().map(|stored| &stored.object);
            objects
                .map(|object| (object.key.clone(), object.clone()))
                .collect()
        };
        let (before, after) = (objects(&self.cluster), objects(&then));
        let keys: BTreeSet<&ObjectKey> = before.keys().chain(after.keys()).collect();
        let changed = keys
            .into_iter()
            .filter(|key| before.get(key) != after.get(key));
        let changed: Vec<ObjectKey> = changed.cloned().collect();
        for key in &changed {
            match after.get(key) {
                Some(object) => self.cluster.put(object.clone(), revision),
                None => drop(self.cluster.remove(key)),
            }
        }
        (changed, format!("as {} edits ago", self.past.len() - back))
    }

    fn some_pod(&self, rng: &mut StdRng) -> Option<(ObjectKey, usize, usize)> {
        let (node, pod) = (
            rng.random_range(0..self.nodes),
            rng.random_range(0..self.pods),
        );
        let key = self.cluster.holders(address(node, pod)).next()?;
        Some((key.clone(), node, pod))
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    let namespace = if kind.is_namespaced() { NAMESPACE } else { "" };
    ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn object(kind: Kind, name: &str, body: Body) -> Object {
    Object {
        key: key(kind, name),
        body,
        manifest: "{}".into(),
    }
}

fn labelled(label: &str) -> LabelSelector {
    LabelSelector(BTreeSet::from([Requirement {
        key: "app".into(),
        operator: Operator::In(BTreeSet::from([label.to_owned()])),
    }]))
}

fn some_pods(rng: &mut StdRng) -> (String, LabelSelector) {
    match rng.random_range(0..7) {
        6 => ("pods".into(), LabelSelector::default()),
        n => (LABELS[n / 2].into(), labelled(LABELS[n / 2])),
    }
}
