//! The columns of a table for each kind of object, read from its stored manifest. Never lays anything out.

use sallyport_proto::wire::{Kind, Object, ObjectRef};
use serde_json::Value;

use crate::{
    kind,
    summary::{self, Direction, items, text},
};

/// The text of an empty cell, as kubectl writes it.
const NONE: &str = "<none>";

/// The columns of a table beside those of its kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct View {
    /// The further columns of `-o wide`.
    pub(crate) wide: bool,
    /// NAMESPACE, for the kinds that have one.
    pub(crate) namespaces: bool,
    /// `pod/web` instead of `web`.
    pub(crate) kinds: bool,
}

impl View {
    /// The header for a kind.
    pub(crate) fn header(self, kind: Kind) -> Vec<&'static str> {
        let (narrow, wide): (&[_], &[_]) = match kind {
            Kind::Unspecified => (&[], &[]),
            Kind::Namespace => (&["LABELS"], &["REVISION"]),
            Kind::Node => (&["ADDRESSES", "WORKLOAD-CIDRS"], &["LABELS", "REVISION"]),
            Kind::NetworkPolicy => (
                &["POD-SELECTOR", "POLICY-TYPES", "REVISION"],
                &["INGRESS", "EGRESS"],
            ),
            Kind::Pod | Kind::Workload => (
                &["NODE", "ADDRESSES", "LABELS"],
                &["PORTS", "HOST-NETWORK", "REVISION"],
            ),
        };
        let namespace = self.namespaces && kind::is_namespaced(kind);
        let mut header = Vec::from(if namespace { &["NAMESPACE"][..] } else { &[] });
        header.push("NAME");
        header.extend(narrow);
        header.extend(if self.wide { wide } else { &[] });
        header
    }

    /// The cells of an object, in the header's order.
    pub(crate) fn row(self, object: &Object) -> Vec<String> {
        let reference = object.r#ref.clone().unwrap_or_default();
        // A manifest that does not parse shows as one that says nothing.
        let manifest: Value = serde_json::from_str(&object.manifest).unwrap_or_default();
        let (narrow, wide) = cells(reference.kind(), &manifest, object.revision);
        let mut row = self.name(&reference);
        row.extend(narrow);
        row.extend(if self.wide { wide } else { Vec::new() });
        row
    }

    /// The cells of an object that is gone.
    pub(crate) fn gone(self, reference: &ObjectRef) -> Vec<String> {
        let mut row = self.name(reference);
        row.resize(self.header(reference.kind()).len(), String::new());
        row
    }

    fn name(self, reference: &ObjectRef) -> Vec<String> {
        let mut cells = Vec::new();
        if self.namespaces && kind::is_namespaced(reference.kind()) {
            cells.push(reference.namespace.clone());
        }
        cells.push(match self.kinds {
            true => format!("{}/{}", kind::singular(reference.kind()), reference.name),
            false => reference.name.clone(),
        });
        cells
    }
}

fn cells(kind: Kind, manifest: &Value, revision: u64) -> (Vec<String>, Vec<String>) {
    let (spec, revision) = (&manifest["spec"], revision.to_string());
    let labels = labels(&manifest["metadata"]["labels"]);
    match kind {
        Kind::Unspecified => (vec![], vec![]),
        Kind::Namespace => (vec![labels], vec![revision]),
        Kind::Node => (
            vec![node_addresses(manifest), workload_cidrs(spec)],
            vec![labels, revision],
        ),
        Kind::NetworkPolicy => {
            let types = summary::policy_types(spec);
            let types = types.iter().map(|direction| format!("{direction:?}"));
            (
                vec![
                    summary::selector(&spec["podSelector"]),
                    types.collect::<Vec<_>>().join(","),
                    revision,
                ],
                [Direction::Ingress, Direction::Egress]
                    .map(|direction| summary::rules(spec, direction))
                    .to_vec(),
            )
        }
        Kind::Pod | Kind::Workload => {
            let node = ["nodeName", "node"].map(|name| spec[name].as_str());
            let node = node.into_iter().flatten().next();
            let host_network = spec["hostNetwork"].as_bool().unwrap_or(false);
            (
                vec![
                    node.unwrap_or(NONE).to_owned(),
                    workload_addresses(manifest),
                    labels,
                ],
                vec![ports(spec), host_network.to_string(), revision],
            )
        }
    }
}

fn labels(labels: &Value) -> String {
    let labels = labels.as_object().into_iter().flatten();
    joined(labels.map(|(key, value)| format!("{key}={}", text(value))))
}

/// A Kubernetes Node has typed addresses in its status, ours has plain ones in its spec.
fn node_addresses(manifest: &Value) -> String {
    let kubernetes = items(&manifest["status"]["addresses"])
        .filter(|address| {
            address["type"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("IP"))
        })
        .map(|address| text(&address["address"]));
    joined(
        items(&manifest["spec"]["addresses"])
            .map(text)
            .chain(kubernetes),
    )
}

fn workload_cidrs(spec: &Value) -> String {
    let lists = ["workloadCIDRs", "podCIDRs"];
    let mut cidrs = lists
        .iter()
        .flat_map(|name| items(&spec[*name]))
        .map(text)
        .peekable();
    match (cidrs.peek(), &spec["podCIDR"]) {
        (None, Value::String(cidr)) => cidr.clone(),
        _ => joined(cidrs),
    }
}

/// A Pod has its addresses in its status, a Workload in its spec.
fn workload_addresses(manifest: &Value) -> String {
    let status = &manifest["status"];
    let pod = items(&status["podIPs"]).map(|ip| text(&ip["ip"]));
    let mut addresses = items(&manifest["spec"]["addresses"])
        .map(text)
        .chain(pod)
        .peekable();
    match (addresses.peek(), &status["podIP"]) {
        (None, Value::String(address)) => address.clone(),
        _ => joined(addresses),
    }
}

/// The named ports of a Workload, or of a Pod's containers.
fn ports(spec: &Value) -> String {
    let of_containers = items(&spec["containers"]).flat_map(|container| items(&container["ports"]));
    let port = |port: &Value| {
        let number = [&port["containerPort"], &port["port"]]
            .into_iter()
            .find(|it| !it.is_null());
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = number.map(text).unwrap_or_default();
        match port["name"].as_str() {
            Some(name) => format!("{name}={number}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    };
    joined(items(&spec["ports"]).chain(of_containers).map(port))
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    let joined = parts.collect::<Vec<_>>().join(",");
    match joined.is_empty() {
        true => NONE.to_owned(),
        false => joined,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(kind: Kind, view: View, mut manifest: Value) -> String {
        manifest["metadata"]["name"] = "x".into();
        let object = Object {
            r#ref: Some(ObjectRef {
                kind: kind.into(),
                namespace: "prod".to_owned(),
                name: "x".to_owned(),
            }),
            manifest: manifest.to_string(),
            revision: 7,
        };
        let (header, row) = (view.header(kind), view.row(&object));
        assert_eq!(header.len(), row.len(), "{header:?} {row:?}");
        assert_eq!(
            view.gone(&object.r#ref.expect("set above")).len(),
            header.len()
        );
        let pairs = header
            .iter()
            .zip(row)
            .map(|(title, cell)| format!("{title}: {cell}"));
        pairs.collect::<Vec<_>>().join(" | ")
    }

    const WIDE: View = View {
        wide: true,
        namespaces: true,
        kinds: false,
    };

    #[test]
    fn pods_and_workloads() {
        let pod = json!({
            "metadata": {"labels": {"app": "web", "tier": "1"}},
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        assert_eq!(
            shown(Kind::Pod, WIDE, pod),
            "NAMESPACE: prod | NAME: x | NODE: n1 | ADDRESSES: 10.0.0.1,fd00::1 | LABELS: app=web,tier=1 \
             | PORTS: http=80/TCP | HOST-NETWORK: false | REVISION: 7"
        );
        let workload = json!({"spec": {"node": "n1", "addresses": ["10.0.0.2"]}});
        assert_eq!(
            shown(Kind::Workload, View::default(), workload),
            "NAME: x | NODE: n1 | ADDRESSES: 10.0.0.2 | LABELS: <none>"
        );
        let old = json!({"status": {"podIP": "10.0.0.3"}});
        assert_eq!(
            shown(Kind::Pod, View::default(), old),
            "NAME: x | NODE: <none> | ADDRESSES: 10.0.0.3 | LABELS: <none>"
        );
    }

    #[test]
    fn nodes_of_kubernetes_and_ours() {
        let kubernetes = json!({
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"},
            ]},
        });
        let expected = "NAME: x | ADDRESSES: 192.0.2.1 | WORKLOAD-CIDRS: 10.1.0.0/24,fd01::/64";
        assert_eq!(shown(Kind::Node, View::default(), kubernetes), expected);
        let ours = json!({"spec": {"addresses": ["192.0.2.1"], "workloadCIDRs": ["10.1.0.0/24"]}});
        let expected = "NAME: x | ADDRESSES: 192.0.2.1 | WORKLOAD-CIDRS: 10.1.0.0/24 | LABELS: <none> | REVISION: 7";
        assert_eq!(shown(Kind::Node, WIDE, ours), expected);
    }

    #[test]
    fn policies_and_namespaces() {
        let policy = json!({"spec": {"podSelector": {}, "egress": [{}]}});
        assert_eq!(
            shown(Kind::NetworkPolicy, WIDE, policy),
            "NAMESPACE: prod | NAME: x | POD-SELECTOR: * | POLICY-TYPES: Ingress,Egress | REVISION: 7 \
             | INGRESS: nothing | EGRESS: all"
        );
        let all = View {
            kinds: true,
            ..View::default()
        };
        let labels = json!({"metadata": {"labels": {"team": "x"}}});
        assert_eq!(
            shown(Kind::Namespace, all, labels),
            "NAME: namespace/x | LABELS: team=x"
        );
    }
}
