//! The measurements, one after the other, on one deployment: who is stopped how, and from when until when is counted.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use sallyport_integration::deployment::{Client, Deployment, PATIENCE, put};
use sallyport_proto::wire::node_status::State;
use sallyport_testbed::{Host, Testbed, probe::Flood};

use crate::{
    cluster::{CLIENT, SENDERS_BEHIND, SERVER, Size},
    report::{Edits, Report, Times},
};

/// The nodes that have enforcers; the server is on the first of them.
const NODES: usize = 2;

/// The most objects of one transaction.
const OBJECTS: usize = 2_000;

/// The clients that edit at once.
const CLIENTS: usize = 64;

/// Packets a second: enough to see a gap of a millisecond, and little beside what is measured.
const PACKETS: u32 = 10_000;

/// The time that packets flow before the measured event, and after it.
const MARGIN: Duration = Duration::from_millis(300);

/// A deployment with the cluster in it.
pub(crate) struct Bench {
    size: Size,
    deployment: Deployment,
    server: Host,
    client: Host,
    load: Duration,
}

impl Bench {
    /// Starts everything and loads the cluster.
    pub(crate) fn start(size: Size) -> Result<Bench> {
        let bed = Testbed::builder().nodes(NODES).build()?;
        let server = bed.add_pod(0, "probe/server", &[IpAddr::from(SERVER)])?;
        let client = bed.add_pod(1, "probe/client", &[IpAddr::from(CLIENT)])?;
        // Or else the node would take the client's packets for spoofed: it sends with the addresses of others.
        let senders = SENDERS_BEHIND.map(|network| network.parse().expect("it is a network"));
        bed.route_behind("probe/client", &senders)?;
        let deployment = Deployment::start(bed, &[])?;
        let started = Instant::now();
        let mut api = deployment.client()?;
        let mut documents = size.documents().peekable();
        while documents.peek().is_some() {
            let chunk: Vec<_> = documents.by_ref().take(OBJECTS).collect();
            api.apply(vec![put(chunk.join("---\n"))])?;
        }
        // Nodes without an enforcer enforce nothing.
        wait_for_nodes(&mut api)?;
        let load = started.elapsed();
        eprintln!("loaded {size:?} in {:.1} s", load.as_secs_f64());
        Ok(Bench {
            size,
            deployment,
            server,
            client,
            load,
        })
    }

    /// Edits pods one by one, from many clients at once: each edit is a transaction, durable when it is answered.
    pub(crate) fn edit_one_by_one(&mut self, transactions: usize) -> Result<Edits> {
        let (size, next) = (self.size, AtomicUsize::new(0));
        let api = self.deployment.client()?;
        let edit = |mut api: Client| -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= transactions {
                    return Ok(());
                }
                let turn = 1 + number / size.pods;
                api.apply(vec![put(size.pod(number % size.pods, turn))])?;
            }
        };
        let started = Instant::now();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(|| edit(api.clone())))
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
        })?;
        let took = started.elapsed();
        Ok(Edits {
            scenario: "edits",
            size,
            load_s: (self.load.as_secs_f64() * 10.0).round() / 10.0,
            transactions,
            clients: CLIENTS,
            per_second: (transactions as f64 / took.as_secs_f64()).round(),
        })
    }

    /// Stops and kills the control plane, in turns, and waits until it serves.
    pub(crate) fn restart_control_plane(&mut self, rounds: u32) -> Result<Report> {
        let flood = self.flood()?;
        let before = self.deployment.client()?.status()?.revision;
        let mut times = BTreeMap::<_, Vec<_>>::new();
        for round in 0..2 * rounds {
            match round % 2 {
                0 => self.deployment.stop_control_plane(),
                _ => self.deployment.kill_control_plane(),
            }
            let started = Instant::now();
            self.deployment.start_control_plane()?;
            let mut api = self.deployment.client()?;
            let revision = api.status()?.revision;
            let answered = started.elapsed();
            self.deployment.hello(&self.size.greeter())?;
            let serving = started.elapsed();
            ensure!(
                revision == before,
                "revision {revision} after a restart, {before} before it"
            );
            wait_for_nodes(&mut api)?;
            let back = started.elapsed();
            // A session that ends at once makes its node wait longer before the next.
            thread::sleep(2 * MARGIN);
            let measured = [
                ("answered", answered),
                ("serving", serving),
                ("nodes back", back),
            ];
            for (what, time) in measured {
                times.entry(what).or_default().push(time);
            }
            eprintln!(
                "control plane: {measured:?}: {}",
                self.last("controlplane", "listening on")
            );
        }
        self.report("control plane", flood, times, Some(("serving", 2_000.0)))
    }

    /// Stops and kills the server's enforcer, in turns, and waits until it has taken its table over.
    pub(crate) fn restart_enforcer(&mut self, rounds: u32) -> Result<Report> {
        let flood = self.flood()?;
        let mut times = Vec::new();
        for round in 0..2 * rounds {
            match round % 2 {
                0 => self.deployment.stop_enforcer(0),
                _ => self.deployment.kill_enforcer(0),
            }
            times.push(self.start_enforcer("took the table over")?);
        }
        let times = BTreeMap::from([("enforcing", times)]);
        self.report("enforcer", flood, times, Some(("enforcing", 300.0)))
    }

    /// Kills the server's enforcer and deletes its table, as no restart of ours does, and waits until it is made anew.
    pub(crate) fn boot(&mut self, rounds: u32) -> Result<Report> {
        let flood = self.flood()?;
        let mut times = Vec::new();
        for _ in 0..rounds {
            self.deployment.kill_enforcer(0);
            self.delete_table()?;
            times.push(self.start_enforcer("made the table from the journal")?);
        }
        let times = BTreeMap::from([("enforcing", times)]);
        let report = self.report("enforcer without a table", flood, times, None)?;
        Ok(Report {
            control: true,
            ..report
        })
    }

    /// From exec until the enforcer enforces, having done so.
    fn start_enforcer(&mut self, having: &str) -> Result<Duration> {
        let started = Instant::now();
        self.deployment.start_enforcer(0)?;
        let took = started.elapsed();
        let node = Deployment::node_name(0);
        let line = self.last(&node, having);
        ensure!(
            !line.is_empty(),
            "the enforcer did something else: {}",
            self.deployment.log(&node)
        );
        eprintln!("enforcer: {took:?}: {line}");
        let mut api = self.deployment.client()?;
        wait_for_nodes(&mut api)?;
        thread::sleep(MARGIN);
        Ok(took)
    }

    /// The last line of a log that has some words.
    fn last(&self, program: &str, words: &str) -> String {
        let log = self.deployment.log(program);
        let line = log.lines().rfind(|line| line.contains(words));
        line.unwrap_or_default().to_owned()
    }

    fn delete_table(&self) -> Result<()> {
        let node = self.deployment.bed.node(0).netns();
        let deadline = Instant::now() + PATIENCE;
        // The kernel takes the owner off the table a moment after that died.
        loop {
            let mut command = node.command("nft");
            command.args(["delete", "table", "inet", "sallyport"]);
            command.stderr(Stdio::piped());
            let output = node.spawn(command)?.wait_with_output().context("run nft")?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("nft: {}", String::from_utf8_lossy(&output.stderr));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn flood(&self) -> Result<Flood> {
        let classes = self.size.classes();
        let flood = Flood::start(&self.client, &self.server, &classes, Some(PACKETS))?;
        thread::sleep(MARGIN);
        Ok(flood)
    }

    fn report(
        &self,
        scenario: &'static str,
        flood: Flood,
        times: BTreeMap<&'static str, Vec<Duration>>,
        bar: Option<(&'static str, f64)>,
    ) -> Result<Report> {
        thread::sleep(MARGIN);
        let flood = flood.stop()?;
        let times = times
            .into_iter()
            .map(|(what, times)| (what, Times::of(times)));
        Ok(Report {
            times: times.collect(),
            bar,
            ..Report::of(scenario, self.size, &flood)
        })
    }
}

/// Returns when all enforcers are connected and have what they must have.
fn wait_for_nodes(api: &mut Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let ours: Vec<_> = (0..NODES).map(Deployment::node_name).collect();
    loop {
        let status = api.status()?;
        let mut nodes = status.nodes.iter();
        if nodes.all(|node| !ours.contains(&node.name) || node.state() == State::Enforcing) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the nodes do not come back: {:?}", status.nodes);
        }
        thread::sleep(Duration::from_millis(5));
    }
}
