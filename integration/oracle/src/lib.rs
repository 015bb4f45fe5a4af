//! An oracle: what Kubernetes' documentation says of packets, read from API objects as they are; never asks the code
//! that it is there to check.
//!
//! Simple before fast. It is written from the documentation of NetworkPolicy, labels and selectors, and the pod
//! lifecycle, policy by policy and packet by packet, and it takes validated objects: what the API server would refuse
//! it may misread.

mod api;
mod cidr;
mod flow;
mod selector;

use std::{collections::BTreeMap, net::IpAddr};

use serde::de::DeserializeOwned;
use serde_json::Value;

use api::{NetworkPolicySpec, Pod, Workload};

pub use api::Transport;
pub use flow::{Flow, Packet, Side};

type Labels = BTreeMap<String, String>;

/// The label that "the control plane sets on all namespaces": "the value of the label is the namespace name".
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Why an object was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object has no kind, or a kind without meaning to policies.
    #[error("the oracle knows no kind {0:?}")]
    Kind(String),
    /// The object breaks the schema of its kind.
    #[error("{kind}: {reason}")]
    Schema {
        /// The kind.
        kind: String,
        /// Why.
        reason: serde_json::Error,
    },
}

/// A pod, or a workload, which is one to policies.
#[derive(Clone, Debug)]
struct Member {
    labels: Labels,
    node: Option<String>,
    addresses: Vec<IpAddr>,
    ports: Vec<api::ContainerPort>,
    host_network: bool,
}

/// A cluster as its API shows it.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    namespaces: BTreeMap<String, Labels>,
    /// By namespace and name.
    members: BTreeMap<(String, String), Member>,
    policies: BTreeMap<(String, String), NetworkPolicySpec>,
}

impl Oracle {
    /// Creates or replaces an object: a Namespace, Pod, Workload or NetworkPolicy. Nodes mean nothing to policies.
    pub fn put(&mut self, object: &Value) -> Result<(), Error> {
        let identity = Identity::of(object)?;
        let name = || (identity.namespace.clone(), identity.name.clone());
        let labels = || decode::<Option<Labels>>(&identity.kind, &object["metadata"]["labels"]);
        match identity.kind.as_str() {
            "Namespace" => {
                let mut labels = labels()?.unwrap_or_default();
                labels.insert(NAMESPACE_NAME.into(), identity.name.clone());
                self.namespaces.insert(identity.name, labels);
            }
            "Pod" => {
                let pod: Pod = decode(&identity.kind, object)?;
                let member = pod.member(labels()?.unwrap_or_default());
                self.members.insert(name(), member);
            }
            "Workload" => {
                let workload: Workload = decode(&identity.kind, object)?;
                let member = workload.member(labels()?.unwrap_or_default());
                self.members.insert(name(), member);
            }
            "NetworkPolicy" => {
                let spec: Option<_> = decode(&identity.kind, &object["spec"])?;
                self.policies.insert(name(), spec.unwrap_or_default());
            }
            "Node" => {}
            _ => return Err(Error::Kind(identity.kind)),
        }
        Ok(())
    }

    /// Deletes an object; of what is given only its kind and its name count. With a namespace goes all that is in it.
    pub fn delete(&mut self, object: &Value) -> Result<(), Error> {
        let identity = Identity::of(object)?;
        let key = (identity.namespace, identity.name);
        match identity.kind.as_str() {
            "Namespace" => {
                self.namespaces.remove(&key.1);
                self.members.retain(|(namespace, _), _| *namespace != key.1);
                self.policies
                    .retain(|(namespace, _), _| *namespace != key.1);
            }
            "Pod" | "Workload" => drop(self.members.remove(&key)),
            "NetworkPolicy" => drop(self.policies.remove(&key)),
            "Node" => {}
            _ => return Err(Error::Kind(identity.kind)),
        }
        Ok(())
    }

    /// The addresses that policies may select on a node: those of its pods, but not of pods on the node's own network.
    pub fn selectable(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        let members = self.members.values();
        let on_node = members
            .filter(move |member| !member.host_network && member.node.as_deref() == Some(node));
        on_node.flat_map(|member| member.addresses.iter().copied())
    }

    /// The verdict of the policies about packets from one address to another. The first packet decides for a
    /// connection; its replies are allowed with it.
    pub fn flow(&self, from: IpAddr, to: IpAddr) -> Flow<'_> {
        Flow::of(self, from, to)
    }

    /// The pods that an address may stand for, each with its namespace. "hostNetwork pods are ignored when matching
    /// podSelector and namespaceSelector": traffic with them "is treated the same as all other traffic to and from the
    /// node IP". No two pods should have one address, but an API may show a pod that is gone beside its successor.
    fn at(&self, address: IpAddr) -> Vec<(&str, &Member)> {
        let members = self.members.iter();
        let found = members
            .filter(|(_, member)| !member.host_network && member.addresses.contains(&address));
        found
            .map(|((namespace, _), member)| (namespace.as_str(), member))
            .collect()
    }

    /// The nodes that an address is on, each with whether it is the node itself, as far as pods tell.
    fn places(&self, address: IpAddr) -> Vec<(&str, bool)> {
        let mut members: Vec<&Member> = self.at(address).into_iter().map(|(_, one)| one).collect();
        if members.is_empty() {
            let mut all = self.members.values();
            members.extend(all.find(|member| member.addresses.contains(&address)));
        }
        let places = members.into_iter();
        places
            .filter_map(|member| Some((member.node.as_deref()?, member.host_network)))
            .collect()
    }

    fn namespace_labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(namespace).unwrap_or(&NONE)
    }
}

/// The identity of an object.
struct Identity {
    kind: String,
    namespace: String,
    name: String,
}

impl Identity {
    fn of(object: &Value) -> Result<Identity, Error> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = text(&object["kind"]).unwrap_or_default();
        let metadata: api::Metadata = decode(&kind, &object["metadata"])?;
        Ok(Identity {
            kind,
            namespace: metadata.namespace.unwrap_or_else(|| "default".into()),
            name: metadata.name,
        })
    }
}

fn decode<T: DeserializeOwned>(kind: &str, value: &Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|reason| Error::Schema {
        kind: kind.to_owned(),
        reason,
    })
}
