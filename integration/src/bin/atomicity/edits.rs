//! The edits of the proof, as manifests: what is always denied, what is always allowed, and a large policy that comes,
//! changes and goes between them.

use std::fmt::Write;

/// The pod that floods.
pub(crate) const CLIENT: [u8; 4] = [10, 9, 1, 2];

/// The pod that is flooded.
pub(crate) const SERVER: [u8; 4] = [10, 9, 1, 3];

/// The first of the source addresses that every state denies: inside an `ipBlock`, and inside an `except` of it.
pub(crate) const DENIED: [u8; 4] = [172, 16, 7, 128];

/// The first of the source addresses that every state allows, by a policy that stays.
pub(crate) const ALLOWED: [u8; 4] = [172, 20, 0, 32];

/// How many `ipBlock`s the large policy has.
const BLOCKS: u32 = 50;

/// An edit of the large policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// It becomes this variant; it is created if it is not there.
    Put(u32),
    /// It is deleted.
    Delete,
}

/// Two changes, a deletion, a creation, and so on.
pub(crate) fn sequence(count: u32) -> impl Iterator<Item = Edit> {
    (0..count).map(|number| match number % 4 {
        2 => Edit::Delete,
        _ => Edit::Put(number + 1),
    })
}

/// The namespace, the node, the pods, and the policy that stays: it isolates the server, and allows what is always
/// allowed.
pub(crate) fn cluster() -> String {
    let workload = |name: &str, address: [u8; 4]| {
        let [a, b, c, d] = address;
        format!(
            "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {name}, labels: {{app: {name}}}}}
spec: {{node: node-1, addresses: [{a}.{b}.{c}.{d}]}}
---
"
        )
    };
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: default}}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {{name: node-1}}
spec: {{workloadCIDRs: [10.9.1.0/24]}}
---
{}{}apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: always}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - from: [{{ipBlock: {{cidr: 172.20.0.0/24}}}}]
",
        workload("client", CLIENT),
        workload("server", SERVER),
    )
}

/// A variant of the large policy: 50 `ipBlock`s with two `except`s each, one of which differs from variant to variant.
pub(crate) fn policy(variant: u32) -> String {
    let mut text = String::from(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: large}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - ports: [{port: 9000, protocol: UDP}]
    from:
",
    );
    for block in 0..BLOCKS {
        let hole = if block == variant % BLOCKS {
            16 * (variant / BLOCKS % 4)
        } else {
            64
        };
        writeln!(
            text,
            "    - ipBlock: {{cidr: 172.16.{block}.0/24, except: [172.16.{block}.{hole}/28, 172.16.{block}.128/25]}}"
        )
        .expect("writing to a string succeeds");
    }
    text
}
