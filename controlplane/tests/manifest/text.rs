//! What is told of a text as a whole: YAML, JSON, documents, places, hostile input. Lists are beside this.

use super::{REMEDY, SUPPORTED, accepted, keys, problems_in};

#[test]
fn documents_come_in_every_form() {
    let a = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let b = "apiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";
    let flow = |name: &str| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{{\"name\":\"{name}\"}}}}"
        )
    };
    for (text, expected) in [
        (String::new(), &[] as &[&str]),
        ("\n# nothing\n---\n---\n# nothing\n...\n".into(), &[]),
        ("---\nnull\n---\n~\n".into(), &[]),
        (a.into(), &["Namespace a"]),
        (format!("\u{feff}{a}"), &["Namespace a"]),
        (a.replace('\n', "\r\n"), &["Namespace a"]),
        (format!("%YAML 1.2\n---\n{a}"), &["Namespace a"]),
        (
            format!("# first\n---\n{a}---\n# empty\n--- # b\n{b}...\n---\n"),
            &["Namespace a", "Namespace b"],
        ),
        (
            format!("--- {}\n--- {}", flow("a"), flow("b")),
            &["Namespace a", "Namespace b"],
        ),
        (flow("a"), &["Namespace a"]),
        (
            format!("\n  {}\n{}", flow("a"), flow("b")),
            &["Namespace a", "Namespace b"],
        ),
        (
            "{apiVersion: v1, kind: Namespace, metadata: {name: a}}".into(),
            &["Namespace a"],
        ),
        (
            format!("{}\n---\n{b}", flow("a")),
            &["Namespace a", "Namespace b"],
        ),
        // A line of dashes inside a text is no separator when it is indented.
        (
            format!(
                "{a}---\n{}",
                b.replace("name: b}", "name: b, annotations: {x: \"a\n   --- b\"}}")
            ),
            &["Namespace a", "Namespace b"],
        ),
    ] {
        assert_eq!(keys(&accepted(&text)), expected, "{text:?}");
    }
}

#[test]
fn every_problem_of_a_text_is_told_at_once_with_its_place() {
    let text = "\
# a comment
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
spec:
  podSelecter: {}
  ingress:
  - from: [{}]
    ports:
    - port: 70000
    - port: true
      protocol: ICMP
  policyTypes: [Ingres]
---
apiVersion: v1
kind: Namespace
metadata: {name: ok}
---
apiVersion: apps/v1
kind: Deployment
---
key: [
---
apiVersion: v1
kind: Namespace
metadata:
  name: -a
  name: B
";
    assert_eq!(
        problems_in(text),
        [
            "m.yaml:9:3: document 1: NetworkPolicy shop/web: unknown field \"spec.podSelecter\"",
            "m.yaml:11:12: document 1: NetworkPolicy shop/web: spec.ingress[0].from[0]: Required value: must specify a \
             peer",
            "m.yaml:13:7: document 1: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: Invalid value: 70000: \
             must be between 1 and 65535, inclusive",
            "m.yaml:14:7: document 1: NetworkPolicy shop/web: spec.ingress[0].ports[1].port: Invalid value: true: must \
             be an integer or a string",
            "m.yaml:15:7: document 1: NetworkPolicy shop/web: spec.ingress[0].ports[1].protocol: Unsupported value: \
             \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
            "m.yaml:16:17: document 1: NetworkPolicy shop/web: spec.policyTypes[0]: Unsupported value: \"Ingres\": \
             supported values: \"Ingress\", \"Egress\"",
            &format!(
                "m.yaml:22:1: document 3: no matches for kind \"Deployment\" in version \"apps/v1\": {SUPPORTED}{REMEDY}"
            ),
            "m.yaml:25:6: document 4: malformed YAML: unclosed bracket '['",
            "m.yaml:31:3: document 5: Namespace B: duplicate field \"metadata.name\"",
            "m.yaml:31:3: document 5: Namespace B: metadata.name: Invalid value: \"B\": a lowercase RFC 1123 label must \
             consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric \
             character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
        ]
    );
}

#[test]
fn what_is_no_object_of_ours_is_refused() {
    for (text, expected) in [
        (
            "[]",
            "m.yaml:1:1: document 1: must be an object with apiVersion and kind".to_owned(),
        ),
        (
            "hello",
            "m.yaml:1:1: document 1: must be an object with apiVersion and kind".into(),
        ),
        (
            "kind: Pod",
            "m.yaml:1:1: document 1: apiVersion: Required value".into(),
        ),
        (
            "{apiVersion: '', kind: Pod}",
            "m.yaml:1:2: document 1: apiVersion: Required value".into(),
        ),
        (
            "apiVersion: v1",
            "m.yaml:1:1: document 1: kind: Required value".into(),
        ),
        (
            "{apiVersion: v1, kind: 5}",
            "m.yaml:1:18: document 1: kind: Invalid value: must be a string".into(),
        ),
        (
            "{apiVersion: v1, kind: pod}",
            format!(
                "m.yaml:1:1: document 1: no matches for kind \"pod\" in version \"v1\": {SUPPORTED}"
            ),
        ),
        (
            "{apiVersion: v1, kind: NetworkPolicy}",
            format!(
                "m.yaml:1:1: document 1: no matches for kind \"NetworkPolicy\" in version \"v1\": {SUPPORTED}"
            ),
        ),
        (
            "{apiVersion: sallyport.dev/v2, kind: Node}",
            format!(
                "m.yaml:1:1: document 1: no matches for kind \"Node\" in version \"sallyport.dev/v2\": {SUPPORTED}"
            ),
        ),
        (
            "{apiVersion: apps/v1, kind: DeploymentList}",
            format!(
                "m.yaml:1:1: document 1: no matches for kind \"DeploymentList\" in version \"apps/v1\": {SUPPORTED}{REMEDY}"
            ),
        ),
    ] {
        assert_eq!(problems_in(text), [expected]);
    }
}

#[test]
fn malformed_text_is_told_with_its_place() {
    for (text, expected) in [
        (
            "a: [",
            "m.yaml:1:4: document 1: malformed YAML: unclosed bracket '['",
        ),
        (
            "---\na: 1\n  b: 2\n",
            "m.yaml:3:4: document 1: malformed YAML: mapping values are not allowed in this context",
        ),
        (
            "a:\n\tb: 1",
            "m.yaml:2:2: document 1: malformed YAML: tabs disallowed within this context (block indentation)",
        ),
        (
            "a: *b",
            "m.yaml:1:4: document 1: malformed YAML: reference to unknown value",
        ),
        (
            "a: !secret b",
            "m.yaml:1:12: document 1: malformed YAML: unsupported tag `!secret`",
        ),
        (
            "{\"a\": 1 \"b\": 2}",
            "m.yaml:1:9: document 1: malformed JSON: expected `,` or `}`",
        ),
        (
            "{a: 1, b: [}",
            "m.yaml:1:11: document 1: malformed YAML: mismatched bracket '[' closed by '}'",
        ),
        (
            "{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": []}\n---\n{\"a\": ]}",
            "m.yaml:3:1: document 2: malformed YAML: mismatched bracket '{' closed by ']'",
        ),
        (
            "{\"a\": 1}\n{\"a\": ",
            "m.yaml:2:6: document 2: malformed JSON: EOF while parsing a value",
        ),
    ] {
        assert_eq!(problems_in(text), [expected], "{text:?}");
    }
}

#[test]
fn hostile_text_is_refused() {
    let laughs: String = ('b'..='j')
        .map(|name| {
            let before = char::from(name as u8 - 1);
            format!(
                "{name}: &{name} [{}]\n",
                vec![format!("*{before}"); 10].join(",")
            )
        })
        .collect();
    for (text, expected) in [
        (
            format!("a: &a [{}]\n{laughs}", ["x"; 10].join(",")),
            "m.yaml:5:29: document 1: malformed YAML: aliases repeat too much of the document",
        ),
        (
            "[".repeat(100_000),
            "m.yaml:1:65: document 1: malformed YAML: nested deeper than 64 levels",
        ),
        (
            (0..100)
                .map(|depth| format!("{}a:\n", " ".repeat(depth)))
                .collect(),
            "m.yaml:65:65: document 1: malformed YAML: nested deeper than 64 levels",
        ),
        (
            format!("{{\"a\":{}", "[".repeat(100_000)),
            "m.yaml:1:132: document 1: malformed JSON: recursion limit exceeded",
        ),
        (
            format!("\"{}", "a".repeat(1 << 20)),
            "m.yaml:1:1: document 1: malformed YAML: unclosed quote",
        ),
    ] {
        assert_eq!(problems_in(&text), [expected]);
    }
}

#[test]
fn aliases_and_merge_keys_are_read() {
    let objects = accepted(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels: &shared {team: x}\n  annotations:\n    \
         <<: *shared\n    note: 'y'\n",
    );
    assert_eq!(
        &*objects[0].manifest,
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"a\",\"labels\":{\"team\":\"x\"},\
         \"annotations\":{\"note\":\"y\",\"team\":\"x\"}}}"
    );
}

#[test]
fn scalars_are_what_kubernetes_takes_them_for() {
    let namespace = |value: &str| {
        format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a, labels: {{l: {value}}}}}}}"
        )
    };
    for text in [
        "nan", "inf", "Infinity", "1.2.3", "0x", "1h", "v1", "'1'", "\"yes\"", "!!str 5",
        "2025-11", "e5",
    ] {
        accepted(&namespace(text));
    }
    for (text, given) in [
        ("yes", "true"),
        ("off", "false"),
        ("1", "1"),
        ("1.5", "1.5"),
        ("0x10", "16"),
        ("010", "8"),
    ] {
        assert_eq!(
            problems_in(&namespace(text)),
            [format!(
                "m.yaml:1:64: document 1: Namespace a: metadata.labels[l]: Invalid value: {given}: must be a string (put it \
             in quotes)"
            )]
        );
    }
    assert_eq!(
        problems_in(&namespace(".nan")),
        ["m.yaml:1:67: document 1: malformed YAML: value `.nan` is not a finite number"]
    );
}
