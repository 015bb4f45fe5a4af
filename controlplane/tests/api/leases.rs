//! Leases: edits go on without a node that its kernel closed, and no node is closed, or let go on, by mistake; with nodes
//! that are driven by hand.

use std::time::{Duration, Instant};

use sallyport_controlplane::nodes::UnreachablePolicy;
use sallyport_policy::Window;
use sallyport_proto::wire::{
    ApplyRequest, Kind, LeaseRequest, Unreachable, node_status::State, rollout::Phase,
    sync_request::Message,
};
use tonic::Code;

use crate::{
    node::FakeNode,
    rollouts::{join, names, silence, until, until_settled, world},
    world::{delete, policy, put},
};

/// m has a lease and freezes: the edit goes on when the lease has run out for sure, and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_node_is_fenced_by_its_lease() {
    let world = world(|_| {}).await;
    let lease = Duration::from_millis(500);
    let mut n = FakeNode::connect_leased(world.url(), "n", Window::default(), lease).await;
    n.follow().await;
    let mut m = FakeNode::connect_leased(world.url(), "m", Window::default(), lease).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
    m.say(Message::Lease(LeaseRequest { number: 7 }));
    assert_eq!(m.leased().await, 7);
    let granted = Instant::now();
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;

    let request = ApplyRequest {
        edits: vec![
            delete(Kind::NetworkPolicy, "a", "p"),
            put(&silence("q", "client")),
        ],
        unreachable: Unreachable::Fence.into(),
        enforced_within_ms: Some(5_000),
        ..ApplyRequest::default()
    };
    let applied = {
        let mut client = world.client.clone();
        tokio::spawn(async move { client.apply(request).await.unwrap().into_inner() })
    };
    let update = m.receive().await;
    n.follow().await;
    assert!(
        granted.elapsed() >= lease - Duration::from_millis(20),
        "{:?}",
        granted.elapsed()
    );
    let applied = applied.await.unwrap();
    assert_eq!(applied.enforced, Some(true));
    assert_eq!(applied.passed_over[0].name, "m");
    assert_eq!(world.node("m").await.state(), State::Fenced);

    // It gets no lease before it is as far as the others.
    m.say(Message::Lease(LeaseRequest { number: 8 }));
    m.hears_nothing().await;
    m.apply(&update);
    m.ack();
    world.until("m", (State::Enforcing, 0)).await;
    m.say(Message::Lease(LeaseRequest { number: 9 }));
    assert_eq!(m.leased().await, 9);
}

/// Once a barrier counts on the end of a lease there is no other before the node is as far.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_lease_ran_out_gets_none_while_packets_drain() {
    let world = world(|config| {
        config.unreachable = UnreachablePolicy::Fence;
        config.drain = Duration::from_secs(3);
    })
    .await;
    let lease = Duration::from_millis(300);
    let text = policy("p", "web", "nobody");
    world.apply(&text).await;
    let _n = join(&world, "n").await;
    let mut m = FakeNode::connect_leased(world.url(), "m", Window::default(), lease).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
    m.say(Message::Lease(LeaseRequest { number: 1 }));
    assert_eq!(m.leased().await, 1);
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    let swapped = world.try_apply(edits).await.unwrap().revision;
    let update = m.receive().await;
    until(&world, [(swapped, swapped, Phase::Draining, vec![])]).await;
    m.say(Message::Lease(LeaseRequest { number: 2 }));
    m.hears_nothing().await;
    m.apply(&update);
    m.ack();
    m.say(Message::Lease(LeaseRequest { number: 3 }));
    assert_eq!(m.leased().await, 3);
}

fn fenced(edits: Vec<sallyport_proto::wire::Edit>) -> ApplyRequest {
    ApplyRequest {
        edits,
        unreachable: Unreachable::Fence.into(),
        ..ApplyRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_around_a_node_without_leases_is_refused() {
    let world = world(|_| {}).await;
    let edits = || vec![put(&silence("q", "client"))];
    let mut client = world.client.clone();
    let _n = join(&world, "n").await;
    let lease = Duration::from_secs(60);
    let m = FakeNode::connect_leased(world.url(), "m", Window::default(), lease).await;
    let refused = client.apply(fenced(edits())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for word in ["\"n\"", "--lease", "nothing was changed"] {
        assert!(refused.message().contains(word), "{}", refused.message());
    }
    assert!(!refused.message().contains("\"m\""));
    drop(m);
    assert_eq!(world.status().await.revision, 1);
    // With leases everywhere it is no matter who is there.
    let mut n = FakeNode::connect_leased(world.url(), "n", Window::default(), lease).await;
    n.follow().await;
    client.apply(fenced(edits())).await.unwrap();
}

/// Nothing closes a node that has no leases, though it asks for one: it is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_leases_that_asks_for_one_is_not_fenced() {
    let world = world(|config| config.unreachable = UnreachablePolicy::Fence).await;
    let (mut n, mut m) = (join(&world, "n").await, join(&world, "m").await);
    m.say(Message::Lease(LeaseRequest { number: 1 }));
    assert_eq!(m.leased().await, 1, "it is told that this is known");
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    let swapped = world.try_apply(edits).await.unwrap().revision;
    n.hears_nothing().await;
    until(&world, [(swapped, swapped, Phase::Revoking, names(&["m"]))]).await;
}

/// What was granted to an earlier life of the node's enforcer is in force until it has taken the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_lease_shortens_none_that_was_granted() {
    let world = world(|config| config.unreachable = UnreachablePolicy::Fence).await;
    let (long, short) = (Duration::from_millis(1_500), Duration::from_millis(100));
    let mut n = join(&world, "n").await;
    let mut m = FakeNode::connect_leased(world.url(), "m", Window::default(), long).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
    m.say(Message::Lease(LeaseRequest { number: 1 }));
    assert_eq!(m.leased().await, 1);
    let granted = Instant::now();
    let held = m.window.clone();
    let mut m = FakeNode::connect_leased(world.url(), "m", held, short).await;
    m.say(Message::Lease(LeaseRequest { number: 1 }));
    assert_eq!(m.leased().await, 1);
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    world.try_apply(edits).await.unwrap();
    n.follow().await;
    assert!(
        granted.elapsed() >= long - Duration::from_millis(20),
        "{:?}",
        granted.elapsed()
    );
}

/// A control plane that starts again waits as long as a lease may be: longer ones must not be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_too_long_is_refused() {
    let world = world(|_| {}).await;
    let lease = Duration::from_millis(60_001);
    let mut n = FakeNode::connect_leased(world.url(), "n", Window::default(), lease).await;
    let status = n.ends().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("60"), "{}", status.message());
}

/// A node that lags loses its lease, though it goes on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_refuses_gets_no_lease() {
    let world = world(|config| config.unreachable = UnreachablePolicy::Fence).await;
    let lease = Duration::from_millis(400);
    let mut n = join(&world, "n").await;
    let mut m = FakeNode::connect_leased(world.url(), "m", Window::default(), lease).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
    m.say(Message::Lease(LeaseRequest { number: 1 }));
    assert_eq!(m.leased().await, 1);
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    let swapped = world.try_apply(edits).await.unwrap().revision;
    let refused = m.receive().await.update.target;
    m.nack(refused, "no memory", false);
    tokio::time::sleep(lease / 2 + Duration::from_millis(50)).await;
    m.say(Message::Lease(LeaseRequest { number: 2 }));
    n.follow().await;
    assert!(world.wait(swapped, 5_000).await.enforced);
    assert_eq!(world.node("m").await.state(), State::Fenced);
}

/// 3,000 port ranges, each within the one before, that select every pod: the compiler takes long over it.
fn nested() -> String {
    let mut text = String::from(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: nested, namespace: a}\n\
         spec:\n  podSelector: {matchLabels: {app: web}}\n  ingress:\n",
    );
    for n in 0..3_000 {
        text += &format!(
            "  - {{from: [{{podSelector: {{matchExpressions: [{{key: app, operator: NotIn, values: [x{n}]}}]}}}}], \
             ports: [{{port: {}, endPort: {}}}]}}\n",
            1 + n,
            65_535 - n
        );
    }
    text
}

/// The writer alone compiles: leases are granted and the status is told meanwhile, many times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_the_status_do_not_wait_for_the_compiler() {
    let world = world(|_| {}).await;
    let lease = Duration::from_secs(2);
    let mut m = FakeNode::connect_leased(world.url(), "m", Window::default(), lease).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
    let request = ApplyRequest {
        edits: vec![put(&nested())],
        ..ApplyRequest::default()
    };
    let begun = Instant::now();
    let applied = {
        let mut client = world.client.clone();
        tokio::spawn(async move { client.apply(request).await.unwrap() })
    };
    let (mut number, mut longest) = (0, Duration::ZERO);
    while !applied.is_finished() {
        number += 1;
        let asked = Instant::now();
        m.say(Message::Lease(LeaseRequest { number }));
        assert_eq!(m.leased().await, number);
        world.status().await;
        longest = longest.max(asked.elapsed());
    }
    applied.await.unwrap();
    let took = begun.elapsed();
    assert!(
        number > 3 && longest * 2 < took,
        "{number} answers, the slowest after {longest:?} of {took:?}"
    );
}
