//! Lists, unknown fields, floods of problems, and keys alone. The text around them is tested beside this.

use sallyport_controlplane::manifest::{self, MAX_PROBLEMS, UnknownKinds};

use super::{REMEDY, SUPPORTED, accepted, problems_in};

#[test]
fn lists_are_taken_apart() {
    let pod = "\"metadata\":{\"name\":\"p\"},\"spec\":{}";
    for (text, expected) in [
        ("{apiVersion: v1, kind: List, items: []}".to_owned(), &[] as &[&str]),
        ("{apiVersion: v1, kind: List, items: null}".into(), &[]),
        (
            format!(
                "{{\"apiVersion\":\"v1\",\"kind\":\"PodList\",\"metadata\":{{\"resourceVersion\":\"7\",\"continue\":\"\"}},\
                 \"items\":[{{{pod}}}]}}"
            ),
            &["{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"p\",\"namespace\":\"default\"},\"spec\":{}}"],
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: NamespaceList\n  items:\n  - metadata: {name: \
             a}\n- apiVersion: sallyport.dev/v1\n  kind: NodeList\n  items: [{metadata: {name: n1}}]\n"
                .into(),
            &[
                "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"a\"}}",
                "{\"apiVersion\":\"sallyport.dev/v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n1\"}}",
            ],
        ),
    ] {
        let manifests: Vec<_> = accepted(&text).iter().map(|object| object.manifest.to_string()).collect();
        assert_eq!(manifests, expected, "{text}");
    }
}

#[test]
fn what_is_wrong_in_a_list_is_told_with_the_items_place() {
    let text = r#"{"apiVersion":"v1","kind":"PodList","foo":1,"metadata":{"x":1},"items":[
        {"metadata":{"names":"a"},"spec":[]},
        {"kind":"Node"},
        5,
        {"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"},"spec":{"hostNetwork":"yes","nodeNam":"n"}}]}"#;
    assert_eq!(
        problems_in(text),
        [
            "m.yaml: document 1: unknown field \"foo\"",
            "m.yaml: document 1: unknown field \"metadata.x\"",
            "m.yaml: document 1: Pod items[0]: unknown field \"metadata.names\"",
            "m.yaml: document 1: Pod items[0]: metadata.name: Required value: name or generateName is required",
            "m.yaml: document 1: Pod items[0]: spec: Invalid value: a list: must be an object",
            "m.yaml: document 1: items[1]: kind: Invalid value: \"Node\": must be \"Pod\" in a PodList",
            "m.yaml: document 1: items[2]: must be an object with apiVersion and kind",
            "m.yaml: document 1: Pod default/p: unknown field \"spec.nodeNam\"",
            "m.yaml: document 1: Pod default/p: spec.hostNetwork: Invalid value: \"yes\": must be a boolean",
        ]
    );
    for (text, expected) in [
        (
            "{apiVersion: v1, kind: List}",
            "m.yaml:1:1: document 1: items: Required value",
        ),
        (
            "{apiVersion: v1, kind: List, items: {}}",
            "m.yaml:1:1: document 1: items: Invalid value: must be a list",
        ),
        (
            "{apiVersion: v1, kind: List, items: [], items: []}",
            "m.yaml:1:1: document 1: duplicate field \"items\"",
        ),
        (
            "{apiVersion: v1, kind: List, items: [], kind: List}",
            "m.yaml:1:41: document 1: duplicate field \"kind\"",
        ),
    ] {
        assert_eq!(problems_in(text), [expected]);
    }
}

#[test]
fn unknown_fields_are_refused_wherever_a_person_may_have_written_them() {
    for (text, expected) in [
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a}, foo: 1}",
            "foo",
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a, label: {}}}",
            "metadata.label",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIps: []}}",
            "status.podIps",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{port: []}]}}",
            "spec.containers[0].port",
        ),
        (
            "{apiVersion: v1, kind: Node, metadata: {name: a}, spec: {podCIDRS: []}}",
            "spec.podCIDRS",
        ),
        (
            "{apiVersion: sallyport.dev/v1, kind: Node, metadata: {name: a}, spec: {podCIDRs: []}}",
            "spec.podCIDRs",
        ),
        (
            "{apiVersion: sallyport.dev/v1, kind: Node, metadata: {name: a}, status: {}}",
            "status",
        ),
        (
            "{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {name: a}, spec: {nodeName: n}}",
            "spec.nodeName",
        ),
        (
            "{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {name: a}, spec: {ports: [{name: a, port: 1, x: \
             1}]}}",
            "spec.ports[0].x",
        ),
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, Status: {}}",
            "Status",
        ),
    ] {
        let problems = manifest::parse(text, "m.yaml").expect_err(text);
        let [problem] = &problems[..] else {
            panic!("{problems:?}")
        };
        assert_eq!(
            problem.message,
            format!("unknown field \"{expected}\""),
            "{text}"
        );
        assert_eq!(problem.field.as_deref(), Some(expected));
        assert!(problem.line.is_some() && problem.column.is_some());
    }
    // A newer cluster's kubectl prints what we cannot know; see dumps.rs.
    accepted("{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {conditions: [{new: 1}]}}");
}

#[test]
fn a_flood_of_problems_is_cut() {
    let text = "---\n{apiVersion: v1, kind: Foo}\n".repeat(MAX_PROBLEMS + 5);
    let problems = problems_in(&text);
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert_eq!(
        problems.last().map(String::as_str),
        Some("m.yaml: 5 more problems are not shown")
    );

    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: a}}, spec: {{ingress: [{{from: \
         [{}]}}]}}}}",
        vec!["{}"; 1_500].join(",")
    );
    let problems = problems_in(&policy);
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert_eq!(
        problems.last().map(String::as_str),
        Some("m.yaml: 500 more problems are not shown")
    );
}

#[test]
fn keys_are_read_whatever_else_is_wrong() {
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {ingres: 5}\n---\n\
                apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: shop, \
                namespace: x}}\n- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}}\n";
    let keys = manifest::parse_keys(text, "m.yaml").unwrap();
    let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
    assert_eq!(
        keys,
        ["NetworkPolicy default/web", "Namespace shop", "Pod shop/p"]
    );

    let problems_in = |text| -> Vec<String> {
        manifest::parse_keys(text, "m.yaml")
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(
        problems_in("{apiVersion: v1, kind: Pod, metadata: {}}"),
        ["m.yaml:1:29: document 1: Pod: metadata.name: Required value"]
    );
    assert_eq!(
        problems_in("{apiVersion: v1, kind: Pod, metadata: {name: 5}}"),
        ["m.yaml:1:40: document 1: Pod: metadata.name: Required value"]
    );
    assert_eq!(
        problems_in("{apiVersion: v1, kind: Foo}"),
        [format!(
            "m.yaml:1:1: document 1: no matches for kind \"Foo\" in version \"v1\": {SUPPORTED}{REMEDY}"
        )]
    );
}

/// A chart: Services and Deployments beside a policy.
const CHART: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}}
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}
- {apiVersion: v1, kind: ServiceAccount}
- {apiVersion: networking.k8s.io/v1, kind: IngressList, items: []}
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: calico}}
";

#[test]
fn other_kinds_are_refused_by_name() {
    let problem = |place: &str, object: &str, kind: &str, version: &str| {
        format!(
            "m.yaml:{place}: {object}: no matches for kind \"{kind}\" in version \"{version}\": {SUPPORTED}{REMEDY}"
        )
    };
    let expected = [
        problem("1:1: document 1", "Service shop/web", "Service", "v1"),
        problem(
            "13:3: document 3",
            "Deployment web",
            "Deployment",
            "apps/v1",
        ),
        problem("14:3: document 3", "items[1]", "ServiceAccount", "v1"),
        problem(
            "15:3: document 3",
            "items[2]",
            "IngressList",
            "networking.k8s.io/v1",
        ),
        problem(
            "17:3: document 3",
            "NetworkPolicy calico",
            "NetworkPolicy",
            "projectcalico.org/v3",
        ),
    ];
    assert_eq!(problems_in(CHART), expected);
}

#[test]
fn other_kinds_are_left_out_and_named_when_asked() {
    let parsed = manifest::parse_with(CHART, "m.yaml", UnknownKinds::Ignore).expect("ours alone");
    assert_eq!(
        super::keys(&parsed.found),
        ["NetworkPolicy shop/web", "Namespace shop"]
    );
    let ignored = [
        "m.yaml:1:1: document 1: Service shop/web (v1)",
        "m.yaml:13:3: document 3: Deployment web (apps/v1)",
        "m.yaml:14:3: document 3: ServiceAccount items[1] (v1)",
        "m.yaml:15:3: document 3: IngressList items[2] (networking.k8s.io/v1)",
        "m.yaml:17:3: document 3: NetworkPolicy calico (projectcalico.org/v3)",
    ];
    assert_eq!(parsed.ignored, ignored);
    let keys = manifest::parse_keys_with(CHART, "m.yaml", UnknownKinds::Ignore).expect("keys");
    assert_eq!((keys.found.len(), keys.ignored.len()), (2, 5));
    // A policy in another version or spelling would be missing: it is refused all the same, as is what is no object.
    for text in [
        "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}",
        "{apiVersion: networking.k8s.io/v1beta1, kind: NetworkPolicy, metadata: {name: a}}",
        "{apiVersion: networking.k8s.io/v1, kind: networkpolicies, metadata: {name: a}}",
        "{apiVersion: v1, kind: NetworkPolicy, metadata: {name: a}}",
        "{apiVersion: v1, kind: pod, metadata: {name: a}}",
        "{apiVersion: sallyport.dev/v2, kind: Workload, metadata: {name: a}}",
        "{apiVersion: v1, kind: Servicez}\n---\n{kind: Service}",
        "[]",
    ] {
        let problems = manifest::parse_with(text, "m.yaml", UnknownKinds::Ignore).expect_err(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            !problems[0].message.contains("--ignore-unknown-kinds"),
            "{problems:?}"
        );
    }
}
