//! What accepted NetworkPolicies mean: defaults, canonical selectors, peers and ports. What is refused is beside this.

use std::collections::BTreeSet;

use sallyport_controlplane::model::{
    Body, Established, LabelSelector, NetworkPolicy, Operator, Peer, Port, PortMatch, Requirement,
    Rule,
};
use sallyport_policy::Protocol;

use super::{field_problems, one, policy};

fn meaning(spec: &str) -> NetworkPolicy {
    match one(&policy(spec)).body {
        Body::NetworkPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

/// A rule in the section that ingress rules are in.
fn ingress(rule: &str) -> String {
    format!("ingress:\n- {rule}")
}

#[test]
fn policy_types_default_as_in_kubernetes() {
    for (spec, isolates) in [
        ("{}", (true, false)),
        ("podSelector: {}", (true, false)),
        ("policyTypes: []", (true, false)),
        ("policyTypes: null", (true, false)),
        ("egress: []", (true, false)),
        ("egress: null", (true, false)),
        ("egress: [{}]", (true, true)),
        ("policyTypes: [Egress]", (false, true)),
        ("policyTypes: [Ingress, Ingress]", (true, false)),
        ("policyTypes: [Egress, Ingress]", (true, true)),
        // The section of a direction that is not in policyTypes has no effect.
        ("{policyTypes: [Ingress], egress: [{}]}", (true, false)),
        ("{policyTypes: [Egress], ingress: [{}]}", (false, true)),
    ] {
        let policy = meaning(spec);
        assert_eq!(
            (policy.ingress.is_some(), policy.egress.is_some()),
            isolates,
            "{spec}"
        );
    }
}

fn requirement(key: &str, operator: Operator) -> Requirement {
    Requirement {
        key: key.into(),
        operator,
    }
}

fn values(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn selector(requirements: impl IntoIterator<Item = Requirement>) -> LabelSelector {
    LabelSelector(requirements.into_iter().collect())
}

#[test]
fn selectors_that_mean_the_same_are_the_same() {
    let expected = selector([
        requirement("app", Operator::In(values(&["web"]))),
        requirement("tier", Operator::NotIn(values(&["a", "b"]))),
        requirement("x", Operator::Exists),
        requirement("z", Operator::DoesNotExist),
    ]);
    for spec in [
        "podSelector:\n  matchLabels: {app: web}\n  matchExpressions:\n  - {key: tier, operator: NotIn, values: [a, b]}\
         \n  - {key: x, operator: Exists}\n  - {key: z, operator: DoesNotExist}",
        "podSelector:\n  matchExpressions:\n  - {key: z, operator: DoesNotExist, values: []}\
         \n  - {key: x, operator: Exists}\n  - {key: tier, operator: NotIn, values: [b, a, b]}\
         \n  - {key: app, operator: In, values: [web]}\n  - {key: app, operator: In, values: [web]}",
    ] {
        assert_eq!(meaning(spec).pod_selector, expected, "{spec}");
    }
    for spec in [
        "{}",
        "podSelector: {}",
        "podSelector: null",
        "podSelector: {matchLabels: {}}",
    ] {
        assert_eq!(
            meaning(spec).pod_selector,
            LabelSelector::default(),
            "{spec}"
        );
    }
}

fn tcp(low: u16, high: u16) -> Port {
    Port {
        protocol: Protocol::Tcp,
        ports: PortMatch::Range(low, high),
    }
}

#[test]
fn rules_mean_what_kubernetes_means_by_them() {
    let everyone = || Rule {
        peers: vec![],
        ports: vec![],
    };
    let peers = |peers: Vec<Peer>| Rule {
        peers,
        ports: vec![],
    };
    let ports = |ports: Vec<Port>| Rule {
        peers: vec![],
        ports,
    };
    let block = |cidr: &str, except: &[&str]| Peer::Block {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    let web = || selector([requirement("app", Operator::In(values(&["web"])))]);
    let all = LabelSelector::default;
    for (rule, expected) in [
        ("{}", everyone()),
        ("{from: [], ports: []}", everyone()),
        ("{from: null, ports: null}", everyone()),
        (
            "from: [{podSelector: {}}]",
            peers(vec![Peer::Pods {
                namespaces: None,
                pods: all(),
            }]),
        ),
        (
            "from: [{podSelector: {matchLabels: {app: web}}}]",
            peers(vec![Peer::Pods {
                namespaces: None,
                pods: web(),
            }]),
        ),
        (
            "from: [{namespaceSelector: {matchLabels: {app: web}}}]",
            peers(vec![Peer::Pods {
                namespaces: Some(web()),
                pods: all(),
            }]),
        ),
        (
            "from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]",
            peers(vec![Peer::Pods {
                namespaces: Some(all()),
                pods: web(),
            }]),
        ),
        (
            "from: [{namespaceSelector: {}}, {podSelector: {matchLabels: {app: web}}}]",
            peers(vec![
                Peer::Pods {
                    namespaces: Some(all()),
                    pods: all(),
                },
                Peer::Pods {
                    namespaces: None,
                    pods: web(),
                },
            ]),
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.1/24}}]",
            peers(vec![block("10.0.0.0/24", &[])]),
        ),
        (
            "from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.2.3/16, 10.9.0.0/32]}}]",
            peers(vec![block("10.0.0.0/8", &["10.1.0.0/16", "10.9.0.0/32"])]),
        ),
        (
            "from: [{ipBlock: {cidr: \"2001:db8::1/32\", except: [\"2001:db8:1::/48\"]}}]",
            peers(vec![block("2001:db8::/32", &["2001:db8:1::/48"])]),
        ),
        (
            "from: [{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}]",
            peers(vec![block("10.0.0.0/8", &[])]),
        ),
        (
            "ports: [{}]",
            ports(vec![Port {
                protocol: Protocol::Tcp,
                ports: PortMatch::All,
            }]),
        ),
        (
            "ports: [{protocol: UDP}]",
            ports(vec![Port {
                protocol: Protocol::Udp,
                ports: PortMatch::All,
            }]),
        ),
        ("ports: [{port: 80}]", ports(vec![tcp(80, 80)])),
        (
            "ports: [{port: 1, endPort: 65535}]",
            ports(vec![tcp(1, 65_535)]),
        ),
        ("ports: [{port: 80, endPort: 80}]", ports(vec![tcp(80, 80)])),
        // YAML as Kubernetes reads it: octal.
        ("ports: [{port: 0120}]", ports(vec![tcp(80, 80)])),
        (
            "ports: [{port: dns, protocol: UDP}, {protocol: SCTP, port: 132}]",
            ports(vec![
                Port {
                    protocol: Protocol::Udp,
                    ports: PortMatch::Named("dns".into()),
                },
                Port {
                    protocol: Protocol::Sctp,
                    ports: PortMatch::Range(132, 132),
                },
            ]),
        ),
    ] {
        assert_eq!(
            meaning(&ingress(rule)).ingress,
            Some(vec![expected.clone()]),
            "{rule}"
        );
        let egress = format!(
            "policyTypes: [Egress]\negress:\n- {}",
            rule.replace("from:", "to:")
        );
        assert_eq!(meaning(&egress).egress, Some(vec![expected]), "{egress}");
    }
}

#[test]
fn an_annotation_says_what_becomes_of_established_connections() {
    for (annotations, expected) in [
        ("{}", None),
        ("null", None),
        ("{other: keep}", None),
        ("{sallyport.dev/established: keep}", Some(Established::Keep)),
        (
            "{sallyport.dev/established: recheck}",
            Some(Established::Recheck),
        ),
    ] {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: a, annotations: {annotations}}}}}"
        );
        let Body::NetworkPolicy(policy) = one(&text).body else {
            panic!("{text}");
        };
        assert_eq!(policy.established, expected, "{annotations}");
    }
}

/// kubectl makes JSON of YAML 1.1: a number that has no fraction is an integer, however it is written.
#[test]
fn ports_are_the_numbers_that_kubectl_reads() {
    let eighty = meaning("ingress: [{ports: [{port: 80}]}]");
    for port in [
        "80.0",
        "8e1",
        "8.0e1",
        "8.0e+1",
        "800e-1",
        "80.",
        "+80",
        "0x50",
        "0120",
        "0b1010000",
        "8_0",
    ] {
        let object = one(&policy(&format!(
            "ingress: [{{ports: [{{port: {port}}}]}}]"
        )));
        assert_eq!(object.body, Body::NetworkPolicy(eighty.clone()), "{port}");
        assert!(object.manifest.contains("\"port\":80}"), "{port}");
        let range = meaning(&format!(
            "ingress: [{{ports: [{{port: 80, endPort: {port}}}]}}]"
        ));
        assert_eq!(range, eighty, "{port}");
    }
    for json in ["80.0", "8e1", "8.0E+1"] {
        let object = one(&format!(
            "{{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{{\"name\":\"web\"}},\
             \"spec\":{{\"ingress\":[{{\"ports\":[{{\"port\":{json}}}]}}]}}}}"
        ));
        assert_eq!(object.body, Body::NetworkPolicy(eighty.clone()), "{json}");
    }
    for (port, given) in [("80.5", "80.5"), ("8e9", "8000000000"), ("-8e1", "-80")] {
        let problems = field_problems(&policy(&format!(
            "ingress: [{{ports: [{{port: {port}}}]}}]"
        )));
        assert!(
            problems[0].starts_with(&format!(
                "spec.ingress[0].ports[0].port: Invalid value: {given}: must be"
            )),
            "{problems:?}"
        );
    }
}

/// The API server decodes a null as the zero value of the type: an empty rule, an empty string, false, 0.
#[test]
fn nulls_are_zero_values_as_for_the_api_server() {
    for (with_null, without) in [
        ("ingress: [null]", "ingress: [{}]"),
        ("ingress:\n-", "ingress: [{}]"),
        (
            "ingress: [{from: null, ports: [null]}]",
            "ingress: [{ports: [{}]}]",
        ),
        (
            "podSelector: {matchLabels: {app: null}}",
            "podSelector: {matchLabels: {app: ''}}",
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: In, values: [null]}]}",
            "podSelector: {matchExpressions: [{key: a, operator: In, values: ['']}]}",
        ),
        (
            "podSelector: null\npolicyTypes: null\negress: null",
            "podSelector: {}",
        ),
    ] {
        let [given, plain] = [with_null, without].map(|spec| one(&policy(spec)));
        assert_eq!(given.body, plain.body, "{with_null}");
    }
    for (spec, expected) in [
        (
            "policyTypes: [null]",
            "spec.policyTypes[0]: Unsupported value: \"\": supported values: \"Ingress\", \"Egress\"",
        ),
        (
            "ingress: [{from: [null]}]",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
        ),
        (
            "podSelector: {matchExpressions: [null]}",
            "spec.podSelector.matchExpressions[0].operator: Invalid value: \"\": not a valid selector operator",
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [null]}}]}]",
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"\": must be a valid CIDR value, (e.g. \
             10.9.8.0/24 or 2001:db8::/64)",
        ),
    ] {
        assert_eq!(field_problems(&policy(spec))[0], expected, "{spec}");
    }
}
