//! Owns the check of policy on a bridge that filters VLANs: workloads at ports without tags, and a machine behind a
//! trunk whose frames have one. With it the node judges what passes between them, and says so when it does not.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use sallyport_integration::deployment::{Deployment, put};
use sallyport_proto::wire::{NodeStatus, node_status::State};
use sallyport_testbed::{
    Family, Host, Mode, Testbed,
    frames::{Kind, Party, arrivals, arrivals_tagged},
    probe::{Outcome, Probe, Prober, Protocol, Server},
};

use crate::wiring::{ip, modprobe, run_program};

const SHOWN: &str = "net.bridge.bridge-nf-filter-vlan-tagged";

const VLAN: u16 = 5;

/// The port that policies allow, which the frames are sent to as well, and one that they do not name.
const ALLOWED: u16 = 7000;
const OTHER: u16 = 7001;

/// An answer may take so long on a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(2);

/// Within this time the node is to say what it does not judge: a second, and what an emulated machine takes to answer.
const SOON: Duration = Duration::from_secs(5);

/// The node's workloads, and a machine that is none.
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
const OUTSIDE: u8 = 100;

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 10.9.1.100/32}}, {ipBlock: {cidr: 'fd00:9:1::64/128'}}]
    ports: [{protocol: TCP, port: 7000}, {protocol: UDP, port: 7000}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.9.1.100/32}}, {ipBlock: {cidr: 'fd00:9:1::64/128'}}]
    ports: [{protocol: TCP, port: 7000}, {protocol: UDP, port: 7000}]
";

/// Runs the check with ports that are known and with ports that are not. Returns what was wrong.
pub(crate) fn run() -> Result<Vec<String>> {
    modprobe("8021q")?;
    let mut findings = Findings::default();
    for known in [true, false] {
        let ports = if known {
            "known ports"
        } else {
            "unknown ports"
        };
        findings.about = ports;
        check(known, &mut findings).context(ports)?;
    }
    Ok(findings.wrong)
}

/// The machines, and the programs on the node.
struct Scene {
    deployment: Deployment,
    server: Host,
    client: Host,
    outside: Host,
}

fn addresses(last: u8) -> [IpAddr; 2] {
    [
        [10, 9, 1, last].into(),
        [0xfd00, 9, 1, 0, 0, 0, 0, u16::from(last)].into(),
    ]
}

fn scene(known: bool) -> Result<Scene> {
    let bed = Testbed::builder().mode(Mode::Bridged).build()?;
    let node = bed.node(0).netns();
    ip(node, "link set br0 type bridge vlan_filtering 1").context(
        "nothing was tried: this kernel has no bridges that filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING)",
    )?;
    let mut hosts = Vec::new();
    for (name, last) in [("server", SERVER), ("client", CLIENT), ("outside", OUTSIDE)] {
        let host = bed.add_pod(0, name, &addresses(last))?;
        let port = bed.interface_of(name)?;
        let tags = match name {
            "outside" => "",
            _ => " pvid untagged",
        };
        for arguments in [
            format!("vlan del dev {port} vid 1"),
            format!("vlan add dev {port} vid {VLAN}{tags}"),
        ] {
            run_program(node, "bridge", &arguments)?;
        }
        hosts.push(host);
    }
    let trunk = bed.interface_of("outside")?;
    let Ok([server, client, outside]) = <[Host; 3]>::try_from(hosts) else {
        bail!("there are three");
    };
    tag(&outside)?;
    let mut manifests = "
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
spec: {workloadCIDRs: [10.9.1.0/28, 'fd00:9:1::/124']}
"
    .to_owned();
    for (name, last) in [("server", SERVER), ("client", CLIENT)] {
        let interface = match known {
            true => format!(", interface: {}", bed.interface_of(name)?),
            false => String::new(),
        };
        let [v4, v6] = addresses(last);
        manifests += &format!(
            "---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {name}, labels: {{app: {name}}}}}
spec: {{node: node-1, addresses: [{v4}, '{v6}']{interface}}}
"
        );
    }
    node.sysctl(SHOWN, "1")?;
    let deployment = Deployment::start(bed, &["--uplink", &trunk])?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(manifests)])?;
    api.enforce(vec![put(POLICIES)])?;
    Ok(Scene {
        deployment,
        server,
        client,
        outside,
    })
}

/// Puts a machine's addresses on a VLAN of its link, and its packets for the workloads into that.
fn tag(outside: &Host) -> Result<()> {
    let netns = outside.netns();
    let mut all = vec![
        format!("link add link eth0 name vlan{VLAN} type vlan id {VLAN}"),
        "-4 address flush dev eth0".to_owned(),
        "-6 address flush dev eth0 scope global".to_owned(),
        "-6 route flush dev eth0".to_owned(),
        format!("link set vlan{VLAN} up"),
    ];
    let [v4, v6] = addresses(OUTSIDE);
    all.push(format!("address add {v4}/24 dev vlan{VLAN}"));
    all.push(format!("address add {v6}/64 dev vlan{VLAN} nodad"));
    for arguments in all {
        ip(netns, &arguments)?;
    }
    Ok(())
}

fn check(known: bool, findings: &mut Findings) -> Result<()> {
    let mut scene = scene(known)?;
    let ports = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| [ALLOWED, OTHER].map(|port| (protocol, port)));
    let _server = Server::start(&scene.server, &ports.concat())?;
    let _outside = Server::start(&scene.outside, &ports.concat())?;
    scene.stands(State::Enforcing)?;
    scene.is_judged("with policy", findings);
    scene.keeps_out_what_is_not_shown(findings)?;

    let node = scene.deployment.bed.node(0).netns().clone();
    node.sysctl(SHOWN, "0")?;
    let status = scene.stands(State::NotJudging)?;
    let words = format!("with a VLAN tag of br0 (3 ports), since {SHOWN} is 0");
    findings.expect("the node says why", true, status.reason.contains(&words));
    println!("  {}", status.reason);
    // The control: it is not judged, and so it matters.
    scene.probe("not shown", Way::In(OTHER), true, findings);
    scene.probe("not shown", Way::Out(OTHER), true, findings);
    // A bridge that filters no VLANs asks for nothing.
    ip(&node, "link set br0 type bridge vlan_filtering 0")?;
    scene.stands(State::Enforcing)?;
    ip(&node, "link set br0 type bridge vlan_filtering 1")?;
    scene.stands(State::NotJudging)?;
    node.sysctl(SHOWN, "1")?;
    scene.stands(State::Enforcing)?;
    scene.is_judged("shown again", findings);

    node.sysctl(SHOWN, "0")?;
    scene.deployment.kill_enforcer(0);
    let (status, log) = scene.deployment.run_enforcer(0)?;
    let refuses = !status.success() && log.contains(SHOWN);
    findings.expect("an enforcer refuses to start", true, refuses);
    scene.deployment.set_enforcer_arguments(&[
        "--manage-sysctls",
        "--uplink",
        &scene.deployment.bed.interface_of("outside")?,
    ]);
    scene.deployment.start_enforcer(0)?;
    scene.stands(State::Enforcing)?;
    findings.expect("it may set it", true, node.read_sysctl(SHOWN)? == "1");
    scene.is_judged("with a sysctl that is managed", findings);

    // The control of what the table keeps out.
    scene.deployment.kill_enforcer(0);
    let deadline = Instant::now() + SOON;
    let delete = ["delete", "table", "bridge", "sallyport"];
    while !scene.deployment.nft(0, &delete)? {
        if Instant::now() > deadline {
            bail!("the table cannot be taken away");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let arrived = scene.tagged(&scene.outside, &scene.server)?;
    let passes = arrived[&Kind::PriorityTag] && arrived[&Kind::StackedTags];
    findings.expect("without the table: stacked tags enter", true, passes);
    Ok(())
}

/// A connection from outside to the server, or from the client to outside.
#[derive(Clone, Copy)]
enum Way {
    In(u16),
    Out(u16),
}

impl Scene {
    /// Tries a connection in both families and with both protocols. Only silence counts as denied.
    fn probe(&self, when: &str, way: Way, allowed: bool, findings: &mut Findings) {
        let (from, to, port) = match way {
            Way::In(port) => (&self.outside, &self.server, port),
            Way::Out(port) => (&self.client, &self.outside, port),
        };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for family in [Family::V4, Family::V6] {
                let probe = Probe::new(from, to, protocol, port, family);
                let outcome = Prober::default().with_timeout(PATIENCE).probe(probe);
                let right = match allowed {
                    true => outcome == Outcome::Open,
                    false => outcome == Outcome::Blocked,
                };
                let (from, to) = (from.name(), to.name());
                let name =
                    format!("{when}: {from} to {to}, {protocol:?} {family} {port}: {outcome}");
                findings.expect(&name, true, right);
            }
        }
    }

    /// Policy holds in both directions.
    fn is_judged(&self, when: &str, findings: &mut Findings) {
        for (way, allowed) in [
            (Way::In(ALLOWED), true),
            (Way::In(OTHER), false),
            (Way::Out(ALLOWED), true),
            (Way::Out(OTHER), false),
        ] {
            self.probe(when, way, allowed, findings);
        }
    }

    fn party(&self, host: &Host) -> Result<Party> {
        let (mac, router) = self.deployment.bed.macs_of(host.name())?;
        Ok(Party::new(host.clone(), mac, router))
    }

    /// The sender, the receiver, and the sender once more in the place of another host. An announcement of a third
    /// host's address would be believed in the probes that follow.
    fn parties(&self, from: &Host, to: &Host) -> Result<[Party; 3]> {
        Ok([self.party(from)?, self.party(to)?, self.party(from)?])
    }

    fn tagged(&self, from: &Host, to: &Host) -> Result<BTreeMap<Kind, bool>> {
        let [from, to, another] = self.parties(from, to)?;
        arrivals_tagged(&from, &to, &another, VLAN).map_err(|error| anyhow!("{error}"))
    }

    /// Frames that br_netfilter does not show pass neither in nor out, and a workload sends no tag itself.
    fn keeps_out_what_is_not_shown(&self, findings: &mut Findings) -> Result<()> {
        let stacked = [
            Kind::PriorityTag,
            Kind::VlanTag,
            Kind::StackedTags,
            Kind::ServiceTag,
        ];
        let link_local = [Kind::LinkLocal, Kind::FromLinkLocal, Kind::ToLinkLocal];
        let links = [Kind::Own4, Kind::Own6, Kind::ArpOwn, Kind::Solicitation];
        let entering = self.tagged(&self.outside, &self.server)?;
        for (kind, arrived) in &entering {
            let kept_out = stacked.contains(kind)
                || link_local.contains(kind)
                || *kind == Kind::OtherEtherType;
            if kept_out || links.contains(kind) || *kind == Kind::DhcpReply {
                findings.expect(&format!("entering: {kind}"), !kept_out, *arrived);
            }
        }
        // To one that no policy isolates for ingress no other rule is in the way.
        let entering = self.tagged(&self.outside, &self.client)?;
        for kind in stacked {
            findings.expect(&format!("entering freely: {kind}"), false, entering[&kind]);
        }
        let own = self.tagged(&self.server, &self.outside)?;
        let passed = own.iter().filter(|(_, arrived)| **arrived);
        let passed: Vec<String> = passed.map(|(kind, _)| kind.to_string()).collect();
        findings.expect(
            &format!("tags of a workload's own pass: {passed:?}"),
            true,
            passed.is_empty(),
        );
        let [server, outside, another] = self.parties(&self.server, &self.outside)?;
        let leaving =
            arrivals(&server, &outside, &another, false).map_err(|error| anyhow!("{error}"))?;
        for (kind, arrived) in &leaving {
            let kept_in = stacked.contains(kind)
                || link_local.contains(kind)
                || [
                    Kind::OtherEtherType,
                    Kind::RouterAdvertisement,
                    Kind::Stranger4,
                ]
                .contains(kind);
            if kept_in || links.contains(kind) || *kind == Kind::DhcpRequest {
                findings.expect(&format!("leaving: {kind}"), !kept_in, *arrived);
            }
        }
        Ok(())
    }

    /// Returns once the node stands so.
    fn stands(&self, state: State) -> Result<NodeStatus> {
        let at = Instant::now();
        loop {
            let nodes = self.deployment.client()?.status()?.nodes;
            let node = nodes.into_iter().next().context("there is no node")?;
            if node.state() == state {
                println!("  {state:?} after {:?}", at.elapsed());
                return Ok(node);
            }
            if at.elapsed() > SOON {
                bail!("it is not {state:?} within {SOON:?}: {node:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The deviations from the expected.
#[derive(Default)]
struct Findings {
    about: &'static str,
    wrong: Vec<String>,
}

impl Findings {
    fn expect(&mut self, name: &str, wanted: bool, found: bool) {
        let about = self.about;
        let right = wanted == found;
        println!("{about}: {name}{}", if right { "" } else { "  WRONG" });
        if !right {
            self.wrong.push(format!("{about}: {name}"));
        }
    }
}
