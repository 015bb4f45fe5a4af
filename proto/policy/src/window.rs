//! The versions of its policy that a node holds. It enforces what all of them allow, so that an edit's revokes can be
//! everywhere before its grants are anywhere. Pure: same window and update, same window.

use std::sync::Arc;

use crate::{Delta, DeltaError, NodePolicy, Position, UnknownAddresses};

/// One version of a node's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Its name.
    pub position: Position,
    /// What it is.
    pub policy: Arc<NodePolicy>,
}

/// The versions that a node holds, oldest first. Empty before the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window(Vec<Version>);

/// What leads from one window to the next: some versions go, one may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The version that the changes lead from; `None` for a snapshot, which leads from nothing.
    pub base: Option<Position>,
    /// The version that comes; or one that is held, if none comes.
    pub target: Position,
    /// The versions that stay beside it, oldest first.
    pub keep: Vec<Position>,
    /// The changes that lead from the base to the target.
    pub delta: Delta,
}

/// Why an update does not fit a window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It builds on a version that is not held.
    #[error("the node does not hold {0}, which the update builds on")]
    NoVersion(Position),
    /// Its changes do not lead to the target.
    #[error(transparent)]
    Delta(#[from] DeltaError),
}

impl Window {
    /// A window of these versions, oldest first.
    pub fn new(versions: impl IntoIterator<Item = Version>) -> Window {
        Window(versions.into_iter().collect())
    }

    /// A window of one version.
    pub fn alone(position: Position, policy: impl Into<Arc<NodePolicy>>) -> Window {
        let policy = policy.into();
        Window(vec![Version { position, policy }])
    }

    /// The versions, oldest first.
    pub fn versions(&self) -> &[Version] {
        &self.0
    }

    /// Their names, oldest first.
    pub fn positions(&self) -> Vec<Position> {
        self.0.iter().map(|version| version.position).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest version: deltas are made from it.
    pub fn newest(&self) -> Option<&Version> {
        self.0.last()
    }

    /// The oldest version: what is revoked since is not allowed any more, what is granted since not yet.
    pub fn oldest(&self) -> Option<&Version> {
        self.0.first()
    }

    /// A version.
    pub fn get(&self, position: Position) -> Option<&Version> {
        self.0.iter().find(|version| version.position == position)
    }

    /// The window after an update.
    pub fn updated(&self, update: &Update) -> Result<Window, Misfit> {
        let held = |position| self.get(position).ok_or(Misfit::NoVersion(position));
        let empty = NodePolicy::default();
        let base = match update.base {
            Some(base) => &*held(base)?.policy,
            None => &empty,
        };
        let kept = update.keep.iter().map(|&position| held(position).cloned());
        let mut versions = kept.collect::<Result<Vec<_>, _>>()?;
        let policy = base.applied(&update.delta, update.target.digest)?;
        // It is not always the newest: a version that only gives is held no sooner than it may be.
        let at = versions.partition_point(|version| version.position < update.target);
        versions.insert(
            at,
            Version {
                position: update.target,
                policy: Arc::new(policy),
            },
        );
        Ok(Window(versions))
    }

    /// What all versions allow: what the node enforces.
    pub fn enforced(&self, unknown: &UnknownAddresses) -> NodePolicy {
        let Some((newest, older)) = self.0.split_last() else {
            return NodePolicy::default();
        };
        let mut older = older.iter().map(|version| &*version.policy);
        let Some(first) = older.next() else {
            return NodePolicy::clone(&newest.policy);
        };
        let meet = older.fold(first.clone(), |meet, policy| meet.meet(policy, unknown));
        meet.meet(&newest.policy, unknown)
    }
}
