//! Other processes change the table of the fake kernel, or its content is unknown. The agent restores the table,
//! whatever fails. On the way no packet gets another verdict than the one that the changed table and the whole one
//! agree on.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

#[path = "drift/clean.rs"]
mod clean;
#[path = "drift/ports.rs"]
mod ports;

use std::{cell::RefCell, collections::BTreeSet, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use nix::errno::Errno;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sallyport_enforcer::{
    agent::{Agent, UpdateError},
    journal::{self, Intent, Log, Recovered},
    plan::Installed,
    table::{names::UpdateSeq, render::Options, stamp, state},
};
use sallyport_nft::{
    command::{Command, Element, Family, Rule, SetKind, Verdict},
    connection::Connection,
    content::Observed,
    kernel::Kernel,
    netlink::{Error, Outline},
};
use sallyport_nft_fake::{FakeKernel, Fault, Packet, Verdicts};
use sallyport_policy::{
    Class, Delta, Direction, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, PortRule, Position,
    Protocol, Ranges, Revision, Update,
};

/// The process that is not the enforcer.
const STRANGER: u32 = 7;

/// A kernel that other processes share, and the verdicts on packets that were under way at any time since the last
/// look.
#[derive(Clone, Debug, Default)]
struct Shared(Rc<RefCell<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    kernel: FakeKernel,
    packets: Vec<Packet>,
    seen: Vec<Verdicts>,
    commits: usize,
    /// The commands that a stranger commits right before the agent's next commit.
    intrusion: Vec<Command>,
    /// The number of times that connections were read.
    reviews: usize,
    /// The number of commits that succeed before one fails, and the fault of that one.
    fails_after: Option<(usize, Fault)>,
}

impl Watched {
    fn look(&mut self) {
        let verdicts = self
            .packets
            .iter()
            .map(|packet| self.kernel.verdicts_now(packet));
        let verdicts: Vec<Verdicts> = verdicts.collect();
        for (seen, now) in self.seen.iter_mut().zip(verdicts) {
            seen.can_pass |= now.can_pass;
            seen.can_drop |= now.can_drop;
        }
    }

    fn before_commit(&mut self) {
        self.commits += 1;
        match self.fails_after.take() {
            Some((0, fault)) => self.kernel.fail_next([fault]),
            later => self.fails_after = later.map(|(left, fault)| (left - 1, fault)),
        }
        let commands = std::mem::take(&mut self.intrusion);
        if !commands.is_empty() {
            self.kernel.speak_as(STRANGER);
            self.kernel.commit(&commands).unwrap();
            self.kernel.speak_as(0);
        }
    }
}

impl Kernel for Shared {
    fn batch_limit(&self) -> usize {
        self.0.borrow().kernel.batch_limit()
    }

    fn commit(&mut self, commands: &[Command]) -> Result<(), Error> {
        let mut watched = self.0.borrow_mut();
        watched.before_commit();
        let result = watched.kernel.commit(commands);
        watched.look();
        result
    }

    fn commit_at(&mut self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        let mut watched = self.0.borrow_mut();
        watched.before_commit();
        let result = watched.kernel.commit_at(generation, commands);
        watched.look();
        result
    }

    fn content(&mut self) -> Result<Observed, Error> {
        self.0.borrow_mut().kernel.content()
    }

    fn outline(&mut self) -> Result<Option<Outline>, Error> {
        self.0.borrow_mut().kernel.outline()
    }

    fn elements(&mut self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error> {
        self.0.borrow_mut().kernel.elements(set, kind)
    }

    fn lookups(&mut self, chain: &str) -> Result<Vec<String>, Error> {
        self.0.borrow_mut().kernel.lookups(chain)
    }

    fn flush_conntrack(&mut self, _: &dyn Fn(&Connection) -> bool) -> Result<usize, Error> {
        self.0.borrow_mut().reviews += 1;
        Ok(0)
    }

    fn grace(&mut self) {
        self.0.borrow_mut().kernel.grace();
    }
}

/// A journal that notes the versions that were rolled back.
#[derive(Clone, Debug, Default)]
struct Noted(Rc<RefCell<Vec<UpdateSeq>>>);

impl Log for Noted {
    fn intend(&mut self, _: &Intent) -> Result<(), journal::Error> {
        Ok(())
    }

    fn abort(&mut self, generation: UpdateSeq) -> Result<(), journal::Error> {
        self.0.borrow_mut().push(generation);
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn snapshot(&mut self, _: &Installed) -> Result<(), journal::Error> {
        Ok(())
    }
}

fn address(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn random_policy(rng: &mut StdRng) -> NodePolicy {
    let mut policy = NodePolicy::default();
    policy.set_workload_ranges(Arc::new(Ranges::span(address(1), address(4)).unwrap()));
    let groups: Vec<(GroupId, Arc<PeerGroup>)> = (0..3u8)
        .map(|n| {
            let ranges = match n {
                2 => Ranges::span(address(8), address(9)).unwrap(),
                _ => Ranges::EMPTY,
            };
            let description = format!("pods default/group={n}");
            let id = GroupId::of([description.as_str()], &ranges);
            let mut group = PeerGroup::new(description, ranges);
            let members = (1..10).filter(|_| rng.random_bool(0.5));
            group.addresses = members.map(address).collect();
            (id, Arc::new(group))
        })
        .collect();
    for n in 1..4 {
        let mut class = |direction| {
            let (id, group) = groups.choose(rng)?.clone();
            let port = |first, last| PortRule {
                protocol: Protocol::Tcp,
                first,
                last,
                group: id,
            };
            let class = Class {
                direction,
                keep_established: false,
                other: rng.random_bool(0.3).then_some(id),
                ports: match rng.random_range(0..3) {
                    0 => vec![port(80, 80)],
                    1 => vec![port(80, 81), port(443, 443)],
                    _ => vec![],
                },
            };
            if class.groups().next().is_some() {
                policy.set_group(id, group);
            }
            policy.add_class(class.id(), Arc::new(class.clone()));
            rng.random_bool(0.7).then(|| class.id())
        };
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            uid: String::new(),
            interface: String::new(),
            ingress: class(Direction::Ingress),
            egress: class(Direction::Egress),
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    policy
}

fn packets() -> Vec<Packet> {
    let ends = || [1, 2, 3, 4, 8, 9].map(address);
    let pairs = ends()
        .into_iter()
        .flat_map(|from| ends().map(|to| (from, to)));
    let flows =
        pairs.flat_map(|(from, to)| [80, 443].map(|port| Packet::of_connection(from, to, 6, port)));
    let strays = [(1, 9), (9, 2)].map(|(a, b)| Packet::without_connection(address(a), address(b)));
    flows.chain(strays).collect()
}

struct Node {
    kernel: Shared,
    journal: Noted,
    agent: Agent<Shared, Noted>,
}

impl Node {
    /// An enforcer without a journal.
    fn start(kernel: Shared) -> Node {
        let options = Options {
            strict: true,
            workload_ranges: Ranges::EMPTY,
            ..Options::default()
        };
        Node::start_with(kernel, options)
    }

    fn start_with(kernel: Shared, options: Options) -> Node {
        let journal = Noted::default();
        let recovered = Recovered {
            installed: Installed::default(),
            pending: None,
        };
        let agent = Agent::start(kernel.clone(), journal.clone(), recovered, options).unwrap();
        Node {
            kernel,
            journal,
            agent,
        }
    }

    fn new(rng: &mut StdRng) -> Node {
        let mut node = Node::start(Shared::default());
        let first = random_policy(rng);
        node.update(&first, 1).unwrap();
        node.agent.clean();
        node
    }

    fn update(&mut self, policy: &NodePolicy, revision: u64) -> Result<(), UpdateError> {
        let installed = self.agent.installed();
        let delta = Delta::between(&installed.policy, policy);
        let target = Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: policy.digest(),
        };
        self.agent.apply(Update {
            base: installed.position(),
            target,
            keep: Vec::new(),
            delta,
        })
    }

    fn content(&mut self) -> Observed {
        let found = self.kernel.content().unwrap();
        let mut found = Observed {
            generation: 0,
            ..found
        };
        let rules = found.chains.values_mut().flat_map(|chain| &mut chain.rules);
        rules.for_each(|rule| rule.handle = 0);
        found
    }

    /// The verdict on each packet that arrives now.
    fn verdicts(&mut self) -> Vec<Verdicts> {
        self.kernel.grace();
        let watched = self.kernel.0.borrow();
        packets()
            .iter()
            .map(|packet| watched.kernel.verdicts_now(packet))
            .collect()
    }

    /// Has a stranger commit commands. Returns whether the kernel accepted them.
    fn disturb(&mut self, commands: &[Command]) -> bool {
        let mut watched = self.kernel.0.borrow_mut();
        watched.kernel.speak_as(STRANGER);
        let done = watched.kernel.commit(commands).is_ok();
        watched.kernel.speak_as(0);
        done
    }

    fn watch(&mut self) {
        let mut watched = self.kernel.0.borrow_mut();
        watched.packets = packets();
        watched.seen = vec![Verdicts::default(); watched.packets.len()];
        watched.commits = 0;
        watched.look();
    }
}

/// The first life makes the table, and dies before it has written the fingerprint of the frame. So connections are not
/// reviewed. The second life reviews them, and repairs nothing.
#[test]
fn a_table_whose_maker_died_at_the_last_step_is_finished() {
    let kernel = Shared::default();
    let mut first = Node::start(kernel.clone());
    let frame = state::read_stamp(&mut kernel.clone()).unwrap().frame;
    assert!(frame.is_some());
    let unsaid = Command::DeleteElements(
        stamp::SET.into(),
        SetKind::Numbers,
        vec![Element::Number(2, frame.clone().unwrap())],
    );
    kernel.0.borrow_mut().kernel.commit(&[unsaid]).unwrap();
    assert_eq!(state::read_stamp(&mut first.kernel).unwrap().frame, None);
    let reviews = kernel.0.borrow().reviews;
    let second = Node::start(kernel.clone());
    assert_eq!(state::read_stamp(&mut first.kernel).unwrap().frame, frame);
    assert!(kernel.0.borrow().reviews > reviews);
    assert_eq!(second.agent.drift().repairs, 0);
}

/// A random change by a stranger.
fn disturbance(rng: &mut StdRng, found: &Observed) -> Vec<Command> {
    let chains: Vec<&String> = found.chains.keys().collect();
    let sets: Vec<(&String, SetKind, Vec<Element>)> = found
        .sets
        .iter()
        .filter_map(|(name, set)| {
            let elements = set.elements.iter().flatten().cloned().collect();
            Some((name, set.kind?, elements))
        })
        .collect();
    let chain = (*chains.choose(rng).unwrap()).clone();
    let (set, kind, elements) = sets.choose(rng).unwrap().clone();
    let verdicts = [Verdict::Accept, Verdict::Drop, Verdict::Return];
    let verdict = verdicts.choose(rng).unwrap().clone();
    let stranger = address(rng.random_range(1..10));
    match rng.random_range(0..7) {
        0 => vec![Command::FlushChain(chain)],
        1 => vec![Command::AddRule(chain, Rule::always(verdict))],
        2 => {
            let rules = &found.chains[&chain].rules;
            let handle = rules.choose(rng).map(|rule| rule.handle);
            handle
                .map(|handle| Command::DeleteRule(chain, handle))
                .into_iter()
                .collect()
        }
        3 => vec![Command::FlushSet(set.clone())],
        4 => {
            let one = elements.choose(rng).cloned();
            let delete = |one| Command::DeleteElements(set.clone(), kind, vec![one]);
            one.map(delete).into_iter().collect()
        }
        5 => {
            let one = match kind {
                SetKind::Addresses(Family::V4) => Element::Address(stranger),
                SetKind::Pairs(Family::V4) => Element::Pair(stranger),
                SetKind::Verdicts(Family::V4) => Element::Verdict(stranger, verdict, "mine".into()),
                SetKind::Numbers => Element::Number(9, "mine".into()),
                _ => return Vec::new(),
            };
            vec![Command::AddElements(set.clone(), kind, vec![one])]
        }
        _ => vec![Command::DeleteTable],
    }
}

#[test]
fn one_change_is_repaired_and_nothing_is_misjudged_on_the_way() {
    let (mut repaired, mut same) = (0, 0);
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = Node::new(&mut rng);
        let (whole, judged) = (node.content(), node.verdicts());
        let found = node.kernel.content().unwrap();
        let commands = disturbance(&mut rng, &found);
        if !node.disturb(&commands) || node.content() == whole {
            assert!(!node.agent.restore().unwrap(), "seed {seed}: {commands:?}");
            continue;
        }
        let damaged = node.verdicts();
        node.watch();
        assert!(node.agent.restore().unwrap(), "seed {seed}: {commands:?}");
        assert_eq!(node.content(), whole, "seed {seed}: {commands:?}");
        repaired += 1;
        let watched = node.kernel.0.borrow();
        for (n, packet) in watched.packets.iter().enumerate() {
            if damaged[n] != judged[n] {
                continue;
            }
            same += 1;
            assert_eq!(
                watched.seen[n],
                judged[n],
                "seed {seed}: {commands:?} repaired: {:?}\n{packet:?}",
                node.agent.drift()
            );
        }
    }
    assert!(
        repaired > 150 && same > 5000,
        "{repaired} repaired, {same} packets"
    );
}

#[test]
fn many_changes_are_repaired() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = Node::new(&mut rng);
        let whole = node.content();
        for _ in 0..rng.random_range(2..8) {
            let found = node.kernel.content().unwrap();
            if found.flags.is_some() {
                let commands = disturbance(&mut rng, &found);
                node.disturb(&commands);
            }
        }
        node.agent.restore().unwrap();
        assert_eq!(node.content(), whole, "seed {seed}");
        assert!(!node.agent.restore().unwrap(), "seed {seed}");
    }
}

/// Another process commits between the reading and the first commit. Then the plan does not fit the table any more.
#[test]
fn who_comes_in_between_leads_to_another_plan() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = Node::new(&mut rng);
        let whole = node.content();
        let found = node.kernel.content().unwrap();
        let first = disturbance(&mut rng, &found);
        if first == [Command::DeleteTable] || !node.disturb(&first) || node.content() == whole {
            continue;
        }
        let found = node.kernel.content().unwrap();
        let second = disturbance(&mut rng, &found);
        // The disturbance must be one that the kernel takes, so it is tried on a copy of the world.
        let mut twin = Node::new(&mut StdRng::seed_from_u64(seed));
        if !twin.disturb(&first) || !twin.disturb(&second) {
            continue;
        }
        node.kernel.0.borrow_mut().intrusion = second;
        node.agent.restore().unwrap();
        assert_eq!(node.content(), whole, "seed {seed}");
    }
}

/// An update arrives at a table that another process changed.
#[test]
fn an_update_meets_a_changed_table() {
    let mut stopped = 0;
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = Node::new(&mut rng);
        let next = random_policy(&mut rng);
        let found = node.kernel.content().unwrap();
        let commands = disturbance(&mut rng, &found);
        if !node.disturb(&commands) {
            continue;
        }
        node.update(&next, 2)
            .unwrap_or_else(|refusal| panic!("seed {seed}: {commands:?}: {refusal}"));
        stopped += node.agent.drift().repairs;
        node.agent.restore().unwrap();
        node.agent.clean();
        let mut fresh = Node::new(&mut StdRng::seed_from_u64(seed));
        fresh.update(&next, 2).unwrap();
        fresh.agent.clean();
        assert_eq!(node.content(), fresh.content(), "seed {seed}: {commands:?}");
    }
    assert!(stopped > 20, "{stopped} updates met what was changed");
}

/// Any commit may fail in any way. A refused commit leaves everything as it was and names the reason. A lost answer is
/// read back. An update that stopped half-way is finished.
#[test]
fn errors_of_the_kernel_are_told_or_got_over() {
    const ERRNOS: [Errno; 6] = [
        Errno::ERESTART,
        Errno::ENOBUFS,
        Errno::EBUSY,
        Errno::ENOMEM,
        Errno::EMSGSIZE,
        Errno::ENOSPC,
    ];
    let faults = ERRNOS
        .into_iter()
        .flat_map(|errno| [Fault::Refused(errno), Fault::Socket(errno)]);
    let faults: Vec<Fault> = faults
        .chain([Fault::AnswerLost, Fault::BatchLost])
        .collect();
    for seed in 0..20 {
        let (next, want) = {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut node = Node::new(&mut rng);
            let next = random_policy(&mut rng);
            node.update(&next, 2).unwrap();
            node.agent.clean();
            (next, node.content())
        };
        for &fault in &faults {
            let mut node = Node::new(&mut StdRng::seed_from_u64(seed));
            let before = node.content();
            node.kernel.0.borrow_mut().kernel.fail_next([fault]);
            let result = node.update(&next, 2);
            let named = match fault {
                Fault::Refused(errno) | Fault::Socket(errno) => Some(errno),
                _ => None,
            };
            match result {
                // The update is planned anew, or read back.
                Ok(()) => assert!(
                    named.is_none_or(|errno| errno == Errno::ERESTART),
                    "{fault:?}"
                ),
                Err(refusal) => {
                    let errno = named.unwrap_or_else(|| panic!("{fault:?}: {refusal}"));
                    let text = refusal.to_string();
                    assert!(text.contains(&errno.to_string()), "{fault:?}: {text}");
                    if matches!(fault, Fault::Refused(_)) {
                        assert!(
                            text.contains("inet fake"),
                            "{fault:?} names no object: {text}"
                        );
                    }
                    assert_eq!(node.content(), before, "{fault:?}");
                    assert_eq!(node.journal.0.borrow().len(), 1, "{fault:?}");
                    assert_eq!(
                        node.agent.installed().position().unwrap().revision,
                        Revision(1)
                    );
                    // The next update succeeds.
                    node.update(&next, 2).unwrap();
                }
            }
            node.agent.clean();
            let now = node.content();
            assert_eq!(spelt(&now), spelt(&want), "{fault:?}");
        }
    }
}

/// A content without the numbers that count updates. A refused update raises these numbers, too.
fn spelt(found: &Observed) -> (usize, usize, Vec<usize>) {
    let elements = found
        .sets
        .values()
        .map(|set| set.elements.iter().flatten().count());
    (found.chains.len(), found.sets.len(), elements.collect())
}

#[test]
fn a_refused_step_after_the_first_is_finished_later() {
    let mut half_way = 0;
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut node = Node::new(&mut rng);
        let next = random_policy(&mut rng);
        node.kernel.0.borrow_mut().fails_after = Some((1, Fault::Refused(Errno::ENOMEM)));
        let result = node.update(&next, 2);
        node.kernel.0.borrow_mut().fails_after = None;
        if result.is_ok() {
            continue;
        }
        assert!(node.agent.is_half_way(), "seed {seed}");
        half_way += 1;
        // Changes of others during the repair are repaired on the way.
        let found = node.kernel.content().unwrap();
        let commands = disturbance(&mut rng, &found);
        node.disturb(&commands);
        node.agent
            .finish()
            .unwrap_or_else(|refusal| panic!("seed {seed}: {commands:?}: {refusal}"));
        node.agent.restore().unwrap();
        node.agent.clean();
        let mut fresh = Node::new(&mut StdRng::seed_from_u64(seed));
        fresh.update(&next, 2).unwrap();
        fresh.agent.clean();
        assert_eq!(node.content(), fresh.content(), "seed {seed}: {commands:?}");
    }
    assert!(half_way > 10, "{half_way}");
}

#[test]
fn a_table_that_is_whole_is_not_touched() {
    let mut node = Node::new(&mut StdRng::seed_from_u64(1));
    node.kernel.0.borrow_mut().kernel.commit_elsewhere();
    node.kernel
        .0
        .borrow_mut()
        .kernel
        .advance(Duration::from_secs(1));
    node.watch();
    assert!(!node.agent.restore().unwrap());
    assert_eq!(node.kernel.0.borrow().commits, 0);
}

/// The policy that the table enforces is unknown, and the kernel fails at any commit of the table's replacement. The
/// replacement is refused, or done in another way. A refused one is done at the next try.
#[test]
fn a_table_that_the_journal_does_not_know_is_replaced_whatever_fails() {
    let faults = [
        Fault::Refused(Errno::ENOMEM),
        Fault::AnswerLost,
        Fault::BatchLost,
    ];
    let (mut refused, mut done) = (0, 0);
    for seed in 0..10 {
        let mut whole = None;
        for (after, fault) in (0..6).flat_map(|after| faults.map(|fault| (after, fault))) {
            let mut rng = StdRng::seed_from_u64(seed);
            let before = Node::new(&mut rng);
            let next = random_policy(&mut rng);
            let mut node = Node::start(before.kernel);
            assert_eq!(node.agent.window(), []);
            node.kernel.0.borrow_mut().fails_after = Some((after, fault));
            let result = node.update(&next, 2);
            node.kernel.0.borrow_mut().fails_after = None;
            if result.is_ok() {
                done += 1;
            } else {
                refused += 1;
                assert_eq!(node.agent.window(), []);
                node.update(&next, 2).unwrap();
            }
            node.agent.clean();
            let case = format!("seed {seed}: {fault:?} after {after}");
            assert!(!node.agent.restore().unwrap(), "{case}");
            let content = node.content();
            assert!(
                whole.get_or_insert_with(|| content.clone()) == &content,
                "{case}: another table"
            );
        }
    }
    assert!(refused > 50 && done > 50, "{refused} refused, {done} done");
}
