//! Owns how a case's objects look as manifests of the API; never sends one.

use sallyport_proto::wire::Edit;
use serde_json::{Value, json};

use super::case::{Labels, Pod};
use crate::deployment;

/// Puts an object.
pub(super) fn put(object: &Value) -> Edit {
    deployment::put(object.to_string())
}

/// Deletes an object; of what it says only its kind and its name count.
pub(super) fn delete(object: &Value) -> Edit {
    deployment::delete(object.to_string())
}

pub(super) fn node(name: &str) -> Value {
    json!({"apiVersion": "sallyport.dev/v1", "kind": "Node", "metadata": {"name": name}})
}

pub(super) fn namespace(name: &str, labels: &Labels) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// Names a policy.
pub(super) fn policy(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
    })
}

/// A pod as a workload; one that shares its node's network as Kubernetes' own object, since a workload never does.
pub(super) fn pod(pod: &Pod, node: &str) -> Value {
    let addresses = pod.addresses();
    let metadata = json!({"namespace": pod.namespace, "name": pod.name, "labels": pod.labels});
    if pod.host_network {
        let ips = addresses.iter().map(|ip| json!({"ip": ip}));
        let ips: Vec<Value> = ips.collect();
        return json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {
                "nodeName": node,
                "hostNetwork": true,
                "containers": [{"name": "server", "ports": ports(pod, "containerPort")}],
            },
            "status": {"phase": "Running", "podIP": addresses[0], "podIPs": ips},
        });
    }
    json!({
        "apiVersion": "sallyport.dev/v1",
        "kind": "Workload",
        "metadata": metadata,
        "spec": {"node": node, "addresses": addresses, "ports": ports(pod, "port")},
    })
}

/// The named ports; to policies the others mean nothing.
fn ports(pod: &Pod, number: &str) -> Vec<Value> {
    let named = pod.declared().iter().filter_map(|port| {
        let name = port.name.as_deref().filter(|name| !name.is_empty())?;
        let protocol = sallyport_policy::Protocol::from(port.protocol).to_string();
        Some(json!({"name": name, "protocol": protocol, number: port.port}))
    });
    named.collect()
}
