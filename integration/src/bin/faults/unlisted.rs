//! Frames and addresses that no policy judges, sent to the server by its neighbour, on a bridge or by a router, while
//! everything around what keeps them out fails. None may arrive; in the end that is taken away, and all do.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sallyport_integration::deployment::put;
use sallyport_testbed::frames::{Kind, Party, Rain};

use crate::{
    Settings,
    scene::{FAR, Scene, addresses, policy, workload},
};

/// The kinds of frames that are dropped between workloads of a bridge, whether their ports are known or not.
const KINDS: [Kind; 11] = [
    Kind::Stranger4,
    Kind::Stranger6,
    Kind::LinkLocal,
    Kind::ToLinkLocal,
    Kind::Multicast4,
    Kind::Broadcast,
    Kind::RouterAdvertisement,
    Kind::Redirect6,
    Kind::DhcpReply,
    Kind::PriorityTag,
    Kind::StackedTags,
];

const TABLE: [&str; 4] = ["delete", "table", "bridge", "sallyport"];

fn party(scene: &Scene, name: &str) -> Result<Party> {
    let host = scene
        .deployment
        .bed
        .host(name)
        .context("a pod is missing")?;
    let (mac, router) = scene.deployment.bed.macs_of(name)?;
    Ok(Party::new(host, mac, router))
}

/// Runs nft on a table whose owner has died: the kernel removes the owner a moment after its death.
fn run_nft(scene: &Scene, words: &[&str]) -> Result<()> {
    for _ in 0..100 {
        if scene.deployment.nft(FAR, words)? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("`nft {}` fails", words.join(" "))
}

/// Ends a rain of which nothing may have arrived. Returns how many frames were sent.
fn nothing_arrived(rain: Rain) -> Result<u64> {
    let (sent, arrived) = (rain.sent(), rain.arrived());
    ensure!(
        arrived.is_empty(),
        "arrived, of {sent} that were sent: {arrived:?}"
    );
    ensure!(sent > 1_000, "only {sent} were sent");
    Ok(sent)
}

/// Ends a rain after a second. Returns how many frames of each kind arrived.
fn arrives(rain: Rain) -> BTreeMap<Kind, u64> {
    thread::sleep(Duration::from_secs(1));
    rain.arrived()
}

/// Kills and starts the enforcer, edits policies and workloads, loses the control plane and br_netfilter's sysctl.
pub(crate) fn on_a_bridge(scene: &mut Scene, _: Settings) -> Result<String> {
    let (neighbour, server) = (
        party(scene, "default/neighbour")?,
        party(scene, "default/server")?,
    );
    let declared = workload("neighbour", FAR, "app: neighbour", &addresses(FAR, 3));
    scene.edit(declared.clone())?;
    let start = || {
        Rain::start(&neighbour, &server, &neighbour, false, &KINDS)
            .map_err(|error| anyhow!("{error}"))
    };
    let rain = start()?;
    let pause = || thread::sleep(Duration::from_millis(300));
    for round in 0..3u16 {
        scene.deployment.kill_enforcer(FAR);
        pause();
        scene.deployment.start_enforcer(FAR)?;
        scene.edit(policy(
            "more",
            "app: server",
            true,
            "app: client",
            &[(9600 + round, 9600 + round)],
        ))?;
        // Ports become known, and are not known any more.
        for name in ["default/neighbour", "default/server"] {
            let interface = scene.deployment.bed.interface_of(name)?;
            let (_, name) = name.split_once('/').context("it has a namespace")?;
            let number = if name == "server" { 2 } else { 3 };
            let labels = format!("app: {name}");
            let known = workload(name, FAR, &labels, &addresses(FAR, number));
            let known = known.replace("spec: {", &format!("spec: {{interface: {interface}, "));
            scene.client()?.enforce(vec![put(known)])?;
            pause();
        }
        scene.deployment.stop_control_plane();
        pause();
        scene.deployment.start_control_plane()?;
        scene.edit(declared.clone())?;
        let node = scene.deployment.bed.node(FAR);
        node.sysctl("net.bridge.bridge-nf-call-ip6tables", "0")?;
        pause();
        node.sysctl("net.bridge.bridge-nf-call-ip6tables", "1")?;
    }
    let sent = nothing_arrived(rain)?;
    // The control.
    scene.deployment.kill_enforcer(FAR);
    run_nft(scene, &TABLE)?;
    let leaked = arrives(start()?);
    for kind in [
        Kind::LinkLocal,
        Kind::PriorityTag,
        Kind::StackedTags,
        Kind::RouterAdvertisement,
    ] {
        ensure!(
            leaked.contains_key(&kind),
            "{kind} does not arrive without the table"
        );
    }
    scene.deployment.start_enforcer(FAR)?;
    Ok(format!(
        "0 of {sent} frames arrived; without the table, {} of {} kinds",
        leaked.len(),
        KINDS.len()
    ))
}

/// Sources that are not the sender's, of strangers whom policy lets in and of a workload of another node.
const FORGED: [Kind; 4] = [
    Kind::Stranger4,
    Kind::Stranger6,
    Kind::Another4,
    Kind::Another6,
];

/// The port that the frames are sent to.
const PORT: u16 = 7000;

/// Lets in the strangers, so that nothing but the check of sources is in their way.
const STRANGERS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: strangers}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: '2001:db8::/32'}}]}]
";

/// Kills and starts the enforcer, edits policies, names the interface of the sender and does not, loses the control
/// plane.
pub(crate) fn by_a_router(scene: &mut Scene, _: Settings) -> Result<String> {
    let bed = &scene.deployment.bed;
    bed.add_pod(FAR, "default/neighbour", &addresses(FAR, 3))?;
    let (neighbour, server) = (
        party(scene, "default/neighbour")?,
        party(scene, "default/server")?,
    );
    let client = party(scene, "default/client")?;
    let declared = workload("neighbour", FAR, "app: neighbour", &addresses(FAR, 3));
    let interface = scene.deployment.bed.interface_of("default/neighbour")?;
    let named = declared.replace("spec: {", &format!("spec: {{interface: {interface}, "));
    scene.client()?.enforce(vec![put(declared.clone())])?;
    scene.client()?.enforce(vec![put(STRANGERS)])?;
    let ports = [(PORT, PORT)];
    scene.edit(policy("frames", "app: server", true, "app: client", &ports))?;
    let start = || {
        Rain::start(&neighbour, &server, &client, true, &FORGED).map_err(|error| anyhow!("{error}"))
    };
    let rain = start()?;
    let pause = || thread::sleep(Duration::from_millis(300));
    for round in 0..3u16 {
        scene.deployment.kill_enforcer(FAR);
        pause();
        scene.deployment.start_enforcer(FAR)?;
        for declared in [&named, &declared] {
            let ports = [(9600 + round, 9600 + round)];
            let more = policy("more", "app: server", true, "app: client", &ports);
            scene.edit(more)?;
            scene.client()?.enforce(vec![put(declared.clone())])?;
            pause();
        }
        scene.deployment.stop_control_plane();
        pause();
        scene.deployment.start_control_plane()?;
        scene.edit(declared.clone())?;
    }
    let sent = nothing_arrived(rain)?;
    // The control: all but the check of sources is as it was.
    scene.deployment.kill_enforcer(FAR);
    run_nft(scene, &["flush", "chain", "inet", "sallyport", "source"])?;
    let leaked = arrives(start()?);
    for kind in FORGED {
        ensure!(
            leaked.contains_key(&kind),
            "{kind} does not arrive without the check of sources"
        );
    }
    scene.deployment.start_enforcer(FAR)?;
    Ok(format!(
        "0 of {sent} packets arrived; without the check of sources all kinds"
    ))
}
