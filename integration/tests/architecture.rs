//! The arrows of docs/ARCHITECTURE.md hold: between the crates, and between the modules of each.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    assert_eq!(own_dependencies("proto/journal"), set(&[]));
    assert_eq!(own_dependencies("proto/policy"), set(&[]));
    assert_eq!(own_dependencies("proto/process"), set(&[]));
    assert_eq!(own_dependencies("proto"), set(&["policy"]));
    assert_eq!(own_dependencies("proto/identity"), set(&["process"]));
    let both_ends = set(&["identity", "journal", "policy", "process", "proto"]);
    // Its tests turn on its own feature `reference`.
    let mut controlplane = both_ends;
    controlplane.insert("controlplane".to_owned());
    assert_eq!(own_dependencies("controlplane"), controlplane);
    // The walls of the enforcer: nftables in general, and a model of the kernel for tests.
    assert_eq!(own_dependencies("enforcer/nft"), set(&[]));
    assert_eq!(own_dependencies("enforcer/nft-fake"), set(&["nft"]));
    assert_eq!(
        own_dependencies("enforcer"),
        set(&[
            "identity", "journal", "nft", "nft-fake", "policy", "process", "proto"
        ])
    );
    // The CLI is a client of the API, and of nothing else of the control plane.
    assert_eq!(
        own_dependencies("controlplane/cli"),
        set(&["identity", "process", "proto"])
    );
    assert_eq!(own_dependencies("integration/oracle"), set(&[]));
    assert_eq!(own_dependencies("integration/testbed"), set(&[]));
    assert_eq!(
        own_dependencies("integration/simulation"),
        set(&[
            "controlplane",
            "enforcer",
            "nft",
            "nft-fake",
            "policy",
            "proto"
        ])
    );
    assert_eq!(
        own_dependencies("integration"),
        set(&[
            "controlplane",
            "enforcer",
            "identity",
            "nft",
            "nft-fake",
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
    for member in [
        "controlplane/cli",
        "proto",
        "proto/identity",
        "proto/policy",
        "proto/process",
    ] {
        let manifest = manifest(member);
        for library in ["sallyport-journal", "sled", "k8s-openapi"] {
            let named = manifest.lines().any(|line| line.starts_with(library));
            assert!(!named, "{member} depends on {library}");
        }
    }
}

/// The model of the kernel is for tests. No program has it.
#[test]
fn products_have_no_model_of_the_kernel() {
    let manifest = manifest("enforcer");
    let (product, tests) = manifest
        .split_once("[dev-dependencies]")
        .expect("dependencies of tests");
    assert!(!product.contains("sallyport-nft-fake"));
    assert!(tests.contains("sallyport-nft-fake"));
}

/// sled belongs to the crate of the journals' shared half. No other crate depends on it, tests included.
#[test]
fn only_the_journal_crate_depends_on_sled() {
    let root = fs::read_to_string(workspace().join("Cargo.toml")).expect("a manifest");
    let (_, rest) = root.split_once("members = [").expect("members");
    let (members, _) = rest.split_once(']').expect("an end of the members");
    let owners: Vec<_> = members
        .split('"')
        .filter(|member| member.starts_with(|c: char| c.is_alphabetic()))
        .filter(|member| {
            manifest(member)
                .lines()
                .any(|line| line.starts_with("sled"))
        })
        .collect();
    assert_eq!(owners, ["proto/journal"]);
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
    let above = ["journal", "agent", "session", "preflight", "guard"];
    never("enforcer", &["table"], &["plan"]);
    never("enforcer", &["table", "plan"], &above);
    never("enforcer", &["journal"], &["agent", "session"]);
    never("enforcer", &["agent"], &["session"]);
    never("enforcer", &["guard", "places"], &["agent", "session"]);
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
    let edge = ["api", "stream", "server", "config", "listener", "access"];
    never("controlplane", &pure, &edge);
    never("controlplane", &pure, &["writer", "journal", "nodes"]);
    never(
        "controlplane",
        &["journal", "writer", "nodes", "history"],
        &edge,
    );
    never("controlplane", &["journal"], &["writer", "nodes"]);
}

/// The files that each file of the compiler imports, by module path within the crate.
fn imports_of_the_compiler() -> BTreeMap<String, BTreeSet<String>> {
    let source = workspace().join("controlplane/src");
    let mut texts = BTreeMap::new();
    let mut paths = vec![source.join("compile.rs"), source.join("compile")];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("a folder");
            paths.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else {
            let module = path.with_extension("");
            let module = module.strip_prefix(&source).expect("a file below");
            let module = module.to_string_lossy().replace('/', "::");
            texts.insert(module, fs::read_to_string(path).expect("a source file"));
        }
    }
    texts
        .iter()
        .map(|(module, text)| (module.clone(), imports(module, text, &texts)))
        .collect()
}

/// The modules among `all` that a module names, in `use` declarations and in paths that begin with `crate` or `super`.
fn imports(module: &str, text: &str, all: &BTreeMap<String, String>) -> BTreeSet<String> {
    // Tests may look at whatever they test.
    let text = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim())
        .collect();
    let code = code.join("\n");
    let declarations = code.split("use ").skip(1);
    let trees = declarations.map(|rest| rest.split(';').next().unwrap_or_default());
    let mut named: Vec<String> = trees
        .flat_map(|tree| paths(&tree.split_whitespace().collect::<String>()))
        .collect();
    let is_path = |character: char| character.is_alphanumeric() || "_:".contains(character);
    let words = code.split(|character| !is_path(character));
    // A path that ends with colons is the trunk of a tree.
    let paths = words.filter(|word| !word.ends_with(':'));
    let anywhere = paths.filter(|path| path.starts_with("crate::") || path.starts_with("super::"));
    named.extend(anywhere.map(str::to_owned));
    named
        .iter()
        .filter_map(|path| resolve(module, path, all))
        .filter(|target| target != module)
        .collect()
}

/// The module among `all` that has the item of a path, as a module names it.
fn resolve(module: &str, path: &str, all: &BTreeMap<String, String>) -> Option<String> {
    let mut base: Vec<&str> = module.split("::").collect();
    let mut is_ours = false;
    let mut steps = path.split("::").peekable();
    while let Some(keyword) = steps.next_if(|step| ["crate", "self", "super"].contains(step)) {
        match keyword {
            "crate" => base.clear(),
            "super" => _ = base.pop(),
            _ => {}
        }
        is_ours = true;
    }
    // A path without a keyword begins with a child module, or with another crate.
    let steps = steps.filter(|&step| step != "self");
    for step in steps {
        base.push(step);
        if !is_ours && !all.contains_key(&base.join("::")) {
            return None;
        }
        is_ours = true;
    }
    // The longest part of the path that is a file. The rest names an item of it.
    while !base.is_empty() && !all.contains_key(&base.join("::")) {
        base.pop();
    }
    (!base.is_empty()).then(|| base.join("::"))
}

/// The paths of a tree of imports without white space: `a::{b,c::D}` is `a::b` and `a::c::D`.
fn paths(tree: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![tree.into()];
    };
    let mut found = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, character) in rest.char_indices() {
        match character {
            '{' => depth += 1,
            ',' | '}' if depth == 0 => {
                let inner = paths(&rest[start..at]);
                let inner = inner.iter().filter(|path| !path.is_empty());
                found.extend(inner.map(|path| format!("{head}{path}")));
                start = at + 1;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

/// A circle of imports, as the modules on the way around it.
fn circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        if let Some(found) = circle_from(module, imports, &mut Vec::new(), &mut done) {
            return Some(found);
        }
    }
    None
}

fn circle_from(
    module: &str,
    imports: &BTreeMap<String, BTreeSet<String>>,
    way: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(at) = way.iter().position(|earlier| earlier == module) {
        return Some([&way[at..], &[module.to_owned()]].concat());
    }
    if !done.contains(module) {
        way.push(module.to_owned());
        for next in imports.get(module).into_iter().flatten() {
            if let Some(found) = circle_from(next, imports, way, done) {
                return Some(found);
            }
        }
        way.pop();
        done.insert(module.to_owned());
    }
    None
}

#[test]
fn files_of_the_compiler_import_each_other_in_no_circle() {
    let mut imports = imports_of_the_compiler();
    let circle_of = |imports: &_| circle(imports).map(|way| way.join(" -> "));
    assert_eq!(circle_of(&imports), None);
    // The parser found the arrows, so that one arrow back is a circle.
    assert!(imports["compile::propagate"].contains("compile::compiler"));
    assert!(imports["compile::propagate::sources"].contains("compile::sources"));
    assert!(imports["compile"].contains("compile::full"));
    let workloads = imports.get_mut("compile::workloads").expect("a module");
    assert!(workloads.contains("compile::slab") && !workloads.contains("compile::classes"));
    workloads.insert("compile::classes".into());
    assert_eq!(
        circle_of(&imports).as_deref(),
        Some("compile::classes -> compile::holders -> compile::workloads -> compile::classes")
    );
}

#[test]
fn paths_of_imports_are_resolved() {
    let all = ["compile", "compile::a", "compile::b", "compile::b::c"];
    let all = all.map(|module| (module.to_owned(), String::new())).into();
    let of = |module, text| Vec::from_iter(imports(module, text, &all));
    assert_eq!(
        of("compile::a", "use super::{b::{self, c::C}, d};"),
        ["compile", "compile::b", "compile::b::c"]
    );
    assert_eq!(
        of("compile::b::c", "use crate::compile::a::A;"),
        ["compile::a"]
    );
    assert_eq!(
        of("compile::b::c", "use super::super::a::A;"),
        ["compile::a"]
    );
    assert_eq!(
        of("compile", "mod a;\npub use a::A;\nuse self::b::B;"),
        ["compile::a", "compile::b"]
    );
    assert_eq!(of("compile::a", "// use super::b;\nuse std::fmt;"), [""; 0]);
}

/// The oracle judges the compiler, so it must share nothing with it: not its model, not its manifests, not the
/// libraries that these are made of. Its code can name only crates that its manifest names.
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
    let owners: [(&str, &str, &[&str]); 6] = [
        ("enforcer", "sallyport_journal::", &["journal"]),
        ("enforcer", "rtnetlink::", &["bridges", "places"]),
        ("controlplane", "sallyport_journal::", &["journal"]),
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
