//! The health that a node reports, as far as it is kept. It decides nothing.

use std::{net::IpAddr, time::Duration};

use sallyport_proto::wire::{trouble, unjudged_workload};

/// A health report of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The conditions, one of a kind.
    pub conditions: Vec<ReportedCondition>,
    /// The workloads whose traffic no policy judges.
    pub unjudged: Unjudged,
}

/// The addresses of a node's workloads whose traffic no policy judges, as the node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unjudged {
    /// The first of them, those that no route leads to last.
    pub named: Vec<UnjudgedWorkload>,
    /// How many more there are.
    pub more: u64,
}

impl Unjudged {
    /// Whether policy is evaded by any of them: there is one for another reason than that no route leads to it.
    pub fn evades(&self) -> bool {
        let mut reasons = self.named.iter().map(|workload| workload.reason);
        reasons.any(|reason| reason != unjudged_workload::Reason::NoRoute)
    }
}

/// An address of a workload whose traffic no policy judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnjudgedWorkload {
    /// The workload, as `NAMESPACE/NAME`.
    pub workload: String,
    /// The address.
    pub address: IpAddr,
    /// Why; unspecified for a reason that this version does not know.
    pub reason: unjudged_workload::Reason,
    /// Why in words, with what to do.
    pub message: String,
    /// For how long.
    pub since: Duration,
}

/// A condition that a node reports: a fault that lasts, or a past event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportedCondition {
    /// The kind of condition.
    pub kind: trouble::Kind,
    /// Why, in words.
    pub reason: String,
    /// For how long, or how long ago it was.
    pub since: Duration,
}
