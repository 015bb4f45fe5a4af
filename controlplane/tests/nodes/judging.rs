//! Nodes that say that they do not judge all traffic.

use sallyport_controlplane::nodes::{
    Health, ReportedCondition, StreamId, Unjudged, UnjudgedWorkload,
};
use sallyport_proto::wire::{condition, trouble::Kind, unjudged_workload::Reason};

use super::*;

fn not_judged() -> Health {
    let condition = ReportedCondition {
        kind: Kind::NotJudged,
        reason: "br0".to_owned(),
        since: Duration::ZERO,
    };
    Health {
        conditions: vec![condition],
        ..Health::default()
    }
}

/// n and m, which enforce revision 1.
fn two(unreachable: UnreachablePolicy, lease: Duration) -> (World, u64, u64) {
    let nodes = [("n", allow(&[1])), ("m", allow(&[1]))];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        unreachable,
        (&[], false),
        &nodes,
    );
    let n = world.connect("n", &[], lease);
    let m = world.connect("m", &[], lease);
    world.follow("n", n);
    world.follow("m", m);
    assert!(world.coordinator.enforces(Revision(1)));
    (world, n, m)
}

impl World {
    fn report_health(&mut self, name: &str, session: u64, health: Health) {
        let now = self.now;
        self.coordinator
            .report_health(&name.into(), StreamId(session), health, now)
            .unwrap();
    }

    fn state(&self, name: &str) -> State {
        self.node(name).state
    }

    fn node(&self, name: &str) -> sallyport_controlplane::nodes::Status {
        let mut all = self.coordinator.status(self.now).into_iter();
        all.find(|node| node.name == name).unwrap()
    }
}

#[test]
fn nothing_counts_as_enforced_on_a_node_that_does_not_judge() {
    let (mut world, n, _) = two(UnreachablePolicy::Wait, NONE);
    world.report_health("n", n, not_judged());
    assert!(!world.coordinator.enforces(Revision(1)));
    let node = world.node("n");
    assert_eq!(
        (node.state, node.pending),
        (State::NotJudging, Some(Revision(1)))
    );
    assert_eq!((node.enforced, node.reason.as_str()), (None, "br0"));
    let lagging: Vec<_> = world.coordinator.lagging(Revision(1), world.now);
    assert_eq!(lagging.len(), 1);
    assert_eq!(lagging[0].name, "n");
    // Without an update it counts again.
    world.report_health("n", n, Health::default());
    assert!(world.coordinator.enforces(Revision(1)));
    let node = world.node("n");
    assert_eq!((node.state, node.pending), (State::Enforcing, None));
    assert_eq!(node.enforced.unwrap().revision, Revision(1));
}

/// It may be gone just because its enforcer cannot start there.
#[test]
fn what_it_said_last_counts_until_it_says_something_else() {
    let (mut world, n, _) = two(UnreachablePolicy::Wait, NONE);
    world.report_health("n", n, not_judged());
    world
        .coordinator
        .disconnected(&"n".into(), StreamId(n), world.now);
    assert_eq!(world.state("n"), State::Disconnected);
    assert!(!world.coordinator.enforces(Revision(1)));
    assert!(world.node("n").reason.contains("br0"));
    let window = [position(Revision(1), &allow(&[1]))];
    // An enforcer of a version that says it later.
    let session = world.connect("n", &window, NONE);
    assert_eq!(world.state("n"), State::NotJudging);
    world
        .coordinator
        .disconnected(&"n".into(), StreamId(session), world.now);
    let mut hello = hello("n", &window, NONE);
    hello.health = Some(Health::default());
    let session = world.coordinator.accept();
    world
        .coordinator
        .connect(session, hello, world.now)
        .unwrap();
    assert_eq!(world.state("n"), State::Enforcing);
    assert!(world.coordinator.enforces(Revision(1)));
    // A node that left enforces nothing, and is not waited for.
    world.report_health("n", session.0, not_judged());
    world
        .coordinator
        .disconnected(&"n".into(), session, world.now);
    world.coordinator.leave(&"n".into(), world.now);
    assert!(world.coordinator.enforces(Revision(1)));
    assert_eq!(world.node("n").reported, []);
}

#[test]
fn it_is_never_taken_for_one_that_enforces_as_it_connects() {
    let nodes = [("n", allow(&[1]))];
    let mut world = World::start(
        (Revision(1), Revision(1)),
        UnreachablePolicy::Wait,
        (&["n"], false),
        &nodes,
    );
    let mut hello = hello("n", &[position(Revision(1), &allow(&[1]))], NONE);
    hello.health = Some(not_judged());
    let session = world.coordinator.accept();
    world
        .coordinator
        .connect(session, hello, world.now)
        .unwrap();
    assert_eq!(world.state("n"), State::NotJudging);
    assert!(!world.coordinator.enforces(Revision(1)));
}

#[test]
fn a_barrier_waits_for_it_as_if_it_had_not_acknowledged() {
    let (mut world, n, m) = two(UnreachablePolicy::Wait, NONE);
    // It says so before the edit.
    world.report_health("n", n, not_judged());
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    world.follow("n", n);
    world.follow("m", m);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.coordinator.settled(), Revision(1));
    assert_eq!(world.coordinator.rollouts(world.now)[0].waits_for, ["n"]);
    world.report_health("n", n, Health::default());
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(2));
    // It says so when it has acknowledged, and m has not.
    world.follow("n", n);
    world.follow("m", m);
    world.commit(Revision(3), &[("n", allow(&[3])), ("m", allow(&[3]))]);
    world.follow("n", n);
    world.report_health("n", n, not_judged());
    world.follow("m", m);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.coordinator.settled(), Revision(2));
    world.report_health("n", n, Health::default());
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(3));
    world.follow("n", n);
    world.follow("m", m);
    assert!(world.coordinator.enforces(Revision(3)));
}

#[test]
fn it_is_skipped_as_one_that_does_not_answer() {
    let (mut world, n, m) = two(UnreachablePolicy::Skip, NONE);
    world.report_health("n", n, not_judged());
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    world.follow("n", n);
    world.follow("m", m);
    world.pass(Duration::from_millis(299));
    assert_eq!(world.coordinator.settled(), Revision(1));
    world.pass(Duration::from_millis(2));
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(2));
    world.follow("n", n);
    world.follow("m", m);
    assert_eq!(world.state("n"), State::Skipped);
    assert!(
        world.coordinator.enforces(Revision(2)),
        "those who wait do not wait for it"
    );
    world.report_health("n", n, Health::default());
    assert_eq!(world.state("n"), State::Enforcing);
}

#[test]
fn of_a_fence_its_lease_decides() {
    let (mut world, n, m) = two(UnreachablePolicy::Fence, LEASE);
    assert!(world.lease("n", n) && world.lease("m", m));
    world.report_health("n", n, not_judged());
    assert!(world.lease("n", n), "no edit waits for it");
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    world.follow("n", n);
    world.follow("m", m);
    world.pass(LEASE * 3 / 4);
    assert!(!world.lease("n", n));
    assert!(world.lease("m", m));
    assert_eq!(world.coordinator.settled(), Revision(1));
    world.pass(LEASE / 2);
    world.pass(Duration::from_millis(20));
    assert_eq!(world.coordinator.settled(), Revision(2));
    assert_eq!(world.state("n"), State::Fenced);
    assert!(!world.lease("n", n), "it is not back");
    world.follow("n", n);
    world.report_health("n", n, Health::default());
    assert_eq!(world.state("n"), State::Enforcing);
    assert!(world.lease("n", n));
}

/// One workload whose traffic is not judged, for a reason.
fn unjudged(reason: Reason) -> Health {
    let workload = UnjudgedWorkload {
        workload: "a/web".to_owned(),
        address: [10, 0, 0, 1].into(),
        reason,
        message: "its words".to_owned(),
        since: Duration::from_secs(5),
    };
    Health {
        unjudged: Unjudged {
            named: vec![workload],
            more: 0,
        },
        ..Health::default()
    }
}

impl World {
    fn conditions(&self, name: &str) -> Vec<(condition::Kind, String, Duration)> {
        let conditions = self.node(name).conditions.into_iter();
        let told = conditions.map(|one| (one.kind, one.message, one.since));
        told.collect()
    }
}

#[test]
fn nothing_counts_as_enforced_while_a_workload_is_not_judged() {
    let (mut world, n, _) = two(UnreachablePolicy::Wait, NONE);
    // A reason of a later version counts, too.
    for reason in [Reason::OwnAddress, Reason::Device, Reason::Unspecified] {
        world.report_health("n", n, unjudged(reason));
        assert!(!world.coordinator.enforces(Revision(1)), "{reason:?}");
        let lagging = world.coordinator.lagging(Revision(1), world.now);
        assert_eq!(
            (lagging.len(), lagging[0].name.as_str()),
            (1, "n"),
            "{reason:?}"
        );
        let node = world.node("n");
        assert_eq!((node.state, node.pending), (State::Enforcing, None));
        assert_eq!(
            (node.first_unenforced(), node.enforced.is_some()),
            (Some(Revision(1)), true)
        );
        let words = "workload a/web (10.0.0.1): its words".to_owned();
        let told = (condition::Kind::NotJudged, words, Duration::from_secs(5));
        assert_eq!(world.conditions("n"), [told]);
        world.report_health("n", n, Health::default());
        assert!(world.coordinator.enforces(Revision(1)), "{reason:?}");
        assert_eq!(world.node("n").first_unenforced(), None);
        assert_eq!(world.conditions("n"), []);
    }
}

#[test]
fn a_workload_that_is_not_judged_holds_no_edit_back() {
    let (mut world, n, m) = two(UnreachablePolicy::Wait, NONE);
    world.report_health("n", n, unjudged(Reason::Device));
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    world.follow("n", n);
    world.follow("m", m);
    world.pass(Duration::from_millis(20));
    world.follow("n", n);
    world.follow("m", m);
    assert_eq!(world.coordinator.settled(), Revision(2));
    assert_eq!(world.node("n").enforced.unwrap().revision, Revision(2));
    assert!(!world.coordinator.enforces(Revision(2)));
    world.report_health("n", n, Health::default());
    assert!(world.coordinator.enforces(Revision(2)));
}

#[test]
fn a_workload_without_a_route_holds_nothing_back() {
    let (mut world, n, _) = two(UnreachablePolicy::Wait, NONE);
    world.report_health("n", n, unjudged(Reason::NoRoute));
    assert!(world.coordinator.enforces(Revision(1)));
    assert_eq!(world.node("n").first_unenforced(), None);
    let [(kind, words, _)] = &world.conditions("n")[..] else {
        panic!("{:?}", world.conditions("n"));
    };
    assert_eq!(*kind, condition::Kind::NoRoute);
    assert_eq!(words, "workloads a/web (10.0.0.1): its words");
}

#[test]
fn what_it_said_of_workloads_counts_until_it_says_something_else() {
    let (mut world, n, _) = two(UnreachablePolicy::Wait, NONE);
    world.report_health("n", n, unjudged(Reason::Device));
    world.now += Duration::from_secs(7);
    world
        .coordinator
        .disconnected(&"n".into(), StreamId(n), world.now);
    assert!(!world.coordinator.enforces(Revision(1)));
    let (_, _, since) = &world.conditions("n")[0];
    assert_eq!(*since, Duration::from_secs(12));
    let mut hello = hello("n", &[position(Revision(1), &allow(&[1]))], NONE);
    hello.health = Some(Health::default());
    let session = world.coordinator.accept();
    world
        .coordinator
        .connect(session, hello.clone(), world.now)
        .unwrap();
    assert!(world.coordinator.enforces(Revision(1)));
    // It is never taken for one that enforces as it connects.
    hello.health = Some(unjudged(Reason::OwnAddress));
    let session = world.coordinator.accept();
    world
        .coordinator
        .connect(session, hello, world.now)
        .unwrap();
    assert!(!world.coordinator.enforces(Revision(1)));
    world
        .coordinator
        .disconnected(&"n".into(), session, world.now);
    world.coordinator.leave(&"n".into(), world.now);
    assert!(world.coordinator.enforces(Revision(1)));
    assert_eq!(world.conditions("n"), []);
}

#[test]
fn those_who_wait_do_not_wait_for_a_node_that_is_passed_over() {
    let (mut world, n, m) = two(UnreachablePolicy::Skip, NONE);
    world.report_health("n", n, unjudged(Reason::Device));
    world
        .coordinator
        .disconnected(&"n".into(), StreamId(n), world.now);
    world.commit(Revision(2), &[("n", allow(&[2])), ("m", allow(&[2]))]);
    world.follow("m", m);
    world.pass(Duration::from_millis(301));
    world.pass(Duration::from_millis(20));
    world.follow("m", m);
    assert_eq!(world.state("n"), State::Skipped);
    assert!(world.coordinator.enforces(Revision(2)));
}

#[test]
fn workloads_that_are_not_named_are_counted() {
    let (mut world, n, _) = two(UnreachablePolicy::Wait, NONE);
    let mut many = unjudged(Reason::Device);
    many.unjudged.more = 9;
    world.report_health("n", n, many.clone());
    let conditions = world.conditions("n");
    assert_eq!(conditions.len(), 2);
    assert!(conditions[1].1.contains("9 more"), "{conditions:?}");
    let mut without = unjudged(Reason::NoRoute).unjudged.named;
    without = vec![without[0].clone(); 7];
    many.unjudged.named.extend(without);
    world.report_health("n", n, many);
    let conditions = world.conditions("n");
    assert_eq!(conditions.len(), 2);
    assert!(conditions[1].1.contains(" and 11 more: "), "{conditions:?}");
}
