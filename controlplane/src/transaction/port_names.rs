//! The number of times that a policy's ingress rules would be compiled: once for each different meaning of their port
//! names for the pods that it selects. Later workloads do not count: they are never refused.

use std::collections::{BTreeMap, HashMap, HashSet};

use sallyport_policy::Protocol;

use crate::{
    cluster::Cluster,
    model::{Body, NetworkPolicy, PortMatch, Workload},
    validate::MAX_COMPILED_RULES,
};

/// Says that a policy's ingress rules would be compiled too often, if so.
pub(super) fn exceeded(
    cluster: &Cluster,
    namespace: &str,
    policy: &NetworkPolicy,
) -> Option<String> {
    let rules = policy.ingress.as_ref()?;
    let names: HashMap<(&str, Protocol), usize> = rules
        .iter()
        .flat_map(|rule| &rule.ports)
        .filter_map(|port| match &port.ports {
            PortMatch::Named(name) => Some((&**name, port.protocol)),
            _ => None,
        })
        .zip(0..)
        .collect();
    if names.is_empty() || rules.len().saturating_mul(cluster.len()) <= MAX_COMPILED_RULES {
        return None;
    }
    let meaning = |workload: &Workload| {
        // The first port of a name counts, and a map keeps the last.
        let ports = workload.ports.iter().rev().filter_map(|port| {
            let name = names.get(&(&*port.name, port.protocol))?;
            Some((*name, port.port))
        });
        ports.collect::<BTreeMap<usize, u16>>()
    };
    let meanings: HashSet<_> = cluster
        .within(namespace)
        .filter_map(|stored| match &stored.object.body {
            Body::Workload(workload) => Some(workload),
            _ => None,
        })
        .filter(|workload| !workload.host_network)
        .filter(|workload| policy.pod_selector.matches(&workload.labels))
        .map(meaning)
        .collect();
    let times = meanings.len();
    (rules.len().saturating_mul(times) > MAX_COMPILED_RULES).then(|| {
        format!(
            "spec.ingress: Forbidden: has {} rules, whose port names mean {times} different sets of numbers to the pods \
             that it selects: the product must be at most {MAX_COMPILED_RULES}; use port numbers, or fewer rules in a \
             policy with port names",
            rules.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::{manifest, model::Object};
    use sallyport_policy::Revision;

    fn parsed(text: &str) -> Object {
        let mut objects = manifest::parse(text, "f.json").expect("valid");
        objects.pop().expect("one object")
    }

    /// A namespace with pods, each of which gives the name `web` to another port, up to a number of them.
    fn cluster(pods: usize, numbers: usize) -> Cluster {
        let mut cluster = Cluster::default();
        let namespace = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#;
        cluster.put(parsed(namespace), Revision(1));
        for n in 0..pods {
            let port = 1 + n % numbers;
            cluster.put(
                parsed(&format!(
                    r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"p{n}","namespace":"a"}},"spec":{{"containers":
                    [{{"name":"c","ports":[{{"name":"web","containerPort":{port}}}]}}]}}}}"#
                )),
                Revision(1),
            );
        }
        cluster
    }

    fn policy(rules: usize, port: &str) -> NetworkPolicy {
        let mut text = String::new();
        for n in 0..rules {
            let separator = if n > 0 { "," } else { "" };
            let _ = write!(
                text,
                r#"{separator}{{"from":[{{"podSelector":{{"matchLabels":{{"a":"v{n}"}}}}}}],"ports":[{{"port":{port}}}]}}"#
            );
        }
        let object = parsed(&format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"name":"x","namespace":"a"}},
            "spec":{{"podSelector":{{}},"ingress":[{text}]}}}}"#
        ));
        match object.body {
            Body::NetworkPolicy(policy) => policy,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn as_many_rules_as_there_may_be_are_admitted_for_a_hundred_meanings() {
        let cluster = cluster(3_000, 100);
        assert_eq!(
            exceeded(&cluster, "a", &policy(10_000, r#""web""#)),
            None,
            "pods that mean the same are compiled once"
        );
    }

    #[test]
    fn rules_times_meanings_are_bounded() {
        let cluster = cluster(3_000, 3_000);
        let refused = exceeded(&cluster, "a", &policy(400, r#""web""#)).expect("it is refused");
        assert!(
            refused.starts_with("spec.ingress: Forbidden: has 400 rules")
                && refused.contains("3000 different")
                && refused.contains("at most 1000000"),
            "{refused}"
        );
        assert_eq!(exceeded(&cluster, "a", &policy(400, "80")), None);
        assert_eq!(exceeded(&cluster, "a", &policy(300, r#""web""#)), None);
        assert_eq!(exceeded(&cluster, "b", &policy(400, r#""web""#)), None);
    }
}
