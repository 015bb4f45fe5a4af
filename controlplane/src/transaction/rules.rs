//! The rules between objects after a transaction: references, names, addresses. Examines one object at a time, at the
//! cost of the objects that it refers to; `validate` checked each object by itself.

use std::sync::Arc;

use super::{Reason, bound, moves, not_found, port_names};
use sallyport_proto::object::{Kind, ObjectKey};

use crate::{
    cluster::{Cluster, Stored},
    model::{Body, Workload},
};

/// How many objects a message names before it counts the rest.
const NAMED: usize = 3;

/// The rules that an object breaks which a transaction put or deleted.
pub(super) fn broken(before: &Cluster, after: &Cluster, key: &ObjectKey) -> Vec<(Reason, String)> {
    let Some(stored) = after.get(key) else {
        return still_used(after, key).into_iter().collect();
    };
    let mut found = Vec::new();
    if key.kind.is_namespaced() && after.namespace(&key.namespace).is_none() {
        found.push((Reason::NotFound, not_found(Kind::Namespace, &key.namespace)));
    }
    let is_same = |before: &Arc<Stored>| Arc::ptr_eq(before, stored);
    if let Body::NetworkPolicy(policy) = &stored.object.body
        && !before.get(key).is_some_and(is_same)
    {
        let too_large = bound::exceeded(after, &key.namespace, policy);
        let too_often = port_names::exceeded(after, &key.namespace, policy);
        let exceeded = too_large.into_iter().chain(too_often);
        found.extend(exceeded.map(|message| (Reason::Invalid, message)));
    }
    if let Body::Workload(workload) = &stored.object.body {
        found.extend(missing_node(after, workload));
        found.extend(twin(after, key));
        found.extend(moves::torn(before, after, key));
    }
    found
}

/// A node that is deleted while workloads are on it.
fn still_used(after: &Cluster, key: &ObjectKey) -> Option<(Reason, String)> {
    if key.kind != Kind::Node {
        return None;
    }
    let workloads: Vec<_> = after
        .on_node(&key.name)
        .take(NAMED)
        .map(ObjectKey::to_string)
        .collect();
    if workloads.is_empty() {
        return None;
    }
    let rest = match after.on_node(&key.name).skip(NAMED).count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "nodes \"{}\" still has workloads ({}{rest}): delete them first, or in the same transaction",
        key.name,
        workloads.join(", ")
    );
    Some((Reason::Invalid, message))
}

fn missing_node(after: &Cluster, workload: &Workload) -> Option<(Reason, String)> {
    let node = workload.node.as_ref()?;
    match after.node(node) {
        Some(_) => None,
        None => Some((Reason::NotFound, not_found(Kind::Node, node))),
    }
}

/// A Pod and a Workload that share a name: an endpoint says only the name.
fn twin(after: &Cluster, key: &ObjectKey) -> Option<(Reason, String)> {
    let kind = match key.kind {
        Kind::Pod => Kind::Workload,
        _ => Kind::Pod,
    };
    after.get(&ObjectKey {
        kind,
        ..key.clone()
    })?;
    let message = format!(
        "{} \"{}\" already exists in the namespace: a Pod and a Workload cannot share a name",
        kind.resource(),
        key.name
    );
    Some((Reason::AlreadyExists, message))
}
