//! Workloads whose traffic no policy judges, as conditions of their node. It changes nothing.

use std::{collections::BTreeSet, time::Duration};

use sallyport_proto::wire::{condition, unjudged_workload::Reason};

use crate::nodes::{Condition, Unjudged, UnjudgedWorkload};

/// How many workloads that no route leads to are named in one condition.
const NAMED: usize = 5;

/// The reasons for which no policy judges traffic.
pub(super) fn reasons(unjudged: &Unjudged) -> BTreeSet<Reason> {
    let named = unjudged.named.iter();
    named.map(|workload| workload.reason).collect()
}

/// The conditions, some time after the node said so: one for each workload, and one for all that no route leads to.
pub(super) fn conditions(unjudged: &Unjudged, passed: Duration) -> Vec<Condition> {
    let condition = |kind, message, since| Condition {
        kind,
        message,
        since,
        enforcers: Vec::new(),
    };
    let Unjudged { named, more } = unjudged;
    let (without, evading): (Vec<&UnjudgedWorkload>, Vec<_>) = named
        .iter()
        .partition(|workload| workload.reason == Reason::NoRoute);
    let mut all: Vec<Condition> = Vec::new();
    for workload in &evading {
        let UnjudgedWorkload {
            workload,
            address,
            message,
            since,
            ..
        } = workload;
        let message = format!("workload {workload} ({address}): {message}");
        all.push(condition(
            condition::Kind::NotJudged,
            message,
            *since + passed,
        ));
    }
    let longest = |workloads: &[&UnjudgedWorkload]| {
        let times = workloads.iter().map(|workload| workload.since);
        times.max().unwrap_or_default() + passed
    };
    let Some(first) = without.first() else {
        if *more > 0 && !evading.is_empty() {
            let message = format!("and {more} more addresses, for these or other reasons");
            let kind = condition::Kind::NotJudged;
            all.push(condition(kind, message, longest(&evading)));
        }
        return all;
    };
    let names = without.iter().take(NAMED);
    let names: Vec<String> = names
        .map(|without| format!("{} ({})", without.workload, without.address))
        .collect();
    let more = more.saturating_add(without.len().saturating_sub(NAMED) as u64);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (names, message) = (names.join(", "), &first.message);
    let message = format!("workloads {names}{more}: {message}");
    all.push(condition(
        condition::Kind::NoRoute,
        message,
        longest(&without),
    ));
    all
}
