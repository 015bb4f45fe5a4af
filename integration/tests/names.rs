//! No declaration bears a private name that was traded for the field's own term.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The names that were traded, each with the term that is used instead.
const TRADED: [(&str, &str); 49] = [
    ("Carried", "Applied"),
    ("Entry", "NodeProgress"),
    ("Extent", "FlowScope"),
    ("Facts", "Visible"),
    ("Family", "NamedPortEntry"),
    ("Found", "Observed"),
    ("Generation", "UpdateSeq, RulesetGeneration"),
    ("Judge", "ClassEntry"),
    ("Known", "VersionRef"),
    ("Leg", "Participant"),
    ("Look", "Recheck"),
    ("Now", "Head"),
    ("Place", "NodeEntry"),
    ("PlaceWork", "NodeChanges"),
    ("Placed", "PlacedEndpoint"),
    ("Reading", "StampState"),
    ("Realm", "ScopeEntry"),
    ("Refusal", "ApplyError"),
    ("Row", "WorkloadEntry"),
    ("Seat", "EndpointAt"),
    ("Selected", "SelectorEntry"),
    ("Space", "NamespaceEntry"),
    ("Spot", "RuleCursor"),
    ("Subject", "PolicySet"),
    ("Table", "Coordinator"),
    ("Trouble", "Condition"),
    ("Turn", "RefChange"),
    ("Unknown", "UnknownAddresses"),
    ("Unreachable", "UnreachablePolicy"),
    ("Wanted", "Desired"),
    ("Ways", "Effect"),
    ("Work", "Dirty"),
    ("begins", "set"),
    ("carry_out", "apply, commit, execute, send"),
    ("ends", "clear"),
    ("foreign", "unrecognised"),
    ("forget", "flush_conntrack, or what is removed"),
    ("hear", "receive"),
    ("lacking", "first_unenforced"),
    ("lags", "first_unenforced"),
    ("mend", "repair"),
    ("move_in", "add_workload"),
    ("passed_over", "bypassed"),
    ("says", "report"),
    ("settle", "propagate, recompute, install"),
    ("take_back", "roll_back"),
    ("tell", "notify"),
    ("told", "to_response"),
    ("tells", "report"),
];

/// The declarations that bear one of these names because it is the field's own term there.
const KEPT: [(&str, &str, &str); 11] = [
    (
        "enforcer/nft-fake/src/table.rs",
        "Table",
        "a table of nftables",
    ),
    ("enforcer/nft/src/command.rs", "Family", "IPv4 or IPv6"),
    (
        "proto/identity/src/name.rs",
        "Subject",
        "the subject of a certificate (RFC 5280)",
    ),
    (
        "integration/simulation/src/judge.rs",
        "Judge",
        "the judge of a simulation",
    ),
    (
        "integration/src/bin/datapath/ways.rs",
        "Row",
        "a row of a printed table",
    ),
    (
        "integration/src/bin/faults/rows.rs",
        "Row",
        "a row of a printed table",
    ),
    (
        "integration/src/scenario/table.rs",
        "Table",
        "a table of nftables",
    ),
    ("integration/testbed/src/host.rs", "Family", "IPv4 or IPv6"),
    (
        "integration/testbed/src/services/iptables.rs",
        "Table",
        "a table of iptables",
    ),
    ("integration/tests/table.rs", "Table", "a table of nftables"),
    (
        "integration/tests/unlisted/table.rs",
        "Row",
        "a row of a document's table",
    ),
];

/// The folders of source code.
const FOLDERS: [&str; 11] = [
    "controlplane/src",
    "controlplane/cli",
    "enforcer/src",
    "enforcer/nft/src",
    "enforcer/nft-fake/src",
    "integration",
    "proto/src",
    "proto/identity/src",
    "proto/journal/src",
    "proto/policy/src",
    "proto/process/src",
];

/// The words that may stand before the keyword of a declaration.
const BEFORE: [&str; 4] = ["pub", "async", "const", "unsafe"];

const KEYWORDS: [&str; 7] = ["struct", "enum", "trait", "type", "fn", "mod", "const"];

/// The name that a line of source declares.
fn declared(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let mut word = words.next()?;
    loop {
        let next = words.next()?;
        let begins_name = |word: &str| word.starts_with(|c: char| c.is_alphabetic());
        if KEYWORDS.contains(&word) && begins_name(next) && !KEYWORDS.contains(&next) {
            let end = |c: char| !(c.is_alphanumeric() || c == '_');
            return next.split(end).next();
        }
        if !BEFORE.contains(&word) && !word.starts_with("pub(") {
            return None;
        }
        word = next;
    }
}

/// The source files, by their paths from the workspace's folder.
fn sources() -> Vec<(String, String)> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    let mut paths: Vec<PathBuf> = FOLDERS.map(|folder| workspace.join(folder)).into();
    while let Some(path) = paths.pop() {
        if path.ends_with("target") {
            continue;
        }
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("a folder");
            paths.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let file = path.strip_prefix(&workspace).expect("a file below");
            found.push((file.to_string_lossy().into_owned(), text));
        }
    }
    found
}

#[test]
fn no_declaration_bears_a_name_that_was_traded() {
    let mut kept: BTreeSet<(&str, &str)> =
        KEPT.iter().map(|(file, name, _)| (*file, *name)).collect();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (number, line) in (1..).zip(text.lines()) {
            let traded =
                declared(line).and_then(|name| TRADED.iter().find(|(private, _)| *private == name));
            let Some((private, instead)) = traded else {
                continue;
            };
            let keeps = KEPT
                .iter()
                .find(|(of, name, _)| *of == file && name == private);
            match keeps {
                Some((of, name, _)) => _ = kept.remove(&(*of, *name)),
                None => wrong.push(format!("{file}:{number} declares {private}: say {instead}")),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(
        kept.is_empty(),
        "no declaration bears these names any more, take them off the list: {kept:?}"
    );
}

#[test]
fn declarations_are_read() {
    for (line, name) in [
        ("pub(super) struct Leg {", Some("Leg")),
        ("    pub async fn tell(&self) {", Some("tell")),
        ("    const fn mend<T>() {", Some("mend")),
        ("pub const Now: u8 = 1;", Some("Now")),
        ("mod mend;", Some("mend")),
        ("    tell(x);", None),
        ("/// fn mend", None),
        ("let mend = 1;", None),
    ] {
        assert_eq!(declared(line), name, "{line}");
    }
}
