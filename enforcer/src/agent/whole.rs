//! Whole tables: made where there is none, or in the place of another. It reads no journal.

use std::{collections::BTreeSet, net::IpAddr};

use nix::errno::Errno;
use sallyport_nft::{command::Command, kernel::Kernel, netlink};
use sallyport_policy::Direction;
use tracing::warn;

use super::{Agent, UpdateError};
use crate::{
    journal::Log,
    plan::{self, Garbage, Installed, Plan, Replaced},
    table::{render::Options, state},
};

impl<K: Kernel, L: Log> Agent<K, L> {
    /// Makes the whole table. With `replace`, in place of the one that is there.
    pub(super) fn create(
        &mut self,
        installed: &Installed,
        replace: bool,
    ) -> Result<(), netlink::Error> {
        let make = |options: &Options, limits| {
            let mut plan = plan::create(installed, options, limits);
            if replace {
                // In one batch, so that there is no moment without a table.
                let last = plan.steps.pop().expect("the last step writes the frame");
                let steps = std::mem::take(&mut plan.steps);
                let all = steps.into_iter().flat_map(|step| step.commands);
                let commands = [Command::DeleteTable].into_iter().chain(all).collect();
                let first = plan::Step {
                    commands,
                    ..plan::Step::default()
                };
                plan.steps = vec![first, last];
            }
            plan
        };
        let mut plan = make(&self.options, self.limits());
        let mut result = self.commit_steps(&plan);
        if let Err(netlink::Error::Refused {
            errno: Errno::EOPNOTSUPP | Errno::EINVAL,
            ..
        }) = result
            && self.options.owned
        {
            warn!(
                "this kernel cannot protect the table inet sallyport from other processes: it lacks the flags owner \
                 and persist (Linux 6.9)"
            );
            self.options.owned = false;
            plan = make(&self.options, self.limits());
            result = self.commit_steps(&plan);
        }
        result?;
        self.protected = self.options.owned;
        self.installed = plan.after;
        self.unrecognised = false;
        self.garbage = Garbage::default();
        self.clean_failed = false;
        self.lease.lock().start_anew();
        self.allow_leases();
        Ok(())
    }

    /// Commits the steps of a plan for a whole table.
    pub(super) fn commit_steps(&mut self, plan: &Plan) -> Result<(), netlink::Error> {
        let before = self.installed.policy.clone();
        plan.steps.iter().try_for_each(|step| {
            self.make_way(step, &before, &plan.after.policy)?;
            self.kernel.commit(&step.commands)
        })
    }

    /// Replaces an unrecognised table. The former owners of the addresses are unknown. So classes that keep connections
    /// begin without any.
    pub(super) fn replace_unrecognised(&mut self, after: &Installed) -> Result<(), UpdateError> {
        let keeps = |address: &IpAddr| {
            let directions = Direction::BOTH.into_iter();
            let endpoint = &after.policy.endpoints()[address];
            directions
                .filter_map(|direction| endpoint.class(direction))
                .any(|class| after.policy.classes()[&class].keep_established)
        };
        let kept = after.policy.endpoints().keys().copied().filter(keeps);
        let kept: BTreeSet<IpAddr> = kept.collect();
        self.kernel
            .flush_conntrack(&|connection| connection.is_of(&kept))
            .and_then(|_| self.replace(after, BTreeSet::new()))
            .map_err(|source| UpdateError::Kernel {
                revision: after.position().unwrap_or_default().revision,
                step: 1,
                steps: 1,
                source,
            })
    }

    /// Makes the whole table in the place of the one that is there, without a packet noticing. On the way it flushes
    /// the connections of some addresses.
    pub(super) fn replace(
        &mut self,
        installed: &Installed,
        flush: BTreeSet<IpAddr>,
    ) -> Result<(), netlink::Error> {
        let Some(found) = state::read(&mut self.kernel)? else {
            return self.create(installed, false);
        };
        let found = Replaced {
            objects: Garbage {
                chains: found.outline.chains,
                sets: found.outline.sets,
            },
            bases: found.outline.bases,
            flush,
        };
        let Some(plan) = plan::replace(installed, &self.options, &found, self.limits()) else {
            return self.create(installed, true);
        };
        match self.commit_steps(&plan) {
            Ok(()) => {}
            Err(error @ netlink::Error::Refused { .. }) => {
                warn!(
                    %error,
                    "cannot replace the table inet sallyport in steps: replacing it at once may drop packets in flight"
                );
                return self.create(installed, true);
            }
            Err(error) => return Err(error),
        }
        self.installed = plan.after;
        self.unrecognised = false;
        self.garbage = plan.garbage;
        self.clean_failed = false;
        self.lease.lock().start_anew();
        self.allow_leases();
        Ok(())
    }
}
