//! Two doors: what an edit takes away is gone on every node before what it gives is given on any; with nodes that are
//! driven by hand.

use std::time::{Duration, Instant};

use sallyport_controlplane::nodes::UnreachablePolicy;
use sallyport_policy::{Revision, UnknownAddresses, Window};
use sallyport_proto::wire::{Kind, Rollout, node_status::State, rollout::Phase};

use crate::{
    node::FakeNode,
    world::{World, delete, delete_manifest, namespace, node, pod, policy, put},
};

/// `web` on n, `client` and `other` on m; nobody is isolated. Revision 1.
pub(crate) async fn world(
    change: impl FnOnce(&mut sallyport_controlplane::config::Config),
) -> World {
    let world = World::with(change).await;
    let text = [
        namespace("a"),
        node("n"),
        node("m"),
        pod("a", "web", "n", "10.0.0.1", "web"),
        pod("a", "client", "m", "10.0.1.1", "client"),
        pod("a", "other", "m", "10.0.1.2", "other"),
    ];
    world.apply(&text.concat()).await;
    world
}

pub(crate) async fn join(world: &World, name: &str) -> FakeNode {
    let mut node = FakeNode::connect(world.url(), name, Window::default()).await;
    node.follow().await;
    world.until(name, (State::Enforcing, 0)).await;
    node
}

/// Forbids `app=<label>` to send anything.
pub(crate) fn silence(name: &str, label: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: '{name}', namespace: a}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {label}}}}}, policyTypes: [Egress]}}\n"
    )
}

async fn rollouts(world: &World) -> Vec<Rollout> {
    world.status().await.rollouts
}

/// The rollouts that there are, each as its revisions and what it waits for.
async fn on_their_way(world: &World) -> Vec<(u64, u64, Phase, Vec<String>)> {
    let rollouts = rollouts(world).await.into_iter();
    let told = rollouts.map(|rollout| {
        let phase = rollout.phase();
        (
            rollout.first_revision,
            rollout.last_revision,
            phase,
            rollout.waits_for,
        )
    });
    told.collect()
}

/// Returns when every edit has passed its barrier.
pub(crate) async fn until_settled(world: &World) {
    while !rollouts(world).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Has a node follow until it holds a revision alone.
async fn follow_to(node: &mut FakeNode, revision: u64) {
    while node.window.positions().len() > 1 || node.newest().revision < Revision(revision) {
        node.follow().await;
    }
}

/// An edit that takes and gives on both nodes, of which n holds both versions and m has not answered. The nodes, and the
/// edit's revision.
async fn halfway(world: &World) -> (FakeNode, FakeNode, u64) {
    let text = policy("p", "web", "client") + &policy("q", "client", "web");
    world.apply(&text).await;
    let (mut n, m) = (join(world, "n").await, join(world, "m").await);
    let text = policy("p", "web", "other") + &policy("q", "client", "other");
    let after = world.apply(&text).await;
    n.follow().await;
    (n, m, after)
}

/// Returns when these are the rollouts that there are.
pub(crate) async fn until<const N: usize>(
    world: &World,
    expected: [(u64, u64, Phase, Vec<String>); N],
) {
    for _ in 0..500 {
        if on_their_way(world).await == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(on_their_way(world).await, expected);
}

pub(crate) fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// The two nodes of the walk through an edit that swaps which end of a flow denies it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_waits_for_the_revoke_on_another_node() {
    let world = world(|_| {}).await;
    let (mut n, mut m) = (join(&world, "n").await, join(&world, "m").await);
    // n denies; nothing is given, so nothing is waited for.
    let denied = world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    assert!(world.wait(denied, 5_000).await.enforced);
    until_settled(&world).await;

    // Now m denies, and n does not.
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    let swapped = world.try_apply(edits).await.unwrap().revision;
    n.hears_nothing().await;
    until(&world, [(swapped, swapped, Phase::Revoking, names(&["m"]))]).await;
    let at = Instant::now();
    m.follow().await;
    let granted = n.follow().await;
    assert!(
        at.elapsed() >= Duration::from_millis(20),
        "packets were drained"
    );
    assert_eq!(granted.update.target.revision, Revision(swapped));
    assert!(world.wait(swapped, 5_000).await.enforced);
    assert_eq!(rollouts(&world).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_take_and_give_hold_both_versions_until_all_do() {
    let world = world(|_| {}).await;
    let text = policy("p", "web", "client") + &policy("q", "client", "web");
    let before = world.apply(&text).await;
    let (mut n, mut m) = (join(&world, "n").await, join(&world, "m").await);
    let text = policy("p", "web", "other") + &policy("q", "client", "other");
    let after = world.apply(&text).await;
    let update = n.follow().await.update;
    assert_eq!(update.keep.len(), 1, "the version before stays");
    assert_eq!(n.window.positions().len(), 2);
    world.until("n", (State::Holding, after)).await;
    let node = world.node("n").await;
    assert_eq!(
        (node.enforced_revision, node.held_revision),
        (before, after)
    );
    n.hears_nothing().await;
    m.follow().await;
    for node in [&mut n, &mut m] {
        let update = node.follow().await.update;
        assert!(update.delta.is_empty(), "all is there already");
        assert_eq!(node.window.positions(), [update.target]);
    }
    assert!(world.wait(after, 5_000).await.enforced);
}

/// m does not answer. What touches none of its flows goes on; what is taken away is taken away at once; what is given
/// and shares flows waits, merged into one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_side_by_side() {
    let world = world(|_| {}).await;
    let (mut n, mut m) = (join(&world, "n").await, join(&world, "m").await);
    let text = node("o") + &pod("a", "aside", "o", "10.0.2.1", "aside");
    world.apply(&text).await;
    let mut o = join(&world, "o").await;
    world.apply(&policy("p", "web", "client")).await;
    n.follow().await;
    until_settled(&world).await;

    // web: other instead of client; and client may not be reached any more: m has to know first.
    let text = policy("p", "web", "other") + &policy("c", "client", "nobody");
    let first = world.apply(&text).await;
    n.follow().await;
    let stuck = m.receive().await;
    until(&world, [(first, first, Phase::Revoking, names(&["m"]))]).await;

    // Flows to aside are no flows of theirs.
    world.apply(&policy("o", "aside", "client")).await;
    o.follow().await;
    let aside = world.apply(&policy("o", "aside", "web")).await;
    follow_to(&mut o, aside).await;
    // It has passed.
    until(&world, [(first, first, Phase::Revoking, names(&["m"]))]).await;

    // Flows to web are: the revoke is carried out, the grant waits, and what comes later is merged into it.
    let second = world.apply(&policy("p", "web", "nobody")).await;
    assert_eq!(n.follow().await.update.target.revision, Revision(second));
    let third = world.apply(&policy("p", "web", "aside")).await;
    n.follow().await;
    assert_eq!(
        n.window.positions().len(),
        3,
        "before, first, and the latest"
    );
    until(
        &world,
        [
            (first, first, Phase::Revoking, names(&["m"])),
            (second, third, Phase::Queued, vec![]),
        ],
    )
    .await;

    m.apply(&stuck);
    m.ack();
    follow_to(&mut n, third).await;
    assert!(world.wait(0, 5_000).await.enforced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_there_is_skipped_where_that_is_wanted() {
    let patience = Duration::from_millis(300);
    let world = world(|config| {
        config.unreachable = UnreachablePolicy::Skip;
        config.skip_after = patience;
    })
    .await;
    let (mut n, m) = (join(&world, "n").await, join(&world, "m").await);
    world.apply(&policy("p", "web", "nobody")).await;
    n.follow().await;
    until_settled(&world).await;
    let held = m.window.clone();
    drop(m);
    let at = Instant::now();
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("q", "client")),
    ];
    let swapped = world.try_apply(edits).await.unwrap().revision;
    n.follow().await;
    assert!(at.elapsed() >= patience);
    let waited = world.wait(swapped, 5_000).await;
    assert!(waited.enforced);
    let over: Vec<_> = waited
        .passed_over
        .iter()
        .map(|node| (node.name.as_str(), node.state()))
        .collect();
    assert_eq!(over, [("m", State::Skipped)], "and it is told");
    // The next edit does not wait for it again.
    let at = Instant::now();
    let edits = vec![
        put(&policy("p", "web", "nobody")),
        delete(Kind::NetworkPolicy, "a", "q"),
    ];
    let back = world.try_apply(edits).await.unwrap().revision;
    n.follow().await;
    assert!(world.wait(back, 5_000).await.enforced);
    assert!(at.elapsed() < patience);
    until_settled(&world).await;
    // It comes back, and counts again.
    let mut m = FakeNode::connect(world.url(), "m", held).await;
    m.hears_nothing().await;
    world.until("m", (State::Enforcing, 0)).await;
    world.apply(&silence("q", "client")).await;
    m.follow().await;
    world.until("m", (State::Enforcing, 0)).await;
}

/// What a node said that it holds counts as long as it does not come back with less.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_what_it_held_is_waited_for_again() {
    let world = world(|_| {}).await;
    let (_n, m, after) = halfway(&world).await;
    until(&world, [(after, after, Phase::Revoking, names(&["m"]))]).await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    until(
        &world,
        [(after, after, Phase::Revoking, names(&["m", "n"]))],
    )
    .await;
    drop(m);
    n.follow().await;
    n.follow().await;
    until(&world, [(after, after, Phase::Revoking, names(&["m"]))]).await;
    assert_eq!(n.window.positions().len(), 2);
}

/// A node whose object is deleted holds up nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_goes_on_without_a_node_that_is_deleted() {
    let world = world(|_| {}).await;
    let (mut n, _m, after) = halfway(&world).await;
    until(&world, [(after, after, Phase::Revoking, names(&["m"]))]).await;
    let edits = vec![
        delete(Kind::Pod, "a", "client"),
        delete(Kind::Pod, "a", "other"),
        delete(Kind::Node, "", "m"),
    ];
    let gone = world.try_apply(edits).await.unwrap().revision;
    follow_to(&mut n, gone).await;
    assert!(world.wait(gone, 5_000).await.enforced);
}

/// Edits, answers and the end of a drain meet in every order; none of them is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_edits_pass_their_barriers() {
    let world = world(|config| config.drain = Duration::from_millis(1)).await;
    let nodes = [join(&world, "n").await, join(&world, "m").await];
    let following = nodes.map(|mut node| {
        tokio::spawn(async move {
            loop {
                node.follow_patiently().await;
            }
        })
    });
    let ends = [
        (policy("e", "web", "nobody"), silence("e", "client")),
        (silence("e", "client"), policy("e", "web", "nobody")),
    ];
    for n in 0..1_000 {
        let (gone, come) = &ends[n % 2];
        let edits = match n {
            0 => vec![put(come)],
            _ => vec![delete_manifest(gone), put(come)],
        };
        let revision = world.try_apply(edits).await.unwrap().revision;
        let waited = world.wait(revision, 5_000).await;
        assert!(waited.enforced, "edit {n}: {:?}", world.status().await);
    }
    for task in following {
        task.abort();
    }
}

/// Edits of one node wait for no barrier, neither each other's nor packets to drain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_of_one_node_follow_each_other_at_once() {
    let world = world(|config| config.drain = Duration::from_secs(60)).await;
    let mut n = join(&world, "n").await;
    let mut m = join(&world, "m").await;
    for allowed in ["client", "other", "nobody", "client"] {
        let revision = world.apply(&policy("p", "web", allowed)).await;
        let update = n.follow().await.update;
        assert_eq!(
            (update.target.revision, update.keep),
            (Revision(revision), vec![])
        );
        world.until("n", (State::Enforcing, 0)).await;
    }
    assert_eq!(
        rollouts(&world).await.len(),
        1,
        "it is one, and packets drain"
    );
    // An edit of another node that shares flows waits for what was taken away here.
    let other = world.apply(&silence("c", "client")).await;
    m.follow().await;
    world.until("m", (State::Holding, other)).await;
    // And since that waits, so does what comes after it.
    let last = world.apply(&policy("p", "web", "other")).await;
    n.follow().await;
    world.until("n", (State::Holding, last)).await;
}

/// In the middle of a rollout the control plane is started again: nothing is given before every node said what it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_forgets_no_barrier() {
    let mut world = world(|_| {}).await;
    let (n, m, after) = halfway(&world).await;
    world.until("n", (State::Holding, after)).await;
    world.restart().await;
    let mut n = n.reconnect(world.url()).await;
    n.hears_nothing().await;
    assert_eq!(n.window.positions().len(), 2);
    assert_eq!(world.node("n").await.state(), State::Holding);
    assert_eq!(on_their_way(&world).await[0].3, names(&["m"]));
    let mut m = m.reconnect(world.url()).await;
    m.follow().await;
    for node in [&mut n, &mut m] {
        node.follow().await;
        assert_eq!(node.window.positions().len(), 1);
    }
    assert!(world.wait(after, 5_000).await.enforced);

    // Once all is settled, a restart waits for nobody.
    drop(m);
    until_settled(&world).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.restart().await;
    assert_eq!(rollouts(&world).await, []);
    // But a node that once joined counts.
    let edits = vec![
        delete(Kind::NetworkPolicy, "a", "p"),
        put(&silence("r", "client")),
    ];
    world.try_apply(edits).await.unwrap();
    assert_eq!(on_their_way(&world).await[0].3, names(&["m"]));
}

/// An address goes to a node that is away: the nodes of its peers forget it meanwhile, since nobody judges what it sends
/// there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_goes_to_another_node_is_forgotten_before() {
    let world = world(|_| {}).await;
    world
        .apply(&(node("o") + &policy("p", "web", "client") + &silence("s", "client")))
        .await;
    let (mut n, mut m) = (join(&world, "n").await, join(&world, "m").await);
    let o = join(&world, "o").await;
    let window = o.window.clone();
    drop(o);
    world.until("o", (State::Disconnected, 0)).await;
    let there = world
        .apply(&pod("a", "client", "o", "10.0.1.1", "client"))
        .await;
    let addresses = |n: &FakeNode| -> usize {
        let policy = n.window.enforced(&UnknownAddresses::default());
        let groups = policy.groups().values();
        groups.map(|group| group.addresses.len()).sum()
    };
    assert_eq!(addresses(&n), 1);
    follow_to(&mut n, there - 1).await;
    follow_to(&mut m, there - 1).await;
    assert!(world.wait(there - 1, 5_000).await.enforced);
    // It gives nothing before the node that the address goes to takes away what may not be.
    assert_eq!(
        (n.newest().revision, addresses(&n)),
        (Revision(there - 1), 0)
    );
    n.hears_nothing().await;

    let mut o = FakeNode::connect(world.url(), "o", window).await;
    follow_to(&mut o, there).await;
    follow_to(&mut n, there).await;
    assert_eq!(addresses(&n), 1);
    assert!(world.wait(there, 5_000).await.enforced);
}
