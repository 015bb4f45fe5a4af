//! The scenario `recreate`, with the product's plans, encoding and table, each step that makes chains under a hold-up
//! of the processor that floods. Counts the packets that leaked, were lost, or met the rule at the end of the table.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rand::RngExt as _;
use sallyport_enforcer::{
    plan::{self, Garbage, Plan, Step},
    table::{self, stamp},
};
use sallyport_integration::{
    progress::Progress,
    scenario::{
        SCENARIOS,
        table::{Table, compile_all},
        traffic::{Tally, pods, tallies},
    },
};
use sallyport_nft::{
    command::{Command, SetKind},
    kernel::Kernel as _,
};
use sallyport_policy::NodePolicy;
use sallyport_testbed::{
    Netns, Testbed,
    probe::{Class, Flood, FloodReport},
};
use serde_json::json;

use crate::{
    batch::Batch,
    marks::Marks,
    padding, stock,
    storm::{self, Storm},
};

/// The comment of the rule at the end of each base chain that drops what nothing allowed.
const FELL_OFF: &str = "nothing allowed it";

/// Objects that are left behind before they are deleted, which costs a grace period.
const GARBAGE: usize = 500;

/// By how many nanoseconds a hold-up is late at most.
const LEAD: u64 = 300_000;

/// The settings of a trial of the scenario.
#[derive(Clone, Copy)]
pub(crate) struct Trial {
    /// Denied, and as many allowed packets.
    pub(crate) packets: u64,
    pub(crate) pad: u32,
    pub(crate) trace: bool,
}

/// The steps of a plan that are committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// The plan as it is.
    Planned,
    /// Without the steps that change nothing but the stamp.
    OldPlan,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Variant::Planned => "recreate/planned",
            Variant::OldPlan => "recreate/old-plan",
        }
    }

    /// The steps to carry out. The stamps stay as they are.
    fn steps(self, plan: &Plan) -> Vec<&Step> {
        let last = plan.steps.len() - 1;
        let is_kept = |(number, step): &(usize, &Step)| {
            self == Variant::Planned || *number == last || changes_more_than_the_stamp(step)
        };
        let steps = plan.steps.iter().enumerate().filter(is_kept);
        steps.map(|(_, step)| step).collect()
    }
}

fn changes_more_than_the_stamp(step: &Step) -> bool {
    let is_of_the_stamp = |command: &Command| {
        matches!(command, Command::AddElements(set, ..) | Command::DeleteElements(set, ..)
            if set == stamp::SET)
    };
    !step.flush.is_empty() || !step.commands.iter().all(is_of_the_stamp)
}

/// The result of a variant.
pub(crate) struct Measured {
    variant: Variant,
    edits: u32,
    lasted: Duration,
    report: FloodReport,
    /// The packets that the rules at the end of the base chains dropped; empty where there are none.
    fell_off: BTreeMap<String, u64>,
    /// Allowed packets that bore a mark, if there are marks.
    marked: Option<u64>,
    held: Duration,
}

impl Measured {
    fn tallies(&self) -> (Tally, Tally) {
        tallies(&self.report.classes)
    }

    fn lost(&self) -> u64 {
        let allowed = self.tallies().1;
        allowed.sent - allowed.received
    }

    /// Packets that the rules at the end dropped.
    fn fell_off(&self) -> u64 {
        self.fell_off.values().sum()
    }

    fn line(&self) -> String {
        let (denied, allowed) = self.tallies();
        let fell_off = match self.fell_off.is_empty() {
            true => json!("no such rule"),
            false => json!(self.fell_off),
        };
        json!({
            "measurement": self.variant.name(),
            "control": self.variant == Variant::OldPlan,
            "edits": self.edits,
            "seconds": (self.lasted.as_secs_f64() * 10.0).round() / 10.0,
            "denied_packets": denied.sent,
            "allowed_packets": allowed.sent,
            "leaked": denied.received,
            "lost": self.lost(),
            "nothing_allowed_it": fell_off,
            "machine_drops": self.report.machine_drops,
            "allowed_marked": self.marked,
            "held_microseconds": self.held.as_micros() as u64,
        })
        .to_string()
    }

    /// Whether packets met a chain without its rules.
    fn shows_something(&self) -> bool {
        self.tallies().0.received > 0 || self.fell_off() > 0
    }

    /// Why it does not show what it should.
    fn failure(&self) -> Option<String> {
        let name = self.variant.name();
        let (leaked, lost, fell_off) = (self.tallies().0.received, self.lost(), self.fell_off());
        match self.variant {
            Variant::OldPlan => (!self.shows_something()).then(|| {
                format!(
                    "{name} met no chain without rules, so the zeros mean nothing: raise --packets"
                )
            }),
            Variant::Planned if leaked + lost + fell_off > 0 => Some(format!(
                "{name}: {leaked} leaked, {lost} lost, {fell_off} dropped since nothing allowed them ({} dropped by the machine)",
                self.report.machine_drops
            )),
            Variant::Planned => None,
        }
    }
}

/// Runs both variants, prints a line for each, and returns why they do not show what they should. The old plan goes on
/// until a packet met a chain without its rules, for a tenth of the packets at least, and for four times as many at
/// most.
pub(crate) fn run(trial: Trial, storm: &Storm, processors: (usize, usize)) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for variant in [Variant::OldPlan, Variant::Planned] {
        let bench = Bench::start(trial, processors)?;
        let measured = bench.run(variant, storm).context(variant.name())?;
        println!("{}", measured.line());
        failures.extend(measured.failure());
    }
    Ok(failures)
}

/// A node in the scenario's first state, under a flood.
struct Bench {
    trial: Trial,
    compiled: Vec<Arc<NodePolicy>>,
    node: Netns,
    table: Table,
    flood: Flood,
    marks: Option<Marks>,
    garbage: Garbage,
    padding: [Command; 2],
    _bed: Testbed,
}

impl Bench {
    fn start(trial: Trial, processors: (usize, usize)) -> Result<Bench> {
        let scenario = SCENARIOS.into_iter().find(|one| one.name == "recreate");
        let scenario = scenario.context("there is a scenario `recreate`")?;
        let bed = Testbed::builder().nodes(1).build()?;
        let (client, server) = pods(&bed)?;
        let mut classes: Vec<Class> = (scenario.classes)();
        classes.retain(|class| class.first.is_ipv4());
        let node = bed.node(0).netns().clone();
        let mut marks = trial.trace.then(Marks::default);
        if trial.trace {
            Marks::watch(&node, &classes)?;
        }
        let compiled = compile_all(&scenario)?;
        let netlink = node.run(table::open)?;
        let table = Table::create(netlink, &compiled[0], |netlink, commands| {
            Batch::of(commands, marks.as_mut()).commit(netlink)
        })?;
        // The flood's thread stays where it is started.
        storm::bind(processors.1)?;
        let flood = Flood::start(&client, &server, &classes, None);
        storm::bind(processors.0)?;
        Ok(Bench {
            trial,
            compiled,
            node,
            table,
            flood: flood?,
            marks,
            garbage: Garbage::default(),
            padding: padding(trial.pad),
            _bed: bed,
        })
    }

    fn run(mut self, variant: Variant, storm: &Storm) -> Result<Measured> {
        let mut progress = Progress::of(variant.name().into(), "packets denied");
        let most = match variant {
            Variant::Planned => self.trial.packets,
            Variant::OldPlan => 4 * self.trial.packets,
        };
        let (started, mut edits, mut leaked) = (Instant::now(), 0, 0);
        loop {
            edits += 1;
            let policy = &self.compiled[edits as usize % self.compiled.len()];
            let plan = self.table.plan(policy);
            self.commit_plan(variant, &plan, storm)?;
            self.garbage.after(&plan);
            self.table.installed = plan.after;
            self.clean()?;
            let (denied, allowed) = tallies(&self.flood.counts());
            if denied.received > leaked {
                leaked = denied.received;
                self.report(&progress, edits, leaked)?;
            }
            let sent = denied.sent.min(allowed.sent);
            progress.at(denied.sent as u32, self.trial.packets as u32);
            if sent >= most || self.is_enough(variant, sent, leaked, edits)? {
                break;
            }
        }
        let lasted = started.elapsed();
        Ok(Measured {
            variant,
            edits,
            lasted,
            report: self.flood.stop()?,
            fell_off: fell_off(&self.node)?,
            marked: self
                .trial
                .trace
                .then(|| Marks::borne(&self.node))
                .transpose()?,
            held: storm.held(),
        })
    }

    /// Whether the old plan has shown what it must.
    fn is_enough(&self, variant: Variant, sent: u64, leaked: u64, edits: u32) -> Result<bool> {
        if variant == Variant::Planned || sent < self.trial.packets / 10 {
            return Ok(false);
        }
        // nft takes its time.
        let look = leaked == 0 && edits.is_multiple_of(2_000);
        Ok(leaked > 0
            || look
                && fell_off(&self.node)?
                    .into_values()
                    .any(|packets| packets > 0))
    }

    /// Commits the steps, one after the other; what makes chains meets a processor that is held up.
    fn commit_plan(&mut self, variant: Variant, plan: &Plan, storm: &Storm) -> Result<()> {
        let mut batches = Vec::new();
        for step in variant.steps(plan) {
            let mut commands = step.commands.clone();
            if step.commands.iter().any(leads_somewhere) {
                commands.extend(self.padding.iter().cloned());
            }
            let makes = |command: &Command| matches!(command, Command::AddChain { .. });
            let batch = Batch::of(&commands, self.marks.as_mut());
            batches.push((step, batch, step.commands.iter().any(makes)));
        }
        for (step, batch, makes) in batches {
            if step.grace {
                self.table.netlink.grace();
            }
            if !step.flush.is_empty() || step.review.is_some() {
                let (before, after) = (Some(&self.table.installed.policy), &plan.after.policy);
                let options = &self.table.options;
                self.table.netlink.flush_conntrack(|one| {
                    let reviewed = step.review.is_some();
                    one.is_of(&step.flush)
                        || reviewed && plan::must_end(one, before, after, options)
                })?;
            }
            if makes {
                // The hold-up begins somewhere in the commit that makes chains, which takes 200 to 400 us.
                let lead = rand::rng().random_range(0..=LEAD);
                storm::wait_until(storm.strike(lead)? - lead);
            }
            batch.commit(&self.table.netlink)?;
        }
        Ok(())
    }

    fn clean(&mut self) -> Result<()> {
        if self.garbage.len() > GARBAGE {
            self.table.netlink.grace();
            self.table.netlink.commit(&self.garbage.delete())?;
            self.garbage = Garbage::default();
        }
        Ok(())
    }

    fn report(&mut self, progress: &Progress, edits: u32, leaked: u64) -> Result<()> {
        progress.print(&format!("{leaked} leaked by edit {edits}"));
        if let Some(marks) = &mut self.marks {
            for line in marks.leaked(&self.node)? {
                progress.print(&line);
            }
        }
        Ok(())
    }
}

/// The packets that the rules at the end of the base chains have dropped, by chain.
fn fell_off(node: &Netns) -> Result<BTreeMap<String, u64>> {
    let counters = stock::counters(node, table::INET.name)?.into_iter();
    let at_the_end = counters.filter(|((comment, _), _)| comment == FELL_OFF);
    Ok(at_the_end
        .map(|((_, chain), packets)| (chain, packets))
        .collect())
}

/// Whether a command points endpoints at chains.
fn leads_somewhere(command: &Command) -> bool {
    matches!(command, Command::AddElements(_, SetKind::Verdicts(_), _))
}

#[cfg(test)]
mod tests {
    use sallyport_enforcer::plan::Installed;

    use super::*;

    #[test]
    fn the_old_plan_lacks_what_changes_only_the_stamp() {
        let stamp = Installed::default().stamp(None).write(false);
        let step = |others: &[Command]| Step {
            commands: [others, &stamp].concat(),
            ..Step::default()
        };
        let chain = [Command::FlushChain("in_x".into())];
        let plan = Plan {
            steps: vec![step(&chain), step(&[]), step(&chain)],
            garbage: Garbage::default(),
            reach: Default::default(),
            after: Installed::default(),
        };
        assert_eq!(Variant::Planned.steps(&plan).len(), 3);
        let old = Variant::OldPlan.steps(&plan);
        assert_eq!(old, [&plan.steps[0], &plan.steps[2]]);
    }
}
