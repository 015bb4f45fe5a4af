//! Runs nft, ipset and iptables in a namespace, with their input, and tells what they said. Writes none of the input
//! but that of a trial.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context, Result, bail};
use sallyport_testbed::Netns;

/// Why there can be no ipset on this kernel; `None` if it can. That a program is missing is an error.
pub(crate) fn ipset_refusal() -> Result<Option<String>> {
    let netns = Netns::new("ipset")?;
    let rule = "*filter\n-A FORWARD -m set --match-set trial dst -j ACCEPT\nCOMMIT\n";
    for (command, input) in [
        (&["ipset", "restore"][..], "create trial hash:net\n"),
        (&["iptables-nft-restore"][..], rule),
    ] {
        if let Err(refusal) = run(&netns, command, input)? {
            return Ok(Some(refusal));
        }
    }
    Ok(None)
}

/// Runs a program in a namespace, which must succeed.
pub(crate) fn feed(netns: &Netns, command: &[&str], input: &str) -> Result<()> {
    match run(netns, command, input)? {
        Ok(()) => Ok(()),
        Err(refusal) => bail!(refusal),
    }
}

/// Runs a program in a namespace. Returns what it said if it failed.
fn run(netns: &Netns, command: &[&str], input: &str) -> Result<Result<(), String>> {
    let mut built = netns.command(command[0]);
    built
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = netns.spawn(built).with_context(|| {
        format!(
            "cannot run {} (Debian has it in one of the packages nftables, iptables and ipset)",
            command[0]
        )
    })?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    // A program that refuses its input does not read it to the end, and says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    Ok(match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{}: {}",
            command.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    })
}
