//! The interfaces of workloads in the table. The agent takes them from the routes, keeps them through restarts, and
//! repairs them.

use sallyport_enforcer::table::{
    ports::{PORTS, Ports, range_set},
    state,
};
use sallyport_nft_fake::Arrival;

use sallyport_policy::Source;

use super::*;

fn named(names: &[&str]) -> Ports {
    Ports::named(names.iter().copied())
}

/// Interfaces, of which the first may use some addresses.
fn allowing(names: &[&str], first: u8, last: u8) -> Ports {
    let mut ports = named(names);
    let ranges = Ranges::span(stranger(first), stranger(last)).unwrap();
    ports.allow(names[0], &ranges);
    ports
}

/// An address that no workload has.
fn stranger(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

/// Has a workload of the node use addresses of strangers. Otherwise no rule checks whose they are.
fn use_strangers(node: &mut Node) {
    let mut policy = node.agent.installed().policy.clone();
    let source = Source {
        ranges: Ranges::span(stranger(0), stranger(255)).unwrap(),
        ..Source::default()
    };
    policy.set_sources(Arc::new(vec![source]));
    let revision = node
        .agent
        .installed()
        .position()
        .map_or(1, |at| at.revision.next().0);
    node.update(&policy, revision).unwrap();
}

fn in_table(node: &mut Node) -> Ports {
    state::read(&mut node.kernel)
        .unwrap()
        .expect("it is there")
        .ports
}

/// Whether a packet passes that comes in by an interface, and whose source, a stranger's, is behind another.
fn passes(node: &mut Node, interface: &str) -> bool {
    passes_from(node, interface, 1)
}

fn passes_from(node: &mut Node, interface: &str, n: u8) -> bool {
    node.kernel.grace();
    let stranger = Packet::of_connection(stranger(n), address(200), 6, 80);
    let packet = stranger.by(interface, "eth0").at(Arrival::Elsewhere);
    let watched = node.kernel.0.borrow();
    let verdicts = watched.kernel.verdicts_now(&packet);
    assert_ne!(verdicts.can_pass, verdicts.can_drop);
    verdicts.can_pass
}

/// Whether an answer passes that comes in by an interface. An interface of workloads alone may send answers though its
/// address is unknown.
fn answers_from(node: &mut Node, interface: &str, n: u8) -> bool {
    node.kernel.grace();
    let asked = Packet::of_connection(address(200), stranger(n), 6, 80).established();
    let packet = asked.reply().by(interface, "veth1").at(Arrival::Elsewhere);
    let watched = node.kernel.0.borrow();
    watched.kernel.verdicts_now(&packet).can_pass
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
        assert_eq!(passes(&mut node, dropped), ports.names.is_empty());
        assert!(passes(&mut node, passing));
    }
}

/// A new life keeps the interfaces in the table until it learns the present ones. The new life takes none of them for a
/// stranger's work.
#[test]
fn a_restart_keeps_the_interfaces() {
    let mut node = Node::start(Shared::default());
    let before = allowing(&["veth1", "veth2"], 1, 5);
    node.agent.set_ports(&before).unwrap();
    let mut next = Node::start(node.kernel.clone());
    assert_eq!(in_table(&mut next), before);
    assert_eq!(*next.agent.ports(), before);
    assert_eq!(next.agent.drift().repairs, 0);
    assert!(!next.agent.restore().unwrap());
    let after = allowing(&["veth3", "veth2"], 4, 9);
    next.agent.set_ports(&after).unwrap();
    assert_eq!(in_table(&mut next), after);
}

#[test]
fn a_source_that_its_workloads_may_use_passes_by_their_interface_alone() {
    let mut node = Node::new(&mut StdRng::seed_from_u64(4));
    use_strangers(&mut node);
    for (first, last) in [(1, 5), (3, 3), (2, 7)] {
        let ports = allowing(&["veth1", "veth2"], first, last);
        node.agent.set_ports(&ports).unwrap();
        assert_eq!(in_table(&mut node), ports);
        for n in 0..9 {
            let may_use = (first..=last).contains(&n);
            assert_eq!(passes_from(&mut node, "veth1", n), may_use, "{n}");
            assert!(!passes_from(&mut node, "veth2", n), "{n}");
        }
    }
}

/// At interfaces that `--interface` names, the route to each source is checked. The set of interfaces with workloads
/// alone does not contain them.
#[test]
fn a_source_that_workloads_may_use_passes_by_a_named_interface() {
    let mut node = Node::start_with(
        Shared::default(),
        Options {
            strict: true,
            workload_interfaces: vec!["eth*".into()],
            ..Options::default()
        },
    );
    use_strangers(&mut node);
    assert!(!answers_from(&mut node, "eth1", 1));
    let mut ports = Ports::default();
    ports.allow("eth1", &Ranges::span(stranger(1), stranger(5)).unwrap());
    node.agent.set_ports(&ports).unwrap();
    for n in 0..9 {
        let may_use = (1..=5).contains(&n);
        assert_eq!(answers_from(&mut node, "eth1", n), may_use, "{n}");
        assert!(!answers_from(&mut node, "eth2", n), "{n}");
    }
}

#[test]
fn what_others_do_to_the_interfaces_is_repaired() {
    let mut node = Node::new(&mut StdRng::seed_from_u64(2));
    let ports = allowing(&["veth1", "veth2"], 1, 5);
    node.agent.set_ports(&ports).unwrap();
    let range = |name: &str, first, last| {
        vec![Element::InterfaceRange(
            name.into(),
            stranger(first),
            stranger(last),
        )]
    };
    let (set, kind) = (range_set(Family::V4), SetKind::InterfaceRanges(Family::V4));
    let port = |name: &str| vec![Element::Interface(name.to_owned())];
    let disturbances = [
        Command::DeleteElements(PORTS.into(), SetKind::Interfaces, port("veth1")),
        Command::AddElements(PORTS.into(), SetKind::Interfaces, port("eth0")),
        Command::FlushSet(PORTS.into()),
        Command::DeleteElements(set.clone(), kind, range("veth1", 1, 5)),
        Command::AddElements(set.clone(), kind, range("veth1", 6, 9)),
        Command::AddElements(set.clone(), kind, range("veth2", 1, 9)),
        Command::FlushSet(set),
        Command::DeleteTable,
    ];
    for disturbance in disturbances {
        assert!(node.disturb(std::slice::from_ref(&disturbance)));
        assert!(node.agent.restore().unwrap(), "{disturbance:?}");
        assert_eq!(in_table(&mut node), ports, "{disturbance:?}");
    }
}

/// The next try does the work that the kernel did not do, or did without an answer.
#[test]
fn a_change_that_failed_is_made_by_the_next_try() {
    let faults = [
        Fault::Refused(Errno::ENOMEM),
        Fault::AnswerLost,
        Fault::BatchLost,
    ];
    for fault in faults {
        // Addresses come, interfaces go, others come, addresses go.
        for commit in 0..4 {
            let mut node = Node::new(&mut StdRng::seed_from_u64(3));
            let before = allowing(&["veth1", "veth2"], 1, 5);
            node.agent.set_ports(&before).unwrap();
            let ports = allowing(&["veth3", "veth2"], 4, 9);
            node.kernel.0.borrow_mut().fails_after = Some((commit, fault));
            node.agent.set_ports(&ports).unwrap_err();
            node.agent.set_ports(&ports).unwrap();
            assert_eq!(in_table(&mut node), ports, "{fault:?}");
            assert!(!node.agent.restore().unwrap(), "{fault:?}");
        }
    }
}
