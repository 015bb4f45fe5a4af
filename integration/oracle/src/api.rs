//! Owns the API objects as far as policies go, in the API's own shape: what is absent stays absent; decides nothing
//! about packets.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use crate::{Labels, Member, cidr::Cidr};

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// The protocol of a port that names none.
    #[default]
    Tcp,
    /// The user datagram protocol.
    Udp,
    /// The stream control transmission protocol.
    Sctp,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NetworkPolicySpec {
    pub(crate) pod_selector: Option<LabelSelector>,
    pub(crate) policy_types: Option<Vec<String>>,
    pub(crate) ingress: Option<Vec<Rule>>,
    pub(crate) egress: Option<Vec<Rule>>,
}

/// A rule of either direction.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rule {
    pub(crate) from: Option<Vec<Peer>>,
    pub(crate) to: Option<Vec<Peer>>,
    pub(crate) ports: Option<Vec<PolicyPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Peer {
    pub(crate) pod_selector: Option<LabelSelector>,
    pub(crate) namespace_selector: Option<LabelSelector>,
    pub(crate) ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct IpBlock {
    pub(crate) cidr: Cidr,
    pub(crate) except: Option<Vec<Cidr>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyPort {
    pub(crate) protocol: Option<Transport>,
    pub(crate) port: Option<IntOrString>,
    pub(crate) end_port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum IntOrString {
    Int(u16),
    String(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LabelSelector {
    pub(crate) match_labels: Option<BTreeMap<String, String>>,
    pub(crate) match_expressions: Option<Vec<Requirement>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Requirement {
    pub(crate) key: String,
    pub(crate) operator: Operator,
    pub(crate) values: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Pod {
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<ContainerPort>>,
    restart_policy: Option<String>,
}

/// A port as a container declares it, or, with `port`, a workload.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) name: Option<String>,
    #[serde(alias = "port")]
    pub(crate) container_port: u16,
    pub(crate) protocol: Option<Transport>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<IpAddr>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: IpAddr,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Workload {
    spec: Option<WorkloadSpec>,
}

#[derive(Debug, Default, Deserialize)]
struct WorkloadSpec {
    node: Option<String>,
    addresses: Option<Vec<IpAddr>>,
    ports: Option<Vec<ContainerPort>>,
}

impl Pod {
    /// The pod to policies. "All containers in the pod have terminated" when its phase is Succeeded or Failed: nothing
    /// of it can send or receive, and another pod may have its address. One that is only being deleted
    /// (`deletionTimestamp`) runs on until then.
    pub(crate) fn member(self, labels: Labels) -> Member {
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let listed = status.pod_ips.unwrap_or_default();
        let mut addresses: Vec<IpAddr> = listed.into_iter().map(|pod_ip| pod_ip.ip).collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip);
        }
        let init = spec.init_containers.unwrap_or_default().into_iter();
        // "Sidecar containers": init containers that keep running beside the others.
        let sidecars =
            init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        let containers = spec.containers.unwrap_or_default().into_iter();
        let ports = containers
            .chain(sidecars)
            .filter_map(|container| container.ports);
        Member {
            labels,
            node: spec.node_name,
            addresses: if ended { Vec::new() } else { addresses },
            ports: ports.flatten().collect(),
            host_network: spec.host_network.unwrap_or(false),
        }
    }
}

impl Workload {
    /// The workload to policies.
    pub(crate) fn member(self, labels: Labels) -> Member {
        let spec = self.spec.unwrap_or_default();
        Member {
            labels,
            node: spec.node,
            addresses: spec.addresses.unwrap_or_default(),
            ports: spec.ports.unwrap_or_default(),
            host_network: false,
        }
    }
}
