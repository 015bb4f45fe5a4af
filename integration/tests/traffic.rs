//! Owns the proof that streams and floods count truly, on the real kernel; never involves an enforcer.

use std::io::Write;
use std::net::IpAddr;
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use sallyport_integration::kernel_tests::{self, Outcome as Tested};
use sallyport_integration::probe::{Class, Flood, Pattern, Stream, Traffic};
use sallyport_integration::testbed::{Family, Host, Mode, Testbed};

fn main() -> ExitCode {
    kernel_tests::run(&[
        ("routed_streams_lose_nothing", || {
            streams_lose_nothing(Mode::Routed)
        }),
        ("bridged_streams_lose_nothing", || {
            streams_lose_nothing(Mode::Bridged)
        }),
        (
            "streams_end_where_they_are_cut",
            streams_end_where_they_are_cut,
        ),
        (
            "streams_are_sent_though_never_let_through",
            streams_are_sent_though_never_let_through,
        ),
        ("a_flood_is_counted_exactly", a_flood_is_counted_exactly),
    ])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

const PATTERNS: [Pattern; 3] = [
    Pattern::OneConnection,
    Pattern::ServerSpeaks,
    Pattern::FreshPorts,
];

fn pair(mode: Mode) -> Result<(Testbed, Host, Host), kernel_tests::Failed> {
    let bed = Testbed::builder().nodes(2).mode(mode).build()?;
    let a = bed.add_pod(0, "default/a", &[ip("10.1.0.1"), ip("fd01::1")])?;
    let b = bed.add_pod(0, "default/b", &[ip("10.1.0.2"), ip("fd01::2")])?;
    Ok((bed, a, b))
}

/// Loads `rules` into a forward chain of the first node.
fn nft(bed: &Testbed, rules: &str) -> Tested {
    let script = format!(
        "table inet t {{\nchain f {{\ntype filter hook forward priority 0\n{rules}\n}}\n}}\n"
    );
    let mut nft = bed
        .node(0)
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

/// Every kind of stream, each on its own port.
fn streams(a: &Host, b: &Host) -> Result<Vec<(String, Stream)>, kernel_tests::Failed> {
    let mut streams = Vec::new();
    for (port, pattern) in (7000..).zip(PATTERNS) {
        for family in [Family::V4, Family::V6] {
            for traffic in [Traffic::udp(port), Traffic::tcp(port)] {
                let traffic = traffic
                    .pattern(pattern)
                    .family(family)
                    .every(Duration::from_millis(2));
                // Both families listen on one socket: a port for each.
                let port = if family == Family::V4 {
                    port
                } else {
                    port + 1000
                };
                let name = format!("{} {pattern:?} over {family}", traffic.protocol);
                streams.push((name, Stream::start(a, b, Traffic { port, ..traffic })?));
            }
        }
    }
    Ok(streams)
}

fn streams_lose_nothing(mode: Mode) -> Tested {
    let (_bed, a, b) = pair(mode)?;
    let streams = streams(&a, &b)?;
    thread::sleep(Duration::from_millis(600));
    for (name, stream) in streams {
        let counts = stream.stop();
        assert!(
            counts.sent >= 50 && counts.lost() == 0,
            "{name}: {counts:?}"
        );
    }
    let fast = Stream::start(&a, &b, Traffic::udp(9000).every(Duration::from_micros(50)))?;
    thread::sleep(Duration::from_millis(500));
    let counts = fast.stop();
    assert!(
        counts.sent >= 2_000 && counts.lost() == 0,
        "20,000 a second: {counts:?}"
    );
    Ok(())
}

fn streams_end_where_they_are_cut() -> Tested {
    let (bed, a, b) = pair(Mode::Bridged)?;
    let streams = streams(&a, &b)?;
    thread::sleep(Duration::from_millis(300));
    nft(
        &bed,
        "ip saddr 10.1.0.1 drop; ip6 saddr fd01::1 drop\nip saddr 10.1.0.2 drop; ip6 saddr fd01::2 drop",
    )?;
    // What was under way when the rule came may still arrive.
    thread::sleep(Duration::from_millis(50));
    let cut: Vec<_> = streams.iter().map(|(_, stream)| stream.counts()).collect();
    thread::sleep(Duration::from_millis(300));
    for ((name, stream), cut) in streams.into_iter().zip(cut) {
        let after = stream.stop().since(cut);
        assert!(cut.received > 20, "{name} ran: {cut:?}");
        assert!(
            after.sent > 20 && after.received == 0,
            "{name} was cut: {after:?}"
        );
    }
    Ok(())
}

fn streams_are_sent_though_never_let_through() -> Tested {
    let (bed, a, b) = pair(Mode::Routed)?;
    nft(&bed, "ip saddr 10.1.0.1 drop")?;
    for traffic in [
        Traffic::udp(7000),
        Traffic::udp(7001).pattern(Pattern::FreshPorts),
        Traffic::tcp(7002).pattern(Pattern::FreshPorts),
    ] {
        let stream = Stream::start(&a, &b, traffic)?;
        thread::sleep(Duration::from_millis(200));
        let counts = stream.stop();
        assert!(
            counts.sent > 20 && counts.received == 0,
            "{traffic:?}: {counts:?}"
        );
    }
    Ok(())
}

fn a_flood_is_counted_exactly() -> Tested {
    let (bed, a, b) = pair(Mode::Routed)?;
    nft(
        &bed,
        "ip saddr 10.7.0.0/16 drop; ip6 saddr fd07::/64 drop\nudp dport 2222 drop",
    )?;
    let class = |name: &str, first: &str, port| Class {
        name: name.to_owned(),
        first: ip(first),
        addresses: 100,
        port,
    };
    for (denied, allowed, port_denied) in [
        ("10.7.0.1", "10.8.0.1", "10.8.0.1"),
        ("fd07::1", "fd08::1", "fd08::1"),
    ] {
        let classes = [
            class("denied", denied, 1111),
            class("allowed", allowed, 1111),
            class("port denied", port_denied, 2222),
        ];
        let flood = Flood::start(&a, &b, &classes, None)?;
        thread::sleep(Duration::from_secs(1));
        assert!(
            flood.counts()[1].received > 1_000,
            "counts are told while it runs: {:?}",
            flood.counts()
        );
        let report = flood.stop()?;
        eprint!("{report}");
        let received: Vec<u64> = report.classes.iter().map(|class| class.received).collect();
        assert_eq!(
            received,
            [
                0,
                report.classes[1].sent - report.machine_drops.min(report.classes[1].sent),
                0
            ],
            "{report}"
        );
        assert!(
            report.classes.iter().all(|class| class.sent > 10_000),
            "{report}"
        );
    }
    let paced = Flood::start(&a, &b, &[class("paced", "10.8.0.1", 1111)], Some(10_000))?;
    thread::sleep(Duration::from_millis(500));
    let report = paced.stop()?;
    assert!((3_000..7_000).contains(&report.classes[0].sent), "{report}");
    assert_eq!(
        report.classes[0].sent, report.classes[0].received,
        "{report}"
    );
    Ok(())
}
