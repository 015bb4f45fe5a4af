//! The simulated enforcers: the real agent on a simulated machine, and its session with the control plane. A process
//! dies, starts again on what is durable, freezes; a machine reboots.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use prost::Message as _;
use rand::RngExt;
use sallyport_enforcer::{
    agent::{Agent, UpdateError},
    table::render::Options,
};
use sallyport_policy::{NodeName, Position, Ranges, Update, Version};
use sallyport_proto::{
    Assembly,
    wire::{self, LeaseRequest, SyncRequest, SyncResponse, sync_request::Message, sync_response},
};

use crate::{
    Time,
    control::revisions,
    judge::Violation,
    machine::{Handle, Machine},
    milliseconds,
    mutant::Mutant,
    network::StreamId,
    schedule::Event,
    universe::node_name,
    world::World,
};

/// The first pause before another try to connect, and the longest.
const PAUSE: (Time, Time) = (20_000, 800_000);

/// The idle time before the objects that updates leave behind are deleted.
const IDLE: Time = 100_000;

/// A node.
#[derive(Debug)]
pub(crate) struct Enforcer {
    pub(crate) name: NodeName,
    pub(crate) machine: Rc<RefCell<Machine>>,
    pub(crate) agent: Option<Agent<Handle, Handle>>,
    /// Counts processes: what was planned for one that is dead does not happen.
    pub(crate) life: u32,
    pub(crate) stream: Option<StreamId>,
    assembly: Assembly,
    pause: Time,
    pub(crate) frozen_until: Time,
    /// The messages that came while the process was frozen.
    arrived: VecDeque<(StreamId, Vec<u8>)>,
    pub(crate) unreachable_until: Time,
    /// The versions that it was last seen to hold.
    pub(crate) held: Vec<Version>,
    /// The time that its leases last, if it has any, and the error of its clock, in thousandths.
    pub(crate) lease: Option<Time>,
    drift: i64,
    pub(crate) lease_until: Time,
    requests: BTreeMap<u64, Time>,
    /// Whether an enforcer started since the machine did: workloads start after it.
    ready: bool,
    /// The oldest version that it held last.
    pub(crate) oldest: Option<Position>,
}

impl Enforcer {
    pub(crate) fn new(node: usize, machine: Machine, lease: Option<Time>, drift: i64) -> Enforcer {
        Enforcer {
            name: node_name(node),
            machine: Rc::new(RefCell::new(machine)),
            agent: None,
            life: 0,
            stream: None,
            assembly: Assembly::default(),
            pause: PAUSE.0,
            frozen_until: 0,
            arrived: VecDeque::new(),
            unreachable_until: 0,
            held: Vec::new(),
            lease,
            drift,
            lease_until: 0,
            requests: BTreeMap::new(),
            ready: false,
            oldest: None,
        }
    }

    /// The versions that it holds, as it says.
    pub(crate) fn window(&self) -> Vec<Position> {
        self.agent.as_ref().map(Agent::window).unwrap_or_default()
    }
}

fn options() -> Options {
    Options {
        strict: true,
        workload_ranges: Ranges::EMPTY,
        owned: true,
        ..Options::default()
    }
}

impl World {
    /// An enforcer starts.
    pub(crate) fn start_node(&mut self, node: usize) -> Result<(), Violation> {
        let machine = self.nodes[node].machine.clone();
        let recovered = machine.borrow_mut().boot_process();
        let recovered = recovered.map_err(|seen| Violation {
            promise: "a log can be read",
            seen,
        })?;
        let handle = Handle(machine.clone());
        let started = Agent::start(handle.clone(), handle, recovered, options());
        self.nodes[node].agent = started.ok();
        self.nodes[node].ready |= self.nodes[node].agent.is_some();
        self.observe(node)?;
        if machine.borrow().is_dead() || self.nodes[node].agent.is_none() {
            self.note(|| format!("n{node} could not start"));
            self.kill_node(node);
            return Ok(());
        }
        let window = self.nodes[node].window();
        self.note(|| format!("n{node} started, holds {}", revisions(&window)));
        let delay = self.rng.random_range(1..milliseconds(5));
        self.schedule
            .after(delay, self.nodes[node].life, Event::Connect(node));
        self.plan_cleaning(node);
        Ok(())
    }

    /// An enforcer is dead; another one starts later.
    pub(crate) fn kill_node(&mut self, node: usize) {
        let enforcer = &mut self.nodes[node];
        enforcer.machine.borrow_mut().kill();
        enforcer.agent = None;
        enforcer.life += 1;
        enforcer.assembly = Assembly::default();
        enforcer.requests.clear();
        enforcer.frozen_until = 0;
        enforcer.arrived.clear();
        let life = enforcer.life;
        if let Some(stream) = enforcer.stream.take() {
            self.break_stream(stream);
        }
        let pause = self.rng.random_range(milliseconds(2)..milliseconds(200));
        self.schedule.after(pause, life, Event::NodeStarts(node));
    }

    /// A stream breaks: each end sees it when it does, and until then messages may arrive.
    pub(crate) fn break_stream(&mut self, stream: StreamId) {
        let now = self.schedule.now;
        let mut later = |most: u64| now + self.rng.random_range(0..milliseconds(most));
        let (node, control) = (later(20), later(700));
        self.network.cut(stream, node, control);
        let late = later(900);
        self.schedule.at(node, 0, Event::NodeSeesEnd(stream));
        self.schedule
            .at(control.max(late), 0, Event::ControlSeesEnd(stream));
    }

    /// An enforcer tries to connect.
    pub(crate) fn connect(&mut self, node: usize) {
        let now = self.schedule.now;
        let enforcer = &mut self.nodes[node];
        if enforcer.stream.is_some() || enforcer.agent.is_none() {
            return;
        }
        if self.control.alive.is_none() || enforcer.unreachable_until > now {
            let pause = self.rng.random_range(enforcer.pause / 2..=enforcer.pause);
            enforcer.pause = (2 * enforcer.pause).min(PAUSE.1);
            self.schedule
                .after(pause, enforcer.life, Event::Connect(node));
            return;
        }
        enforcer.pause = PAUSE.0;
        enforcer.assembly = Assembly::default();
        let stream = self.network.open(node);
        enforcer.stream = Some(stream);
        self.say_to_control(stream, None);
    }

    /// The control plane accepted a node's stream.
    fn say_hello(&mut self, node: usize, stream: StreamId) {
        let enforcer = &self.nodes[node];
        let lease = enforcer.lease;
        let hello = wire::Hello {
            node_name: enforcer.name.to_string(),
            window: enforcer.window().into_iter().map(Into::into).collect(),
            version: "simulated".into(),
            dropped: Some(wire::WorkloadRanges::default()),
            lease_ms: lease.unwrap_or_default() as u32 / 1_000,
            instance: vec![node as u8; 16],
            start: u64::from(enforcer.life),
            process: u64::from(enforcer.life),
            health: None,
        };
        self.say_to_control(stream, Some(Message::Hello(hello)));
        if lease.is_some() {
            self.schedule
                .after(0, self.nodes[node].life, Event::AskLease(stream));
        }
    }

    /// A node sees that a stream is over.
    pub(crate) fn node_sees_end(&mut self, stream: StreamId) {
        let node = self.network.node(stream);
        let enforcer = &mut self.nodes[node];
        if enforcer.stream != Some(stream) {
            return;
        }
        enforcer.stream = None;
        let (pause, life) = (
            self.rng.random_range(enforcer.pause / 2..=enforcer.pause),
            enforcer.life,
        );
        let now = self.schedule.now;
        let late = now + self.rng.random_range(0..milliseconds(500));
        self.network.cut(stream, now, late);
        self.schedule.at(late, 0, Event::ControlSeesEnd(stream));
        self.schedule.after(pause, life, Event::Connect(node));
    }

    /// Says something, or nothing but that there is a stream.
    fn say_to_control(&mut self, stream: StreamId, message: Option<Message>) {
        let request = SyncRequest { message };
        let bytes = request.encode_to_vec();
        self.network
            .send_to_control(stream, bytes, &mut self.schedule, &mut self.rng);
    }

    /// A message arrives.
    pub(crate) fn node_receives(
        &mut self,
        stream: StreamId,
        bytes: Vec<u8>,
    ) -> Result<(), Violation> {
        let node = self.network.node(stream);
        let now = self.schedule.now;
        if !self.network.reaches_node(stream, now) {
            return Ok(());
        }
        self.nodes[node].arrived.push_back((stream, bytes));
        self.node_reads(node)
    }

    /// A node takes what has arrived, in order, unless its process is frozen.
    pub(crate) fn node_reads(&mut self, node: usize) -> Result<(), Violation> {
        while self.nodes[node].frozen_until <= self.schedule.now
            && let Some((stream, bytes)) = self.nodes[node].arrived.pop_front()
        {
            self.node_takes(node, stream, &bytes)?;
        }
        Ok(())
    }

    fn node_takes(&mut self, node: usize, stream: StreamId, bytes: &[u8]) -> Result<(), Violation> {
        let enforcer = &mut self.nodes[node];
        if enforcer.stream != Some(stream) || enforcer.agent.is_none() {
            return Ok(());
        }
        let response = SyncResponse::decode(bytes).expect("the control plane's message");
        let Some(message) = response.message else {
            self.say_hello(node, stream);
            return Ok(());
        };
        match message {
            sync_response::Message::Update(part) => {
                let update = enforcer
                    .assembly
                    .take(part)
                    .expect("parts that belong together");
                update.map_or(Ok(()), |update| self.apply(node, stream, update))
            }
            sync_response::Message::Lease(grant) => {
                let Some(sent) = enforcer.requests.remove(&grant.number) else {
                    return Ok(());
                };
                let lease = enforcer.lease.expect("it asked") as i64;
                let until = sent + (lease + lease * enforcer.drift / 1_000) as Time;
                enforcer.lease_until = until.max(enforcer.lease_until);
                self.schedule.at(until, 0, Event::LeaseEnds(node));
                self.refresh(node)
            }
            sync_response::Message::Ping(_) => unreachable!("nobody contests its name"),
        }
    }

    fn apply(&mut self, node: usize, stream: StreamId, update: Update) -> Result<(), Violation> {
        let target = update.target;
        let machine = self.nodes[node].machine.clone();
        let agent = self.nodes[node].agent.as_mut().expect("it hears");
        machine.borrow_mut().hold_back();
        let result = agent.apply(update);
        machine.borrow_mut().commit_held_back();
        self.observe(node)?;
        if machine.borrow().is_dead() {
            self.note(|| format!("n{node} dies while it applies revision {}", target.revision));
            self.kill_node(node);
            return Ok(());
        }
        let window = self.nodes[node].window();
        self.note(|| match &result {
            Ok(()) => format!("n{node} holds {}", revisions(&window)),
            Err(refusal) => format!("n{node} refuses revision {}: {refusal}", target.revision),
        });
        // Half-way it neither holds what it held nor what it is to hold. So it says nothing, and starts again.
        let half_way = matches!(&result, Err(UpdateError::Kernel { step, .. }) if *step > 1);
        if half_way && self.mutant != Some(Mutant::AnswersHalfWay) {
            self.kill_node(node);
            return Ok(());
        }
        let wire_window = window.iter().copied().map(Into::into).collect();
        let answer = match result {
            Ok(()) => {
                let durable = machine.borrow().durable_window();
                self.check_durable(node, &window, &durable)?;
                Message::Ack(wire::Ack {
                    window: wire_window,
                })
            }
            Err(refusal) => Message::Nack(wire::Nack {
                target: Some(target.into()),
                window: wire_window,
                reason: refusal.to_string(),
                want_snapshot: matches!(refusal, UpdateError::Misfit(_)),
            }),
        };
        self.say_to_control(stream, Some(answer));
        self.plan_cleaning(node);
        Ok(())
    }

    fn plan_cleaning(&mut self, node: usize) {
        let enforcer = &self.nodes[node];
        if enforcer
            .agent
            .as_ref()
            .is_some_and(|agent| agent.left_behind() > 0)
        {
            self.schedule.after(IDLE, enforcer.life, Event::Clean(node));
        }
    }

    /// Nothing happened for a while.
    pub(crate) fn clean(&mut self, node: usize) -> Result<(), Violation> {
        let machine = self.nodes[node].machine.clone();
        if let Some(agent) = &mut self.nodes[node].agent {
            machine.borrow_mut().sync();
            agent.clean();
            self.observe(node)?;
            if machine.borrow().is_dead() {
                self.kill_node(node);
            }
        }
        Ok(())
    }

    /// An enforcer asks for its lease, again and again.
    pub(crate) fn ask_lease(&mut self, stream: StreamId) {
        let node = self.network.node(stream);
        let now = self.schedule.now;
        let enforcer = &mut self.nodes[node];
        let Some(lease) = enforcer.lease.filter(|_| enforcer.stream == Some(stream)) else {
            return;
        };
        let number = now;
        enforcer.requests.insert(number, now);
        let life = enforcer.life;
        let request = LeaseRequest { number };
        self.say_to_control(stream, Some(Message::Lease(request)));
        self.schedule
            .after(lease / 3, life, Event::AskLease(stream));
    }

    /// A machine loses its power.
    pub(crate) fn reboot(&mut self, node: usize) -> Result<(), Violation> {
        self.note(|| format!("n{node} reboots"));
        self.nodes[node].machine.borrow_mut().cut_power();
        self.nodes[node].lease_until = 0;
        self.nodes[node].ready = false;
        self.refresh(node)?;
        self.kill_node(node);
        Ok(())
    }

    /// Has the judge look at a node's table.
    fn observe(&mut self, node: usize) -> Result<(), Violation> {
        let window = self.nodes[node].window();
        if let Some(agent) = &self.nodes[node].agent
            && !window.is_empty()
        {
            self.nodes[node].held = agent.installed().window.versions().to_vec();
        }
        let verdicts = self.nodes[node].machine.borrow_mut().take_verdicts();
        if let Some((meanwhile, after)) = verdicts {
            let oldest = window.first().copied();
            self.judge
                .changed(node, (&meanwhile, &after), oldest, self.schedule.now)?;
        }
        self.check_forward(node, &window)?;
        self.refresh(node)
    }

    /// Whether there is traffic on a node: its table was made, it ever enforced anything, its lease lasts.
    pub(crate) fn refresh(&mut self, node: usize) -> Result<(), Violation> {
        let now = self.schedule.now;
        let enforcer = &self.nodes[node];
        let judges = enforcer.ready && !enforcer.held.is_empty();
        let leased = enforcer.lease.is_none() || enforcer.lease_until > now;
        self.judge.set_open(node, judges && leased, now)
    }
}
