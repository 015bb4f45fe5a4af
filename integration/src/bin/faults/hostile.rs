//! Input that is too large, or none at all: refused with an error that says what is wrong, while others are served.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use rand::{Rng as _, SeedableRng, rngs::StdRng};
use sallyport_integration::{deployment::put, ledger::Load};
use sallyport_testbed::Netns;

use crate::{
    Settings,
    scene::{Scene, policy},
};

/// Manifests that are too large in one way or another, and what is said of them.
pub(crate) fn oversize(scene: &mut Scene, _: Settings) -> Result<String> {
    let load = Load::start(scene.client()?, Duration::from_millis(20));
    let mut client = scene.client()?;
    let before = client.names(sallyport_proto::wire::Kind::NetworkPolicy)?;
    let ports: Vec<(u16, u16)> = (0..30_000).map(|n| (1 + 2 * n, 1 + 2 * n)).collect();
    let deep = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: deep, annotations: {}1{}}}\n",
        "{a: ".repeat(100_000),
        "}".repeat(100_000)
    );
    let cases: [(&str, String); 4] = [
        ("a comment of 80 MiB", "# nothing\n".repeat(8 << 20)),
        (
            "a policy of 60,000 ports",
            policy("huge", "app: server", true, "app: x", &ports),
        ),
        ("a map that is 100,000 deep", deep),
        (
            "an alias that expands a billionfold",
            (1..10).fold(
                "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(),
                |text, n| {
                    let alias = format!("*a{}", n - 1);
                    format!("{text}a{n}: &a{n} [{}]\n", vec![alias; 10].join(", "))
                },
            ),
        ),
    ];
    let mut told = Vec::new();
    for (what, text) in cases {
        let started = Instant::now();
        match client.apply(vec![put(text)]) {
            Ok(_) => told.push(format!("{what}: taken")),
            Err(error) => {
                let text = error.to_string();
                ensure!(
                    text.len() < 20_000,
                    "{what}: an error of {} bytes",
                    text.len()
                );
                told.push(format!("{what}: refused"));
            }
        }
        let took = started.elapsed();
        ensure!(
            took < Duration::from_secs(10),
            "{what}: answered after {took:?}"
        );
    }
    ensure!(
        told.first().is_some_and(|one| one.ends_with("refused")),
        "80 MiB are not refused: {told:?}"
    );
    let after = client.names(sallyport_proto::wire::Kind::NetworkPolicy)?;
    let more: Vec<_> = after
        .difference(&before)
        .filter(|name| !name.contains("pair-") && !name.contains("huge"))
        .collect();
    ensure!(more.is_empty(), "of what was refused there is {more:?}");
    client.wait_enforced(0)?;
    let done = load.stop()?;
    ensure!(done.len() > 8, "others were hardly served: {}", done.len());
    done.compare(&mut scene.deployment)?;
    Ok(format!(
        "{}; {} transactions of others meanwhile",
        told.join(", "),
        done.len()
    ))
}

/// Whoever connects to the port and talks nonsense, or nothing.
pub(crate) fn garbage(scene: &mut Scene, settings: Settings) -> Result<String> {
    let netns = scene.deployment.bed.node(0).netns().clone();
    let address = scene.deployment.control_plane_address(0);
    let idle: Vec<TcpStream> = (0..300)
        .map(|_| connect(&netns, address))
        .collect::<Result<_>>()?;
    let load = Load::start(scene.client()?, Duration::from_millis(5));
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut tried = 0;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
        let mut noise = vec![0; 4096];
        rng.fill_bytes(&mut noise);
        let says: [Vec<u8>; 6] = [
            noise.clone(),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            [preface, &noise].concat(),
            // A frame of 16 MiB that never comes.
            [preface, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
            // Settings, then a thousand resets of streams that never were.
            [
                preface,
                &[0, 0, 0, 4, 0, 0, 0, 0, 0],
                &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8].repeat(1000),
            ]
            .concat(),
            // Pings, as many as go.
            [
                preface,
                &[0, 0, 0, 4, 0, 0, 0, 0, 0],
                &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(10_000),
            ]
            .concat(),
        ];
        for what in says {
            let mut stream = connect(&netns, address)?;
            stream.set_read_timeout(Some(Duration::from_millis(50)))?;
            stream.set_write_timeout(Some(Duration::from_millis(500)))?;
            // The server may hang up at any moment.
            let _ = stream.write_all(&what);
            let _ = stream.read(&mut [0; 4096]);
            tried += 1;
        }
    }
    let done = load.stop()?;
    drop(idle);
    ensure!(done.len() > 50, "others were hardly served: {}", done.len());
    done.compare(&mut scene.deployment)?;
    Ok(format!(
        "{tried} connections with nonsense, 300 silent ones, {} transactions meanwhile",
        done.len()
    ))
}

fn connect(netns: &Netns, address: SocketAddr) -> Result<TcpStream> {
    let connected = netns.run(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)));
    connected.map_err(|error| anyhow!("others cannot connect: {error}"))
}
