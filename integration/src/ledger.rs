//! Transactions that go on while something else happens, a record of those that were acknowledged, and the comparison
//! of that record with what a deployment has in the end: the API, the journals, the kernels. Never decides what
//! happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sallyport_controlplane::{
    compile,
    history::Event,
    journal::{self, within},
};
use sallyport_enforcer::{
    agent::BridgeTable,
    guard,
    journal::inspect,
    places,
    plan::{self, Limits},
    table::{self, render::Options, state},
};
use sallyport_policy::{Ranges, Revision};
use sallyport_proto::wire::Kind;
use sallyport_testbed::{Netns, listing};

use crate::deployment::{Client, Deployment, PATIENCE, put};

/// The number of transactions whose objects exist at once: later ones replace earlier ones.
const SLOTS: u32 = 25;

/// Two policies that must come together, and name the transaction. They change what every workload's classes allow, so
/// that each node has work to do, and nothing of what probes meet: the addresses are nobody's.
pub fn pair(number: u32) -> String {
    let policy = |half: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: pair-{}-{half}, annotations: {{number: \"{number}\"}}}}
spec:
  podSelector: {{}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{{ipBlock: {{cidr: 172.16.{}.0/24}}}}]
    ports: [{{port: {}}}]
  egress:
  - to: [{{ipBlock: {{cidr: 172.17.{}.0/24}}}}]
    ports: [{{port: {}}}]
---
",
            number % SLOTS,
            number % 250,
            1000 + number % 5000,
            number % 249,
            1000 + number % 5000,
        )
    };
    policy("a") + &policy("b")
}

/// Transactions, one after the other, each tried until it is acknowledged.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU32,
    acknowledged: Mutex<Ledger>,
}

/// The transactions that were acknowledged, each with the revision that the answer named.
#[derive(Clone, Debug, Default)]
pub struct Ledger(BTreeMap<u32, Revision>);

impl Load {
    /// Begins. `pause` lies between an answer and the next transaction.
    pub fn start(mut client: Client, pause: Duration) -> Load {
        let (stop, shared) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Shared::default()),
        );
        let (stopped, tells) = (stop.clone(), shared.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let number = tells.next.load(Ordering::SeqCst);
                let revision = until_acknowledged(&mut client, number)?;
                tells
                    .acknowledged
                    .lock()
                    .expect("nothing panics while holding it")
                    .0
                    .insert(number, revision);
                tells.next.store(number + 1, Ordering::SeqCst);
                thread::sleep(pause);
            }
            Ok(())
        });
        Load {
            stop,
            shared,
            thread,
        }
    }

    /// The number of transactions that were acknowledged up to now.
    pub fn acknowledged(&self) -> u32 {
        self.shared.next.load(Ordering::SeqCst)
    }

    /// Ends after the transaction that is under way.
    pub fn stop(self) -> Result<Ledger> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("the thread that applies transactions panicked"),
        }
        let ledger = self.shared.acknowledged.lock();
        Ok(ledger.expect("nothing panics while holding it").clone())
    }
}

fn until_acknowledged(client: &mut Client, number: u32) -> Result<Revision> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.apply(vec![put(pair(number))]) {
            Ok(revision) => return Ok(Revision(revision)),
            Err(error) if Instant::now() > deadline => {
                bail!("transaction {number} is not acknowledged: {error}")
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

impl Ledger {
    /// The number of transactions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until all is enforced, stops every program, and compares. In the end there is:
    ///
    /// - in the control plane's journal every transaction that was acknowledged, whole, and not later than was said;
    /// - by the API what is in the journal, object by object;
    /// - on each node, in its journal and by the kernel's stamp, the policy that the journal's cluster compiles to;
    /// - in each node's kernel, object by object and element by element, the table that would be made of its journal.
    pub fn compare(&self, deployment: &mut Deployment) -> Result<()> {
        let mut client = deployment.client()?;
        client.wait_enforced(0)?;
        // The garbage of updates is deleted when nothing happens for a while.
        thread::sleep(Duration::from_millis(400));
        let mut objects = BTreeMap::new();
        for kind in [
            Kind::Namespace,
            Kind::Node,
            Kind::NetworkPolicy,
            Kind::Workload,
        ] {
            for object in client.objects(kind)? {
                let r#ref = object.r#ref.context("an object has a name")?;
                let name = format!("{} {}/{}", kind.as_str_name(), r#ref.namespace, r#ref.name);
                objects.insert(name, (object.manifest, object.revision));
            }
        }
        deployment.kill_control_plane();
        for node in 0..deployment.bed.nodes() {
            deployment.kill_enforcer(node);
        }
        let report = journal::inspect(&within(&deployment.data_dir("controlplane")))?;
        self.compare_history(&report)?;
        let recovered = &report.recovered;
        let stored: BTreeSet<_> = recovered
            .cluster
            .objects()
            .map(|one| (one.object.manifest.to_string(), one.revision))
            .collect();
        let told = objects.into_values();
        let told: BTreeSet<_> = told
            .map(|(manifest, revision)| (manifest, Revision(revision)))
            .collect();
        if let Some((manifest, revision)) = stored.symmetric_difference(&told).next() {
            bail!("the API and the journal differ: {manifest} of revision {revision}");
        }
        for (name, policy) in compile::full(&recovered.cluster) {
            let node = (0..deployment.bed.nodes())
                .find(|&node| Deployment::node_name(node) == name)
                .with_context(|| format!("there is no node {name}"))?;
            compare_node(deployment, node, &policy.digest())
                .with_context(|| format!("{name} diverges"))?;
        }
        Ok(())
    }

    fn compare_history(&self, report: &journal::Report) -> Result<()> {
        let history = &report.recovered.history;
        let mut found: BTreeMap<u32, (Revision, usize)> = BTreeMap::new();
        for committed in history.after(history.oldest())? {
            let numbers: Vec<u32> = committed.events.iter().filter_map(number_of).collect();
            if let [first, ..] = numbers[..] {
                ensure!(
                    numbers == [first, first],
                    "revision {} has {numbers:?} of a pair",
                    committed.revision
                );
                found.entry(first).or_insert((committed.revision, 0)).1 += 1;
            }
        }
        for (number, acknowledged) in &self.0 {
            match found.get(number) {
                None => bail!(
                    "transaction {number} was acknowledged as revision {acknowledged} and is lost"
                ),
                Some((revision, 1)) if revision <= acknowledged => {}
                Some((revision, times)) => bail!(
                    "transaction {number}, acknowledged as {acknowledged}, is revision {revision}, {times} times"
                ),
            }
        }
        Ok(())
    }
}

/// The transaction that an object names.
fn number_of(event: &Event) -> Option<u32> {
    let Event::Put(stored) = event else {
        return None;
    };
    let manifest: serde_json::Value = serde_json::from_str(&stored.object.manifest).ok()?;
    let number = manifest.pointer("/metadata/annotations/number")?;
    number.as_str()?.parse().ok()
}

fn compare_node(
    deployment: &Deployment,
    node: usize,
    digest: &sallyport_policy::Digest,
) -> Result<()> {
    let netns = deployment.bed.node(node).netns();
    let report = inspect(&deployment.data_dir(&Deployment::node_name(node)))?;
    let installed = match report.recovered.pending {
        Some((_, after)) => after,
        None => report.recovered.installed,
    };
    let position = installed.position().context("its journal is empty")?;
    ensure!(
        position.digest == *digest,
        "its journal holds {position}, which is not what the cluster comes to"
    );
    let kernel = netns.run(|| state::read(&mut table::open()?))?;
    let kernel = kernel.context("there is no table")?;
    let stamp = kernel.stamp_state.stamp.context("the table has no stamp")?;
    ensure!(
        installed.has_stamp(&stamp) && stamp.progress.is_none(),
        "its table's stamp says {stamp}, its journal {position}"
    );
    let addresses = guard::addresses(&installed.policy);
    let places = netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listed = runtime.block_on(places::list(&addresses));
        listed.map_err(anyhow::Error::msg)
    })?;
    let mut options = Options {
        strict: true,
        workload_ranges: Ranges::EMPTY,
        owned: true,
        ..Options::default()
    };
    options.ports = guard::ports(
        &installed.policy,
        &options,
        &guard::Rules::default(),
        &places,
    );
    let expected = plan::objects(&installed, &options);
    ensure!(
        (&kernel.outline.chains, &kernel.outline.sets) == (&expected.chains, &expected.sets),
        "its table has {kernel:?} instead of {expected:?}"
    );
    let fresh = Netns::new("fresh")?;
    let netlink = fresh.run(table::open)?;
    let limits = Limits {
        batch: netlink.batch_limit(),
    };
    for step in plan::create(&installed, &options, limits).steps {
        netlink.commit(&step.commands)?;
    }
    let ground = guard::ground(
        &installed.policy,
        &options,
        &guard::Rules::default(),
        &places,
    );
    BridgeTable::beside(&netlink, true).set(ground)?;
    let (mut have, mut want) = (listing::objects(netns)?, listing::objects(&fresh)?);
    // Its flags say whether it has an owner, who is dead here and alive there.
    for listing in [&mut have, &mut want] {
        listing.retain(|name, _| !name.contains(" table "));
    }
    match listing::difference(&have, &want) {
        Some(difference) => bail!("its table is not the one that its journal makes: {difference}"),
        None => Ok(()),
    }
}
