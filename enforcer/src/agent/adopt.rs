//! The start: brings journal and kernel together, whatever the life before left. It applies no update but one that was
//! under way, or what the operator's choice makes of versions that are held.

use std::time::Instant;

use sallyport_nft::{command::Command, kernel::Kernel, netlink};
use sallyport_policy::{Delta, Update};
use tracing::{info, warn};

use super::{Agent, StartError, UpdateError};
use crate::{
    journal::{Intent, Log, Recovered},
    plan::{self, Garbage, Installed, Limits, ObservedFrame, Review},
    table::{
        frame,
        stamp::Stamp,
        state::{self, TableState},
    },
};

impl<K: Kernel, L: Log> Agent<K, L> {
    /// Recomputes the installed policy if the operator changed the treatment of unknown addresses: the policy that
    /// several versions have in common depends on it.
    pub(super) fn change_mode(&mut self) -> Result<(), UpdateError> {
        let Some((newest, older)) = self.installed.window.versions().split_last() else {
            return Ok(());
        };
        if self.unrecognised || older.is_empty() || self.installed.unknown == self.options.unknown()
        {
            return Ok(());
        }
        self.apply(Update {
            base: Some(newest.position),
            target: newest.position,
            keep: older.iter().map(|version| version.position).collect(),
            delta: Delta::default(),
        })
    }

    /// Brings journal and kernel together.
    pub(super) fn adopt(&mut self, recovered: Recovered) -> Result<(), StartError> {
        let started = Instant::now();
        let Some(table) = state::read(&mut self.kernel)? else {
            // After a reboot the pending intent counts as applied: it was acknowledged, or would have been.
            let installed = match recovered.pending {
                Some((_, after)) => after,
                None => recovered.installed,
            };
            self.create(&installed, false)?;
            info!(took = ?started.elapsed(), "made the table from the journal");
            return Ok(());
        };
        self.take_over(&table)?;
        if self.options.lease.is_none() && table.lease.is_some() {
            self.begin_to_end_leases();
        }
        let stamp = table.stamp_state.stamp;
        let Recovered { installed, pending } = recovered;
        let is_at = |at: &Installed| stamp.is_some_and(|stamp| at.has_stamp(&stamp));
        // Packets that met what an earlier life did last may still be under way.
        self.kernel.grace();
        if !table.outline.bases.is_empty() && must_be_replaced(&table) {
            let known = pending.iter().map(|(_, after)| after).chain([&installed]);
            if !known.into_iter().any(is_at) {
                self.installed = pending.map_or(installed, |(_, after)| after);
                return self.keep_unrecognised(stamp);
            }
            return self.upgrade(installed, pending.map(|(_, after)| after), started);
        }
        if !frame::BASES
            .iter()
            .all(|(base, _)| table.outline.bases.contains(*base))
        {
            // The base chains are made last: the table was never whole, or is not any more.
            warn!(
                "the table inet sallyport lacks base chains, so it filters no packets: repairing the table"
            );
            self.installed = pending.map_or(installed, |(_, after)| after);
            self.restore()?;
            return Ok(());
        }
        // An update that was under way was planned for a table without leases, if it has none.
        let lease = self.options.lease.take_if(|_| table.lease.is_none());
        match pending {
            Some((intent, after)) if is_at(&after) => {
                let done = stamp.and_then(|stamp| stamp.steps_done());
                self.installed = installed;
                self.resume(
                    &intent,
                    after,
                    done.map_or(usize::MAX, |done| done as usize),
                )?;
            }
            Some((intent, after)) if is_at(&installed) => {
                self.installed = installed;
                self.resume(&intent, after, 0)?;
            }
            None if is_at(&installed) => self.installed = installed,
            pending => {
                self.installed = pending.map_or(installed, |(_, after)| after);
                self.options.lease = lease.or(self.options.lease);
                return self.keep_unrecognised(stamp);
            }
        }
        self.options.lease = lease.or(self.options.lease);
        self.reconcile(table.stamp_state.frame.as_deref())?;
        let position = self.installed.position().unwrap_or_default();
        info!(%position, took = ?started.elapsed(), "took the table over");
        Ok(())
    }

    /// The table is an earlier enforcer's, of other objects, or half-way in a plan of other steps. The policy to
    /// enforce is known: a table of this enforcer's with that policy takes its place, and completes an update that was
    /// under way.
    ///
    /// On the way a packet passes if both tables allow it. The old one's part is within what one of the two versions of
    /// that update allows, and holds what both allow, so the promise holds.
    fn upgrade(
        &mut self,
        before: Installed,
        after: Option<Installed>,
        started: Instant,
    ) -> Result<(), StartError> {
        let after = after.unwrap_or_else(|| before.clone());
        let flush = plan::handed_over(&before.policy, &after.policy);
        self.replace(&after, flush)?;
        let position = self.installed.position().unwrap_or_default();
        info!(%position, took = ?started.elapsed(), "replaced the table of another version of the enforcer");
        Ok(())
    }

    /// Keeps a table that the journal does not know in force until a snapshot comes.
    fn keep_unrecognised(&mut self, stamp: Option<Stamp>) -> Result<(), StartError> {
        let stamp = stamp.map_or_else(|| "nothing".into(), |stamp| stamp.to_string());
        warn!(
            %stamp,
            "the journal does not know the version of the table in the kernel: the table stays until the control \
             plane sends a snapshot"
        );
        self.unrecognised = true;
        Ok(())
    }

    /// Becomes the owner of a table that an earlier life left.
    fn take_over(&mut self, table: &TableState) -> Result<(), netlink::Error> {
        self.protected = self.options.owned && table.outline.is_made_to_be_owned();
        // The present ports come later. Until then the ports from before the last process ended hold.
        self.options.ports.clone_from(&table.ports);
        self.kernel.commit(&[Command::AddTable {
            owned: self.protected,
        }])
    }

    /// Finishes an update that an earlier life began.
    fn resume(
        &mut self,
        intent: &Intent,
        after: Installed,
        done: usize,
    ) -> Result<(), UpdateError> {
        if done < usize::MAX {
            let limits = Limits {
                batch: intent.batch,
            };
            let plan = plan::update(&self.installed, &after, &self.options, limits);
            info!(
                revision = intent.update.target.revision.0,
                done,
                of = plan.steps.len(),
                "finishing the update that an earlier enforcer process began"
            );
            self.commit_from(&plan, done)?;
        }
        self.installed = after;
        Ok(())
    }

    /// Brings the adopted table to the desired content: a new frame if the options changed, no objects of an earlier
    /// process.
    fn reconcile(&mut self, frame: Option<&str>) -> Result<(), StartError> {
        let Some(table) = state::read(&mut self.kernel)? else {
            return Ok(self.create(&self.installed.clone(), false)?);
        };
        self.lease.lock().slot = table.lease;
        let is_same = frame
            == Some(
                &*self
                    .installed
                    .frame(&self.options)
                    .fingerprint(plan::VERSION),
            );
        if !is_same {
            info!("the options of the enforcer changed: writing the fixed rules of the table anew");
            self.lease.lock().slot = Some(table.lease.unwrap_or_default());
            let found = ObservedFrame {
                slot: table.lease,
                described: frame.is_some(),
                review: Some(Review::All),
            };
            let plan = plan::reframe(&self.installed, &self.options, &found, self.limits());
            self.commit_from(&plan, 0)?;
        }
        // Everything that should not be there was left behind by an earlier life.
        self.garbage = Garbage::default();
        if self.restore()? {
            warn!(
                differences = ?self.drift.last,
                "the table inet sallyport was changed while no enforcer ran: the enforcer repaired it"
            );
        }
        Ok(())
    }
}

/// Whether an earlier enforcer made a table that this one cannot go on with, piece by piece.
fn must_be_replaced(table: &TableState) -> bool {
    let Some(frame) = &table.stamp_state.frame else {
        return false;
    };
    let half_way = table
        .stamp_state
        .stamp
        .is_some_and(|stamp| stamp.steps_done().is_some());
    !frame::is_of_this_layout(frame) || (half_way && frame::plans(frame) != Some(plan::VERSION))
}
