//! The programs that the containers of docker-compose.yml run beside Sallyport's own: a pod, the routes of a node, and
//! the walk-through itself. Their images hold nothing but programs, no shell and no `ip`.

use std::{
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Parser};
use nix::sys::signal::{SigSet, Signal};
use sallyport_integration::walkthrough::{
    self, PORT,
    containers::Containers,
    network::{self, Route},
    pod::{self, Pod},
};

/// The AKS walk-through across containers: see docker-compose.yml.
#[derive(Debug, Parser)]
#[command(version)]
enum Arguments {
    /// Be a pod: serve TCP 80, and tell at a unix socket what can be reached
    Pod(PodArguments),
    /// Be a node: set routes, then become the given program
    Node(NodeArguments),
    /// Carry the walk-through out; the exit code is 0 if every cell is as expected
    Run(RunArguments),
}

#[derive(Debug, Args)]
struct PodArguments {
    /// The pod's name
    #[arg(long)]
    name: String,
    /// Its address, a /32 of its own
    #[arg(long)]
    address: Ipv4Addr,
    /// Its node's address on the link between them: its default gateway
    #[arg(long)]
    node: Ipv4Addr,
    /// The folder for its socket
    #[arg(long, value_name = "DIR")]
    sockets: PathBuf,
}

#[derive(Debug, Args)]
struct NodeArguments {
    /// A route to a pod or to another node's pods (repeatable)
    #[arg(long, value_name = "DESTINATION=GATEWAY")]
    route: Vec<Route>,
    /// The program, and its arguments
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// The CLI
    #[arg(long, value_name = "FILE")]
    sallyport: PathBuf,
    /// The folder of cluster.yaml and demo-policy.yaml
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// The folder of the pods' sockets
    #[arg(long, value_name = "DIR")]
    sockets: PathBuf,
}

fn main() -> Result<ExitCode> {
    match Arguments::parse() {
        Arguments::Pod(arguments) => be_pod(arguments),
        Arguments::Node(arguments) => be_node(arguments),
        Arguments::Run(arguments) => run(arguments),
    }
}

/// One thread: capabilities and blocked signals are each thread's own.
fn set_up(address: Option<Ipv4Addr>, routes: &[Route]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(network::set_up(address, routes))
        .context("set the routes")
}

fn be_pod(
    PodArguments {
        name,
        address,
        node,
        sockets,
    }: PodArguments,
) -> Result<ExitCode> {
    set_up(Some(address), &[Route::default_by(node)])?;
    network::give_up_privilege()?;
    // The first process of a container gets no signal that it does not ask for.
    let mut end = SigSet::empty();
    end.extend([Signal::SIGTERM, Signal::SIGINT]);
    end.thread_block().context("block SIGTERM")?;
    println!("pod {name}: {address} behind {node}, serving TCP {PORT}, without any capability");
    pod::serve(
        Pod {
            name,
            address,
            node,
        },
        PORT,
        &sockets,
    )
    .context("serve")?;
    end.wait().context("wait for SIGTERM")?;
    Ok(ExitCode::SUCCESS)
}

fn be_node(NodeArguments { route, program }: NodeArguments) -> Result<ExitCode> {
    set_up(None, &route)?;
    for route in &route {
        println!("route {route}");
    }
    let error = Command::new(&program[0]).args(&program[1..]).exec();
    Err(error).with_context(|| format!("become {}", program[0]))
}

fn run(
    RunArguments {
        sallyport,
        manifests,
        sockets,
    }: RunArguments,
) -> Result<ExitCode> {
    let containers =
        Containers::find(sallyport, manifests, sockets).map_err(|error| anyhow!(error))?;
    println!("A control plane, 2 nodes with enforcers, 4 pods: each a container.");
    for (name, address, node) in containers.nodes() {
        println!("  {name:<10} {address:<11} behind its node's {node}");
    }
    let pairs = containers
        .require_nodes_on_every_way()
        .map_err(|error| anyhow!(error))?;
    println!(
        "Every packet crosses its pod's node: for all {pairs} pairs, pods of one node too, the node is the first hop."
    );
    let score = walkthrough::run(&containers, |_| {}).map_err(|error| anyhow!(error))?;
    println!(
        "\nwalkthrough: {} of {} as expected",
        score.expected, score.asked
    );
    Ok(if score.is_perfect() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
