//! The law of the canonical form: a node's policy holds what its endpoints and sources need and nothing else, each class spelt in the
//! one way that there is.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sallyport_controlplane::compile::full;
use sallyport_proto::policy::NodePolicy;

use crate::universe::any_cluster;

/// Nothing is there that neither an endpoint nor a source needs, nothing is missing, and every class is in its canonical form.
fn is_tidy(policy: &NodePolicy) -> Result<(), TestCaseError> {
    let endpoints = policy.endpoints().values();
    let of_endpoints = endpoints.map(|endpoint| [endpoint.ingress, endpoint.egress]);
    let sources = policy.sources().iter();
    let of_sources = sources.map(|source| [source.ingress, source.egress]);
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_policy_is_tidy(cluster in any_cluster()) {
        for policy in full(&cluster).values() {
            is_tidy(policy)?;
        }
    }
}
