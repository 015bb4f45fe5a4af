//! The rules of transactions as a table: what is stored, what is asked for, what it comes to, in full. No journal.

mod contests;

use super::*;
use crate::manifest;

/// Edits from lines: `+ ` and a manifest, or `- ` and kind, namespace, name.
fn edits(script: &str) -> Vec<Edit> {
    let line = |line: &str| match line.split_at(2) {
        ("+ ", text) => {
            let objects = manifest::parse(&object(text), "f.yaml")
                .unwrap_or_else(|e| panic!("{text}: {e:?}"));
            objects
                .into_iter()
                .map(|object| Edit {
                    source: "f.yaml".into(),
                    op: Op::Put(object),
                })
                .collect()
        }
        ("- ", text) => vec![Edit {
            source: "".into(),
            op: Op::Delete(key(text)),
        }],
        ("~ ", text) => vec![Edit {
            source: "f.yaml".into(),
            op: Op::Delete(key(text)),
        }],
        _ => panic!("{line}"),
    };
    script
        .lines()
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .flat_map(line)
        .collect::<Vec<_>>()
}

fn key(text: &str) -> ObjectKey {
    let words: Vec<_> = text.split(' ').collect();
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == words[0])
        .expect(text);
    let (namespace, name) = match words[1].split_once('/') {
        Some((namespace, name)) => (namespace, name),
        None => ("", words[1]),
    };
    ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// `Pod ns/name key=value...` as JSON.
fn object(text: &str) -> String {
    let words: Vec<_> = text.split(' ').collect();
    let ObjectKey {
        kind,
        namespace,
        name,
    } = key(text);
    let option = |wanted: &str| {
        words
            .iter()
            .find_map(|word| word.strip_prefix(wanted)?.strip_prefix('='))
    };
    let label = option("label").unwrap_or("x");
    let meta = match kind.is_namespaced() {
        true => {
            format!(r#"{{"name":"{name}","namespace":"{namespace}","labels":{{"l":"{label}"}}}}"#)
        }
        false => format!(r#"{{"name":"{name}","labels":{{"l":"{label}"}}}}"#),
    };
    let node = option("node").map_or(String::new(), |node| format!(r#""nodeName":"{node}","#));
    let host = option("host").map_or(String::new(), |_| r#""hostNetwork":true,"#.to_owned());
    let status = option("ip").map_or(String::new(), |ip| {
        format!(r#","status":{{"podIP":"{ip}","podIPs":[{{"ip":"{ip}"}}]}}"#)
    });
    match kind {
        Kind::Namespace => format!(r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{meta}}}"#),
        Kind::Node => format!(r#"{{"apiVersion":"v1","kind":"Node","metadata":{meta}}}"#),
        Kind::NetworkPolicy => format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{meta},"spec":{{"podSelector":{{}}}}}}"#
        ),
        Kind::Pod => format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{meta},"spec":{{{node}{host}"containers":[{{"name":"c"}}]}}{status}}}"#
        ),
        Kind::Workload => {
            let node = option("node").expect("a Workload has a node");
            let ip = option("ip").map_or(String::new(), |ip| {
                format!(r#","addresses":["{}"]"#, ip.replace(',', r#"",""#))
            });
            let sources = option("sources").map_or(String::new(), |sources| {
                format!(
                    r#","allowedSources":["{}"]"#,
                    sources.replace(',', r#"",""#)
                )
            });
            format!(
                r#"{{"apiVersion":"sallyport.dev/v1","kind":"Workload","metadata":{meta},"spec":{{"node":"{node}"{ip}{sources}}}}}"#
            )
        }
    }
}

/// The result of a transaction, one line a change or a problem.
fn outcome(base: &Cluster, script: &str, revision: Revision) -> (Vec<String>, Option<Outcome>) {
    match apply(base, edits(script), revision) {
        Ok(outcome) => {
            let line = |change: &Change| format!("{} {:?}", change.key, change.action);
            (outcome.changes.iter().map(line).collect(), Some(outcome))
        }
        Err(problems) => {
            let line = |problem: &Problem| format!("{:?}: {}", problem.reason, problem.message);
            (problems.iter().map(line).collect(), None)
        }
    }
}

const STORED: &str = "
    + Namespace a
    + Namespace b
    + Node n
    + Node m
    + Node idle
    + NetworkPolicy a/p
    + Pod a/web node=n ip=10.0.0.1
    + Pod a/pending
    + Pod b/host node=n ip=10.0.0.9 host=true
    + Workload b/vm node=n ip=10.0.0.2
";

fn stored() -> Cluster {
    let (lines, outcome) = outcome(&Cluster::default(), STORED, Revision(1));
    assert!(
        lines.iter().all(|line| line.ends_with(" Created")),
        "{lines:#?}"
    );
    outcome.unwrap().cluster
}

#[track_caller]
fn check(script: &str, expected: &[&str]) {
    assert_eq!(
        outcome(&stored(), script, Revision(2)).0,
        expected,
        "{script}"
    );
}

#[test]
fn what_changes_is_told_in_the_order_of_the_edits() {
    check("+ Pod a/new node=n ip=10.0.0.3", &["Pod a/new Created"]);
    check(
        "+ Namespace a\n+ NetworkPolicy a/p label=y",
        &["Namespace a Unchanged", "NetworkPolicy a/p Configured"],
    );
    check(
        "- NetworkPolicy a/p\n+ Node n label=y",
        &["NetworkPolicy a/p Deleted", "Node n Configured"],
    );
    check(
        "+ NetworkPolicy a/p label=y\n+ NetworkPolicy a/p",
        &["NetworkPolicy a/p Unchanged"],
    );
    check(
        "- NetworkPolicy a/p\n+ NetworkPolicy a/p",
        &["NetworkPolicy a/p Unchanged"],
    );
    check(
        "+ NetworkPolicy a/q\n- NetworkPolicy a/q",
        &["NetworkPolicy a/q Unchanged"],
    );
    check(
        "+ Pod c/x node=new\n+ Node new\n+ Namespace c",
        &["Pod c/x Created", "Node new Created", "Namespace c Created"],
    );
}

#[test]
fn a_namespace_takes_along_what_is_in_it() {
    check(
        "- Namespace a",
        &[
            "Namespace a Deleted",
            "NetworkPolicy a/p Deleted",
            "Pod a/pending Deleted",
            "Pod a/web Deleted",
        ],
    );
    check(
        "- Namespace b\n+ Namespace b\n+ Workload b/vm node=n ip=10.0.0.2",
        &[
            "Namespace b Unchanged",
            "Pod b/host Deleted",
            "Workload b/vm Unchanged",
        ],
    );
    check(
        "- Namespace b\n+ Pod b/new",
        &[r#"NotFound: f.yaml: Pod b/new: namespaces "b" not found"#],
    );
}

#[test]
fn what_is_not_there_cannot_be_named() {
    check(
        "- NetworkPolicy a/x",
        &[r#"NotFound: networkpolicies.networking.k8s.io "x" not found"#],
    );
    check(
        "~ Pod a/x",
        &[r#"NotFound: f.yaml: Pod a/x: pods "x" not found"#],
    );
    check(
        "- Workload a/x",
        &[r#"NotFound: workloads.sallyport.dev "x" not found"#],
    );
    check("- Namespace x", &[r#"NotFound: namespaces "x" not found"#]);
    check(
        "- NetworkPolicy a/p\n- NetworkPolicy a/p",
        &[r#"NotFound: networkpolicies.networking.k8s.io "p" not found"#],
    );
    check(
        "+ NetworkPolicy x/p\n+ Pod x/web node=y ip=10.0.0.1\n- Node z",
        &[
            r#"NotFound: nodes "z" not found"#,
            r#"NotFound: f.yaml: NetworkPolicy x/p: namespaces "x" not found"#,
            r#"NotFound: f.yaml: Pod x/web: namespaces "x" not found"#,
            r#"NotFound: f.yaml: Pod x/web: nodes "y" not found"#,
        ],
    );
}

#[test]
fn a_node_with_workloads_stays() {
    check("- Node idle", &["Node idle Deleted"]);
    check(
        "- Node n",
        &[
            r#"Invalid: Node n: nodes "n" still has workloads (Pod a/web, Pod b/host, Workload b/vm): delete them first, or in the same transaction"#,
        ],
    );
    check(
        "+ Pod a/z node=n\n~ Node n",
        &[
            r#"NotFound: f.yaml: Pod a/z: nodes "n" not found"#,
            r#"Invalid: f.yaml: Node n: nodes "n" still has workloads (Pod a/web, Pod a/z, Pod b/host and 1 more): delete them first, or in the same transaction"#,
        ],
    );
    check(
        "- Node n\n- Namespace a\n- Pod b/host\n- Workload b/vm",
        &[
            "Node n Deleted",
            "Namespace a Deleted",
            "NetworkPolicy a/p Deleted",
            "Pod a/pending Deleted",
            "Pod a/web Deleted",
            "Pod b/host Deleted",
            "Workload b/vm Deleted",
        ],
    );
}

/// The committed transactions, each with its revision.
fn committed(base: &Cluster, script: &str) -> Vec<String> {
    let outcome = outcome(base, script, Revision(2))
        .1
        .expect("it can be carried out");
    let last = outcome
        .committed
        .map(|committed| (outcome.cluster, committed));
    let steps = outcome.removal.map(|step| (step.cluster, step.committed));
    let mut before = base.clone();
    let mut lines = Vec::new();
    for (cluster, committed) in steps.into_iter().chain(last) {
        let mut replayed = before.clone();
        let replaced: Vec<_> = committed.before.iter().flatten().collect();
        for replaced in &replaced {
            let stored = before.get(&replaced.key).expect("it was there");
            assert_eq!(stored.object.manifest, replaced.manifest);
        }
        for event in &committed.events {
            let (key, what) = match event {
                Event::Put(stored) => {
                    assert_eq!(stored.revision, committed.revision);
                    replayed.put_stored(stored.clone());
                    (&stored.object.key, "put")
                }
                Event::Delete(key) => {
                    assert!(replayed.remove(key).is_some(), "{key} was there");
                    (key, "delete")
                }
            };
            let was_there = before.get(key).is_some();
            assert_eq!(
                was_there,
                replaced.iter().any(|replaced| replaced.key == *key)
            );
            lines.push(format!("{} {what} {key}", committed.revision));
        }
        assert_eq!(replayed, cluster, "{script}");
        before = cluster;
    }
    lines
}

#[test]
fn an_address_that_goes_to_another_node_is_removed_first() {
    check("+ Pod a/web node=m ip=10.0.0.1", &["Pod a/web Configured"]);
    let moved = ["2 delete Pod a/web", "3 put Pod a/web"];
    assert_eq!(
        committed(&stored(), "+ Pod a/web node=m ip=10.0.0.1"),
        moved
    );
    let replaced = "- Pod a/web\n+ Pod a/web node=m ip=10.0.0.1";
    assert_eq!(committed(&stored(), replaced), moved);
    // Another one may have it there; and the node that it was on may go.
    assert_eq!(
        committed(
            &stored(),
            "+ Workload b/other node=m ip=10.0.0.1\n- Pod a/web\n- Workload b/vm\n- Pod b/host\n- Node n"
        ),
        [
            "2 delete Pod a/web",
            "3 put Workload b/other",
            "3 delete Workload b/vm",
            "3 delete Pod b/host",
            "3 delete Node n"
        ]
    );
    // Two change places.
    assert_eq!(
        committed(
            &stored(),
            "+ Pod a/web node=m ip=10.0.0.2\n+ Workload b/vm node=m ip=10.0.0.1"
        ),
        [
            "2 delete Pod a/web",
            "2 delete Workload b/vm",
            "3 put Pod a/web",
            "3 put Workload b/vm"
        ]
    );
    // One that is left without an address comes back without.
    assert_eq!(
        committed(
            &stored(),
            "+ Pod a/web node=n\n+ Workload b/other node=m ip=10.0.0.1"
        ),
        [
            "2 delete Pod a/web",
            "3 put Pod a/web",
            "3 put Workload b/other"
        ]
    );
    check(
        "+ Pod a/web node=x ip=10.0.0.1",
        &[r#"NotFound: f.yaml: Pod a/web: nodes "x" not found"#],
    );
}

#[test]
fn what_takes_no_address_to_another_node_is_one_transaction() {
    for script in [
        "+ Pod a/web node=m ip=10.0.0.77",
        "+ Pod a/web node=m",
        "+ Pod a/pending node=m ip=10.0.0.7",
        "+ Pod b/host node=m ip=10.0.0.9 host=true",
        "- Pod a/web\n+ Workload b/other node=n ip=10.0.0.1",
        "+ Pod a/web node=n ip=10.0.0.2\n+ Workload b/vm node=n ip=10.0.0.1",
    ] {
        let lines = committed(&stored(), script);
        assert!(lines.iter().all(|line| line.starts_with("2 ")), "{lines:?}");
    }
}

#[test]
fn a_workload_takes_its_allowed_sources_to_another_node_after_its_removal() {
    let gateway = |node: &str, ip: &str, sources: &str| {
        format!("+ Workload b/gw node={node} ip={ip} sources={sources}")
    };
    let both = gateway("n", "10.0.0.4", "10.9.0.0/16,fd09::/64");
    let base = outcome(&stored(), &both, Revision(1)).1.unwrap().cluster;
    let moved = ["2 delete Workload b/gw", "3 put Workload b/gw"];
    for sources in [
        "10.9.0.0/16",
        "10.9.1.0/24",
        "10.0.0.0/8",
        "192.0.2.0/24,fd09::1/128",
    ] {
        for ip in ["10.0.0.4", "10.0.0.5"] {
            let script = gateway("m", ip, sources);
            assert_eq!(committed(&base, &script), moved, "{script}");
        }
    }
    let other = "+ Workload b/other node=m ip=10.0.0.6 sources=10.9.0.0/16";
    for script in [
        gateway("m", "10.0.0.5", "192.0.2.0/24"),
        gateway("n", "10.0.0.5", "10.9.0.0/16"),
        "+ Workload b/gw node=m ip=10.0.0.5".into(),
        "+ Workload b/gw node=m sources=10.9.0.0/16".into(),
        // Another workload may use the same range on another node.
        other.into(),
        format!("{other}\n- Workload b/gw"),
    ] {
        let lines = committed(&base, &script);
        assert!(lines.iter().all(|line| line.starts_with("2 ")), "{lines:?}");
    }
    // One that shares an address with a workload that stays is moved at once: that one's policies alone would judge the
    // address.
    let shared = "+ Workload b/stays node=n ip=10.0.0.4";
    let base = outcome(&base, shared, Revision(1)).1.unwrap().cluster;
    let script = gateway("m", "10.0.0.5", "10.9.0.0/16");
    assert_eq!(committed(&base, &script), ["2 put Workload b/gw"]);
}

#[test]
fn an_address_is_not_torn_from_a_workload_that_stays() {
    let two = "+ Workload a/two node=n ip=10.0.0.4,fd00::5";
    let base = outcome(&stored(), two, Revision(1)).1.unwrap().cluster;
    let script = "+ Workload a/two node=n ip=10.0.0.4\n+ Pod a/web node=m ip=fd00::5";
    assert_eq!(
        outcome(&base, script, Revision(3)).0,
        [
            r#"AlreadyExists: f.yaml: Pod a/web: address fd00::5 is held by Workload a/two on node "n", which keeps other addresses: take it from there first, in a transaction of its own"#
        ]
    );
    let all = "+ Workload a/two node=m ip=10.0.0.4\n+ Pod a/web node=m ip=fd00::5";
    assert_eq!(
        committed(&base, all),
        [
            "2 delete Workload a/two",
            "3 put Workload a/two",
            "3 put Pod a/web"
        ]
    );
}

#[test]
fn a_name_is_held_by_one() {
    check(
        "+ Workload a/web node=n ip=10.0.0.5",
        &[
            r#"AlreadyExists: f.yaml: Workload a/web: pods "web" already exists in the namespace: a Pod and a Workload cannot share a name"#,
        ],
    );
    check(
        "- Pod a/web\n+ Workload a/web node=n ip=10.0.0.1",
        &["Pod a/web Deleted", "Workload a/web Created"],
    );
    check(
        "+ Pod a/new node=n ip=10.0.0.9 host=true",
        &["Pod a/new Created"],
    );
    check("+ Pod a/new node=n ip=10.0.0.9", &["Pod a/new Created"]);
    check(
        "+ Pod a/web node=n ip=10.0.0.2\n+ Workload b/vm node=n ip=10.0.0.1",
        &["Pod a/web Configured", "Workload b/vm Configured"],
    );
    check(
        "+ Pod a/new node=m ip=10.0.0.1\n- Pod a/web",
        &["Pod a/new Created", "Pod a/web Deleted"],
    );
}

#[test]
fn only_what_changes_is_committed() {
    let base = stored();
    let (_, unchanged) = outcome(
        &base,
        "+ Namespace a\n+ Pod a/web node=n ip=10.0.0.1",
        Revision(2),
    );
    let unchanged = unchanged.unwrap();
    assert_eq!(unchanged.committed, None);
    assert_eq!(unchanged.cluster, base, "revisions stay");

    let (_, changed) = outcome(
        &base,
        "+ Namespace a\n+ Node n label=y\n- Pod a/pending\n+ Pod a/t\n- Pod a/t",
        Revision(2),
    );
    let changed = changed.unwrap();
    let events = changed.committed.unwrap().events;
    assert_eq!(
        events
            .iter()
            .map(|event| event.key().to_string())
            .collect::<Vec<_>>(),
        ["Node n", "Pod a/pending"]
    );
    assert!(matches!(&events[0], Event::Put(stored) if stored.revision == Revision(2)));
    assert!(matches!(events[1], Event::Delete(_)));
    assert_eq!(
        changed.cluster.get(&key("Namespace a")).unwrap().revision,
        Revision(1)
    );
}

#[test]
fn limits_say_what_they_are() {
    let put = edits("+ Namespace a").remove(0);
    let many = vec![put; MAX_EDITS + 1];
    let refused = apply(&Cluster::default(), many, Revision(1)).unwrap_err();
    assert_eq!(
        refused[0].message,
        "the transaction has 100001 edits: the limit is 100000; split it"
    );

    let mut large = edits("+ Namespace a").remove(0);
    if let Op::Put(object) = &mut large.op {
        object.manifest = "x".repeat(MAX_OBJECT + 1).into();
    }
    let refused = apply(&Cluster::default(), vec![large], Revision(1)).unwrap_err();
    assert_eq!(
        refused[0].message,
        "f.yaml: Namespace a: the object is 1572865 bytes as JSON: the limit is 1572864 (1.5 MiB)"
    );
}
