//! The policy for edits that wait for a node that cannot be reached.

use std::{fmt, str::FromStr};

use crate::wire;

/// Decides how an edit goes on when a node does not acknowledge its revokes. The greater policy is the stricter one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnreachablePolicy {
    /// The edit goes on without the node. No promise holds for flows that touch the node.
    Skip,
    /// The edit goes on once the node's lease has run out: the node has closed itself by then.
    Fence,
    /// The edit waits: the other nodes enforce what both versions allow.
    Wait,
}

impl UnreachablePolicy {
    /// All policies, in the order of help texts.
    pub const ALL: [UnreachablePolicy; 3] = [
        UnreachablePolicy::Wait,
        UnreachablePolicy::Fence,
        UnreachablePolicy::Skip,
    ];

    /// The value of an option on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            UnreachablePolicy::Wait => "wait",
            UnreachablePolicy::Fence => "fence",
            UnreachablePolicy::Skip => "skip",
        }
    }

    /// The help text of the value.
    pub const fn help(self) -> &'static str {
        match self {
            UnreachablePolicy::Wait => {
                "The edit waits: the other nodes enforce what both versions allow"
            }
            UnreachablePolicy::Fence => {
                "The edit goes on once the node's lease has run out: by then an enforcing node is closed"
            }
            UnreachablePolicy::Skip => {
                "The edit goes on without the node: flows that touch the node may be open"
            }
        }
    }

    /// The policy that a request names; `None` if it leaves the choice to the control plane.
    pub const fn from_wire(policy: wire::Unreachable) -> Option<UnreachablePolicy> {
        match policy {
            wire::Unreachable::Unspecified => None,
            wire::Unreachable::Wait => Some(UnreachablePolicy::Wait),
            wire::Unreachable::Fence => Some(UnreachablePolicy::Fence),
            wire::Unreachable::Skip => Some(UnreachablePolicy::Skip),
        }
    }
}

impl From<UnreachablePolicy> for wire::Unreachable {
    fn from(policy: UnreachablePolicy) -> wire::Unreachable {
        match policy {
            UnreachablePolicy::Wait => wire::Unreachable::Wait,
            UnreachablePolicy::Fence => wire::Unreachable::Fence,
            UnreachablePolicy::Skip => wire::Unreachable::Skip,
        }
    }
}

impl fmt::Display for UnreachablePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for UnreachablePolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<UnreachablePolicy, String> {
        let mut all = UnreachablePolicy::ALL.into_iter();
        all.find(|policy| policy.as_str() == text)
            .ok_or_else(|| format!("{text:?} is none of wait, fence and skip"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_survive_the_command_line_and_the_wire() {
        for policy in UnreachablePolicy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(UnreachablePolicy::from_wire(policy.into()), Some(policy));
        }
        assert_eq!(
            UnreachablePolicy::from_wire(wire::Unreachable::Unspecified),
            None
        );
        assert!("close".parse::<UnreachablePolicy>().is_err());
        assert!(UnreachablePolicy::Skip < UnreachablePolicy::Fence);
        assert!(UnreachablePolicy::Fence < UnreachablePolicy::Wait);
    }
}
