//! The law of the incremental compiler: after every transaction of a random history it equals the full computation,
//! digests included, and it names exactly the nodes whose policy changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*, strategy::ValueTree, test_runner::TestRunner};
use sallyport_controlplane::{
    cluster::Cluster,
    compile::{Compiler, full},
    model::{Body, Established},
};
use sallyport_policy::{Change, Delta, Effect, NodePolicy, UnknownAddresses};
use sallyport_proto::object::{Kind, ObjectKey};

use crate::{
    universe::{Edit, edit, established, nobody},
    write,
};

/// How many edits the long history has; the environment variable of this name raises it.
const EDITS: &str = "SALLYPORT_COMPILE_EDITS";

/// A compiler that is held against the full computation at every step.
pub(crate) struct Checked {
    cluster: Cluster,
    compiler: Compiler,
    policies: BTreeMap<String, Arc<NodePolicy>>,
}

impl Checked {
    pub(crate) fn new(default: Established) -> Checked {
        let cluster = Cluster::default().with_established(default);
        Checked {
            compiler: Compiler::new(&cluster),
            policies: full(&cluster),
            cluster,
        }
    }

    pub(crate) fn step(&mut self, transaction: &[Edit]) {
        for edit in transaction {
            edit.apply(&mut self.cluster);
        }
        let keys: Vec<ObjectKey> = transaction.iter().map(|edit| edit.key().clone()).collect();
        let changed = self.compiler.update(&self.cluster, &keys);
        let expected = full(&self.cluster);
        self.compare(&expected, transaction);
        let names: BTreeSet<&String> = self.policies.keys().chain(expected.keys()).collect();
        let differing: Vec<_> = names
            .into_iter()
            .filter(|name| self.policies.get(*name) != expected.get(*name))
            .map(|name| (name.clone(), expected.get(name).cloned()))
            .collect();
        assert_eq!(
            changed, differing,
            "the changed nodes after {transaction:#?}"
        );
        self.policies = expected;
    }

    /// What the compiler says that a node must enforce.
    pub(crate) fn policy(&self, node: &str) -> &Arc<NodePolicy> {
        self.compiler.policy(node).expect("the node is an object")
    }

    fn compare(&self, expected: &BTreeMap<String, Arc<NodePolicy>>, transaction: &[Edit]) {
        let names: Vec<&str> = self.compiler.policies().map(|(name, _)| name).collect();
        let expected_names: Vec<&str> = expected.keys().map(String::as_str).collect();
        assert_eq!(names, expected_names, "the nodes after {transaction:#?}");
        for (name, policy) in expected {
            let found = self.compiler.policy(name).expect("one of the names");
            assert!(
                found == policy,
                "on {name} after {transaction:#?}\nto be right: {:#?}\ndigests {} {}",
                Delta::between(found, policy),
                found.digest(),
                policy.digest(),
            );
        }
    }
}

#[test]
fn a_long_history_is_followed_exactly() {
    let edits = std::env::var(EDITS).map_or(10_000, |text| text.parse().expect("a number"));
    let mut runner = TestRunner::deterministic();
    let (edit, size) = (edit(), prop_oneof![3 => Just(1), 1 => 2..6usize]);
    let mut checked = Checked::new(Established::Recheck);
    let mut done = 0;
    while done < edits {
        let size = size.new_tree(&mut runner).expect("a size").current();
        let edits = (0..size).map(|_| edit.new_tree(&mut runner).expect("an edit").current());
        let transaction: Vec<Edit> = edits.collect();
        checked.step(&transaction);
        done += size;
    }
    assert_eq!(checked.compiler.update(&checked.cluster, &[nobody()]), []);
    forgets_everything(checked);
}

/// An emptied compiler is like a new one: it keeps nothing of what it has seen.
fn forgets_everything(mut checked: Checked) {
    let keys: Vec<ObjectKey> = checked
        .cluster
        .objects()
        .map(|stored| stored.object.key.clone())
        .collect();
    for key in keys {
        checked.step(&[Edit::Delete(key)]);
    }
    let new = Compiler::new(&Cluster::default());
    assert_eq!(format!("{:?}", checked.compiler), format!("{new:?}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// The same as the long history, in pieces that proptest can make smaller when they fail.
    #[test]
    fn short_histories_are_followed_exactly(default in established(), history in vec(vec(edit(), 1..4), 1..25)) {
        let mut checked = Checked::new(default);
        for transaction in &history {
            checked.step(transaction);
        }
        prop_assert!(Compiler::new(&checked.cluster).policies().eq(checked.compiler.policies()));
    }
}

#[test]
fn a_uid_alone_is_a_change_of_one_endpoint() {
    let pod = |uid: &str| {
        let mut pod = write::pod("a", "web", "n", "app=web", "10.0.0.1 fd00::1");
        if let Body::Workload(workload) = &mut pod.body {
            workload.uid = uid.into();
        }
        pod
    };
    let mut checked = Checked::new(Established::Recheck);
    let objects = [write::node("n", &["10.0.0.0/24"]), pod("")];
    checked.step(&objects.map(Edit::Put));
    for uid in ["u", "v", ""] {
        let before = checked.policies["n"].clone();
        checked.step(&[Edit::Put(pod(uid))]);
        let after = &checked.policies["n"];
        let changes = Delta::between(&before, after).changes;
        let uids: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::SetEndpoint(_, endpoint) => endpoint.uid.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(uids, [uid, uid]);
    }
}

/// The interfaces of a node's endpoints, by address.
fn interfaces(policy: &NodePolicy) -> Vec<(String, String)> {
    let endpoints = policy.endpoints().iter();
    endpoints
        .map(|(address, endpoint)| (address.to_string(), endpoint.interface.clone()))
        .collect()
}

#[test]
fn an_interface_alone_is_a_change_of_one_endpoint() {
    let web = |interface| {
        let web = write::pod("a", "web", "n", "app=web", "10.0.0.1 fd00::1");
        write::behind(web, interface)
    };
    let mut checked = Checked::new(Established::Recheck);
    let policy = write::policy("a", "p", "app=web", Some(vec![write::rule(&[], &[])]), None);
    let objects = [write::node("n", &["10.0.0.0/24"]), web(""), policy];
    checked.step(&objects.map(Edit::Put));
    for interface in ["veth-web", "tap0", ""] {
        let before = checked.policies["n"].clone();
        checked.step(&[Edit::Put(web(interface))]);
        let after = &checked.policies["n"];
        let changes = Delta::between(&before, after).changes;
        let told: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::SetEndpoint(_, endpoint) => endpoint.interface.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [interface, interface]);
        // It takes nothing away and gives nothing: no other node is waited for.
        let effect = before.effect_of_change(after, &UnknownAddresses::drop());
        assert_eq!(effect, Effect::default());
    }
}

/// An address of several workloads is behind an interface of a node if all of them that are there say so.
#[test]
fn claimants_of_a_node_agree_on_the_interface_or_there_is_none() {
    let pod = |name, node, interface| {
        let pod = write::pod("a", name, node, "app=web", "10.0.0.1");
        Edit::Put(write::behind(pod, interface))
    };
    let mut checked = Checked::new(Established::Recheck);
    let nodes = ["n", "m"].map(|name| Edit::Put(write::node(name, &["10.0.0.0/24"])));
    checked.step(&nodes);
    let gone = |name| Edit::Delete(write::key(Kind::Pod, "a", name));
    for (edit, on_n, on_m) in [
        (pod("p", "n", "veth"), Some("veth"), None),
        (pod("q", "n", "veth"), Some("veth"), None),
        (pod("q", "n", "tap"), Some(""), None),
        (pod("q", "n", ""), Some(""), None),
        (pod("p", "n", ""), Some(""), None),
        (pod("p", "n", "veth"), Some(""), None),
        (pod("q", "n", "veth"), Some("veth"), None),
        // One that is on another node has no say here.
        (pod("r", "m", "tap"), Some("veth"), Some("tap")),
        (pod("q", "m", "tap"), Some("veth"), Some("tap")),
        (pod("q", "m", "veth"), Some("veth"), Some("")),
        (gone("r"), Some("veth"), Some("veth")),
        (gone("p"), None, Some("veth")),
        (pod("q", "n", "veth"), Some("veth"), None),
        (pod("q", "", "veth"), None, None),
    ] {
        let what = format!("{edit:?}");
        checked.step(&[edit]);
        for (node, expected) in [("n", on_n), ("m", on_m)] {
            let expected = expected.map(|interface| ("10.0.0.1".into(), interface.into()));
            let found = interfaces(&checked.policies[node]);
            assert_eq!(found, Vec::from_iter(expected), "on {node} after {what}");
        }
    }
}
