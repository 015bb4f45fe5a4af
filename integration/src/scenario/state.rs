//! Whole states of the cluster as manifests by name, the transactions between them, and the pieces that states share.
//! Carries nothing out.

use std::{collections::BTreeMap, net::IpAddr};

use crate::deployment::{delete, put};
use sallyport_proto::wire;

/// Manifests of one object each, by what sorts them as they must be put: namespaces, nodes, then the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State(BTreeMap<(Rank, String), String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Namespace,
    Node,
    Workload,
    Policy,
}

impl State {
    /// The union of both states.
    pub fn and(mut self, other: State) -> State {
        self.0.extend(other.0);
        self
    }

    /// The manifests, in an order in which they can be put.
    pub fn manifests(&self) -> impl Iterator<Item = &String> {
        self.0.values()
    }

    /// The edits from this state to another.
    pub fn edits_to(&self, new: &State) -> Vec<wire::Edit> {
        let (gone, come) = self.halves_to(new);
        gone.into_iter().chain(come).collect()
    }

    /// The same in two: what is deleted, and what is put.
    pub fn halves_to(&self, new: &State) -> (Vec<wire::Edit>, Vec<wire::Edit>) {
        let gone = self.0.iter().filter(|(key, _)| !new.0.contains_key(key));
        let come = new
            .0
            .iter()
            .filter(|(key, text)| self.0.get(key) != Some(text));
        (
            gone.map(|(_, text)| delete(text.clone())).collect(),
            come.map(|(_, text)| put(text.clone())).collect(),
        )
    }

    fn with(mut self, rank: Rank, name: &str, text: String) -> State {
        self.0.insert((rank, name.to_owned()), text);
        self
    }
}

/// A namespace with labels, as YAML has them between braces.
pub(super) fn namespace(name: &str, labels: &str) -> State {
    let text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
    );
    State::default().with(Rank::Namespace, name, text)
}

/// A node, and the addresses of its workloads.
pub(super) fn node(name: &str, ranges: &str) -> State {
    let text = format!(
        "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{workloadCIDRs: [{ranges}]}}\n"
    );
    State::default().with(Rank::Node, name, text)
}

/// A workload.
pub(super) fn workload(
    node: &str,
    namespace: &str,
    name: &str,
    labels: &str,
    addresses: &[IpAddr],
) -> State {
    let addresses: Vec<_> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
    let text = format!(
        "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}
spec: {{node: {node}, addresses: [{}]}}
",
        addresses.join(", ")
    );
    State::default().with(Rank::Workload, &format!("{namespace}/{name}"), text)
}

/// The direction of a policy.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Ingress,
    Egress,
}

/// A policy in `default` with one rule: these UDP ports, from or to these peers, both as YAML has them in brackets.
pub(super) fn policy(name: &str, selects: &str, way: Way, ports: &str, peers: &str) -> State {
    let (kind, list, who) = match way {
        Way::Ingress => ("Ingress", "ingress", "from"),
        Way::Egress => ("Egress", "egress", "to"),
    };
    let text = format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: {name}}}
spec:
  podSelector: {{matchLabels: {{{selects}}}}}
  policyTypes: [{kind}]
  {list}: [{{ports: [{ports}], {who}: [{peers}]}}]
"
    );
    State::default().with(Rank::Policy, name, text)
}

/// A range of UDP ports.
pub(super) fn ports(first: u32, last: u32) -> String {
    format!("{{protocol: UDP, port: {first}, endPort: {last}}}")
}

/// An `ipBlock`.
pub(super) fn block(cidr: &str, except: &[String]) -> String {
    format!(
        "{{ipBlock: {{cidr: \"{cidr}\", except: [{}]}}}}",
        quoted(except)
    )
}

fn quoted(texts: &[String]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| format!("\"{text}\"")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_what_differs() {
        let old = namespace("a", "").and(namespace("b", ""));
        let new = namespace("b", "x: y").and(namespace("c", ""));
        assert_eq!(old.edits_to(&new).len(), 3, "a goes, b changes, c comes");
        assert_eq!(new.edits_to(&new), []);
        assert_eq!(old.halves_to(&new).0.len(), 1);
    }
}
