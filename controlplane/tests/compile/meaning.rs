//! The law of the canonical relation: policies that are renamed, duplicated, split, merged or reordered without
//! changing what they mean change nothing at any node.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sallyport_controlplane::{
    cluster::Cluster,
    compile::{Compiler, full},
    model::{Body, Established, LabelSelector, NetworkPolicy, Object, Rule},
};
use sallyport_policy::Revision;
use sallyport_proto::object::{Kind, ObjectKey};

use crate::{
    universe::any_cluster,
    write::{cluster, namespace, node, object, pod, pods, policy, rule, tcp},
};

/// A policy without its name.
type Spelt = (String, NetworkPolicy);

fn policies(cluster: &Cluster) -> Vec<Spelt> {
    let policies = cluster.policies();
    policies
        .map(|(key, policy)| (key.namespace.clone(), policy.clone()))
        .collect()
}

/// The cluster with these policies for its own, under new names, and the keys of all that changed.
fn respelt(cluster: &Cluster, policies: Vec<Spelt>) -> (Cluster, Vec<ObjectKey>) {
    let mut result = cluster.clone();
    let mut keys: Vec<ObjectKey> = cluster.policies().map(|(key, _)| key.clone()).collect();
    for key in &keys {
        result.remove(key);
    }
    for (n, (namespace, policy)) in policies.into_iter().enumerate() {
        let name = format!("respelt-{n}");
        let object = object(
            Kind::NetworkPolicy,
            &namespace,
            &name,
            Body::NetworkPolicy(policy),
        );
        keys.push(object.key.clone());
        result.put(object, Revision(2));
    }
    (result, keys)
}

/// One rule for each of its peers with each of its ports.
fn split_rule(rule: &Rule) -> Vec<Rule> {
    let each = |peers: &[_], ports: &[_]| Rule {
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    };
    let peers: Vec<&[_]> = match &rule.peers[..] {
        [] => vec![&[]],
        peers => peers.chunks(1).collect(),
    };
    let ports: Vec<&[_]> = match &rule.ports[..] {
        [] => vec![&[]],
        ports => ports.chunks(1).collect(),
    };
    let pairs = peers
        .iter()
        .flat_map(|peers| ports.iter().map(move |ports| (peers, ports)));
    pairs.map(|(peers, ports)| each(peers, ports)).collect()
}

/// One policy for each direction and each part of a rule, and one that only isolates.
fn split((namespace, policy): Spelt) -> Vec<Spelt> {
    let only = |ingress: Option<Vec<Rule>>, egress: Option<Vec<Rule>>| {
        let policy = NetworkPolicy {
            pod_selector: policy.pod_selector.clone(),
            ingress,
            egress,
            established: policy.established,
        };
        (namespace.clone(), policy)
    };
    let mut parts = Vec::new();
    for rules in policy.ingress.iter() {
        parts.push(only(Some(vec![]), None));
        parts.extend(
            rules
                .iter()
                .flat_map(split_rule)
                .map(|rule| only(Some(vec![rule]), None)),
        );
    }
    for rules in policy.egress.iter() {
        parts.push(only(None, Some(vec![])));
        parts.extend(
            rules
                .iter()
                .flat_map(split_rule)
                .map(|rule| only(None, Some(vec![rule]))),
        );
    }
    parts
}

/// One policy for each selector of a namespace and what becomes of established connections.
fn merged(policies: Vec<Spelt>) -> Vec<Spelt> {
    type Key = (String, LabelSelector, Option<Established>);
    let mut merged: BTreeMap<Key, NetworkPolicy> = BTreeMap::new();
    for (namespace, policy) in policies {
        let key = (namespace, policy.pod_selector.clone(), policy.established);
        let Some(sum) = merged.get_mut(&key) else {
            merged.insert(key, policy);
            continue;
        };
        for (sum, part) in [
            (&mut sum.ingress, policy.ingress),
            (&mut sum.egress, policy.egress),
        ] {
            if let Some(part) = part {
                sum.get_or_insert_default().extend(part);
            }
        }
    }
    let merged = merged.into_iter();
    merged
        .map(|((namespace, ..), policy)| (namespace, policy))
        .collect()
}

/// All lists backwards.
fn reversed(mut policies: Vec<Spelt>) -> Vec<Spelt> {
    policies.reverse();
    for (_, policy) in &mut policies {
        for rules in policy.ingress.iter_mut().chain(&mut policy.egress) {
            rules.reverse();
            for rule in rules {
                rule.peers.reverse();
                rule.ports.reverse();
            }
        }
    }
    policies
}

fn same(cluster: &Cluster, spelling: &str, policies: Vec<Spelt>) -> Result<(), TestCaseError> {
    let mut compiler = Compiler::new(cluster);
    let (result, keys) = respelt(cluster, policies);
    let changed = compiler.update(&result, &keys);
    prop_assert_eq!(changed, [], "{}", spelling);
    prop_assert_eq!(full(&result), full(cluster), "{}", spelling);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn another_spelling_is_no_change(cluster in any_cluster()) {
        let policies = policies(&cluster);
        same(&cluster, "renamed", policies.clone())?;
        same(&cluster, "duplicated", [&policies[..], &policies[..]].concat())?;
        same(&cluster, "reordered", reversed(policies.clone()))?;
        same(&cluster, "merged", merged(policies.clone()))?;
        same(&cluster, "split", policies.into_iter().flat_map(split).collect())?;
    }
}

#[test]
fn a_thing_said_a_thousand_times_is_one_class_and_one_group() {
    let mut objects: Vec<Object> = vec![node("n", &[]), namespace("default", "")];
    objects.extend((1..20).map(|n| {
        pod(
            "default",
            &format!("p{n}"),
            "n",
            "app=web",
            &format!("10.0.0.{n}"),
        )
    }));
    let say = |n: usize| {
        let rules = vec![
            rule(&[pods("app=web")], &[tcp(80)]),
            rule(&[pods("")], &[tcp(81)]),
        ];
        let rules = if n.is_multiple_of(2) {
            rules
        } else {
            rules.into_iter().rev().collect()
        };
        policy("default", &format!("x{n}"), "", Some(rules), None)
    };
    let once = full(&cluster(objects.iter().cloned().chain([say(0)])));
    let often = cluster(objects.into_iter().chain((0..1_000).map(say)));
    assert_eq!(full(&often), once);
    assert!(
        Compiler::new(&often)
            .policies()
            .map(|(_, policy)| policy)
            .eq(once.values())
    );
    assert_eq!(
        (once["n"].classes().len(), once["n"].groups().len()),
        (1, 2)
    );
}
