//! The invariants of versions, independent of flows: versions never go back, an acknowledged version is durable, and no
//! barrier is passed before all that must hold the version. Checks, and changes nothing but its notes.

use sallyport_policy::{Position, Revision};

use crate::{control::revisions, judge::Violation, world::World};

impl World {
    /// I3: the oldest version that a node holds is never followed by an older one.
    pub(crate) fn check_forward(
        &mut self,
        node: usize,
        window: &[Position],
    ) -> Result<(), Violation> {
        let enforcer = &mut self.nodes[node];
        if enforcer.agent.is_none() {
            return Ok(());
        }
        let oldest = window.first().copied();
        if oldest < enforcer.oldest {
            let before = enforcer.oldest.map(|position| position.revision);
            return Err(Violation {
                promise: "I3: a node never goes back",
                seen: format!(
                    "n{node} holds {}, and held nothing older than {before:?}",
                    revisions(window)
                ),
            });
        }
        enforcer.oldest = oldest;
        Ok(())
    }

    /// Checks that a node would find the versions that it acknowledges after a loss of power.
    pub(crate) fn check_durable(
        &self,
        node: usize,
        said: &[Position],
        durable: &[Position],
    ) -> Result<(), Violation> {
        if said == durable {
            return Ok(());
        }
        Err(Violation {
            promise: "what is acknowledged is durable",
            seen: format!(
                "n{node} says that it holds {}, its log {}",
                revisions(said),
                revisions(durable)
            ),
        })
    }

    /// I2: once everything up to a revision has passed its barrier, every node with traffic holds a version that allows
    /// no more than that revision does there, or a later one.
    pub(crate) fn check_barrier(&self, settled: Revision) -> Result<(), Violation> {
        let versions = &self.judge.versions;
        for (index, node) in self.nodes.iter().enumerate() {
            if !self.judge.is_open(index) || self.judge.is_void(index) {
                continue;
            }
            let mut later = versions.within(settled..=versions.latest());
            let is_within = later.any(|revision| {
                let held = node.held.iter().map(|held| held.position.revision);
                held.into_iter()
                    .any(|held| versions.is_within(index, held, revision))
            });
            if !is_within {
                let held: Vec<Position> = node.held.iter().map(|held| held.position).collect();
                return Err(Violation {
                    promise: "I2: nothing passes its barrier before every node holds it",
                    seen: format!(
                        "revision {settled} passed, n{index} holds {}",
                        revisions(&held)
                    ),
                });
            }
        }
        Ok(())
    }
}
