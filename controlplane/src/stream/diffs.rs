//! Differences between versions of policies as bytes to be sent. Groups are shared by many nodes: what leads from one
//! version of a group to another is found and encoded once, however many are told. Knows no stream and no node.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prost::{Message as _, bytes::Bytes};
use sallyport_policy::{Change, Difference, GroupId, NodePolicy, PeerGroup};
use sallyport_proto::wire::PolicyChange;

/// The most addresses of one change: 18 bytes each, if they are IPv6.
const ADDRESSES: usize = 16_384;

/// How many bytes are remembered before those that nobody asked for again are forgotten.
const GENERATION: usize = 2 << 20;

/// The cost of remembering a difference, beside its bytes: two versions of a group, the entry.
const ENTRY: usize = 512;

/// The differences that were made lately.
#[derive(Debug, Default)]
pub struct Diffs(Mutex<Recent>);

/// Two generations. A difference that is asked for again moves to the younger one. When the younger one is full the
/// older one is dropped.
#[derive(Debug, Default)]
struct Recent {
    young: BTreeMap<Key, Encoded>,
    old: BTreeMap<Key, Encoded>,
    /// The size of the younger one.
    size: usize,
    made: u64,
}

/// A group, and where its versions are. An entry holds them, so that no other version comes to be there.
type Key = (GroupId, Option<usize>, usize);

#[derive(Clone, Debug)]
struct Encoded {
    changes: Arc<[Bytes]>,
    _versions: (Option<Arc<PeerGroup>>, Arc<PeerGroup>),
}

impl Diffs {
    /// The changes that lead from `old` to `new`, encoded, in order. Changes that can be cut are small.
    pub fn between(&self, old: &NodePolicy, new: &NodePolicy) -> Vec<Bytes> {
        let mut changes = Vec::new();
        for difference in Difference::all(old, new) {
            match difference {
                Difference::Group { id, old, new } => {
                    // With the lock held: who else wants the same waits for it.
                    let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    changes.extend(recent.get(id, old, new).iter().cloned());
                }
                Difference::Other(change) => changes.push(encoded(&change)),
            }
        }
        changes
    }

    /// How many changes of groups were found and encoded so far.
    pub fn made(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).made
    }
}

impl Recent {
    fn get(
        &mut self,
        id: GroupId,
        old: Option<&Arc<PeerGroup>>,
        new: &Arc<PeerGroup>,
    ) -> Arc<[Bytes]> {
        let place = |version: &Arc<PeerGroup>| Arc::as_ptr(version).addr();
        let key = (id, old.map(place), place(new));
        if let Some(found) = self.young.get(&key) {
            return found.changes.clone();
        }
        let found = self.old.remove(&key).unwrap_or_else(|| {
            self.made += 1;
            let whole = Difference::Group { id, old, new };
            let changes = cut(whole.into()).iter().map(encoded).collect();
            Encoded {
                changes,
                _versions: (old.cloned(), new.clone()),
            }
        });
        let changes = found.changes.clone();
        self.size += ENTRY + changes.iter().map(Bytes::len).sum::<usize>();
        self.young.insert(key, found);
        if self.size > GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.size = 0;
        }
        changes
    }
}

fn encoded(change: &Change) -> Bytes {
    PolicyChange::from(change).encode_to_vec().into()
}

/// A group with many members as several changes.
fn cut(change: Change) -> Vec<Change> {
    let Change::Group {
        id,
        mut spec,
        add,
        remove,
    } = change
    else {
        return vec![change];
    };
    if add.len() + remove.len() <= ADDRESSES {
        return vec![Change::Group {
            id,
            spec,
            add,
            remove,
        }];
    }
    let removals = remove
        .chunks(ADDRESSES)
        .map(|chunk| (Vec::new(), chunk.to_vec()));
    let additions = add
        .chunks(ADDRESSES)
        .map(|chunk| (chunk.to_vec(), Vec::new()));
    let chunks = removals.chain(additions);
    // Only the first makes the group.
    chunks
        .map(|(add, remove)| Change::Group {
            id,
            spec: spec.take(),
            add,
            remove,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use sallyport_policy::{Endpoint, Ranges, SharedGroup};

    use super::*;

    fn address(n: u128) -> IpAddr {
        Ipv6Addr::from_bits(n).into()
    }

    fn group(expression: &str) -> SharedGroup {
        let id = GroupId::of([expression], &Ranges::EMPTY);
        SharedGroup::new(id, PeerGroup::new(expression.into(), Ranges::EMPTY))
    }

    /// A node's policy: one pod of its own, and the groups.
    fn node(n: u128, groups: &[&SharedGroup]) -> NodePolicy {
        let mut policy = NodePolicy::default();
        let pod = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            uid: String::new(),
            interface: String::new(),
            ingress: None,
            egress: None,
        };
        policy.set_endpoint(address(n), Arc::new(pod));
        for group in groups {
            policy.share_group(group, None);
        }
        policy
    }

    fn applied(old: &NodePolicy, changes: &[Bytes], new: &NodePolicy) -> NodePolicy {
        let delta = sallyport_proto::encoded_delta(changes).unwrap();
        old.applied(&delta, new.digest()).unwrap()
    }

    #[test]
    fn what_many_nodes_are_told_is_encoded_once() {
        let diffs = Diffs::default();
        let (mut all, few) = (group("pods */*"), group("pods few/*"));
        for n in 0..40_000 {
            all.add_address(address(n));
        }
        let before: Vec<_> = (0..300)
            .map(|n| match n % 10 {
                0 => node(n, &[&all, &few]),
                _ => node(n, &[&all]),
            })
            .collect();
        let nothing = NodePolicy::default();
        let mut told = BTreeMap::new();
        for policy in &before {
            let changes = diffs.between(&nothing, policy);
            for large in changes.iter().filter(|bytes| bytes.len() > 10_000) {
                *told.entry(large.as_ptr()).or_insert(0) += 1;
            }
        }
        assert_eq!(diffs.made(), 2, "snapshots");
        let times: Vec<_> = told.into_values().collect();
        assert_eq!(times, [300; 3], "the parts of a group of 40,000 are shared");

        let old = all.clone();
        all.remove_address(address(7));
        for policy in &before {
            let mut after = policy.clone();
            after.share_group(&all, Some(&old));
            let changes = diffs.between(policy, &after);
            assert_eq!(applied(policy, &changes, &after), after);
        }
        assert_eq!(diffs.made(), 3, "a delta");
    }

    #[test]
    fn little_is_remembered_and_what_is_asked_for_again_is_kept() {
        let diffs = Diffs::default();
        let shared = group("shared");
        let nothing = NodePolicy::default();
        for n in 0..12_000 {
            let own = group(&format!("group {n}"));
            let policy = node(n, &[&shared, &own]);
            let changes = diffs.between(&nothing, &policy);
            assert_eq!(applied(&nothing, &changes, &policy), policy);
        }
        assert_eq!(diffs.made(), 12_001, "the shared one once");
        let recent = diffs.0.lock().unwrap();
        let most = 2 * GENERATION / ENTRY;
        assert!(recent.young.len() + recent.old.len() <= most + 2);
    }
}
