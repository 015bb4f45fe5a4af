//! The judge: the possible verdicts on every flow at either end and their times, compared with the verdicts of the
//! revisions. It receives events, and causes none.
//!
//! A packet is judged at its client's node and, up to the transit time later, at its server's. So a flow *can pass*
//! now if the one could let it pass within the transit time, and the other can now.

use std::fmt;

use sallyport_nft_fake::Verdicts;
use sallyport_policy::{Position, Revision};

use crate::{Time, versions::Versions};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The name of the promise.
    pub promise: &'static str,
    /// The observation.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.seen)
    }
}

/// The behaviour of one end of a flow.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    pass: bool,
    drop: bool,
    /// When it last could pass, beside now.
    passed: Option<Time>,
}

/// A node, as far as flows are concerned.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    /// Whether there is traffic: it is up, and has ever enforced anything.
    open: bool,
    /// Whether the promise is void for what touches it.
    void: bool,
    /// The oldest version that it holds.
    oldest: Option<Position>,
}

/// The judge.
#[derive(Debug)]
pub(crate) struct Judge {
    pub(crate) versions: Versions,
    transit: Time,
    ends: Vec<[End; 2]>,
    nodes: Vec<Standing>,
    /// For every flow the last revision up to which all that touches it passed its barrier.
    settled: Vec<Revision>,
    /// The last revision that was reported to be enforced, and when.
    enforced: (Revision, Time),
    /// How many verdicts were judged.
    pub(crate) judged: u64,
}

impl Judge {
    /// A judge of packets that are under way for less than `transit`.
    pub(crate) fn new(versions: Versions, nodes: usize, transit: Time) -> Judge {
        Judge {
            transit,
            ends: vec![[End::default(); 2]; versions.flows.len()],
            nodes: vec![Standing::default(); nodes],
            settled: vec![Revision(0); versions.flows.len()],
            enforced: (Revision(0), 0),
            judged: 0,
            versions,
        }
    }

    /// A node's table changed: what packets may have met meanwhile, and what they meet from now on. `oldest` is
    /// the oldest version that the node holds by then.
    pub(crate) fn changed(
        &mut self,
        node: usize,
        (meanwhile, after): (&[Verdicts], &[Verdicts]),
        oldest: Option<Position>,
        now: Time,
    ) -> Result<(), Violation> {
        let local = self.touching(node);
        let Standing { open, .. } = self.nodes[node];
        for (&flow, seen) in local.iter().zip(meanwhile) {
            let end = self.versions.flows[flow].end(node);
            let state = &mut self.ends[flow][end];
            if open && (state.pass || seen.can_pass) {
                state.passed = Some(now);
            }
            if open && seen.can_drop {
                self.check_drop(flow, end, node)?;
            }
            self.check_pass(flow, now)?;
        }
        self.nodes[node].oldest = oldest.or(self.nodes[node].oldest);
        for (&flow, seen) in local.iter().zip(after) {
            let end = self.versions.flows[flow].end(node);
            let state = &mut self.ends[flow][end];
            (state.pass, state.drop) = (seen.can_pass, seen.can_drop);
            if open && seen.can_drop {
                self.check_drop(flow, end, node)?;
            }
            self.check_pass(flow, now)?;
        }
        self.judged += 2 * local.len() as u64;
        Ok(())
    }

    /// A node's traffic begins, or ends.
    pub(crate) fn set_open(&mut self, node: usize, open: bool, now: Time) -> Result<(), Violation> {
        if self.nodes[node].open == open {
            return Ok(());
        }
        for flow in self.touching(node) {
            let end = self.versions.flows[flow].end(node);
            let state = &mut self.ends[flow][end];
            if !open && state.pass {
                state.passed = Some(now);
            }
        }
        self.nodes[node].open = open;
        self.check_all(now)
    }

    /// Whether there is traffic on a node.
    pub(crate) fn is_open(&self, node: usize) -> bool {
        self.nodes[node].open
    }

    /// The promise is void for flows that touch a node, or is not any more.
    pub(crate) fn set_void(&mut self, node: usize, void: bool) {
        if self.nodes[node].void && !void {
            // Nothing was promised of the packets that it let through.
            for flow in self.touching(node) {
                self.ends[flow].iter_mut().for_each(|end| end.passed = None);
            }
        }
        self.nodes[node].void = void;
    }

    /// Whether the promise is void for flows that touch a node.
    pub(crate) fn is_void(&self, node: usize) -> bool {
        self.nodes[node].void
    }

    /// Receives the revisions that are on their way, as hulls of first and last, and the enforced revision.
    pub(crate) fn receive_status(
        &mut self,
        on_their_way: &[(Revision, Revision)],
        enforced: Revision,
        now: Time,
    ) -> Result<(), Violation> {
        let mut moved = false;
        for (flow, settled) in self.versions.flows.iter().zip(&mut self.settled) {
            let first = on_their_way
                .iter()
                .filter_map(|&(first, last)| self.versions.first_that_affects(flow, first..=last))
                .min();
            let now = first.map_or(self.versions.latest(), |first| first.previous());
            moved |= now > *settled;
            *settled = now.max(*settled);
        }
        if enforced > self.enforced.0 {
            self.enforced = (enforced, now);
            moved = true;
        }
        if moved { self.check_all(now) } else { Ok(()) }
    }

    /// The last revision that was reported to be enforced.
    pub(crate) fn enforced(&self) -> Revision {
        self.enforced.0
    }

    /// In the end every node enforces the last revision, in the kernel too.
    pub(crate) fn final_check(&self) -> Result<(), Violation> {
        let latest = self.versions.latest();
        for (index, flow) in self.versions.flows.iter().enumerate() {
            let expected = self.versions.allows(latest, index);
            let ends = match flow.ends[0] == flow.ends[1] {
                true => &self.ends[index][..1],
                false => &self.ends[index][..],
            };
            let passes = ends.iter().all(|end| end.pass && !end.drop);
            let open = flow.ends.iter().all(|&node| self.nodes[node].open);
            if open && passes != expected {
                return Err(Violation {
                    promise: "in the end every kernel does what the last revision says",
                    seen: format!("{flow}: passes {passes}, to be {expected}"),
                });
            }
        }
        Ok(())
    }

    fn touching(&self, node: usize) -> Vec<usize> {
        let flows = self.versions.flows.iter().enumerate();
        flows
            .filter(|(_, flow)| flow.touches(node))
            .map(|(index, _)| index)
            .collect()
    }

    fn check_all(&self, now: Time) -> Result<(), Violation> {
        (0..self.ends.len()).try_for_each(|flow| self.check_pass(flow, now))
    }

    /// Never open; never stale after it was reported that nothing is.
    fn check_pass(&self, index: usize, now: Time) -> Result<(), Violation> {
        let flow = &self.versions.flows[index];
        if flow.ends.iter().any(|&node| self.nodes[node].void) {
            return Ok(());
        }
        let passes = |end: usize, since: Time| {
            let node = &self.nodes[flow.ends[end]];
            let state = &self.ends[index][end];
            node.open && state.pass
                || state
                    .passed
                    .is_some_and(|passed| passed > since || passed == now)
        };
        // Both at once at one node; at two, the second now.
        let since = now.saturating_sub(self.transit);
        let last = usize::from(flow.ends[0] != flow.ends[1]);
        if !passes(last, now) || !passes(0, since) {
            return Ok(());
        }
        let settled = self.settled[index];
        if !self.versions.allow_some(settled, index) {
            return Err(self.opened("never open", index, settled));
        }
        let (enforced, at) = self.enforced;
        if passes(0, since.max(at)) && !self.versions.allow_some(enforced, index) {
            return Err(self.opened("never stale after it is enforced", index, enforced));
        }
        Ok(())
    }

    fn opened(&self, promise: &'static str, flow: usize, from: Revision) -> Violation {
        Violation {
            promise,
            seen: format!(
                "{} can pass, and revisions {from} to {} deny it\n{}",
                self.versions.flows[flow],
                self.versions.latest(),
                self.describe(flow)
            ),
        }
    }

    /// Never broken.
    fn check_drop(&self, index: usize, end: usize, node: usize) -> Result<(), Violation> {
        let Standing { void, oldest, .. } = self.nodes[node];
        let Some(oldest) = oldest.filter(|_| !void) else {
            return Ok(());
        };
        let low = self.versions.reach(node, oldest);
        if !self.versions.permit_all(low, index, end) {
            return Ok(());
        }
        Err(Violation {
            promise: "never broken",
            seen: format!(
                "{} can be dropped at n{node}, and revisions {low} to {} permit it there\n{}",
                self.versions.flows[index],
                self.versions.latest(),
                self.describe(index)
            ),
        })
    }

    /// A description of a flow for the report.
    fn describe(&self, flow: usize) -> String {
        let revisions = self
            .versions
            .within(Revision(0)..=self.versions.latest())
            .map(|revision| format!("{revision}:{}", self.versions.describe(revision, flow)));
        let revisions: Vec<String> = revisions.collect();
        format!(
            "  by revision, at the client's node and the server's: {}\n  passed its barrier: {}; enforced: {} at {} us\n  ends: {:?}",
            revisions.join(" "),
            self.settled[flow],
            self.enforced.0,
            self.enforced.1,
            self.ends[flow]
        )
    }
}
