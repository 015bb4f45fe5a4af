//! Owns the tests of pods that come, go, move and change, and of what is left of a bed when its process is killed.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sallyport_testbed::kernel_tests::Outcome as Tested;
use sallyport_testbed::probe::{Outcome, Probe, Prober, Protocol, Server};
use sallyport_testbed::{Change, Family, Host, Mac, Mode, Netns, Testbed};

use super::{EVERY, SERVED, VICTIM, furnished, ip};

pub(crate) fn pods_go_and_move_and_change(mode: Mode) -> Tested {
    let (bed, mut hosts, mut servers) = furnished(mode)?;
    let open = |hosts: &[Host]| -> Tested {
        for family in [Family::V4, Family::V6] {
            for protocol in EVERY {
                Prober::default()
                    .matrix(hosts, protocol, 80, family)
                    .require_all(&Outcome::Open)?;
            }
        }
        Ok(())
    };
    open(&hosts)?;

    bed.remove("default/b")?;
    let gone = Probe::new(&hosts[0], &hosts[1], Protocol::Tcp, 80, Family::V4);
    assert_ne!(Prober::default().probe(gone), Outcome::Open);
    assert!(bed.host("default/b").is_none() && bed.remove("default/b").is_err());
    let addresses = hosts[1].addresses();
    assert!(
        bed.add_pod(0, "default/x", &hosts[0].addresses()).is_err(),
        "an address of two pods"
    );

    // The address is used again, on the same node and then on the other one.
    for node in [0, 1] {
        let name = format!("default/again-{node}");
        hosts[1] = bed.add_pod(node, &name, &addresses)?;
        servers[1] = Server::start(&hosts[1], &SERVED)?;
        open(&hosts)?;
        if node == 0 {
            bed.remove(&name)?;
        }
    }

    bed.move_pod("default/a", 1)?;
    assert_eq!(bed.node_of("default/a"), Some(1));
    open(&hosts)?;
    bed.move_pod("default/a", 0)?;
    open(&hosts)?;

    bed.set_addresses("default/a", &[ip("10.9.9.9"), ip("fd09::9")])?;
    assert_eq!(hosts[0].addresses(), [ip("10.9.9.9"), ip("fd09::9")]);
    open(&hosts)?;
    // Two pods of one node exchange what their neighbours have in their caches.
    bed.set_addresses("other/c", &[ip("10.8.8.8"), ip("fd08::8")])?;
    bed.set_addresses("other/d", &[ip("10.244.1.12"), ip("fd00:10:244::c")])?;
    open(&hosts)
}

pub(crate) fn tens_of_pods_in_a_second() -> Tested {
    for mode in [Mode::Routed, Mode::Bridged] {
        let bed = Testbed::builder()
            .nodes(2)
            .mode(mode)
            .permanent_neighbours()
            .build()?;
        let start = Instant::now();
        let mut pods = Vec::new();
        for number in 1..=40u8 {
            let addresses = [
                IpAddr::from([10, 1, 0, number]),
                ip(&format!("fd01::{number:x}")),
            ];
            pods.push(bed.add_pod(
                usize::from(number % 2),
                &format!("default/p{number}"),
                &addresses,
            )?);
        }
        let made = start.elapsed();
        let servers: Result<Vec<_>, _> =
            pods.iter().map(|pod| Server::start(pod, &SERVED)).collect();
        let _servers = servers?;
        let start = Instant::now();
        let matrix = Prober::default()
            .with_timeout(Duration::from_secs(2))
            .matrix(&pods, Protocol::Tcp, 80, Family::V4);
        eprintln!(
            "{mode:?}: 40 pods in {made:?}, 1,560 TCP probes in {:?}",
            start.elapsed()
        );
        matrix.require_all(&Outcome::Open)?;
        let start = Instant::now();
        for pod in &pods[..10] {
            bed.remove(pod.name())?;
        }
        eprintln!("{mode:?}: 10 pods removed in {:?}", start.elapsed());
        assert!(made < Duration::from_secs(4), "40 pods took {made:?}");
    }
    Ok(())
}

/// The veth of the victim's fabric whose other end is in the watcher's namespace: it goes when that fabric goes.
const WATCHED: &str = "watched";

pub(crate) fn nothing_outlives_a_killed_process() -> Tested {
    let watcher = Netns::new("watcher")?;
    let links = || watcher.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
    let mut victim = watcher.command(std::env::current_exe()?);
    let mut victim = victim.env(VICTIM, "1").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(victim.stdout.take().expect("stdout is piped")).read_line(&mut line)?;
    let child = format!("/proc/{}", line.trim());
    assert!(
        std::path::Path::new(&child).exists(),
        "the victim's child runs: {line:?}"
    );
    assert!(
        links()?.contains(WATCHED),
        "the victim's fabric is joined to the watcher"
    );

    victim.kill()?;
    victim.wait()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_gone = |path: &str| {
        // A child whose parent died is a zombie until somebody reaps it.
        std::fs::read_to_string(format!("{path}/stat")).map_or(true, |stat| stat.contains(") Z "))
    };
    while !is_gone(&child) || links()?.contains(WATCHED) {
        assert!(
            Instant::now() < deadline,
            "20 s after the kill:\nchild gone: {}\n{}",
            is_gone(&child),
            links()?
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

pub(crate) fn be_a_victim() -> ExitCode {
    let own = Netns::current("watcher").expect("the own namespace can be opened");
    let bed = Testbed::builder()
        .mode(Mode::Bridged)
        .build()
        .expect("a bed");
    let pod = bed
        .add_pod(0, "default/a", &[ip("10.0.0.1")])
        .expect("a pod");
    let pair = Change::Veth {
        index: 90,
        name: "watcher".to_owned(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        bridge: None,
        peer: own,
        peer_name: WATCHED.to_owned(),
        peer_mac: Mac([2, 0, 0, 0, 0, 2]),
    };
    bed.fabric()
        .netns()
        .apply(vec![pair])
        .expect("a veth into the watcher's namespace");
    let mut sleep = pod.netns().command("sleep");
    sleep.arg("600").stdout(Stdio::null());
    let mut child = pod.netns().spawn(sleep).expect("sleep");
    println!("{}", child.id());
    let _ = child.wait();
    ExitCode::FAILURE
}
