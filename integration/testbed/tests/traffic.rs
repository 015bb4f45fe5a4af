//! Owns the proof that streams and floods count truly, on the real kernel; never involves an enforcer.

use std::io::Write;
use std::net::IpAddr;
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sallyport_testbed::kernel_tests::{self, Outcome as Tested};
use sallyport_testbed::probe::{Class, Counts, Flood, Pattern, Stream, Traffic};
use sallyport_testbed::{Family, Host, Mode, Testbed};

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

/// Waits until the stream has sent, and received, that many more messages than at `since`. However busy the machine is:
/// it is not the time that counts.
fn run_on(name: &str, stream: &Stream, since: Counts, sent: u64, received: u64) -> Counts {
    let enough =
        |now: Counts| now.since(since).sent >= sent && now.since(since).received >= received;
    let reached = stream.until(Duration::from_secs(30), enough);
    reached.unwrap_or_else(|counts| panic!("{name} does not get on: {counts:?} after {since:?}"))
}

fn streams_lose_nothing(mode: Mode) -> Tested {
    let (_bed, a, b) = pair(mode)?;
    for (name, stream) in streams(&a, &b)? {
        run_on(&name, &stream, Counts::default(), 100, 100);
        let counts = stream.stop();
        assert_eq!(counts.lost(), 0, "{name}: {counts:?}");
    }
    let fast = Stream::start(&a, &b, Traffic::udp(9000).every(Duration::from_micros(50)))?;
    run_on("20,000 a second", &fast, Counts::default(), 5_000, 0);
    let counts = fast.stop();
    assert_eq!(counts.lost(), 0, "20,000 a second: {counts:?}");
    Ok(())
}

fn streams_end_where_they_are_cut() -> Tested {
    let (bed, a, b) = pair(Mode::Bridged)?;
    let streams = streams(&a, &b)?;
    for (name, stream) in &streams {
        run_on(name, stream, Counts::default(), 20, 20);
    }
    nft(
        &bed,
        "ip saddr { 10.1.0.1, 10.1.0.2 } drop\nip6 saddr { fd01::1, fd01::2 } drop",
    )?;
    // Packets that were under way when the rule came are still read; then there are no more.
    thread::sleep(Duration::from_millis(500));
    let cut: Vec<_> = streams.iter().map(|(_, stream)| stream.counts()).collect();
    for ((name, stream), cut) in streams.into_iter().zip(cut) {
        run_on(&name, &stream, cut, 20, 0);
        let after = stream.stop().since(cut);
        assert_eq!(after.received, 0, "{name} was cut: {after:?}");
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
        run_on("a blocked stream", &stream, Counts::default(), 50, 0);
        let counts = stream.stop();
        assert_eq!(counts.received, 0, "{traffic:?}: {counts:?}");
    }
    Ok(())
}

/// Lets a flood go on until every class has sent that many packets.
fn let_flow(flood: &Flood, packets: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while flood.counts().iter().any(|class| class.sent < packets) {
        assert!(
            Instant::now() < deadline,
            "the flood does not get on: {:?}",
            flood.counts()
        );
        thread::sleep(Duration::from_millis(5));
    }
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
            class("allowed too", &allowed.replace('8', "9"), 1111),
        ];
        let flood = Flood::start(&a, &b, &classes, None)?;
        let_flow(&flood, 20_000);
        assert!(
            flood.counts()[1].received > 0,
            "counts are told while it runs: {:?}",
            flood.counts()
        );
        let report = flood.stop()?;
        eprint!("{report}");
        let received: Vec<u64> = report.classes.iter().map(|class| class.received).collect();
        let sent: Vec<u64> = report.classes.iter().map(|class| class.sent).collect();
        assert_eq!(received, [0, sent[1], 0, sent[3]], "{report}");
    }
    let started = Instant::now();
    let paced = Flood::start(&a, &b, &[class("paced", "10.8.0.1", 1111)], Some(10_000))?;
    let_flow(&paced, 5_000);
    let report = paced.stop()?;
    assert!(
        started.elapsed() > Duration::from_millis(450),
        "5,000 at 10,000 a second: {report}"
    );
    assert_eq!(
        report.classes[0].sent, report.classes[0].received,
        "{report}"
    );
    Ok(())
}
