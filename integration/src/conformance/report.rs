//! The report of a wrong cell: the case, the policies, both sides, and our own explanation. Finds no wrong cell.

use std::{fmt::Write, net::IpAddr};

use sallyport_policy::{Direction, Protocol};

use super::{
    case::{Case, Expect, Step},
    cells::Cell,
    compiled::Compiled,
    judge::Wrong,
    party::Party,
    world::World,
};
use crate::deployment::Deployment;

/// The number of wrong cells of a step that are reported in full.
const IN_FULL: usize = 8;

/// Tells the wrong cells of a step.
pub(super) fn wrong(
    world: &World,
    compiled: &Compiled,
    case: &Case,
    number: usize,
    step: &Step,
    wrong: &[Wrong],
) -> String {
    let mut text = format!(
        "WRONG: case {} ({}), step {number} of {}{}{}: {} wrong\n",
        case.id,
        case.description,
        case.steps.len(),
        if step.title.is_empty() { "" } else { ": " },
        step.title,
        wrong.len(),
    );
    text.push_str("  policies in force:\n");
    for policy in &step.policies {
        line(&mut text, format_args!("    {policy}"));
    }
    for one in wrong.iter().take(IN_FULL) {
        cell(&mut text, world, compiled, step, one);
    }
    if wrong.len() > IN_FULL {
        line(
            &mut text,
            format_args!("  and {} more", wrong.len() - IN_FULL),
        );
    }
    text
}

fn cell(text: &mut String, world: &World, compiled: &Compiled, step: &Step, wrong: &Wrong) {
    let Expect {
        port,
        name,
        protocol,
        ..
    } = &step.expect[wrong.cell.expect];
    let Cell { source, target, .. } = wrong.cell;
    let (from, to) = (
        &step.endpoints[wrong.cell.from],
        &step.endpoints[wrong.cell.to],
    );
    let called = name
        .as_ref()
        .map_or(String::new(), |name| format!(" ({name})"));
    let expected = if wrong.cell.open { "allowed" } else { "denied" };
    line(
        text,
        format_args!(
            "  {from} -> {to} {} {port}{called}: expected {expected}, {}",
            Protocol::from(*protocol),
            wrong.seen
        ),
    );
    let (Ok(sender), Ok(receiver)) = (world.party(from), world.party(to)) else {
        return;
    };
    line(
        text,
        format_args!("    from {}", party(from, sender, source)),
    );
    line(
        text,
        format_args!("    to   {}", party(to, receiver, target)),
    );
    let ends = (sender.at(source), receiver.at(target));
    for direction in [Direction::Egress, Direction::Ingress] {
        let reason = compiled.explain(direction, ends, (*protocol, *port));
        line(text, format_args!("    {reason}"));
    }
}

fn party(name: &str, party: &Party, address: IpAddr) -> String {
    let Party { pod, node, .. } = party;
    let (Some(pod), Some(node)) = (pod, node) else {
        return format!("{name} {address}, outside the cluster");
    };
    let labels = pod
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    format!(
        "{name} {address} on {}, labels {{{}}}{}",
        Deployment::node_name(*node),
        labels.collect::<Vec<_>>().join(","),
        if pod.host_network {
            ", in the node's network"
        } else {
            ""
        }
    )
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string succeeds");
}
