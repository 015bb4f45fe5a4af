//! Transactions for the journal's tests: a small world in which names, nodes and addresses collide often.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use sallyport_controlplane::{
    cluster::Cluster,
    history::{Committed, History},
    journal::{Note, Recovered, Settings},
    manifest,
    transaction::{self, Edit, Op},
};
use sallyport_policy::{Epoch, Revision};
use sallyport_proto::object::{Kind, ObjectKey};

/// What a journal should hold.
pub(crate) struct Model {
    pub(crate) state: Recovered,
}

impl Model {
    pub(crate) fn new(settings: &Settings) -> Model {
        let history = History::starting_after(Revision(0), settings.history);
        Model {
            state: Recovered {
                cluster: Cluster::default(),
                revision: Revision(0),
                epoch: Epoch(1),
                history,
                settled: Revision(0),
                joined: BTreeMap::new(),
                left: BTreeMap::new(),
            },
        }
    }

    /// Takes a note.
    pub(crate) fn note(&mut self, note: &Note) {
        match note.clone() {
            Note::Joined { node, membership } => {
                self.state.left.remove(&node);
                self.state.joined.insert(node, membership);
            }
            Note::Left { node, at_ms } => {
                self.state.joined.remove(&node);
                self.state.left.insert(node, at_ms);
            }
            Note::Forgotten { node } => {
                self.state.joined.remove(&node);
                self.state.left.remove(&node);
            }
            Note::Settled(revision) => self.state.settled = revision,
        }
    }

    /// Carries out a transaction, if it can be and changes something.
    pub(crate) fn commit(&mut self, edits: Vec<Edit>) -> Option<Arc<Committed>> {
        let outcome =
            transaction::apply(&self.state.cluster, edits, self.state.revision.next()).ok()?;
        let committed = Arc::new(outcome.committed?);
        self.state.cluster = outcome.cluster;
        self.state.revision = committed.revision;
        self.state.history.push(committed.clone());
        Some(committed)
    }
}

/// One edit, most often one that fits.
pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    let namespace = prop::sample::select(vec!["a", "b"]);
    let name = prop::sample::select(vec!["p", "q", "r"]);
    let op = prop_oneof![
        1 => namespace.clone().prop_map(|name| put("Namespace", "", name, "", 0)),
        1 => name.clone().prop_map(|name| put("Node", "", name, "", 0)),
        4 => (namespace.clone(), name.clone(), 0u8..9, prop::bool::weighted(0.02)).prop_map(|(namespace, name, n, large)| {
            // Sometimes too large for one record.
            let filler = if large { "x".repeat(120_000) } else { String::new() };
            put("Pod", namespace, name, &filler, n)
        }),
        2 => (namespace.clone(), name.clone(), 0u8..9)
            .prop_map(|(namespace, name, n)| put("Workload", namespace, name, "", n)),
        3 => (namespace.clone(), name.clone(), 0u8..9)
            .prop_map(|(namespace, name, n)| put("NetworkPolicy", namespace, name, "", n)),
        1 => namespace.clone().prop_map(|name| delete(Kind::Namespace, "", name)),
        1 => name.clone().prop_map(|name| delete(Kind::Node, "", name)),
        2 => (namespace.clone(), name.clone()).prop_map(|(namespace, name)| delete(Kind::Pod, namespace, name)),
        1 => (namespace, name).prop_map(|(namespace, name)| delete(Kind::NetworkPolicy, namespace, name)),
    ];
    op.prop_map(|op| Edit {
        source: "t".into(),
        op,
    })
}

pub(crate) fn put(kind: &str, namespace: &str, name: &str, filler: &str, n: u8) -> Op {
    let api = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        "Workload" => "sallyport.dev/v1",
        _ => "v1",
    };
    let namespaced = if namespace.is_empty() {
        String::new()
    } else {
        format!(r#","namespace":"{namespace}""#)
    };
    let rest = match kind {
        "Pod" => format!(
            r#","spec":{{"nodeName":"{}","containers":[{{"name":"c"}}]}},"status":{{"podIP":"10.0.0.{n}","podIPs":[{{"ip":"10.0.0.{n}"}}]}}"#,
            if n.is_multiple_of(2) { "p" } else { "q" }
        ),
        // Workloads without a node, so that none is refused.
        "Workload" => format!(
            r#","spec":{{"addresses":["10.0.0.{n}"],"interface":"veth{n}","allowedSources":["10.9.{n}.0/24"]}}"#
        ),
        "NetworkPolicy" => format!(r#","spec":{{"podSelector":{{"matchLabels":{{"n":"{n}"}}}}}}"#),
        _ => String::new(),
    };
    let json = format!(
        r#"{{"apiVersion":"{api}","kind":"{kind}","metadata":{{"name":"{name}"{namespaced},"annotations":{{"filler":"{filler}"}}}}{rest}}}"#
    );
    Op::Put(manifest::object_from_json(&json).unwrap_or_else(|problem| panic!("{json}: {problem}")))
}

pub(crate) fn delete(kind: Kind, namespace: &str, name: &str) -> Op {
    Op::Delete(ObjectKey {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    })
}

/// A transaction of its own.
pub(crate) fn edit_of(op: Op) -> Vec<Edit> {
    vec![Edit {
        source: "t".into(),
        op,
    }]
}
