//! Addresses that go from one node to another in one transaction. A peer that knows such an address all the while lets
//! it speak where its new node does not judge it yet, or its old one does not any more. So who has it now is removed
//! first, as a transaction of its own: the second one is behind the barrier of the first, when no peer knows the
//! address.
//!
//! An address that several workloads claim is judged by the policies of all of them. So either all claimants are
//! removed first, or none: if one of them stays where it is, the transaction is one revision.
//!
//! A workload that goes to another node is removed first if it takes allowed sources along, even if it has other
//! addresses there: no two nodes allow them at once.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;
use sallyport_proto::object::ObjectKey;

use super::{Outcome, Reason, Step};
use crate::{
    cluster::{Cluster, Stored},
    history::{Committed, Event, Replaced},
    model::{Body, Workload},
};

/// An address that a workload takes to another node: who has it there, and the node.
struct Departure<'a> {
    address: IpAddr,
    holder: &'a ObjectKey,
    node: &'a str,
}

/// The addresses that a workload takes to its node from others, of those that nobody keeps where it was.
fn departures<'a>(
    before: &'a Cluster,
    after: &'a Cluster,
    key: &ObjectKey,
) -> impl Iterator<Item = Departure<'a>> {
    let workload = workload(after, key).filter(|workload| !workload.host_network);
    let to = workload.and_then(|workload| workload.node.as_deref());
    let addresses = to
        .and(workload)
        .map_or(&[][..], |workload| &workload.addresses);
    let leaves = move |address: IpAddr| {
        let mut holders = before.holders(address);
        holders.all(|holder| !stays(before, after, holder, address))
    };
    let leaving = addresses.iter().filter(move |&&address| leaves(address));
    leaving.flat_map(move |&address| {
        before.holders(address).filter_map(move |holder| {
            let node = self::workload(before, holder)?.node.as_deref()?;
            (Some(node) != to).then_some(Departure {
                address,
                holder,
                node,
            })
        })
    })
}

/// Addresses that an object takes from a workload that keeps others where it is: removed first, it would be
/// unprotected.
pub(super) fn torn(before: &Cluster, after: &Cluster, key: &ObjectKey) -> Vec<(Reason, String)> {
    let torn = departures(before, after, key).filter(|from| {
        workload(after, from.holder).is_some_and(|holder| {
            let stays = holder.node.as_deref() == Some(from.node);
            stays && !holder.host_network && !holder.addresses.is_empty()
        })
    });
    let message = |from: Departure<'_>| {
        format!(
            "address {} is held by {} on node \"{}\", which keeps other addresses: take it from there first, in a \
             transaction of its own",
            from.address, from.holder, from.node
        )
    };
    torn.map(|from| (Reason::AlreadyExists, message(from)))
        .collect()
}

/// Makes two transactions of one in which addresses go to another node.
pub(super) fn split(before: &Cluster, mut outcome: Outcome) -> Outcome {
    let after = &outcome.cluster;
    let changed = || outcome.changes.iter().map(|change| &change.key);
    let addressed = changed()
        .flat_map(|key| departures(before, after, key))
        .map(|from| from.holder);
    let leaving: BTreeSet<&ObjectKey> = addressed
        .chain(changed().filter(|key| takes_sources(before, after, key)))
        .filter_map(|holder| removed_with(before, after, holder))
        .flatten()
        .collect();
    let Some(committed) = outcome.committed.as_mut().filter(|_| !leaving.is_empty()) else {
        return outcome;
    };
    let mut cluster = before.clone();
    let removed = leaving.iter().filter_map(|key| cluster.remove(key));
    let replaced = removed.map(|stored| Replaced {
        key: stored.object.key.clone(),
        manifest: stored.object.manifest.clone(),
    });
    let first = Committed {
        revision: committed.revision,
        before: Some(replaced.collect()),
        events: leaving
            .iter()
            .map(|&key| Event::Delete(key.clone()))
            .collect(),
        at_ms: None,
    };
    committed.revision = committed.revision.next();
    let is_gone = |key: &ObjectKey| leaving.contains(key);
    if let Some(replaced) = &mut committed.before {
        replaced.retain(|object| !is_gone(&object.key));
    }
    committed
        .events
        .retain(|event| !matches!(event, Event::Delete(key) if is_gone(key)));
    for event in &mut committed.events {
        if let Event::Put(stored) = event {
            *stored = Arc::new(Stored {
                object: stored.object.clone(),
                revision: committed.revision,
            });
            outcome.cluster.put_stored(stored.clone());
        }
    }
    outcome.removal = Some(Step {
        cluster,
        committed: first,
    });
    outcome
}

/// Whether a workload takes allowed sources to another node.
fn takes_sources(before: &Cluster, after: &Cluster, key: &ObjectKey) -> bool {
    let (Some(before), Some(after)) = (claimant(before, key), claimant(after, key)) else {
        return false;
    };
    let meets = |source: &IpNetwork| {
        let mut others = before.allowed_sources.iter();
        others.any(|other| match (source, other) {
            (IpNetwork::V4(source), IpNetwork::V4(other)) => source.overlaps(*other),
            (IpNetwork::V6(source), IpNetwork::V6(other)) => source.overlaps(*other),
            _ => false,
        })
    };
    before.node != after.node && after.allowed_sources.iter().any(meets)
}

/// A workload, if its allowed sources count on a node.
fn claimant<'a>(cluster: &'a Cluster, key: &ObjectKey) -> Option<&'a Workload> {
    workload(cluster, key).filter(|workload| {
        workload.node.is_some() && !workload.host_network && !workload.addresses.is_empty()
    })
}

/// The workloads that are removed first where one of them is: those with which it shares addresses. `None` if another
/// keeps one of these addresses: that one's policies alone would judge it meanwhile.
fn removed_with<'a>(
    before: &'a Cluster,
    after: &Cluster,
    holder: &'a ObjectKey,
) -> Option<BTreeSet<&'a ObjectKey>> {
    let mut removed = BTreeSet::new();
    let mut next = vec![holder];
    while let Some(key) = next.pop() {
        if !removed.insert(key) {
            continue;
        }
        for &address in workload(before, key).map_or(&[][..], |workload| &workload.addresses) {
            for other in before.holders(address) {
                if stays(before, after, other, address) {
                    return None;
                }
                next.push(other);
            }
        }
    }
    Some(removed)
}

/// Whether a workload keeps an address on the node where it has it.
fn stays(before: &Cluster, after: &Cluster, key: &ObjectKey, address: IpAddr) -> bool {
    let (Some(before), Some(after)) = (workload(before, key), workload(after, key)) else {
        return false;
    };
    before.node == after.node && !after.host_network && after.addresses.contains(&address)
}

fn workload<'a>(cluster: &'a Cluster, key: &ObjectKey) -> Option<&'a Workload> {
    match &cluster.get(key)?.object.body {
        Body::Workload(workload) => Some(workload),
        _ => None,
    }
}
