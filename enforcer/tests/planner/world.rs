//! One node's table in the fake kernel while plans are committed, and the check of every packet. This module makes no
//! policy.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_enforcer::{
    plan::{self, Garbage, Installed, Limits, ObservedFrame, Plan, Reach, Replaced},
    table::{
        lease::{self, Slot},
        render::Options,
        state,
    },
};
use sallyport_nft::kernel::Kernel;
use sallyport_nft_fake::{FakeKernel, Judgement, Packet};
use sallyport_policy::{Epoch, NodePolicy, Position, Revision, Version, Window};

use crate::policies::{
    LEASE, WORKLOADS, can_be, ends, is_known, is_of_a_source, is_spoofed, packets, permits,
};

/// A packet that met a verdict it must not meet, or a batch that was refused.
#[derive(Debug)]
pub(crate) enum Violation {
    Refused(String),
    Leaked(String),
    Lost(String),
    Untidy(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Refused(what) => write!(f, "refused: {what}"),
            Violation::Leaked(what) => write!(f, "passes though every version denies it: {what}"),
            Violation::Lost(what) => write!(f, "dropped though every version allows it: {what}"),
            Violation::Untidy(what) => {
                write!(f, "the table has other objects than it must: {what}")
            }
        }
    }
}

pub(crate) type Checked = Result<(), Violation>;

/// A node.
pub(crate) struct World {
    pub(crate) kernel: FakeKernel,
    pub(crate) options: Options,
    pub(crate) limits: Limits,
    pub(crate) installed: Installed,
    pub(crate) garbage: Garbage,
    /// The changes since packets under way were last waited for.
    recent: Reach,
    /// The policy that was installed first.
    pub(crate) first: NodePolicy,
    /// The policies that were in force, wholly or on the way, since the last grace period.
    versions: Vec<(NodePolicy, Options)>,
    /// The random generator that decides when others commit.
    others: StdRng,
    /// Whether no other process commits.
    pub(crate) alone: bool,
    /// The slot whose set packets look into for the lease.
    slot: Slot,
    /// Whether a packet that all versions allow may be dropped, because a lookup can miss.
    pub(crate) may_lose: bool,
}

fn all_packets() -> &'static [Packet] {
    static PACKETS: OnceLock<Vec<Packet>> = OnceLock::new();
    PACKETS.get_or_init(packets)
}

pub(crate) fn position(policy: &NodePolicy, revision: u64) -> Position {
    Position {
        epoch: Epoch(1),
        revision: Revision(revision),
        digest: policy.digest(),
    }
}

impl World {
    /// A node that enforces a policy.
    pub(crate) fn new(
        policy: NodePolicy,
        options: Options,
        batch: usize,
        seed: u64,
    ) -> Result<World, Violation> {
        let window = Window::alone(position(&policy, 1), policy.clone());
        let installed = Installed::default().updated(window, &options.unknown());
        let mut world = World {
            kernel: FakeKernel::default(),
            options,
            limits: Limits { batch },
            installed,
            garbage: Garbage::default(),
            recent: Reach::default(),
            first: policy,
            versions: Vec::new(),
            others: StdRng::seed_from_u64(seed),
            alone: false,
            slot: Slot::default(),
            may_lose: false,
        };
        let plan = plan::create(&world.installed, &world.options, world.limits);
        for step in &plan.steps {
            world.commit(&step.commands)?;
        }
        world.renew()?;
        world.drain()?;
        Ok(world)
    }

    pub(crate) fn plan(&self, policy: &NodePolicy) -> Plan {
        self.plan_window(std::slice::from_ref(policy))
    }

    /// Plans the update to a window of several versions, oldest first.
    pub(crate) fn plan_window(&self, held: &[NodePolicy]) -> Plan {
        let first = self
            .installed
            .position()
            .map_or(1, |at| at.revision.next().0);
        let versions = held.iter().zip(first..).map(|(policy, revision)| Version {
            position: position(policy, revision),
            policy: Arc::new(policy.clone()),
        });
        let window = Window::new(versions);
        let after = self.installed.updated(window, &self.options.unknown());
        plan::update(&self.installed, &after, &self.options, self.limits)
    }

    /// Commits steps of a plan, with packets under way all the time.
    pub(crate) fn commit_steps(&mut self, plan: &Plan, steps: std::ops::Range<usize>) -> Checked {
        let now = (plan.after.policy.clone(), self.options.clone());
        self.versions.push(now);
        for step in &plan.steps[steps] {
            if step.grace {
                self.grace()?;
            }
            self.commit(&step.commands)?;
        }
        Ok(())
    }

    /// Records that a plan is done.
    pub(crate) fn done(&mut self, plan: Plan) {
        self.garbage.after(&plan);
        self.recent.merge(&plan.reach);
        self.installed = plan.after;
    }

    pub(crate) fn commit(&mut self, commands: &[sallyport_nft::command::Command]) -> Checked {
        if !self.alone && self.others.random_bool(0.2) {
            self.kernel.commit_elsewhere();
        }
        let result = self.kernel.commit(commands);
        result.map_err(|error| Violation::Refused(error.to_string()))
    }

    /// Commits a plan as an agent does, after a grace period if the plan needs one. The session renews the lease at any
    /// time.
    pub(crate) fn update(&mut self, plan: Plan) -> Checked {
        if plan.must_wait_for(&self.recent, &self.installed) {
            self.drain()?;
        }
        for step in 0..plan.steps.len() {
            self.commit_steps(&plan, step..step + 1)?;
            if self.others.random_bool(0.2) {
                self.renew()?;
            }
        }
        self.done(plan);
        Ok(())
    }

    /// Commits the plan by an agent that ends after any step. The next agent knows the journal alone.
    pub(crate) fn update_with_a_crash(&mut self, held: &[NodePolicy], rng: &mut StdRng) -> Checked {
        let plan = self.plan_window(held);
        if plan.must_wait_for(&self.recent, &self.installed) {
            self.drain()?;
        }
        let stop = rng.random_range(0..=plan.steps.len());
        self.commit_steps(&plan, 0..stop)?;
        // A process takes longer to start than a packet to pass.
        self.grace()?;
        let again = self.plan_window(held);
        self.commit_steps(&again, stop..again.steps.len())?;
        self.done(again);
        Ok(())
    }

    /// Checks the packets that are under way, and waits until they have passed.
    pub(crate) fn grace(&mut self) -> Checked {
        self.check()?;
        self.kernel.grace();
        Ok(())
    }

    /// Lets more time pass than any packet takes.
    pub(crate) fn pass(&mut self, time: Duration) -> Checked {
        self.grace()?;
        self.kernel.advance(time);
        Ok(())
    }

    /// Begins to use leases, and grants one.
    pub(crate) fn lease(&mut self) -> Checked {
        self.options.lease = Some(LEASE);
        let alone = std::mem::replace(&mut self.alone, true);
        let plan = self.plan_frame();
        for step in &plan.steps {
            self.kernel.grace();
            self.commit(&step.commands)?;
        }
        self.alone = alone;
        self.renew()?;
        self.kernel.grace();
        self.drain()
    }

    /// Stops using leases.
    pub(crate) fn end_leases(&mut self) -> Checked {
        self.options.lease = None;
        let alone = std::mem::replace(&mut self.alone, true);
        self.reframe()?;
        self.drain()?;
        self.alone = alone;
        self.sweep()
    }

    /// Renews the lease, if one is needed.
    pub(crate) fn renew(&mut self) -> Checked {
        let Some(lasts) = self.options.lease else {
            return Ok(());
        };
        self.slot = self.slot.other();
        self.commit(&lease::fill(self.slot, lasts))?;
        self.commit(&lease::look_into(self.slot))
    }

    /// Waits until no packet is under way, and checks that the table enforces exactly the installed policy.
    pub(crate) fn drain(&mut self) -> Checked {
        if !self.versions.is_empty() {
            self.grace()?;
        }
        self.kernel.grace();
        self.recent = Reach::default();
        self.versions = vec![(self.installed.policy.clone(), self.options.clone())];
        self.check()
    }

    /// Writes the frame for the options as they are.
    pub(crate) fn reframe(&mut self) -> Checked {
        let plan = self.plan_frame();
        self.commit_steps(&plan, 0..plan.steps.len())
    }

    fn plan_frame(&mut self) -> Plan {
        let found = ObservedFrame {
            slot: state::read_lease(&mut self.kernel).expect("it can be read"),
            described: true,
            review: None,
        };
        plan::reframe(&self.installed, &self.options, &found, self.limits)
    }

    /// Plans the replacement of the table by an agent that knows nothing of its content.
    pub(crate) fn plan_replacement(&mut self, policy: &NodePolicy) -> Plan {
        let window = Window::alone(position(policy, 9), policy.clone());
        let after = Installed::default().updated(window, &self.options.unknown());
        let found = self.kernel.outline().expect("it can be read");
        let found = found.expect("it is there");
        let found = Replaced {
            objects: Garbage {
                chains: found.chains,
                sets: found.sets,
            },
            bases: found.bases,
            flush: Default::default(),
        };
        plan::replace(&after, &self.options, &found, self.limits).expect("it judges packets")
    }

    /// Deletes all objects that do not belong to the installed state, and checks that the rest is complete.
    pub(crate) fn sweep(&mut self) -> Checked {
        let expected = plan::objects(&self.installed, &self.options);
        let table = self
            .kernel
            .outline()
            .expect("it can be read")
            .expect("it is there");
        self.garbage = Garbage {
            chains: table.chains.difference(&expected.chains).cloned().collect(),
            sets: table.sets.difference(&expected.sets).cloned().collect(),
        };
        self.clean()?;
        let reading = state::read_stamp(&mut self.kernel).expect("it can be read");
        let stamp = reading.stamp.expect("there is a stamp");
        assert!(self.installed.has_stamp(&stamp), "{stamp}");
        assert_eq!(stamp.progress, None);
        Ok(())
    }

    /// Deletes the objects that updates left behind, and checks that the rest is complete. The caller has waited for a
    /// grace period.
    pub(crate) fn clean(&mut self) -> Checked {
        let commands = self.garbage.delete();
        self.garbage = Garbage::default();
        self.commit(&commands)?;
        let expected = plan::objects(&self.installed, &self.options);
        let table = self.kernel.outline().expect("it can be read");
        let table = table.expect("it is there");
        let there = Garbage {
            chains: table.chains,
            sets: table.sets,
        };
        if there != expected {
            let what = format!("{there:#?} instead of {expected:#?}");
            return Err(Violation::Untidy(what));
        }
        self.check()
    }

    /// Whether a packet is possible in every version. An address may be in a source of one version and an endpoint of
    /// another. Such an address is behind an interface of workloads. Elsewhere the one version has it as anybody's, and
    /// the other as the endpoint's.
    fn is_possible(&self, packet: &Packet) -> bool {
        let versions = || self.versions.iter();
        let is_passed_on = |(end, interface): (IpAddr, &str)| {
            versions().any(|(policy, _)| policy.source_of(end).is_some())
                && versions().any(|(policy, _)| policy.endpoints().contains_key(&end))
                && !versions().all(|(_, options)| options.ports.inside.contains(interface))
        };
        versions().all(|(policy, options)| can_be(policy, options, packet))
            && !ends(packet).into_iter().any(is_passed_on)
    }

    /// Checks every packet that may be under way while there is no lease. No packet passes of a workload that was there
    /// in all versions. No packet passes that comes from where its source is not. No packet is dropped that is no
    /// workload's in any version.
    pub(crate) fn check_fenced(&self) -> Checked {
        fn is_of(packet: &Packet) -> impl Fn(&(NodePolicy, Options)) -> bool + '_ {
            let ends = packet
                .connection
                .iter()
                .flat_map(|of| [of.client, of.server]);
            let all: Vec<_> = ends.chain([packet.source, packet.destination]).collect();
            move |(policy, options): &(NodePolicy, Options)| {
                all.iter().any(|&at| is_known(policy, options, at))
                    || is_of_a_source(policy, options, packet)
            }
        }
        for packet in all_packets().iter().filter(|it| self.is_possible(it)) {
            let behind = self.options.strict && !self.options.workload_interfaces.is_empty();
            let workloads =
                behind && [&packet.input, &packet.output].contains(&&WORKLOADS.to_owned());
            let spoofed =
                |(policy, options): &(NodePolicy, Options)| is_spoofed(policy, options, packet);
            let mut versions = self.versions.iter();
            let all =
                workloads || versions.clone().all(is_of(packet)) || versions.clone().all(spoofed);
            let is_anybodys = is_of(packet);
            let none = !workloads && !versions.any(|it| is_anybodys(it) || spoofed(it));
            let verdicts = self.kernel.verdicts_now(packet);
            if all && packet.icmpv6.is_none() && verdicts.can_pass {
                return Err(Violation::Leaked(self.explain(packet, Judgement::Pass)));
            }
            if (none || packet.icmpv6.is_some()) && verdicts.can_drop {
                return Err(Violation::Lost(self.explain(packet, Judgement::Drop)));
            }
        }
        Ok(())
    }

    /// Checks every packet that may be under way. No mix passes a packet that all versions deny, or drops one that all
    /// allow.
    pub(crate) fn check(&self) -> Checked {
        // There is no promise to a packet whose source only some versions find elsewhere.
        let agreed = |packet: &&Packet| {
            let versions = self.versions.iter();
            let spoofed = versions.map(|(policy, options)| is_spoofed(policy, options, packet));
            spoofed.collect::<BTreeSet<bool>>().len() < 2
        };
        let possible = all_packets().iter().filter(|it| self.is_possible(it));
        for packet in possible.filter(agreed) {
            let permitted =
                |(policy, options): &(NodePolicy, Options)| permits(policy, options, packet);
            let verdicts = self.kernel.verdicts_now(packet);
            if verdicts.can_pass && !self.versions.iter().any(permitted) {
                return Err(Violation::Leaked(self.explain(packet, Judgement::Pass)));
            }
            let is_settled = self.versions.len() == 1;
            let must_pass = !self.may_lose || is_settled;
            if must_pass && verdicts.can_drop && self.versions.iter().all(permitted) {
                return Err(Violation::Lost(self.explain(packet, Judgement::Drop)));
            }
        }
        Ok(())
    }

    fn explain(&self, packet: &Packet, judgement: Judgement) -> String {
        let kernel = &self.kernel;
        let trace = kernel.explain(packet, kernel.horizon()..=kernel.generation(), judgement);
        format!("{packet:?}\n{}", trace.expect("it was just seen"))
    }
}
