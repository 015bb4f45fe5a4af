//! A node with leases: closed until one is granted, open while one lasts, and closed by the kernel when the lease
//! expires. The enforcer's actions and failures do not change that.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use nix::errno::Errno;
use sallyport_enforcer::{
    agent::{Agent, StartError},
    journal::{self, Intent, Log, Recovered},
    plan::Installed,
    table::{lease::is_of_lease, names::UpdateSeq, render::Options},
};
use sallyport_nft::{
    command::{Command, Element, SetKind},
    connection::Connection,
    content::Observed,
    kernel::Kernel,
    netlink::{Error, Outline},
};
use sallyport_nft_fake::{FakeKernel, Fault, Packet, Verdicts};
use sallyport_policy::{Delta, Endpoint, Epoch, NodePolicy, Position, Ranges, Revision, Update};

const LEASE: Duration = Duration::from_secs(9);
const A_MOMENT: Duration = Duration::from_millis(1);

const PASSES: Verdicts = Verdicts {
    can_pass: true,
    can_drop: false,
};
const DROPPED: Verdicts = Verdicts {
    can_pass: false,
    can_drop: true,
};

/// A kernel that outlives its agents.
#[derive(Clone, Debug, Default)]
struct Shared(Rc<RefCell<FakeKernel>>, Rc<Cell<Option<usize>>>);

impl Shared {
    /// Has every commit fail after so many commits.
    fn fail_after(&self, commits: usize) {
        self.1.set(Some(commits));
    }

    fn recover(&self) {
        self.1.set(None);
    }
}

impl Kernel for Shared {
    fn batch_limit(&self) -> usize {
        self.0.borrow().batch_limit()
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        match self.1.get() {
            Some(0) => self.0.borrow_mut().fail_next([Fault::Socket(Errno::EIO)]),
            Some(left) => self.1.set(Some(left - 1)),
            None => {}
        }
        self.0.borrow_mut().commit(commands)
    }

    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        self.0.borrow_mut().commit_at(generation, commands)
    }

    fn content(&mut self) -> Result<Observed, Error> {
        self.0.borrow_mut().content()
    }

    fn outline(&mut self) -> Result<Option<Outline>, Error> {
        self.0.borrow_mut().outline()
    }

    fn elements(&mut self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error> {
        self.0.borrow_mut().elements(set, kind)
    }

    fn lookups(&mut self, chain: &str) -> Result<Vec<String>, Error> {
        self.0.borrow_mut().lookups(chain)
    }

    fn flush_conntrack(&mut self, which: &dyn Fn(&Connection) -> bool) -> Result<usize, Error> {
        self.0.borrow_mut().flush_conntrack(which)
    }

    fn grace(&mut self) {
        self.0.borrow_mut().grace();
    }
}

/// A journal that nobody reads. A recovery returns the installed state.
#[derive(Debug)]
struct Nowhere;

impl Log for Nowhere {
    fn intend(&mut self, _: &Intent) -> Result<(), journal::Error> {
        Ok(())
    }

    fn abort(&mut self, _: UpdateSeq) -> Result<(), journal::Error> {
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn snapshot(&mut self, _: &Installed) -> Result<(), journal::Error> {
        Ok(())
    }
}

/// A node with one workload, which no policy isolates.
struct Node {
    kernel: Shared,
    agent: Agent<Shared, Nowhere>,
}

fn address(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

/// The workload's traffic.
fn packet() -> Packet {
    Packet::of_connection(address(1), address(9), 6, 80)
}

/// Traffic that the node forwards for others.
fn other() -> Packet {
    Packet::of_connection(address(8), address(9), 6, 80)
}

fn start(kernel: &Shared, installed: Installed, lease: Option<Duration>) -> Agent<Shared, Nowhere> {
    let recovered = Recovered {
        installed,
        pending: None,
    };
    try_start(kernel, recovered, lease).unwrap()
}

fn try_start(
    kernel: &Shared,
    recovered: Recovered,
    lease: Option<Duration>,
) -> Result<Agent<Shared, Nowhere>, StartError> {
    let options = Options {
        strict: true,
        workload_ranges: Ranges::EMPTY,
        owned: false,
        lease,
        ..Options::default()
    };
    Agent::start(kernel.clone(), Nowhere, recovered, options)
}

fn policy(workloads: std::ops::RangeInclusive<u8>) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let (first, last) = (address(*workloads.start()), address(*workloads.end()));
    policy.set_workload_ranges(Arc::new(Ranges::span(first, last).unwrap()));
    for n in workloads {
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            ..Endpoint::default()
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    policy
}

impl Node {
    fn new(lease: Option<Duration>) -> Node {
        let kernel = Shared::default();
        let agent = start(&kernel, Installed::default(), lease);
        let mut node = Node { kernel, agent };
        node.update(&policy(1..=1), 1);
        node
    }

    fn update(&mut self, policy: &NodePolicy, revision: u64) {
        self.agent.apply(self.update_to(policy, revision)).unwrap();
    }

    fn update_to(&self, policy: &NodePolicy, revision: u64) -> Update {
        let old = self.agent.installed().policy.clone();
        let target = Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: policy.digest(),
        };
        Update {
            base: self.agent.installed().position(),
            target,
            keep: Vec::new(),
            delta: Delta::between(&old, policy),
        }
    }

    /// The records of an update in a journal: the state before the update, and the intent.
    fn intent(&self, policy: &NodePolicy, revision: u64) -> Recovered {
        let installed = self.agent.installed().clone();
        let intent = Intent {
            update: self.update_to(policy, revision),
            unknown: installed.unknown.clone(),
            batch: self.kernel.batch_limit(),
        };
        let after = intent.after(&installed).unwrap();
        Recovered {
            installed,
            pending: Some((intent, after)),
        }
    }

    /// Kills the enforcer, and starts it again with these leases.
    fn restart(&mut self, lease: Option<Duration>) {
        self.agent = start(&self.kernel, self.agent.installed().clone(), lease);
    }

    fn advance(&self, time: Duration) {
        self.kernel.0.borrow_mut().advance(time);
    }

    fn fail_next(&self, fault: Fault) {
        self.kernel.0.borrow_mut().fail_next([fault]);
    }

    /// The possible verdicts on a packet that is under way now.
    fn judges(&self, packet: &Packet) -> Verdicts {
        self.kernel.0.borrow().verdicts_now(packet)
    }

    /// The verdicts on a packet that arrives now.
    fn now(&mut self, packet: &Packet) -> Verdicts {
        self.kernel.grace();
        self.judges(packet)
    }

    fn prepare(&mut self) -> u64 {
        self.agent.prepare_lease().unwrap().expect("it has leases")
    }

    fn renew(&mut self) {
        let number = self.prepare();
        assert!(self.agent.take_lease(number).unwrap());
    }
}

#[test]
fn a_new_table_is_closed_until_its_first_lease() {
    let mut node = Node::new(Some(LEASE));
    assert_eq!(node.now(&packet()), DROPPED);
    assert_eq!(node.now(&packet().reply()), DROPPED);
    assert_eq!(node.now(&other()), PASSES);
    let number = node.prepare();
    assert_eq!(node.now(&packet()), DROPPED, "it is not granted yet");
    assert!(node.agent.take_lease(number).unwrap());
    assert_eq!(node.now(&packet()), PASSES);
}

#[test]
fn a_node_without_leases_has_nothing_of_them() {
    let mut node = Node::new(None);
    assert_eq!(node.now(&packet()), PASSES);
    assert_eq!(node.agent.prepare_lease().unwrap(), None);
    assert_eq!((node.agent.lease(), node.agent.asks_for()), (None, None));
    let table = node.kernel.outline().unwrap().unwrap();
    let mut names = table.chains.iter().chain(&table.sets);
    assert!(!names.any(|name| is_of_lease(name)));
}

#[test]
fn a_lease_counts_from_before_it_was_asked_for() {
    let mut node = Node::new(Some(LEASE));
    let number = node.prepare();
    node.advance(LEASE - A_MOMENT);
    node.agent.take_lease(number).unwrap();
    assert_eq!(node.now(&packet()), PASSES);
    node.advance(A_MOMENT);
    assert_eq!(node.now(&packet()), DROPPED);
    assert_eq!(node.now(&other()), PASSES);

    // The enforcer froze between the request and the answer.
    let number = node.prepare();
    node.advance(LEASE);
    node.agent.take_lease(number).unwrap();
    assert_eq!(node.now(&packet()), DROPPED);
}

#[test]
fn an_answer_to_an_older_request_grants_nothing() {
    let mut node = Node::new(Some(LEASE));
    let (first, second) = (node.prepare(), node.prepare());
    assert!(!node.agent.take_lease(first).unwrap());
    assert_eq!(node.now(&packet()), DROPPED);
    assert!(node.agent.take_lease(second).unwrap());
    assert_eq!(node.now(&packet()), PASSES);
    assert!(!node.agent.take_lease(second).unwrap(), "it is taken");
}

/// Requests without answers give no time. The lease in force gets none, and none comes when the last request is
/// answered.
#[test]
fn asking_prolongs_nothing() {
    let mut node = Node::new(Some(LEASE));
    node.renew();
    for _ in 0..3 {
        assert_eq!(node.now(&packet()), PASSES);
        node.advance(LEASE / 3);
        node.prepare();
    }
    assert_eq!(node.now(&packet()), DROPPED);
}

#[test]
fn renewals_are_nothing_that_a_packet_meets() {
    let mut node = Node::new(Some(LEASE));
    node.renew();
    node.kernel.grace();
    for revision in 2..20 {
        node.advance(LEASE / 3);
        node.renew();
        node.update(&policy(1..=1 + revision as u8 % 3), revision);
        assert_eq!(node.judges(&packet()), PASSES, "since the beginning");
    }
}

/// Whether the kernel executed the commit or not, packets never look into the set that is being filled.
#[test]
fn a_lost_answer_prolongs_nothing() {
    for fault in [Fault::AnswerLost, Fault::BatchLost] {
        let mut node = Node::new(Some(LEASE));
        node.renew();
        node.advance(LEASE / 3);
        let number = node.prepare();
        node.fail_next(fault);
        assert!(node.agent.take_lease(number).is_err());
        assert_eq!(node.now(&packet()), PASSES);
        node.advance(LEASE / 3);
        node.prepare();
        node.advance(LEASE * 2 / 3);
        assert_eq!(node.now(&packet()), DROPPED, "{fault:?}");
        node.renew();
        assert_eq!(node.now(&packet()), PASSES);

        node.fail_next(fault);
        assert!(node.agent.prepare_lease().is_err());
        assert!(!node.agent.take_lease(number + 2).unwrap());
        node.advance(LEASE);
        assert_eq!(node.now(&packet()), DROPPED, "{fault:?}");
    }
}

#[test]
fn a_refused_batch_leaves_the_lease_as_it_is() {
    let mut node = Node::new(Some(LEASE));
    node.renew();
    let number = node.prepare();
    node.fail_next(Fault::Refused(Errno::ENOMEM));
    assert!(node.agent.take_lease(number).is_err());
    assert_eq!(node.now(&packet()), PASSES);
    node.advance(LEASE);
    assert_eq!(node.now(&packet()), DROPPED);
    node.renew();
    assert_eq!(node.now(&packet()), PASSES);
}

#[test]
fn a_lease_goes_on_over_a_restart() {
    let mut node = Node::new(Some(LEASE));
    for renewals in 1..=2 {
        (0..renewals).for_each(|_| node.renew());
        node.advance(LEASE / 2);
        node.restart(Some(LEASE));
        assert_eq!(node.now(&packet()), PASSES);
        // The request of the new life does not prolong the lease.
        node.prepare();
        node.advance(LEASE / 2);
        assert_eq!(node.now(&packet()), DROPPED);
    }
    // Another length does not make another table.
    node.renew();
    node.restart(Some(LEASE * 2));
    assert_eq!(node.now(&packet()), PASSES);
    node.renew();
    node.advance(LEASE);
    assert_eq!(node.now(&packet()), PASSES);
}

#[test]
fn a_table_without_leases_gets_them_closed() {
    let mut node = Node::new(None);
    node.restart(Some(LEASE));
    assert_eq!(node.agent.lease(), Some(LEASE));
    assert_eq!(node.now(&packet()), DROPPED);
    node.renew();
    assert_eq!(node.now(&packet()), PASSES);
    node.advance(LEASE);
    assert_eq!(node.now(&packet()), DROPPED);
}

/// An update that changes the frame was under way when the enforcer was started again with leases. The update is
/// finished as it was begun.
#[test]
fn an_update_under_way_is_finished_before_leases_begin() {
    let node = Node::new(None);
    let recovered = node.intent(&policy(1..=3), 2);
    let mut node = Node {
        agent: try_start(&node.kernel, recovered, Some(LEASE)).unwrap(),
        ..node
    };
    assert_eq!(node.agent.installed().policy, policy(1..=3));
    assert_eq!(node.now(&packet()), DROPPED);
    node.renew();
    assert_eq!(node.now(&packet()), PASSES);
}

/// The enforcer ends after any commit of a start that changes the frame. The journal has the last intent, which was
/// applied.
#[test]
fn a_crash_while_the_frame_changes_is_survived() {
    for (from, to) in [(None, Some(LEASE)), (Some(LEASE), None)] {
        for commits in 0.. {
            let mut node = Node::new(from);
            node.update(&policy(1..=3), 2);
            // Workloads go, and with them elements that cannot be deleted twice.
            let recovered = node.intent(&policy(1..=1), 3);
            node.update(&policy(1..=1), 3);
            let first = recovered.clone();
            node.kernel.fail_after(commits);
            let crashed = try_start(&node.kernel, first, to).and_then(|mut agent| {
                let number = agent.prepare_lease()?.expect("it asks");
                agent.take_lease(number)?;
                Ok(())
            });
            node.kernel.recover();
            if crashed.is_ok() {
                assert!(commits > 5, "there is something to fail");
                break;
            }
            let agent = try_start(&node.kernel, recovered, to);
            node.agent = agent.unwrap_or_else(|error| panic!("{commits} commits, {to:?}: {error}"));
            if node.agent.asks_for().is_some() {
                node.renew();
            }
            assert_eq!(node.now(&packet()), PASSES);
            node.advance(LEASE);
            assert_eq!(node.now(&packet()) == PASSES, to.is_none());
        }
    }
}

/// The control plane does not wait for a node that it believes to have leases. So a node that stops using leases keeps
/// them until it learns that the control plane knows.
#[test]
fn leases_end_when_the_control_plane_knows() {
    let mut node = Node::new(Some(LEASE));
    node.renew();
    node.restart(None);
    assert_eq!(node.agent.lease(), None, "so it tells the control plane");
    assert!(node.agent.asks_for().is_some());
    node.prepare();
    node.advance(LEASE);
    assert_eq!(node.now(&packet()), DROPPED, "asking prolongs nothing");

    let mut node = Node::new(Some(LEASE));
    node.renew();
    node.restart(None);
    let number = node.prepare();
    assert!(node.agent.take_lease(number).unwrap());
    assert_eq!(node.judges(&packet()), PASSES, "all the time");
    node.advance(LEASE);
    assert_eq!(node.now(&packet()), PASSES, "for ever");
    assert_eq!(node.agent.prepare_lease().unwrap(), None);
    node.agent.clean();
    let table = node.kernel.outline().unwrap().unwrap();
    let mut names = table.chains.iter().chain(&table.sets);
    assert!(!names.any(|name| is_of_lease(name)));
}

/// The chain of the lease was emptied while no socket owned the table. An empty chain would be a lease for ever.
#[test]
fn an_emptied_chain_is_no_lease() {
    let mut node = Node::new(Some(LEASE));
    node.renew();
    let flush = Command::FlushChain("lease".into());
    node.kernel.commit(&[flush]).unwrap();
    node.restart(Some(LEASE));
    assert_eq!(node.now(&packet()), DROPPED);
    node.renew();
    assert_eq!(node.now(&packet()), PASSES);
}

/// A table with unknown policy gets no lease, and the node does not report leases, until a snapshot replaces the table.
#[test]
fn a_table_without_a_journal_asks_for_nothing() {
    let mut node = Node::new(Some(LEASE));
    node.renew();
    node.agent = start(&node.kernel, Installed::default(), Some(LEASE));
    assert_eq!(node.agent.window(), []);
    assert_eq!(node.agent.lease(), None);
    assert_eq!(node.agent.prepare_lease().unwrap(), None);
    node.advance(LEASE);
    assert_eq!(node.now(&packet()), DROPPED);
    node.update(&policy(1..=1), 7);
    assert_eq!(node.agent.lease(), Some(LEASE));
    assert_eq!(node.now(&packet()), DROPPED);
    node.renew();
    assert_eq!(node.now(&packet()), PASSES);
}
