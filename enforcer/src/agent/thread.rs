//! The agent's thread: applies one update after the other, repairs the table after changes of other processes, cleans
//! up when idle, and publishes the versions that the node holds. It changes nothing itself.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    sync::{
        Arc, Weak,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use sallyport_nft::netlink::{self, Culprit, Monitor, Netlink, Notice};
use sallyport_policy::{Position, Update};
use sallyport_proto::wire::trouble::Kind;
use tokio::sync::{oneshot, watch};
use tracing::{debug, error, info, warn};

use super::{
    Agent, StartError, UpdateError,
    guarding::{Guarding, Unguarded},
    lease::{Lease, Taken},
};
use crate::{
    guard::Rules,
    health::Health,
    journal::{self, Journal},
    places::Places,
    table::{self, render::Options},
};

/// The idle time before garbage is deleted.
const IDLE: Duration = Duration::from_millis(100);

/// The time to wait until the kernel sees that the enforcer before this one is dead.
const ORPHAN_PATIENCE: Duration = Duration::from_millis(500);

/// The number of objects that may be left behind before they are deleted though updates keep coming.
const GARBAGE_MAX: usize = 500;

/// The time before an update that stopped halfway is tried again.
const HALF_WAY: Duration = Duration::from_secs(1);

/// The pause before a failed repair of the table is tried again.
const REPAIR_RETRY: Duration = Duration::from_millis(200);

/// The interval at which the monitor checks whether the agent still runs.
const LISTEN: Duration = Duration::from_secs(1);

enum Request {
    WaitIdle(Reply<()>),
    Apply(Update, Reply<Result<(), UpdateError>>),
    EndLeases(Reply<Result<(), netlink::Error>>),
    Places(Places, Reply<Result<(), Unguarded>>),
    Notice(Notice),
}

/// Takes the reply to a request. The requester may be gone.
type Reply<T> = oneshot::Sender<T>;

/// A way to the agent, which runs on a thread of its own until every handle is gone.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Arc<mpsc::Sender<Request>>,
    published: watch::Receiver<Published>,
    lease: Arc<Mutex<Lease>>,
    kernel: Netlink,
    guarded_addresses: watch::Receiver<Arc<BTreeSet<IpAddr>>>,
    problem: watch::Receiver<Option<String>>,
    asks_for: Option<Duration>,
    protected: bool,
}

/// The published state of the agent.
#[derive(Debug)]
struct Published {
    window: Vec<Position>,
    lease: Option<Duration>,
}

impl Handle {
    /// The versions that the node holds, oldest first.
    pub fn window(&self) -> Vec<Position> {
        self.published.borrow().window.clone()
    }

    /// Waits until no update is under way, not even one that stopped half-way. Then [`window`](Handle::window) returns
    /// the versions that the node holds.
    pub async fn wait_idle(&self) {
        self.ask(Request::WaitIdle).await;
    }

    /// Applies an update: when this returns `Ok` it is in the journal and in the kernel.
    pub async fn apply(&self, update: Update) -> Result<(), UpdateError> {
        self.ask(|reply| Request::Apply(update, reply)).await
    }

    /// The length of the leases without which the node closes by itself; `None` while it does not close.
    pub fn lease(&self) -> Option<Duration> {
        self.published.borrow().lease
    }

    /// The length of the lease that the node asks for; `None` when it never asks for one.
    pub fn asks_for(&self) -> Option<Duration> {
        self.asks_for
    }

    /// Whether the kernel keeps others from changing the table.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// The endpoints whose places the agent needs ([`set_places`](Handle::set_places)).
    pub fn guarded_addresses(&self) -> watch::Receiver<Arc<BTreeSet<IpAddr>>> {
        self.guarded_addresses.clone()
    }

    /// The links of the node, and where its routes lead: has the interfaces of workloads guarded accordingly.
    pub async fn set_places(&self, places: Places) -> Result<(), Unguarded> {
        self.ask(|reply| Request::Places(places, reply)).await
    }

    /// Why the interfaces of workloads are not guarded as they should be, while they are not.
    pub fn unguarded(&self) -> watch::Receiver<Option<String>> {
        self.problem.clone()
    }

    /// Makes a lease ready, whose time runs from now on, and returns the number to ask for it by. `None` when there is
    /// nothing to ask for.
    pub async fn prepare_lease(&self) -> Result<Option<u64>, netlink::Error> {
        self.beside(Lease::prepare).await
    }

    /// The lease of a number was granted: puts it in force. Returns whether it did.
    pub async fn take_lease(&self, number: u64) -> Result<bool, netlink::Error> {
        let taken = self
            .beside(move |lease, kernel| lease.take(kernel, number))
            .await?;
        match taken {
            Taken::InForce => Ok(true),
            Taken::Gone => Ok(false),
            Taken::Last => self.ask(Request::EndLeases).await.map(|()| true),
        }
    }

    /// Changes the lease beside the agent, whatever that is at: an update can take longer than a lease lasts.
    async fn beside<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Lease, &mut Netlink) -> T + Send + 'static,
    ) -> T {
        let (lease, mut kernel) = (Arc::clone(&self.lease), self.kernel.clone());
        let change = move || change(&mut lease.lock(), &mut kernel);
        let changed = tokio::task::spawn_blocking(change).await;
        changed.expect("a change of the lease does not panic")
    }

    /// An agent that holds nothing, and applies an update once it is let go on.
    #[cfg(test)]
    pub(crate) fn held(go_on: mpsc::Receiver<()>) -> Handle {
        let (requests, queue) = mpsc::channel();
        let (publisher, published) = watch::channel(Published {
            window: Vec::new(),
            lease: None,
        });
        thread::spawn(move || {
            for request in queue {
                match request {
                    Request::WaitIdle(reply) => drop(reply.send(())),
                    Request::Apply(_, reply) => {
                        let _ = go_on.recv();
                        drop(reply.send(Ok(())));
                    }
                    Request::EndLeases(reply) => drop(reply.send(Ok(()))),
                    Request::Places(_, reply) => drop(reply.send(Ok(()))),
                    Request::Notice(_) => {}
                }
            }
            drop(publisher);
        });
        let nobody = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        Handle {
            requests: Arc::new(requests),
            published,
            lease: Arc::default(),
            kernel: Netlink::over(nobody.into(), table::INET, 0),
            guarded_addresses: watch::Sender::new(Arc::default()).subscribe(),
            problem: watch::Sender::new(None).subscribe(),
            asks_for: None,
            protected: false,
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> T {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(request(reply))
            .expect("the agent runs as long as there are handles");
        answer.await.expect("the agent answers every request")
    }
}

/// Starts the agent: brings journal and kernel together without a packet noticing, then waits for updates. It sets its
/// conditions in `health`. The table of family bridge stays as it is until the first
/// [`set_places`](Handle::set_places).
pub fn start(
    data_dir: &Path,
    options: Options,
    rules: Rules,
    health: Health,
) -> Result<Handle, StartError> {
    let netlink = table::open()?;
    netlink.await_orphan(ORPHAN_PATIENCE)?;
    let (journal, recovered, quarantined) = journal::open(data_dir)?;
    if let Some(quarantined) = quarantined {
        health.count(|state| state.quarantines += 1);
        health.set(
            Kind::Quarantine,
            format!("{}: {}", quarantined.path.display(), quarantined.cause),
        );
    }
    let agent = Agent::start(netlink, journal, recovered, options.clone())?;
    let (requests, queue) = mpsc::channel();
    let requests = Arc::new(requests);
    let protected = agent.is_protected();
    if !protected {
        warn!(
            "the kernel does not protect the tables from other processes: the enforcer repairs changes within a second"
        );
        listen(
            Monitor::open(agent.kernel(), &[table::INET, table::BRIDGE])?,
            Arc::downgrade(&requests),
        );
        // Changes before the monitor was open count as lost messages.
        let _ = requests.send(Request::Notice(Notice::Lost));
    }
    let asks_for = agent.asks_for();
    let (lease, kernel) = (Arc::clone(&agent.lease), agent.kernel().clone());
    let policy = &agent.installed().policy;
    let guarding = Guarding::new(&kernel, protected, options, rules, policy, health.clone());
    let (guarded_addresses, problem) = (guarding.guarded_addresses(), guarding.problem());
    let (publisher, published) = watch::channel(Published::of(&agent));
    thread::Builder::new()
        .name("agent".into())
        .spawn(move || run(agent, guarding, &queue, &publisher, health))
        .expect("a thread can be started");
    Ok(Handle {
        requests,
        published,
        lease,
        kernel,
        guarded_addresses,
        problem,
        asks_for,
        protected,
    })
}

/// Forwards the commits of other processes to the agent, as long as it runs.
fn listen(mut monitor: Monitor, agent: Weak<mpsc::Sender<Request>>) {
    let forward = move || {
        loop {
            let notices = monitor.receive(LISTEN).unwrap_or_else(|error| {
                error!(%error, "cannot follow the commits of other processes: checking the tables every second");
                thread::sleep(LISTEN);
                vec![Notice::Lost]
            });
            let Some(agent) = agent.upgrade() else {
                return;
            };
            for notice in notices {
                let _ = agent.send(Request::Notice(notice));
            }
        }
    };
    thread::Builder::new()
        .name("monitor".into())
        .spawn(forward)
        .expect("a thread can be started");
}

impl Published {
    fn of(agent: &Agent<Netlink, Journal>) -> Published {
        Published {
            window: agent.window(),
            lease: agent.lease(),
        }
    }
}

fn run(
    mut agent: Agent<Netlink, Journal>,
    mut guarding: Guarding,
    queue: &mpsc::Receiver<Request>,
    publisher: &watch::Sender<Published>,
    health: Health,
) {
    let mut repairer = Repairer {
        health: health.clone(),
        culprit: Culprit::default(),
        again: None,
        reported: agent.drift().repairs,
    };
    loop {
        let again = repairer.again.into_iter().chain(guarding.again).min();
        let request = match again.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(wait) => queue.recv_timeout(wait),
            None if agent.left_behind() > 0 => queue.recv_timeout(IDLE),
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match request {
            Ok(Request::Apply(update, reply)) => {
                let started = Instant::now();
                let mut result = agent.prepare(update).and_then(|prepared| {
                    // The guard closes before policy lets go of an address.
                    let narrowed = guarding.narrow(prepared.policy(), &mut agent);
                    narrowed.map_err(|error| UpdateError::Guard(error.to_string()))?;
                    agent.apply_prepared(prepared)
                });
                // The node will hold the update, and does not yet: the reply waits until it is finished.
                while agent.is_half_way() {
                    report_result(&health, &result, started.elapsed());
                    thread::sleep(HALF_WAY);
                    result = agent.finish();
                }
                report_result(&health, &result, started.elapsed());
                // The guard follows before the control plane gets the reply.
                guarding.set_policy(&mut agent);
                publisher.send_replace(Published::of(&agent));
                let _ = reply.send(result);
            }
            Ok(Request::WaitIdle(reply)) => drop(reply.send(())),
            Ok(Request::EndLeases(reply)) => {
                let result = agent.end_leases();
                publisher.send_replace(Published::of(&agent));
                let _ = reply.send(result);
            }
            Ok(Request::Places(places, reply)) => {
                drop(reply.send(guarding.set_places(places, &mut agent)));
            }
            Ok(Request::Notice(notice)) => repairer.receive(notice, &mut agent, &mut guarding),
            Err(RecvTimeoutError::Timeout) if again.is_some() => {
                if repairer.again.is_some() {
                    repairer.repair(&mut agent);
                }
                if guarding.again.is_some() {
                    guarding.try_again(&mut agent);
                }
            }
            Err(RecvTimeoutError::Timeout) => agent.clean(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if agent.left_behind() > GARBAGE_MAX {
            agent.clean();
        }
    }
}

/// Reports the result of an update in the node's health.
fn report_result(health: &Health, result: &Result<(), UpdateError>, took: Duration) {
    let refusal = match result {
        Ok(()) => {
            health.clear(Kind::Refusing);
            health.clear(Kind::Journal);
            health.count(|state| {
                state.applied += 1;
                state.applying += took;
                state.longest = state.longest.max(took);
            });
            return;
        }
        // The control plane sends a snapshot then.
        Err(UpdateError::Misfit(_)) => return,
        Err(refusal) => refusal,
    };
    let is_journal = matches!(refusal, UpdateError::Journal(_));
    let kind = match is_journal {
        true => Kind::Journal,
        false => Kind::Refusing,
    };
    health.set(kind, refusal.to_string());
    health.count(|state| {
        state.refusals += 1;
        state.journal_errors += u64::from(is_journal);
    });
}

/// Repairs the tables after changes of other processes, and reports the repairs.
struct Repairer {
    health: Health,
    /// The process that changed the table last.
    culprit: Culprit,
    /// The time to try a failed repair again.
    again: Option<Instant>,
    /// The number of repairs that were reported.
    reported: u64,
}

impl Repairer {
    fn receive(
        &mut self,
        notice: Notice,
        agent: &mut Agent<Netlink, Journal>,
        guarding: &mut Guarding,
    ) {
        match notice {
            Notice::Elsewhere(who) => {
                debug!(%who, "a commit of another process left the tables alone");
                return;
            }
            Notice::Touched(culprit) => self.culprit = culprit,
            Notice::Lost => self.culprit = Culprit::default(),
        }
        self.repair(agent);
        if guarding.restore(agent) {
            self.health.count(|state| state.repairs += 1);
            let what = "the table bridge sallyport differed from the desired content";
            self.health
                .set_anew(Kind::Mended, format!("{}: {what}", self.culprit));
            warn!(
                culprit = %self.culprit,
                "another process changed the table bridge sallyport: the enforcer repaired it"
            );
        }
    }

    fn repair(&mut self, agent: &mut Agent<Netlink, Journal>) {
        let started = Instant::now();
        self.again = None;
        if let Err(error) = agent.restore() {
            error!(
                %error, culprit = %self.culprit,
                "another process changed the table inet sallyport, and the repair failed: trying again"
            );
            self.health
                .set(Kind::Table, format!("{}: {error}", self.culprit));
            self.again = Some(Instant::now() + REPAIR_RETRY);
        } else {
            self.health.clear(Kind::Table);
        }
        // An update may have repaired the table on its way.
        let drift = agent.drift();
        if drift.repairs > self.reported {
            self.health
                .count(|state| state.repairs += drift.repairs - self.reported);
            let differences = drift.last.join("; ");
            self.health
                .set_anew(Kind::Mended, format!("{}: {differences}", self.culprit));
            self.reported = drift.repairs;
            warn!(
                culprit = %self.culprit, differences = ?drift.last, took = ?started.elapsed(),
                "another process changed the table inet sallyport: the enforcer repaired it"
            );
        } else if self.again.is_none() && self.culprit.pid > 0 {
            info!(
                culprit = %self.culprit,
                "another process touched the table inet sallyport, whose content is as desired"
            );
        }
    }
}
