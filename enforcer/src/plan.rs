//! Plans: the kernel transactions that lead from what a node enforces to what it is to enforce, in an order in which
//! no packet meets a mix that either state denies or both allow. Pure: same input, same plan.
//!
//! One nf_tables batch is not atomic for a packet: every lookup asks anew which generation it is in. So an update has
//! two halves with their [`meet`](NodePolicy::meet) between them: the revokes, then the grants. Within a half every
//! reachable change goes one way, so whichever mix of before and after a packet's lookups see, it passes only if
//! `before` or `after` of that half lets it pass, and passes surely if both do. Changes that are not monotone are out
//! of reach:
//!
//! 1. **prepare** fresh sets and chains that no packet can reach, and rules that look into a set that is still empty; a
//!    commit of the stamp alone comes before what leads there,
//! 2. **revoke**: point endpoints at the meet's classes, then take members out of groups; end connections that
//!    conntrack would carry on all the same (`review`),
//! 3. **grant**: let members in, then point endpoints at the new classes,
//! 4. take out the rules that look into sets which are empty now,
//! 5. **clean** what no packet can reach any more, once those that could are through.
//!
//! A packet looks up its endpoint before a group. So members come before an endpoint that needs them, and go after it;
//! where an endpoint leaves a class whose group also loses members, a grace period lies between. So it does between the
//! halves, and before the next update, where a packet that stays under way could look at what changes first before it
//! does, and at what changes later afterwards.
//!
//! An address that passes from one workload to another has the meet's class between the halves, which keeps nothing.
//! There the connections of the one are flushed, before the other is granted that what is established goes on.

mod batches;
mod families;
mod garbage;
mod half;
mod members;
mod reach;
mod repair;
mod review;
mod whole;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};
use sallyport_nft::command::Command;
use sallyport_policy::{Endpoint, GroupId, NodePolicy, Position, UnknownAddresses, Window};

use crate::table::{
    frame::{self, Frame},
    lease::{self, Slot},
    names::{self, UpdateSeq},
    render::{self, Options},
    stamp::{self, Stamp},
};
use batches::{Atom, Part, PlanKind, steps};
use half::{Planner, Version};

pub use garbage::Garbage;
pub use reach::Reach;
pub use repair::{Repair, repair};
pub use review::{Review, must_end};
pub use whole::{Replaced, create, replace};

/// Raised when an update is planned in other steps than before: what an earlier enforcer left half-way is then not gone
/// on with by counting them.
pub const VERSION: u32 = 5;

/// The policy that a node enforces, and the names of its objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The versions that the node holds.
    pub window: Window,
    /// The policy that all of them allow: the kernel has this one.
    pub policy: NodePolicy,
    /// The treatment of unknown workload addresses in that policy.
    pub unknown: UnknownAddresses,
    /// Counts updates, failed ones too: names made from it are never used twice.
    pub generation: UpdateSeq,
    /// The generation of the update that made this: the kernel's stamp has it too.
    pub made: UpdateSeq,
    /// The generation in which each group's sets were made.
    pub births: OrdMap<GroupId, UpdateSeq>,
    /// Addresses that were workloads' and are nobody's now, and whose they were. Another workload must not have one
    /// before the connections of that one are flushed. (Some may have been since.)
    pub departed: OrdMap<IpAddr, Arc<Endpoint>>,
}

/// One kernel transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The commands; the stamp is among them.
    pub commands: Vec<Command>,
    /// Packets that were under way before it must be through before it is committed.
    pub grace: bool,
    /// Addresses whose connections are flushed before the commit, after a grace period. A second flush does no harm.
    pub flush: BTreeSet<IpAddr>,
    /// The connections that are reviewed before it is committed, once packets under way are through: those that
    /// [`must_end`] are flushed. Doing it again does no harm.
    pub review: Option<Review>,
}

/// The kernel transactions of an update, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The transactions. There is at least one: the last moves the stamp.
    pub steps: Vec<Step>,
    /// The objects that the steps leave behind.
    pub garbage: Garbage,
    /// The packets that the steps concern.
    pub reach: Reach,
    /// The installed policy after the steps.
    pub after: Installed,
}

impl Plan {
    /// Whether packets that were under way during earlier changes must be through before this plan is committed.
    /// `before` is what is installed.
    pub fn must_wait_for(&self, earlier: &Reach, before: &Installed) -> bool {
        earlier.must_be_over_before(&self.reach, &[&before.policy, &self.after.policy])
    }
}

/// The limits that a plan must respect.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes that a batch may have: what the socket takes.
    pub batch: usize,
}

impl Installed {
    /// The newest version that the node holds; `None` before the first.
    pub fn position(&self) -> Option<Position> {
        self.window.newest().map(|newest| newest.position)
    }

    /// The stamp of a table that has this, or has so many of so many steps to it done.
    pub fn stamp(&self, progress: Option<(u32, u32)>) -> Stamp {
        Stamp::of(self.position(), self.made, progress)
    }

    /// Whether a stamp is that of this, or of a step to it.
    pub fn has_stamp(&self, stamp: &Stamp) -> bool {
        let frame = stamp.frame;
        let of = self.stamp(stamp.progress);
        *stamp == Stamp { frame, ..of }
    }

    /// The installed policy after an update to these versions.
    pub fn updated(&self, window: Window, unknown: &UnknownAddresses) -> Installed {
        let generation = self.generation.next();
        let policy = window.enforced(unknown);
        Installed {
            births: births(&self.births, &self.policy, &policy, generation),
            window,
            departed: self.departed_after(&policy),
            policy,
            unknown: unknown.clone(),
            generation,
            made: generation,
        }
    }

    /// The addresses that come back with a policy, for another workload than before.
    pub fn inherited(&self, policy: &NodePolicy) -> BTreeSet<IpAddr> {
        let has_heir = |(address, before): &(&IpAddr, &Arc<Endpoint>)| {
            let after = policy.endpoints().get(*address);
            after.is_some_and(|after| !before.has_owner_of(after))
        };
        let inherited = self.departed.iter().filter(has_heir);
        inherited.map(|(&address, _)| address).collect()
    }

    /// The frame of the table that enforces this.
    pub fn frame<'a>(&self, options: &'a Options) -> Frame<'a> {
        self.version().frame(options)
    }

    fn version(&self) -> Version<'_> {
        Version {
            policy: &self.policy,
            births: &self.births,
        }
    }

    fn departed_after(&self, policy: &NodePolicy) -> OrdMap<IpAddr, Arc<Endpoint>> {
        let mut departed = self.departed.clone();
        for item in self.policy.endpoints().diff(policy.endpoints()) {
            match item {
                DiffItem::Add(address, _) => departed.remove(address),
                DiffItem::Remove(&address, endpoint) => departed.insert(address, endpoint.clone()),
                DiffItem::Update { .. } => None,
            };
        }
        departed
    }
}

/// Plans the update of a table that is there. `new` is what `old` is [`updated`](Installed::updated) to.
///
/// ```
/// use std::sync::Arc;
///
/// use sallyport_enforcer::{plan, table::{render::Options, state}};
/// use sallyport_nft::kernel::Kernel;
/// use sallyport_nft_fake::FakeKernel;
/// use sallyport_policy::{Endpoint, Epoch, NodePolicy, Position, Revision, UnknownAddresses, Window};
///
/// let options = Options::default();
/// let mut kernel = FakeKernel::default();
/// let limits = plan::Limits { batch: kernel.batch_limit() };
/// let updated = |old: &plan::Installed, revision, policy: &NodePolicy| {
///     let position = Position { epoch: Epoch(0), revision: Revision(revision), digest: policy.digest() };
///     old.updated(Window::alone(position, policy.clone()), &UnknownAddresses::Allow)
/// };
///
/// let mut policy = NodePolicy::default();
/// let old = updated(&plan::Installed::default(), 1, &policy);
/// for step in plan::create(&old, &options, limits).steps {
///     kernel.commit(&step.commands).unwrap();
/// }
///
/// let endpoint = Endpoint {
///     namespace: "shop".into(),
///     name: "web".into(),
///     uid: String::new(),
///     interface: String::new(),
///     ingress: None,
///     egress: None,
/// };
/// policy.set_endpoint([10, 0, 0, 1].into(), Arc::new(endpoint));
/// let new = updated(&old, 2, &policy);
/// let plan = plan::update(&old, &new, &options, limits);
/// for step in &plan.steps {
///     if step.grace {
///         kernel.grace();
///     }
///     kernel.commit(&step.commands).unwrap();
/// }
/// let stamp = state::read_stamp(&mut kernel).unwrap().stamp.unwrap();
/// assert_eq!(stamp.revision, Revision(2));
/// ```
pub fn update(old: &Installed, new: &Installed, options: &Options, limits: Limits) -> Plan {
    let meet = old.policy.meet(&new.policy, &new.unknown);
    let births_meet = births(&old.births, &old.policy, &meet, new.generation);
    let before = old.version();
    let between = Version {
        policy: &meet,
        births: &births_meet,
    };
    let after = new.version();
    let sets = families::Changes::between(before, after);
    let mut planner = Planner {
        options,
        families: sets.between,
        garbage: Garbage::default(),
    };
    let revoke = planner.half(before, between);
    let grant = planner.half(between, after);

    debug_assert!(revoke.add_members.is_empty(), "revokes let nobody in");
    debug_assert!(grant.remove_members.is_empty(), "grants take nobody out");
    let barrier = revoke.reach.must_be_over_before(&grant.reach, &[&meet]);
    let mut reach = revoke.reach;
    reach.merge(&grant.reach);
    let mut remove = Part::of(revoke.remove_members);
    let members = members::Changes::between(old, new, options);
    let mut prepare = Part::new(sets.first);
    let others = Part::of([revoke.prepare, grant.prepare, members.first].concat());
    prepare.atoms.extend(others.atoms);
    let mut parts = vec![prepare, Part::new(revoke.dispatch)];
    if !revoke.grace {
        parts[1].atoms.append(&mut remove.atoms);
    }
    parts.extend(revoke.frame.into_iter().map(Part::whole));
    parts.push(Part::new(revoke.departures).after_grace());
    parts.push(remove.after_grace());
    let review = review::is_needed(old, &meet, new, options).then_some(Review::Revoked);
    let mut grants = vec![
        Part {
            review,
            ..Part::of(members.revoked).after_grace()
        },
        Part::of([members.granting, grant.add_members].concat()),
        Part {
            flush: handed_over(&old.policy, &new.policy),
            ..Part::new(grant.dispatch)
        },
    ];
    grants.extend(grant.frame.into_iter().map(Part::whole));
    grants.push(Part::new(grant.departures).after_grace());
    if barrier && let Some(first) = grants.iter_mut().find(|part| !part.atoms.is_empty()) {
        first.grace = true;
    }
    parts.append(&mut grants);
    parts.push(Part::of(members.last).after_grace());
    parts.push(Part::new(sets.last));
    planner.garbage.sets.extend(sets.garbage);

    Plan {
        steps: steps(parts, new, limits, PlanKind::Update),
        garbage: planner.garbage,
        reach,
        after: new.clone(),
    }
}

/// The frame of a table that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedFrame {
    /// The set in which a lease in force is; `None` where the table has no leases.
    pub slot: Option<Slot>,
    /// Whether the table says what its frame was made from. That is said last when a table is made.
    pub described: bool,
    /// The connections that are reviewed with the new frame, which may be stricter.
    pub review: Option<Review>,
}

/// Plans the frame of a table that is there, after the operator chose other options.
///
/// The earlier frame is not known, so each chain is replaced. A packet that began before the last commit could find the
/// new rules with their constant sets still empty, so each chain waits for it.
///
/// A lease that is in force stays so. Where there is to be none any more, packets pass its chain by.
pub fn reframe(
    installed: &Installed,
    options: &Options,
    found: &ObservedFrame,
    limits: Limits,
) -> Plan {
    let &ObservedFrame {
        slot,
        described,
        review,
    } = found;
    let frame = installed.frame(options);
    let mut prepare: Vec<Command> = frame.range_sets().into_values().flatten().collect();
    if options.lease.is_some() {
        prepare.extend(lease::sets());
        prepare.extend(lease::CHAINS.map(frame::add_chain));
    }
    let mut chains: Vec<Atom> = frame
        .chains()
        .into_iter()
        .map(|(name, rules)| match name {
            lease::CHAIN => lease::look_into(slot.unwrap_or_default()),
            _ => render::replace_rules(name, rules),
        })
        .collect();
    if options.lease.is_none() && slot.is_some() {
        chains.insert(0, vec![Command::FlushChain(lease::CHAIN.into())]);
    }
    let fingerprint = stamp::write_frame(&frame.fingerprint(VERSION), !described);
    let parts = [Part::of(prepare)]
        .into_iter()
        .chain(
            chains
                .into_iter()
                .map(|atom| Part::whole(atom).after_grace()),
        )
        .chain([Part {
            review,
            ..Part::whole(fingerprint)
        }])
        .collect();
    Plan {
        steps: steps(parts, installed, limits, PlanKind::Frame),
        garbage: Garbage::default(),
        reach: Reach::default(),
        after: installed.clone(),
    }
}

/// The chains and sets that a table must have: whatever else is in it is garbage.
pub fn objects(installed: &Installed, options: &Options) -> Garbage {
    let (policy, version) = (&installed.policy, installed.version());
    let frame = version.frame(options);
    let mut objects = Garbage::default();
    for (name, _) in frame.chains() {
        objects.chains.insert(name.into());
    }
    for command in frame::sets(options) {
        if let Command::AddSet { name, .. } = command {
            objects.sets.insert(name);
        }
    }
    objects.sets.extend(frame.range_sets().into_keys());
    for (id, group) in policy.groups() {
        objects
            .sets
            .extend(render::group_set_names(&version.group(*id), group));
    }
    for (direction, id) in version.group_uses() {
        objects
            .chains
            .insert(names::group_chain(direction, &version.group(id)));
    }
    for id in policy.classes().keys() {
        objects.chains.insert(version.class(*id));
    }
    objects
}

/// The addresses that pass from one workload to another. The workload that had a source, or will have it, is not known.
pub fn handed_over(old: &NodePolicy, new: &NodePolicy) -> BTreeSet<IpAddr> {
    let changes = old.endpoints().diff(new.endpoints());
    changes
        .filter_map(|item| match item {
            DiffItem::Update {
                old: (&address, before),
                new: (_, after),
            } => (!before.has_owner_of(after)).then_some(address),
            DiffItem::Add(&address, _) => old.source_of(address).map(|_| address),
            DiffItem::Remove(&address, _) => new.source_of(address).map(|_| address),
        })
        .collect()
}

/// When each group of `new` was born: those that were there keep their birth.
fn births(
    old: &OrdMap<GroupId, UpdateSeq>,
    from: &NodePolicy,
    to: &NodePolicy,
    generation: UpdateSeq,
) -> OrdMap<GroupId, UpdateSeq> {
    let mut births = old.clone();
    for item in from.groups().diff(to.groups()) {
        match item {
            DiffItem::Add(&id, _) => {
                births.insert(id, generation);
            }
            DiffItem::Remove(id, _) => {
                births.remove(id);
            }
            DiffItem::Update { .. } => {}
        }
    }
    births
}
