//! Metadata of every kind, namespaces, and that what kubectl prints is taken as it is. Specs are tested beside this.

use sallyport_controlplane::{
    manifest,
    model::{Body, Namespace},
};
use sallyport_policy::Protocol;

use super::{
    LABEL, SUBDOMAIN, accepted, addresses, field_problems,
    nodes::node,
    one,
    workloads::{port, workload},
};

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
            assert_eq!(field_problems(&text), [format!("metadata.{expected}")], "{kind}");
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
        assert_eq!(field_problems(text), [expected], "{text}");
    }
    accepted(
        "{apiVersion: v1, kind: Node, metadata: {name: a.b, annotations: {Example.com/A: b}}}",
    );
}

#[test]
fn another_word_for_established_connections_is_refused() {
    for (value, quoted) in [
        ("Keep", "Keep"),
        ("''", ""),
        ("cut", "cut"),
        ("'keep '", "keep "),
    ] {
        let text = |kind: &str| {
            format!(
                "{{apiVersion: {kind}, metadata: {{name: a, annotations: {{sallyport.dev/established: {value}}}}}}}"
            )
        };
        assert_eq!(
            field_problems(&text("networking.k8s.io/v1, kind: NetworkPolicy")),
            [format!(
                "metadata.annotations[sallyport.dev/established]: Unsupported value: \"{quoted}\": supported values: \
                 \"keep\", \"recheck\""
            )]
        );
        // It means something on a policy, and nothing elsewhere.
        accepted(&text("v1, kind: Pod"));
    }
}

#[test]
fn the_uid_tells_workloads_of_one_name_apart() {
    let text = |kind: &str, uid: &str| {
        format!("{{apiVersion: {kind}, metadata: {{name: a, uid: {uid}}}}}")
    };
    let kinds = ["v1, kind: Pod", "sallyport.dev/v1, kind: Workload"];
    let longest = "u".repeat(128);
    for (given, expected) in [
        ("null", ""),
        ("''", ""),
        ("'7a0f 7d4a~'", "7a0f 7d4a~"),
        (longest.as_str(), &longest),
    ] {
        for kind in kinds {
            assert_eq!(workload(&text(kind, given)).uid, expected, "{kind}");
        }
    }
    let long = "u".repeat(129);
    let printable = "must consist of printable ASCII characters";
    for (given, told) in [
        (
            long.as_str(),
            format!("\"{long}\": must be no more than 128 bytes"),
        ),
        ("\"a\\tb\"", format!("\"a\\tb\": {printable}")),
        ("pod-é", format!("\"pod-é\": {printable}")),
    ] {
        for kind in kinds {
            let told = format!("metadata.uid: Invalid value: {told}");
            assert_eq!(field_problems(&text(kind, given)), [told], "{kind}");
        }
        accepted(&text("networking.k8s.io/v1, kind: NetworkPolicy", given));
    }
    // Earlier versions stored any: such a journal opens.
    let stored = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"a","namespace":"b","uid":"{long}"}}}}"#
    );
    let replayed = manifest::object_from_json(&stored).unwrap();
    assert_eq!(*replayed.manifest, *stored);
    let Body::Workload(pod) = replayed.body else {
        panic!("a pod");
    };
    assert_eq!(pod.uid, "");
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
    let pod = workload(include_str!("data/pod.yaml"));
    assert_eq!(pod.node.as_deref(), Some("worker-1"));
    assert_eq!(pod.uid, "7a0f7d4a-1b53-4ed5-93c4-0c9c5e7c4b9e");
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

    let worker = node(include_str!("data/node.yaml"));
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

    let policies = accepted(include_str!("data/netpol.json"));
    let keys: Vec<_> = policies
        .iter()
        .map(|object| object.key.to_string())
        .collect();
    assert_eq!(
        keys,
        ["NetworkPolicy shop/deny-all", "NetworkPolicy shop/web"]
    );

    let Body::NetworkPolicy(example) = one(include_str!("data/example.yaml")).body else {
        panic!()
    };
    assert_eq!(example.pod_selector.to_string(), "role=db");
    assert_eq!(example.ingress.unwrap()[0].peers.len(), 3);
    assert_eq!(example.egress.unwrap()[0].ports.len(), 2);
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
