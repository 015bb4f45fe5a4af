//! Owns the proof that the testbed is a network and that its probes can say yes and no, on the real kernel; never
//! involves an enforcer.

#[path = "testbed/lifetimes.rs"]
mod lifetimes;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{ExitCode, Stdio};

use lifetimes::{
    be_a_victim, nothing_outlives_a_killed_process, pods_go_and_move_and_change,
    tens_of_pods_in_a_second,
};
use sallyport_testbed::kernel_tests::{self, Outcome as Tested};
use sallyport_testbed::probe::{Matrix, Outcome, Probe, Prober, Protocol, Server};
use sallyport_testbed::{Family, Host, Mode, Testbed};

/// Set for the copy of this program that is to be killed.
const VICTIM: &str = "SALLYPORT_TESTBED_VICTIM";

const EVERY: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp];
const SERVED: [(Protocol, u16); 3] = [
    (Protocol::Tcp, 80),
    (Protocol::Udp, 80),
    (Protocol::Sctp, 80),
];

fn main() -> ExitCode {
    if std::env::var_os(VICTIM).is_some() {
        return be_a_victim();
    }
    kernel_tests::run(&[
        ("routed_everything_is_open", || {
            everything_is_open(Mode::Routed)
        }),
        ("bridged_everything_is_open", || {
            everything_is_open(Mode::Bridged)
        }),
        ("single_stack_pods", single_stack_pods),
        (
            "nodes_and_fabric_reach_each_other",
            nodes_and_fabric_reach_each_other,
        ),
        ("routed_a_drop_rule_blocks_its_cell", || {
            a_drop_rule_blocks_its_cell(Mode::Routed)
        }),
        ("bridged_a_drop_rule_blocks_its_cell", || {
            a_drop_rule_blocks_its_cell(Mode::Bridged)
        }),
        ("conntrack_follows_sctp", conntrack_follows_sctp),
        (
            "a_reject_or_no_server_is_refused",
            a_reject_or_no_server_is_refused,
        ),
        ("another_server_is_wrong", another_server_is_wrong),
        ("routed_pods_go_and_move_and_change", || {
            pods_go_and_move_and_change(Mode::Routed)
        }),
        ("bridged_pods_go_and_move_and_change", || {
            pods_go_and_move_and_change(Mode::Bridged)
        }),
        (
            "second_addresses_answer_for_themselves",
            second_addresses_answer_for_themselves,
        ),
        ("tens_of_pods_in_a_second", tens_of_pods_in_a_second),
        (
            "nothing_outlives_a_killed_process",
            nothing_outlives_a_killed_process,
        ),
    ])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Two pods on each of two nodes and an external, all dual-stack, all serving.
fn furnished(mode: Mode) -> Result<(Testbed, Vec<Host>, Vec<Server>), kernel_tests::Failed> {
    let bed = Testbed::builder().nodes(2).mode(mode).build()?;
    let hosts = vec![
        bed.add_pod(0, "default/a", &[ip("10.244.1.10"), ip("fd00:10:244::a")])?,
        bed.add_pod(0, "default/b", &[ip("10.244.2.11"), ip("fd00:10:244::b")])?,
        bed.add_pod(1, "other/c", &[ip("10.244.1.12"), ip("fd00:10:244::c")])?,
        bed.add_pod(1, "other/d", &[ip("192.168.0.13"), ip("fd00:10:244::d")])?,
        bed.add_external("outside", &[ip("203.0.113.7"), ip("2001:db8::7")])?,
    ];
    let servers = hosts
        .iter()
        .map(|host| Server::start(host, &SERVED))
        .collect::<Result<_, _>>()?;
    Ok((bed, hosts, servers))
}

/// Loads `rules` into a forward chain of the node.
fn nft(node: &Host, rules: &str) -> Tested {
    let script = format!(
        "table inet t {{\ncounter yes {{ }}\ncounter no {{ }}\nchain f {{\ntype filter hook forward priority 0\n{rules}\n}}\n}}\n"
    );
    let mut nft = node
        .netns()
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    nft.stdin
        .take()
        .expect("stdin is piped")
        .write_all(script.as_bytes())?;
    if nft.wait()?.success() {
        Ok(())
    } else {
        Err(format!("nft refused\n{script}").into())
    }
}

fn everything_is_open(mode: Mode) -> Tested {
    let (_bed, hosts, _servers) = furnished(mode)?;
    for family in [Family::V4, Family::V6] {
        for protocol in EVERY {
            Prober::default()
                .matrix(&hosts, protocol, 80, family)
                .require_all(&Outcome::Open)?;
        }
    }
    Ok(())
}

fn single_stack_pods() -> Tested {
    for mode in [Mode::Routed, Mode::Bridged] {
        let bed = Testbed::builder().nodes(1).mode(mode).build()?;
        let v4 = [
            bed.add_pod(0, "v4/a", &[ip("10.0.0.1")])?,
            bed.add_pod(0, "v4/b", &[ip("172.16.0.1")])?,
        ];
        let v6 = [
            bed.add_pod(0, "v6/a", &[ip("fd01::1")])?,
            bed.add_pod(0, "v6/b", &[ip("2001:db8:1::1")])?,
        ];
        let servers: Result<Vec<_>, _> = v4
            .iter()
            .chain(&v6)
            .map(|pod| Server::start(pod, &SERVED))
            .collect();
        let _servers = servers?;
        for (pods, family) in [(&v4, Family::V4), (&v6, Family::V6)] {
            Prober::default()
                .matrix(pods, Protocol::Tcp, 80, family)
                .require_all(&Outcome::Open)?;
        }
        let without = Probe::new(&v4[0], &v6[0], Protocol::Tcp, 80, Family::V6);
        assert!(matches!(
            Prober::default().probe(without),
            Outcome::Refused(_)
        ));
    }
    Ok(())
}

fn nodes_and_fabric_reach_each_other() -> Tested {
    for mode in [Mode::Routed, Mode::Bridged] {
        let bed = Testbed::builder().nodes(2).mode(mode).build()?;
        let pod = bed.add_pod(1, "default/a", &[ip("10.244.1.10"), ip("fd00:10:244::a")])?;
        let hosts = [
            bed.fabric().clone(),
            bed.node(0).clone(),
            bed.node(1).clone(),
            pod,
        ];
        let servers: Result<Vec<_>, _> = hosts
            .iter()
            .map(|host| Server::start(host, &SERVED))
            .collect();
        let _servers = servers?;
        for family in [Family::V4, Family::V6] {
            Prober::default()
                .matrix(&hosts, Protocol::Tcp, 80, family)
                .require_all(&Outcome::Open)?;
        }
    }
    Ok(())
}

fn a_drop_rule_blocks_its_cell(mode: Mode) -> Tested {
    let (bed, hosts, _servers) = furnished(mode)?;
    // On one node a packet between its pods meets the forward hook, by routing or by the bridge; so does one that comes
    // from the other node.
    let rules = "ip saddr 10.244.1.10 ip daddr 10.244.2.11 drop; ip6 saddr fd00:10:244::a ip6 daddr fd00:10:244::b drop;
        ip saddr 10.244.1.12 ip daddr 10.244.2.11 drop; ip6 saddr fd00:10:244::c ip6 daddr fd00:10:244::b drop";
    nft(bed.node(0), rules)?;
    for family in [Family::V4, Family::V6] {
        for protocol in EVERY {
            let seen = Prober::default().matrix(&hosts, protocol, 80, family);
            // The drops are of one direction: what b asks is dropped on its way back, which b sees as no answer.
            let rows = &["-X...", "X-X..", ".X-..", "...-.", "....-"];
            let expected = Matrix::expected(seen.names(), rows).expect("five by five");
            seen.require(&expected)?;
        }
    }
    Ok(())
}

fn conntrack_follows_sctp() -> Tested {
    let (bed, hosts, _servers) = furnished(Mode::Bridged)?;
    nft(
        bed.node(0),
        "meta l4proto sctp ct state invalid,untracked counter name no drop;
        meta l4proto sctp ct state established counter name yes",
    )?;
    for family in [Family::V4, Family::V6] {
        Prober::default()
            .matrix(&hosts[..2], Protocol::Sctp, 80, family)
            .require_all(&Outcome::Open)?;
    }
    let listing = bed
        .node(0)
        .netns()
        .command("nft")
        .args(["list", "counters"])
        .output()?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    let packets: Vec<&str> = listing
        .lines()
        .filter(|line| line.contains("packets"))
        .map(str::trim)
        .collect();
    // Four handshakes of INIT-ACK, COOKIE-ECHO, COOKIE-ACK and ABORT each, after their INIT.
    assert_eq!(packets.len(), 2, "{listing}");
    assert!(packets[0].starts_with("packets 16 "), "{listing}");
    assert!(packets[1].starts_with("packets 0 "), "{listing}");
    Ok(())
}

fn a_reject_or_no_server_is_refused() -> Tested {
    let (bed, hosts, _servers) = furnished(Mode::Routed)?;
    let refused = |protocol, port, family| {
        let outcome =
            Prober::default().probe(Probe::new(&hosts[0], &hosts[2], protocol, port, family));
        assert!(
            matches!(outcome, Outcome::Refused(_)),
            "{protocol} {port} over {family}: {outcome}"
        );
    };
    for family in [Family::V4, Family::V6] {
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            refused(protocol, 81, family);
        }
    }
    nft(
        bed.node(0),
        "ip daddr 10.244.1.12 reject; ip6 daddr fd00:10:244::c reject",
    )?;
    for family in [Family::V4, Family::V6] {
        for protocol in EVERY {
            refused(protocol, 80, family);
        }
    }
    Ok(())
}

fn another_server_is_wrong() -> Tested {
    let (_bed, hosts, _servers) = furnished(Mode::Routed)?;
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let astray = Probe::new(&hosts[0], &hosts[1], protocol, 80, Family::V4)
            .at(SocketAddr::new(hosts[2].addresses()[0], 80));
        assert_eq!(
            Prober::default().probe(astray),
            Outcome::Wrong("other/c".to_owned())
        );
    }
    Ok(())
}

fn second_addresses_answer_for_themselves() -> Tested {
    let bed = Testbed::builder().build()?;
    let a = bed.add_pod(0, "default/a", &[ip("10.0.0.1"), ip("fd01::1")])?;
    let many = ["10.0.0.2", "10.0.0.3", "fd01::2", "fd01::3"].map(ip);
    let b = bed.add_external("outside", &many)?;
    let _server = Server::start(&b, &SERVED)?;
    for address in many {
        for protocol in EVERY {
            let probe = Probe::new(&a, &b, protocol, 80, Family::of(address))
                .at(SocketAddr::new(address, 80));
            assert_eq!(
                Prober::default().probe(probe),
                Outcome::Open,
                "{protocol} to {address}"
            );
        }
    }
    Ok(())
}
