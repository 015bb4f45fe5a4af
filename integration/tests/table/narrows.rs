//! The guard follows the policy on the safe side: addresses that workloads may use beside their own are let through once policy
//! judges them, and until then no longer.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::Arc,
};

use sallyport_enforcer::{
    agent,
    guard::Rules,
    health::Health,
    nft::{ports::Ports, render::Options},
};
use sallyport_integration::{
    kernel_tests::{Failed, Outcome},
    testbed::Netns,
};
use sallyport_proto::{
    Delta, Ranges, Update,
    policy::{Endpoint, NodePolicy, Owner, Source},
};

use crate::{options, position};

/// A workload behind an interface, which may use some addresses of 192.0.2.0/24.
fn policy(spans: &[[u8; 2]]) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let endpoint = Endpoint {
        name: "gateway".into(),
        interface: "veth9".into(),
        ..Endpoint::default()
    };
    policy.set_endpoint([10, 0, 0, 1].into(), Arc::new(endpoint));
    let ranges = spans.iter().map(|&[first, last]| {
        let [first, last] = [first, last].map(|n| [192, 0, 2, n].into());
        Ranges::span(first, last).expect("a range")
    });
    let ranges: Vec<Ranges> = ranges.collect();
    let source = Source {
        owners: vec![Owner {
            name: "gateway".into(),
            ..Owner::default()
        }],
        ranges: Ranges::union_all(&ranges),
        ..Source::default()
    };
    policy.set_sources(Arc::new(Source::canonical([source])));
    policy
}

/// What was done, in order: the changes of the addresses, and the ends of updates.
fn told(lines: impl Iterator<Item = String>, revisions: u64) -> Vec<String> {
    let mut told = Vec::new();
    for line in lines {
        if line.contains("inet sallyport port_ranges4") {
            let words = line.split_whitespace().take(1);
            let elements = line.split(['{', '}']).nth(1).unwrap_or_default().trim();
            told.push(words.chain([elements]).collect::<Vec<_>>().join(" "));
        }
        let end = (1..=revisions).find(|n| line.contains(&format!("revision {n} ")));
        if let Some(revision) = end.filter(|_| line.starts_with("add element inet sallyport stamp"))
        {
            told.push(format!("revision {revision}"));
            // Each step of an update says so.
            told.dedup();
            if revision == revisions {
                break;
            }
        }
    }
    told
}

pub(crate) fn before_policy_lets_go() -> Outcome {
    let netns = Netns::new("narrows")?;
    let directory = tempfile::tempdir()?;
    let agent = netns.run(|| {
        let (rules, health) = (Rules::default(), Health::default());
        let options = Options {
            lease: None,
            ports: Ports::default(),
            ..options()
        };
        agent::start(directory.path(), options, rules, health)
    })?;
    let mut monitor = netns.command("nft");
    monitor.arg("monitor").stdout(Stdio::piped());
    let mut monitor = netns.spawn(monitor)?;
    let output = monitor.stdout.take().ok_or("no output")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (mut before, mut base) = (NodePolicy::default(), None);
    let updates: [&[[u8; 2]]; 4] = [&[[1, 5]], &[[1, 9]], &[[1, 3]], &[]];
    for (spans, revision) in updates.into_iter().zip(1..) {
        let policy = policy(spans);
        let target = position(&policy, revision);
        let update = Update {
            base,
            target,
            keep: Vec::new(),
            delta: Delta::between(&before, &policy),
        };
        runtime.block_on(agent.apply(update))?;
        (before, base) = (policy, Some(target));
    }
    // One more, that the last one is told of before.
    runtime.block_on(agent.apply(Update {
        base,
        target: position(&before, 5),
        keep: Vec::new(),
        delta: Delta::default(),
    }))?;
    let lines = BufReader::new(output).lines().map_while(Result::ok);
    let told = told(lines, 5);
    monitor.kill()?;
    monitor.wait()?;
    let element = |verb: &str, last: u8| format!("{verb} \"veth9\" . 192.0.2.1-192.0.2.{last}");
    let expected = [
        "revision 1".to_owned(),
        element("add", 5),
        "revision 2".to_owned(),
        element("delete", 5),
        element("add", 9),
        element("delete", 9),
        element("add", 3),
        "revision 3".to_owned(),
        element("delete", 3),
        "revision 4".to_owned(),
        "revision 5".to_owned(),
    ];
    match told == expected {
        true => Ok(()),
        false => Err(Failed::from(format!("{told:#?} instead of {expected:#?}"))),
    }
}
