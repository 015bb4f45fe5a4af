//! Several enforcers of one name, clones, enforcers that are turned away, slow and silent ones; with nodes that are
//! driven by hand.

use std::time::{Duration, Instant};

use sallyport_policy::Window;
use sallyport_proto::wire::{
    BelieveRequest, Enforcer, LeaseRequest, condition, node_status::State, sync_request::Message,
    turned_away::Reason,
};
use tonic::{Code, Status};

use crate::{
    node::FakeNode,
    world::{World, namespace, node, pod, policy},
};

/// An enforcer that is there answers within this time.
const ANSWER: Duration = Duration::from_secs(2);

/// One node with an isolated workload.
async fn world() -> World {
    let world = World::new().await;
    let text = [
        namespace("a"),
        node("n"),
        pod("a", "web", "n", "10.0.0.1", "web"),
        policy("p", "web", "nobody"),
    ];
    world.apply(&text.concat()).await;
    world
}

fn enforcer(instance: u8, start: u64, process: u64) -> Enforcer {
    Enforcer {
        instance: vec![instance; 16],
        start,
        process,
    }
}

impl World {
    /// An enforcer of n that enforces all.
    async fn first(&self, of: &Enforcer) -> FakeNode {
        let mut first = FakeNode::enter(self.url(), "n", Window::default(), of).await;
        first.follow().await;
        self.until("n", (State::Enforcing, 0)).await;
        first
    }

    /// Another enforcer of n that says that it holds what the first one holds.
    async fn newcomer(&self, first: &FakeNode, of: &Enforcer) -> FakeNode {
        FakeNode::enter(self.url(), "n", first.window.clone(), of).await
    }

    async fn believe(&self, process: u64) -> Result<(), Status> {
        let request = BelieveRequest {
            node: "n".to_owned(),
            process,
        };
        self.client.clone().believe(request).await.map(drop)
    }
}

/// Whether a node is served: it gets the lease that it asks for.
async fn is_served(node: &mut FakeNode) {
    node.say(Message::Lease(LeaseRequest { number: 77 }));
    assert_eq!(node.leased().await, 77);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_enforcer_and_its_next_start_replace_it_at_once() {
    let world = world().await;
    let mut first = world.first(&enforcer(1, 5, 1)).await;
    for next in [enforcer(1, 5, 1), enforcer(1, 6, 2)] {
        let began = Instant::now();
        let mut newcomer = world.newcomer(&first, &next).await;
        is_served(&mut newcomer).await;
        assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
        assert_eq!(first.ends().await.code(), Code::Aborted);
        first = newcomer;
    }
    let status = world.node("n").await;
    assert_eq!(
        (status.turned_away, status.conditions),
        (vec![], vec![]),
        "nothing happened that an operator should know"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_enforcer_is_refused_while_the_first_answers() {
    let world = world().await;
    let mut first = world.first(&enforcer(1, 5, 1)).await;
    for count in 1..=2 {
        let mut newcomer = world.newcomer(&first, &enforcer(2, 9, 2)).await;
        // Neither is hurt while the other is asked.
        is_served_before_its_ping(&mut first).await;
        let status = newcomer.ends().await;
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        for words in [
            "which answers",
            "start 5, process 0000000000000001",
            "--node-name",
        ] {
            assert!(status.message().contains(words), "{status}");
        }
        is_served(&mut first).await;
        let turned_away = world.node("n").await.turned_away;
        assert_eq!(turned_away.len(), 1, "{turned_away:?}");
        assert_eq!(turned_away[0].reason(), Reason::NameTaken);
        assert_eq!(turned_away[0].count, count);
        assert_eq!(turned_away[0].enforcer, Some(enforcer(2, 9, 2)));
    }
    assert_eq!(world.stands("n").await, (State::Enforcing, 0));
}

/// A node that is being asked gets its lease, before it answers.
async fn is_served_before_its_ping(node: &mut FakeNode) {
    let ping = node.pinged().await;
    is_served(node).await;
    node.pong(ping);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_enforcer_replaces_a_silent_one() {
    let world = world().await;
    let mut first = world.first(&enforcer(1, 5, 1)).await;
    let began = Instant::now();
    let mut newcomer = world.newcomer(&first, &enforcer(2, 1, 2)).await;
    // What it asks before it has the name is answered afterwards.
    newcomer.say(Message::Lease(LeaseRequest { number: 7 }));
    newcomer.answer_ping().await;
    assert_eq!(newcomer.leased().await, 7);
    assert!(began.elapsed() >= ANSWER, "{:?}", began.elapsed());
    assert_eq!(first.ends().await.code(), Code::Aborted);
    let conditions = world.node("n").await.conditions;
    assert_eq!(conditions.len(), 1, "{conditions:?}");
    assert_eq!(conditions[0].kind(), condition::Kind::Replaced);
    assert_eq!(
        conditions[0].enforcers,
        [enforcer(1, 5, 1), enforcer(2, 1, 2)]
    );
}

/// The first is gone and said so by its connection: nobody has to wait for its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_enforcer_takes_a_name_that_nobody_has() {
    let world = world().await;
    let first = world.first(&enforcer(1, 5, 1)).await;
    let window = first.window.clone();
    drop(first);
    world.until("n", (State::Disconnected, 0)).await;
    let mut newcomer = FakeNode::enter(world.url(), "n", window, &enforcer(2, 1, 2)).await;
    is_served(&mut newcomer).await;
}

/// Enforcers of versions that do not say which one they are replace each other, and are never asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_enforcer_replaces_at_once_and_is_not_asked() {
    let world = world().await;
    let mut first = FakeNode::connect(world.url(), "n", Window::default()).await;
    first.follow().await;
    let mut second = first.reconnect(world.url()).await;
    is_served(&mut second).await;
    assert_eq!(first.ends().await.code(), Code::Aborted);
    let mut third = world.newcomer(&second, &enforcer(1, 1, 1)).await;
    is_served(&mut third).await;
    assert_eq!(second.ends().await.code(), Code::Aborted);
    let mut fourth = third.reconnect(world.url()).await;
    is_served(&mut fourth).await;
    assert_eq!(third.ends().await.code(), Code::Aborted);
    world.apply(&policy("q", "web", "client")).await;
    fourth.receive().await;
    tokio::time::sleep(ANSWER + Duration::from_millis(500)).await;
    fourth.hears_nothing().await;
    assert_eq!(world.node("n").await.state(), State::Updating);
}

/// What a dead process sent arrives after what its successor sent: it is not there to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_hello_of_a_dead_process_changes_nothing() {
    let world = world().await;
    let mut first = world.first(&enforcer(1, 6, 2)).await;
    let began = Instant::now();
    let mut late = world.newcomer(&first, &enforcer(1, 5, 1)).await;
    first.answer_ping().await;
    let status = late.ends().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(began.elapsed() >= ANSWER, "{:?}", began.elapsed());
    is_served(&mut first).await;
    assert_eq!(world.node("n").await.turned_away[0].reason(), Reason::Late);
    assert_eq!(world.node("n").await.conditions, []);
}

/// A process whose counter could not be written died with its connection half open: the next one has the same counter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_counter_was_not_written_replaces_the_silent_one() {
    let world = world().await;
    let mut first = world.first(&enforcer(1, 6, 1)).await;
    let mut next = world.newcomer(&first, &enforcer(1, 6, 2)).await;
    next.answer_ping().await;
    is_served(&mut next).await;
    assert_eq!(first.ends().await.code(), Code::Aborted);
    assert_eq!(world.node("n").await.conditions, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_are_found_and_none_is_believed_until_an_administrator_decides() {
    let world = world().await;
    let (original, copy) = (enforcer(1, 6, 0xa), enforcer(1, 6, 0xb));
    let mut first = world.first(&original).await;
    let mut second = world.newcomer(&first, &copy).await;
    first.answer_ping().await;
    second.answer_ping().await;
    for status in [first.ends().await, second.ends().await] {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        for words in [
            "process 000000000000000a",
            "process 000000000000000b",
            "sallyport-enforcer new-identity",
            "sallyport node believe n --process",
        ] {
            assert!(status.message().contains(words), "{status}");
        }
    }
    let status = world.node("n").await;
    assert_eq!(status.state(), State::Cloned);
    assert_eq!(status.conditions[0].kind(), condition::Kind::Cloned);
    assert_eq!(
        status.conditions[0].enforcers,
        [original.clone(), copy.clone()]
    );

    // An edit waits for the node: none of them may say that it enforces it.
    let revision = world.apply(&policy("q", "web", "client")).await;
    for which in [&original, &copy] {
        let mut refused = world.newcomer(&first, which).await;
        assert_eq!(refused.ends().await.code(), Code::FailedPrecondition);
    }
    let waited = world.wait(revision, 1).await;
    assert!(!waited.enforced);
    assert_eq!(waited.lagging[0].state(), State::Cloned);
    let turned_away = world.node("n").await.turned_away;
    assert_eq!(turned_away[0].reason(), Reason::Cloned);
    assert_eq!(turned_away[0].count, 3);

    let unseen = world.believe(0xc).await.unwrap_err();
    assert_eq!(unseen.code(), Code::NotFound);
    assert!(unseen.message().contains("process 000000000000000a"));
    world.believe(0xa).await.unwrap();
    let mut refused = world.newcomer(&first, &copy).await;
    let status = refused.ends().await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("new-identity"), "{status}");
    let mut believed = world.newcomer(&first, &original).await;
    believed.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    assert!(world.enforced(revision).await);
    assert_eq!(world.node("n").await.conditions, []);
    let mut refused = world.newcomer(&first, &copy).await;
    assert_eq!(refused.ends().await.code(), Code::FailedPrecondition);
    is_served(&mut believed).await;
    let again = world.believe(0xa).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
}

/// The clone with the higher counter replaces the other one, which finds it when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_with_two_counters_are_found() {
    let world = world().await;
    let mut first = world.first(&enforcer(1, 5, 1)).await;
    let mut copy = world.newcomer(&first, &enforcer(1, 6, 2)).await;
    assert_eq!(first.ends().await.code(), Code::Aborted);
    let mut first = world.newcomer(&first, &enforcer(1, 5, 1)).await;
    copy.answer_ping().await;
    first.answer_ping().await;
    assert_eq!(first.ends().await.code(), Code::FailedPrecondition);
    assert_eq!(copy.ends().await.code(), Code::FailedPrecondition);
    assert_eq!(world.node("n").await.state(), State::Cloned);
}

/// They are never there at the same time, and found all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_that_come_in_turn_are_found() {
    let world = world().await;
    let copy = world.first(&enforcer(1, 6, 2)).await;
    let window = copy.window.clone();
    drop(copy);
    world.until("n", (State::Disconnected, 0)).await;
    let mut first = FakeNode::enter(world.url(), "n", window, &enforcer(1, 5, 1)).await;
    first.answer_ping().await;
    assert_eq!(first.ends().await.code(), Code::FailedPrecondition);
    assert_eq!(world.node("n").await.state(), State::Cloned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_enforcer_and_a_silent_one_have_different_words() {
    let world = world().await;
    let mut n = world.first(&enforcer(1, 1, 1)).await;
    let revision = world.apply(&policy("q", "web", "client")).await;
    let received = n.receive().await;
    n.answer_ping().await;
    world.until("n", (State::Slow, revision)).await;
    let slow = world.node("n").await;
    assert!(
        slow.reason.starts_with("applying an update for "),
        "{slow:?}"
    );
    assert!(slow.heard_ms.unwrap() < 2_000, "{slow:?}");
    let asked = n.pinged().await;
    world.until("n", (State::Silent, revision)).await;
    let silent = world.node("n").await;
    assert!(silent.reason.starts_with("not heard for "), "{silent:?}");
    assert!(silent.heard_ms.unwrap() >= 2_000, "{silent:?}");
    n.pong(asked);
    world.until("n", (State::Slow, revision)).await;
    n.apply(&received);
    n.ack();
    world.until("n", (State::Enforcing, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enforcers_without_a_node_object_are_shown() {
    let world = world().await;
    assert_eq!(world.status().await.turned_away, None);
    for count in 1..=2 {
        let mut stranger = FakeNode::connect(world.url(), "node-7", Window::default()).await;
        assert_eq!(stranger.ends().await.code(), Code::NotFound);
        let strangers = world.status().await.turned_away.unwrap();
        assert_eq!(strangers.names.len(), 1);
        assert_eq!(strangers.names[0].name, "node-7");
        let turned_away = strangers.names[0].turned_away.as_ref().unwrap();
        assert_eq!(turned_away.reason(), Reason::NoNode);
        assert_eq!(turned_away.count, count);
        assert!(turned_away.message.contains("apply a Node object"));
    }
    world.apply(&node("node-7")).await;
    assert_eq!(world.status().await.turned_away, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_names_without_a_node_object_the_last_hundred_are_kept() {
    let world = world().await;
    for n in 0..103 {
        let name = format!("node-{n}");
        let mut stranger = FakeNode::connect(world.url(), &name, Window::default()).await;
        stranger.ends().await;
    }
    let strangers = world.status().await.turned_away.unwrap();
    assert_eq!((strangers.names.len(), strangers.forgotten), (100, 3));
    let is_kept = |name: &str| strangers.names.iter().any(|kept| kept.name == name);
    assert!(!is_kept("node-2") && is_kept("node-3") && is_kept("node-102"));
}

/// What a node is turned away for is kept with the node: here its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enforcer_with_too_long_a_lease_is_shown() {
    let world = world().await;
    let lease = Duration::from_secs(61);
    let mut n = FakeNode::connect_leased(world.url(), "n", Window::default(), lease).await;
    assert_eq!(n.ends().await.code(), Code::InvalidArgument);
    let turned_away = world.node("n").await.turned_away;
    assert_eq!(turned_away[0].reason(), Reason::Lease);
    assert_eq!(turned_away[0].enforcer, None);
}
