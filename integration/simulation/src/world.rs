//! One run: the control plane, the nodes, what is between them, and the events that move them. Everything that is
//! random in it comes from its seed.

use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_controlplane::nodes::{Settings, UnreachablePolicy};

use crate::{
    Time,
    control::Control,
    enforcer::Enforcer,
    faults,
    judge::{Judge, Violation},
    machine::Machine,
    milliseconds,
    mutant::Mutant,
    network::Network,
    schedule::{Event, Schedule},
    universe::Universe,
    versions::Versions,
};

/// The longest time that a packet is under way, from one node's judgement to the next.
const TRANSIT: Time = 20_000;

/// After how long without anything that goes wrong all must be enforced.
const PATIENCE: Time = 300_000_000;

/// A run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) schedule: Schedule,
    /// The `Instant` that stands for the time at the beginning.
    base: Instant,
    pub(crate) control: Control,
    pub(crate) nodes: Vec<Enforcer>,
    pub(crate) network: Network,
    pub(crate) judge: Judge,
    pub(crate) mutant: Option<Mutant>,
    /// How likely the control plane dies in the middle of a commit, in percent.
    pub(crate) faulty: u32,
    /// Whether nothing goes wrong any more.
    pub(crate) calm: bool,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) steps: u64,
}

impl World {
    /// The run of a seed, before it begins.
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>, traced: bool) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = rng.random_range(2..=3);
        let pods = if nodes == 2 {
            2
        } else {
            rng.random_range(1..=2)
        };
        let universe = Universe::new(nodes, pods, &mut rng);
        let versions = Versions::new(nodes, pods, rng.random_range(1..=2));
        let unreachable = match rng.random_range(0..10) {
            0..6 => UnreachablePolicy::Wait,
            6..9 => UnreachablePolicy::Fence,
            _ => UnreachablePolicy::Skip,
        };
        let lease = milliseconds(400);
        let settings = Settings {
            drain: match mutant {
                Some(Mutant::DrainSkipped) => Duration::ZERO,
                _ => Duration::from_micros(TRANSIT),
            },
            unreachable,
            patience: Duration::from_millis(300),
            lease_longest: Duration::from_micros(lease + lease / 32),
        };
        let leased = unreachable == UnreachablePolicy::Fence;
        let enforcers = (0..nodes).map(|node| {
            let packets = versions.flows.iter().filter(|flow| flow.touches(node));
            let packets = packets.map(|flow| flow.packet.clone()).collect();
            let strangers = [2, 5, u32::MAX][rng.random_range(0..3)];
            let machine = Machine::new(packets, strangers, mutant);
            let lease = (leased && rng.random_bool(0.9)).then_some(lease);
            Enforcer::new(node, machine, lease, rng.random_range(-10..=10))
        });
        let enforcers = enforcers.collect();
        let faulty = [0, 5, 15][rng.random_range(0..3)];
        let mut world = World {
            schedule: Schedule::default(),
            base: Instant::now(),
            control: Control::new(universe, settings),
            nodes: enforcers,
            network: Network::new([0, 5, 25][rng.random_range(0..3)]),
            judge: Judge::new(versions, nodes, TRANSIT),
            mutant,
            faulty,
            calm: false,
            trace: traced.then(Vec::new),
            steps: 0,
            rng,
        };
        world.plan();
        world
    }

    /// Draws what is to happen.
    fn plan(&mut self) {
        let rng = &mut self.rng;
        let long = milliseconds(rng.random_range(200..1_500));
        self.schedule.at(0, 0, Event::ControlStarts);
        for node in 0..self.nodes.len() {
            // Some come later.
            let most = if rng.random_bool(0.2) {
                long
            } else {
                milliseconds(30)
            };
            let at = rng.random_range(0..most);
            self.schedule.at(at, 0, Event::NodeStarts(node));
        }
        let mut at = milliseconds(30);
        for _ in 0..rng.random_range(3..8) {
            // Some come in the middle of others.
            let most = if rng.random_bool(0.5) {
                milliseconds(10)
            } else {
                long / 4
            };
            at += rng.random_range(0..most);
            self.schedule.at(at, 0, Event::Commit);
        }
        if self.faulty > 0 {
            for _ in 0..rng.random_range(0..8) {
                let fault = faults::random(rng, self.nodes.len());
                self.schedule
                    .at(rng.random_range(0..long), 0, Event::Fault(fault));
            }
        }
        self.schedule
            .at(at.max(long) + milliseconds(100), 0, Event::Calm);
    }

    /// Runs until all is enforced and at rest, or a promise is broken.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        let mut deadline = Time::MAX;
        while let Some((life, event)) = self.schedule.next() {
            self.steps += 1;
            self.happen(life, event)?;
            if self.calm && deadline == Time::MAX {
                deadline = self.schedule.now + PATIENCE;
            }
            if self.calm && self.is_at_rest() {
                return self.judge.final_check();
            }
            if self.schedule.now > deadline {
                break;
            }
        }
        Err(Violation {
            promise: "once nothing goes wrong any more all is enforced",
            seen: self.standing(),
        })
    }

    fn happen(&mut self, life: u32, event: Event) -> Result<(), Violation> {
        let of_node = |node: usize| life == self.nodes[node].life;
        let is_of_this_life = match &event {
            Event::Joined(_)
            | Event::Settled(_)
            | Event::Advance
            | Event::Retry(_)
            | Event::ControlStarts => life == self.control.life,
            Event::NodeStarts(node) | Event::Connect(node) | Event::Clean(node) => of_node(*node),
            Event::AskLease(stream) => of_node(self.network.node(*stream)),
            _ => true,
        };
        if !is_of_this_life || self.is_frozen(life, &event) {
            return Ok(());
        }
        match event {
            Event::Commit => self.commit(),
            Event::ToControl(stream, bytes) => self.control_receives(stream, &bytes),
            Event::ToNode(stream, bytes) => self.node_receives(stream, bytes),
            Event::ControlSeesEnd(stream) => self.control_sees_end(stream),
            Event::NodeSeesEnd(stream) => {
                self.node_sees_end(stream);
                Ok(())
            }
            Event::Joined(stream) => self.joined(stream),
            Event::Settled(revision) => {
                self.settled(revision);
                Ok(())
            }
            Event::Advance => self.after_control(),
            Event::Retry(stream) => self.retry(stream),
            Event::ControlStarts => self.start_control(),
            Event::NodeStarts(node) => self.start_node(node),
            Event::Connect(node) => {
                self.connect(node);
                Ok(())
            }
            Event::AskLease(stream) => {
                self.ask_lease(stream);
                Ok(())
            }
            Event::LeaseEnds(node) => self.refresh(node),
            Event::Thaws(node) => self.node_reads(node),
            Event::Clean(node) => self.clean(node),
            Event::Fault(fault) => self.go_wrong(fault),
            Event::Calm => {
                self.calm_down();
                Ok(())
            }
        }
    }

    /// Whether the process of an event is frozen. A frozen process gets the event when it thaws.
    fn is_frozen(&mut self, life: u32, event: &Event) -> bool {
        let node = match event {
            Event::Connect(node) | Event::Clean(node) => *node,
            Event::AskLease(stream) | Event::NodeSeesEnd(stream) => self.network.node(*stream),
            _ => return false,
        };
        let until = self.nodes[node].frozen_until;
        let frozen = until > self.schedule.now;
        if frozen {
            self.schedule.at(until, life, event.clone());
        }
        frozen
    }

    fn is_at_rest(&mut self) -> bool {
        let at = self.at();
        let latest = self.judge.versions.latest();
        let Some(alive) = &self.control.alive else {
            return false;
        };
        if !alive.coordinator.enforces(latest) || !alive.coordinator.rollouts(at).is_empty() {
            return false;
        }
        self.nodes.iter().enumerate().all(|(index, node)| {
            let digest = self.judge.versions.policy(latest, index).digest();
            let window = node.window();
            let agent = node.agent.as_ref();
            agent.is_some_and(|agent| agent.left_behind() == 0)
                && matches!(&window[..], [only] if only.digest == digest)
        })
    }

    /// The state of everything, for a reader who wants to know why the run stopped.
    fn standing(&self) -> String {
        let Some(alive) = &self.control.alive else {
            return "the control plane is dead".into();
        };
        let mut lines: Vec<String> = Vec::new();
        lines.extend(
            alive
                .coordinator
                .rollouts(self.at())
                .iter()
                .map(|rollout| format!("{rollout:?}")),
        );
        lines.extend(
            alive
                .coordinator
                .status(self.at())
                .iter()
                .map(|status| format!("{status:?}")),
        );
        for node in &self.nodes {
            lines.push(format!(
                "{} holds {}",
                node.name,
                crate::control::revisions(&node.window())
            ));
        }
        lines.join("\n")
    }

    /// The time, for the control plane.
    pub(crate) fn at(&self) -> Instant {
        self.base + Duration::from_micros(self.schedule.now)
    }

    /// Writes a line into the trace, if there is one.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.schedule.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} ms  {}", now as f64 / 1_000.0, line()));
        }
    }
}
