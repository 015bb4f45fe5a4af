//! What the kinds besides NetworkPolicy mean, what is refused of them in which words, and that what kubectl prints is
//! taken as it is. Policies' own rules are tested beside this.

use std::net::IpAddr;

use sallyport_controlplane::{
    manifest,
    model::{Body, NamedPort, Namespace, Node, Object, Workload},
};
use sallyport_proto::policy::Protocol;

fn accepted(text: &str) -> Vec<Object> {
    let objects = manifest::parse(text, "m.yaml").unwrap_or_else(|problems| {
        panic!(
            "{text}\n{}",
            problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        )
    });
    for object in &objects {
        assert_eq!(
            manifest::object_from_json(&object.manifest).as_ref(),
            Ok(object),
            "replay"
        );
    }
    objects
}

fn one(text: &str) -> Object {
    <[Object; 1]>::try_from(accepted(text))
        .unwrap_or_else(|objects| panic!("{objects:?}"))
        .into_iter()
        .next()
        .unwrap()
}

fn workload(text: &str) -> Workload {
    match one(text).body {
        Body::Workload(workload) => workload,
        other => panic!("{other:?}"),
    }
}

fn node(text: &str) -> Node {
    match one(text).body {
        Body::Node(node) => node,
        other => panic!("{other:?}"),
    }
}

/// What is said of one object, without where the text has it and what it is called.
fn said(text: &str) -> Vec<String> {
    let problems = manifest::parse(text, "").expect_err(text);
    let message = |mut problem: manifest::Problem| {
        (problem.document, problem.object) = (0, None);
        problem.to_string()
    };
    problems.into_iter().map(message).collect()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn port(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort {
        name: name.into(),
        protocol,
        port,
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                         and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                         validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

#[test]
fn metadata_is_refused_in_the_api_servers_words() {
    let long = "a".repeat(254);
    let annotations = "a".repeat(300_000);
    for (metadata, expected) in [
        ("{}".to_owned(), "name: Required value: name or generateName is required".to_owned()),
        ("{name: ''}".into(), "name: Required value: name or generateName is required".into()),
        ("{generateName: x-}".into(), "name: Required value: name is required: generateName is not supported".into()),
        ("{name: Web}".into(), format!("name: Invalid value: \"Web\": {SUBDOMAIN}")),
        (format!("{{name: {long}}}"), format!("name: Invalid value: \"{long}\": must be no more than 253 bytes")),
        ("{name: a, namespace: a.b}".into(), "namespace: Invalid value: \"a.b\": must not contain dots".into()),
        ("{name: a, namespace: -a}".into(), format!("namespace: Invalid value: \"-a\": {LABEL}")),
        ("{name: a, generation: -1}".into(), "generation: Invalid value: -1: must be greater than or equal to 0".into()),
        (
            "{name: a, labels: {/a: b}}".into(),
            "labels: Invalid value: \"/a\": prefix part must be non-empty".into(),
        ),
        (
            format!("{{name: a, labels: {{a: {}}}}}", &long[..64]),
            format!("labels: Invalid value: \"{}\": must be no more than 63 bytes", &long[..64]),
        ),
        (
            "{name: a, annotations: {/A: b}}".into(),
            "annotations: Invalid value: \"/A\": prefix part must be non-empty".into(),
        ),
        (
            format!("{{name: a, annotations: {{a: {annotations}}}}}"),
            "annotations: Too long: may not be more than 262144 bytes".into(),
        ),
        (
            "{name: a, creationTimestamp: today}".into(),
            "creationTimestamp: Invalid value: failed to parse four digit integer as year: invalid digit, expected 0-9 \
             but got t"
                .into(),
        ),
    ] {
        for kind in ["v1, kind: Pod", "networking.k8s.io/v1, kind: NetworkPolicy", "sallyport.dev/v1, kind: Workload"] {
            let text = format!("{{apiVersion: {kind}, metadata: {metadata}}}");
            assert_eq!(said(&text), [format!("metadata.{expected}")], "{kind}");
        }
    }
    for (text, expected) in [
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a.b}}",
            "metadata.name: Invalid value: \"a.b\": must not contain dots",
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a, namespace: b}}",
            "metadata.namespace: Forbidden: not allowed on this type",
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a, namespace: b}}",
            "metadata.namespace: Forbidden: not allowed on this type",
        ),
        (
            "{apiVersion: sallyport.dev/v1, kind: Node}",
            "metadata.name: Required value: name or generateName is required",
        ),
    ] {
        assert_eq!(said(text), [expected], "{text}");
    }
    accepted(
        "{apiVersion: v1, kind: Node, metadata: {name: a.b, annotations: {Example.com/A: b}}}",
    );
}

#[test]
fn an_object_without_a_namespace_is_in_default() {
    for metadata in [
        "{name: a}",
        "{name: a, namespace: ''}",
        "{namespace: null, name: a}",
        "{name: a, namespace: default}",
    ] {
        let object = one(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {metadata}}}"
        ));
        assert_eq!(object.key.to_string(), "Pod default/a");
        assert!(
            object.manifest.contains("\"namespace\":\"default\""),
            "{}",
            object.manifest
        );
    }
    let replayed = manifest::object_from_json(
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"new":[1.5,{}]}"#,
    );
    assert_eq!(
        &*replayed.unwrap().manifest,
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"default"},"new":[1.5,{}]}"#
    );
}

#[test]
fn a_namespace_is_labelled_with_its_name() {
    for labels in [
        "{}",
        "null",
        "{kubernetes.io/metadata.name: b}",
        "{kubernetes.io/metadata.name: a}",
    ] {
        let object = one(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a, labels: {labels}}}}}"
        ));
        let expected = [("kubernetes.io/metadata.name".to_owned(), "a".to_owned())];
        assert_eq!(
            object.body,
            Body::Namespace(Namespace {
                labels: std::sync::Arc::new(expected.into())
            })
        );
    }
}

#[test]
fn what_kubectl_prints_is_taken_as_it_is() {
    let pod = workload(include_str!("manifest_data/pod.yaml"));
    assert_eq!(pod.node.as_deref(), Some("worker-1"));
    // It is being deleted, and may send as long as its containers run.
    assert_eq!(
        pod.addresses,
        addresses(&["10.244.1.7", "fd00:10:244:1::7"])
    );
    assert_eq!(
        pod.ports,
        [
            port("http", Protocol::Tcp, 80),
            port("dns", Protocol::Udp, 53),
            port("mesh", Protocol::Tcp, 15_001),
        ]
    );
    assert!(!pod.host_network);
    assert_eq!(
        pod.labels
            .get("apps.kubernetes.io/pod-index")
            .map(String::as_str),
        Some("0")
    );

    let worker = node(include_str!("manifest_data/node.yaml"));
    assert_eq!(
        worker.addresses,
        addresses(&["172.18.0.3", "fc00:f853:ccd:e793::3", "203.0.113.9"])
    );
    let cidrs: Vec<_> = worker
        .workload_cidrs
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(cidrs, ["10.244.1.0/24", "fd00:10:244:1::/64"]);

    let policies = accepted(include_str!("manifest_data/netpol.json"));
    let keys: Vec<_> = policies
        .iter()
        .map(|object| object.key.to_string())
        .collect();
    assert_eq!(
        keys,
        ["NetworkPolicy shop/deny-all", "NetworkPolicy shop/web"]
    );

    let Body::NetworkPolicy(example) = one(include_str!("manifest_data/example.yaml")).body else {
        panic!()
    };
    assert_eq!(example.pod_selector.to_string(), "role=db");
    assert_eq!(example.ingress.unwrap()[0].peers.len(), 3);
    assert_eq!(example.egress.unwrap()[0].ports.len(), 2);
}

fn pod(spec: &str, status: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, spec: {spec}, status: {status}}}")
}

#[test]
fn a_pods_addresses_follow_its_phase() {
    for (status, expected) in [
        ("null", &[] as &[&str]),
        ("{phase: Pending}", &[]),
        ("{podIP: ''}", &[]),
        ("{podIP: 10.0.0.1}", &["10.0.0.1"]),
        ("{podIPs: [{ip: 10.0.0.1}]}", &["10.0.0.1"]),
        (
            "{phase: Running, podIP: \"fd00::1\", podIPs: [{ip: \"fd00::1\"}, {ip: 10.0.0.1}]}",
            &["fd00::1", "10.0.0.1"],
        ),
        ("{phase: Unknown, podIP: 10.0.0.1}", &["10.0.0.1"]),
        ("{phase: Succeeded, podIP: 10.0.0.1}", &[]),
        ("{phase: Failed, podIPs: [{ip: 10.0.0.1}]}", &[]),
    ] {
        assert_eq!(
            workload(&pod("{}", status)).addresses,
            addresses(expected),
            "{status}"
        );
    }
}

#[test]
fn a_pods_fields_mean_what_they_mean_in_kubernetes() {
    assert!(
        workload(&pod(
            "{hostNetwork: true, nodeName: n1}",
            "{podIP: 172.18.0.3}"
        ))
        .host_network
    );
    assert_eq!(workload(&pod("{nodeName: ''}", "{}")).node, None);
    let ports = workload(&pod(
        "{containers: [{name: a, ports: [{containerPort: 80, name: web}, {containerPort: 81}]}, \
         {name: b, ports: [{containerPort: 90, name: web}, {containerPort: 91, name: x, protocol: SCTP}]}]}",
        "{}",
    ));
    assert_eq!(
        ports.ports,
        [
            port("web", Protocol::Tcp, 80),
            port("web", Protocol::Tcp, 90),
            port("x", Protocol::Sctp, 91),
        ]
    );
    assert_eq!(ports.port("web", Protocol::Tcp), Some(80));
}

#[test]
fn pods_are_refused_in_the_api_servers_words() {
    let ports = |ports: &str| {
        pod(
            &format!("{{containers: [{{name: a, ports: [{ports}]}}]}}"),
            "{}",
        )
    };
    let ips = |ips: &str| pod("{}", &format!("{{podIPs: [{ips}]}}"));
    for (text, expected) in [
        (pod("{nodeName: N1}", "{}"), format!("spec.nodeName: Invalid value: \"N1\": {SUBDOMAIN}")),
        (pod("{hostNetwork: 'yes'}", "{}"), "spec.hostNetwork: Invalid value: \"yes\": must be a boolean".into()),
        (
            ports("{containerPort: 0}"),
            "spec.containers[0].ports[0].containerPort: Required value".into(),
        ),
        (
            ports("{containerPort: 65536, name: a}"),
            "spec.containers[0].ports[0].containerPort: Invalid value: 65536: must be between 1 and 65535, inclusive"
                .into(),
        ),
        (
            ports("{containerPort: 80, name: web}, {containerPort: 81, name: web}"),
            "spec.containers[0].ports[1].name: Duplicate value: \"web\"".into(),
        ),
        (
            ports("{containerPort: 80, name: \"80\"}"),
            "spec.containers[0].ports[0].name: Invalid value: \"80\": must contain at least one letter (a-z)".into(),
        ),
        (
            ports("{containerPort: 80, protocol: ICMP}"),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \
             \"UDP\""
                .into(),
        ),
        (
            pod("{initContainers: [{name: a, restartPolicy: Always, ports: [{containerPort: -1}]}]}", "{}"),
            "spec.initContainers[0].ports[0].containerPort: Invalid value: -1: must be between 1 and 65535, inclusive"
                .into(),
        ),
        (
            ips("{ip: 10.0.0.1}, {ip: 10.0.0.2}"),
            "status.podIPs: Invalid value: [\"10.0.0.1\",\"10.0.0.2\"]: may specify no more than one IP for each IP \
             family"
                .into(),
        ),
        (
            pod("{}", "{podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.1}]}"),
            "status.podIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `podIP`".into(),
        ),
        (
            ips("{ip: x}"),
            "status.podIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                .into(),
        ),
        (
            ips("{}"),
            "status.podIPs[0]: Invalid value: \"\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                .into(),
        ),
        (
            pod("{}", "{podIP: 0.0.0.0}"),
            "status.podIP: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0 or ::)".into(),
        ),
    ] {
        assert_eq!(said(&text), [expected], "{text}");
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
        assert_eq!(said(&text), [expected], "{text}");
    }
}

fn vm(spec: &str) -> String {
    format!(
        "{{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {{name: vm, namespace: shop}}, spec: {spec}}}"
    )
}

#[test]
fn a_workload_is_what_its_spec_says() {
    let object = one(&vm(
        "{node: m1, addresses: [10.1.0.5, \"fd01::5\"], ports: [{name: http, port: 8080}, \
         {name: dns, port: 53, protocol: UDP}]}",
    ));
    assert_eq!(object.key.to_string(), "Workload shop/vm");
    let Body::Workload(workload) = object.body else {
        panic!()
    };
    assert_eq!(workload.node.as_deref(), Some("m1"));
    assert_eq!(workload.addresses, addresses(&["10.1.0.5", "fd01::5"]));
    assert_eq!(
        workload.ports,
        [
            port("http", Protocol::Tcp, 8080),
            port("dns", Protocol::Udp, 53)
        ]
    );
    assert!(!workload.host_network);
    assert_eq!(one(&vm("{}")).body, Body::Workload(Workload::default()));
}

#[test]
fn workloads_are_refused_with_the_fields_name() {
    let many = vec!["{name: a, port: 1}"; 1_001].join(",");
    for (spec, expected) in [
        (
            "{node: []}".to_owned(),
            &["spec.node: Invalid value: a list: must be a string"] as &[&str],
        ),
        (
            "{node: m_1}".into(),
            &[&format!("spec.node: Invalid value: \"m_1\": {SUBDOMAIN}")],
        ),
        (
            "{addresses: [10.1.0.5, 10.1.0.6]}".into(),
            &[
                "spec.addresses: Invalid value: [\"10.1.0.5\",\"10.1.0.6\"]: may specify no more than one IP for each IP \
               family",
            ],
        ),
        (
            "{addresses: [\"::ffff:10.1.0.5\", \"::\", \"ff02::1\", 255.255.255.255]}".into(),
            &[
                "spec.addresses[0]: Invalid value: \"::ffff:10.1.0.5\": may not be an IPv4-mapped IPv6 address \
                 (::ffff:0:0/96)",
                "spec.addresses[1]: Invalid value: \"::\": may not be unspecified (0.0.0.0 or ::)",
                "spec.addresses[2]: Invalid value: \"ff02::1\": may not be in the multicast range (224.0.0.0/4, \
                 ff00::/8)",
                "spec.addresses[3]: Invalid value: \"255.255.255.255\": may not be the broadcast address \
                 (255.255.255.255)",
            ],
        ),
        (
            "{ports: [{}, {name: web, port: 70000}, {name: web, port: 1, protocol: tcp}]}".into(),
            &[
                "spec.ports[0].name: Required value",
                "spec.ports[0].port: Required value",
                "spec.ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.ports[2].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        ),
        (
            "{ports: [{name: web, port: 1}, {name: web, port: 2, protocol: UDP}]}".into(),
            &["spec.ports[1].name: Duplicate value: \"web\""],
        ),
        (
            format!("{{ports: [{many}]}}"),
            &["spec.ports: Too many: 1001: must have at most 1000 items"],
        ),
    ] {
        assert_eq!(said(&vm(&spec)), expected, "{spec}");
    }
}

#[test]
fn json_that_is_no_object_is_refused_with_one_problem() {
    for (json, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        (
            "{}",
            "no matches for kind \"\" in version \"\": supported are networking.k8s.io/v1 NetworkPolicy, v1 \
                Namespace, v1 Node, v1 Pod, sallyport.dev/v1 Node, sallyport.dev/v1 Workload, and lists of these",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"A"}}"#,
            &format!("Pod default/A: metadata.name: Invalid value: \"A\": {SUBDOMAIN}"),
        ),
    ] {
        assert_eq!(
            manifest::object_from_json(json).unwrap_err().to_string(),
            expected
        );
    }
}
