//! The conformance runner on cases of our own: what a file of the schema may hold that the shared ones do not, and that
//! a wrong cell is found.

use std::{io::Write, process::ExitCode};

use sallyport_integration::{
    binaries::binaries,
    conformance::{self, Event, Options, Summary},
};
use sallyport_testbed::{
    Mode,
    kernel_tests::{self, Failed, Outcome, Test},
};
use serde_json::{Value, json};

const TESTS: [Test; 6] = [
    ("odd_cases_on_one_node", || odd(1, Mode::Routed)),
    ("odd_cases_on_three_nodes", || odd(3, Mode::Routed)),
    ("odd_cases_with_bridges", || odd(2, Mode::Bridged)),
    ("many_pods", many_pods),
    ("a_wrong_cell_is_found", a_wrong_cell_is_found),
    ("a_case_that_makes_no_sense_fails", nonsense),
];

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&TESTS)
}

/// Runs cases, and returns what was said.
fn run(nodes: usize, mode: Mode, cases: &[Value]) -> Result<(Summary, String), Failed> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(Value::from(cases).to_string().as_bytes())?;
    let options = Options {
        nodes,
        mode,
        only: None,
        keep_going: true,
    };
    let mut told = String::new();
    let summary = conformance::run(&options, &[file.path().to_owned()], &mut |event| {
        if let Event::Wrong(text) | Event::Failed(text) = event {
            told += &text;
        }
    })?;
    Ok((summary, told))
}

/// A policy that lets in whom `from` says.
fn admits(name: &str, from: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "x", "name": name},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from}]},
    })
}

/// The expectation of a step on TCP 80.
fn tcp(combined: &[&str]) -> Value {
    json!([{"port": 80, "protocol": "TCP", "combined": combined}])
}

/// Cases that follow on each other in one deployment.
fn odd(nodes: usize, mode: Mode) -> Outcome {
    let cases = [v6(), swapped(), host_network(), dual_stack(), churn()];
    let (summary, told) = run(nodes, mode, &cases)?;
    if summary.is_good() && summary.cases == 5 {
        Ok(())
    } else {
        Err(format!("{told}{summary:?}").into())
    }
}

/// IPv6 pods and outsiders, fields that nobody knows, nulls for what is empty, no ports declared.
fn v6() -> Value {
    let web = json!({"app": "web"});
    json!({
        "id": "v6", "family": "v6", "seed": 7, "tags": null,
        "cluster": {
            "namespaces": {"x": null, "empty": {"team": "a"}},
            "pods": [
                {"namespace": "x", "name": "web", "labels": web, "ip": "fd00:10::1", "uid": "u"},
                {"namespace": "x", "name": "friend", "labels": {"app": "friend"}, "ip": "fd00:10::2", "ports": null},
                {"namespace": "x", "name": "other", "labels": null, "ip": "fd00:10::3", "node": ""},
            ],
            "externals": {"a": "2001:db8::a", "b": "2001:db8::b"},
            "services": [],
        },
        "steps": [
            {
                "actions": [{"op": "create-policy", "why": "?", "policy": admits("p", json!([
                    {"podSelector": {"matchLabels": {"app": "friend"}}},
                    {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8::b/128"]}},
                ]))}],
                "endpoints": ["x/web", "x/friend", "x/other", "a", "b"],
                "expect": tcp(&["-....", ".-...", "X.-..", "...-.", "X...-"]),
                "note": "as it begins",
            },
            {
                // The same again, and a namespace in which nobody is.
                "actions": [
                    {"op": "update-policy", "policy": admits("p", json!([
                        {"podSelector": {"matchLabels": {"app": "friend"}}},
                        {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8::b/128"]}},
                    ]))},
                    {"op": "set-namespace-labels", "namespace": "empty", "labels": {"team": "b"}},
                    {"op": "create-namespace", "namespace": "empty", "labels": {"team": "b"}},
                    {"op": "create-namespace", "namespace": "new"},
                ],
                "cluster": null,
                "policies": null,
                "endpoints": ["x/friend", "x/web", "b"],
                "expect": [
                    {"port": 80, "protocol": "TCP", "combined": ["-.?", ".-.", "?X-"],
                     "ingress": ["-..", ".-.", ".X-"], "egress": ["-..", ".-.", "..-"]},
                    {"port": 1234, "protocol": "UDP", "combined": ["-..", ".-.", ".X-"]},
                    {"port": 99, "protocol": "SCTP", "combined": ["-..", ".-.", ".X-"]},
                ],
            },
        ],
    })
}

/// The outsiders have each other's addresses now, and one has that of a pod of the case before.
fn swapped() -> Value {
    json!({
        "id": "swapped", "family": "v6",
        "cluster": {
            "namespaces": {"x": {}},
            "pods": [{"namespace": "x", "name": "web", "labels": {"app": "web"}, "ip": "fd00:10::1"}],
            "externals": {"a": "2001:db8::b", "b": "2001:db8::a", "c": "fd00:10::2"},
        },
        "steps": [{
            "actions": [{"op": "create-policy", "policy": admits("p", json!([
                {"ipBlock": {"cidr": "2001:db8::/32", "except": ["2001:db8::b/128"]}},
                {"podSelector": {}},
            ]))}],
            "endpoints": ["x/web", "a", "b", "c"],
            "expect": tcp(&["-...", "X-..", "..-.", "X..-"]),
        }],
    })
}

/// Pods on their node's network: two share an address, so they are on one node. To policies they are no pods.
fn host_network() -> Value {
    let block = |cidr: &str| {
        admits(
            "p",
            json!([{"ipBlock": {"cidr": cidr}}, {"podSelector": {}}]),
        )
    };
    let host = |name: &str| {
        json!({"namespace": "x", "name": name, "labels": {"app": "web"},
        "ip": "fd00:99::1", "hostNetwork": true})
    };
    let mut created = host("h3");
    created["op"] = "create-pod".into();
    json!({
        "id": "host-network", "family": "v6",
        "cluster": {
            "namespaces": {"x": {}},
            "pods": [
                host("h1"),
                {"namespace": "x", "name": "web", "labels": {"app": "web"}, "ip": "fd00:10::1"},
                host("h2"),
                {"namespace": "x", "name": "plain", "labels": {}, "ip": "fd00:10::2"},
            ],
        },
        "steps": [
            {
                "actions": [{"op": "create-policy", "policy": block("fd00:98::/32")}],
                "endpoints": ["x/web", "x/plain", "x/h1", "x/h2"],
                "expect": tcp(&["-...", ".-..", "X.-.", "X..-"]),
            },
            {
                "actions": [
                    {"op": "update-policy", "policy": block("fd00:99::1/128")},
                    {"op": "delete-pod", "namespace": "x", "name": "h1"},
                    created,
                ],
                "endpoints": ["x/web", "x/h2", "x/h3"],
                "expect": tcp(&["-..", ".-.", "..-"]),
            },
            {
                "actions": [
                    {"op": "delete-pod", "namespace": "x", "name": "h2"},
                    {"op": "delete-pod", "namespace": "x", "name": "h3"},
                    // The address is free for a pod, which policies see.
                    {"op": "create-pod", "namespace": "x", "name": "late", "labels": {"app": "web"}, "ip": "fd00:99::1"},
                    {"op": "update-policy", "policy": block("fd00:98::/32")},
                ],
                "endpoints": ["x/web", "x/late", "x/plain"],
                "expect": tcp(&["-..", ".-.", "..-"]),
            },
        ],
    })
}

/// A table of each family, and one of both.
fn dual_stack() -> Value {
    let pod = |name: &str, app: &str, ips: [&str; 2]| json!({"namespace": "x", "name": name, "labels": {"app": app}, "ip": ips[0], "ips": ips});
    json!({
        "id": "dual-stack",
        "cluster": {
            "namespaces": {"x": {}},
            "pods": [
                pod("web", "web", ["10.77.0.1", "fd00:77::1"]),
                pod("friend", "friend", ["fd00:77::2", "10.77.0.2"]),
                {"namespace": "x", "name": "old", "labels": {}, "ip": "10.77.0.3"},
            ],
            "externals": {"out": ["192.0.2.7", "2001:db8::7"]},
        },
        "steps": [{
            "actions": [{"op": "create-policy", "policy": admits("p", json!([
                {"ipBlock": {"cidr": "192.0.2.0/24"}},
                {"podSelector": {"matchLabels": {"app": "friend"}}},
            ]))}],
            "endpoints": ["x/web", "x/friend", "x/old", "out"],
            "expect": [
                {"port": 80, "family": "v4", "combined": ["-...", ".-..", "X.-.", "...-"],
                 "ingress": ["-...", ".-..", "X.-.", "...-"]},
                {"port": 80, "family": "v6", "combined": ["-.-.", ".--.", "----", "X.--"],
                 "ingress": ["-.-.", ".--.", "----", "X.--"]},
                {"port": 80, "combined": ["-...", ".-..", "X.-.", "?..-"]},
            ],
        }],
    })
}

/// Addresses and names are used again at once, by somebody else.
fn churn() -> Value {
    let only_friends = admits(
        "p",
        json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]),
    );
    json!({
        "id": "churn", "family": "v4",
        "cluster": {
            "namespaces": {"x": {}, "y": {}},
            "pods": [
                {"namespace": "x", "name": "web", "labels": {"app": "web"}, "ip": "10.77.0.1", "ports": [{"name": "http", "port": 80}]},
                {"namespace": "x", "name": "friend", "labels": {"app": "friend"}, "ip": "10.77.0.2"},
                {"namespace": "y", "name": "friend", "labels": {"app": "friend"}, "ip": "10.77.0.3"},
            ],
        },
        "steps": [
            {
                "actions": [{"op": "create-policy", "policy": only_friends}],
                "endpoints": ["x/web", "x/friend", "y/friend"],
                "expect": tcp(&["-..", ".-.", "X.-"]),
            },
            {
                // The friend's address is a stranger's, and the stranger's a friend's.
                "actions": [
                    {"op": "delete-pod", "namespace": "x", "name": "friend"},
                    {"op": "delete-pod", "namespace": "y", "name": "friend"},
                    {"op": "create-pod", "namespace": "y", "name": "friend", "labels": {"app": "friend"}, "ip": "10.77.0.2"},
                    {"op": "create-pod", "namespace": "x", "name": "new", "labels": {"app": "friend"}, "ip": "10.77.0.3"},
                ],
                "endpoints": ["x/web", "y/friend", "x/new"],
                "expect": tcp(&["-..", "X-.", "..-"]),
            },
            {
                // An object of this name exists: it goes, and another comes.
                "actions": [
                    {"op": "create-pod", "namespace": "x", "name": "new", "labels": {"app": "friend"}, "ip": "10.77.0.9"},
                    {"op": "delete-namespace", "namespace": "y"},
                ],
                "endpoints": ["x/web", "x/new"],
                "expect": tcp(&["-.", ".-"]),
            },
            {
                // With the namespace went the policy.
                "actions": [
                    {"op": "delete-namespace", "namespace": "x"},
                    {"op": "create-namespace", "namespace": "x", "labels": {}},
                    {"op": "create-namespace", "namespace": "y", "labels": {}},
                    {"op": "create-pod", "namespace": "x", "name": "web", "labels": {"app": "web"}, "ip": "10.77.0.3"},
                    {"op": "create-pod", "namespace": "y", "name": "web", "labels": {"app": "web"}, "ip": "10.77.0.1"},
                ],
                "endpoints": ["x/web", "y/web"],
                "expect": tcp(&["-.", ".-"]),
            },
            {
                "actions": [
                    {"op": "create-policy", "policy": only_friends},
                    {"op": "set-pod-labels", "namespace": "y", "name": "web", "labels": {"app": "friend"}},
                ],
                "endpoints": ["x/web", "y/web"],
                "expect": [{"port": 80, "protocol": "TCP", "name": "http", "combined": ["-.", "X-"],
                    "ingress": ["-.", "X-"], "egress": ["-.", ".-"]}],
            },
        ],
    })
}

/// More pods on one bridge than ARP would find, of two namespaces.
fn many_pods() -> Outcome {
    const PODS: usize = 70;
    let namespace = |n: usize| ["x", "y"][n % 2];
    let pods = (0..PODS).map(|n| {
        let app = if n < 5 { "web" } else { "client" };
        json!({"namespace": namespace(n), "name": format!("p{n}"), "labels": {"app": app},
            "ip": format!("fd00:10::{:x}", n + 1)})
    });
    let pods: Vec<Value> = pods.collect();
    let endpoints = (0..PODS).map(|n| format!("{}/p{n}", namespace(n)));
    let endpoints: Vec<String> = endpoints.collect();
    // The policy is of x, so its pods 0, 2 and 4 let in x and nobody else.
    let mark = |from: usize, to: usize| match () {
        () if from == to => '-',
        () if [0, 2, 4].contains(&to) && namespace(from) == "y" => 'X',
        () => '.',
    };
    let rows = (0..PODS).map(|from| (0..PODS).map(|to| mark(from, to)).collect());
    let rows: Vec<String> = rows.collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let case = json!({
        "id": "many", "family": "v6",
        "cluster": {"namespaces": {"x": {}, "y": {}}, "pods": pods},
        "steps": [{
            "actions": [{"op": "create-policy", "policy": admits("p", json!([{"podSelector": {}}]))}],
            "endpoints": endpoints,
            "expect": tcp(&rows),
        }],
    });
    let (summary, told) = run(1, Mode::Bridged, &[case])?;
    let cells = (PODS * (PODS - 1)) as u64;
    if summary.is_good() && summary.cells == cells {
        Ok(())
    } else {
        Err(format!("{told}{summary:?}").into())
    }
}

/// A file that expects what is not so is told of each cell, whoever disagrees: packets or the compiler.
fn a_wrong_cell_is_found() -> Outcome {
    let mut case = dual_stack();
    let expect = &mut case["steps"][0]["expect"];
    expect[0]["combined"] = json!(["-...", "X-..", "..-.", "...-"]);
    expect[1]["ingress"] = json!(["-.-.", ".--.", "----", "..--"]);
    expect[2]["combined"] = json!(["-...", ".-..", "X.-.", "X..-"]);
    let (summary, told) = run(2, Mode::Routed, &[case])?;
    let says = [
        "x/friend -> x/web TCP 80: expected denied, packets: open",
        "x/old -> x/web TCP 80: expected allowed, packets: blocked",
        "out -> x/web TCP 80: expected allowed, compiled ingress alone denies",
        // One of the two families is not so.
        "out -> x/web TCP 80: expected denied, packets: open",
        "    from out 192.0.2.7, outside the cluster",
    ];
    if let Some(missing) = says.iter().find(|text| !told.contains(**text)) {
        return Err(format!("{missing:?} is not in\n{told}").into());
    }
    if (summary.wrong, summary.failed) != (4, 0) {
        return Err(format!("{told}{summary:?}").into());
    }
    Ok(())
}

/// A cell that cannot be probed is a failure, never left out in silence; the next case is run all the same.
fn nonsense() -> Outcome {
    let mut mixed = dual_stack();
    mixed["steps"][0]["expect"][1]["combined"] = json!(["-...", ".--.", "----", "X.--"]);
    let mut unknown = v6();
    unknown["steps"][0]["endpoints"][1] = json!("x/nobody");
    let (summary, told) = run(1, Mode::Routed, &[mixed, unknown, churn()])?;
    for text in [
        "x/web and x/old have no addresses of one family",
        "there is no endpoint x/nobody",
    ] {
        if !told.contains(text) {
            return Err(format!("{text:?} is not in\n{told}").into());
        }
    }
    if (summary.wrong, summary.failed, summary.cases) != (0, 2, 3) {
        return Err(format!("{told}{summary:?}").into());
    }
    Ok(())
}
