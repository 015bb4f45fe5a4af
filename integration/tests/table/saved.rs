//! A node's ruleset, saved as text and loaded again: what stock nft lists of our table loads, and what an operator
//! saves by the command of docs/OPERATING.md holds the tables of others alone.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use rand::{SeedableRng, rngs::StdRng};
use sallyport_enforcer::{
    agent::BridgeTable,
    plan::{self, Installed},
    table::{self, bridge::Ground, render::Options},
};
use sallyport_testbed::{
    Netns,
    kernel_tests::{Failed, Outcome},
    listing,
};

use crate::{Table, options, random_policy, updated};

/// Tables that others could have.
const OTHERS: &str = "\
table inet mine { set s { type ipv4_addr; elements = { 192.0.2.1 }; }; chain c { ip saddr @s drop; }; }
table ip nat { chain post { type nat hook postrouting priority 100; masquerade; }; }
";

/// The path of the rules that Debian's nftables.service loads at boot.
const SAVED_RULES: &str = "/etc/nftables.conf";

/// The command of the page that saves the tables of others.
fn documented() -> &'static str {
    let page = include_str!("../../../docs/OPERATING.md");
    let lines = page.lines().filter_map(|line| line.strip_prefix("# "));
    let mut commands = lines.filter(|line| line.contains("nft list tables"));
    let command = commands.next().expect("the page has the command");
    assert!(command.ends_with(SAVED_RULES), "{command}");
    command
}

/// A table with a random policy in it. An enforcer's is owned by it.
fn table(seed: u64, owned: bool) -> Result<Table, Failed> {
    let options = Options { owned, ..options() };
    let policy = random_policy(&mut StdRng::seed_from_u64(seed));
    let table = Table::new(1 << 20)?;
    let installed = updated(&Installed::default(), &policy, 1);
    table.commit_plan(&plan::create(&installed, &options, table.limits))?;
    Ok(table)
}

/// Runs a command in a namespace, with text for its standard input.
fn run(netns: &Netns, program: &str, arguments: &[&str], input: &str) -> Result<Output, Failed> {
    let mut command: Command = netns.command(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = netns.spawn(command)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    Ok(child.wait_with_output()?)
}

/// Loads rules as nftables.service does.
pub(crate) fn load(netns: &Netns, rules: &str) -> Outcome {
    let output = run(netns, "nft", &["-f", "-"], rules)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

/// The listing of random tables by nft loads elsewhere, as the same tables.
pub(crate) fn a_listing_loads() -> Outcome {
    for seed in 0..40 {
        let table = table(seed, false)?;
        let fresh = Netns::new("loaded")?;
        load(&fresh, &listing::text(&table.netns)?)?;
        let (one, other) = (listing::objects(&table.netns)?, listing::objects(&fresh)?);
        if let Some(difference) = listing::difference(&one, &other) {
            return Err(format!("seed {seed}: {difference}").into());
        }
    }
    Ok(())
}

/// The documented command saves what loads beside the table of an enforcer that runs; a whole ruleset does not.
pub(crate) fn the_tables_of_others_are_saved() -> Outcome {
    let table = table(1, true)?;
    let netns = &table.netns;
    let mut of_bridges = BridgeTable::beside(&netns.run(table::open)?, true);
    of_bridges.set(Ground::default())?;
    load(netns, OTHERS)?;
    let before = listing::objects(netns)?;

    let whole = format!("flush ruleset\n{}", listing::text(netns)?);
    if load(netns, &whole).is_ok() {
        return Err("a file with our table in it loads, so that the page warns of nothing".into());
    }

    let directory = tempfile::tempdir()?;
    let path = directory.path().join("nftables.conf");
    let path = path.to_str().ok_or("the path is no text")?;
    let command = documented().replace(SAVED_RULES, path);
    let output = run(netns, "sh", &["-c", &command], "")?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let saved = std::fs::read_to_string(path)?;
    load(netns, &saved)?;
    if let Some(difference) = listing::difference(&before, &listing::objects(netns)?) {
        return Err(difference.into());
    }
    // On another machine the tables of others are there, and ours is not.
    let [loaded, others] = [&saved, OTHERS].map(|rules| -> Result<_, Failed> {
        let fresh = Netns::new("loaded")?;
        load(&fresh, rules)?;
        Ok(listing::objects(&fresh)?)
    });
    match listing::difference(&others?, &loaded?) {
        Some(difference) => Err(difference.into()),
        None => Ok(()),
    }
}
