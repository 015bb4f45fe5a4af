//! Established connections: a revoke cuts them at once, both ways, whoever spoke first; or lets them go on, where they
//! are to be kept. And ICMP is judged apart from ports, but for errors of what is permitted.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

#[path = "flows/contests.rs"]
mod contests;
#[path = "flows/keep.rs"]
mod keep;
#[path = "flows/path_mtu.rs"]
mod path_mtu;
#[path = "flows/spoofed.rs"]
mod spoofed;

use std::{process::ExitCode, thread, time::Duration};

use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, PATIENCE, Streams, delete, put},
    pods::{self, Pod},
};
use sallyport_testbed::{
    Family, Host, Mode, Testbed,
    kernel_tests::{self, Failed, Outcome},
    probe::{self, Pattern, Probe, Prober, Protocol, Server, Stream, Traffic},
};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("a_revoke_cuts_live_flows_routed", || cut(Mode::Routed)),
        ("a_revoke_cuts_live_flows_bridged", || cut(Mode::Bridged)),
        ("keep_lets_live_flows_go_on_routed", || {
            keep::cluster_wide(Mode::Routed)
        }),
        ("keep_lets_live_flows_go_on_bridged", || {
            keep::cluster_wide(Mode::Bridged)
        }),
        ("the_strictest_policy_counts", keep::the_strictest_counts),
        (
            "a_reassigned_address_keeps_no_connection",
            keep::an_address_in_new_hands,
        ),
        (
            "a_contested_address_is_judged_by_all_claimants_routed",
            || contests::judged_by_both(Mode::Routed),
        ),
        (
            "a_contested_address_is_judged_by_all_claimants_bridged",
            || contests::judged_by_both(Mode::Bridged),
        ),
        ("icmp_is_judged_apart_from_ports", icmp),
        (
            "permitted_flows_discover_their_path_mtu",
            path_mtu::discovered,
        ),
        ("another_pods_source_is_dropped", spoofed::another_pods),
        (
            "a_strangers_source_is_dropped_at_named_interfaces",
            spoofed::a_strangers,
        ),
        ("services_are_judged_by_their_true_endpoints", services),
    ])
}

const PODS: [Pod; 3] = [
    Pod::new(0, "client", &["10.9.1.2", "fd00:9:1::2"]),
    Pod {
        app: "server",
        ..Pod::new(0, "near", &["10.9.1.3", "fd00:9:1::3"])
    },
    Pod {
        app: "server",
        ..Pod::new(1, "far", &["10.9.2.3", "fd00:9:2::3"])
    },
];

/// The manifests of two nodes without workload ranges, and of the pods.
fn cluster() -> String {
    pods::manifests(&["", ""], &PODS)
}

/// Nothing may come to the servers.
const DENY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: deny}
spec: {podSelector: {matchLabels: {app: server}}}
";

/// The longest time that a packet under way when enforcement is reported may still arrive.
const GRACE: Duration = Duration::from_millis(100);

struct Bed {
    deployment: Deployment,
    client: Host,
    servers: [Host; 2],
}

fn bed(mode: Mode) -> Result<Bed, Failed> {
    bed_under(mode, &[])
}

/// The same, under a control plane with arguments.
fn bed_under(mode: Mode, arguments: &[&str]) -> Result<Bed, Failed> {
    let bed = Testbed::builder().nodes(2).mode(mode).build()?;
    let [client, near, far] = pods::add(&bed, &PODS)?;
    let deployment = Deployment::start_with(bed, arguments, &[], Streams::default())?;
    deployment.client()?.enforce(vec![put(cluster())])?;
    Ok(Bed {
        deployment,
        client,
        servers: [near, far],
    })
}

/// Flows over both protocols and families, to a server on the same node and on another, either side speaking.
fn cut(mode: Mode) -> Outcome {
    let Bed {
        deployment,
        client,
        servers,
    } = bed(mode)?;
    let mut flows = Vec::new();
    for server in &servers {
        for (protocol, traffic) in [("TCP", Traffic::tcp(7000)), ("UDP", Traffic::udp(7000))] {
            for family in [Family::V4, Family::V6] {
                for pattern in [Pattern::OneConnection, Pattern::ServerSpeaks] {
                    let mut traffic = traffic.family(family).pattern(pattern);
                    traffic.port += flows.len() as u16;
                    let name = format!("{protocol} {family} {pattern:?} to {}", server.name());
                    flows.push((name, Stream::start(&client, server, traffic)?));
                }
            }
        }
    }
    for (name, flow) in &flows {
        flow.until(PATIENCE, |counts| counts.received > 20)
            .map_err(|counts| format!("{name} does not flow: {counts:?}"))?;
    }
    let mut api = deployment.client()?;
    api.enforce(vec![put(DENY)])?;
    thread::sleep(GRACE);
    let before: Vec<_> = flows.iter().map(|(_, flow)| flow.counts()).collect();
    thread::sleep(Duration::from_millis(300));
    for ((name, flow), before) in flows.iter().zip(&before) {
        let since = flow.counts().since(*before);
        if since.received > 0 {
            return Err(format!("{name} goes on after the revoke: {since:?}").into());
        }
    }
    // The control: without the policy what can go on goes on.
    api.enforce(vec![delete(DENY)])?;
    for (name, flow) in &flows {
        if name.starts_with("UDP") {
            let counted = flow.counts().received;
            flow.until(PATIENCE, |counts| counts.received > counted)
                .map_err(|counts| format!("{name} does not come back: {counts:?}"))?;
        }
    }
    Ok(())
}

/// A rule with ports says nothing of ICMP, and so denies it; a rule without ports allows it.
fn icmp() -> Outcome {
    let Bed {
        deployment,
        client,
        servers,
    } = bed(Mode::Routed)?;
    let _serving = servers
        .iter()
        .map(|server| Server::start(server, &[(Protocol::Tcp, 80), (Protocol::Tcp, 81)]))
        .collect::<Result<Vec<_>, _>>()?;
    let policy = |ports: &str| {
        format!(
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: from-client}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]
{ports}"
        )
    };
    let mut api = deployment.client()?;
    let with_ports = ("    ports: [{port: 80}]\n", [true, false, false]);
    for (ports, expected) in [with_ports, ("", [true, true, true]), with_ports] {
        api.enforce(vec![put(policy(ports))])?;
        for server in &servers {
            for family in [Family::V4, Family::V6] {
                let asked = [
                    (Protocol::Tcp, 80),
                    (Protocol::Tcp, 81),
                    (Protocol::Icmp, 0),
                ];
                for ((protocol, port), open) in asked.into_iter().zip(expected) {
                    let probe = Probe::new(&client, server, protocol, port, family);
                    let seen = Prober::default().probe(probe);
                    let wanted = if open {
                        probe::Outcome::Open
                    } else {
                        probe::Outcome::Blocked
                    };
                    if seen != wanted {
                        let to = server.name();
                        return Err(format!(
                            "{ports:?}: {protocol} {port} {family} to {to}: {seen}"
                        )
                        .into());
                    }
                }
            }
        }
    }
    Ok(())
}

/// kube-proxy's part: the service's address and port become those of a pod, on the client's node; the pod's own traffic
/// to its service is masqueraded.
const PROXY: &str = "
table ip proxy {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr 10.96.0.1 tcp dport 80 dnat to 10.9.1.3:8080
    ip daddr 10.96.0.2 tcp dport 80 dnat to 10.9.2.3:8080
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr 10.9.1.3 ip daddr 10.9.1.3 masquerade
  }
}
";

/// Policies speak of pods and their ports; a service's address and port are nobody's.
fn services() -> Outcome {
    let Bed {
        deployment,
        client,
        servers,
    } = bed(Mode::Routed)?;
    let netns = deployment.bed.node(0).netns();
    let mut nft = netns.command("nft");
    nft.arg(PROXY);
    if !netns.spawn(nft)?.wait()?.success() {
        return Err("nft does not take the proxy's table".into());
    }
    let _serving = servers
        .iter()
        .map(|server| Server::start(server, &[(Protocol::Tcp, 8080)]))
        .collect::<Result<Vec<_>, _>>()?;
    let asked = |from: &Host, server: usize| {
        let service = std::net::SocketAddr::from(([10, 96, 0, server as u8 + 1], 80));
        let probe = Probe::new(from, &servers[server], Protocol::Tcp, 80, Family::V4).at(service);
        Prober::default().probe(probe)
    };
    let require = |what: &str, wanted: [&probe::Outcome; 2]| -> Outcome {
        for (server, wanted) in wanted.into_iter().enumerate() {
            let seen = asked(&client, server);
            if seen != *wanted {
                return Err(
                    format!("{what}: service {}: {seen} instead of {wanted}", server + 1).into(),
                );
            }
        }
        match asked(&servers[0], 0) {
            probe::Outcome::Open => Ok(()),
            seen => Err(format!("{what}: a pod by its service to itself: {seen}").into()),
        }
    };
    let (open, blocked) = (&probe::Outcome::Open, &probe::Outcome::Blocked);
    let ingress = |port: u16| {
        format!(
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: services}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  ingress:
  - from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]
    ports: [{{port: {port}}}]
"
        )
    };
    let egress = |cidr: &str| {
        format!(
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: services}}
spec:
  podSelector: {{matchLabels: {{app: client}}}}
  policyTypes: [Egress]
  egress: [{{to: [{{ipBlock: {{cidr: {cidr}}}}}]}}]
"
        )
    };
    let mut api = deployment.client()?;
    require("no policy", [open, open])?;
    for (what, policy, wanted) in [
        ("ingress on the pod's port", ingress(8080), [open, open]),
        (
            "ingress on the service's port",
            ingress(80),
            [blocked, blocked],
        ),
        (
            "egress to the near pod",
            egress("10.9.1.0/24"),
            [open, blocked],
        ),
        (
            "egress to the far pod",
            egress("10.9.2.0/24"),
            [blocked, open],
        ),
        (
            "egress to the services",
            egress("10.96.0.0/16"),
            [blocked, blocked],
        ),
    ] {
        api.enforce(vec![put(policy)])?;
        require(what, wanted)?;
    }
    Ok(())
}
