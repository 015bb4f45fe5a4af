//! Addresses that several workloads claim, in words: for who makes such a contest, and for who looks at the cluster. Decides
//! nothing about packets: that is `compile`'s.

use std::{collections::BTreeSet, net::IpAddr};

use sallyport_proto::object::ObjectKey;

use crate::{
    cluster::Cluster,
    model::{Body, Workload},
};

/// The most addresses that are shown.
const MAX_SHOWN: usize = 100;

/// The most claimants of an address that are named.
const MAX_NAMED: usize = 10;

/// The most claimants that a message names before it counts the rest.
const MAX_IN_WORDS: usize = 3;

/// The most addresses that a transaction is warned of.
const MAX_WARNINGS: usize = 10;

/// An address that several workloads claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// The address.
    pub address: IpAddr,
    /// The first claimants, by kind, namespace and name.
    pub claimants: Vec<ObjectKey>,
    /// How many more claimants there are.
    pub more: u64,
    /// In words, with what to do.
    pub message: String,
}

/// The addresses of a cluster that several workloads claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contests {
    /// The first of them.
    pub first: Vec<Contest>,
    /// How many more there are.
    pub more: u64,
}

/// The first contests of a cluster.
pub fn first(cluster: &Cluster) -> Contests {
    let contested = cluster.contested();
    let first = contested.iter().take(MAX_SHOWN);
    Contests {
        first: first.map(|&address| contest(cluster, address)).collect(),
        more: number(contested.len().saturating_sub(MAX_SHOWN)),
    }
}

/// Warns of the contests that a transaction begins or extends, which put or deleted some objects.
pub fn begun<'a>(
    before: &Cluster,
    after: &Cluster,
    changed: impl Iterator<Item = &'a ObjectKey>,
) -> Vec<String> {
    if after.contested().is_empty() {
        return Vec::new();
    }
    let claims = |key| workload(after, key).map_or(&[][..], |workload| &workload.addresses);
    let is_new = |address: &&IpAddr, key| {
        after.contested().contains(*address)
            && after.holds(**address, key)
            && !before.holds(**address, key)
    };
    let new = changed.flat_map(|key| {
        claims(key)
            .iter()
            .filter(move |address| is_new(address, key))
    });
    let new: BTreeSet<IpAddr> = new.copied().collect();
    let first = new.iter().take(MAX_WARNINGS);
    let mut warnings: Vec<String> = first
        .map(|&address| contest(after, address).message)
        .collect();
    if new.len() > MAX_WARNINGS {
        let more = new.len() - MAX_WARNINGS;
        warnings.push(format!(
            "and {more} more addresses that several workloads claim"
        ));
    }
    warnings
}

fn contest(cluster: &Cluster, address: IpAddr) -> Contest {
    let claimants: Vec<ObjectKey> = cluster.holders(address).take(MAX_NAMED).cloned().collect();
    let count = cluster.holders(address).count();
    let named = claimants.iter().take(MAX_IN_WORDS);
    let mut named: Vec<String> = named.map(|key| described(cluster, key)).collect();
    let last = match count.saturating_sub(MAX_IN_WORDS) {
        0 => named.pop().unwrap_or_default(),
        more => format!("{more} more"),
    };
    let message = format!(
        "address {address} is claimed by {} and {last}: traffic passes where the policies of all of them allow it, and \
         peers include the address where they include all of them; delete the workloads that have ended, or correct \
         their addresses",
        named.join(", ")
    );
    Contest {
        address,
        more: number(count - claimants.len()),
        claimants,
        message,
    }
}

/// `Pod default/web on node "n"`.
fn described(cluster: &Cluster, key: &ObjectKey) -> String {
    match workload(cluster, key).and_then(|workload| workload.node.as_ref()) {
        Some(node) => format!("{key} on node \"{node}\""),
        None => format!("{key} on no node"),
    }
}

fn workload<'a>(cluster: &'a Cluster, key: &ObjectKey) -> Option<&'a Workload> {
    match &cluster.get(key)?.object.body {
        Body::Workload(workload) => Some(workload),
        _ => None,
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
