//! The arrows of docs/ARCHITECTURE.md hold: between the crates, and between the modules of each.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manifest(member: &str) -> String {
    fs::read_to_string(workspace().join(member).join("Cargo.toml")).expect("a manifest")
}

/// The crates of ours that a crate depends on, tests included.
fn own_dependencies(member: &str) -> BTreeSet<String> {
    manifest(member)
        .lines()
        .filter_map(|line| {
            line.strip_prefix("sallyport-")?
                .split(['.', ' ', '='])
                .next()
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_point_one_way() {
    let set = |names: &[&str]| {
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(own_dependencies("proto/policy"), set(&[]));
    assert_eq!(own_dependencies("proto/process"), set(&[]));
    assert_eq!(own_dependencies("proto"), set(&["policy"]));
    let both_ends = set(&["policy", "process", "proto"]);
    assert_eq!(own_dependencies("controlplane"), both_ends);
    assert_eq!(own_dependencies("enforcer"), both_ends);
    // The CLI is a client of the API, and of nothing else of the control plane.
    assert_eq!(
        own_dependencies("controlplane/cli"),
        set(&["process", "proto"])
    );
    assert_eq!(own_dependencies("integration/oracle"), set(&[]));
    assert_eq!(own_dependencies("integration/testbed"), set(&[]));
    assert_eq!(
        own_dependencies("integration/simulation"),
        set(&["controlplane", "enforcer", "policy", "proto"])
    );
    assert_eq!(
        own_dependencies("integration"),
        set(&[
            "controlplane",
            "enforcer",
            "oracle",
            "policy",
            "proto",
            "testbed"
        ])
    );
}

/// The CLI opens no journal and knows no type of Kubernetes, and neither does what it depends on.
#[test]
fn the_cli_is_a_client() {
    for member in ["controlplane/cli", "proto", "proto/policy", "proto/process"] {
        let manifest = manifest(member);
        for library in ["sled", "k8s-openapi"] {
            let named = manifest.lines().any(|line| line.starts_with(library));
            assert!(!named, "{member} depends on {library}");
        }
    }
}

/// The text of a module: its file, unless that is `mod.rs`, and those below it.
fn module(member: &str, name: &str) -> String {
    let source = workspace().join(member).join("src");
    let mut text = fs::read_to_string(source.join(format!("{name}.rs"))).unwrap_or_default();
    let mut folders = vec![source.join(name)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                text += &fs::read_to_string(path).expect("a source file");
            }
        }
    }
    assert!(!text.is_empty(), "{member} has no module {name}");
    text
}

/// Whether a module's text names another module of its crate.
fn names(text: &str, other: &str) -> bool {
    // `use crate::{a, b}` names modules inside braces, too.
    let grouped = text.split("use crate::{").skip(1).any(|rest| {
        let group = rest.split(";").next().unwrap_or_default();
        let words = group.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        words.into_iter().any(|word| word == other)
    });
    grouped
        || text.contains(&format!("crate::{other}::"))
        || text.contains(&format!("crate::{other};"))
}

fn never(member: &str, modules: &[&str], others: &[&str]) {
    for name in modules {
        let text = module(member, name);
        for other in others {
            assert!(!names(&text, other), "{member}: {name} names {other}");
        }
    }
}

#[test]
fn modules_of_the_enforcer_point_one_way() {
    never(
        "enforcer",
        &["nft", "plan"],
        &["netlink", "journal", "agent", "session", "preflight"],
    );
    never("enforcer", &["netlink", "journal"], &["agent", "session"]);
    never("enforcer", &["agent"], &["session"]);
    never("enforcer", &["guard", "places"], &["agent", "session"]);
    // The fake kernel is an oracle of plans: it shares nothing with what makes them.
    never(
        "enforcer",
        &["fake"],
        &["plan", "journal", "agent", "session", "preflight"],
    );
    assert!(!module("enforcer", "fake").contains("render"));
}

#[test]
fn modules_of_the_control_plane_point_one_way() {
    let pure = [
        "model",
        "cluster",
        "validate",
        "manifest",
        "transaction",
        "compile",
    ];
    let edge = ["api", "stream", "server", "config", "listener"];
    never("controlplane", &pure, &edge);
    never("controlplane", &pure, &["writer", "journal", "nodes"]);
    never(
        "controlplane",
        &["journal", "writer", "nodes", "history"],
        &edge,
    );
    never("controlplane", &["journal"], &["writer", "nodes"]);
}

/// The oracle judges the compiler, so it must share nothing with it: not its model, not its manifests, not the libraries
/// that these are made of. Its code can name only crates that its manifest names.
#[test]
fn the_oracle_shares_nothing() {
    let manifest = manifest("integration/oracle");
    let (_, dependencies) = manifest.split_once("\n[").expect("a second table");
    let shared = ["k8s-openapi", "ipnetwork", "imbl"];
    let named: Vec<_> = dependencies
        .split(|c: char| !(c.is_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with("sallyport") || shared.contains(word))
        .collect();
    assert!(named.is_empty(), "the oracle depends on {named:?}");
}

#[test]
fn only_its_owner_names_a_library() {
    let owners: [(&str, &str, &[&str]); 7] = [
        ("enforcer", "sled::", &["journal"]),
        ("enforcer", "rustables::", &["nft", "netlink"]),
        ("enforcer", "rtnetlink::", &["bridges", "places"]),
        ("controlplane", "sled::", &["journal"]),
        ("controlplane", "k8s_openapi::", &["manifest", "validate"]),
        ("controlplane/cli", "comfy_table::", &["output"]),
        ("controlplane/cli", "tonic::", &["client", "failure"]),
    ];
    for (member, library, owners) in owners {
        let source = workspace().join(member).join("src");
        for entry in fs::read_dir(source).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let is_module = path.extension().is_some_and(|ending| ending == "rs");
            if is_module && !owners.contains(&name.as_str()) {
                let text = module(member, &name);
                assert!(!text.contains(library), "{member}: {name} names {library}");
            }
        }
    }
}
