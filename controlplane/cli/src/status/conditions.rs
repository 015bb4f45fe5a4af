//! Warnings for operators: events of nodes, and addresses that several workloads claim. Printed as JSON for programs,
//! and as lines for readers of a table.

use std::time::Duration;

use sallyport_process::duration;
use sallyport_proto::wire::{self, condition};
use serde::Serialize;

use super::{Enforcer, Report, is_zero};
use crate::kind;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) since_ms: u64,
    pub(super) enforcers: Vec<Enforcer>,
}

/// An address that several workloads claim.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Contest {
    pub(super) address: String,
    pub(super) claimants: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) more_claimants: u64,
    pub(super) message: String,
}

impl From<wire::Contest> for Contest {
    fn from(contest: wire::Contest) -> Contest {
        Contest {
            address: contest.address,
            claimants: contest.claimants.iter().map(kind::path).collect(),
            more_claimants: contest.more_claimants,
            message: contest.message,
        }
    }
}

impl From<wire::Condition> for Condition {
    fn from(condition: wire::Condition) -> Condition {
        Condition {
            kind: match condition.kind() {
                condition::Kind::Unspecified => "?",
                condition::Kind::Replaced => "replaced",
                condition::Kind::Cloned => "cloned",
                condition::Kind::NotJudged => "notJudged",
                condition::Kind::NoRoute => "noRoute",
            },
            message: condition.message,
            since_ms: condition.since_ms,
            enforcers: condition
                .enforcers
                .into_iter()
                .map(Enforcer::from)
                .collect(),
        }
    }
}

impl Condition {
    /// For a table's reader.
    fn line(&self, node: &str) -> String {
        let since = duration::rough(Duration::from_millis(self.since_ms));
        let when = match self.kind {
            "notJudged" => format!("for {since}, not judged"),
            "noRoute" => format!("for {since}, no route"),
            _ => format!("{since} ago"),
        };
        format!("{node}, {when}: {}", self.message)
    }
}

/// The lines about conditions of nodes and of addresses.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    for node in &report.nodes {
        for condition in &node.conditions {
            text += &format!("  {}\n", condition.line(&node.name));
        }
    }
    for contest in &report.contests {
        text += &format!("  {}\n", contest.message);
    }
    if report.more_contests > 0 {
        let more = report.more_contests;
        text += &format!("  and {more} more addresses that several workloads claim\n");
    }
    match text.is_empty() {
        true => text,
        false => format!("\nconditions:\n{text}"),
    }
}
