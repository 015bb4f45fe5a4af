//! The bound on the compiled size of a policy: an estimate from above, of the policy and the existing workloads, at the
//! cost of one walk over its ports. Later workloads do not count: they are never refused.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
};

use sallyport_policy::Protocol;

use crate::{
    cluster::Cluster,
    model::{LabelSelector, Labels, NetworkPolicy, Operator, Peer, PortMatch, Rule},
    validate::{MAX_COMPILED_ADDRESSES, PEER_ADDRESSES},
};

/// The most addresses that a workload has: one of each family.
const FAMILIES: u64 = 2;

/// Says that a policy would compile to more than it may, if so.
pub(super) fn exceeded(
    cluster: &Cluster,
    namespace: &str,
    policy: &NetworkPolicy,
) -> Option<String> {
    let directions = [&policy.ingress, &policy.egress];
    let all = u64::try_from(cluster.len()).unwrap_or(u64::MAX) * FAMILIES;
    let rough = |rules: &Vec<Rule>| {
        let ports: usize = rules.iter().map(|rule| 1 + rule.ports.len()).sum();
        let peers: u64 = rules.iter().map(Weight::blocks).sum();
        let terms: usize = rules
            .iter()
            .map(|rule| (1 + rule.ports.len()) * (1 + rule.peers.len()))
            .sum();
        let ports = 3 * u64::try_from(ports).unwrap_or(u64::MAX);
        let terms = 2 * u64::try_from(terms).unwrap_or(u64::MAX);
        ports.saturating_mul(all + peers) + terms.saturating_mul(PEER_ADDRESSES)
    };
    let rough: u64 = directions.into_iter().flatten().map(rough).sum();
    if rough <= MAX_COMPILED_ADDRESSES {
        return None;
    }
    let census = Census::of(cluster, namespace);
    let mut estimate = Estimate::default();
    for (rules, is_egress) in directions.into_iter().zip([false, true]) {
        if let Some(rules) = rules {
            estimate.add(rules, is_egress, &census);
        }
    }
    let Estimate {
        addresses,
        segments,
    } = estimate;
    (addresses > MAX_COMPILED_ADDRESSES).then(|| {
        format!(
            "spec: Forbidden: would compile to {addresses} addresses ({segments} port ranges): must be at most \
             {MAX_COMPILED_ADDRESSES}; use fewer port ranges that overlap, or peers that select fewer pods"
        )
    })
}

/// The entries that a rule adds wherever it is open.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    addresses: u64,
    peers: u64,
}

/// The estimated size of a compiled policy.
#[derive(Debug, Default)]
struct Estimate {
    addresses: u64,
    segments: u64,
}

/// How many addresses workloads have, by namespace.
struct Census<'a> {
    own: &'a str,
    namespaces: BTreeMap<&'a str, (&'a Labels, Count<'a>)>,
    all: u64,
}

/// Addresses, all and by label.
#[derive(Default)]
struct Count<'a> {
    all: u64,
    by_key: HashMap<&'a str, u64>,
    by_label: HashMap<(&'a str, &'a str), u64>,
}

impl Weight {
    /// The ranges of a rule's blocks; those of everyone, where there is no peer.
    fn blocks(rule: &Rule) -> u64 {
        let ranges = rule.peers.iter().map(|peer| match peer {
            Peer::Block { except, .. } => 1 + except.len(),
            Peer::Pods { .. } => 0,
        });
        let ranges: usize = ranges.sum();
        u64::try_from(ranges).unwrap_or(u64::MAX)
    }

    fn of(rule: &Rule, census: &Census<'_>) -> Weight {
        let pods = rule.peers.iter().map(|peer| match peer {
            Peer::Pods { namespaces, pods } => census.count(namespaces.as_ref(), pods),
            Peer::Block { .. } => 0,
        });
        let pods: u64 = pods.sum();
        Weight {
            addresses: pods + Weight::blocks(rule),
            peers: 1 + u64::try_from(rule.peers.len()).unwrap_or(u64::MAX),
        }
    }
}

impl Estimate {
    /// Adds the rules of a direction.
    fn add(&mut self, rules: &[Rule], is_egress: bool, census: &Census<'_>) {
        let weights: Vec<Weight> = rules.iter().map(|rule| Weight::of(rule, census)).collect();
        let most = census.all + rules.iter().map(Weight::blocks).sum::<u64>();
        // An adversary who knew the hashes could find sets of rules that look alike.
        let hashes = RandomState::new();
        let hash = |rule: usize| {
            u128::from(hashes.hash_one(rule)) << 64 | u128::from(hashes.hash_one((rule, "second")))
        };
        let mut known = HashSet::new();
        for protocol in Protocol::ALL {
            let mut edges: BTreeMap<u32, Vec<(usize, bool)>> = BTreeMap::new();
            for (number, rule) in rules.iter().enumerate() {
                if rule.ports.is_empty() {
                    edges.entry(0).or_default().push((number, true));
                }
                for port in rule.ports.iter().filter(|port| port.protocol == protocol) {
                    let (first, last) = match &port.ports {
                        PortMatch::All => (0, u16::MAX),
                        PortMatch::Range(first, last) => (*first, *last),
                        PortMatch::Named(_) => {
                            let weight = weights[number];
                            // Each destination resolves the name for itself; where a pod does, one port is told apart.
                            let peers = if is_egress { weight.peers } else { 1 };
                            self.take(most, peers);
                            continue;
                        }
                    };
                    edges.entry(first.into()).or_default().push((number, true));
                    let next = u32::from(last) + 1;
                    edges.entry(next).or_default().push((number, false));
                }
            }
            let mut open: HashMap<usize, usize> = HashMap::new();
            // The rules that came or went since the last union.
            let mut behind: HashSet<usize> = HashSet::new();
            let (mut state, mut addresses) = (0u128, 0);
            for turns in edges.into_values() {
                for (rule, opens) in turns {
                    let count = open.entry(rule).or_insert(0);
                    let before = *count;
                    *count = if opens { before + 1 } else { before - 1 };
                    if before > 0 && *count > 0 {
                        continue;
                    }
                    if opens {
                        state = state.wrapping_add(hash(rule));
                        addresses += weights[rule].addresses;
                    } else {
                        state = state.wrapping_sub(hash(rule));
                        addresses -= weights[rule].addresses;
                    }
                    if !behind.remove(&rule) {
                        behind.insert(rule);
                    }
                }
                if known.insert(state) {
                    let peers = behind.drain().map(|rule| weights[rule].peers).sum();
                    self.take(addresses.min(most), peers);
                }
            }
        }
    }

    /// One more port range is told apart, and some peers begin or end there.
    fn take(&mut self, addresses: u64, peers: u64) {
        let sum = addresses.saturating_add(peers.saturating_mul(PEER_ADDRESSES));
        self.addresses = self.addresses.saturating_add(sum);
        self.segments += 1;
    }
}

impl<'a> Census<'a> {
    fn of(cluster: &'a Cluster, own: &'a str) -> Census<'a> {
        let mut namespaces: BTreeMap<&str, (&Labels, Count<'_>)> = cluster
            .namespaces()
            .map(|(name, namespace)| (name, (&*namespace.labels, Count::default())))
            .collect();
        let mut all = 0;
        for (key, workload) in cluster.workloads() {
            if workload.host_network {
                continue;
            }
            let Some((_, count)) = namespaces.get_mut(key.namespace.as_str()) else {
                continue;
            };
            let addresses = u64::try_from(workload.addresses.len()).unwrap_or(u64::MAX);
            all += addresses;
            count.all += addresses;
            for (key, value) in &*workload.labels {
                *count.by_key.entry(key).or_insert(0) += addresses;
                *count.by_label.entry((key, value)).or_insert(0) += addresses;
            }
        }
        Census {
            own,
            namespaces,
            all,
        }
    }

    /// At most so many addresses have the pods of a peer: of what each namespace has, those with the label that the
    /// fewest have.
    fn count(&self, namespaces: Option<&LabelSelector>, pods: &LabelSelector) -> u64 {
        let own = self.namespaces.get(self.own);
        match namespaces {
            None => own.map_or(0, |(_, count)| count.of(pods)),
            Some(selector) => self
                .namespaces
                .values()
                .filter(|(labels, _)| selector.matches(labels))
                .map(|(_, count)| count.of(pods))
                .sum(),
        }
    }
}

impl Count<'_> {
    fn of(&self, pods: &LabelSelector) -> u64 {
        let by_label = |key, value| self.by_label.get(&(key, value)).copied().unwrap_or(0);
        let counts = pods.0.iter().filter_map(|requirement| {
            let key = requirement.key.as_str();
            match &requirement.operator {
                Operator::In(values) => Some(
                    values
                        .iter()
                        .map(|value| by_label(key, value.as_str()))
                        .sum(),
                ),
                Operator::Exists => Some(self.by_key.get(key).copied().unwrap_or(0)),
                Operator::NotIn(_) | Operator::DoesNotExist => None,
            }
        });
        counts.min().unwrap_or(self.all)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use sallyport_proto::object::Kind;

    use crate::{manifest, model::Object};
    use sallyport_policy::Revision;

    /// The size of the texts that must be admitted, against 100 workloads.
    const TEXT: usize = 1 << 20;

    fn parsed(text: &str) -> Object {
        let mut objects = manifest::parse(text, "f.json").expect("valid");
        objects.pop().expect("one object")
    }

    /// A namespace with workloads that have an address of each family.
    fn cluster(workloads: usize) -> Cluster {
        let mut cluster = Cluster::default();
        let namespace = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#;
        cluster.put(parsed(namespace), Revision(1));
        for n in 0..workloads {
            let (high, low) = (n / 250, n % 250);
            let pod = format!(
                r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p{n}","namespace":"a","labels":{{"a":"v{n}"}}}},
                "status":{{"podIPs":[{{"ip":"10.0.{high}.{low}"}}]}}}}"#
            );
            cluster.put(parsed(&pod), Revision(1));
        }
        cluster
    }

    /// A policy of rules that are made by number, as many as the text has room for, at most `rules`.
    fn policy(
        direction: &str,
        room: usize,
        rules: usize,
        rule: impl Fn(usize) -> String,
    ) -> (NetworkPolicy, usize) {
        let mut text = format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"name":"x","namespace":"a"}},
            "spec":{{"podSelector":{{}},"policyTypes":["Ingress","Egress"],"{direction}":["#
        );
        let mut count = 0;
        while count < rules && text.len() < room {
            let separator = if count > 0 { "," } else { "" };
            let _ = write!(text, "{separator}{}", rule(count));
            count += 1;
        }
        text += "]}}";
        let object = parsed(&text);
        assert_eq!(object.key.kind, Kind::NetworkPolicy);
        match object.body {
            crate::model::Body::NetworkPolicy(policy) => (policy, count),
            other => panic!("{other:?}"),
        }
    }

    /// A rule for ports that lie within those of the rule before it.
    fn nested(peers: &str, peer: &str, n: usize) -> String {
        let (first, last) = (1 + n, 65_535 - n);
        format!(r#"{{"{peers}":[{peer}],"ports":[{{"port":{first},"endPort":{last}}}]}}"#)
    }

    #[test]
    fn nested_ranges_of_a_mebibyte_are_admitted_against_a_hundred_workloads() {
        let cluster = cluster(100);
        let label = |n: usize| format!(r#"{{"podSelector":{{"matchLabels":{{"a":"v{n}"}}}}}}"#);
        let all_but = |n: usize| {
            format!(
                r#"{{"podSelector":{{"matchExpressions":[{{"key":"a","operator":"NotIn","values":["w{n}"]}}]}}}}"#
            )
        };
        let everywhere = |n: usize| {
            format!(
                r#"{{"namespaceSelector":{{}},"podSelector":{{"matchLabels":{{"a":"v{n}"}}}}}}"#
            )
        };
        let kinds: [&dyn Fn(usize) -> String; 3] = [&label, &all_but, &everywhere];
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for kind in kinds {
                let (policy, rules) =
                    policy(direction, TEXT, 10_000, |n| nested(peers, &kind(n), n));
                assert!(rules > 7_000);
                assert_eq!(exceeded(&cluster, "a", &policy), None);
            }
            let (policy, _) = policy(direction, TEXT, 10_000, |n| {
                let peer = label(n);
                format!(
                    r#"{{"{peers}":[{peer}],"ports":[{{"port":"p{n}"}},{{"port":{}}}]}}"#,
                    n + 1
                )
            });
            assert_eq!(exceeded(&cluster, "a", &policy), None);
        }
    }

    #[test]
    fn fifteen_hundred_nested_ranges_are_admitted_against_three_thousand_workloads() {
        let cluster = cluster(3_000);
        let all_but = |n: usize| {
            format!(
                r#"{{"podSelector":{{"matchExpressions":[{{"key":"a","operator":"NotIn","values":["w{n}"]}}]}}}}"#
            )
        };
        let (policy, _) = policy("ingress", TEXT, 1_500, |n| nested("from", &all_but(n), n));
        assert_eq!(exceeded(&cluster, "a", &policy), None);
    }

    #[test]
    fn what_would_compile_to_more_is_refused_with_words() {
        let cluster = cluster(10_000);
        let all_but = |n: usize| {
            format!(
                r#"{{"podSelector":{{"matchExpressions":[{{"key":"a","operator":"NotIn","values":["w{n}"]}}]}}}}"#
            )
        };
        let (policy, _) = policy("ingress", TEXT, 8_000, |n| nested("from", &all_but(n), n));
        let refused = exceeded(&cluster, "a", &policy).expect("it is refused");
        assert!(
            refused.starts_with("spec: Forbidden: would compile to ")
                && refused.contains("must be at most 20000000"),
            "{refused}"
        );
    }

    #[test]
    fn a_few_labelled_pods_count_as_few_in_a_large_namespace() {
        let cluster = cluster(10_000);
        let label = |n: usize| format!(r#"{{"podSelector":{{"matchLabels":{{"a":"v{n}"}}}}}}"#);
        let (policy, _) = policy("ingress", TEXT, 3_000, |n| nested("from", &label(n), n));
        assert_eq!(exceeded(&cluster, "a", &policy), None);
    }
}
