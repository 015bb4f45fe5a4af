//! Prometheus metrics of the node, over HTTP, made when they are asked for. It changes nothing.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use jiff::Timestamp;
use prometheus_client::{
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};
use sallyport_process::{log, metrics};
use sallyport_proto::{wire::trouble::Kind, wire::unjudged_workload::Reason};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::{
    agent::Handle,
    health::{Health, State},
    table::{self, counters, frame::Denial, state},
};

/// The time before a failed listener is tried again: at boot its address may not exist yet.
const AGAIN: Duration = Duration::from_secs(5);

/// The source of the metrics.
#[derive(Debug)]
pub struct Source {
    /// The agent.
    pub agent: Handle,
    /// The node's state.
    pub health: Health,
}

/// Serves `/metrics`, for ever.
pub async fn serve(address: SocketAddr, source: Source) {
    let mut logged = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !std::mem::replace(&mut logged, true) => {
                warn!(%error, %address, "cannot listen on the address of --metrics: trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    info!(%address, "serving metrics");
    metrics::serve(listener, move || {
        let kernel = table::open().and_then(|mut netlink| {
            Ok(Seen {
                denied: counters::denied(&netlink)?,
                closed: state::is_closed(&mut netlink)?,
            })
        });
        let state = source.health.watch().borrow().clone();
        render(&state, &source.agent, kernel.ok())
    })
    .await;
}

/// The figures of the kernel.
struct Seen {
    denied: BTreeMap<Denial, u64>,
    closed: bool,
}

/// `journal`, `not-judged`, ...
fn label(kind: &Kind) -> String {
    let name = kind.as_str_name();
    let word = name.trim_start_matches("KIND_").to_lowercase();
    word.replace('_', "-")
}

/// The reasons for which traffic of a workload is not judged.
const REASONS: [Reason; 4] = [
    Reason::OwnAddress,
    Reason::Device,
    Reason::Flowtable,
    Reason::NoRoute,
];

/// `own-address`, `no-route`, ...
fn reason_label(reason: Reason) -> String {
    let name = reason.as_str_name();
    let word = name.trim_start_matches("REASON_").to_lowercase();
    word.replace('_', "-")
}

/// A number as gauges have it.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn render(state: &State, agent: &Handle, kernel: Option<Seen>) -> String {
    let mut all = Registry::with_prefix("sallyport_enforcer");
    let gauge = |value: u64| ConstGauge::new(signed(value));
    let counter = |value: u64| ConstCounter::new(value);
    let window = agent.window();
    let newest = window.last().copied().unwrap_or_default();
    let oldest = window.first().copied().unwrap_or_default();
    all.register(
        "revision",
        "The revision that the node fully enforces",
        gauge(oldest.revision.0),
    );
    all.register(
        "revision_held",
        "The newest revision that the node holds: its revokes are in force",
        gauge(newest.revision.0),
    );
    all.register(
        "epoch",
        "The control plane's epoch of the newest revision that the node holds",
        gauge(newest.epoch.0),
    );
    all.register(
        "window_versions",
        "Versions of its policy that the node holds; more than 1 for long means that a rollout waits",
        gauge(window.len() as u64),
    );
    all.register(
        "table_protected",
        "1 if the kernel keeps other processes from changing the table inet sallyport",
        gauge(agent.is_protected().into()),
    );
    all.register(
        "session_up",
        "1 while the enforcer has a session with the control plane",
        gauge(state.session_since.is_some().into()),
    );
    all.register(
        "table_repairs",
        "Repairs of the tables after another process changed them, since the start of the enforcer",
        counter(state.repairs),
    );
    all.register(
        "refused_updates",
        "Updates of the control plane that the enforcer refused since its start",
        counter(state.refusals),
    );
    all.register(
        "applied_updates",
        "Updates of the control plane that the enforcer applied since its start",
        counter(state.applied),
    );
    all.register_with_unit(
        "applying",
        "The total time that applied updates took, in the journal and in the kernel",
        Unit::Seconds,
        ConstCounter::new(state.applying.as_secs_f64()),
    );
    all.register_with_unit(
        "applying_longest",
        "The longest time that an update took to apply since the start of the enforcer",
        Unit::Seconds,
        ConstGauge::new(state.longest.as_secs_f64()),
    );
    all.register(
        "journal_errors",
        "Updates refused because the journal could not be written, since the start of the enforcer",
        counter(state.journal_errors),
    );
    all.register(
        "journal_quarantines",
        "Damaged journals moved aside since the start of the enforcer",
        counter(state.quarantines),
    );
    all.register(
        "sysctls_set",
        "Settings of a sysctl of bridges by --manage-sysctls, since the start of the enforcer",
        counter(state.sysctls_set),
    );
    all.register(
        "log_lines_lost",
        "Log lines lost because standard error did not accept them in time",
        counter(log::lost()),
    );
    all.register(
        "log_lines_left_out",
        "Log lines left out by the rate limit of one place in the code",
        counter(log::left_out()),
    );
    if let Some(Seen { denied, closed }) = kernel {
        all.register(
            "closed",
            "1 while the kernel drops all traffic of the node's workloads because the node has no lease",
            gauge(closed.into()),
        );
        let packets: Family<[(&str, &str); 1], Counter> = Family::default();
        for (why, count) in denied {
            packets
                .get_or_create(&[("reason", why.label())])
                .inc_by(count);
        }
        all.register(
            "denied_packets",
            "Packets that the tables dropped or answered with a TCP reset since their creation, by reason",
            packets,
        );
    }
    let unjudged: Family<[(&str, String); 1], Gauge> = Family::default();
    for reason in REASONS {
        let count = state.unjudged.counts.get(&reason).copied();
        let labels = [("reason", reason_label(reason))];
        let gauge = unjudged.get_or_create(&labels);
        gauge.set(signed(count.unwrap_or_default()));
    }
    all.register(
        "not_judged_workloads",
        "Addresses of the node's workloads whose traffic bypasses policy, or may (no-route), by reason",
        unjudged,
    );
    let troubles: Family<[(&str, String); 1], Gauge<f64, std::sync::atomic::AtomicU64>> =
        Family::default();
    let now = Timestamp::now();
    for (kind, condition) in &state.conditions {
        let since = now.duration_since(condition.since).as_secs_f64();
        troubles.get_or_create(&[("kind", label(kind))]).set(since);
    }
    all.register_with_unit(
        "trouble",
        "The time since a condition of the node was set, by its kind",
        Unit::Seconds,
        troubles,
    );
    metrics::encode(&all, "sallyport-enforcer", env!("CARGO_PKG_VERSION"))
}
