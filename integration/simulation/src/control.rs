//! The simulated control plane: the real coordinator and the real compiler, and their durable state. It dies and starts
//! again. It sends nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::RngExt;
use sallyport_controlplane::{
    compile::Compiler,
    nodes::{self, Affected, Coordinator, Membership, Settings, Start, State},
    stream::Diffs,
};
use sallyport_policy::{Epoch, NodeName, NodePolicy, Position, Revision};

use crate::{
    Time, conversation::Conversation, judge::Violation, milliseconds, network::StreamId,
    schedule::Event, universe::Universe, world::World,
};

/// The parts of the control plane that outlive its process, and its present process.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) universe: Universe,
    pub(crate) settings: Settings,
    settled: Revision,
    pub(crate) joined: BTreeMap<NodeName, Membership>,
    pub(crate) life: u32,
    pub(crate) alive: Option<Alive>,
}

/// A life.
#[derive(Debug)]
pub(crate) struct Alive {
    pub(crate) coordinator: Coordinator,
    compiler: Compiler,
    pub(crate) diffs: Diffs,
    /// The numbers of the streams that came in.
    pub(crate) accepted: BTreeMap<StreamId, nodes::StreamId>,
    pub(crate) conversations: BTreeMap<StreamId, Conversation>,
    due: Option<std::time::Instant>,
    /// The revision up to which all passed, when it was last looked at.
    settled: Revision,
}

impl Control {
    pub(crate) fn new(universe: Universe, settings: Settings) -> Control {
        Control {
            universe,
            settings,
            settled: Revision(0),
            joined: BTreeMap::new(),
            life: 0,
            alive: None,
        }
    }
}

impl World {
    /// The control plane starts on what is durable.
    pub(crate) fn start_control(&mut self) -> Result<(), Violation> {
        let compiler = Compiler::new(self.control.universe.cluster());
        if self.judge.versions.latest() == Revision(0) {
            let policies = self
                .nodes
                .iter()
                .map(|node| compiled(&compiler, node.name.as_str()));
            self.judge.versions.push(policies.collect());
        }
        let revision = self.judge.versions.latest();
        let start = Start {
            epoch: Epoch(1),
            revision,
            settled: self.control.settled,
            joined: self.control.joined.clone(),
            left: BTreeMap::new(),
        };
        let how = self.control.settings.unreachable;
        self.note(|| {
            let joined: Vec<&NodeName> = start.joined.keys().collect();
            let settled = start.settled;
            format!("control plane starts at revision {revision}, settled {settled}, joined {joined:?}, {how:?}")
        });
        let policies = compiler
            .policies()
            .map(|(name, policy)| (NodeName::from(name), policy.clone()));
        let coordinator = Coordinator::new(start, self.control.settings, policies, self.at());
        self.control.alive = Some(Alive {
            settled: coordinator.settled(),
            coordinator,
            compiler,
            diffs: Diffs::default(),
            accepted: BTreeMap::new(),
            conversations: BTreeMap::new(),
            due: None,
        });
        self.after_control()
    }

    /// The control plane dies, and starts again later.
    pub(crate) fn kill_control(&mut self) {
        if self.control.alive.take().is_none() {
            return;
        }
        self.note(|| "control plane dies".into());
        self.control.life += 1;
        self.network.cut_all(self.schedule.now);
        for node in 0..self.nodes.len() {
            if let Some(stream) = self.nodes[node].stream {
                let latency = self.network.latency(&mut self.rng);
                self.schedule.after(latency, 0, Event::NodeSeesEnd(stream));
            }
        }
        let pause = self.rng.random_range(1..milliseconds(300));
        self.schedule
            .after(pause, self.control.life, Event::ControlStarts);
    }

    /// Somebody edits the cluster.
    pub(crate) fn commit(&mut self) -> Result<(), Violation> {
        let Some(alive) = &mut self.control.alive else {
            self.schedule.after(milliseconds(50), 0, Event::Commit);
            return Ok(());
        };
        let revision = self.judge.versions.latest().next();
        let (keys, what) = self.control.universe.edit(&mut self.rng, revision);
        let changed = alive
            .compiler
            .update(self.control.universe.cluster(), &keys);
        let policies = self
            .nodes
            .iter()
            .map(|node| compiled(&alive.compiler, node.name.as_str()));
        self.judge.versions.push(policies.collect());
        let policies = changed
            .into_iter()
            .map(|(name, policy)| (name.into(), policy.expect("every node is an object")));
        let affected = Affected {
            policies: policies.collect(),
            gone: Vec::new(),
        };
        let names = listed(&affected.policies);
        self.note(|| format!("revision {revision} for {names}: {what}"));
        if !self.calm && self.rng.random_range(0..100) < self.faulty {
            // The revision is in the journal, and nobody was notified.
            self.kill_control();
            return Ok(());
        }
        let at = self.at();
        let alive = self.control.alive.as_mut().expect("just looked at");
        let prepared = alive.coordinator.prepare(affected);
        alive.coordinator.commit(revision, prepared, None, at);
        let rollouts = alive.coordinator.rollouts(at);
        self.note(|| {
            let told = rollouts.iter().map(|rollout| {
                let (first, last, phase) = (rollout.first, rollout.last, rollout.phase);
                format!(
                    "{first} to {last} {phase:?} {}",
                    rollout.waits_for.join(", ")
                )
            });
            format!("on their way: {}", told.collect::<Vec<_>>().join("; "))
        });
        self.after_control()
    }

    /// Handles that the progress of the rollouts is durable.
    pub(crate) fn settled(&mut self, revision: Revision) {
        self.control.settled = revision;
    }

    /// Completes an event of the control plane: due work is done, pending messages are sent, and the judge gets the
    /// status.
    pub(crate) fn after_control(&mut self) -> Result<(), Violation> {
        let at = self.at();
        let Some(alive) = &mut self.control.alive else {
            return Ok(());
        };
        let due = alive.coordinator.advance(at);
        if due != alive.due {
            alive.due = due;
            if let Some(due) = due {
                let delay = due.duration_since(at).as_micros() as Time;
                self.schedule
                    .after(delay, self.control.life, Event::Advance);
            }
        }
        let settled = alive.coordinator.settled();
        if settled != alive.settled {
            alive.settled = settled;
            let over: Vec<NodeName> = alive
                .coordinator
                .bypassed(at)
                .into_iter()
                .map(|node| node.name)
                .collect();
            self.note(|| {
                format!("all up to revision {settled} passed the barrier, without {over:?}")
            });
            let delay = self.rng.random_range(1..milliseconds(40));
            self.schedule
                .after(delay, self.control.life, Event::Settled(settled));
        }
        self.tell_judge()?;
        self.check_barrier(settled)?;
        self.speak();
        Ok(())
    }

    fn tell_judge(&mut self) -> Result<(), Violation> {
        let at = self.at();
        let alive = self.control.alive.as_mut().expect("it just did something");
        let over = alive.coordinator.bypassed(at).into_iter();
        let skipped = over.filter(|status| status.state == State::Skipped);
        let skipped: BTreeSet<NodeName> = skipped.map(|status| status.name).collect();
        let latest = self.judge.versions.latest();
        for (index, node) in self.nodes.iter().enumerate() {
            if skipped.contains(&node.name) {
                self.judge.set_void(index, true);
            } else if self.judge.is_void(index) {
                // The node caught up: the promise is made again.
                let digest = self.judge.versions.policy(latest, index).digest();
                let window = node.window();
                let is_latest = window.iter().all(|position| position.digest == digest);
                self.judge.set_void(index, window.is_empty() || !is_latest);
            }
        }
        let rollouts = alive.coordinator.rollouts(at);
        let on_their_way: Vec<_> = rollouts
            .iter()
            .map(|rollout| (rollout.first, rollout.last))
            .collect();
        let mut enforced = self.judge.enforced();
        while enforced < self.judge.versions.latest() && alive.coordinator.enforces(enforced.next())
        {
            enforced = enforced.next();
        }
        if enforced > self.judge.enforced() {
            self.note(|| format!("revision {enforced} is reported to be enforced"));
        }
        self.judge
            .receive_status(&on_their_way, enforced, self.schedule.now)
    }
}

fn compiled(compiler: &Compiler, node: &str) -> Arc<NodePolicy> {
    compiler
        .policy(node)
        .expect("every node is an object")
        .clone()
}

fn listed(policies: &[(NodeName, Arc<NodePolicy>)]) -> String {
    let names: Vec<&str> = policies.iter().map(|(name, _)| name.as_str()).collect();
    names.join(", ")
}

/// Positions by their revisions.
pub(crate) fn revisions(positions: &[Position]) -> String {
    let revisions: Vec<String> = positions
        .iter()
        .map(|position| position.revision.to_string())
        .collect();
    format!("[{}]", revisions.join(", "))
}
