//! Workloads: Kubernetes' pods and ours. Converts; common rules are in `validate`.

use std::{net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use sallyport_policy::interface;
use sallyport_proto::{
    names,
    object::{Kind, ObjectKey},
};
use serde::Deserialize;

use super::kinds::Resource;
use crate::{
    model::{self, Body, NamedPort},
    validate::{self, Faults, MAX_NAMED_PORTS, Path, PortEntry, quote},
};

/// The annotation of a pod with its allowed sources, separated by commas.
const ALLOWED_SOURCES: &str = "sallyport.dev/allowed-sources";

/// sallyport.dev/v1 Workload.
#[derive(Deserialize)]
pub(super) struct Workload {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
    metadata: Option<ObjectMeta>,
    spec: Option<WorkloadSpec>,
}

#[derive(Default, Deserialize)]
struct WorkloadSpec {
    node: Option<String>,
    addresses: Option<Vec<String>>,
    interface: Option<String>,
    #[serde(rename = "allowedSources")]
    allowed_sources: Option<Vec<String>>,
    ports: Option<Vec<WorkloadPort>>,
}

#[derive(Deserialize)]
struct WorkloadPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

impl Resource for Workload {
    const KIND: Kind = Kind::Workload;
    const HAS_UID: bool = true;

    fn metadata(&mut self) -> &mut ObjectMeta {
        self.metadata.get_or_insert_default()
    }

    fn body(self, _key: &ObjectKey, meta: ObjectMeta, faults: &mut Faults) -> Body {
        let spec = self.spec.unwrap_or_default();
        let at = Path::ROOT.field("spec");
        let node = node_name(spec.node, at.field("node"), faults);
        let addresses = family_addresses(
            spec.addresses
                .unwrap_or_default()
                .iter()
                .map(String::as_str),
            at.field("addresses"),
            faults,
        );
        let interface = interface(spec.interface, at.field("interface"), faults);
        let sources = spec.allowed_sources.unwrap_or_default();
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let list = at.field("allowedSources");
        let allowed_sources =
            validate::allowed_sources(&sources, list, |item| list.index(item), faults);
        let given = spec.ports.unwrap_or_default();
        let at = at.field("ports");
        let mut ports = Vec::new();
        if faults.within(at, given.len(), MAX_NAMED_PORTS) {
            for (i, _) in given
                .iter()
                .enumerate()
                .filter(|(_, port)| port.name.as_deref().unwrap_or("").is_empty())
            {
                faults.required(at.index(i).field("name"), "");
            }
            let entries = given.iter().map(|port| PortEntry {
                name: port.name.as_deref().unwrap_or_default(),
                protocol: port.protocol.as_deref().unwrap_or_default(),
                number: port.port.unwrap_or_default(),
                number_field: "port",
            });
            validate::named_ports(entries, at, &mut ports, faults);
        }
        Body::Workload(model::Workload {
            labels: Arc::new(meta.labels.unwrap_or_default()),
            uid: meta.uid.unwrap_or_default(),
            node,
            addresses,
            interface,
            allowed_sources,
            ports,
            host_network: false,
        })
    }
}

/// The name of the node that a workload is on; an empty one is none.
fn node_name(name: Option<String>, at: Path<'_>, faults: &mut Faults) -> Option<String> {
    let name = name.filter(|name| !name.is_empty())?;
    faults.invalid_each(at, &name, names::dns1123_subdomain(&name));
    Some(name)
}

/// The name of the interface that a workload is behind; an empty one is none.
fn interface(name: Option<String>, at: Path<'_>, faults: &mut Faults) -> String {
    let name = name.unwrap_or_default();
    if !name.is_empty() {
        faults.invalid_each(at, &name, interface::name_faults(&name));
    }
    name
}

/// A workload's addresses: usable ones, at most one of each family.
fn family_addresses<'a>(
    given: impl Iterator<Item = &'a str>,
    at: Path<'_>,
    faults: &mut Faults,
) -> Vec<IpAddr> {
    let addresses: Vec<_> = given
        .enumerate()
        .filter_map(|(i, text)| validate::usable(text, at.index(i), faults))
        .collect();
    validate::one_per_family(&addresses, at, faults);
    addresses
}

/// The allowed sources of a pod, by its annotation. An empty annotation is none.
fn annotated_sources(meta: &ObjectMeta, host_network: bool, faults: &mut Faults) -> Vec<IpNetwork> {
    let annotations = meta.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(ALLOWED_SOURCES));
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Vec::new();
    };
    let at = Path::ROOT.field("metadata");
    let at = at.field("annotations");
    let at = at.key(ALLOWED_SOURCES);
    if host_network {
        faults.forbidden(
            at,
            "may not be set with `hostNetwork`: the pod has no addresses of its own",
        );
    }
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    validate::allowed_sources(&items, at, |_| at, faults)
}

impl Resource for core::Pod {
    const KIND: Kind = Kind::Pod;
    const HAS_STATUS: bool = true;
    const SPEC_MAY_BE_LATER: bool = true;
    const HAS_UID: bool = true;

    fn metadata(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn clear_unread(&self, meta: &mut ObjectMeta) {
        let mut faults = Faults::default();
        annotated_sources(meta, is_on_host_network(self), &mut faults);
        if !faults.list.is_empty()
            && let Some(annotations) = &mut meta.annotations
        {
            annotations.remove(ALLOWED_SOURCES);
        }
    }

    /// A pod that is being deleted keeps its addresses until its phase says that it ended: it may still send. One that
    /// ended has no address and is on no node, which may be gone before it.
    fn body(self, _key: &ObjectKey, meta: ObjectMeta, faults: &mut Faults) -> Body {
        let host_network = is_on_host_network(&self);
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let allowed_sources = annotated_sources(&meta, host_network, faults);
        let mut addresses = pod_addresses(&status, faults);
        let ports = container_ports(&spec, faults);
        let at = Path::ROOT.field("spec");
        let mut node = node_name(spec.node_name, at.field("nodeName"), faults);
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            addresses.clear();
            node = None;
        }
        Body::Workload(model::Workload {
            labels: Arc::new(meta.labels.unwrap_or_default()),
            uid: meta.uid.unwrap_or_default(),
            node,
            addresses,
            // A pod's object does not say it.
            interface: String::new(),
            allowed_sources,
            ports,
            host_network,
        })
    }
}

/// Whether a pod shares its node's network.
fn is_on_host_network(pod: &core::Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.host_network).unwrap_or_default()
}

fn pod_addresses(status: &core::PodStatus, faults: &mut Faults) -> Vec<IpAddr> {
    let at = Path::ROOT.field("status");
    let one = status.pod_ip.as_deref().unwrap_or_default();
    let all = status.pod_ips.as_deref().unwrap_or_default();
    match (one, all) {
        ("", []) => Vec::new(),
        (text, []) => validate::usable(text, at.field("podIP"), faults)
            .into_iter()
            .collect(),
        (one, [first, ..]) => {
            let at = at.field("podIPs");
            if !one.is_empty() && first.ip != one {
                let at = at.index(0);
                faults.invalid(at.field("ip"), quote(&first.ip), "must be equal to `podIP`");
            }
            family_addresses(all.iter().map(|ip| ip.ip.as_str()), at, faults)
        }
    }
}

/// The named ports of all containers that run beside each other, in the order in which Kubernetes looks for a name:
/// containers first, then the init containers that keep running.
fn container_ports(spec: &core::PodSpec, faults: &mut Faults) -> Vec<NamedPort> {
    let at = Path::ROOT.field("spec");
    let sidecars = spec
        .init_containers
        .as_deref()
        .unwrap_or_default()
        .iter()
        .enumerate();
    let sidecars =
        sidecars.filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec
        .containers
        .iter()
        .enumerate()
        .map(|(i, container)| ("containers", i, container));
    let sidecars = sidecars.map(|(i, container)| ("initContainers", i, container));
    let mut ports = Vec::new();
    for (list, i, container) in containers.chain(sidecars) {
        let at = at.field(list);
        let at = at.index(i);
        let at = at.field("ports");
        let given = container.ports.as_deref().unwrap_or_default();
        if faults.within(at, given.len(), MAX_NAMED_PORTS) {
            let entries = given.iter().map(|port| PortEntry {
                name: port.name.as_deref().unwrap_or_default(),
                protocol: port.protocol.as_deref().unwrap_or_default(),
                number: port.container_port,
                number_field: "containerPort",
            });
            validate::named_ports(entries, at, &mut ports, faults);
        }
    }
    ports
}
