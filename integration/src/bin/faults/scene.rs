//! The scene that every row plays on: two nodes, a client on one, a server on the other, and packets between them all
//! the time, of which some must pass and some must not. Decides no fault; judges packets.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sallyport_integration::{
    binaries::{self, Binaries},
    deployment::{Client, Deployment, PATIENCE, Streams, put},
};
use sallyport_testbed::{
    Family, Host, Mode, Testbed,
    probe::{Counts, Pattern, Stream, Traffic},
};

use crate::report::Outcome;

/// The special demands of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    /// The programs that the scene begins with.
    pub(crate) programs: fn() -> Result<Binaries, binaries::Error>,
    /// Arguments of the control plane, and of the enforcers.
    pub(crate) control_plane: &'static [&'static str],
    pub(crate) enforcers: &'static [&'static str],
    /// The nodes' streams run over relays.
    pub(crate) relayed: bool,
    /// The bed of the scene.
    pub(crate) bed: fn() -> Result<Testbed>,
}

/// The client's node, and the server's.
pub(crate) const NEAR: usize = 0;
pub(crate) const FAR: usize = 1;

/// The addresses of a pod of a node.
pub(crate) fn addresses(node: usize, pod: u16) -> [IpAddr; 2] {
    let network = node as u16 + 1;
    [
        IpAddr::from([10, 9, network as u8, pod as u8]),
        Ipv6Addr::new(0xfd00, 9, network, 0, 0, 0, 0, pod).into(),
    ]
}

/// A Workload's manifest.
pub(crate) fn workload(name: &str, node: usize, labels: &str, addresses: &[IpAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
    format!(
        "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {name}, labels: {{{labels}}}}}
spec: {{node: {}, addresses: [{}]}}
---
",
        Deployment::node_name(node),
        addresses.join(", ")
    )
}

/// A policy of some pods for one direction, towards pods, for a range of ports of TCP and UDP.
pub(crate) fn policy(
    name: &str,
    selected: &str,
    ingress: bool,
    peer: &str,
    ports: &[(u16, u16)],
) -> String {
    let (way, rules, side) = match ingress {
        true => ("Ingress", "ingress", "from"),
        false => ("Egress", "egress", "to"),
    };
    let ports: Vec<String> = ports
        .iter()
        .flat_map(|(low, high)| {
            ["TCP", "UDP"]
                .map(|protocol| format!("{{protocol: {protocol}, port: {low}, endPort: {high}}}"))
        })
        .collect();
    let rule = match ports.is_empty() {
        true => String::new(),
        false => format!(
            "{{{side}: [{{podSelector: {{matchLabels: {{{peer}}}}}}}], ports: [{}]}}",
            ports.join(", ")
        ),
    };
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: {name}}}
spec:
  podSelector: {{matchLabels: {{{selected}}}}}
  policyTypes: [{way}]
  {rules}: [{rule}]
---
"
    )
}

/// Ports that both ends allow, that the server's end alone denies, and that the client's end alone denies.
pub(crate) const OPEN: (u16, u16) = (8000, 8019);
const DENIED_FAR: (u16, u16) = (8100, 8119);
pub(crate) const DENIED_NEAR: (u16, u16) = (8200, 8219);

/// The cluster that every row begins with. Its policies are not touched by rows.
pub(crate) fn cluster() -> String {
    let node = |node: usize| {
        let network = node + 1;
        format!(
            "apiVersion: sallyport.dev/v1
kind: Node
metadata: {{name: {}}}
spec: {{workloadCIDRs: [10.9.{network}.0/24, \"fd00:9:{network}::/64\"]}}
---
",
            Deployment::node_name(node)
        )
    };
    let (client, server) = ("app: client", "app: server");
    [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\n".to_owned(),
        node(NEAR),
        node(FAR),
        workload("client", NEAR, client, &addresses(NEAR, 2)),
        workload("server", FAR, server, &addresses(FAR, 2)),
        policy("in", server, true, client, &[OPEN, DENIED_NEAR]),
        policy("out", client, false, server, &[OPEN, DENIED_FAR]),
    ]
    .concat()
}

/// A row's scene.
pub(crate) struct Scene {
    pub(crate) deployment: Deployment,
    pub(crate) client: Host,
    pub(crate) server: Host,
    pub(crate) probes: Probes,
    /// The misjudged packets at times when nobody could prevent that.
    pub(crate) unpreventable: Misjudged,
}

/// Packets that were misjudged up to some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Misjudged {
    pub(crate) leaked: u64,
    pub(crate) lost: u64,
}

/// Packets on their way, all the time.
#[derive(Default)]
pub(crate) struct Probes {
    /// The streams that must pass, each with a name.
    pub(crate) allowed: Vec<(String, Stream)>,
    /// The streams that must not pass.
    pub(crate) denied: Vec<(String, Stream)>,
}

impl Scene {
    pub(crate) fn start(spec: &Spec) -> Result<Scene> {
        let bed = (spec.bed)()?;
        let streams = Streams {
            delays: (0..bed.nodes())
                .filter(|_| spec.relayed)
                .map(|node| (node, Duration::ZERO))
                .collect(),
            uncoordinated: false,
        };
        let deployment = Deployment::start_of(
            (spec.programs)()?,
            bed,
            spec.control_plane,
            spec.enforcers,
            streams,
        )?;
        deployment.client()?.enforce(vec![put(cluster())])?;
        let host = |name: &str| deployment.bed.host(name).context("a pod is missing");
        let (client, server) = (host("default/client")?, host("default/server")?);
        let mut scene = Scene {
            deployment,
            client,
            server,
            probes: Probes::default(),
            unpreventable: Misjudged::default(),
        };
        scene.send()?;
        scene.flows()?;
        Ok(scene)
    }

    /// Begins to send: each kind of packet once a millisecond or so.
    pub(crate) fn send(&mut self) -> Result<()> {
        let (client, server) = (&self.client, &self.server);
        let fresh = |traffic: Traffic| {
            traffic
                .pattern(Pattern::FreshPorts)
                .every(Duration::from_millis(2))
        };
        let v6 = |traffic: Traffic| traffic.family(Family::V6);
        let allowed = [
            ("UDP", Traffic::udp(OPEN.0)),
            ("UDP over IPv6", v6(Traffic::udp(OPEN.0 + 1))),
            ("a TCP connection", Traffic::tcp(OPEN.0 + 2)),
            ("new TCP connections", fresh(Traffic::tcp(OPEN.0 + 3))),
        ];
        let denied = [
            ("UDP, by the server's node", Traffic::udp(DENIED_FAR.0)),
            (
                "new TCP connections over IPv6, by the server's node",
                fresh(v6(Traffic::tcp(DENIED_FAR.0 + 1))),
            ),
            (
                "UDP over IPv6, by the client's node",
                v6(Traffic::udp(DENIED_NEAR.0)),
            ),
            (
                "new UDP flows, by the client's node",
                fresh(Traffic::udp(DENIED_NEAR.0 + 1)),
            ),
        ];
        for (name, traffic) in allowed {
            let stream = Stream::start(client, server, traffic)?;
            self.probes.allowed.push((name.to_owned(), stream));
        }
        for (name, traffic) in denied {
            let stream = Stream::start(client, server, traffic)?;
            self.probes.denied.push((name.to_owned(), stream));
        }
        Ok(())
    }

    /// Returns once each kind of packet that must pass has come through for a while from now on.
    pub(crate) fn flows(&self) -> Result<()> {
        for (name, stream) in &self.probes.allowed {
            let before = stream.counts();
            stream
                .until(PATIENCE, |now| now.since(before).received > 20)
                .map_err(|counts| anyhow::anyhow!("{name} does not come through: {counts:?}"))?;
        }
        Ok(())
    }

    /// Has something more probed.
    pub(crate) fn deny(&mut self, name: &str, stream: Stream) {
        self.probes.denied.push((name.to_owned(), stream));
    }

    pub(crate) fn client(&self) -> Result<Client> {
        Ok(self.deployment.client()?)
    }

    /// Carries a transaction out and waits until it is enforced everywhere. Returns how long it took.
    pub(crate) fn edit(&self, text: impl Into<String>) -> Result<Duration> {
        let mut client = self.client()?;
        let started = Instant::now();
        client.enforce(vec![put(text)])?;
        Ok(started.elapsed())
    }

    /// The misjudged packets up to now. Packets under way are not lost: the least of some samples counts.
    pub(crate) fn misjudged(&self) -> Misjudged {
        let leaked = self.passed();
        let lost = |stream: &Stream| {
            let look = |_| {
                thread::sleep(Duration::from_millis(1));
                stream.counts().lost()
            };
            (0..20).map(look).min().unwrap_or_default()
        };
        let allowed = self.probes.allowed.iter();
        Misjudged {
            leaked,
            lost: allowed.map(|(_, stream)| lost(stream)).sum(),
        }
    }

    /// The number of packets that passed and must not.
    pub(crate) fn passed(&self) -> u64 {
        let denied = self.probes.denied.iter();
        denied.map(|(_, stream)| stream.counts().received).sum()
    }

    /// Sends a signal to a program.
    pub(crate) fn signal(&self, pid: Option<u32>, signal: Signal) -> Result<()> {
        let pid = pid.context("the program does not run")?;
        Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
    }

    /// Waits until a program's log contains some words.
    pub(crate) fn await_log(&self, program: &str, words: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.deployment.log(program).contains(words) {
            ensure!(
                Instant::now() < deadline,
                "the log of {program} does not say {words:?}:\n{}",
                self.deployment.log(program)
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Judges what was counted, and takes the tables away to see whether that meant anything. With `leaks` packets must
    /// have passed that must not.
    pub(crate) fn judge(&mut self, leaks: bool, outcome: &mut Outcome) -> Result<()> {
        // So that something is sent after the last that happened.
        thread::sleep(Duration::from_millis(200));
        let (mut wrong, mut passed) = (Vec::new(), Vec::new());
        for (name, stream) in self.probes.allowed.drain(..) {
            let counts = stream.stop();
            outcome.allowed += counts.sent;
            outcome.lost += counts.lost();
            if counts.lost() > 0 && !leaks {
                wrong.push(format!("{} of {} lost: {name}", counts.lost(), counts.sent));
            }
        }
        for (name, stream) in &self.probes.denied {
            let counts = stream.counts();
            outcome.denied += counts.sent;
            outcome.leaked += counts.received;
            if counts.received > 0 && !leaks {
                passed.push(format!(
                    "{} of {} passed: {name}",
                    counts.received, counts.sent
                ));
            }
        }
        let Misjudged { leaked, lost } = self.unpreventable;
        outcome.lost = outcome.lost.saturating_sub(lost);
        outcome.leaked = outcome.leaked.saturating_sub(leaked);
        if outcome.lost == 0 {
            wrong.clear();
        }
        if outcome.leaked > 0 {
            wrong.extend(passed);
        }
        if !leaks {
            outcome.leaked_without_tables = self.passes_without_tables()?;
        }
        if leaks && outcome.leaked == 0 {
            bail!("it did not leak, so the zeros of others mean nothing");
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        ensure!(
            outcome.allowed.min(outcome.denied) >= 1_000,
            "too few packets to say anything: {} and {}",
            outcome.allowed,
            outcome.denied
        );
        Ok(())
    }

    /// Takes the nodes' tables away. Everything that must not pass passes now, or it was not the table that stopped it.
    fn passes_without_tables(&mut self) -> Result<u64> {
        self.deployment.kill_control_plane();
        for node in 0..self.deployment.bed.nodes() {
            self.deployment.kill_enforcer(node);
            self.deployment.nft(node, &["flush", "ruleset"])?;
        }
        let mut passed = 0;
        for (name, stream) in self.probes.denied.drain(..) {
            let counts = stream.until(PATIENCE, |now: Counts| now.received > 0);
            let counts = counts.map_err(|counts| {
                anyhow::anyhow!("without a table it does not pass either: {name} ({counts:?})")
            })?;
            passed += counts.received;
        }
        Ok(passed)
    }
}

/// Two nodes with a routed pod each.
pub(crate) fn bed() -> Result<Testbed> {
    bed_of(Mode::Routed)
}

/// Two nodes with a pod each.
pub(crate) fn bed_of(mode: Mode) -> Result<Testbed> {
    let bed = Testbed::builder().nodes(2).mode(mode).build()?;
    bed.add_pod(NEAR, "default/client", &addresses(NEAR, 2))?;
    bed.add_pod(FAR, "default/server", &addresses(FAR, 2))?;
    Ok(bed)
}

/// Copies a directory with all that is in it.
pub(crate) fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
