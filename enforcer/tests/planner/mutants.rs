//! The mistakes that a planner could make, each as a change of a good plan. This module does not decide whether they
//! are found.

use std::collections::BTreeSet;

use sallyport_enforcer::plan::{Plan, Step};
use sallyport_nft::command::{Command, SetKind};

/// A mistake: its name, and a good plan with it.
pub(crate) type Mutant = (&'static str, fn(Plan) -> Plan);

pub(crate) const MUTANTS: [Mutant; 9] = [
    ("all in one batch", one_batch),
    ("dispatch before prepare", dispatch_before_prepare),
    (
        "chains and what leads to them in one batch",
        prepare_with_dispatch,
    ),
    (
        "chains and what leads to them in adjacent commits",
        adjacent_commits,
    ),
    ("members go before endpoints", members_go_first),
    ("grant before revoke", grant_before_revoke),
    ("no grace period", no_grace),
    ("garbage goes without a grace period", garbage_at_once),
    (
        "ranges are filled when they are reached",
        ranges_filled_late,
    ),
];

fn all(plan: &mut Plan) -> Vec<Command> {
    let steps = std::mem::take(&mut plan.steps);
    steps.into_iter().flat_map(|step| step.commands).collect()
}

fn step(commands: Vec<Command>) -> Step {
    Step {
        commands,
        ..Step::default()
    }
}

/// Removes commands from all steps.
fn take_out(plan: &mut Plan, which: impl Fn(&Command) -> bool) -> Vec<Command> {
    let mut taken = Vec::new();
    for step in &mut plan.steps {
        let (out, rest) = step.commands.drain(..).partition(&which);
        step.commands = rest;
        taken.extend::<Vec<Command>>(out);
    }
    taken
}

fn one_batch(mut plan: Plan) -> Plan {
    plan.steps = vec![step(all(&mut plan))];
    plan
}

fn leads(command: &Command) -> bool {
    let kind = match command {
        Command::AddElements(_, kind, _) | Command::DeleteElements(_, kind, _) => kind,
        _ => return false,
    };
    matches!(kind, SetKind::Verdicts(_))
}

fn dispatch_before_prepare(mut plan: Plan) -> Plan {
    let frames =
        |command: &Command| matches!(command, Command::AddChain { .. } | Command::AddSet { .. });
    let empty = take_out(&mut plan, frames);
    let dispatch = take_out(&mut plan, leads);
    plan.steps.insert(0, step(dispatch));
    plan.steps.insert(0, step(empty));
    plan
}

fn prepare_with_dispatch(mut plan: Plan) -> Plan {
    let mut steps: Vec<Step> = Vec::new();
    for next in plan.steps {
        match steps.last_mut() {
            Some(last) if next.commands.iter().any(leads) => last.commands.extend(next.commands),
            _ => steps.push(next),
        }
    }
    plan.steps = steps;
    plan
}

/// The plans from before it was known that a lookup has two moments.
fn adjacent_commits(mut plan: Plan) -> Plan {
    let changes = |command: &Command| match command {
        Command::AddElements(_, kind, _) | Command::DeleteElements(_, kind, _) => {
            *kind != SetKind::Numbers
        }
        _ => true,
    };
    plan.steps.retain(|step| step.commands.iter().any(changes));
    plan
}

fn members_go_first(mut plan: Plan) -> Plan {
    let which = |command: &Command| {
        matches!(
            command,
            Command::DeleteElements(_, SetKind::Addresses(_), _)
        )
    };
    let gone = take_out(&mut plan, which);
    plan.steps.insert(0, step(gone));
    plan
}

fn grant_before_revoke(mut plan: Plan) -> Plan {
    let fresh: BTreeSet<String> = plan
        .steps
        .iter()
        .flat_map(|step| &step.commands)
        .filter_map(|command| match command {
            Command::AddSet { name, .. } => Some(name.clone()),
            _ => None,
        })
        .collect();
    let members = take_out(&mut plan, |command| match command {
        Command::AddElements(name, SetKind::Addresses(_), _) => !fresh.contains(name),
        _ => false,
    });
    plan.steps.insert(0, step(members));
    plan
}

fn no_grace(mut plan: Plan) -> Plan {
    plan.steps.iter_mut().for_each(|step| step.grace = false);
    plan
}

fn garbage_at_once(mut plan: Plan) -> Plan {
    plan.steps.push(step(plan.garbage.delete()));
    plan.garbage = Default::default();
    plan
}

/// Fills new sets of ranges when a rule leads to them, and not before.
fn ranges_filled_late(mut plan: Plan) -> Plan {
    let mut late = Vec::new();
    for step in &mut plan.steps {
        let ranges =
            |command: &Command| matches!(command, Command::AddElements(_, SetKind::Ranges(_), _));
        let (out, rest) = step.commands.drain(..).partition(ranges);
        late.extend::<Vec<Command>>(out);
        step.commands = match rest.iter().any(leads) {
            true => late.drain(..).chain(rest).collect(),
            false => rest,
        };
    }
    plan
}
