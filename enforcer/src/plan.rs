//! Plans: the kernel transactions that lead from what a node enforces to what it is to enforce, in an order in which
//! no packet meets a mix that either state denies or both allow. Pure: same input, same plan.
//!
//! One nf_tables batch is not atomic for a packet: every lookup asks anew which generation it is in. So an update has
//! two halves with their [`meet`](NodePolicy::meet) between them: the revokes, then the grants. Within a half every
//! reachable change goes one way, so whichever mix of before and after a packet's lookups see, it passes only if
//! `before` or `after` of that half lets it pass, and passes surely if both do. What is not monotone is out of reach:
//!
//! 1. **prepare** fresh sets and chains that no packet can reach,
//! 2. **revoke**: point endpoints at the meet's classes, then take members out of groups,
//! 3. **prepare** the new classes, and let members in,
//! 4. **grant**: point endpoints at the new classes,
//! 5. **clean** what no packet can reach any more, once those that could are through.
//!
//! A packet looks up its endpoint before a group. So members come before an endpoint that needs them, and go after it;
//! where an endpoint leaves a class whose group also loses members, a grace period lies between. So it does between the
//! halves where a packet that stays under way could look at what is revoked before, and afterwards at what is granted.

mod batches;
mod half;

use std::{collections::BTreeSet, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};
use sallyport_proto::{
    Position,
    policy::{GroupId, NodePolicy},
};

use crate::nft::{
    command::Command,
    names::{self, Generation},
    render::{self, Options},
    stamp,
};
use batches::{Atom, Part, steps};
use half::{Planner, Version};

/// What a node enforces, and under which names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The position; `None` before the first policy.
    pub position: Option<Position>,
    /// The policy.
    pub policy: NodePolicy,
    /// Counts updates, failed ones too: names made from it are never used twice.
    pub generation: Generation,
    /// The generation in which each group's sets were made.
    pub births: OrdMap<GroupId, Generation>,
}

/// Kernel objects that no packet can reach any more, to be deleted when those that could are through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Chains, by name.
    pub chains: BTreeSet<String>,
    /// Sets and maps, by name.
    pub sets: BTreeSet<String>,
}

/// One kernel transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The commands; the stamp is among them.
    pub commands: Vec<Command>,
    /// Packets that were under way before it must be through before it is committed.
    pub grace: bool,
}

/// The kernel transactions of an update, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The transactions. There is at least one: the last moves the stamp.
    pub steps: Vec<Step>,
    /// What they leave behind.
    pub garbage: Garbage,
    /// Objects that earlier updates left behind and that are in use again.
    pub reused: BTreeSet<String>,
    /// What is enforced after them.
    pub after: Installed,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes that a batch may have: what the socket takes.
    pub batch: usize,
}

impl Installed {
    /// What is installed once an update is done.
    pub fn updated(&self, policy: NodePolicy, position: Position) -> Installed {
        let generation = self.generation + 1;
        Installed {
            position: Some(position),
            births: births(&self.births, &self.policy, &policy, generation),
            policy,
            generation,
        }
    }
}

impl Garbage {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.chains.len() + self.sets.len()
    }

    /// Takes in what a plan left behind, and out what it uses again.
    pub fn after(&mut self, plan: &Plan) {
        self.chains.retain(|name| !plan.reused.contains(name));
        self.sets.retain(|name| !plan.reused.contains(name));
        self.chains.extend(plan.garbage.chains.iter().cloned());
        self.sets.extend(plan.garbage.sets.iter().cloned());
    }

    /// The commands that delete all of it: first what refers, then what is referred to.
    pub fn delete(&self) -> Vec<Command> {
        let flush = self.chains.iter().cloned().map(Command::FlushChain);
        let chains = self.chains.iter().cloned().map(Command::DeleteChain);
        let sets = self.sets.iter().cloned().map(Command::DeleteSet);
        flush.chain(chains).chain(sets).collect()
    }
}

/// Plans the update of a table that is there.
pub fn update(
    old: &Installed,
    new: &NodePolicy,
    position: Position,
    options: &Options,
    limits: Limits,
    garbage: &Garbage,
) -> Plan {
    let generation = old.generation + 1;
    // Whether an address that is no endpoint is dropped hangs on the operator's ranges too.
    let (from, to) = (on_node(&old.policy, options), on_node(new, options));
    let meet = from.meet(&to, options.unknown);
    let births_meet = births(&old.births, &from, &meet, generation);
    let births_new = births(&births_meet, &meet, &to, generation);
    let mut planner = Planner {
        options,
        kept: garbage,
        garbage: Garbage::default(),
        reused: BTreeSet::new(),
    };
    let before = Version {
        policy: &from,
        births: &old.births,
    };
    let between = Version {
        policy: &meet,
        births: &births_meet,
    };
    let after = Version {
        policy: &to,
        births: &births_new,
    };
    let revoke = planner.half(before, between);
    let grant = planner.half(between, after);

    debug_assert!(revoke.add_members.is_empty(), "revokes let nobody in");
    debug_assert!(grant.remove_members.is_empty(), "grants take nobody out");
    let barrier = revoke.must_be_over_before(&grant, between);
    let mut remove = Part::of(revoke.remove_members);
    let mut parts = vec![Part::of(revoke.prepare), Part::new(revoke.dispatch)];
    if !revoke.grace {
        parts[1].atoms.append(&mut remove.atoms);
    }
    parts.extend(revoke.frame.into_iter().map(Part::whole));
    parts.push(Part::new(revoke.departures).after_grace());
    parts.push(remove.after_grace());
    let mut grants = vec![
        Part::of([grant.prepare, grant.add_members].concat()),
        Part::new(grant.dispatch),
    ];
    grants.extend(grant.frame.into_iter().map(Part::whole));
    grants.push(Part::new(grant.departures).after_grace());
    grants.push(Part::of([revoke.forget, grant.forget].concat()).after_grace());
    if barrier && let Some(first) = grants.iter_mut().find(|part| !part.atoms.is_empty()) {
        first.grace = true;
    }
    parts.append(&mut grants);

    // Cut before they are made shorter: a plan made anew without the garbage must have the same steps.
    let mut steps = steps(parts, position, limits, false);
    for step in &mut steps {
        step.commands
            .retain(|command| !prepared(command).is_some_and(|name| planner.reused.contains(name)));
    }
    Plan {
        steps,
        garbage: planner.garbage,
        reused: planner.reused,
        after: old.updated(new.clone(), position),
    }
}

/// The chain or set that a command helps to make.
fn prepared(command: &Command) -> Option<&str> {
    match command {
        Command::AddChain { name, .. } | Command::AddSet { name, .. } => Some(name),
        Command::FlushChain(name) | Command::AddRule(name, _) => Some(name),
        Command::AddElements(name, ..) => Some(name),
        _ => None,
    }
}

/// A policy with the workload ranges of both who may know.
fn on_node(policy: &NodePolicy, options: &Options) -> NodePolicy {
    let mut policy = policy.clone();
    let ranges = render::workload_ranges(options, &policy);
    policy.set_workload_ranges(Arc::new(ranges));
    policy
}

/// Plans a table where there is none. Its base chain comes last: no packet meets it before it is whole.
pub fn create(installed: &Installed, options: &Options, limits: Limits) -> Plan {
    let policy = &installed.policy;
    let mut empty = NodePolicy::default();
    empty.set_workload_ranges(policy.workload_ranges().clone());
    let no_births = OrdMap::new();
    let mut planner = Planner {
        options,
        kept: &Garbage::default(),
        garbage: Garbage::default(),
        reused: BTreeSet::new(),
    };
    let before = Version {
        policy: &empty,
        births: &no_births,
    };
    let after = Version {
        policy,
        births: &installed.births,
    };

    let mut prepare = vec![Command::AddTable {
        owned: options.owned,
    }];
    prepare.extend(render::frame_sets());
    prepare.extend(
        render::workload_sets(options, policy)
            .into_values()
            .flatten(),
    );
    let mut hook = Vec::new();
    for (name, rules) in render::frame_chains(options, policy) {
        let commands = if name == render::FORWARD {
            &mut hook
        } else {
            &mut prepare
        };
        commands.push(render::add_frame_chain(name));
        commands.extend(render::replace_rules(name, rules));
    }
    let content = planner.half(before, after);
    prepare.extend(content.prepare);
    prepare.extend(content.dispatch.into_iter().flatten());
    hook.extend(stamp::write_frame(
        &render::frame_fingerprint(options, policy),
        true,
    ));

    let parts = vec![Part::of(prepare), Part::whole(hook)];
    Plan {
        steps: steps(parts, installed.position.unwrap_or_default(), limits, true),
        garbage: Garbage::default(),
        reused: BTreeSet::new(),
        after: installed.clone(),
    }
}

/// Plans the frame of a table that is there, after the operator chose other options.
///
/// What the frame was before is not known, so each chain is replaced; a packet that began before the last commit could
/// find the new rules with their constant sets still empty, so each waits for it.
pub fn reframe(installed: &Installed, options: &Options, limits: Limits) -> Plan {
    let policy = &installed.policy;
    let prepare: Vec<Command> = render::workload_sets(options, policy)
        .into_values()
        .flatten()
        .collect();
    let mut chains: Vec<Atom> = render::frame_chains(options, policy)
        .into_iter()
        .map(|(name, rules)| render::replace_rules(name, rules))
        .collect();
    let last = chains.last_mut().expect("the frame has chains");
    last.extend(stamp::write_frame(
        &render::frame_fingerprint(options, policy),
        false,
    ));
    let parts = [Part::of(prepare)]
        .into_iter()
        .chain(
            chains
                .into_iter()
                .map(|atom| Part::whole(atom).after_grace()),
        )
        .collect();
    Plan {
        steps: steps(parts, installed.position.unwrap_or_default(), limits, false),
        garbage: Garbage::default(),
        reused: BTreeSet::new(),
        after: installed.clone(),
    }
}

/// The chains and sets that a table must have: whatever else is in it is garbage.
pub fn objects(installed: &Installed, options: &Options) -> Garbage {
    let policy = &installed.policy;
    let version = Version {
        policy,
        births: &installed.births,
    };
    let mut objects = Garbage::default();
    for (name, _) in render::frame_chains(options, policy) {
        objects.chains.insert(name.into());
    }
    for command in render::frame_sets() {
        if let Command::AddSet { name, .. } = command {
            objects.sets.insert(name);
        }
    }
    objects
        .sets
        .extend(render::workload_sets(options, policy).into_keys());
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

/// When each group of `new` was born: those that were there keep their birth.
fn births(
    old: &OrdMap<GroupId, Generation>,
    from: &NodePolicy,
    to: &NodePolicy,
    generation: Generation,
) -> OrdMap<GroupId, Generation> {
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
