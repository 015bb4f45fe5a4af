//! Owns what is asked of stock nft in a namespace: scripts in, counters out. It never touches the root namespace.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use sallyport_testbed::Netns;
use serde_json::Value;

/// Carries out an nft script.
pub(crate) fn script(netns: &Netns, text: &str) -> Result<()> {
    run(netns, &["-f", "-"], text)?;
    Ok(())
}

/// The listing of nft as JSON: `what` follows `nft list`.
pub(crate) fn list(netns: &Netns, what: &[&str]) -> Result<Vec<Value>> {
    let output = run(netns, &[&["-j", "list"], what].concat(), "")?;
    let mut listed: Value = serde_json::from_slice(&output.stdout)?;
    match listed["nftables"].take() {
        Value::Array(objects) => Ok(objects),
        other => anyhow::bail!("nft listed {other}"),
    }
}

/// The counters of a table's rules, in packets, by the comment of the rule and its chain.
pub(crate) fn counters(netns: &Netns, table: &str) -> Result<BTreeMap<(String, String), u64>> {
    let mut counters = BTreeMap::new();
    for object in list(netns, &["table", "inet", table])? {
        let rule = &object["rule"];
        let (Some(comment), Some(chain)) = (rule["comment"].as_str(), rule["chain"].as_str())
        else {
            continue;
        };
        let expressions = rule["expr"].as_array().context("a rule has expressions")?;
        for packets in expressions
            .iter()
            .filter_map(|one| one["counter"]["packets"].as_u64())
        {
            *counters.entry((comment.into(), chain.into())).or_default() += packets;
        }
    }
    Ok(counters)
}

fn run(netns: &Netns, arguments: &[&str], input: &str) -> Result<Output> {
    let mut command = netns.command("nft");
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = netns.spawn(command).context("nft")?;
    let mut stdin = child.stdin.take().context("nft reads")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft {arguments:?}: {said}");
    Ok(output)
}
