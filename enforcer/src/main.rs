//! The enforcer's command line: reads options, checks the node, starts agent and session.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use ipnetwork::IpNetwork;
use sallyport_enforcer::{
    agent,
    bridges::{Bridges, Rules},
    closed,
    control_plane::{self, ControlPlane},
    guard,
    health::Health,
    instance, journal,
    leave::{self, LeaveReply, Membership},
    metrics, places, preflight, session, supervision, surroundings,
    table::{lease::LONGEST, ports::Ports, render::Options},
    uninstall,
};
use sallyport_policy::{NodeName, Ranges};
use sallyport_process::{descriptors, duration, files, log};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// Enforces NetworkPolicy on this node.
///
/// The enforcer takes the node's policy from the control plane, keeps a journal of the policy, and filters every
/// forwarded packet in the nftables table `inet sallyport`. The table `bridge sallyport` drops frames that would
/// bypass policy between the ports of a bridge. The enforcer touches nothing else on the node. When the enforcer
/// stops, crashes or loses the control plane, the tables stay and keep enforcing. The next start takes the tables
/// over without losing a packet.
///
/// The enforcer needs CAP_NET_ADMIN and a kernel with nf_tables and ctnetlink (Linux 5.15 or later; 6.9 protects the
/// tables from other processes).
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// The name of this node's Node object [default: the host name]
    #[arg(long, env = "SALLYPORT_NODE_NAME", value_name = "NAME")]
    node_name: Option<NodeName>,

    /// The control plane's address: https://HOST:PORT with --tls, http://HOST:PORT or unix:///PATH without [default:
    /// port 7443 of 127.0.0.1]
    #[arg(long, env = "SALLYPORT_CONTROL_PLANE", value_name = "URL", value_parser = control_plane)]
    control_plane: Option<String>,

    /// The directory with ca.crt, tls.crt and tls.key of this node: connect by TLS 1.3, only to a control plane of the
    /// certificate's cluster [default: no TLS]
    ///
    /// The files are read for each connection, so a renewed certificate needs no restart. While they are of no use, the
    /// node enforces the policy that it has.
    #[arg(long, env = "SALLYPORT_TLS", value_name = "DIR")]
    tls: Option<PathBuf>,

    /// The directory of the journal
    #[arg(
        long,
        env = "SALLYPORT_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/sallyport/enforcer"
    )]
    data_dir: PathBuf,

    /// Addresses that belong to this node's workloads, beside the `workloadCIDRs` of its Node object (repeatable)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    workload_cidr: Vec<IpNetwork>,

    /// An interface with only workloads behind it; `veth*` means all interfaces with this prefix (repeatable)
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = interface)]
    interface: Vec<String>,

    /// The treatment of workload addresses that the control plane has not sent yet
    #[arg(long, value_enum, default_value_t = Mode::Strict)]
    mode: Mode,

    /// Drop all traffic of this node's workloads when the control plane has not renewed the node's lease for this
    /// long: 1s to 60s [default: no leases]
    ///
    /// This lets edits with `--on-unreachable fence` go on without this node once its lease has run out: the kernel closes
    /// the node, even if the enforcer is stopped or frozen. It also closes the node while the control plane is down. A
    /// node that has just booted is closed until its first lease. Choose a time well above that of the longest update.
    #[arg(long, env = "SALLYPORT_LEASE", value_name = "TIME", value_parser = lease)]
    lease: Option<Duration>,

    /// A bridge without workloads, whose traffic needs no policy (repeatable)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    ignore_bridge: Vec<String>,

    /// A veth or tap that leads away from this node; `up*` means all interfaces with this prefix (repeatable)
    ///
    /// Interfaces of other kinds, such as physical interfaces, VLANs, bonds and VXLAN, count as uplinks without
    /// this option. All other ports of a bridge with workloads whose Workload objects name no `interface` accept
    /// only packets with addresses of this node's workloads. An interface that is no port of a bridge, and that the
    /// route to a workload leads to, accepts only packets whose source the node would send there.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = interface)]
    uplink: Vec<String>,

    /// The treatment of packets that come in by another interface than their source is behind. At a workload's port
    /// of a bridge, also the treatment of frames that bypass policy
    #[arg(long, value_enum, env = "SALLYPORT_SOURCE_CHECK", default_value_t = SourceCheck::Drop)]
    source_check: SourceCheck,

    /// Set `net.bridge.bridge-nf-call-iptables`, `net.bridge.bridge-nf-call-ip6tables` and
    /// `net.bridge.bridge-nf-filter-vlan-tagged` of this node to 1 where a bridge needs it, at the start and after
    /// every change by another process [default: only report another value]
    ///
    /// A bridge needs the first two once it has a port, unless it is ignored or has the setting itself
    /// (`nf_call_iptables`). A bridge that filters VLANs (`vlan_filtering`) needs the third one, which is no
    /// setting of a bridge. Without them, traffic between the bridge's ports meets no policy, and the node counts
    /// as not-judging. The enforcer sets no other sysctl and loads no module: load br_netfilter at boot. The option
    /// needs a writable /proc/sys (not under systemd's ProtectKernelTunables=yes).
    #[arg(long, env = "SALLYPORT_MANAGE_SYSCTLS", value_parser = FalseyValueParser::new())]
    manage_sysctls: bool,

    /// The address to serve Prometheus metrics on, at /metrics [default: no metrics]
    #[arg(long, env = "SALLYPORT_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,

    /// Do not ask the kernel to protect the tables: the enforcer repairs changes, as on kernels before 6.9
    #[arg(long, hide = true)]
    unprotected: bool,

    /// The format of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// What to do instead of enforcing.
#[derive(Debug, Subcommand)]
enum Command {
    /// Inspect the journal of a stopped enforcer; changes nothing
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Remove this node: notify the control plane, and delete only the tables `inet sallyport` and `bridge sallyport`
    ///
    /// Afterwards no policy is enforced here, and no edit waits for this node. The command refuses while an
    /// enforcer runs, and when the control plane does not answer within 5 seconds. The journal stays; delete its
    /// directory if you do not need it.
    Uninstall(Box<UninstallArguments>),
    /// Give a data directory that was copied from another machine an id of its own
    ///
    /// The control plane refuses two enforcers whose data directories have one id. Run this command on the machine
    /// that is the copy, and start its enforcer with a --node-name of its own. The command refuses while an
    /// enforcer runs. The tables and the journal stay.
    NewIdentity(JournalArguments),
}

#[derive(Debug, Args)]
struct UninstallArguments {
    #[command(flatten)]
    journal: JournalArguments,

    /// The name of this node's Node object [default: the name that the enforcer last had]
    #[arg(long, env = "SALLYPORT_NODE_NAME", value_name = "NAME")]
    node_name: Option<NodeName>,

    /// The control plane's address [default: the address that the enforcer last used]
    #[arg(
        long,
        env = "SALLYPORT_CONTROL_PLANE",
        value_name = "URL",
        value_parser = control_plane
    )]
    control_plane: Option<String>,

    /// The directory of this node's certificate [default: the directory that the enforcer last used]
    #[arg(long, env = "SALLYPORT_TLS", value_name = "DIR")]
    tls: Option<PathBuf>,

    /// Delete the tables without notifying the control plane that the node leaves
    ///
    /// Edits go on treating the node as before, until the control plane is notified or the Node object is deleted.
    #[arg(long)]
    without_telling: bool,
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// Read every record and report whether the journal is whole (exit code 0) or damaged (1)
    Verify(JournalArguments),
    /// Print every record, one a line, and the state that the records lead to
    Dump(JournalArguments),
}

#[derive(Debug, Args)]
struct JournalArguments {
    /// The directory of the journal
    #[arg(
        long,
        env = "SALLYPORT_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/sallyport/enforcer"
    )]
    data_dir: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  sallyport-enforcer --node-name web-1 --control-plane https://10.0.0.1:7443 --tls /etc/sallyport/tls
  sallyport-enforcer --workload-cidr 10.9.1.0/24 --interface 'veth*'
  sallyport-enforcer --node-name web-1 --control-plane https://10.0.0.1:7443 --tls /etc/sallyport/tls --lease 10s
  sallyport-enforcer journal verify
  sallyport-enforcer uninstall              Removes this node
  sallyport-enforcer new-identity           Gives a copied data directory an id of its own

The tables, as stock nft shows them:
  nft list table inet sallyport
  nft list table bridge sallyport

Log detail is set by RUST_LOG (default: info).";

/// What becomes of a workload address that is no endpoint yet.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// Their traffic is dropped: a workload never sends before its policy is in force.
    Strict,
    /// Their traffic passes, as Kubernetes specifies for a pod that no policy selects.
    Standard,
}

/// The treatment of the frames and packets that the table of family bridge is against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceCheck {
    /// The packets pass and are counted, to see which of them an upgrade would drop. Traffic can evade policy
    /// meanwhile.
    Count,
    /// The packets are dropped.
    Drop,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// An interface name that the kernel could have (`dev_valid_name`), perhaps with a `*` at its end.
fn interface(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    if name.is_empty()
        || name.len() > 15
        || name.contains(|c: char| c == '/' || c == '*' || c.is_whitespace())
    {
        return Err("an interface name has 1 to 15 characters, none of them a space, `/` or (but at the end) `*`".into());
    }
    Ok(text.to_owned())
}

/// The URL of a control plane. What can never be one is refused at the start.
fn control_plane(url: &str) -> Result<String, String> {
    control_plane::is_secure(url).map(|_| url.to_owned())
}

/// The most tries to write the guard at the start, and the time between them, while others keep changing the ruleset.
const GUARD_TRIES: usize = 50;
const GUARD_AGAIN: Duration = Duration::from_millis(100);

/// The times that a lease may last.
const LEASES: RangeInclusive<Duration> = Duration::from_secs(1)..=LONGEST;

/// The value of `--lease`.
fn lease(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text).ok();
    time.filter(|time| LEASES.contains(time))
        .ok_or_else(|| "use a number and a unit, from 1s to 60s, such as 1500ms or 10s".to_owned())
}

fn ranges(cidrs: &[IpNetwork]) -> Ranges {
    let span = |cidr: &IpNetwork| {
        let (first, last): (IpAddr, IpAddr) = (cidr.network(), cidr.broadcast());
        Ranges::span(first, last).expect("a network is a range")
    };
    Ranges::union_all(&cidrs.iter().map(span).collect::<Vec<_>>())
}

fn host_name() -> Result<NodeName> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    name.into_string()
        .ok()
        .map(NodeName::from)
        .context("the host name is not UTF-8 text: give --node-name")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::Journal(command)) => return inspect_journal(command),
        Some(Command::Uninstall(of)) => return take_out(of).await,
        Some(Command::NewIdentity(of)) => return renew(&of.data_dir),
        None => {}
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let format = match arguments.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    let _log = log::start(filter, format, false);
    descriptors::raise();
    let node = arguments.node_name.map_or_else(host_name, Ok)?;
    let control_plane =
        ControlPlane::new(arguments.control_plane.as_deref(), arguments.tls.as_deref())
            .map_err(anyhow::Error::msg)?;
    if control_plane.is_exposed() {
        warn!(
            control_plane = control_plane.url(),
            "there is no TLS: whoever is on the way to the control plane, or answers in its place, decides the policy \
             of this node. Use https:// and --tls"
        );
    }
    preflight::privilege()?;
    let guard_rules = guard::Rules {
        ignored: arguments.ignore_bridge.clone(),
        uplinks: arguments.uplink,
        counts_only: arguments.source_check == SourceCheck::Count,
    };
    let mut bridges = Bridges::new(Rules {
        ignored: arguments.ignore_bridge,
        manage: arguments.manage_sysctls,
    });
    bridges.check().await?;
    let options = Options {
        strict: matches!(arguments.mode, Mode::Strict),
        workload_ranges: ranges(&arguments.workload_cidr),
        workload_interfaces: arguments.interface,
        owned: !arguments.unprotected,
        lease: arguments.lease,
        counts_only: arguments.source_check == SourceCheck::Count,
        ports: Ports::default(),
    };
    let health = Health::default();
    let unknown = options.unknown();
    let agent = agent::start(&arguments.data_dir, options, guard_rules, health.clone())?;
    let addresses = agent.guarded_addresses().borrow().clone();
    let places = places::list(&addresses).await.map_err(anyhow::Error::msg);
    let places = places.context("cannot list the network interfaces and routes")?;
    let mut guarded = agent.set_places(places.clone()).await;
    for _ in 0..GUARD_TRIES {
        if !matches!(&guarded, Err(error) if error.is_outdated()) {
            break;
        }
        tokio::time::sleep(GUARD_AGAIN).await;
        guarded = agent.set_places(places.clone()).await;
    }
    guarded.context("cannot guard the interfaces of workloads")?;
    tokio::spawn(surroundings::watch(agent.clone()));
    let identity = session::Identity {
        name: node,
        unknown,
        // The agent has the journal from now on, so that this is the only enforcer of the directory.
        instance: instance::begin(&arguments.data_dir),
        health: health.clone(),
    };
    let position = match agent.window().last() {
        Some(position) => position.to_string(),
        None => "nothing yet".to_owned(),
    };
    info!(node = identity.name.as_str(), position, "enforcing");
    let membership = Membership {
        node: identity.name.clone(),
        control_plane: control_plane.url().to_owned(),
        tls: control_plane.tls().map(Path::to_owned),
    };
    if let Err(error) = membership.store(&arguments.data_dir) {
        warn!(
            %error,
            "cannot store the control plane's address: `sallyport-enforcer uninstall` will need --control-plane and \
             --node-name"
        );
    }
    if let Some(address) = arguments.metrics {
        let (agent, health) = (agent.clone(), health.clone());
        tokio::spawn(metrics::serve(address, metrics::Source { agent, health }));
    }
    tokio::spawn(closed::watch(agent.clone(), health.clone()));
    tokio::spawn(bridges.watch(health.clone(), agent.unguarded()));
    tokio::spawn(supervision::report(agent.clone(), health));
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        () = session::run(identity, control_plane, agent) => {}
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    supervision::stopping();
    info!("stopping the enforcer: its tables stay in the kernel and keep enforcing policy");
    Ok(())
}

/// Tells the control plane that the node leaves, takes the table off it, and says what came of it.
async fn take_out(arguments: &UninstallArguments) -> Result<()> {
    preflight::privilege()?;
    let data_dir = &arguments.journal.data_dir;
    let is_installed = uninstall::refuse_while_one_runs(data_dir)?;
    let told = match arguments.without_telling {
        true => "the control plane was not told: edits go on treating this node as before, until `sallyport-enforcer \
                 uninstall` tells the control plane or the Node object is deleted (`sallyport delete node NAME`)"
            .to_owned(),
        false => notify_control_plane(arguments, is_installed).await?,
    };
    let deleted = match uninstall::uninstall(data_dir)? {
        true => {
            "deleted the tables inet sallyport and bridge sallyport: no policy is enforced on this node any more"
        }
        false => "there are no tables of sallyport: nothing to delete",
    };
    if !arguments.without_telling {
        Membership::delete(data_dir).with_context(|| {
            format!(
                "cannot delete the control plane's address in {}",
                data_dir.display()
            )
        })?;
    }
    print(&format!(
        "{told}\n{deleted}\nthe journal stays in {}\n",
        data_dir.display()
    ))
}

/// Notifies the control plane that the node leaves. Returns the line for the operator.
async fn notify_control_plane(
    arguments: &UninstallArguments,
    is_installed: bool,
) -> Result<String> {
    let data_dir = &arguments.journal.data_dir;
    let known = Membership::load(data_dir).with_context(|| {
        format!(
            "cannot read the control plane's address in {}",
            data_dir.display()
        )
    })?;
    let name = known.as_ref().map(|known| known.node.clone());
    let (url, tls) = match (&arguments.control_plane, known) {
        (Some(given), known) => (given.clone(), known.and_then(|known| known.tls)),
        (None, Some(known)) => (known.control_plane, known.tls),
        (None, None) if !is_installed => {
            return Ok("no enforcer ran here since the last uninstall of this node".to_owned());
        }
        (None, None) => anyhow::bail!(
            "the data directory {} does not name the node's control plane: give --control-plane and --node-name, or \
             --without-telling. Nothing was changed",
            data_dir.display()
        ),
    };
    // The directory that was used last is of no use to an address without TLS.
    let is_secure = control_plane::is_secure(&url).map_err(anyhow::Error::msg)?;
    let tls = arguments.tls.clone().or(tls.filter(|_| is_secure));
    let control_plane =
        ControlPlane::new(Some(&url), tls.as_deref()).map_err(anyhow::Error::msg)?;
    let name = arguments.node_name.clone().or(name);
    let name = name.map_or_else(host_name, Ok)?;
    match leave::notify(&name, &control_plane).await {
        Ok(LeaveReply::Left) => Ok(format!(
            "the control plane recorded that node {name} left: no edit waits for this node"
        )),
        Ok(LeaveReply::Unknown) => Ok(format!("the control plane has no node {name}")),
        Err(why) => anyhow::bail!(
            "the control plane at {} could not be told that node {name} leaves: {why}. Nothing was changed. Try \
             again, or give --without-telling to delete the tables all the same: edits then go on treating the node \
             as before, until the control plane is told or the Node object is deleted (`sallyport delete node \
             {name}`)",
            control_plane.url()
        ),
    }
}

/// Gives a data directory a new id, and says so.
fn renew(data_dir: &Path) -> Result<()> {
    let id = u128::from_be_bytes(instance::renew(data_dir)?);
    print(&format!(
        "{} now has the instance id {id:032x}\nstart the enforcer with the --node-name of this machine\n",
        data_dir.display()
    ))
}

/// Tells what is in a journal.
fn inspect_journal(command: &JournalCommand) -> Result<()> {
    let (JournalCommand::Verify(arguments) | JournalCommand::Dump(arguments)) = command;
    let report = journal::inspect(&arguments.data_dir)?;
    let mut text = String::new();
    if matches!(command, JournalCommand::Dump(_)) {
        for entry in &report.entries {
            text += &format!(
                "{:>6}  {:>9} bytes  {}\n",
                entry.sequence, entry.bytes, entry.text
            );
        }
    }
    text += &report.to_string();
    print(&text)
}

fn print(text: &str) -> Result<()> {
    files::print(text).context("cannot write the output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_a_time_from_1s_to_60s() {
        for (text, ms) in [
            ("1s", 1_000),
            ("1500ms", 1_500),
            ("10s", 10_000),
            ("1m", 60_000),
        ] {
            assert_eq!(lease(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "999ms", "61s", "2m", "-5s", "ten"] {
            let said = lease(text).unwrap_err();
            assert!(said.contains("from 1s to 60s"), "{text}: {said}");
        }
    }
}
