//! The proof that a node missed no edit, which a lease needs.

use sallyport_policy::Digest;

use crate::nodes::UnreachablePolicy;

/// Whether edits may have passed their barriers without a node, unknown to this process. Only a proven node may have a
/// lease.
///
/// ```text
///  startup, Wait or Skip        new node          startup, Fence
///           |                      |                     |
///           v       holds start    v     holds settled   v
///       Restarted ------------> Proven <------------ Unproven
///           |     or settled       |                   ^   ^
///           |                      +------- left ------+   |
///           +----------------------- left -----------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recovery {
    /// No edit went on without the node, as far as this process did not bypass it. Entered by new nodes, and by nodes
    /// that hold a version that proves it. Allows leases.
    Proven,
    /// The previous process may have skipped the node, and fenced none. Entered at startup unless edits fence. Allows
    /// no lease until the node holds the settled version or the one at startup.
    Restarted {
        /// The version at startup.
        start: Digest,
    },
    /// The node may have missed edits, whichever version it held at startup. Entered at startup if edits fence, and
    /// when the node leaves. Allows no lease until the node holds the settled version.
    Unproven,
}

impl Recovery {
    /// The state at startup of a node that must enforce a version.
    pub(super) fn at_startup(start: Digest, unreachable: UnreachablePolicy) -> Recovery {
        match unreachable {
            // In mid-rollout the settled version is unknown, and the version at startup may be ahead of it.
            UnreachablePolicy::Fence => Recovery::Unproven,
            UnreachablePolicy::Wait | UnreachablePolicy::Skip => Recovery::Restarted { start },
        }
    }

    /// The versions of which each proves, once the node holds it, that the node missed no edit.
    pub(super) fn proofs(self, settled: Option<Digest>) -> impl Iterator<Item = Digest> {
        let start = match self {
            Recovery::Restarted { start } => Some(start),
            Recovery::Proven | Recovery::Unproven => None,
        };
        start.into_iter().chain(settled)
    }
}
