//! The measurements, one after the other, on one control plane. Variants that are compared are measured in turns, so
//! that both meet the same machine.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::runtime::Runtime;

use crate::{
    cluster::{Size, gateway_namespaces},
    load::{Api, delete, put},
    process::{ControlPlane, Simulated},
    raw::{Raw, listen},
    report::{Report, Times},
    simulate::Command,
};

/// The idle time before memory is measured.
const SETTLE: Duration = Duration::from_secs(3);

/// The time that the control plane may work on an edit that is enforced: packets drain, the barrier is passed.
const AFTER: Duration = Duration::from_millis(100);

/// The cluster under measurement.
struct Bench<'a> {
    runtime: &'a Runtime,
    size: Size,
    api: Api,
    /// All nodes but one. Dropped before what they are connected to.
    many: Simulated,
    /// The one that is frozen.
    one: Simulated,
    control_plane: ControlPlane,
    /// Whether the gateway that comes and goes is there.
    more: bool,
    /// The namespace of gateways that counts.
    chosen: usize,
}

/// Everything, in order.
pub(crate) fn run(runtime: &Runtime, program: &Path, size: Size, rounds: u32) -> Result<Report> {
    let directory = tempfile::tempdir()?;
    let control_plane = ControlPlane::start(program, directory.path())?;
    let mut api = runtime.block_on(Api::connect(&control_plane.url))?;
    eprintln!(
        "loading {} nodes, {} pods, {} policies",
        size.nodes, size.pods, size.policies
    );
    let started = Instant::now();
    let revision = runtime.block_on(api.load(size))?;
    let load = started.elapsed();
    thread::sleep(SETTLE);
    let (memory_before, _) = control_plane.usage().memory()?;
    let many = Simulated::start(&control_plane.url, 1, size.nodes - 1)?;
    let one = Simulated::start(&control_plane.url, 0, 1)?;
    let mut bench = Bench {
        runtime,
        size,
        api,
        control_plane,
        many,
        one,
        more: false,
        chosen: 0,
    };
    eprintln!("loaded in {:.1} s; connecting", load.as_secs_f64());
    let started = Instant::now();
    bench.connect()?;
    bench.wait_enforced(revision)?;
    let ready = started.elapsed();
    thread::sleep(SETTLE);
    let (memory_with, _) = bench.control_plane.usage().memory()?;
    let lost_at_first = bench.lost_streams()?;

    eprintln!(
        "ready in {:.1} s; one delta to all, and as many bytes by plain TCP",
        ready.as_secs_f64()
    );
    let fan_out = bench.fan_out(rounds)?;
    eprintln!(
        "{} against {}; cluster-wide edits",
        fan_out.delta, fan_out.raw
    );
    let wide = (0..rounds)
        .map(|_| bench.cluster_wide())
        .collect::<Result<_>>()?;
    if bench.chosen == 1 {
        // The gateway that comes and goes is of the first namespace, which must be the one that counts.
        bench.cluster_wide()?;
    }
    eprintln!("with and without a frozen node");
    let (frozen, free) = bench.frozen(rounds)?;
    let lost_streams = bench.lost_streams()? - lost_at_first;
    eprintln!("reconnect of all");
    let reconnect = bench.reconnect()?;

    let (_, server_peak) = bench.control_plane.usage().memory()?;
    let enforcers_peak = bench.many.usage().memory()?.1 + bench.one.usage().memory()?.1;
    let streams = memory_with.saturating_sub(memory_before) as f64;
    let tries = bench.lost_streams()? - lost_streams;
    let (frozen, free) = (Times::of(frozen), Times::of(free));
    Ok(Report {
        delta_to_raw_ratio: round(fan_out.delta.median_ms / fan_out.raw.median_ms),
        frozen_to_free_ratio: round(frozen.median_ms / free.median_ms),
        stream_memory_kib: round(streams / 1024.0 / size.nodes as f64),
        peak_memory_both_gib: round((server_peak + enforcers_peak) as f64 / (1u64 << 30) as f64),
        size,
        load_s: round(load.as_secs_f64()),
        ready_s: round(ready.as_secs_f64()),
        delta_to_all: fan_out.delta,
        delta_bytes: fan_out.bytes,
        raw_to_all: fan_out.raw,
        cluster_wide_edit: Times::of(wide),
        reconnect_all_s: round(reconnect.as_secs_f64()),
        with_one_frozen: frozen,
        with_none_frozen: free,
        server_cpu_per_message_us: round(fan_out.cpu_per_message.as_secs_f64() * 1e6),
        server_memory_before_mib: mib(memory_before),
        server_memory_with_streams_mib: mib(memory_with),
        server_peak_memory_mib: mib(server_peak),
        enforcers_peak_memory_mib: mib(enforcers_peak),
        lost_streams,
        failed_tries_to_connect: tries,
    })
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

fn mib(bytes: u64) -> f64 {
    round(bytes as f64 / f64::from(1 << 20))
}

/// One delta to all, and its yardstick.
struct FanOut {
    delta: Times,
    raw: Times,
    /// Bytes of the delta to one node.
    bytes: u64,
    cpu_per_message: Duration,
}

impl Bench<'_> {
    fn connect(&mut self) -> Result<()> {
        self.many.execute(Command::Connect)?;
        self.one.execute(Command::Connect)?;
        Ok(())
    }

    fn lost_streams(&mut self) -> Result<u64> {
        Ok(self.many.counts()?.lost_streams + self.one.counts()?.lost_streams)
    }

    fn wait_enforced(&mut self, revision: u64) -> Result<()> {
        self.runtime.block_on(self.api.wait_enforced(revision))
    }

    /// Adds a gateway, or removes it: every node is told. Returns the revision.
    fn one_gateway(&mut self) -> Result<u64> {
        self.more = !self.more;
        let text = self.size.one_more();
        let edit = if self.more { put(text) } else { delete(text) };
        self.runtime.block_on(self.api.apply(edit))
    }

    /// From the call until the control plane says that all nodes enforce it.
    fn delta_to_all(&mut self) -> Result<Duration> {
        let started = Instant::now();
        let revision = self.one_gateway()?;
        self.wait_enforced(revision)?;
        Ok(started.elapsed())
    }

    /// One gateway more, and away with it again: how long until all nodes but the one have acknowledged both.
    ///
    /// In this order, since a grant waits by design for a revoke that a frozen node has yet to acknowledge.
    fn deltas_to_many(&mut self) -> Result<Duration> {
        let started = Instant::now();
        for _ in 0..2 {
            let revision = self.one_gateway()?;
            self.many.execute(Command::Await(revision))?;
        }
        Ok(started.elapsed())
    }

    fn cluster_wide(&mut self) -> Result<Duration> {
        self.chosen = 1 - self.chosen;
        let edit = put(gateway_namespaces(self.chosen));
        let started = Instant::now();
        let revision = self.runtime.block_on(self.api.apply(edit))?;
        self.wait_enforced(revision)?;
        Ok(started.elapsed())
    }

    fn fan_out(&mut self, rounds: u32) -> Result<FanOut> {
        // Twice each first: nothing is measured while it is done for the first time.
        let before = self.many.counts()?;
        self.delta_to_all()?;
        self.delta_to_all()?;
        let after = self.many.counts()?;
        let bytes = (after.bytes - before.bytes) / (after.messages - before.messages);
        let (listener, address) = self.runtime.block_on(listen())?;
        let count = self.size.nodes - 1;
        let accepting = self
            .runtime
            .spawn(Raw::accept(listener, count, bytes as usize));
        self.many.execute(Command::Raw(address, bytes as usize))?;
        let raw = self.runtime.block_on(accepting)??;
        self.runtime.block_on(raw.fan_out());
        let (mut deltas, mut raws) = (Vec::new(), Vec::new());
        let mut cpu = Duration::ZERO;
        for _ in 0..rounds {
            let before = self.control_plane.usage().cpu()?;
            deltas.push(self.delta_to_all()?);
            cpu += self.control_plane.usage().cpu()? - before;
            // The yardstick is not to share the machine with what is left to do.
            thread::sleep(AFTER);
            raws.push(self.runtime.block_on(raw.fan_out()));
        }
        self.many.execute(Command::EndRaw)?;
        Ok(FanOut {
            delta: Times::of(deltas),
            raw: Times::of(raws),
            bytes,
            // A delta and an acknowledgement for each node.
            cpu_per_message: cpu / rounds / (2 * self.size.nodes as u32),
        })
    }

    /// Two deltas to all but one, which is frozen, and the same with it awake: in turns, each as often before the
    /// other.
    fn frozen(&mut self, rounds: u32) -> Result<(Vec<Duration>, Vec<Duration>)> {
        if self.more {
            self.delta_to_all()?;
        }
        let (mut frozen, mut free) = (Vec::new(), Vec::new());
        for round in 0..2 * rounds {
            for freeze in [round % 2 == 0, round % 2 == 1] {
                if freeze {
                    self.one.freeze(true)?;
                    frozen.push(self.deltas_to_many()?);
                    self.one.freeze(false)?;
                } else {
                    free.push(self.deltas_to_many()?);
                }
                // All are as far before the next begins.
                self.delta_to_all()?;
                self.delta_to_all()?;
            }
        }
        Ok((frozen, free))
    }

    /// Disconnects all, edits, and has all connect at once.
    fn reconnect(&mut self) -> Result<Duration> {
        self.many.execute(Command::Disconnect)?;
        self.one.execute(Command::Disconnect)?;
        let revision = self.one_gateway()?;
        let started = Instant::now();
        self.connect()?;
        self.wait_enforced(revision)?;
        Ok(started.elapsed())
    }
}
