//! Nodes, Kubernetes' and ours: what they mean and what is refused. Metadata is tested beside this.

use sallyport_controlplane::model::{Body, Node};

use super::{addresses, field_problems, one};

pub(super) fn node(text: &str) -> Node {
    match one(text).body {
        Body::Node(node) => node,
        other => panic!("{other:?}"),
    }
}

fn machine(spec: &str) -> String {
    format!(
        "{{apiVersion: sallyport.dev/v1, kind: Node, metadata: {{name: m1, labels: {{zone: a}}}}, spec: {spec}}}"
    )
}

#[test]
fn a_node_of_ours_means_the_same_as_kubernetes_own() {
    let ours = one(&machine(
        "{addresses: [10.0.0.1, \"fd00::1\"], workloadCIDRs: [10.1.0.1/16, \"fd01::/64\"]}",
    ));
    let theirs = one(
        "{apiVersion: v1, kind: Node, metadata: {name: m1, labels: {zone: a}}, \
         spec: {podCIDR: 10.1.0.0/16, podCIDRs: [10.1.0.0/16, \"fd01::/64\"]}, \
         status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: Hostname, address: m1}, \
         {type: ExternalIP, address: \"fd00::1\"}]}}",
    );
    assert_eq!((ours.key, ours.body), (theirs.key, theirs.body));
    let one_cidr =
        node("{apiVersion: v1, kind: Node, metadata: {name: m1}, spec: {podCIDR: 10.1.0.0/16}}");
    assert_eq!(one_cidr.workload_cidrs, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(node(&machine("{}")).addresses, addresses(&[]));
}

#[test]
fn nodes_are_refused_with_the_fields_name() {
    const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let many = vec!["10.0.0.1"; 1_001].join(",");
    for (text, expected) in [
        (
            machine("{addresses: [10.0.0.1, 10.0.0.1]}"),
            "spec.addresses[1]: Duplicate value: \"10.0.0.1\"".to_owned(),
        ),
        (
            machine("{addresses: [127.0.0.1]}"),
            "spec.addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
                .into(),
        ),
        (machine("{workloadCIDRs: [10.0.0.1]}"), format!("spec.workloadCIDRs[0]: Invalid value: \"10.0.0.1\": {CIDR}")),
        (
            machine("{workloadCIDRs: [10.0.0.1/8, 10.0.0.0/8]}"),
            "spec.workloadCIDRs[1]: Duplicate value: \"10.0.0.0/8\"".into(),
        ),
        (
            machine(&format!("{{addresses: [{many}]}}")),
            "spec.addresses: Too many: 1001: must have at most 1000 items".into(),
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDR: x}}".into(),
            format!("spec.podCIDR: Invalid value: \"x\": {CIDR}"),
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDR: 10.1.0.0/16, podCIDRs: [10.2.0.0/16]}}"
                .into(),
            "spec.podCIDRs[0]: Invalid value: \"10.2.0.0/16\": must be equal to `podCIDR`".into(),
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDRs: [10.1.0.0/16, 10.2.0.0/16]}}".into(),
            "spec.podCIDRs: Invalid value: [\"10.1.0.0/16\",\"10.2.0.0/16\"]: may specify no more than one CIDR for \
             each IP family"
                .into(),
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}, status: {addresses: [{type: InternalIP}]}}".into(),
            "status.addresses[0].address: Invalid value: \"\": must be a valid IP address, (e.g. 10.9.8.7 or \
             2001:db8::ffff)"
                .into(),
        ),
    ] {
        assert_eq!(field_problems(&text), [expected], "{text}");
    }
}
