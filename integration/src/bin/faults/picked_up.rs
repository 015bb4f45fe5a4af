//! Connections that conntrack picked up in the middle, with the wrong end for their client, and an enforcer that dies
//! while their server is isolated. Counts the messages that pass on them then, and the errors of their ends.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sallyport_enforcer::table;
use sallyport_integration::{
    connections,
    deployment::{PATIENCE, delete, put},
    ledger::Ledger,
};
use sallyport_testbed::{
    Family, Host,
    probe::{Conversation, Protocol, Side, Stream, Traffic},
    tracer::{Call, Fault, Tracer},
};

use crate::{
    Settings,
    kills::{await_hit_or_enforced, of_update},
    scene::{FAR, NEAR, Scene, addresses, policy, workload},
    steps::{Steps, kill_at_each, summary},
};

/// The calls of an update that only takes away, and of the deletions of connections that follow.
const OF_REVOKE: [Steps; 4] = of_update([4, 3, 2, 1]);

/// The number of times that a call of a number must be absent before it counts as absent.
const LAST: usize = 2;

/// After what a kernel is at rest: an acknowledgement may be late by 200 ms.
const AT_REST: Duration = Duration::from_millis(250);

/// The time that connections are watched that must be silent.
const WATCHED: Duration = Duration::from_millis(200);

/// The pods of this row: a client and a server that no policy selects at first. Their numbers on their nodes.
const CALLER: u16 = 80;
const CALLED: u16 = 81;

/// A client has connections open that conntrack forgets, and the server speaks first: it is the client, to conntrack.
/// While both sides go on talking, the server is isolated, and its enforcer killed at every call of that update. Once
/// that is enforced nothing passes on them.
pub(crate) fn picked_up(scene: &mut Scene, _: Settings) -> Result<String> {
    let bed = &scene.deployment.bed;
    let caller = bed.add_pod(NEAR, "default/caller", &addresses(NEAR, CALLER))?;
    let called = bed.add_pod(FAR, "default/called", &addresses(FAR, CALLED))?;
    scene.edit(
        [
            workload("caller", NEAR, "app: caller", &addresses(NEAR, CALLER)),
            workload("called", FAR, "app: called", &addresses(FAR, CALLED)),
        ]
        .concat(),
    )?;
    let (mut rounds, mut before) = (0, 0);
    let hits = kill_at_each(&OF_REVOKE, LAST, |fault| {
        let mut talk = Talk::open(&caller, &called, 9100 + 4 * (rounds % 100))?;
        rounds += 1;
        talk.lose(scene)?;
        before += talk.begin()?;
        round(scene, &talk, fault)
    })?;
    // Isolated in the end, so that the tables, when they are gone, are what stopped it.
    scene.edit(isolation())?;
    for (family, port) in [(Family::V4, 9090), (Family::V6, 9091)] {
        let stream = Stream::start(&caller, &called, Traffic::udp(port).family(family))?;
        scene.deny(&format!("{family} to a server that is isolated"), stream);
    }
    Ledger::default().compare(&mut scene.deployment)?;
    Ok(format!(
        "{rounds} rounds, {before} messages passed before they were denied; {}",
        summary(&hits)
    ))
}

/// Isolates the server, whose enforcer is killed at some call. Returns at which.
fn round(scene: &mut Scene, talk: &Talk, fault: Fault) -> Result<Option<Call>> {
    let pid = scene.deployment.enforcer_pid(FAR);
    let tracer = Tracer::attach(pid.context("it does not run")?, fault)?;
    let revision = scene.client()?.apply(vec![put(isolation())])?;
    let hit = await_hit_or_enforced(scene, &tracer, revision)?;
    drop(tracer);
    if hit.is_some() {
        scene.deployment.kill_enforcer(FAR);
        scene.deployment.start_enforcer(FAR)?;
    }
    scene.client()?.wait_enforced(revision)?;
    // Messages that had arrived by then are counted first.
    thread::sleep(Duration::from_millis(5));
    talk.is_silent()?;
    scene.client()?.enforce(vec![delete(isolation())])?;
    talk.is_over()?;
    Ok(hit)
}

fn isolation() -> String {
    policy("isolation", "app: called", true, "app: nobody", &[])
}

/// Connections on which both sides talk all the time, a word each in 2 ms. Of datagrams only the client's are sent: the
/// server may begin a flow of its own at any time.
struct Talk {
    conversations: Arc<Mutex<Vec<Conversation>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The word that is said.
const WORD: &str = ".";

const KINDS: [(Protocol, Family); 4] = [
    (Protocol::Tcp, Family::V4),
    (Protocol::Tcp, Family::V6),
    (Protocol::Udp, Family::V4),
    (Protocol::Udp, Family::V6),
];

/// The talkers of all kinds, in the order in which they are counted.
const NAMES: &str =
    "client and server over TCP (IPv4, then IPv6), clients over UDP (IPv4, then IPv6)";

/// The sides that talk, of a kind.
fn talkers(protocol: Protocol) -> &'static [Side] {
    match protocol {
        Protocol::Tcp => &[Side::Client, Side::Server],
        _ => &[Side::Client],
    }
}

impl Talk {
    /// Opens a connection of each kind, to ports from one on. All sides have spoken, and are silent.
    fn open(client: &Host, server: &Host, port: u16) -> Result<Talk> {
        let mut conversations = Vec::new();
        for (port, (protocol, family)) in (port..).zip(KINDS) {
            conversations.push(Conversation::open(client, server, protocol, port, family)?);
        }
        for side in [Side::Client, Side::Server] {
            send_and_await(&mut conversations, side)?;
        }
        thread::sleep(AT_REST);
        Ok(Talk {
            conversations: Arc::new(Mutex::new(conversations)),
            stop: Arc::default(),
            thread: None,
        })
    }

    fn conversations(&self) -> MutexGuard<'_, Vec<Conversation>> {
        let conversations = self.conversations.lock();
        conversations.expect("nothing panics while holding it")
    }

    /// Conntrack forgets the connections on both nodes, and picks them up from the server, which speaks first. It
    /// forgets no others: what the row's other pods have open would be reset, as both ends of that are isolated.
    fn lose(&self, scene: &Scene) -> Result<()> {
        let mut conversations = self.conversations();
        let ends: BTreeSet<IpAddr> = addresses(NEAR, CALLER)
            .into_iter()
            .chain(addresses(FAR, CALLED))
            .collect();
        let nodes = [NEAR, FAR].map(|node| scene.deployment.bed.node(node).netns());
        for netns in nodes {
            netns
                .run(table::open)?
                .flush_conntrack(|one| one.is_of(&ends))?;
        }
        send_and_await(&mut conversations, Side::Server)?;
        for netns in nodes {
            let entries = connections::entries(netns)?;
            for conversation in conversations.iter() {
                let [client, server] =
                    [Side::Client, Side::Server].map(|side| conversation.address(side));
                let of = entries
                    .iter()
                    .filter(|one| [one.from, one.to].contains(&client))
                    .map(|one| (one.from, one.to));
                let of: Vec<_> = of.collect();
                ensure!(
                    of == [(server, client)],
                    "not picked up from the server, {server}: {of:?}"
                );
            }
        }
        Ok(())
    }

    /// Starts all talkers, and waits until their words arrive. Returns the number of received words.
    fn begin(&mut self) -> Result<u64> {
        let (conversations, stop) = (Arc::clone(&self.conversations), Arc::clone(&self.stop));
        let talks = move || {
            while !stop.load(Ordering::SeqCst) {
                let mut conversations = conversations.lock().expect("nothing panics holding it");
                for (conversation, (protocol, _)) in conversations.iter_mut().zip(KINDS) {
                    for &side in talkers(protocol) {
                        conversation.send(side, WORD);
                    }
                }
                drop(conversations);
                thread::sleep(Duration::from_millis(2));
            }
        };
        let before = self.received();
        let thread = thread::Builder::new().name("talk".to_owned());
        self.thread = Some(thread.spawn(talks)?);
        self.until("messages do not arrive", |now| {
            now.iter()
                .zip(&before)
                .all(|(now, before)| now > &(before + 10))
        })?;
        Ok(self.received().iter().sum::<usize>() as u64)
    }

    /// The number of messages of each talker that arrived.
    fn received(&self) -> Vec<usize> {
        let mut conversations = self.conversations();
        let each = conversations.iter_mut().zip(KINDS);
        each.flat_map(|(conversation, (protocol, _))| {
            let received = |side: &Side| conversation.received(side.other()).len();
            talkers(protocol).iter().map(received).collect::<Vec<_>>()
        })
        .collect()
    }

    fn until(&self, what: &str, is_so: impl Fn(&[usize]) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let received = self.received();
            if is_so(&received) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{what}: {received:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Checks that no message of any talker arrives.
    fn is_silent(&self) -> Result<()> {
        let before = self.received();
        thread::sleep(WATCHED);
        let after = self.received();
        ensure!(
            before == after,
            "received on connections that are denied, of {NAMES}: {before:?}, then {after:?}"
        );
        Ok(())
    }

    /// Both sides of connections over TCP have been told that they are at their end. Datagrams come through, now that
    /// they may.
    fn is_over(&self) -> Result<()> {
        for (conversation, (protocol, family)) in self.conversations().iter_mut().zip(KINDS) {
            for &side in talkers(protocol) {
                let end = conversation.end(side).map(io::Error::kind);
                ensure!(
                    protocol == Protocol::Udp || end == Some(io::ErrorKind::ConnectionReset),
                    "over {family} the {side:?} was told {end:?}, and not of a reset"
                );
            }
        }
        let before = self.received();
        self.until("datagrams do not come back", |now| {
            let [.., now_v4, now_v6] = now else {
                return false;
            };
            let [.., before_v4, before_v6] = before[..] else {
                return false;
            };
            *now_v4 > before_v4 && *now_v6 > before_v6
        })
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has a side of each conversation send a message, and waits until it arrives.
fn send_and_await(conversations: &mut [Conversation], side: Side) -> Result<()> {
    let listener = side.other();
    for conversation in conversations {
        let before = conversation.received(listener).len();
        conversation.send(side, WORD);
        let deadline = Instant::now() + PATIENCE;
        while conversation.received(listener).len() == before {
            ensure!(
                Instant::now() < deadline,
                "a message of the {side:?} does not arrive"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}
