//! The nodes' streams, WaitEnforced and Status, with nodes that are driven by hand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sallyport_policy::{
    Change, Digest, Epoch, NodePolicy, Position, Revision, Update, Version, Window,
};
use sallyport_proto::wire::{Kind, WaitEnforcedRequest, node_status::State};
use tonic::Code;

use crate::{
    node::FakeNode,
    past::ok,
    world::{World, namespace, node, pod, policy},
};

/// Two nodes; `web` on n, isolated by a policy that lets `client` in. Revision 1.
async fn world() -> World {
    let world = World::new().await;
    let text = [
        namespace("a"),
        node("n"),
        node("m"),
        pod("a", "web", "n", "10.0.0.1", "web"),
        pod("a", "client", "m", "10.0.1.1", "client"),
        policy("p", "web", "client"),
    ];
    world.apply(&text.concat()).await;
    world
}

/// Adds a pod that the policy lets in: this changes the policy of both nodes.
async fn add_client(world: &World, n: u8) -> u64 {
    world
        .apply(&pod(
            "a",
            &format!("client-{n}"),
            "m",
            &format!("10.0.1.{n}"),
            "client",
        ))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_a_snapshot_then_deltas() {
    let world = world().await;
    assert_eq!(world.stands("n").await, (State::Unknown, 1));
    assert!(!world.enforced(1).await);
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    let mut m = FakeNode::connect(world.url(), "m", Window::default()).await;

    let snapshot = n.receive().await;
    assert_eq!(
        (
            snapshot.update.base,
            snapshot.update.target.epoch,
            snapshot.update.target.revision
        ),
        (None, Epoch(1), Revision(1))
    );
    world.until("n", (State::Updating, 1)).await;
    n.apply(&snapshot);
    n.ack();
    world.until("n", (State::Enforcing, 0)).await;
    assert!(!world.enforced(1).await, "m is still to come");
    m.follow().await;
    assert!(world.wait(1, 5_000).await.enforced);

    let revision = add_client(&world, 2).await;
    let delta = n.follow().await;
    assert_eq!(
        (delta.update.base, delta.update.target.revision),
        (Some(snapshot.update.target), Revision(revision))
    );
    m.follow().await;
    assert!(world.wait(0, 5_000).await.enforced);
    let status = world.node("n").await;
    assert_eq!(
        (
            status.enforced_revision,
            status.endpoints,
            status.version.as_str()
        ),
        (revision, 1, "test")
    );

    // What does not affect a node is nothing to it.
    let elsewhere = world.apply(&namespace("b")).await;
    n.hears_nothing().await;
    assert!(world.enforced(elsewhere).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_under_way_are_merged_and_waits_stay_exact() {
    let world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    let mut m = FakeNode::connect(world.url(), "m", Window::default()).await;
    let first = n.receive().await;
    m.follow().await;
    let (second, third) = (add_client(&world, 2).await, add_client(&world, 3).await);
    n.hears_nothing().await;
    // m is brought to the last, in one step or two.
    while m.newest().revision < Revision(third) {
        m.follow().await;
    }
    n.apply(&first);
    n.ack();
    assert!(world.wait(1, 5_000).await.enforced, "the first is");
    assert_eq!(world.stands("n").await, (State::Updating, second));
    let lagging = world.wait(second, 20).await;
    assert!(!lagging.enforced);
    assert_eq!(
        lagging
            .lagging
            .iter()
            .map(|node| node.name.as_str())
            .collect::<Vec<_>>(),
        ["n"]
    );

    let merged = n.follow().await;
    assert_eq!(
        (merged.update.base, merged.update.target.revision),
        (Some(first.update.target), Revision(third)),
        "one update for both"
    );
    assert!(world.wait(third, 5_000).await.enforced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_ends_when_the_last_node_is_there() {
    let world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    let mut m = FakeNode::connect(world.url(), "m", Window::default()).await;
    n.follow().await;
    let waiting = {
        let mut client = world.client.clone();
        tokio::spawn(async move {
            let request = WaitEnforcedRequest {
                revision: 1,
                timeout_ms: 10_000,
            };
            (
                client.wait_enforced(request).await.unwrap().into_inner(),
                Instant::now(),
            )
        })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    let update = m.receive().await;
    m.apply(&update);
    let acked = Instant::now();
    m.ack();
    let (response, answered) = waiting.await.unwrap();
    assert!(response.enforced && response.lagging.is_empty());
    assert!(answered >= acked);

    let request = WaitEnforcedRequest {
        revision: 2,
        timeout_ms: 0,
    };
    let status = world
        .client
        .clone()
        .wait_enforced(request)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert_eq!(
        status.message(),
        "revision 2 lies in the future: the current revision is 1"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_and_tried_again() {
    let world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    let first = n.receive().await;
    n.nack(first.update.target, "netlink: ENOSPC", false);
    world.until("n", (State::Refusing, 1)).await;
    assert_eq!(world.node("n").await.reason, "netlink: ENOSPC");

    // The next change is a reason to try at once; without one it takes a moment.
    let second = add_client(&world, 2).await;
    let again = n.follow().await;
    assert_eq!(
        (again.update.base, again.update.target.revision),
        (None, Revision(second))
    );
    world.until("n", (State::Enforcing, 0)).await;
    assert_eq!(world.node("n").await.reason, "");

    let third = add_client(&world, 3).await;
    let delta = n.receive().await;
    n.nack(delta.update.target, "no such base", true);
    let snapshot = n.receive().await;
    assert_eq!(
        (snapshot.update.base, snapshot.update.target.revision),
        (None, Revision(third)),
        "at once, and whole"
    );
    n.nack(snapshot.update.target, "still not", false);
    let later = n.follow().await;
    assert_eq!(
        later.update.target.revision,
        Revision(third),
        "after a second"
    );
    world.until("n", (State::Enforcing, 0)).await;
}

/// The node gave the first stream up and opened another; what it said on the first comes last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_is_late_is_not_heard() {
    let world = world().await;
    let mut late = FakeNode::open(world.url(), "n", Window::default()).await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    late.say_hello(Duration::ZERO);
    assert_eq!(late.ends().await.code(), Code::Aborted);
    n.hears_nothing().await;
    world.until("n", (State::Enforcing, 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_gets_what_it_lacks() {
    let mut world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;

    // In sync: nothing to send, and nothing is pending.
    let mut again = n.reconnect(world.url()).await;
    assert_eq!(n.ends().await.code(), Code::Aborted);
    again.hears_nothing().await;
    assert_eq!(world.stands("n").await, (State::Enforcing, 0));

    // Behind: the difference, because what it has is known.
    let held = again.window.clone();
    drop(again);
    world.until("n", (State::Disconnected, 0)).await;
    let second = add_client(&world, 2).await;
    world.until("n", (State::Disconnected, second)).await;
    let mut back = FakeNode::connect(world.url(), "n", held.clone()).await;
    let update = back.receive().await;
    assert_eq!(
        update.update.base,
        held.newest().map(|newest| newest.position)
    );

    // It carried the update out, but the Ack was lost.
    back.apply(&update);
    let mut back = back.reconnect(world.url()).await;
    back.hears_nothing().await;
    world.until("n", (State::Enforcing, 0)).await;

    // After a restart the server knows nothing of what the node has, but the digest is enough.
    world.restart().await;
    assert_eq!(world.stands("n").await, (State::NotSeen, 1));
    let mut back = back.reconnect(world.url()).await;
    back.hears_nothing().await;
    assert_eq!(world.stands("n").await, (State::Enforcing, 0));
    let third = add_client(&world, 3).await;
    assert!(back.follow().await.update.base.is_some());
    drop(back);
    assert!(world.node("n").await.enforced_revision <= third);
}

/// A node that lags behind edits by two or more lets go of nothing, and so holds as many versions as it was sent meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lagged_for_long_comes_back() {
    let world = world().await;
    for n in 2..102 {
        add_client(&world, n).await;
    }
    let versions = (1..=100).map(|revision| Version {
        position: Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: Digest(revision.into()),
        },
        policy: Arc::default(),
    });
    let mut n = FakeNode::connect(world.url(), "n", Window::new(versions)).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    assert_eq!(n.window.positions().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_cannot_be_are_turned_away() {
    let world = world().await;
    let mut nobody = FakeNode::connect(world.url(), "nobody", Window::default()).await;
    let status = nobody.ends().await;
    assert_eq!(status.code(), Code::NotFound);
    assert!(
        status
            .message()
            .starts_with(r#"nodes "nobody" not found: apply a Node object of that name first"#),
        "{status}"
    );

    for (epoch, revision) in [(1, 2), (2, 0)] {
        let position = Position {
            epoch: Epoch(epoch),
            revision: Revision(revision),
            digest: Digest(1),
        };
        let window = Window::new([Version {
            position,
            policy: Arc::default(),
        }]);
        let mut ahead = FakeNode::connect(world.url(), "n", window).await;
        let status = ahead.ends().await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(
            status.message().contains("restored from a backup"),
            "{status}"
        );
    }

    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.receive().await;
    n.ack();
    let status = n.ends().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status
            .message()
            .contains("which does not match the sent update"),
        "{status}"
    );
    world.until("n", (State::Disconnected, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_holds_nobody_back() {
    let world = world().await;
    let mut m = FakeNode::connect(world.url(), "m", Window::default()).await;
    m.follow().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.receive().await;
    world.delete(Kind::Pod, "a", "web").await;
    assert!(
        !world.enforced(0).await,
        "n has not said that it dropped it"
    );
    world.delete(Kind::Node, "", "n").await;
    assert_eq!(n.ends().await.code(), Code::NotFound);
    while !world.enforced(0).await {
        m.follow().await;
    }
    assert_eq!(world.status().await.nodes.len(), 1);

    // A node that was never seen and has nothing to enforce holds nobody back either.
    let revision = world.apply(&node("empty")).await;
    assert!(world.enforced(revision).await);
    assert_eq!(world.stands("empty").await, (State::Unknown, 0));
    let mut empty = FakeNode::connect(world.url(), "empty", Window::default()).await;
    assert_eq!(
        empty.follow().await.update.target.digest,
        NodePolicy::default().digest()
    );
    world.until("empty", (State::Enforcing, 0)).await;
}

/// A pod that is made again under the same name with the same address is another one if its uid is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_uid_alone_is_a_delta() {
    let world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let web = pod("a", "web", "n", "10.0.0.1", "web");
    for uid in ["4c1d2a52", "7a0f7d4a"] {
        let before = n.newest();
        let text = web.replace("{name: 'web'", &format!("{{name: 'web', uid: {uid}"));
        let revision = world.apply(&text).await;
        let update = n.follow().await.update;
        assert_eq!(update.base, Some(before));
        assert_eq!(update.target.revision, Revision(revision));
        let [Change::SetEndpoint(address, endpoint)] = &update.delta.changes[..] else {
            panic!("{:?}", update.delta);
        };
        assert_eq!(address.to_string(), "10.0.0.1");
        assert_eq!((&*endpoint.name, &*endpoint.uid), ("web", uid));
        world.until("n", (State::Enforcing, 0)).await;
        // The same again is no change.
        assert_eq!(world.apply(&text).await, revision);
        n.hears_nothing().await;
    }
}

/// A node hears of the interface of a workload at once, other nodes are not waited for, and all of that outlives the
/// control plane.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_an_interface_alone_is_a_delta_and_is_kept() {
    let mut world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let vm = |interface: &str| {
        format!(
            "{{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {{name: vm, namespace: a}}, \
             spec: {{node: 'n', addresses: [10.0.0.77], interface: {interface}}}}}"
        )
    };
    let interface_of = |update: &Update| {
        let [Change::SetEndpoint(address, endpoint)] = &update.delta.changes[..] else {
            panic!("{:?}", update.delta);
        };
        assert_eq!(
            (address.to_string().as_str(), endpoint.name.as_str()),
            ("10.0.0.77", "vm")
        );
        endpoint.interface.clone()
    };
    let mut revisions = Vec::new();
    for interface in ["veth-vm", "tap0"] {
        let before = n.newest();
        let revision = world.apply(&vm(interface)).await;
        let update = n.follow().await.update;
        assert_eq!(update.base, Some(before));
        assert_eq!(update.target.revision, Revision(revision));
        assert_eq!(update.keep, [], "it holds nothing beside it");
        assert_eq!(interface_of(&update), interface);
        world.until("n", (State::Enforcing, 0)).await;
        // The same again is no change.
        assert_eq!(world.apply(&vm(interface)).await, revision);
        n.hears_nothing().await;
        revisions.push(revision);
    }
    let held = n.window.clone();
    drop(n);
    world.restart().await;
    let kept = world.get(Kind::Workload, "a", "vm").await.unwrap();
    let expected = r#""spec":{"node":"n","addresses":["10.0.0.77"],"interface":"tap0"}"#;
    assert!(kept.manifest.contains(expected), "{}", kept.manifest);
    let yaml = ok("get workload vm -n a -o yaml", &world.url());
    assert!(yaml.contains("interface: tap0"), "{yaml}");
    let mut n = FakeNode::connect(world.url(), "n", held).await;
    world.until("n", (State::Enforcing, 0)).await;
    n.hears_nothing().await;
    ok(&format!("rollback {}", revisions[0]), &world.url());
    assert_eq!(interface_of(&n.follow().await.update), "veth-vm");
    // A node that connects anew is told, too.
    world.until("n", (State::Enforcing, 0)).await;
    drop(n);
    world.until("n", (State::Disconnected, 0)).await;
    let mut new = FakeNode::connect(world.url(), "n", Window::default()).await;
    let update = new.follow().await.update;
    let interface = update.delta.changes.iter().find_map(|change| match change {
        Change::SetEndpoint(_, endpoint) if endpoint.name == "vm" => Some(&*endpoint.interface),
        _ => None,
    });
    assert_eq!(interface, Some("veth-vm"));
}

/// A node hears of allowed sources alone, whether a Workload's field or a pod's annotation gives them; all of that
/// outlives the control plane, and what `get` prints is no change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_allowed_sources_alone_is_a_delta_and_is_kept() {
    let mut world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let vm = |sources: &str| {
        format!(
            "{{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {{name: vm, namespace: a}}, \
             spec: {{node: 'n', addresses: [10.0.0.77], allowedSources: [{sources}]}}}}"
        )
    };
    let sources_of = |update: &Update| {
        let [Change::Sources(sources)] = &update.delta.changes[..] else {
            panic!("{:?}", update.delta);
        };
        let told = sources.iter().map(|source| {
            let owners = source.owners.iter().map(|owner| &*owner.name);
            format!(
                "{}: {}",
                owners.collect::<Vec<_>>().join(" "),
                source.ranges
            )
        });
        told.collect::<Vec<_>>()
    };
    world.apply(&vm("")).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let mut revisions = Vec::new();
    for (sources, expected) in [
        ("10.9.0.0/16", "vm: 10.9.0.0/16"),
        ("10.9.0.0/16, 'fd09::/64'", "vm: 10.9.0.0/16, fd09::/64"),
    ] {
        let before = n.newest();
        let revision = world.apply(&vm(sources)).await;
        let update = n.follow().await.update;
        assert_eq!(update.base, Some(before));
        assert_eq!(update.target.revision, Revision(revision));
        assert_eq!(sources_of(&update), [expected]);
        world.until("n", (State::Enforcing, 0)).await;
        // The same again is no change.
        assert_eq!(world.apply(&vm(sources)).await, revision);
        n.hears_nothing().await;
        revisions.push(revision);
    }
    let yaml = ok("get workload vm -n a -o yaml", &world.url());
    assert!(yaml.contains("allowedSources:"), "{yaml}");
    assert_eq!(world.apply(&yaml).await, revisions[1], "{yaml}");
    let held = n.window.clone();
    drop(n);
    world.restart().await;
    let kept = world.get(Kind::Workload, "a", "vm").await.unwrap();
    let expected = r#""allowedSources":["10.9.0.0/16","fd09::/64"]"#;
    assert!(kept.manifest.contains(expected), "{}", kept.manifest);
    let mut n = FakeNode::connect(world.url(), "n", held).await;
    world.until("n", (State::Enforcing, 0)).await;
    n.hears_nothing().await;
    ok(&format!("rollback {}", revisions[0]), &world.url());
    assert_eq!(sources_of(&n.follow().await.update), ["vm: 10.9.0.0/16"]);
    world.until("n", (State::Enforcing, 0)).await;
    let web = pod("a", "web", "n", "10.0.0.1", "web");
    let annotation = "annotations: {sallyport.dev/allowed-sources: '10.9.0.0/16, 10.8.0.0/16'}";
    let text = web.replace("{name: 'web'", &format!("{{name: 'web', {annotation}"));
    let revision = world.apply(&text).await;
    let update = n.follow().await.update;
    assert_eq!(
        sources_of(&update),
        ["vm web: 10.9.0.0/16", "web: 10.8.0.0/16"]
    );
    world.until("n", (State::Enforcing, 0)).await;
    let yaml = ok("get pod web -n a -o yaml", &world.url());
    assert_eq!(world.apply(&yaml).await, revision, "{yaml}");
    world.apply(&web).await;
    assert_eq!(sources_of(&n.follow().await.update), ["vm: 10.9.0.0/16"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_is_taken_back_is_no_change() {
    let world = world().await;
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    let mut m = FakeNode::connect(world.url(), "m", Window::default()).await;
    n.follow().await;
    m.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let held = n.window.clone();
    drop(n);
    world.until("n", (State::Disconnected, 0)).await;
    let added = add_client(&world, 2).await;
    assert_eq!(world.stands("n").await, (State::Disconnected, added));
    world.delete(Kind::Pod, "a", "client-2").await;
    assert_eq!(
        world.stands("n").await,
        (State::Disconnected, 0),
        "it has what it must have"
    );
    let mut n = FakeNode::connect(world.url(), "n", held).await;
    n.hears_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_updates_come_in_parts_and_slow_nodes_delay_nobody() {
    let world = world().await;
    // Read by nobody: its stream fills up.
    let _frozen = FakeNode::connect(world.url(), "m", Window::default()).await;
    let mut pods: Vec<_> = (0..15_000u32)
        .map(|n| {
            let name = format!("a-client-with-a-name-that-takes-some-room-{n}");
            pod(
                "a",
                &name,
                "m",
                &format!("fd00::{:x}:{:x}", n >> 8, n & 255),
                "client",
            )
        })
        .collect();
    while !pods.is_empty() {
        let rest = pods.split_off(pods.len().min(5_000));
        world.apply(&pods.concat()).await;
        pods = rest;
    }
    let mut n = FakeNode::connect(world.url(), "n", Window::default()).await;
    n.follow().await;
    world.until("n", (State::Enforcing, 0)).await;
    let mut m = FakeNode::connect(world.url(), "m", Window::default()).await;
    let update = m.follow().await;
    assert!(update.parts > 1, "{} parts", update.parts);
    assert!(world.wait(0, 10_000).await.enforced);
}
