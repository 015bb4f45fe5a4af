//! Workloads whose traffic passes the forward hook by: the node names each as a condition, nothing counts as enforced
//! while there is one, and edits go on all the same.

use std::{
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use sallyport_integration::{
    deployment::{Deployment, delete, put},
    pods,
};
use sallyport_proto::wire::{Condition, NodeStatus, condition::Kind, node_status::State};
use sallyport_testbed::{
    Mode, Testbed,
    kernel_tests::{Failed, Outcome},
};

use super::{PODS, all, cluster, scrape};

/// Within this time it is to be known: flowtables are listed every second.
const SOON: Duration = Duration::from_secs(3);

/// A node that routes for two pods, and the interfaces that they are behind.
struct Scene {
    deployment: Deployment,
    revision: u64,
    server: String,
}

impl Scene {
    fn new() -> Result<Scene, Failed> {
        let bed = Testbed::builder().nodes(1).mode(Mode::Routed).build()?;
        pods::add(&bed, &PODS)?;
        let server = bed.interface_of("default/server")?;
        let (plane, enforcer) = (
            ["--metrics", "127.0.0.1:9101"],
            ["--metrics", "127.0.0.1:9100"],
        );
        let deployment = Deployment::start_with(bed, &plane, &enforcer, Default::default())?;
        let revision = deployment.client()?.enforce(cluster())?;
        let scene = Scene {
            deployment,
            revision,
            server,
        };
        scene.stands(None)?;
        Ok(scene)
    }

    fn status(&self) -> Result<NodeStatus, Failed> {
        let nodes = self.deployment.client()?.status()?.nodes;
        Ok(nodes.into_iter().next().ok_or("there is no node")?)
    }

    /// Returns the condition once the node has one of a kind and no other, or once it has none. Says how long it took.
    fn stands(&self, kind: Option<Kind>) -> Result<Option<Condition>, Failed> {
        let at = Instant::now();
        loop {
            let node = self.status()?;
            let kinds: Vec<Kind> = node.conditions.iter().map(Condition::kind).collect();
            if kinds == Vec::from_iter(kind) && node.state() == State::Enforcing {
                println!("{kind:?} after {:?}", at.elapsed());
                return Ok(node.conditions.into_iter().next());
            }
            if at.elapsed() > SOON {
                return Err(format!("not {kind:?} within {SOON:?}: {node:?}").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// One workload is not judged, and all say so in these words; an edit takes effect all the same.
    fn is_not_judged(&mut self, words: &[&str], reason: &str) -> Outcome {
        let condition = self.stands(Some(Kind::NotJudged))?;
        all(&condition.unwrap_or_default().message, words)?;
        let (code, said) = self.run(&["wait", "--timeout", "300ms"])?;
        all(&said, &["timed out", "node-1: enforcing for "])?;
        all(&said, &["but traffic of these workloads bypasses policy:"])?;
        all(&said, words)?;
        if code != Some(4) {
            return Err(format!("exit code {code:?}").into());
        }
        let (_, said) = self.run(&["status"])?;
        println!("{said}");
        all(
            &said,
            &["conditions:\n  node-1, for ", "not judged: workload "],
        )?;
        let node = self.deployment.bed.node(0).netns();
        let line = format!("sallyport_enforcer_not_judged_workloads{{reason=\"{reason}\"}} 1");
        all(&scrape(node, 9100)?, &[&line])?;
        let line = format!("sallyport_controlplane_not_judged_nodes{{reason=\"{reason}\"}} 1");
        let lines = [&*line, "sallyport_controlplane_revision_enforced 0"];
        all(&scrape(self.deployment.bed.fabric().netns(), 9101)?, &lines)?;
        let log = self.deployment.log("node-1");
        all(
            &log,
            &["the traffic of a workload bypasses policy", words[1]],
        )?;
        self.an_edit_goes_on()
    }

    /// All is judged again.
    fn is_judged(&self) -> Outcome {
        self.stands(None)?;
        self.is_enforced()
    }

    fn is_enforced(&self) -> Outcome {
        match self.run(&["wait", "--timeout", "5s"])? {
            (Some(0), said) => all(&said, &["enforced on 1 node"]),
            (_, said) => Err(said.into()),
        }
    }

    fn an_edit_goes_on(&mut self) -> Outcome {
        // Each edit changes both a removal and an addition.
        let port = 8002 + self.revision;
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: default, name: in}}\nspec: \
             {{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{{ports: [{{protocol: UDP, \
             port: {port}}}]}}]}}\n"
        );
        self.revision = self.deployment.client()?.apply(vec![put(text)])?;
        let at = Instant::now();
        loop {
            let node = self.status()?;
            if node.enforced_revision == self.revision && node.pending_revision == 0 {
                return Ok(());
            }
            if at.elapsed() > SOON {
                return Err(format!("the edit is held back: {node:?}").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, String), Failed> {
        let output = self.deployment.sallyport(Path::new("/"), arguments)?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into()))
    }

    /// Runs a program in the node's network namespace. Returns what it says where it fails.
    fn node(&self, program: &str, arguments: &str) -> Result<Result<(), String>, Failed> {
        let netns = self.deployment.bed.node(0).netns();
        let mut command = netns.command(program);
        command.args(arguments.split(' ')).stderr(Stdio::piped());
        let output = netns.spawn(command)?.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(output.status.success().then_some(()).ok_or(said))
    }

    fn ip(&self, arguments: &str) -> Outcome {
        Ok(self.node("ip", arguments)??)
    }
}

pub(super) fn own_address() -> Outcome {
    let mut scene = Scene::new()?;
    scene.ip("address add 10.9.1.3/32 dev lo")?;
    let words = ["default/server (10.9.1.3)", "the address is the node's own"];
    scene.is_not_judged(&words, "own-address")?;
    scene.ip("address del 10.9.1.3/32 dev lo")?;
    scene.is_judged()?;
    let log = scene.deployment.log("node-1");
    all(&log, &["no workload's traffic bypasses policy any more"])
}

/// Whoever waits for the edit that declares such a workload is not told that it is enforced, however soon the node
/// acknowledges it.
pub(super) fn a_wait_for_its_own_edit() -> Outcome {
    let scene = Scene::new()?;
    scene.ip("address add 10.9.1.9/32 dev lo")?;
    let workload = "
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: own}
spec: {node: node-1, addresses: [10.9.1.9]}
";
    let mut api = scene.deployment.client()?;
    for number in 0..20 {
        let revision = api.apply(vec![put(workload)])?;
        if api.is_enforced_within(revision, Duration::from_millis(100))? {
            return Err(format!("edit {number} counts as enforced").into());
        }
        api.enforce(vec![delete(workload)])?;
    }
    Ok(())
}

pub(super) fn macvlan() -> Outcome {
    let mut scene = Scene::new()?;
    let server = scene.server.clone();
    let added = format!("link add m0 link {server} type macvlan mode bridge");
    if let Err(error) = scene.node("ip", &added)? {
        println!("skipped: this kernel makes no macvlan device ({error})");
        return Ok(());
    }
    scene.ip("link set m0 up")?;
    scene.ip("route replace 10.9.1.3/32 dev m0")?;
    let words = [
        "default/server (10.9.1.3)",
        "the workload is behind m0, a macvlan device",
    ];
    scene.is_not_judged(&words, "device")?;
    // The route goes with the device.
    scene.ip("link del m0")?;
    let condition = scene.stands(Some(Kind::NoRoute))?.unwrap_or_default();
    all(
        &condition.message,
        &["workloads default/server (10.9.1.3): "],
    )?;
    scene.is_enforced()?;
    let line = "sallyport_enforcer_not_judged_workloads{reason=\"no-route\"} 1";
    let node = scene.deployment.bed.node(0).netns();
    all(&scrape(node, 9100)?, &[line])?;
    scene.ip(&format!("route add 10.9.1.3/32 dev {server}"))?;
    scene.is_judged()
}

pub(super) fn flowtable() -> Outcome {
    let scene = Scene::new()?;
    scene.node("nft", "add table inet shortcut")??;
    let server = &scene.server;
    let added = format!(
        "add flowtable inet shortcut fast {{ hook ingress priority 0; devices = {{ {server} }}; }}"
    );
    if let Err(error) = scene.node("nft", &added)? {
        // Then there is nothing to be found, and nothing that it says of it.
        println!("this kernel makes no flowtable ({error})");
        scene.is_judged()?;
        return match scene.deployment.log("node-1").contains("flowtable") {
            true => Err(scene.deployment.log("node-1").into()),
            false => Ok(()),
        };
    }
    // The node has both addresses of the workload.
    let at = Instant::now();
    loop {
        let node = scene.status()?;
        let conditions = node.conditions.iter();
        let unjudged = conditions.filter(|one| one.kind() == Kind::NotJudged);
        let words: Vec<&str> = unjudged.map(|one| &*one.message).collect();
        let takes = format!(
            "the flowtable inet shortcut fast takes packets of established connections from {server} "
        );
        if words.len() == 2 && words.iter().all(|words| words.contains(&takes)) {
            println!("{words:?} after {:?}", at.elapsed());
            break;
        }
        if at.elapsed() > SOON {
            return Err(format!("not two within {SOON:?}: {node:?}").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    scene.node("nft", "delete table inet shortcut")??;
    scene.is_judged()
}
