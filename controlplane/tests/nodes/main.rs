//! The coordinator, driven by hand and given the time: mistakes that the simulation found, each in few steps.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

mod judging;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_controlplane::nodes::{
    Affected, Coordinator, Hello, Membership, Settings, Start, State, StreamId, UnreachablePolicy,
};
use sallyport_policy::{
    Class, Direction, Endpoint, Epoch, GroupId, NodeName, NodePolicy, PeerGroup, PortRule,
    Position, Protocol, Ranges, Revision, UnknownAddresses,
};

const LEASE: Duration = Duration::from_millis(400);

/// A policy that lets these peers reach 10.0.0.1.
fn allow(peers: &[u8]) -> Arc<NodePolicy> {
    let mut policy = NodePolicy::default();
    let group = GroupId::of(["pods a/app=x"], &Ranges::EMPTY);
    let mut members = PeerGroup::new("pods a/app=x".into(), Ranges::EMPTY);
    members.addresses = peers.iter().map(|&n| IpAddr::from([10, 0, 1, n])).collect();
    policy.set_group(group, Arc::new(members));
    let class = Class {
        direction: Direction::Ingress,
        keep_established: false,
        other: None,
        ports: vec![PortRule {
            protocol: Protocol::Tcp,
            first: 80,
            last: 80,
            group,
        }],
    };
    let id = class.id();
    policy.add_class(id, Arc::new(class));
    let endpoint = Endpoint {
        namespace: "a".into(),
        name: "web".into(),
        uid: String::new(),
        interface: String::new(),
        ingress: Some(id),
        egress: None,
    };
    policy.set_endpoint([10, 0, 0, 1].into(), Arc::new(endpoint));
    Arc::new(policy)
}

fn position(revision: Revision, policy: &NodePolicy) -> Position {
    Position {
        epoch: Epoch(1),
        revision,
        digest: policy.digest(),
    }
}

fn hello(name: &str, window: &[Position], lease: Duration) -> Hello {
    Hello {
        name: name.into(),
        window: window.to_vec(),
        version: "test".into(),
        unknown: UnknownAddresses::drop(),
        lease,
        enforcer: None,
        health: None,
    }
}

/// A coordinator, and the time.
struct World {
    coordinator: Coordinator,
    now: Instant,
}

impl World {
    /// A control plane that starts at a revision, with nodes that joined before.
    fn start(
        (revision, settled): (Revision, Revision),
        unreachable: UnreachablePolicy,
        (joined, leased): (&[&str], bool),
        policies: &[(&str, Arc<NodePolicy>)],
    ) -> World {
        let now = Instant::now();
        let joined = joined
            .iter()
            .map(|&name| (NodeName::from(name), leased.into()));
        let start = Start {
            epoch: Epoch(1),
            revision,
            settled,
            joined: joined.collect::<BTreeMap<_, _>>(),
            left: BTreeMap::new(),
        };
        let settings = Settings {
            unreachable,
            patience: Duration::from_millis(300),
            lease_longest: LEASE,
            ..Settings::default()
        };
        let policies = policies
            .iter()
            .map(|(name, policy)| (NodeName::from(*name), policy.clone()));
        World {
            coordinator: Coordinator::new(start, settings, policies, now),
            now,
        }
    }

    fn connect(&mut self, name: &str, window: &[Position], lease: Duration) -> u64 {
        let hello = hello(name, window, lease);
        let session = self.coordinator.accept();
        self.coordinator.connect(session, hello, self.now).unwrap();
        let leased = !lease.is_zero();
        let membership = Membership::Joined { leased };
        if self.coordinator.membership(&name.into()) != membership {
            self.coordinator.join(&name.into(), membership, self.now);
        }
        session.0
    }

    fn commit(&mut self, revision: Revision, policies: &[(&str, Arc<NodePolicy>)]) {
        let policies = policies
            .iter()
            .map(|(name, policy)| (NodeName::from(*name), policy.clone()));
        let affected = Affected {
            policies: policies.collect(),
            gone: Vec::new(),
        };
        let prepared = self.coordinator.prepare(affected);
        self.coordinator.commit(revision, prepared, None, self.now);
    }

    /// What is sent to a node: the versions that it is to hold then.
    fn sent(&mut self, name: &str, session: u64) -> Option<Vec<Position>> {
        let update = self
            .coordinator
            .next_update(&name.into(), StreamId(session), false, self.now)
            .unwrap()?;
        let mut window = update.keep;
        window.push(update.target);
        window.sort();
        Some(window)
    }

    /// Sends and acknowledges all that there is to send.
    fn follow(&mut self, name: &str, session: u64) {
        while let Some(window) = self.sent(name, session) {
            self.coordinator
                .acked(&name.into(), StreamId(session), &window, self.now)
                .unwrap();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.coordinator.advance(self.now);
    }

    fn lease(&mut self, name: &str, session: u64) -> bool {
        self.coordinator
            .lease(&name.into(), StreamId(session), self.now)
            .unwrap()
    }
}

const NONE: Duration = Duration::ZERO;

#[test]
fn a_restart_in_the_middle_knows_where_the_middle_began() {
    let world = World::start(
        (Revision(6), Revision(3)),
        UnreachablePolicy::Wait,
        (&["n"], false),
        &[("n", allow(&[1]))],
    );
    let rollouts = world.coordinator.rollouts(world.now);
    assert_eq!(
        (rollouts[0].first, rollouts[0].last),
        (Revision(4), Revision(6))
    );
    assert_eq!(world.coordinator.settled(), Revision(3));
}

/// Which of the revisions up to 6 changed n is not known; it holds the first.
#[test]
fn after_a_restart_an_old_version_enforces_nothing_later() {
    let start = |settled| {
        World::start(
            (Revision(6), settled),
            UnreachablePolicy::Wait,
            (&["n"], false),
            &[("n", allow(&[1]))],
        )
    };
    for settled in [3, 6] {
        let mut world = start(Revision(settled));
        world.commit(Revision(7), &[("n", allow(&[2]))]);
        world.connect("n", &[position(Revision(1), &allow(&[3]))], NONE);
        assert!(
            !world.coordinator.enforces(Revision(6)),
            "settled {settled}"
        );
        assert!(
            !world.coordinator.enforces(Revision(2)),
            "settled {settled}"
        );
    }
    // What it holds is what it had to hold when the control plane started: only what came later is missing.
    let mut world = start(Revision(6));
    world.commit(Revision(7), &[("n", allow(&[2]))]);
    world.connect("n", &[position(Revision(1), &allow(&[1]))], NONE);
    assert!(world.coordinator.enforces(Revision(6)));
    assert!(!world.coordinator.enforces(Revision(7)));
}

#[test]
fn no_lease_for_a_node_that_a_rollout_goes_on_without() {
    let nodes = [("n", allow(&[1])), ("m", allow(&[1]))];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Fence,
        (&[], false),
        &nodes,
    );
    let n = world.connect("n", &[], LEASE);
    let m = world.connect("m", &[], LEASE);
    world.follow("n", n);
    world.follow("m", m);
    // Neither has a lease; n answers, and packets are drained.
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    world.follow("n", n);
    assert!(!world.lease("m", m), "it passes without m");
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.status(world.now)[0].state, State::Fenced);
    world.follow("m", m);
    assert!(world.lease("m", m));
}

#[test]
fn after_a_restart_a_lease_is_for_who_holds_what_the_others_do() {
    let nodes = [("n", allow(&[2]))];
    let mut world = World::start(
        (Revision(2), Revision(2)),
        UnreachablePolicy::Fence,
        (&["n"], true),
        &nodes,
    );
    let n = world.connect("n", &[position(Revision(1), &allow(&[1]))], LEASE);
    assert!(!world.lease("n", n), "it may have been fenced");
    world.follow("n", n);
    assert!(world.lease("n", n));
}

/// n holds what is the latest again; it may have been fenced when something else was, which others still hold.
#[test]
fn after_a_restart_in_the_middle_the_latest_version_proves_nothing() {
    let nodes = [("n", allow(&[1])), ("m", allow(&[2]))];
    let joined: (&[&str], bool) = (&["n", "m"], true);
    let mut world = World::start(
        (Revision(4), Revision(3)),
        UnreachablePolicy::Fence,
        joined,
        &nodes,
    );
    let n = world.connect("n", &[position(Revision(1), &allow(&[1]))], LEASE);
    assert!(!world.lease("n", n));
    let m = world.connect("m", &[position(Revision(3), &allow(&[3]))], LEASE);
    world.follow("m", m);
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(4));
    assert!(world.lease("n", n));
}

#[test]
fn who_begins_with_nothing_waits_until_it_is_known_with_what() {
    let nodes = [("n", allow(&[2])), ("m", allow(&[2]))];
    let mut world = World::start(
        (Revision(2), Revision(1)),
        UnreachablePolicy::Wait,
        (&["n"], false),
        &nodes,
    );
    let m = world.connect("m", &[], NONE);
    assert_eq!(world.sent("m", m), None, "n may hold revision 1");
    let n = world.connect("n", &[position(Revision(1), &allow(&[1]))], NONE);
    world.follow("n", n);
    assert_eq!(
        world.coordinator.rollouts(world.now)[0].waits_for,
        [] as [&str; 0]
    );
    world.pass(Duration::from_millis(19));
    assert_eq!(world.sent("m", m), None, "packets are drained first");
    world.pass(Duration::from_millis(1));
    assert_eq!(
        world.sent("m", m),
        Some(vec![position(Revision(2), &allow(&[2]))])
    );
}

/// n has revision 3's policy, and is about to let go of it: it is skipped, and not back.
#[test]
fn who_is_skipped_is_back_when_it_holds_for_sure_what_it_must() {
    let nodes = [("n", allow(&[1])), ("m", allow(&[1]))];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Skip,
        (&[], false),
        &nodes,
    );
    let n = world.connect("n", &[], NONE);
    let m = world.connect("m", &[], NONE);
    world.follow("n", n);
    world.follow("m", m);
    world.commit(Revision(2), &[("n", allow(&[1, 2]))]);
    assert!(world.sent("n", n).is_some());
    world.commit(Revision(3), &[("n", allow(&[1])), ("m", allow(&[3]))]);
    world.follow("m", m);
    world.pass(Duration::from_millis(301));
    world.pass(Duration::from_millis(20));
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(3));
    let skipped: Vec<NodeName> = world
        .coordinator
        .bypassed(world.now)
        .into_iter()
        .map(|node| node.name)
        .collect();
    assert_eq!(skipped, ["n"]);
}

/// It comes back while the others' packets are drained: its own count, too.
#[test]
fn who_comes_back_before_the_barrier_is_drained() {
    let nodes = [("n", allow(&[1])), ("m", allow(&[1]))];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Skip,
        (&[], false),
        &nodes,
    );
    let n = world.connect("n", &[], NONE);
    let m = world.connect("m", &[], NONE);
    world.follow("n", n);
    world.follow("m", m);
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    let window = world.sent("n", n).unwrap();
    world.follow("m", m);
    world.pass(Duration::from_millis(301));
    world.pass(Duration::from_millis(19));
    world
        .coordinator
        .acked(&"n".into(), StreamId(n), &window, world.now)
        .unwrap();
    world.pass(Duration::from_millis(19));
    assert_eq!(world.coordinator.settled(), Revision(1));
    world.pass(Duration::from_millis(1));
    assert_eq!(world.coordinator.settled(), Revision(2));
}

/// n has 2's policy, which is 4's; m has 3's. Together they may let pass what 3 denies, and 4.
#[test]
fn what_nodes_hold_back_is_not_enforced() {
    let nodes = ["n", "m", "o"].map(|name| (name, allow(&[1])));
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Wait,
        (&[], false),
        &nodes,
    );
    let [n, m, o] = ["n", "m", "o"].map(|name| world.connect(name, &[], NONE));
    for (name, session) in [("n", n), ("m", m), ("o", o)] {
        world.follow(name, session);
    }
    world.commit(Revision(2), &[("n", allow(&[2])), ("o", allow(&[2]))]);
    world.follow("n", n);
    world.follow("o", o);
    world.commit(Revision(3), &[("n", allow(&[4]))]);
    world.follow("n", n);
    world.commit(Revision(4), &[("n", allow(&[2])), ("m", allow(&[5]))]);
    world.follow("n", n);
    world.pass(Duration::from_millis(20));
    world.follow("n", n);
    world.follow("o", o);
    assert_eq!(world.coordinator.settled(), Revision(2));
    assert!(world.coordinator.enforces(Revision(2)));
    assert!(
        !world.coordinator.enforces(Revision(3)),
        "m has yet to take away"
    );
    let lagging = world.coordinator.lagging(Revision(3), world.now);
    let lagging: Vec<_> = lagging.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(lagging, ["m"], "though it enforces 3 itself");
    world.follow("m", m);
    world.pass(Duration::from_millis(20));
    world.follow("m", m);
    assert!(world.coordinator.enforces(Revision(4)));
}

/// n went on to 3's policy alone. What 4 changes there has to wait for m: 3 does not, and n is not asked to go back.
#[test]
fn who_went_alone_does_not_go_back() {
    let nodes = [("n", allow(&[1])), ("m", allow(&[3]))];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Wait,
        (&[], false),
        &nodes,
    );
    let n = world.connect("n", &[], NONE);
    let m = world.connect("m", &[], NONE);
    world.follow("n", n);
    world.follow("m", m);
    world.commit(Revision(2), &[("m", allow(&[4]))]);
    world.commit(Revision(3), &[("n", allow(&[2]))]);
    world.follow("n", n);
    world.commit(Revision(4), &[("n", allow(&[3]))]);
    let both = vec![
        position(Revision(3), &allow(&[2])),
        position(Revision(4), &allow(&[3])),
    ];
    assert_eq!(world.sent("n", n), Some(both.clone()));
    world
        .coordinator
        .acked(&"n".into(), StreamId(n), &both, world.now)
        .unwrap();
    world.follow("m", m);
    world.pass(Duration::from_millis(20));
    world.follow("n", n);
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(4));
}

/// What n said on a stream that it gave up comes after what it said on the next one: that it holds nothing, so that nobody
/// would have to wait for it.
#[test]
fn a_late_hello_is_not_heard() {
    let nodes = [("n", allow(&[2])), ("m", allow(&[2]))];
    let mut world = World::start(
        (Revision(2), Revision(1)),
        UnreachablePolicy::Wait,
        (&["n", "m"], false),
        &nodes,
    );
    let late = world.coordinator.accept();
    let one = [position(Revision(1), &allow(&[1]))];
    let n = world.connect("n", &one, NONE);

    let heard = world
        .coordinator
        .connect(late, hello("n", &[], NONE), world.now);
    let refusal = heard.unwrap_err().to_string();
    assert_eq!(refusal, "node \"n\" connected again: this stream is over");
    let m = world.connect("m", &one, NONE);
    world.follow("m", m);
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.rollouts(world.now)[0].waits_for, ["n"]);
    world.follow("n", n);
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(2));
}

/// n holds 4's policy, and 5 waits for o alone: 5 takes no more away at n. It may not let go of 4 before it holds 5.
#[test]
fn what_a_barrier_counts_on_is_held_until_there_is_more() {
    let nodes = [
        ("n", allow(&[1])),
        ("m", allow(&[1, 9])),
        ("o", allow(&[1, 9])),
    ];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Wait,
        (&[], false),
        &nodes,
    );
    let [n, m, o] = ["n", "m", "o"].map(|name| world.connect(name, &[], NONE));
    for (name, session) in [("n", n), ("m", m), ("o", o)] {
        world.follow(name, session);
    }
    world.commit(Revision(2), &[("n", allow(&[1, 2])), ("m", allow(&[1]))]);
    world.commit(Revision(3), &[("n", allow(&[2])), ("o", allow(&[1]))]);
    world.follow("n", n);
    world.commit(Revision(4), &[("n", allow(&[2, 5]))]);
    world.follow("n", n);
    world.commit(Revision(5), &[("n", allow(&[2, 5, 6]))]);
    world.follow("m", m);
    world.pass(Duration::from_millis(20));
    assert_eq!(
        world.coordinator.settled(),
        Revision(2),
        "o has yet to take away"
    );
    let last = |window: &[Position]| window.last().map(|held| held.revision);
    let first = world.sent("n", n).unwrap();
    assert_eq!(last(&first), Some(Revision(4)), "{first:?}");
    world
        .coordinator
        .acked(&"n".into(), StreamId(n), &first, world.now)
        .unwrap();
    let second = world.sent("n", n).unwrap();
    assert_eq!(last(&second), Some(Revision(5)), "{second:?}");
    assert_eq!(second.len(), 2, "{second:?}");
}

/// What this process started with is no proof that it is as far as the others: they went on without it.
#[test]
fn a_node_that_left_gets_no_lease_for_what_it_held() {
    let policies = [("n", allow(&[1])), ("m", allow(&[1]))];
    let mut world = World::start(
        (Revision(6), Revision(6)),
        UnreachablePolicy::Wait,
        (&["n", "m"], true),
        &policies,
    );
    assert_eq!(world.coordinator.begin_to_leave(&"n".into()), Ok(false));
    let leaving = world.coordinator.accept();
    let refused = world
        .coordinator
        .connect(leaving, hello("n", &[], LEASE), world.now);
    assert!(refused.is_err(), "a node that is about to leave");
    world.coordinator.leave(&"n".into(), world.now);
    assert_eq!(world.coordinator.begin_to_leave(&"n".into()), Ok(true));
    world.commit(Revision(7), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    let rollouts = world.coordinator.rollouts(world.now);
    assert_eq!(rollouts[0].waits_for, ["m"]);

    let m = world.connect("m", &[position(Revision(6), &allow(&[1]))], LEASE);
    for _ in 0..2 {
        world.follow("m", m);
        world.pass(Duration::from_millis(50));
    }
    assert!(world.coordinator.enforces(Revision(7)));
    let n = world.connect("n", &[position(Revision(6), &allow(&[1]))], LEASE);
    assert!(!world.lease("n", n));
    world.follow("n", n);
    assert!(world.lease("n", n));
}
