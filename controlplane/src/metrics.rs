//! Prometheus metrics of the control plane, over HTTP, made when they are asked for. It changes nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};
use sallyport_process::{accept::Counts, log, metrics};
use sallyport_proto::wire::NodeStatus;
use tokio::net::TcpListener;

use crate::{
    api::Watches,
    history::Committed,
    journal::{Journal, JournalError, Note},
    listener::Handshakes,
    nodes::Nodes,
    writer::Writer,
};

/// What a journal did.
#[derive(Debug, Default)]
pub struct Appends {
    groups: AtomicU64,
    transactions: AtomicU64,
    errors: AtomicU64,
    micros: AtomicU64,
    longest_micros: AtomicU64,
}

/// A journal of which is counted how long it takes.
pub struct Timed<J> {
    /// The journal.
    pub journal: J,
    /// Where it is counted.
    pub appends: Arc<Appends>,
}

impl<J: Journal> Journal for Timed<J> {
    fn append(&mut self, group: &[Arc<Committed>]) -> Result<(), JournalError> {
        if group.is_empty() {
            return self.journal.append(group);
        }
        let started = Instant::now();
        let result = self.journal.append(group);
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let appends = &self.appends;
        appends.micros.fetch_add(micros, Relaxed);
        appends.longest_micros.fetch_max(micros, Relaxed);
        appends.groups.fetch_add(1, Relaxed);
        match result {
            Ok(()) => appends.transactions.fetch_add(group.len() as u64, Relaxed),
            Err(_) => appends.errors.fetch_add(1, Relaxed),
        };
        result
    }

    fn note(&mut self, note: &Note) -> Result<(), JournalError> {
        self.journal.note(note)
    }
}

/// Where metrics come from.
pub struct Source {
    /// The nodes.
    pub nodes: Arc<Nodes>,
    /// What is committed.
    pub writer: Writer,
    /// What the journal did.
    pub appends: Arc<Appends>,
    /// The connections.
    pub connections: Arc<Counts>,
    /// The TLS handshakes.
    pub(crate) handshakes: Arc<Handshakes>,
    /// The watches.
    pub watches: Watches,
}

/// Listens for those who ask for `/metrics`, and serves them for ever.
pub async fn listen(address: SocketAddr, source: Source) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(metrics::serve(listener, move || render(&source)));
    Ok(address)
}

fn render(source: &Source) -> String {
    let mut all = Registry::with_prefix("sallyport_controlplane");
    let published = source.writer.current();
    let mut gauge = |name: &str, help: &str, value: u64| {
        all.register(
            name,
            help,
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)),
        );
    };
    gauge(
        "revision",
        "The revision of the last committed transaction",
        published.revision.0,
    );
    gauge(
        "epoch",
        "The epoch of the control plane: each restore from a backup raises it",
        published.epoch.0,
    );
    gauge(
        "contested_addresses",
        "Addresses that more than one workload claims",
        published.cluster.contested().len() as u64,
    );
    gauge(
        "connections",
        "Open connections to the control plane",
        source.connections.open(),
    );
    gauge("watches", "Open watches", source.watches.open());
    let statuses = source.nodes.status();
    let enforced = statuses
        .iter()
        .map(|status| {
            status
                .first_unenforced()
                .map_or(published.revision, |first| first.previous())
        })
        .min();
    gauge(
        "revision_enforced",
        "The last revision that every node enforces",
        enforced.unwrap_or(published.revision).0,
    );
    let unwritable = source.writer.unwritable();
    gauge(
        "journal_unwritable",
        "1 if the last write to the journal failed, so that transactions are refused",
        unwritable.is_some().into(),
    );
    let rollouts = source.nodes.rollouts();
    gauge(
        "rollouts",
        "Rollouts that have not passed their barrier",
        rollouts.len() as u64,
    );
    let oldest = rollouts.iter().map(|rollout| rollout.since).max();
    seconds(
        &mut all,
        "oldest_rollout",
        "The age of the oldest rollout before its barrier, 0 without one",
        oldest.unwrap_or_default(),
    );
    let nodes: Family<[(&str, String); 1], Gauge> = Family::default();
    let troubles: Family<[(&str, String); 1], Gauge> = Family::default();
    let unjudged: Family<[(&str, String); 1], Gauge> = Family::default();
    for status in &statuses {
        for reason in &status.unjudged {
            let reason = label(reason.as_str_name()).replace('_', "-");
            unjudged.get_or_create(&[("reason", reason)]).inc();
        }
        let state = NodeStatus::from(status).state().as_str_name();
        nodes.get_or_create(&[("state", label(state))]).inc();
        for condition in &status.reported {
            let kind = label(condition.kind.as_str_name()).replace('_', "-");
            troubles.get_or_create(&[("kind", kind)]).inc();
        }
    }
    all.register("nodes", "Nodes by state, as in `sallyport status`", nodes);
    all.register(
        "troubled_nodes",
        "Nodes that report a condition, by its kind",
        troubles,
    );
    all.register(
        "not_judged_nodes",
        "Nodes that report workloads whose traffic bypasses policy, or may (no-route), by reason",
        unjudged,
    );
    let turned_away: Family<[(&str, String); 1], Counter> = Family::default();
    for (reason, count) in source.nodes.turned_away() {
        let labels = [("reason", label(reason.as_str_name()))];
        turned_away.get_or_create(&labels).inc_by(count);
    }
    all.register(
        "turned_away",
        "Sessions refused to enforcers since the start of the control plane, by reason",
        turned_away,
    );
    all.register_with_unit(
        "applied_to_enforced",
        "The time from the commit of a transaction until every node that it changes enforces it",
        Unit::Seconds,
        source.nodes.enforcing(),
    );
    let appends = &source.appends;
    let mut counter = |name: &str, help: &str, value: &AtomicU64| {
        all.register(name, help, ConstCounter::new(value.load(Relaxed)));
    };
    counter(
        "transactions",
        "Transactions written durably to the journal since the start of the control plane",
        &appends.transactions,
    );
    counter(
        "journal_groups",
        "Attempts to write a group of transactions to the journal, one flush each",
        &appends.groups,
    );
    counter(
        "journal_errors",
        "Groups of transactions that could not be written to the journal and were refused",
        &appends.errors,
    );
    for (name, help, value) in [
        (
            "log_lines_lost",
            "Log lines lost because standard error did not accept them in time",
            log::lost(),
        ),
        (
            "log_lines_left_out",
            "Log lines left out by the rate limit of one place in the code",
            log::left_out(),
        ),
        (
            "silent_connections",
            "Connections that the control plane closed because no request came on them",
            source.connections.silent.load(Relaxed),
        ),
        (
            "tls_handshakes",
            "TLS handshakes that made a connection",
            source.handshakes.completed.load(Relaxed),
        ),
        (
            "failed_tls_handshakes",
            "TLS handshakes that failed: no certificate, one of another cluster or time, no TLS, or no answer in time",
            source.handshakes.failed.load(Relaxed),
        ),
        (
            "refused_watches",
            "Watches refused because one client address, or all clients together, had too many",
            source.watches.refused(),
        ),
        (
            "accept_errors",
            "Failed attempts to accept a connection, such as at the limit of open files",
            source.connections.errors(),
        ),
    ] {
        all.register(name, help, ConstCounter::new(value));
    }
    let micros = |value: &AtomicU64| Duration::from_micros(value.load(Relaxed));
    all.register_with_unit(
        "journal_flush",
        "The total time that writes of transaction groups to the journal took",
        Unit::Seconds,
        ConstCounter::new(micros(&appends.micros).as_secs_f64()),
    );
    seconds(
        &mut all,
        "journal_flush_longest",
        "The longest time that one write of a transaction group to the journal took since the start",
        micros(&appends.longest_micros),
    );
    metrics::encode(&all, "sallyport-controlplane", env!("CARGO_PKG_VERSION"))
}

fn seconds(all: &mut Registry, name: &str, help: &str, value: Duration) {
    all.register_with_unit(
        name,
        help,
        Unit::Seconds,
        ConstGauge::new(value.as_secs_f64()),
    );
}

/// `enforcing`, `journal`, ...
fn label(name: &str) -> String {
    let (_, word) = name.split_once('_').unwrap_or(("", name));
    word.to_lowercase()
}
