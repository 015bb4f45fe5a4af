//! Nodes that name workloads whose traffic no policy judges: who waits for enforcement hears of it, and edits go on.

use sallyport_proto::wire::{
    Health, UnjudgedWorkload, WaitEnforcedResponse, condition::Kind, node_status::State,
    sync_request::Message, unjudged_workload::Reason,
};

use crate::{
    node::FakeNode,
    rollouts::{join, until_settled, world},
    world::{World, policy},
};

fn health(reason: Reason) -> Health {
    let workload = UnjudgedWorkload {
        workload: "a/web".to_owned(),
        address: vec![10, 0, 0, 1],
        reason: reason.into(),
        message: "it is behind m0, a macvlan device".to_owned(),
        since_ms: 0,
    };
    Health {
        unjudged: vec![workload],
        ..Health::default()
    }
}

/// Has a node say something, and returns the answer to who waits once it is the expected one.
async fn say(
    world: &World,
    node: &FakeNode,
    (health, enforced): (Health, bool),
    revision: u64,
) -> WaitEnforcedResponse {
    node.say(Message::Health(health));
    for _ in 0..200 {
        let response = world.wait(revision, 20).await;
        if response.enforced == enforced {
            return response;
        }
    }
    panic!("it is not told: {:?}", world.status().await);
}

/// Follows for ever.
async fn follow(node: &mut FakeNode) {
    loop {
        node.follow_patiently().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_names_the_workload_that_is_not_judged() {
    let world = world(|_| {}).await;
    let (mut n, mut m) = (join(&world, "n").await, join(&world, "m").await);
    let denied = world.apply(&policy("p", "web", "client")).await;
    n.follow().await;
    assert!(world.wait(denied, 5_000).await.enforced);

    let response = say(&world, &n, (health(Reason::Device), false), denied).await;
    let [lagging] = &response.lagging[..] else {
        panic!("{response:?}");
    };
    assert_eq!(
        (&*lagging.name, lagging.state(), lagging.enforced_revision),
        ("n", State::Enforcing, denied)
    );
    let [condition] = &lagging.conditions[..] else {
        panic!("{lagging:?}");
    };
    assert_eq!(condition.kind(), Kind::NotJudged);
    assert_eq!(
        condition.message,
        "workload a/web (10.0.0.1): it is behind m0, a macvlan device"
    );

    // An edit with a barrier goes on, on the other node too.
    let text = policy("p", "web", "other") + &policy("q", "client", "other");
    let edit = world.apply(&text).await;
    tokio::select! {
        () = follow(&mut n) => {}
        () = follow(&mut m) => {}
        () = until_settled(&world) => {}
        () = tokio::time::sleep(std::time::Duration::from_secs(10)) => panic!("{:?}", world.status().await),
    }
    assert!(!world.wait(edit, 20).await.enforced);
    n.say(Message::Health(Health::default()));
    tokio::select! {
        () = follow(&mut n) => {}
        () = follow(&mut m) => {}
        waited = world.wait(edit, 10_000) => assert!(waited.enforced, "{waited:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_without_a_route_is_told_and_waited_for_by_nobody() {
    let world = world(|_| {}).await;
    let (n, _m) = (join(&world, "n").await, join(&world, "m").await);
    let revision = world.status().await.revision;
    // That what comes after it on the stream is known tells that it is.
    say(&world, &n, (health(Reason::Device), false), revision).await;
    say(&world, &n, (health(Reason::NoRoute), true), revision).await;
    let status = world.status().await;
    let node = status.nodes.iter().find(|node| node.name == "n").unwrap();
    assert_eq!(node.conditions.len(), 1);
    assert_eq!(node.conditions[0].kind(), Kind::NoRoute);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_none_ends_the_stream() {
    let world = world(|_| {}).await;
    let mut n = join(&world, "n").await;
    let mut wrong = health(Reason::Device);
    wrong.unjudged[0].address = vec![1, 2, 3];
    n.say(Message::Health(wrong));
    let status = n.ends().await;
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert!(status.message().contains("unjudged.address"), "{status}");
}
