//! What becomes of established connections: the strictest of the policies that isolate a pod says so, in each direction
//! for itself, and the strictest of the pods that claim an address; held against random clusters.

use proptest::prelude::*;
use sallyport_controlplane::{
    cluster::Cluster,
    compile::full,
    model::{Established, NetworkPolicy, Workload},
};
use sallyport_policy::Direction;
use sallyport_proto::object::ObjectKey;

use crate::{contests::alone, universe::any_cluster};

fn isolates(policy: &NetworkPolicy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.ingress.is_some(),
        Direction::Egress => policy.egress.is_some(),
    }
}

/// They go on in a direction if every policy that isolates the pod there says so, or the cluster for it.
fn keeps(cluster: &Cluster, direction: Direction, key: &ObjectKey, pod: &Workload) -> bool {
    cluster
        .policies()
        .filter(|(policy_key, _)| policy_key.namespace == key.namespace)
        .filter(|(_, policy)| policy.pod_selector.matches(&pod.labels))
        .filter(|(_, policy)| isolates(policy, direction))
        .all(|(_, policy)| match policy.established {
            Some(mode) => mode == Established::Keep,
            None => cluster.established() == Established::Keep,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn the_strictest_policy_counts(cluster in any_cluster()) {
        for (node, policy) in full(&cluster) {
            for (&address, endpoint) in policy.endpoints() {
                let holds = |(_, pod): &(&ObjectKey, &Workload)| {
                    !pod.host_network && pod.addresses.contains(&address)
                };
                let claimants: Vec<_> = cluster.workloads().filter(holds).collect();
                prop_assert!(!claimants.is_empty());
                for direction in Direction::BOTH {
                    // A class that restricts nothing is none, whatever its policies say of what they would cut.
                    let restricts = |key: &ObjectKey| {
                        let alone = full(&alone(&cluster, address, key));
                        alone["n0"].endpoints()[&address].class(direction).is_some()
                    };
                    let mut of = claimants.iter();
                    let should = endpoint.class(direction).is_none()
                        || of.all(|&(key, pod)| keeps(&cluster, direction, key, pod) || !restricts(key));
                    prop_assert_eq!(policy.keeps(direction, address), should, "{} {} {}", node, direction, address);
                }
            }
        }
    }
}
