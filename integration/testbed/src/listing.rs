//! The listing of a ruleset by stock nft, as objects that can be compared; never changes a ruleset.

use std::{collections::BTreeMap, io, process::Stdio};

use crate::Netns;

/// The lines of each object, by its table and its first line, in order of the alphabet, since sets have none.
pub type Listing = BTreeMap<String, Vec<String>>;

/// The listing of a namespace's ruleset.
pub fn text(netns: &Netns) -> io::Result<String> {
    let mut command = netns.command("nft");
    command
        .args(["list", "ruleset"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = netns.spawn(command)?.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "nft: {}",
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The listing of a namespace's ruleset, object by object.
pub fn objects(netns: &Netns) -> io::Result<Listing> {
    Ok(parse(&text(netns)?))
}

/// The objects that differ between two listings, as each has them.
pub fn difference(one: &Listing, other: &Listing) -> Option<String> {
    let name = one
        .keys()
        .chain(other.keys())
        .find(|name| one.get(*name) != other.get(*name))?;
    Some(format!(
        "{name}\n{:#?}\ninstead of\n{:#?}",
        one.get(name),
        other.get(name)
    ))
}

fn parse(text: &str) -> Listing {
    let mut objects = Listing::new();
    let (mut table, mut name) = (String::new(), String::new());
    for line in text
        .lines()
        // The owner of a table is no part of it.
        .map(|line| line.split(" # progname").next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty() && *line != "}")
    {
        if line.ends_with('{') && !line.contains('=') {
            if line.starts_with("table ") {
                table = line.trim_end_matches(" {").to_owned();
            }
            name = format!("{table} {line}");
        }
        let elements = line
            .trim_start_matches("elements = {")
            .trim_end_matches('}');
        let lines = objects.entry(name.clone()).or_default();
        if line.starts_with("elements")
            || line.ends_with(',')
            || (line.ends_with('}') && line.len() > 1) && !line.contains("vmap")
        {
            lines.extend(
                elements
                    .split(',')
                    .map(|one| one.trim().to_owned())
                    .filter(|one| !one.is_empty()),
            );
        } else {
            lines.push(uncounted(line));
        }
        lines.sort();
    }
    objects
}

/// A line without what its counter says.
fn uncounted(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    for at in 1..words.len() {
        if matches!(words[at - 1], "packets" | "bytes") && words[at].parse::<u64>().is_ok() {
            words[at] = "0";
        }
    }
    words.join(" ")
}
