//! The cluster's default for established connections, and a policy's own word, as they reach a node.

use sallyport_controlplane::model::Established;
use sallyport_policy::{Direction, Revision, Window};
use sallyport_proto::wire::node_status::State;

use crate::{
    node::FakeNode,
    world::{World, namespace, node, pod, policy},
};

fn keeps(node: &FakeNode) -> bool {
    let newest = node.window.newest().expect("the node has a policy");
    newest
        .policy
        .keeps(Direction::Ingress, [10, 0, 0, 1].into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_default_reaches_the_nodes_without_an_edit() {
    let mut world = World::new().await;
    let text = [
        namespace("a"),
        node("n"),
        pod("a", "web", "n", "10.0.0.1", "web"),
        policy("p", "web", "client"),
    ];
    let revision = world.apply(&text.concat()).await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    assert!(!keeps(&n));
    for (default, kept) in [(Established::Keep, true), (Established::Recheck, false)] {
        world.restart_under(default).await;
        n = n.reconnect(world.url()).await;
        let update = n.follow().await;
        assert_eq!(update.update.target.revision, Revision(revision));
        assert_eq!(keeps(&n), kept);
        world.until("n", (State::Enforcing, 0)).await;
    }
    // The same again is no news.
    world.restart().await;
    n = n.reconnect(world.url()).await;
    n.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policys_own_word_survives_a_restart_of_the_control_plane() {
    let mut world = World::new().await;
    let policy = policy("p", "web", "client").replace(
        "namespace: a}",
        "namespace: a, annotations: {sallyport.dev/established: keep}}",
    );
    let text = [
        namespace("a"),
        node("n"),
        pod("a", "web", "n", "10.0.0.1", "web"),
        policy,
    ];
    world.apply(&text.concat()).await;
    world.restart().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    assert!(keeps(&n));
}
