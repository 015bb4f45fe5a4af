//! The compiler: turns the cluster's state into what each node must enforce, and an edit into what it changes there.
//! Deterministic and pure: it owns what it derived, and neither reads nor writes anything else.
//!
//! [`full`] is the definition. [`Compiler`] keeps the same result up to date at the cost of what an edit changes. An
//! edit runs along the chain in which everything is derived, and stops where nothing changes:
//!
//! | from | through | to | kept in |
//! |---|---|---|---|
//! | a policy | its podSelector and its rules, by meaning | subject | `subjects` |
//! | a podSelector or a peer | scope (namespaces) and labels | selection | `selections` |
//! | a workload | labels, addresses that are its own | the selections it is in | `workloads` |
//! | a selection | named ports of its members | family of numbers | `families` |
//! | a workload's selections | those that isolate it | profile | `profiles` |
//! | a profile | the union of its rules | class, peer groups | `class`, `classes` |
//! | a workload's profiles and node | endpoint | the node's policy | `nodes` |
//! | the classes of a contested address's claimants | their meet | class, peer groups | `contests`, `classes` |
//! | allowed sources, addresses, workload ranges | the most specific claim | sources of a node | `sources` |
//! | the classes of a source's claimants | their meet, which does not keep | class, peer groups | `sources`, `classes` |
//!
//! Selections are the hub: each is interned, knows its members, and knows who must hear when they change.
//!
//! A class has a union of peers for each range of ports, and neighbours have nearly the same one. So the terms of a union
//! are a persistent set (`trie`) that `union` brings from one range to the next; groups share its nodes, and `holders`
//! finds the groups of a selection through them. Peers of n overlapping ranges cost n log n, and what nodes get.
//!
//! An address that several workloads claim is *contested*. As an endpoint it allows what the policies of all claimants
//! allow (`meet`), on each node that a claimant names. As a peer it is in a group if each claimant is, by whatever term.
//! A contest costs what its claimants and their classes cost (`contests`), and nothing where there is none.
//! A namespace that is no object has no labels; a selector by its name (`kubernetes.io/metadata.name`) means it all the
//! same, since that is another spelling of the namespace itself.

mod by_key;
mod class;
mod classes;
mod compiler;
mod dirty;
mod endpoints;
mod families;
mod full;
mod holders;
mod ids;
mod index;
mod meet;
mod nodes;
mod peers;
mod profiles;
mod propagate;
mod rule;
mod selections;
mod slab;
mod sources;
mod subjects;
mod trie;
mod union;
mod workloads;

pub use compiler::Compiler;
pub use full::full;
