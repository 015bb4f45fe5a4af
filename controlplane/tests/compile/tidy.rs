//! The law of the canonical form: a node's policy holds what its endpoints and sources need and nothing else, each
//! class spelt in the one way that there is.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sallyport_controlplane::compile::full;
use sallyport_policy::{NodePolicy, Ranges, Source};

use crate::universe::any_cluster;

/// Nothing is there that neither an endpoint nor a source needs, nothing is missing, and every class is in its
/// canonical form.
fn is_tidy(policy: &NodePolicy) -> Result<(), TestCaseError> {
    let endpoints = policy.endpoints().values();
    let of_endpoints = endpoints.map(|endpoint| [endpoint.ingress, endpoint.egress]);
    let sources = policy.sources().iter();
    let of_sources = sources.map(|source| [source.ingress, source.egress]);
    are_tidy_sources(policy)?;
    let used: BTreeSet<_> = of_endpoints.chain(of_sources).flatten().flatten().collect();
    prop_assert_eq!(&used, &policy.classes().keys().copied().collect());
    let classes = policy.classes().values();
    let used: BTreeSet<_> = classes.flat_map(|class| class.groups()).collect();
    prop_assert_eq!(&used, &policy.groups().keys().copied().collect());
    for class in policy.classes().values() {
        for pair in class.ports.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            prop_assert!((a.protocol, a.last) < (b.protocol, b.first));
            let touch = a.protocol == b.protocol && a.last.checked_add(1) == Some(b.first);
            prop_assert!(!touch || a.group != b.group, "neighbours are joined");
        }
    }
    Ok(())
}

/// Each address is in one source and no endpoint, the list is canonical, and no class of a source keeps.
fn are_tidy_sources(policy: &NodePolicy) -> Result<(), TestCaseError> {
    let mut all = Ranges::EMPTY;
    for source in policy.sources().iter() {
        prop_assert!(all.intersection(&source.ranges).is_empty());
        all = all.union(&source.ranges);
        let classes = [source.ingress, source.egress].into_iter().flatten();
        for id in classes {
            prop_assert!(!policy.classes()[&id].keep_established);
        }
    }
    for &address in policy.endpoints().keys() {
        prop_assert!(!all.contains(address));
    }
    let sources = policy.sources().iter().cloned();
    prop_assert_eq!(&Source::canonical(sources), &**policy.sources());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_policy_is_tidy(cluster in any_cluster()) {
        for policy in full(&cluster).values() {
            is_tidy(policy)?;
        }
    }
}
