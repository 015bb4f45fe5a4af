//! Owns what is seen of a way: which hooks of the node count its packets, and whether a drop in the forward hook stops
//! them. Makes no way, and knows of none how it should be.

use std::{collections::BTreeMap, process::Stdio, thread, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use sallyport_testbed::{
    Family, Netns,
    probe::{Outcome, Probe, Prober, Protocol, Stream},
};
use serde::Deserialize;

use crate::wiring::Way;

/// The hooks of a node, in a packet's order.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// The port at the server: it tells requests from replies.
pub(crate) const PORT: u16 = 7000;

/// The fate of one direction's packets.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The hooks of the node that they meet.
    pub(crate) hooks: Vec<&'static str>,
    /// Whether a drop in the forward hook stops them.
    pub(crate) stopped: bool,
}

/// The fate of requests and of replies.
pub(crate) type Both = [Seen; 2];

/// The rule's words that tell the packets of a direction, and what counters call it.
const DIRECTIONS: [(&str, &str); 2] = [("dport", "request"), ("sport", "reply")];

/// Looks at a way with a connection for each question.
pub(crate) fn fresh(way: &Way) -> Result<Both> {
    let probe = || {
        let probe = Probe::new(&way.client, &way.server, Protocol::Tcp, PORT, Family::V4);
        let probe = probe.at((way.target, PORT).into()).from_address(way.source);
        Prober::default()
            .with_timeout(Duration::from_secs(1))
            .probe(probe)
    };
    let outcome = probe();
    ensure!(outcome == Outcome::Open, "without any drop it is {outcome}");
    count(way.node())?;
    probe();
    let hooks = DIRECTIONS.map(|direction| counted(way.node(), direction.1));
    let stopped = DIRECTIONS.map(|direction| -> Result<bool> {
        drop_in_forward(way.node(), &[direction.0])?;
        match probe() {
            Outcome::Blocked => Ok(true),
            Outcome::Open => Ok(false),
            other => bail!("with a drop in the forward hook it is {other}"),
        }
    });
    both(hooks, stopped)
}

/// Looks at a way with one connection that is established before anything is asked.
pub(crate) fn established(way: &Way, stream: &Stream) -> Result<Both> {
    let passed = || {
        let before = stream.counts();
        thread::sleep(Duration::from_millis(400));
        stream.counts().since(before).received
    };
    stream
        .until(Duration::from_secs(20), |counts| counts.received > 100)
        .map_err(|counts| anyhow::anyhow!("without any drop nothing flows: {counts:?}"))?;
    count(way.node())?;
    ensure!(passed() > 0, "nothing flows after the hooks are counted");
    let hooks = DIRECTIONS.map(|direction| counted(way.node(), direction.1));
    drop_in_forward(way.node(), &DIRECTIONS.map(|(side, _)| side))?;
    thread::sleep(Duration::from_millis(100));
    let stopped = passed() == 0;
    both(hooks, [Ok(stopped), Ok(stopped)])
}

fn both(hooks: [Result<Vec<&'static str>>; 2], stopped: [Result<bool>; 2]) -> Result<Both> {
    let [request, reply] = hooks;
    let [no_request, no_reply] = stopped;
    let seen = |hooks: Result<_>, stopped: Result<_>| -> Result<Seen> {
        let (hooks, stopped) = (hooks?, stopped?);
        Ok(Seen { hooks, stopped })
    };
    Ok([seen(request, no_request)?, seen(reply, no_reply)?])
}

/// Has every hook count, before anything else that may be there.
fn count(node: &Netns) -> Result<()> {
    let mut script = "table inet ways {\n".to_owned();
    for hook in HOOKS {
        for (_, direction) in DIRECTIONS {
            script += &format!("counter {hook}_{direction} {{}}\n");
        }
        script += &format!("chain {hook} {{\ntype filter hook {hook} priority -500;\n");
        for (side, direction) in DIRECTIONS {
            script += &format!("tcp {side} {PORT} counter name {hook}_{direction}\n");
        }
        script += "}\n";
    }
    nft(
        node,
        &(script + "chain dropped { type filter hook forward priority 0; }\n}\n"),
    )
    .map(drop)
}

/// Drops packets to the port or from it in the forward hook, and no others.
fn drop_in_forward(node: &Netns, sides: &[&str]) -> Result<()> {
    let mut script = "flush chain inet ways dropped\n".to_owned();
    for side in sides {
        script += &format!("add rule inet ways dropped tcp {side} {PORT} drop\n");
    }
    nft(node, &script).map(drop)
}

#[derive(Deserialize)]
struct Listed {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    name: String,
    packets: u64,
}

/// The hooks that have counted packets of a direction.
fn counted(node: &Netns, direction: &str) -> Result<Vec<&'static str>> {
    let text = nft(node, "list counters table inet ways")?;
    let listed: Listed = serde_json::from_str(&text).context("read what nft lists")?;
    let counters = listed.nftables.into_iter().filter_map(|item| item.counter);
    let packets: BTreeMap<String, u64> = counters
        .map(|counter| (counter.name, counter.packets))
        .collect();
    let met = |hook: &&str| {
        packets
            .get(&format!("{hook}_{direction}"))
            .is_some_and(|&n| n > 0)
    };
    Ok(HOOKS.into_iter().filter(met).collect())
}

/// Runs stock nft, which answers in JSON.
pub(crate) fn nft(node: &Netns, script: &str) -> Result<String> {
    let mut command = node.command("nft");
    command
        .args(["--json", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = node
        .spawn(command)
        .and_then(|child| child.wait_with_output())
        .context("run nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
