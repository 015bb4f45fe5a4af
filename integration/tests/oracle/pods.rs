//! Random pods and workloads of the universe, at every point of their lives, and how their manifests look. Decides
//! nothing about what they mean.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
};
use serde_json::{Value, json};

use crate::universe::{
    Labels, NAMES, NAMESPACES, NODES, NUMBERS, address, labels, node_address, protocol,
};

/// A port that a container declares: by its name, unless it has none.
pub(crate) type Declared = (Option<&'static str>, u16, &'static str);

/// The phase of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The pod has no status yet.
    Unknown,
    Running,
    /// The pod runs, and was asked to end.
    Terminating,
    Succeeded,
    Failed,
}

/// A pod or a workload.
#[derive(Clone, Debug)]
pub(crate) struct Being {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) node: Option<&'static str>,
    pub(crate) addresses: Vec<IpAddr>,
    /// By container; the last of several is a sidecar.
    pub(crate) ports: Vec<Vec<Declared>>,
    pub(crate) host_network: bool,
    pub(crate) phase: Phase,
    /// Whether it is one of Kubernetes' pods.
    pub(crate) is_pod: bool,
}

/// A container's ports. Names are its own, numbers need not be.
pub(crate) fn declared() -> impl Strategy<Value = Vec<Declared>> {
    let named = btree_map(select(&NAMES), (select(&NUMBERS), protocol()), 0..3);
    let unnamed = option::weighted(0.2, (select(&NUMBERS), protocol()));
    (named, unnamed).prop_map(|(named, unnamed)| {
        let named = named.into_iter();
        let unnamed = unnamed.map(|(number, protocol)| (None, number, protocol));
        named
            .map(|(name, (number, protocol))| (Some(name), number, protocol))
            .chain(unnamed)
            .collect()
    })
}

/// Addresses as pods have them: mostly one or one of each family.
pub(crate) fn own_addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    let families =
        prop_oneof![4 => Just((true, false)), 2 => Just((false, true)), 4 => Just((true, true))];
    (families, 1..12u8, 1..12u8, any::<bool>()).prop_map(|((v4, v6), n, m, v6_first)| {
        let addresses = v4.then(|| address(n, false)).into_iter();
        let mut addresses: Vec<IpAddr> = addresses.chain(v6.then(|| address(m, true))).collect();
        if v6_first {
            addresses.reverse();
        }
        addresses
    })
}

/// A pod that runs on a node.
pub(crate) fn running() -> impl Strategy<Value = Being> {
    let host_network = prop::bool::weighted(0.1);
    let name = (select(&NAMESPACES), 0..5u8);
    let place = (select(&NODES), own_addresses(), host_network);
    (name, labels(), place, vec(declared(), 1..=2)).prop_map(
        |((namespace, n), labels, (node, addresses, host_network), ports)| Being {
            namespace: namespace.into(),
            name: format!("p{n}"),
            labels,
            node: Some(node),
            addresses: if host_network {
                let own = addresses
                    .iter()
                    .map(|one| node_address(node, one.is_ipv6()));
                own.collect()
            } else {
                addresses
            },
            ports,
            host_network,
            phase: Phase::Running,
            is_pod: true,
        },
    )
}

/// A pod at any point of its life, or a workload.
pub(crate) fn being() -> impl Strategy<Value = Being> {
    let phase = prop_oneof![
        1 => Just(Phase::Unknown),
        10 => Just(Phase::Running),
        2 => Just(Phase::Terminating),
        1 => Just(Phase::Succeeded),
        1 => Just(Phase::Failed),
    ];
    let (placed, addressed) = (prop::bool::weighted(0.9), prop::bool::weighted(0.9));
    let is_pod = prop::bool::weighted(0.8);
    (running(), phase, placed, addressed, is_pod).prop_map(
        |(mut being, phase, placed, addressed, is_pod)| {
            being.phase = phase;
            being.node = being.node.filter(|_| placed);
            if !addressed || phase == Phase::Unknown {
                being.addresses.clear();
            }
            if !is_pod {
                being.is_pod = false;
                being.host_network = false;
                being.ports.truncate(1);
                // A workload's ports all have names.
                being.ports[0].retain(|(name, ..)| name.is_some());
            }
            being
        },
    )
}

impl Being {
    /// Whether it has its addresses for itself.
    fn holds_addresses(&self) -> bool {
        let ended = self.is_pod && matches!(self.phase, Phase::Succeeded | Phase::Failed);
        !self.host_network && !ended
    }

    pub(crate) fn manifest(&self) -> Value {
        let ports = |ports: &[Declared], number: &str| -> Vec<Value> {
            let ports = ports.iter();
            let ports = ports.map(|&(name, value, protocol)| {
                let mut port = json!({number: value, "protocol": protocol});
                if let Some(name) = name {
                    port["name"] = name.into();
                }
                port
            });
            ports.collect()
        };
        let mut metadata =
            json!({"namespace": self.namespace, "name": self.name, "labels": self.labels});
        if !self.is_pod {
            return json!({
                "apiVersion": "sallyport.dev/v1",
                "kind": "Workload",
                "metadata": metadata,
                "spec": {
                    "node": self.node,
                    "addresses": self.addresses,
                    "interface": "veth-web",
                    "ports": ports(&self.ports[0], "port"),
                },
            });
        }
        if self.phase == Phase::Terminating {
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            metadata["deletionGracePeriodSeconds"] = 30.into();
        }
        let mut spec = json!({
            "containers": [{"name": "main", "ports": ports(&self.ports[0], "containerPort")}],
            "hostNetwork": self.host_network,
        });
        if let Some(node) = self.node {
            spec["nodeName"] = node.into();
        }
        if let Some(sidecar) = self.ports.get(1) {
            // One that ends before the others begin has no ports to speak of.
            spec["initContainers"] = json!([
                {"name": "early", "ports": [{"name": "http", "containerPort": 8081}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": ports(sidecar, "containerPort")},
            ]);
        }
        let mut pod =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        if self.phase != Phase::Unknown {
            let phase = match self.phase {
                Phase::Terminating => "Running".into(),
                other => format!("{other:?}"),
            };
            pod["status"] = json!({"phase": phase});
        }
        let addresses = self.addresses.iter().map(|ip| json!({"ip": ip}));
        let addresses: Vec<Value> = addresses.collect();
        match (&self.addresses[..], self.name.as_str()) {
            ([], _) => {}
            // Older clusters tell only the first address.
            ([only], "p0") => pod["status"]["podIP"] = json!(only),
            ([first, ..], _) => {
                pod["status"]["podIP"] = json!(first);
                pod["status"]["podIPs"] = addresses.into();
            }
        }
        pod
    }
}

/// Pods of which no two have one name; some have one address.
pub(crate) fn named_apart(beings: Vec<Being>, is_crowded: bool) -> Vec<Being> {
    let mut named: BTreeMap<(String, String), Being> = BTreeMap::new();
    for mut being in beings {
        if is_crowded && !being.host_network {
            // The same few addresses for all.
            let near = |ip: &IpAddr| match ip {
                IpAddr::V4(ip) => address(1 + ip.octets()[3] % 3, false),
                IpAddr::V6(ip) => address(1 + ip.octets()[15] % 3, true),
            };
            being.addresses = being.addresses.iter().map(near).collect();
        }
        let name = (being.namespace.clone(), being.name.clone());
        named.entry(name).or_insert(being);
    }
    named.into_values().collect()
}

/// Pods of which no two have one name, nor hold one address.
pub(crate) fn distinct(beings: Vec<Being>) -> Vec<Being> {
    let mut distinct: Vec<Being> = Vec::new();
    for being in beings {
        let clashes = distinct.iter().any(|other| other.clashes_with(&being));
        if !clashes {
            distinct.push(being);
        }
    }
    distinct
}

impl Being {
    /// Whether both cannot be in one cluster.
    pub(crate) fn clashes_with(&self, other: &Being) -> bool {
        let shared = || {
            self.addresses
                .iter()
                .any(|one| other.addresses.contains(one))
        };
        (&self.namespace, &self.name) == (&other.namespace, &other.name)
            || self.holds_addresses() && other.holds_addresses() && shared()
    }
}
