//! The compiler: derives the policy of each node from the cluster's state, and the changes from a transaction.
//! Deterministic and pure: it owns the derived entries, and neither reads nor writes anything else.
//!
//! `full` is the definition, which tests hold [`Compiler`] to: only the feature `reference` compiles it. [`Compiler`]
//! keeps the same result up to date at the cost of the change. An edit runs down the chain and stops where nothing
//! changes. Each box is a file.
//!
//! ```text
//!   Namespace     Pod, Workload     NetworkPolicy                  Node
//!       |               |                 |                          |
//!       v               v                 v                          |
//! +------------+  +-----------+    +-------------+                   |
//! | selections |<-| workloads |    | policy_sets |                   |
//! +------------+  +-----------+    +-------------+                   |
//!       |               |             |       | egress port names    |
//!       |               |             |       v                      |
//!       |               |             |  +-------------+             |
//!       +---------------|-------------|->| named_ports |             |
//!       | members       |             |  +-------------+             |
//!       v               |             |       | numbers              |
//! +------------+        |             |       |                      |
//! |  profiles  |<-------|-------------+-------+                      |
//! +------------+        | addresses, node                            |
//!       | union of      |                                            |
//!       | rules         +-----------------+                          |
//!       v               |                 v                          |
//! +------------+        |   +-----------------------+                |
//! |  classes   |--------|-->|  propagate/contests,  |<---------------+
//! +------------+        |   |  propagate/sources    | workload ranges|
//!       | ClassSlot     |   +-----------------------+                |
//!       |               |                 | meets                    |
//!       v               v                 v                          v
//! +---------------------------------------------------------------------+
//! |        nodes: NodeChanges in, the NodePolicy of each node out       |
//! +---------------------------------------------------------------------+
//! ```
//!
//! `compiler` owns all entries and marks the objects of a transaction in the set `dirty`. `propagate` runs the chain.
//! Files import only files below them. Each file that remembers an entry of another needs its id alone (`ids`).
//!
//! Selections are the hub: each is interned, and knows its members and the entries that depend on them.
//!
//! A class has a union of peers for each range of ports, and neighbours have nearly the same one. So the terms of a
//! union are a persistent set (`trie`) that `union` brings from one range to the next; groups share its nodes, and
//! `holders` finds the groups of a selection through them. Peers of n overlapping ranges cost n log n, and what nodes
//! get.
//!
//! An address that several workloads claim is *contested*. As an endpoint it allows what the policies of all claimants
//! allow (`meet`), on each node that a claimant names. As a peer it is in a group if each claimant is, by whatever
//! term. A contest costs what its claimants and their classes cost (`propagate/contests`), and nothing where there is
//! none. A namespace that is no object has no labels; a selector by its name (`kubernetes.io/metadata.name`) means it
//! all the same, since that is another spelling of the namespace itself.

mod by_key;
mod class;
mod classes;
mod compiler;
mod dirty;
mod endpoints;
#[cfg(feature = "reference")]
mod full;
mod holders;
mod ids;
mod index;
mod meet;
mod named_ports;
mod nodes;
mod peers;
mod policy_sets;
mod profiles;
mod propagate;
mod rule;
mod selections;
mod slab;
mod sources;
mod trie;
mod union;
mod workloads;

pub use compiler::Compiler;
#[cfg(feature = "reference")]
pub use full::full;
