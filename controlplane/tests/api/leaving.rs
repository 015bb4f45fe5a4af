//! Nodes that say that they leave: nothing waits for them, and nobody says that they enforce anything; with nodes that are
//! driven by hand.

use std::time::{Duration, Instant};

use sallyport_policy::Window;
use sallyport_proto::wire::{
    ApplyRequest, Kind, LeaseRequest, Unreachable, node_status::State, rollout::Phase,
    sync_request::Message,
};
use tonic::Code;

use crate::{
    node::FakeNode,
    rollouts::{join, names, silence, until, until_settled, world},
    world::{World, delete, node, policy, put},
};

/// Swaps which node denies the flow from `client` to `web`: m has to take something away, then n gives. The revision.
async fn swap(world: &World) -> u64 {
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    world.try_apply(edits).await.unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_on_without_a_node_that_leaves() {
    let world = world(|_| {}).await;
    let (mut n, m) = (join(&world, "n").await, join(&world, "m").await);
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;
    let swapped = swap(&world).await;
    until(&world, [(swapped, swapped, Phase::Revoking, names(&["m"]))]).await;
    drop(m);
    FakeNode::leave(world.url(), "m").await.unwrap();
    n.follow().await;
    let waited = world.wait(swapped, 5_000).await;
    assert!(waited.enforced);
    let over: Vec<_> = waited.passed_over.iter().map(|node| &node.name).collect();
    assert_eq!(over, ["m"]);
    let m = world.node("m").await;
    assert_eq!((m.state(), m.pending_revision), (State::Left, 0));
    assert_eq!((m.enforced_revision, &m.version[..]), (0, ""));
    // It may say so twice.
    FakeNode::leave(world.url(), "m").await.unwrap();

    // What comes later does not wait for it either, not even for its lease.
    let request = ApplyRequest {
        edits: vec![
            put(&policy("p", "web", "nobody")),
            delete(Kind::NetworkPolicy, "a", "q"),
        ],
        unreachable: Unreachable::Wait.into(),
        enforced_within_ms: Some(5_000),
        ..ApplyRequest::default()
    };
    let mut client = world.client.clone();
    let applied = tokio::spawn(async move { client.apply(request).await.unwrap().into_inner() });
    n.follow().await;
    assert_eq!(applied.await.unwrap().enforced, Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_a_node_left_outlives_the_control_plane_and_ends_with_its_object() {
    let mut world = world(|_| {}).await;
    let (_, m) = (join(&world, "n").await, join(&world, "m").await);
    drop(m);
    FakeNode::leave(world.url(), "m").await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.restart().await;
    // Since when is known, too; and of the other node that it is known from before.
    assert_eq!(world.stands("m").await, (State::Left, 0));
    assert!(world.node("m").await.since_ms >= 300);
    let n = world.node("n").await;
    assert_eq!(n.state(), State::NotSeen);
    assert!(n.since_ms < 300_000 && n.version.is_empty(), "{n:?}");
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let denied = world.apply(&silence("q", "client")).await;
    assert!(world.wait(denied, 5_000).await.enforced);

    let text = node("m");
    world
        .try_apply(vec![
            delete(Kind::Pod, "a", "client"),
            delete(Kind::Pod, "a", "other"),
            delete(Kind::Node, "", "m"),
        ])
        .await
        .unwrap();
    world.apply(&text).await;
    assert_eq!(world.node("m").await.state(), State::Unknown);
    world.restart().await;
    assert_eq!(world.node("m").await.state(), State::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_connected_cannot_leave() {
    let world = world(|_| {}).await;
    let m = join(&world, "m").await;
    let at = Instant::now();
    let refused = FakeNode::leave(world.url(), "m").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("stop this enforcer first"),
        "{}",
        refused.message()
    );
    assert!(at.elapsed() >= Duration::from_secs(2), "{:?}", at.elapsed());
    assert_eq!(world.node("m").await.state(), State::Enforcing);
    // A stream that is about to end is waited for.
    let ending = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(m);
    });
    FakeNode::leave(world.url(), "m").await.unwrap();
    ending.await.unwrap();
    assert_eq!(world.node("m").await.state(), State::Left);
    let unknown = FakeNode::leave(world.url(), "nowhere").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

/// It comes back with what it had: edits have gone on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_left_joins_again_as_a_new_one() {
    let mut world = world(|_| {}).await;
    let lease = Duration::from_millis(500);
    let mut n = join(&world, "n").await;
    let mut m = FakeNode::connect_leased(world.url(), "m", Window::default(), lease).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;
    let held = m.window.clone();
    drop(m);
    FakeNode::leave(world.url(), "m").await.unwrap();
    let swapped = swap(&world).await;
    n.follow().await;
    assert!(world.wait(swapped, 5_000).await.enforced);

    let mut m = FakeNode::connect_leased(world.url(), "m", held, lease).await;
    m.say(Message::Lease(LeaseRequest { number: 1 }));
    let update = m.receive().await;
    // It has not been as far as the others, and so there is no lease.
    m.hears_nothing().await;
    m.apply(&update);
    m.ack();
    world.until("m", (State::Enforcing, 0)).await;
    m.say(Message::Lease(LeaseRequest { number: 2 }));
    assert_eq!(m.leased().await, 2);

    // Barriers wait for it, also after a restart.
    world.restart().await;
    assert_eq!(world.node("m").await.state(), State::NotSeen);
    let mut n = FakeNode::connect(world.url(), "n", n.window.clone()).await;
    let m = FakeNode::connect_leased(world.url(), "m", m.window.clone(), lease).await;
    world.until("m", (State::Enforcing, 0)).await;
    let edits = vec![
        put(&policy("p", "web", "nobody")),
        delete(Kind::NetworkPolicy, "a", "q"),
    ];
    world.try_apply(edits).await.unwrap();
    n.follow().await;
    until_settled(&world).await;
    drop(m);
    let swapped = swap(&world).await;
    until(&world, [(swapped, swapped, Phase::Revoking, names(&["m"]))]).await;
}
