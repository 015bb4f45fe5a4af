//! The agent deletes in batches the objects that updates leave behind. An object that the kernel does not delete is
//! tried again.

use std::collections::BTreeSet;

use super::*;

/// The number of groups that come and go.
const GROUPS: u16 = 300;

/// A policy that lets the members of many groups reach a workload.
fn policy_of_groups(numbers: std::ops::Range<u16>) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let rules = numbers.map(|n| {
        let description = format!("pods default/group={n}");
        let group = GroupId::of([description.as_str()], &Ranges::EMPTY);
        let mut peers = PeerGroup::new(description, Ranges::EMPTY);
        peers.addresses = [address(9)].into_iter().collect();
        policy.set_group(group, Arc::new(peers));
        PortRule {
            protocol: Protocol::Tcp,
            first: n + 1,
            last: n + 1,
            group,
        }
    });
    let class = Class {
        direction: Direction::Ingress,
        keep_established: false,
        other: None,
        ports: rules.collect(),
    };
    policy.add_class(class.id(), Arc::new(class.clone()));
    let endpoint = Endpoint {
        namespace: "default".into(),
        name: "pod".into(),
        uid: String::new(),
        interface: String::new(),
        ingress: Some(class.id()),
        egress: None,
    };
    policy.set_endpoint(address(1), Arc::new(endpoint));
    policy
}

/// A node that released many groups, and has one.
fn node() -> Node {
    let mut node = Node::start(Shared::default());
    node.update(&policy_of_groups(0..GROUPS), 1).unwrap();
    node.update(&policy_of_groups(GROUPS..GROUPS + 1), 2)
        .unwrap();
    node
}

/// The chains and sets of the table.
fn objects(node: &mut Node) -> (BTreeSet<String>, BTreeSet<String>) {
    let table = node.kernel.outline().unwrap().expect("it is there");
    (table.chains, table.sets)
}

/// The objects that must be left.
fn expected() -> (BTreeSet<String>, BTreeSet<String>) {
    let mut node = node();
    node.agent.clean();
    assert_eq!(node.agent.left_behind(), 0);
    objects(&mut node)
}

#[test]
fn what_is_left_behind_is_deleted_in_batches() {
    let mut node = node();
    let all = objects(&mut node);
    node.kernel.0.borrow_mut().commits = 0;
    node.agent.clean();
    let commits = node.kernel.0.borrow().commits;
    assert_eq!(commits, 4, "of 256 commands each");
    let (chains, sets) = objects(&mut node);
    let gone = (all.0.len() - chains.len(), all.1.len() - sets.len());
    // The chains of the class and of the class in between go, too.
    assert_eq!(gone, (usize::from(GROUPS) + 2, usize::from(GROUPS)));
    let fresh = policy_of_groups(GROUPS..GROUPS + 1);
    let mut other = Node::start(Shared::default());
    other.update(&fresh, 1).unwrap();
    other.agent.clean();
    let (other_chains, other_sets) = objects(&mut other);
    assert_eq!(
        (chains.len(), sets.len()),
        (other_chains.len(), other_sets.len())
    );
}

/// Any batch may fail, whether it was executed or not. The rest is tried again after the next update, and not before.
#[test]
fn what_is_not_deleted_stays_garbage() {
    let expected = expected();
    let faults = [
        Fault::Refused(Errno::EBUSY),
        Fault::AnswerLost,
        Fault::BatchLost,
    ];
    for (after, fault) in (0..3).flat_map(|after| faults.map(|fault| (after, fault))) {
        let mut node = node();
        node.kernel.0.borrow_mut().fails_after = Some((after, fault));
        node.agent.clean();
        assert_ne!(objects(&mut node), expected, "{fault:?} after {after}");
        assert_eq!(node.agent.left_behind(), 0, "{fault:?} after {after}");
        node.kernel.0.borrow_mut().commits = 0;
        node.agent.clean();
        assert_eq!(node.kernel.0.borrow().commits, 0, "{fault:?} after {after}");
        // Garbage is no change by other processes.
        assert!(!node.agent.restore().unwrap(), "{fault:?} after {after}");
        node.update(&policy_of_groups(GROUPS..GROUPS + 1), 3)
            .unwrap();
        assert!(node.agent.left_behind() > 0, "{fault:?} after {after}");
        node.agent.clean();
        assert_eq!(objects(&mut node), expected, "{fault:?} after {after}");
        assert_eq!(node.agent.left_behind(), 0, "{fault:?} after {after}");
    }
}
