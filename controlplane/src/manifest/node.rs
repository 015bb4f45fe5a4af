//! Nodes: Kubernetes' own and ours, which mean the same. Converts; common rules are in `validate`.

use std::{net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use sallyport_proto::object::{Kind, ObjectKey};
use serde::Deserialize;

use super::kinds::Resource;
use crate::{
    model::{self, Body},
    validate::{self, Faults, MAX_NODE_ADDRESSES, Path, quote},
};

/// sallyport.dev/v1 Node.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
    metadata: Option<ObjectMeta>,
    spec: Option<NodeSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    addresses: Option<Vec<String>>,
    #[serde(rename = "workloadCIDRs")]
    workload_cidrs: Option<Vec<String>>,
}

impl Resource for Node {
    const KIND: Kind = Kind::Node;

    fn metadata(&mut self) -> &mut ObjectMeta {
        self.metadata.get_or_insert_default()
    }

    fn body(self, _key: &ObjectKey, meta: ObjectMeta, faults: &mut Faults) -> Body {
        let spec = self.spec.unwrap_or_default();
        let at = Path::ROOT.field("spec");
        let addresses = addresses(
            &spec.addresses.unwrap_or_default(),
            at.field("addresses"),
            faults,
        );
        let workload_cidrs = ranges(
            &spec.workload_cidrs.unwrap_or_default(),
            at.field("workloadCIDRs"),
            faults,
        );
        Body::Node(model::Node {
            labels: Arc::new(meta.labels.unwrap_or_default()),
            addresses,
            workload_cidrs,
        })
    }
}

fn addresses(given: &[String], at: Path<'_>, faults: &mut Faults) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    if faults.within(at, given.len(), MAX_NODE_ADDRESSES) {
        for (i, text) in given.iter().enumerate() {
            match validate::usable(text, at.index(i), faults) {
                Some(address) if addresses.contains(&address) => {
                    faults.duplicate(at.index(i), quote(text))
                }
                Some(address) => addresses.push(address),
                None => {}
            }
        }
    }
    addresses
}

fn ranges(given: &[String], at: Path<'_>, faults: &mut Faults) -> Vec<IpNetwork> {
    let mut ranges = Vec::new();
    if faults.within(at, given.len(), MAX_NODE_ADDRESSES) {
        for (i, text) in given.iter().enumerate() {
            match validate::cidr(text, at.index(i), faults).map(|span| span.network) {
                Some(network) if ranges.contains(&network) => {
                    faults.duplicate(at.index(i), quote(text))
                }
                Some(network) => ranges.push(network),
                None => {}
            }
        }
    }
    ranges
}

impl Resource for core::Node {
    const KIND: Kind = Kind::Node;
    const HAS_STATUS: bool = true;
    const SPEC_MAY_BE_LATER: bool = true;

    fn metadata(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn body(self, _key: &ObjectKey, meta: ObjectMeta, faults: &mut Faults) -> Body {
        let status = self.status.unwrap_or_default();
        let at = Path::ROOT.field("status");
        let at = at.field("addresses");
        let mut addresses = Vec::new();
        for (i, given) in status.addresses.unwrap_or_default().iter().enumerate() {
            let at = at.index(i);
            if matches!(given.type_.as_str(), "InternalIP" | "ExternalIP")
                && let Some(address) = validate::usable(&given.address, at.field("address"), faults)
                // Where there is no NAT, a cloud gives the same address as internal and external.
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        let workload_cidrs = pod_cidrs(&self.spec.unwrap_or_default(), faults);
        Body::Node(model::Node {
            labels: Arc::new(meta.labels.unwrap_or_default()),
            addresses,
            workload_cidrs,
        })
    }
}

fn pod_cidrs(spec: &core::NodeSpec, faults: &mut Faults) -> Vec<IpNetwork> {
    let at = Path::ROOT.field("spec");
    let one = spec.pod_cidr.as_deref().unwrap_or_default();
    let all = spec.pod_cidrs.as_deref().unwrap_or_default();
    if all.is_empty() {
        return match one {
            "" => Vec::new(),
            text => validate::cidr(text, at.field("podCIDR"), faults)
                .map(|span| span.network)
                .into_iter()
                .collect(),
        };
    }
    let at = at.field("podCIDRs");
    if !one.is_empty() && all[0] != one {
        faults.invalid(at.index(0), quote(&all[0]), "must be equal to `podCIDR`");
    }
    let ranges = ranges(all, at, faults);
    let v4 = ranges.iter().filter(|range| range.is_ipv4()).count();
    if v4 > 1 || ranges.len() - v4 > 1 {
        let all: Vec<_> = all.iter().map(|text| quote(text)).collect();
        faults.invalid(
            at,
            format!("[{}]", all.join(",")),
            "may specify no more than one CIDR for each IP family",
        );
    }
    ranges
}
