//! Pods and workloads: what they mean and what is refused. Metadata is tested beside this.

use ipnetwork::IpNetwork;
use sallyport_controlplane::{
    manifest,
    model::{Body, NamedPort, Workload},
};
use sallyport_policy::Protocol;

use super::{SUBDOMAIN, accepted, addresses, field_problems, one};

pub(super) fn workload(text: &str) -> Workload {
    match one(text).body {
        Body::Workload(workload) => workload,
        other => panic!("{other:?}"),
    }
}

pub(super) fn port(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort {
        name: name.into(),
        protocol,
        port,
    }
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
fn nulls_in_a_pod_are_zero_values() {
    let object = one(
        "{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: null}, annotations: {a: null}, finalizers: [null]}, \
         spec: {hostNetwork: null, containers: [null, {name: c, args: [null], resources: {limits: {cpu: null}}}]}, \
         status: {podIPs: null, conditions: [null]}}",
    );
    assert_eq!(
        &*object.manifest,
        "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"p\",\"labels\":{\"app\":\"\"},\
         \"annotations\":{\"a\":\"\"},\"finalizers\":[\"\"],\"namespace\":\"default\"},\"spec\":{\"hostNetwork\":null,\
         \"containers\":[{},{\"name\":\"c\",\"args\":[\"\"],\"resources\":{\"limits\":{\"cpu\":\"0\"}}}]},\
         \"status\":{\"podIPs\":null,\"conditions\":[{}]}}"
    );
    let Body::Workload(workload) = object.body else {
        panic!("a pod is a workload")
    };
    assert_eq!(workload.labels.get("app").map(String::as_str), Some(""));
}

/// Numbers in a pod that kubectl reads: `cpu: 1`, `containerPort: 80.0`.
#[test]
fn a_pods_numbers_are_read_as_kubectl_reads_them() {
    let pod = workload(&pod(
        "{containers: [{name: a, ports: [{name: web, containerPort: 80.0}], livenessProbe: {periodSeconds: 1e1, \
         httpGet: {port: 8e1}}, resources: {limits: {cpu: 1, memory: 1.5e3}, requests: {cpu: 0.5}}}]}",
        "{}",
    ));
    assert_eq!(pod.ports, [port("web", Protocol::Tcp, 80)]);
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
        assert_eq!(field_problems(&text), [expected], "{text}");
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
        "{node: m1, addresses: [10.1.0.5, \"fd01::5\"], interface: veth-vm, allowedSources: [10.9.0.0/16], ports: [{name: http, port: 8080}, \
         {name: dns, port: 53, protocol: UDP}]}",
    ));
    assert_eq!(object.key.to_string(), "Workload shop/vm");
    let Body::Workload(workload) = object.body else {
        panic!()
    };
    assert_eq!(workload.node.as_deref(), Some("m1"));
    assert_eq!(workload.addresses, addresses(&["10.1.0.5", "fd01::5"]));
    assert_eq!(workload.interface, "veth-vm");
    assert_eq!(workload.allowed_sources, networks(&["10.9.0.0/16"]));
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

/// Names are taken that the kernel takes, and an empty one is none. Several workloads may be behind one interface.
#[test]
fn a_workload_may_be_behind_an_interface() {
    for (interface, expected) in [
        ("null", ""),
        ("''", ""),
        ("tap0", "tap0"),
        ("eth0.100", "eth0.100"),
        ("fifteen-bytes-x", "fifteen-bytes-x"),
        ("été", "été"),
        ("'1'", "1"),
    ] {
        let text = vm(&format!("{{interface: {interface}}}"));
        assert_eq!(workload(&text).interface, expected, "{interface}");
    }
    let nested = [vm("{interface: veth-vm}"), vm("{interface: veth-vm}")];
    let nested = nested
        .join("\n---\n")
        .replacen("name: vm", "name: inner", 1);
    assert_eq!(accepted(&nested).len(), 2);
}

/// The interface of a pod is not in its object.
#[test]
fn a_pod_has_no_interface() {
    let problems = field_problems(&pod("{interface: veth-pod}", "{}"));
    assert_eq!(problems, ["unknown field \"spec.interface\""]);
    for spec in ["{nodeName: n1}", "{nodeName: n1, hostNetwork: true}"] {
        assert_eq!(workload(&pod(spec, "{podIP: 10.0.0.1}")).interface, "");
    }
}

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn annotated(sources: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p, annotations: {{sallyport.dev/allowed-sources: {sources}}}}}, \
         spec: {{nodeName: n1}}, status: {{podIP: 10.0.0.1}}}}"
    )
}

/// A Workload's field and a pod's annotation mean the same.
#[test]
fn a_workload_may_have_allowed_sources() {
    let most: Vec<String> = (0..64).map(|n| format!("10.9.{n}.0/24")).collect();
    let most: Vec<&str> = most.iter().map(String::as_str).collect();
    let (list, text) = (most.join(", "), format!("'{}'", most.join(",")));
    for (list, text, expected) in [
        ("null", "null", &[] as &[&str]),
        ("[]", "''", &[]),
        ("[]", "' \t'", &[]),
        (
            "[10.9.0.0/16, \"2001:db8::/64\"]",
            "'10.9.0.0/16,2001:db8::/64'",
            &["10.9.0.0/16", "2001:db8::/64"],
        ),
        ("[10.9.3.4/16]", "\" 10.9.3.4/16\\t\"", &["10.9.0.0/16"]),
        ("[10.9.3.4/32]", "10.9.3.4/32", &["10.9.3.4/32"]),
        (
            "[\"2001:db8::1/64\", 010.9.0.0/16]",
            "'2001:db8::1/64 , 010.9.0.0/16'",
            &["2001:db8::/64", "10.9.0.0/16"],
        ),
        (
            "[\"::ffff:10.9.0.0/112\"]",
            "'::ffff:10.9.0.0/112'",
            &["10.9.0.0/16"],
        ),
        (
            "[0.0.0.0/0, \"::/0\", 10.9.0.0/16]",
            "'0.0.0.0/0, ::/0,10.9.0.0/16'",
            &["0.0.0.0/0", "::/0", "10.9.0.0/16"],
        ),
        // More than what is no source.
        (
            "[0.0.0.0/7, 126.0.0.0/7, 192.0.0.0/2, \"::/126\", \"fe00::/9\", \"fe00::/7\", 169.254.1.0/24]",
            "'0.0.0.0/7,126.0.0.0/7,192.0.0.0/2,::/126,fe00::/9,fe00::/7,169.254.1.0/24'",
            &[
                "0.0.0.0/7",
                "126.0.0.0/7",
                "192.0.0.0/2",
                "::/126",
                "fe00::/9",
                "fe00::/7",
                "169.254.1.0/24",
            ],
        ),
        (&format!("[{list}]"), &text, &most),
    ] {
        let vm = workload(&vm(&format!("{{allowedSources: {list}}}")));
        assert_eq!(vm.allowed_sources, networks(expected), "{list}");
        let pod = workload(&annotated(text));
        assert_eq!(pod.allowed_sources, networks(expected), "{text}");
    }
    // The annotation is a pod's, the field a Workload's.
    let other = vm("{}").replace(
        "name: vm",
        "name: vm, annotations: {sallyport.dev/allowed-sources: x}",
    );
    assert_eq!(workload(&other).allowed_sources, []);
    let problems = field_problems(&pod("{allowedSources: [10.9.0.0/16]}", "{}"));
    assert_eq!(problems, ["unknown field \"spec.allowedSources\""]);
}

#[test]
fn allowed_sources_are_refused_in_the_api_servers_words() {
    const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    const UNSPECIFIED: &str = "may not be unspecified (0.0.0.0 or ::)";
    const LOOPBACK: &str = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
    const MULTICAST: &str = "may not be in the multicast range (224.0.0.0/4, ff00::/8)";
    const LINK_LOCAL: &str = "may not be in the link-local range (fe80::/10)";
    const BROADCAST: &str = "may not be the broadcast address (255.255.255.255)";
    for (wrong, rule) in [
        ("10.9.0.0/33", CIDR),
        ("10.9.0.1", CIDR),
        ("2001:db8::/129", CIDR),
        ("", CIDR),
        ("x", CIDR),
        ("0.0.0.0/32", UNSPECIFIED),
        ("::/128", UNSPECIFIED),
        ("127.0.0.0/8", LOOPBACK),
        ("127.1.2.3/32", LOOPBACK),
        ("::1/128", LOOPBACK),
        ("::/127", LOOPBACK),
        ("224.0.0.0/4", MULTICAST),
        ("239.1.0.0/16", MULTICAST),
        ("ff02::1/128", MULTICAST),
        ("fe80::/10", LINK_LOCAL),
        ("febf::/16", LINK_LOCAL),
        ("255.255.255.255/32", BROADCAST),
        ("::ffff:127.0.0.1/128", LOOPBACK),
    ] {
        let list = vm(&format!("{{allowedSources: [10.9.0.0/16, \"{wrong}\"]}}"));
        let expected = format!("spec.allowedSources[1]: Invalid value: \"{wrong}\": {rule}");
        assert_eq!(field_problems(&list), [expected]);
        let text = annotated(&format!("'10.9.0.0/16, {wrong}'"));
        let expected = format!(
            "metadata.annotations[sallyport.dev/allowed-sources]: Invalid value: \"{wrong}\": {rule}"
        );
        assert_eq!(field_problems(&text), [expected]);
    }
    let many: Vec<String> = (0..65).map(|n| format!("10.9.{n}.0/24")).collect();
    let many = many.join(",");
    let too_many = "Too many: 65: must have at most 64 items";
    let duplicate = "Duplicate value: \"10.9.1.1/16\"";
    for (given, expected) in [
        (
            vm(&format!("{{allowedSources: [{many}]}}")),
            format!("spec.allowedSources: {too_many}"),
        ),
        (
            annotated(&format!("'{many}'")),
            format!("metadata.annotations[sallyport.dev/allowed-sources]: {too_many}"),
        ),
        (
            vm("{allowedSources: [10.9.0.0/16, 10.9.1.1/16]}"),
            format!("spec.allowedSources[1]: {duplicate}"),
        ),
        (
            annotated("'10.9.0.0/16,10.9.1.1/16'"),
            format!("metadata.annotations[sallyport.dev/allowed-sources]: {duplicate}"),
        ),
        (
            vm("{allowedSources: 10.9.0.0/16}"),
            "spec.allowedSources: Invalid value: \"10.9.0.0/16\": must be a list".into(),
        ),
        (
            annotated("10.9.0.0/16").replace("nodeName: n1", "hostNetwork: true"),
            "metadata.annotations[sallyport.dev/allowed-sources]: Forbidden: may not be set with `hostNetwork`: the pod has \
             no addresses of its own"
                .into(),
        ),
    ] {
        assert_eq!(field_problems(&given), [expected], "{given}");
    }
    let host = annotated("' '").replace("nodeName: n1", "hostNetwork: true");
    assert!(workload(&host).host_network);
}

/// An earlier version did not read the annotation: its journals may hold any text there.
#[test]
fn an_annotation_that_was_accepted_and_is_refused_now_means_nothing() {
    let json = |annotation: &str, spec: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"a","namespace":"b","annotations":{{"sallyport.dev/allowed-sources":"{annotation}"}}}},"spec":{{{spec}}}}}"#
        )
    };
    for (annotation, spec, expected) in [
        ("10.9.0.0/16", "", &["10.9.0.0/16"] as &[&str]),
        ("10.9.0.0/16,x", "", &[]),
        ("10.9.0.0/16", r#""hostNetwork":true"#, &[]),
    ] {
        let json = json(annotation, spec);
        let object = manifest::object_from_json(&json).unwrap_or_else(|e| panic!("{json}: {e}"));
        assert_eq!(&*object.manifest, json);
        let Body::Workload(pod) = object.body else {
            panic!("a pod is a workload")
        };
        assert_eq!(pod.allowed_sources, networks(expected), "{json}");
        let refused = manifest::parse(&json, "").is_err();
        assert_eq!(refused, expected.is_empty(), "{json}");
    }
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
            "{interface: [veth-vm]}".into(),
            &["spec.interface: Invalid value: a list: must be a string"],
        ),
        (
            "{interfaces: veth-vm}".into(),
            &["unknown field \"spec.interfaces\""],
        ),
        (
            "{interface: sixteen-bytes-xx}".into(),
            &["spec.interface: Invalid value: \"sixteen-bytes-xx\": must be no more than 15 bytes"],
        ),
        (
            "{interface: .}".into(),
            &["spec.interface: Invalid value: \".\": may not be '.'"],
        ),
        (
            "{interface: ..}".into(),
            &["spec.interface: Invalid value: \"..\": may not be '..'"],
        ),
        (
            "{interface: 'veth*'}".into(),
            &["spec.interface: Invalid value: \"veth*\": may not contain '*'"],
        ),
        (
            "{interface: \"a\\tb\"}".into(),
            &["spec.interface: Invalid value: \"a\\tb\": may not contain white space"],
        ),
        (
            "{interface: 'net/eth0:1 b'}".into(),
            &[
                "spec.interface: Invalid value: \"net/eth0:1 b\": may not contain '/'",
                "spec.interface: Invalid value: \"net/eth0:1 b\": may not contain ':'",
                "spec.interface: Invalid value: \"net/eth0:1 b\": may not contain white space",
            ],
        ),
        (
            format!("{{ports: [{many}]}}"),
            &["spec.ports: Too many: 1001: must have at most 1000 items"],
        ),
    ] {
        assert_eq!(field_problems(&vm(&spec)), expected, "{spec}");
    }
}
