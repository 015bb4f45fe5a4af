//! The compiler: turns the cluster's state into what each node must enforce, and an edit into what it changes there.
//! Deterministic and pure: it owns what it derived, and neither reads nor writes anything else.

mod class;
mod full;
mod peers;
mod rule;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sallyport_proto::policy::NodePolicy;

pub use full::full;

use crate::{cluster::Cluster, model::ObjectKey};

/// Every node's policy, kept up to date edit by edit.
#[derive(Debug)]
pub struct Compiler {
    policies: BTreeMap<String, Arc<NodePolicy>>,
}

impl Compiler {
    /// Compiles a whole cluster.
    pub fn new(cluster: &Cluster) -> Compiler {
        Compiler {
            policies: full(cluster),
        }
    }

    /// Follows a transaction: `cluster` is the state after it, `changed` are the objects that it put or deleted.
    /// Returns the nodes whose policy is another now, or that came or went.
    pub fn update(&mut self, cluster: &Cluster, changed: &[ObjectKey]) -> BTreeSet<String> {
        let _ = changed;
        let old = std::mem::replace(&mut self.policies, full(cluster));
        let names = old.keys().chain(self.policies.keys());
        names
            .filter(|name| old.get(*name) != self.policies.get(*name))
            .cloned()
            .collect()
    }

    /// What a node must enforce; `None` if there is no such node.
    pub fn policy(&self, node: &str) -> Option<&Arc<NodePolicy>> {
        self.policies.get(node)
    }

    /// What every node must enforce, by name.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &Arc<NodePolicy>)> {
        self.policies
            .iter()
            .map(|(name, policy)| (name.as_str(), policy))
    }
}
