//! Every rule for a NetworkPolicy with its whole message. What accepted policies mean is beside this.

use super::{accepted, field_problems, policy};

fn said(spec: &str) -> Vec<String> {
    field_problems(&policy(spec))
}

fn ingress(rule: &str) -> String {
    format!("ingress:\n- {rule}")
}

const KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                   alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                   '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                     must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', \
                     regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

#[test]
fn ports_are_refused_in_the_api_servers_words() {
    for (port, expected) in [
        (
            "{port: 0}",
            "port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            "{port: -1}",
            "port: Invalid value: -1: must be between 1 and 65535, inclusive",
        ),
        (
            "{port: 70000}",
            "port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "{port: 3000000000}",
            "port: Invalid value: 3000000000: must be a 32-bit integer",
        ),
        (
            "{port: 80.5}",
            "port: Invalid value: 80.5: must be an integer or a string",
        ),
        (
            "{port: [80]}",
            "port: Invalid value: a list: must be an integer or a string",
        ),
        (
            "{port: 80, endPort: 79}",
            "endPort: Invalid value: 79: must be greater than or equal to `port`",
        ),
        (
            "{port: 80, endPort: 65536}",
            "endPort: Invalid value: 65536: must be between 1 and 65535, inclusive",
        ),
        (
            "{port: 80, endPort: x}",
            "endPort: Invalid value: \"x\": must be a 32-bit integer",
        ),
        (
            "{endPort: 80}",
            "endPort: Invalid value: 80: may not be specified when `port` is not specified",
        ),
        (
            "{port: http, endPort: 80}",
            "endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
        ),
        (
            "{port: \"80\"}",
            "port: Invalid value: \"80\": must contain at least one letter (a-z)",
        ),
        (
            "{port: a--b}",
            "port: Invalid value: \"a--b\": must not contain consecutive hyphens",
        ),
        (
            "{port: -a}",
            "port: Invalid value: \"-a\": must not begin or end with a hyphen",
        ),
        (
            "{port: abcdefghijklmnop}",
            "port: Invalid value: \"abcdefghijklmnop\": must be no more than 15 bytes",
        ),
        (
            "{port: a_b}",
            "port: Invalid value: \"a_b\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            "{protocol: ICMP}",
            "protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
        ),
        (
            "{protocol: tcp}",
            "protocol: Unsupported value: \"tcp\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
        ),
        (
            "{protocol: \"\"}",
            "protocol: Unsupported value: \"\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
        ),
        (
            "{protocol: 6}",
            "protocol: Invalid value: 6: must be a string (put it in quotes)",
        ),
    ] {
        assert_eq!(
            said(&ingress(&format!("ports: [{port}]"))),
            [format!("spec.ingress[0].ports[0].{expected}")]
        );
        let egress = format!("egress:\n- {{}}\n- ports: [{{}}, {port}]");
        assert_eq!(
            said(&egress),
            [format!("spec.egress[1].ports[1].{expected}")]
        );
    }
    assert_eq!(
        said(&ingress("ports: [{port: 0, endPort: -1}, 80, {prot: TCP}]")),
        [
            "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ingress[0].ports[0].endPort: Invalid value: -1: must be greater than or equal to `port`",
            "spec.ingress[0].ports[0].endPort: Invalid value: -1: must be between 1 and 65535, inclusive",
            "spec.ingress[0].ports[1]: Invalid value: 80: must be an object",
            "unknown field \"spec.ingress[0].ports[2].prot\"",
        ]
    );
}

#[test]
fn peers_are_refused_in_the_api_servers_words() {
    const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    const SUBSET: &str = "must be a strict subset of `cidr`";
    for (peer, expected) in [
        ("{}", ": Required value: must specify a peer".to_owned()),
        (
            "{podSelector: null}",
            ": Required value: must specify a peer".into(),
        ),
        (
            "{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}",
            ": Forbidden: may not specify both ipBlock and another peer".into(),
        ),
        (
            "{namespaceSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}",
            ": Forbidden: may not specify both ipBlock and another peer".into(),
        ),
        ("{ipBlock: {}}", ".ipBlock.cidr: Required value".into()),
        (
            "{ipBlock: {except: [x]}}",
            ".ipBlock.cidr: Required value".into(),
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0}}",
            format!(".ipBlock.cidr: Invalid value: \"10.0.0.0\": {CIDR}"),
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/33}}",
            format!(".ipBlock.cidr: Invalid value: \"10.0.0.0/33\": {CIDR}"),
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [\"\"]}}",
            format!(".ipBlock.except[0]: Invalid value: \"\": {CIDR}"),
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/9, 10.0.0.0/8]}}",
            format!(".ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": {SUBSET}"),
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [192.168.0.0/16]}}",
            format!(".ipBlock.except[0]: Invalid value: \"192.168.0.0/16\": {SUBSET}"),
        ),
        (
            "{ipBlock: {cidr: \"::/0\", except: [10.0.0.0/8]}}",
            format!(".ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": {SUBSET}"),
        ),
        (
            "{ipBlock: {cidr: 5}}",
            ".ipBlock.cidr: Invalid value: 5: must be a string (put it in quotes)".into(),
        ),
        (
            "{ipBlock: 10.0.0.0/8}",
            ".ipBlock: Invalid value: \"10.0.0.0/8\": must be an object".into(),
        ),
        (
            "{podSelector: 5}",
            ".podSelector: Invalid value: 5: must be an object".into(),
        ),
        ("null", ": Required value: must specify a peer".into()),
    ] {
        assert_eq!(
            said(&ingress(&format!("from: [{peer}]"))),
            [format!("spec.ingress[0].from[0]{expected}")]
        );
        let egress = format!("egress:\n- to: [{{podSelector: {{}}}}, {peer}]");
        assert_eq!(said(&egress), [format!("spec.egress[0].to[1]{expected}")]);
    }
    assert_eq!(
        said(&ingress("to: [{podSelector: {}}]")),
        ["unknown field \"spec.ingress[0].to\""]
    );
    assert_eq!(
        said("egress: [{from: []}]"),
        ["unknown field \"spec.egress[0].from\""]
    );
    assert_eq!(
        said(&ingress("from: {podSelector: {}}")),
        ["spec.ingress[0].from: Invalid value: an object: must be a list"]
    );
}

#[test]
fn selectors_are_refused_in_the_api_servers_words() {
    let long = "a".repeat(64);
    for (selector, expected) in [
        ("{matchLabels: {-a: b}}", format!("matchLabels: Invalid value: \"-a\": {KEY}")),
        ("{matchLabels: {a: -b}}", format!("matchLabels: Invalid value: \"-b\": {VALUE}")),
        ("{matchLabels: {a: 1}}", "matchLabels[a]: Invalid value: 1: must be a string (put it in quotes)".into()),
        ("{matchLabels: {a: yes}}", "matchLabels[a]: Invalid value: true: must be a string (put it in quotes)".into()),
        ("{matchLabels: [a]}", "matchLabels: Invalid value: a list: must be an object".into()),
        (
            "{matchExpressions: [{key: a, operator: Foo}]}",
            "matchExpressions[0].operator: Invalid value: \"Foo\": not a valid selector operator".into(),
        ),
        (
            "{matchExpressions: [{key: a}]}",
            "matchExpressions[0].operator: Invalid value: \"\": not a valid selector operator".into(),
        ),
        (
            "{matchExpressions: [{key: a, operator: In}]}",
            "matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'".into(),
        ),
        (
            "{matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            "matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'".into(),
        ),
        (
            "{matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            "matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or \
             'DoesNotExist'"
                .into(),
        ),
        (
            "{matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            "matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or \
             'DoesNotExist'"
                .into(),
        ),
        (
            "{matchExpressions: [{key: -a, operator: Exists}]}",
            format!("matchExpressions[0].key: Invalid value: \"-a\": {KEY}"),
        ),
        (
            "{matchExpressions: [{key: A/b, operator: Exists}]}",
            "matchExpressions[0].key: Invalid value: \"A/b\": prefix part a lowercase RFC 1123 subdomain must consist \
             of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character \
             (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
                .into(),
        ),
        (
            "{matchExpressions: [{key: a, operator: In, values: [b, -c]}]}",
            format!("matchExpressions[0].values[1]: Invalid value: \"-c\": {VALUE}"),
        ),
        (
            &format!("{{matchExpressions: [{{key: a, operator: In, values: [{long}]}}]}}"),
            format!("matchExpressions[0].values[0]: Invalid value: \"{long}\": must be no more than 63 bytes"),
        ),
        (
            "{matchExpressions: [{key: a, operator: In, values: b}]}",
            "matchExpressions[0].values: Invalid value: \"b\": must be a list".into(),
        ),
    ] {
        assert_eq!(said(&format!("podSelector: {selector}")), [format!("spec.podSelector.{expected}")]);
        for peer in ["podSelector", "namespaceSelector"] {
            let rule = ingress(&format!("from: [{{{peer}: {selector}}}]"));
            assert_eq!(said(&rule), [format!("spec.ingress[0].from[0].{peer}.{expected}")]);
        }
    }
    assert_eq!(
        said("podSelector: {matchLabel: {}}"),
        ["unknown field \"spec.podSelector.matchLabel\""]
    );
}

#[test]
fn policy_types_are_refused_in_the_api_servers_words() {
    for (types, expected) in [
        (
            "[Ingress, egress]",
            "spec.policyTypes[1]: Unsupported value: \"egress\": supported values: \"Ingress\", \"Egress\"",
        ),
        (
            "[Ingress, Egress, Ingress]",
            "spec.policyTypes: Invalid value: [\"Ingress\",\"Egress\",\"Ingress\"]: may not specify more than two \
             policyTypes",
        ),
        (
            "Ingress",
            "spec.policyTypes: Invalid value: \"Ingress\": must be a list",
        ),
        (
            "[1]",
            "spec.policyTypes[0]: Invalid value: 1: must be a string (put it in quotes)",
        ),
    ] {
        assert_eq!(said(&format!("policyTypes: {types}")), [expected]);
    }
}

#[test]
fn a_section_that_has_no_effect_must_be_right_all_the_same() {
    assert_eq!(
        said("policyTypes: [Ingress]\negress: [{to: [{}]}]"),
        ["spec.egress[0].to[0]: Required value: must specify a peer"]
    );
}

#[test]
fn a_policy_may_be_as_large_as_the_limits_and_not_larger() {
    let many = |count: usize, item: &str| vec![item; count].join(",");
    for (spec, expected) in [
        (
            format!("ingress: [{}]", many(10_001, "{}")),
            "spec.ingress: Too many: 10001: must have at most 10000 items",
        ),
        (
            format!("egress: [{}]", many(10_001, "{}")),
            "spec.egress: Too many: 10001: must have at most 10000 items",
        ),
        (
            format!("ingress: [{{ports: [{}]}}]", many(10_001, "{port: 0}")),
            "spec.ingress[0].ports: Too many: 10001: must have at most 10000 items",
        ),
        (
            format!("ingress: [{{from: [{}]}}]", many(10_001, "{}")),
            "spec.ingress[0].from: Too many: 10001: must have at most 10000 items",
        ),
        (
            format!(
                "ingress: [{{from: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{}]}}}}]}}]",
                many(10_001, "x")
            ),
            "spec.ingress[0].from[0].ipBlock.except: Too many: 10001: must have at most 10000 items",
        ),
        (
            format!("podSelector: {{matchExpressions: [{}]}}", many(1_001, "{}")),
            "spec.podSelector.matchExpressions: Too many: 1001: must have at most 1000 items",
        ),
        (
            format!(
                "podSelector: {{matchExpressions: [{{key: a, operator: In, values: [{}]}}]}}",
                many(1_001, "x")
            ),
            "spec.podSelector.matchExpressions[0].values: Too many: 1001: must have at most 1000 items",
        ),
    ] {
        assert_eq!(said(&spec), [expected]);
    }
    accepted(&policy(&format!(
        "ingress: [{}]",
        many(10_000, "{ports: [{port: 80}]}")
    )));
}
