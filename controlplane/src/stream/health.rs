//! The health that a node reports, checked and cut to what is kept.

use std::{collections::BTreeMap, time::Duration};

use sallyport_process::text::one_line;
use sallyport_proto::{
    address,
    wire::{self, trouble::Kind, unjudged_workload::Reason},
};
use tonic::Status;

use super::{LONGEST_REASON, malformed};
use crate::nodes::{Health, ReportedCondition, Unjudged, UnjudgedWorkload};

/// A namespace is a DNS label of 63 characters, and a name a subdomain of 253 (RFC 1123), with a slash between them.
const LONGEST_WORKLOAD: usize = 317;

/// The words about a workload whose traffic is not judged are kept up to so many bytes.
const LONGEST_WORDS: usize = 512;

/// So many workloads are kept whose traffic a node does not judge. The rest is counted.
const MOST_UNJUDGED: usize = 20;

/// The health that is kept: one condition of each kind, and the first workloads. A condition of a kind unknown to this
/// version is dropped. A workload whose traffic is not judged for an unknown reason is kept.
pub(super) fn checked(health: wire::Health) -> Result<Health, Status> {
    let unjudged = |workload: wire::UnjudgedWorkload| {
        let address = address("unjudged.address", &workload.address).map_err(malformed)?;
        Ok::<_, Status>(UnjudgedWorkload {
            reason: workload.reason(),
            workload: one_line(&workload.workload, LONGEST_WORKLOAD),
            address,
            message: one_line(&workload.message, LONGEST_WORDS),
            since: Duration::from_millis(workload.since_ms),
        })
    };
    let left_out = health.unjudged.len().saturating_sub(MOST_UNJUDGED) as u64;
    let mut named: Vec<_> = health.unjudged;
    // Of too many those are left out first that nobody waits for.
    named.sort_by_key(|workload| workload.reason() == Reason::NoRoute);
    named.truncate(MOST_UNJUDGED);
    let unjudged = Unjudged {
        named: named.into_iter().map(unjudged).collect::<Result<_, _>>()?,
        more: health.unjudged_more.saturating_add(left_out),
    };
    Ok(Health {
        conditions: conditions_of(health.troubles),
        unjudged,
    })
}

fn conditions_of(troubles: Vec<wire::Trouble>) -> Vec<ReportedCondition> {
    let mut known = BTreeMap::new();
    for trouble in troubles {
        if let Ok(kind) = Kind::try_from(trouble.kind) {
            let condition = ReportedCondition {
                kind,
                reason: one_line(&trouble.reason, LONGEST_REASON),
                since: Duration::from_millis(trouble.since_ms),
            };
            known.entry(kind).or_insert(condition);
        }
    }
    known.into_values().collect()
}
