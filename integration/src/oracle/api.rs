//! Owns the API objects as far as policies go, in the API's own shape: what is absent stays absent; decides nothing
//! about packets.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{Labels, Member, cidr::Cidr};

/// A protocol that has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// What a port has that names no protocol.
    #[default]
    Tcp,
    /// The user datagram protocol.
    Udp,
    /// The stream control transmission protocol.
    Sctp,
}

#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkPolicySpec {
    pub(super) pod_selector: Option<LabelSelector>,
    pub(super) policy_types: Option<Vec<String>>,
    pub(super) ingress: Option<Vec<Rule>>,
    pub(super) egress: Option<Vec<Rule>>,
}

/// A rule of either direction.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Rule {
    pub(super) from: Option<Vec<Peer>>,
    pub(super) to: Option<Vec<Peer>>,
    pub(super) ports: Option<Vec<PolicyPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Peer {
    pub(super) pod_selector: Option<LabelSelector>,
    pub(super) namespace_selector: Option<LabelSelector>,
    pub(super) ip_block: Option<IpBlock>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct IpBlock {
    pub(super) cidr: Cidr,
    pub(super) except: Option<Vec<Cidr>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyPort {
    pub(super) protocol: Option<Transport>,
    pub(super) port: Option<IntOrString>,
    pub(super) end_port: Option<u16>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum IntOrString {
    Int(u16),
    String(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LabelSelector {
    pub(super) match_labels: Option<BTreeMap<String, String>>,
    pub(super) match_expressions: Option<Vec<Requirement>>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Requirement {
    pub(super) key: String,
    pub(super) operator: Operator,
    pub(super) values: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pod {
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
pub(super) struct ContainerPort {
    pub(super) name: Option<String>,
    #[serde(alias = "port")]
    pub(super) container_port: u16,
    pub(super) protocol: Option<Transport>,
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
pub(super) struct Workload {
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
    pub(super) fn member(self, labels: Labels) -> Member {
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
    pub(super) fn member(self, labels: Labels) -> Member {
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
