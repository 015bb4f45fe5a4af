//! Dumps of whole clusters, as `kubectl get -o yaml` prints them: read, and put into an empty cluster in one transaction.

use sallyport_controlplane::{
    cluster::Cluster,
    manifest,
    model::{Body, Object},
    transaction::{self, Action, Edit, Op},
};
use sallyport_policy::{Protocol, Revision};

use super::{accepted, addresses, problems_in, workloads::port};

const KIND: &str = include_str!("dumps/kind.yaml");

fn put(objects: Vec<Object>, base: &Cluster, revision: u64) -> transaction::Outcome {
    let edit = |object| Edit {
        source: "-".into(),
        op: Op::Put(object),
    };
    transaction::apply(
        base,
        objects.into_iter().map(edit).collect(),
        Revision(revision),
    )
    .unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn a_dump_of_a_kind_cluster_applies() {
    let objects = accepted(KIND);
    assert_eq!(objects.len(), 14);
    let outcome = put(objects, &Cluster::default(), 1);
    assert!(
        outcome
            .changes
            .iter()
            .all(|change| change.action == Action::Created)
    );
    let workload = |name: &str| {
        let found = outcome
            .cluster
            .workloads()
            .find(|(key, _)| key.name == name);
        found.expect(name).1.clone()
    };
    let web = workload("web-5f6d8c9b7-2xkqp");
    assert_eq!(
        web.addresses,
        addresses(&["10.244.1.9", "fd00:10:244:1::9"])
    );
    assert_eq!(
        web.ports,
        [
            port("http", Protocol::Tcp, 8080),
            port("stats", Protocol::Tcp, 15020)
        ]
    );
    assert!(workload("kindnet-x7x2p").host_network);
    // A pod that ended is nowhere: its address is another's, and its node may be gone.
    let ended = workload("migrate-29393290-k4v9w");
    assert_eq!((ended.addresses, ended.node), (vec![], None));
}

#[test]
fn a_dump_in_json_is_the_same_as_in_yaml() {
    let json: serde_json::Value = serde_saphyr::from_str(KIND).expect("YAML");
    let objects = accepted(&json.to_string());
    let yaml = accepted(KIND);
    assert!(
        objects
            .iter()
            .zip(&yaml)
            .all(|(a, b)| a.key == b.key && a.body == b.body)
    );
    assert_eq!(objects.len(), yaml.len());
}

/// A manifest that a cluster wrote may have fields of later versions. One that a person wrote may not, nor may a policy.
#[test]
fn fields_of_later_versions_are_left_alone_where_a_cluster_wrote_them() {
    let object = |kind: &str, metadata: &str, rest: &str| {
        format!("{{apiVersion: v1, kind: {kind}, metadata: {{name: a{metadata}}}, {rest}}}")
    };
    let from_cluster = ", uid: 0c6f0d3e, resourceVersion: '38'";
    for (kind, rest) in [
        ("Pod", "spec: {later: 1, containers: [{later: [1]}]}"),
        ("Node", "spec: {later: {a: 1}}"),
        ("Namespace", "spec: {later: null}"),
    ] {
        accepted(&object(kind, from_cluster, rest));
        let problems = problems_in(&object(kind, "", rest));
        assert!(
            problems[0].ends_with("unknown field \"spec.later\""),
            "{problems:?}"
        );
    }
    for kind in ["Pod", "Node", "Namespace"] {
        accepted(&object(kind, "", "status: {later: {a: [1]}}"));
    }
    // A known field in another spelling is a mistake, wherever it stands.
    for (kind, rest, field) in [
        ("Pod", "status: {podIps: []}", "status.podIps"),
        ("Pod", "spec: {nodename: n}", "spec.nodename"),
        (
            "Pod",
            "spec: {containers: [{Ports: []}]}",
            "spec.containers[0].Ports",
        ),
        ("Node", "spec: {podCIDRS: []}", "spec.podCIDRS"),
        ("Pod", "later: 1", "later"),
    ] {
        let problems = problems_in(&object(kind, from_cluster, rest));
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].ends_with(&format!("unknown field \"{field}\"")),
            "{problems:?}"
        );
    }
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, \
                  metadata: {name: a, uid: 0c6f0d3e, resourceVersion: '38'}, spec: {later: 1}}";
    assert!(problems_in(policy)[0].ends_with("unknown field \"spec.later\""));
}

#[test]
fn a_policys_status_is_left_alone() {
    for status in [
        "{}",
        "null",
        "{conditions: [{type: Accepted, status: 'True'}]}",
    ] {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: a}}, status: {status}}}"
        );
        let objects = accepted(&text);
        assert!(matches!(objects[0].body, Body::NetworkPolicy(_)));
        let keys = manifest::parse_keys(&text, "").expect("keys");
        assert_eq!(keys, [objects[0].key.clone()]);
    }
}

/// The same dump, an hour later: heartbeats, versions, another order of fields, nothing that anybody asked for.
#[test]
fn a_dump_with_other_words_for_the_same_is_unchanged() {
    let base = put(accepted(KIND), &Cluster::default(), 1).cluster;
    let mut later: serde_json::Value = serde_saphyr::from_str(KIND).expect("YAML");
    for item in later["items"].as_array_mut().expect("items") {
        item["metadata"]["resourceVersion"] = "99999".into();
        item["metadata"]["managedFields"] = serde_json::json!([]);
        item["metadata"]["finalizers"] = match item["metadata"].get("finalizers") {
            Some(given) => given.clone(),
            None => serde_json::Value::Null,
        };
        if item["kind"] == "Node" {
            item["status"]["conditions"] = serde_json::json!([{"type": "Ready", "status": "True"}]);
        }
        if item["kind"] == "NetworkPolicy" {
            item["spec"]["egress"] = serde_json::json!([]);
            item["spec"]["ingress"][0]["ports"][0]
                .as_object_mut()
                .expect("a port")
                .remove("protocol");
        }
    }
    let outcome = put(accepted(&later.to_string()), &base, 2);
    for change in &outcome.changes {
        assert_eq!(change.action, Action::Unchanged, "{}", change.key);
    }
    assert!(outcome.committed.is_none());
    // What somebody asked for is a change, though no packet meets it.
    let asked = KIND.replace("image: web:1", "image: web:2");
    let outcome = put(accepted(&asked), &base, 2);
    let changed: Vec<_> = outcome
        .changes
        .iter()
        .filter(|change| change.action == Action::Configured)
        .collect();
    assert_eq!(changed.len(), 4, "{changed:?}");
}
