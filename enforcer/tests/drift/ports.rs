//! The interfaces of workloads in the table: told by the node's routes, kept through restarts, and mended as all else is.

use std::collections::BTreeSet;

use sallyport_enforcer::{fake::Entry, nft::frame};

use super::*;

fn named(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn in_table(node: &mut Node) -> BTreeSet<String> {
    node.kernel.read().unwrap().expect("it is there").ports
}

/// Whether a packet passes that comes in by an interface, and whose source, a stranger's, is behind another.
fn passes(node: &mut Node, interface: &str) -> bool {
    node.kernel.grace();
    let stranger = Packet::of_connection([192, 0, 2, 1].into(), address(200), 6, 80);
    let packet = stranger.by(interface, "eth0").at(Entry::Elsewhere);
    let watched = node.kernel.0.borrow();
    let verdicts = watched.kernel.verdicts_now(&packet);
    assert_ne!(verdicts.can_pass, verdicts.can_drop);
    verdicts.can_pass
}

#[test]
fn a_strangers_source_is_dropped_at_the_interfaces_of_workloads() {
    let mut node = Node::new(&mut StdRng::seed_from_u64(1));
    assert!(passes(&mut node, "veth1"));
    for (ports, dropped, passing) in [
        (named(&["veth1"]), "veth1", "veth2"),
        (named(&["veth2", "veth3"]), "veth2", "veth1"),
        (named(&[]), "nothing", "veth2"),
    ] {
        node.agent.set_ports(&ports).unwrap();
        assert_eq!(in_table(&mut node), ports);
        assert_eq!(passes(&mut node, dropped), ports.is_empty());
        assert!(passes(&mut node, passing));
    }
}

/// A new life keeps the interfaces that the table has until it is told which there are, and takes none for a stranger's work.
#[test]
fn a_restart_keeps_the_interfaces() {
    let mut node = Node::start(Shared::default());
    node.agent.set_ports(&named(&["veth1", "veth2"])).unwrap();
    let mut next = Node::start(node.kernel.clone());
    assert_eq!(in_table(&mut next), named(&["veth1", "veth2"]));
    assert_eq!(next.agent.drift().repairs, 0);
    assert!(!next.agent.restore().unwrap());
    next.agent.set_ports(&named(&["veth2", "veth3"])).unwrap();
    assert_eq!(in_table(&mut next), named(&["veth2", "veth3"]));
}

#[test]
fn what_others_do_to_the_interfaces_is_mended() {
    let mut node = Node::new(&mut StdRng::seed_from_u64(2));
    let ports = named(&["veth1", "veth2"]);
    node.agent.set_ports(&ports).unwrap();
    let port = |name: &str| vec![Element::Port(name.to_owned())];
    let disturbances = [
        Command::DeleteElements(frame::PORTS.into(), SetKind::Ports, port("veth1")),
        Command::AddElements(frame::PORTS.into(), SetKind::Ports, port("eth0")),
        Command::FlushSet(frame::PORTS.into()),
        Command::DeleteTable,
    ];
    for disturbance in disturbances {
        assert!(node.disturb(std::slice::from_ref(&disturbance)));
        assert!(node.agent.restore().unwrap(), "{disturbance}");
        assert_eq!(in_table(&mut node), ports, "{disturbance}");
    }
}

/// What the kernel did not do, or did without its answer being heard, the next try does.
#[test]
fn a_change_that_failed_is_made_by_the_next_try() {
    let faults = [
        Fault::Refused(Errno::ENOMEM),
        Fault::AnswerLost,
        Fault::BatchLost,
    ];
    for fault in faults {
        // The first commit takes interfaces out, the second puts others in.
        for commit in 0..2 {
            let mut node = Node::new(&mut StdRng::seed_from_u64(3));
            node.agent.set_ports(&named(&["veth1", "veth2"])).unwrap();
            let ports = named(&["veth2", "veth3"]);
            node.kernel.0.borrow_mut().fails_after = Some((commit, fault));
            node.agent.set_ports(&ports).unwrap_err();
            node.agent.set_ports(&ports).unwrap();
            assert_eq!(in_table(&mut node), ports, "{fault:?}");
            assert!(!node.agent.restore().unwrap(), "{fault:?}");
        }
    }
}
