//! Frames and addresses that no policy judges: those that a workload's object does not list, and those that the forward
//! hook does not see. Each row of the table in docs/UNLISTED.md is sent between pods of a node, on every kind of node,
//! and comes to what the table says.

#[path = "unlisted/allowed.rs"]
mod allowed;
#[path = "unlisted/lifetimes.rs"]
mod lifetimes;
#[path = "unlisted/table.rs"]
mod table;
#[path = "unlisted/tags.rs"]
mod tags;

use std::{collections::BTreeMap, net::IpAddr, process::ExitCode};

use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, put},
};
use sallyport_testbed::{
    Host, Mode, Testbed,
    frames::{Kind, Party, arrivals},
    kernel_tests::{self, Failed, Outcome},
};

use table::{Cell, SETUPS, Setup, Verdict};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("routed_strict", || agrees(0)),
        ("routed_standard", || agrees(1)),
        ("known_ports_strict", || agrees(2)),
        ("known_ports_standard", || agrees(3)),
        ("unknown_ports_strict", || agrees(4)),
        ("unknown_ports_standard", || agrees(5)),
        ("without_tables_all_frames_arrive", control),
        ("what_is_only_counted_arrives", counted),
        ("ports_that_lead_away_known", || lead_away(2)),
        ("ports_that_lead_away_unknown", || lead_away(4)),
        ("a_node_without_a_lease", lifetimes::closed_by_a_lease),
        (
            "the_table_outlives_its_enforcer",
            lifetimes::outlives_its_enforcer,
        ),
        (
            "a_workload_is_guarded_once_it_is_selected",
            lifetimes::guarded_once_it_is_selected,
        ),
        (
            "routed_the_table_outlives_its_enforcer",
            lifetimes::routed_outlives_its_enforcer,
        ),
        (
            "a_routed_workload_is_guarded_once_it_is_selected",
            lifetimes::routed_guarded_once_it_is_selected,
        ),
        (
            "a_routed_port_that_comes_later",
            lifetimes::a_routed_port_that_comes_later,
        ),
        (
            "a_port_that_comes_later",
            lifetimes::a_port_that_comes_later,
        ),
        ("allowed_sources_pass", allowed::pass),
        (
            "allowed_sources_of_an_unrestricted_workload",
            allowed::of_an_unrestricted_workload,
        ),
        (
            "allowed_sources_are_judged_as_destinations",
            allowed::are_judged_as_destinations,
        ),
        ("allowed_sources_come_and_go", allowed::come_and_go),
        (
            "allowed_sources_are_no_ones_who_has_them",
            allowed::are_no_ones_who_has_them,
        ),
        (
            "allowed_sources_by_a_pods_annotation",
            allowed::by_a_pods_annotation,
        ),
        ("tags_that_policy_judges_known", || tags::judged(2)),
        ("tags_that_policy_judges_unknown", || tags::judged(4)),
    ])
}

/// Two workloads that policies select, one more that the same allow, and two that none selects.
const PODS: [(&str, u8); 5] = [
    ("client", 2),
    ("server", 3),
    ("peer", 4),
    ("free-1", 5),
    ("free-2", 6),
];

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: clients}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: servers}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: client}}
    - ipBlock: {cidr: 192.0.2.0/24}
    - ipBlock: {cidr: '2001:db8::/32'}
";

struct Bed {
    deployment: Deployment,
    parties: BTreeMap<&'static str, Party>,
}

fn addresses(last: u8) -> [IpAddr; 2] {
    [
        [10, 9, 1, last].into(),
        [0xfd00, 9, 1, 0, 0, 0, 0, u16::from(last)].into(),
    ]
}

/// Machines that are no workloads of the node, on its bridge.
const OUTSIDE: [(&str, u8); 2] = [("outside-1", 1), ("outside-2", 2)];

fn bed(setup: Setup, arguments: &[&str]) -> Result<Bed, Failed> {
    bed_among(setup, &[], arguments)
}

/// The same, with machines outside behind ports that lead away.
fn bed_among(
    setup: Setup,
    outside: &[(&'static str, u8)],
    arguments: &[&str],
) -> Result<Bed, Failed> {
    let mode = match setup.bridged {
        true => Mode::Bridged,
        false => Mode::Routed,
    };
    let bed = Testbed::builder().mode(mode).build()?;
    let mut manifests = "
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
spec: {workloadCIDRs: [10.9.1.0/24, 'fd00:9:1::/64']}
"
    .to_owned();
    let mut parties = BTreeMap::new();
    let plug = |name: &'static str, addresses: &[IpAddr]| -> Result<Party, Failed> {
        let host: Host = bed.add_pod(0, name, addresses)?;
        // Frames that arrive are looked at, and nothing believes them.
        for setting in ["accept_ra", "accept_redirects"] {
            host.sysctl(&format!("net.ipv6.conf.eth0.{setting}"), "0")?;
        }
        let (mac, router) = bed.macs_of(name)?;
        Ok(Party::new(host, mac, router))
    };
    let mut uplinks = Vec::new();
    for &(name, last) in outside {
        let last16 = u16::from(last);
        let addresses = [
            [192, 0, 2, last].into(),
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, last16].into(),
        ];
        parties.insert(name, plug(name, &addresses)?);
        uplinks.push(bed.interface_of(name)?);
    }
    for (name, last) in PODS {
        let addresses = addresses(last);
        parties.insert(name, plug(name, &addresses)?);
        manifests += "---";
        manifests += &workload(name, last, &named(setup, &bed, name)?, "[]");
    }
    let mode = match setup.strict {
        true => "strict",
        false => "standard",
    };
    let uplinks: Vec<&str> = uplinks.iter().flat_map(|name| ["--uplink", name]).collect();
    let arguments = [&["--mode", mode], &uplinks[..], arguments].concat();
    let deployment = Deployment::start(bed, &arguments)?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(&manifests)])?;
    api.enforce(vec![put(POLICIES)])?;
    Ok(Bed {
        deployment,
        parties,
    })
}

/// The interface that a pod's object names.
fn named(setup: Setup, bed: &Testbed, name: &str) -> Result<String, Failed> {
    match setup.known {
        true => Ok(bed.interface_of(name)?),
        false => Ok(String::new()),
    }
}

/// A pod's object, with sources beside its addresses.
fn object(setup: Setup, bed: &Bed, name: &str, sources: &str) -> Result<String, Failed> {
    let (_, last) = PODS
        .into_iter()
        .find(|(pod, _)| *pod == name)
        .ok_or("no such pod")?;
    let interface = named(setup, &bed.deployment.bed, name)?;
    Ok(workload(name, last, &interface, sources))
}

fn workload(name: &str, last: u8, interface: &str, sources: &str) -> String {
    let app = match name {
        "peer" => "client",
        other => other,
    };
    let [v4, v6] = addresses(last);
    format!(
        "
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {name}, labels: {{app: {app}}}}}
spec:
  node: node-1
  addresses: [{v4}, '{v6}']
  interface: '{interface}'
  allowedSources: {sources}
"
    )
}

/// The verdict on each kind of frame between two pods.
fn measure(bed: &Bed, setup: Setup, from: &str, to: &str) -> Result<BTreeMap<Kind, bool>, Failed> {
    let (from, to, peer) = (&bed.parties[from], &bed.parties[to], &bed.parties["peer"]);
    Ok(arrivals(from, to, peer, !setup.bridged)?)
}

/// Checks the table's verdicts about a kind of node.
fn agrees(column: usize) -> Outcome {
    let setup = SETUPS[column];
    let bed = bed(setup, &[])?;
    let selected = measure(&bed, setup, "client", "server")?;
    let free = measure(&bed, setup, "free-1", "free-2")?;
    let said = table::read()?;
    let (mut measured, mut wrong) = (Vec::new(), Vec::new());
    for (row, kind) in Kind::ALL.into_iter().enumerate() {
        let cell = Cell {
            selected: Verdict::of(selected[&kind]),
            free: Verdict::of(free[&kind]),
        };
        measured.push(format!("{kind}: {cell}"));
        match said.get(row) {
            Some(said) if said.kind == kind.to_string() && said.cells[column] == cell => {}
            Some(said) => wrong.push(format!("{}: {}", said.kind, said.cells[column])),
            None => wrong.push(format!("nothing of {kind}")),
        }
    }
    match wrong.is_empty() && said.len() == Kind::ALL.len() {
        true => Ok(()),
        false => Err(format!(
            "measured:\n{}\nwhere the table says:\n{}",
            measured.join("\n"),
            wrong.join("\n")
        )
        .into()),
    }
}

/// Without the tables all of it arrives: it is the tables that keep it out.
fn control() -> Outcome {
    let setup = SETUPS[2];
    let mut bed = bed(setup, &[])?;
    bed.deployment.kill_enforcer(0);
    if !bed.deployment.nft(0, &["flush", "ruleset"])? {
        return Err("the tables cannot be taken away".into());
    }
    let arrived = measure(&bed, setup, "client", "server")?;
    let lost: Vec<String> = arrived
        .iter()
        .filter(|(_, arrived)| !**arrived)
        .map(|(kind, _)| kind.to_string())
        .collect();
    match lost.is_empty() {
        true => Ok(()),
        false => Err(format!("lost without any table: {}", lost.join(", ")).into()),
    }
}

/// Checks which of some kinds arrive between two, and which do not.
fn expect(
    what: &str,
    bed: &Bed,
    setup: Setup,
    ends: [&str; 2],
    kinds: &[Kind],
    passes: bool,
) -> Outcome {
    let arrived = measure(bed, setup, ends[0], ends[1])?;
    compare(what, &arrived, kinds, passes)
}

/// Checks that some kinds are among those that arrived, or none of them.
fn compare(what: &str, arrived: &BTreeMap<Kind, bool>, kinds: &[Kind], passes: bool) -> Outcome {
    let wrong: Vec<String> = kinds
        .iter()
        .filter(|kind| arrived[kind] != passes)
        .map(Kind::to_string)
        .collect();
    match (wrong.is_empty(), passes) {
        (true, _) => Ok(()),
        (false, true) => Err(format!("{what}: dropped: {}", wrong.join(", ")).into()),
        (false, false) => Err(format!("{what}: passed: {}", wrong.join(", ")).into()),
    }
}

/// Ports that lead away: routers and servers behind them are believed, what policy cannot judge stays out of workloads,
/// and what goes from one such port to another is nobody's business.
fn lead_away(column: usize) -> Outcome {
    let setup = SETUPS[column];
    let bed = bed_among(setup, &OUTSIDE, &[])?;
    let links = [
        Kind::ArpOwn,
        Kind::Solicitation,
        Kind::SolicitationLinkLocal,
    ];
    let tags = [
        Kind::PriorityTag,
        Kind::VlanTag,
        Kind::StackedTags,
        Kind::ServiceTag,
        Kind::OtherEtherType,
    ];
    let link_local = [Kind::LinkLocal, Kind::FromLinkLocal, Kind::ToLinkLocal];
    let entering = [
        &links[..],
        &[Kind::Own4, Kind::Own6, Kind::RouterAdvertisement],
        &[Kind::DhcpReply, Kind::Dhcp6Reply],
    ];
    let ends = ["outside-1", "server"];
    expect("entering", &bed, setup, ends, &entering.concat(), true)?;
    let groups = [Kind::Multicast4, Kind::Broadcast, Kind::Mdns4];
    let kept_out = [&tags[..], &link_local, &groups].concat();
    expect("entering", &bed, setup, ends, &kept_out, false)?;
    let leaving = [&links[..], &[Kind::DhcpRequest, Kind::Dhcp6Request]].concat();
    let ends = ["client", "outside-1"];
    expect("leaving", &bed, setup, ends, &leaving, true)?;
    let announced = [
        Kind::RouterAdvertisement,
        Kind::Redirect6,
        Kind::DhcpReply,
        Kind::Dhcp6Reply,
        Kind::Stranger4,
        Kind::Stranger6,
    ];
    let kept_in = [&tags[..], &link_local, &announced].concat();
    expect("leaving", &bed, setup, ends, &kept_in, false)?;
    // The peer's address is judged by the peer's policy, whoever has it.
    let is_judged = |kind: &Kind| matches!(kind, Kind::Another4 | Kind::Another6);
    let beside: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| !is_judged(kind))
        .collect();
    let ends = ["outside-1", "outside-2"];
    expect("beside", &bed, setup, ends, &beside, true)
}

/// With `--source-check count` what the guard is against passes, and is counted.
fn counted() -> Outcome {
    let bridged = [
        Kind::LinkLocal,
        Kind::PriorityTag,
        Kind::RouterAdvertisement,
    ];
    let comments = [
        "a link-local address",
        "a VLAN tag",
        "speaks as a router",
        "is not the sender's",
    ];
    counts(SETUPS[2], &bridged, &comments)?;
    let routed = [Kind::Stranger4, Kind::Stranger6];
    counts(SETUPS[0], &routed, &["is behind another interface"])
}

fn counts(setup: Setup, kinds: &[Kind], comments: &[&str]) -> Outcome {
    let bed = bed(setup, &["--source-check", "count"])?;
    expect("counted", &bed, setup, ["client", "server"], kinds, true)?;
    let listed = bed.deployment.ruleset(0)?;
    let counted = |comment: &str| {
        let mut lines = listed.lines().filter(|line| line.contains(comment));
        lines.any(|line| line.contains("accept") && !line.contains("packets 0 "))
    };
    for comment in comments {
        if !counted(comment) {
            return Err(format!("nothing was counted as `{comment}`:\n{listed}").into());
        }
    }
    Ok(())
}
