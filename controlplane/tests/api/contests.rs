//! Addresses that several workloads claim: accepted with a warning, shown by status, and forgotten with the change that ends
//! the contest.

use sallyport_proto::wire::{Contest, Contests, Kind};

use crate::{
    past::{cli, ok},
    world::{World, delete, namespace, node, pod, policy, put},
};

/// A world with the pods `a/old` on `n` and `a/new` on `m`, which claim 10.0.0.1. Returns it with the warnings.
async fn world() -> (World, Vec<String>) {
    let world = World::new().await;
    let text = [
        namespace("a"),
        node("n"),
        node("m"),
        policy("p", "web", "client"),
        pod("a", "old", "n", "10.0.0.1", "web"),
    ]
    .concat();
    let response = world.try_apply(vec![put(&text)]).await.unwrap();
    assert!(response.warnings.is_empty());
    assert_eq!(world.status().await.contests, None);
    let new = pod("a", "new", "m", "10.0.0.1", "other");
    let response = world.try_apply(vec![put(&new)]).await.unwrap();
    (world, response.warnings)
}

fn names(contest: &Contest) -> Vec<&str> {
    let claimants = contest.claimants.iter();
    claimants.map(|claimant| claimant.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contest_is_told_to_who_makes_it_and_to_who_looks() {
    let (mut world, warnings) = world().await;
    let message = "address 10.0.0.1 is claimed by Pod a/new on node \"m\" and Pod a/old on node \"n\": traffic passes \
                   where the policies of all of them allow it, and peers include the address where they include all of \
                   them; delete the workloads that have ended, or correct their addresses";
    assert_eq!(warnings, [message]);
    world.restart().await;
    let contests = world.status().await.contests.expect("there is one");
    let [contest] = &contests.addresses[..] else {
        panic!("{contests:?}");
    };
    assert_eq!(contest.message, message);
    assert_eq!(
        (contest.address.as_str(), names(contest)),
        ("10.0.0.1", vec!["new", "old"])
    );
    let table = ok("status", &world.url());
    assert!(
        table.contains(&format!("\nconditions:\n  {message}\n")),
        "{table}"
    );
    let json = ok("status -o json", &world.url());
    assert!(json.contains("\"pod/a/new\",\n"), "{json}");
    // The same again is no news.
    let again = world
        .try_apply(vec![put(&pod("a", "new", "m", "10.0.0.1", "third"))])
        .await;
    assert!(again.unwrap().warnings.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contest_ends_with_the_change_that_ends_it() {
    let ended =
        pod("a", "old", "n", "10.0.0.1", "web").replace("status: {", "status: {phase: Succeeded, ");
    let failed = ended.replace("Succeeded", "Failed");
    let running = ended.replace("Succeeded", "Running");
    for (what, edit) in [
        ("deleted", delete(Kind::Pod, "a", "old")),
        ("succeeded", put(&ended)),
        ("failed", put(&failed)),
        (
            "another address",
            put(&pod("a", "old", "n", "10.0.0.2", "web")),
        ),
        ("all deleted", delete(Kind::Namespace, "", "a")),
    ] {
        let (world, _) = world().await;
        // A pod that is told to end claims its address until it has ended.
        let terminating = running.replace(
            "namespace: 'a'",
            "namespace: 'a', deletionTimestamp: '2026-01-01T00:00:00Z', deletionGracePeriodSeconds: 30",
        );
        world.try_apply(vec![put(&terminating)]).await.unwrap();
        assert!(world.status().await.contests.is_some(), "{what}");
        world.try_apply(vec![edit]).await.unwrap();
        assert_eq!(world.status().await.contests, None, "{what}");
        let (code, table, _) = cli("status", &world.url());
        assert!(
            code == 0 && !table.contains("conditions"),
            "{what}: {table}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_contests_are_cut_and_counted() {
    let world = World::new().await;
    let mut text = namespace("a") + &node("n");
    for address in 0..130 {
        for name in ["x", "y"] {
            text += &pod(
                "a",
                &format!("{name}{address}"),
                "n",
                &format!("10.0.1.{address}"),
                "web",
            );
        }
    }
    for n in 0..20 {
        text += &pod("a", &format!("z{n:02}"), "n", "10.0.0.7", "web");
    }
    let response = world.try_apply(vec![put(&text)]).await.unwrap();
    assert_eq!(response.warnings.len(), 11);
    assert_eq!(
        response.warnings[10],
        "and 121 more addresses that several workloads claim"
    );
    let Contests { addresses, more } = world.status().await.contests.expect("many");
    assert_eq!((addresses.len(), more), (100, 31));
    let crowded = &addresses[0];
    assert_eq!((names(crowded).len(), crowded.more_claimants), (10, 10));
    assert!(
        crowded
            .message
            .contains("Pod a/z02 on node \"n\" and 17 more: "),
        "{crowded:?}"
    );
    let table = ok("status", &world.url());
    let conditions = table.split("\nconditions:\n").nth(1).expect("conditions");
    assert_eq!(conditions.lines().count(), 101, "{table}");
    assert!(table.contains("  and 31 more addresses that several workloads claim\n"));
}
