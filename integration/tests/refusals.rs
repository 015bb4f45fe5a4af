//! Bad input, by the CLI against a real control plane: each is refused with a message that names the field and the
//! remedy, and of a refused transaction nothing is visible anywhere.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{ExitCode, Output},
};

use sallyport_integration::{binaries::binaries, deployment::Deployment};
use sallyport_proto::wire::Kind;
use sallyport_testbed::{
    Testbed,
    kernel_tests::{self, Failed, Outcome},
};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[("a_refusal_names_its_reason_and_leaves_nothing", refusals)])
}

const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: demo}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-2}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: demo, name: web}
spec: {node: node-1, addresses: [10.9.1.2]}
";

/// A valid object in front of each bad one: it must not be there afterwards.
const WITNESS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: witness}
---
";

struct Case {
    name: &'static str,
    manifest: &'static str,
    arguments: &'static [&'static str],
    exit: i32,
    /// The texts that the message must contain.
    says: &'static [&'static str],
}

const CASES: [Case; 10] = [
    Case {
        name: "malformed YAML",
        manifest: "apiVersion: v1\nkind: Namespace\nmetadata: {name: x\n",
        arguments: &[],
        exit: 1,
        says: &["bad.yaml:", "8:", "malformed"],
    },
    Case {
        name: "unknown field",
        manifest: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {podSelector: {}, ingres: []}\n",
        arguments: &[],
        exit: 1,
        says: &["NetworkPolicy demo/p", "unknown field \"spec.ingres\""],
    },
    Case {
        name: "unknown kind",
        manifest: "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: p, namespace: demo}\n",
        arguments: &[],
        exit: 1,
        says: &["Deployment", "NetworkPolicy"],
    },
    Case {
        name: "invalid policy",
        manifest: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {podSelector: {}, ingress: [{ports: [{port: 70000}]}]}\n",
        arguments: &[],
        exit: 1,
        says: &[
            "spec.ingress[0].ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ],
    },
    Case {
        name: "missing namespace",
        manifest: "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: nowhere}\nspec: {podSelector: {}}\n",
        arguments: &[],
        exit: 1,
        says: &["namespaces \"nowhere\" not found"],
    },
    Case {
        name: "missing node",
        manifest: "apiVersion: sallyport.dev/v1\nkind: Workload\nmetadata: {namespace: demo, name: db}\nspec: {node: nobody, addresses: [10.9.1.9]}\n",
        arguments: &[],
        exit: 1,
        says: &["nodes \"nobody\" not found"],
    },
    Case {
        name: "name used by another kind",
        manifest: "apiVersion: v1\nkind: Pod\nmetadata: {namespace: demo, name: web}\nspec: {nodeName: node-2}\n",
        arguments: &[],
        exit: 1,
        says: &[
            "workloads.sallyport.dev \"web\" already exists",
            "a Pod and a Workload cannot share a name",
        ],
    },
    Case {
        name: "address used by another, dry run",
        manifest: "apiVersion: sallyport.dev/v1\nkind: Workload\nmetadata: {namespace: demo, name: db}\nspec: {node: node-2, addresses: [10.9.1.2]}\n",
        arguments: &["--dry-run"],
        exit: 0,
        says: &[
            "warning: address 10.9.1.2",
            "demo/db",
            "demo/web",
            "dry run",
        ],
    },
    Case {
        name: "stale expected revision",
        manifest: "apiVersion: v1\nkind: Namespace\nmetadata: {name: more}\n",
        arguments: &["--expected-revision", "99"],
        exit: 5,
        says: &["the current revision is 1, not 99"],
    },
    Case {
        name: "dry run",
        manifest: "apiVersion: v1\nkind: Namespace\nmetadata: {name: more}\n",
        arguments: &["--dry-run"],
        exit: 0,
        says: &["namespace/more created", "dry run"],
    },
];

type Visible = (BTreeMap<i32, Vec<String>>, String, String);

fn refusals() -> Outcome {
    let bed = Testbed::builder().nodes(2).build()?;
    bed.add_pod(0, "demo/web", &[[10, 9, 1, 2].into()])?;
    let deployment = Deployment::start(bed, &[])?;
    let directory = tempfile::tempdir()?;
    let apply = |text: &str, more: &[&str]| -> Result<Output, Failed> {
        std::fs::write(directory.path().join("bad.yaml"), text)?;
        let arguments = [&["apply", "-f", "bad.yaml"], more].concat();
        Ok(deployment.sallyport(directory.path(), &arguments)?)
    };
    let first = apply(CLUSTER, &["--wait"])?;
    check("the cluster", &first, 0, &["revision 1"])?;
    let before = visible(&deployment, directory.path())?;
    for case in &CASES {
        let output = apply(&format!("{WITNESS}{}", case.manifest), case.arguments)?;
        check(case.name, &output, case.exit, case.says)?;
        if visible(&deployment, directory.path())? != before {
            return Err(format!(
                "{}: something of the refused transaction is visible",
                case.name
            )
            .into());
        }
    }
    let large = format!("{WITNESS}{}", "# nothing but a comment\n".repeat(3 << 20));
    check("oversized request", &apply(&large, &[])?, 1, &["64 MiB"])?;
    if visible(&deployment, directory.path())? != before {
        return Err("something of the oversized transaction is visible".into());
    }
    let nowhere = deployment.sallyport(
        directory.path(),
        &["--server", "http://127.0.0.1:1", "get", "ns"],
    )?;
    check(
        "control plane unreachable",
        &nowhere,
        3,
        &["http://127.0.0.1:1", "--server"],
    )
}

fn check(name: &str, output: &Output, exit: i32, says: &[&str]) -> Outcome {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = text(&output.stdout) + &text(&output.stderr);
    println!("--- {name} (exit {:?})\n{all}", output.status.code());
    if output.status.code() != Some(exit) {
        return Err(format!(
            "{name}: exit {:?} instead of {exit}: {all}",
            output.status.code()
        )
        .into());
    }
    match says.iter().find(|words| !all.contains(*words)) {
        Some(words) => Err(format!("{name}: the message does not say {words:?}: {all}").into()),
        None => Ok(()),
    }
}

/// Everything that a transaction could show in: the objects, the revision, the node's ruleset.
fn visible(deployment: &Deployment, directory: &Path) -> Result<Visible, Failed> {
    let mut client = deployment.client()?;
    let mut objects = BTreeMap::new();
    for kind in [
        Kind::Namespace,
        Kind::Node,
        Kind::NetworkPolicy,
        Kind::Pod,
        Kind::Workload,
    ] {
        objects.insert(kind.into(), client.names(kind)?.into_iter().collect());
    }
    let status = deployment.sallyport(directory, &["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    Ok((
        objects,
        status["revision"].to_string(),
        deployment.ruleset(0)?,
    ))
}
