//! The demo: a control plane, two nodes with enforcers, four pods, and the AKS walk-through with real packets.

use std::{
    net::IpAddr,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use sallyport_integration::{
    binaries::binaries,
    deployment::Deployment,
    walkthrough::{self, DemoCluster, PODS, PORT},
};
use sallyport_testbed::{
    Family, Host, Mode, Testbed,
    probe::{Matrix, Prober, Protocol, Server},
};

/// Shows Sallyport enforcing the AKS walk-through on this machine's kernel, in network namespaces that vanish with it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Put the pods of a node behind a bridge instead of routing to each
    #[arg(long)]
    bridged: bool,
}

/// The place of each pod: its node, counted from 0, and its address, as in `demo/cluster.yaml`.
const PLACES: [(usize, [u8; 4]); 4] = [
    (0, [10, 9, 1, 11]),
    (0, [10, 9, 1, 12]),
    (1, [10, 9, 2, 11]),
    (1, [10, 9, 2, 12]),
];

struct Demo {
    deployment: Deployment,
    pods: Vec<Host>,
    _servers: Vec<Server>,
}

impl DemoCluster for Demo {
    fn sallyport(&self, arguments: &[&str]) -> Result<String, String> {
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let output = self
            .deployment
            .sallyport(&manifests, arguments)
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!(
                "sallyport {}: {}",
                arguments.join(" "),
                text(&output.stderr)
            ))
        }
    }

    fn matrix(&self) -> Result<Matrix, String> {
        let prober = Prober::default().with_timeout(Duration::from_millis(500));
        Ok(prober.matrix(&self.pods, Protocol::Tcp, PORT, Family::V4))
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    binaries()?;
    sallyport_testbed::enter()?;
    let started = Instant::now();
    let mode = if arguments.bridged {
        Mode::Bridged
    } else {
        Mode::Routed
    };
    let demo = set_up(mode).context("set the demo up")?;
    println!(
        "A control plane, 2 nodes with enforcers, 4 pods: up in {} ms, in network namespaces of their own.",
        started.elapsed().as_millis()
    );
    println!(
        "client and bystander are on node-1, server and neighbour on node-2; each serves TCP {PORT}."
    );
    let mut listing = String::new();
    let score = walkthrough::run(&demo, |step| {
        // While the policy is in force and the client is let in.
        if step == 3 {
            listing = demo
                .deployment
                .ruleset(1)
                .unwrap_or_else(|error| error.to_string());
        }
    })
    .map_err(|error| anyhow!(error))?;
    println!("\nWhat `nft list ruleset` showed on node-2 after step 3:\n");
    for line in listing.lines() {
        println!("    {line}");
    }
    println!("\ndemo: {} of {} as expected", score.expected, score.asked);
    Ok(if score.is_perfect() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn set_up(mode: Mode) -> Result<Demo> {
    let bed = Testbed::builder().nodes(2).mode(mode).build()?;
    let (mut pods, mut servers) = (Vec::new(), Vec::new());
    for (name, (node, address)) in PODS.into_iter().zip(PLACES) {
        let pod = bed.add_pod(node, name, &[IpAddr::from(address)])?;
        servers.push(Server::start(&pod, &[(Protocol::Tcp, PORT)])?);
        pods.push(pod);
    }
    Ok(Demo {
        deployment: Deployment::start(bed, &[])?,
        pods,
        _servers: servers,
    })
}
