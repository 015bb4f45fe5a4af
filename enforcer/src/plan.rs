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
//! where an endpoint leaves a class whose group also loses members, a grace period lies between.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, ordmap::DiffItem};
use sallyport_proto::{
    Position,
    policy::{ClassId, Direction, Endpoint, GroupId, NodePolicy},
};

use crate::nft::{
    command::{Command, Element, SetKind},
    encode,
    names::{self, Generation},
    render::{self, Options},
    stamp::{self, Stamp},
};

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

/// Commands that must be in one batch.
type Atom = Vec<Command>;

/// Commands that may be cut into batches between atoms, and whether packets under way must be through before them.
struct Part {
    atoms: Vec<Atom>,
    grace: bool,
}

/// One half of an update.
#[derive(Default)]
struct Half {
    prepare: Vec<Command>,
    dispatch: Vec<Atom>,
    add_members: Vec<Command>,
    remove_members: Vec<Command>,
    /// Whether an endpoint leaves a class one of whose groups loses members in this half.
    grace: bool,
    frame: Vec<Atom>,
}

/// How many endpoints are pointed elsewhere in one atom.
const ENDPOINTS_IN_ATOM: usize = 32;

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
    let meet = old.policy.meet(new, options.unknown);
    let births_meet = births(&old.births, &old.policy, &meet, generation);
    let births_new = births(&births_meet, &meet, new, generation);
    let mut planner = Planner {
        options,
        kept: garbage,
        garbage: Garbage::default(),
        reused: BTreeSet::new(),
    };
    let before = Version {
        policy: &old.policy,
        births: &old.births,
    };
    let between = Version {
        policy: &meet,
        births: &births_meet,
    };
    let after = Version {
        policy: new,
        births: &births_new,
    };
    let revoke = planner.half(before, between);
    let grant = planner.half(between, after);

    debug_assert!(revoke.add_members.is_empty(), "revokes let nobody in");
    debug_assert!(grant.remove_members.is_empty(), "grants take nobody out");
    let grace = revoke.grace;
    let mut parts = vec![Part::of(revoke.prepare)];
    parts.extend(revoke.frame.into_iter().map(Part::whole));
    parts.push(Part::new(revoke.dispatch));
    let remove = Part::of(revoke.remove_members);
    match parts.last_mut() {
        Some(dispatch) if !grace => dispatch.atoms.extend(remove.atoms),
        _ => parts.push(Part { grace, ..remove }),
    }
    parts.push(Part::of([grant.prepare, grant.add_members].concat()));
    parts.push(Part::new(grant.dispatch));
    parts.extend(grant.frame.into_iter().map(Part::whole));

    Plan {
        steps: steps(parts, position, limits, false),
        garbage: planner.garbage,
        reused: planner.reused,
        after: old.updated(new.clone(), position),
    }
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
        .chain(chains.into_iter().map(Part::whole))
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

impl Part {
    fn new(atoms: Vec<Atom>) -> Part {
        Part {
            atoms,
            grace: false,
        }
    }

    /// Commands that may be in different batches.
    fn of(commands: Vec<Command>) -> Part {
        Part::new(commands.into_iter().map(|command| vec![command]).collect())
    }

    /// Commands that must be in one batch.
    fn whole(commands: Atom) -> Part {
        Part::new(vec![commands])
    }
}

/// Cuts parts into batches of a size that the socket takes, and stamps each.
///
/// A part may be cut between any two atoms: what it prepares cannot be reached, and what can be reached changes one way.
fn steps(parts: Vec<Part>, position: Position, limits: Limits, mut fresh: bool) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for Part { atoms, mut grace } in parts {
        let (mut size, mut commands) = (0, Vec::new());
        for atom in atoms
            .into_iter()
            .flat_map(|atom| split(atom, limits.batch / 2))
        {
            let bytes: usize = atom.iter().map(encode::size_bound).sum();
            if size + bytes > limits.batch && !commands.is_empty() {
                steps.push(Step {
                    commands: std::mem::take(&mut commands),
                    grace: std::mem::take(&mut grace),
                });
                size = 0;
            }
            size += bytes;
            commands.extend(atom);
        }
        if !commands.is_empty() {
            steps.push(Step { commands, grace });
        }
    }
    if steps.is_empty() {
        steps.push(Step {
            commands: Vec::new(),
            grace: false,
        });
    }
    let all = steps.len() as u32;
    for (done, step) in (1..).zip(&mut steps) {
        let progress = (done < all).then_some((done, all));
        step.commands
            .extend(Stamp { position, progress }.write(fresh));
        // The table's first batch makes the stamp, all others replace it.
        fresh = false;
    }
    steps
}

/// Cuts an atom that is one command with many elements into several.
fn split(mut atom: Atom, limit: usize) -> Vec<Atom> {
    if atom.len() != 1 || encode::size_bound(&atom[0]) <= limit {
        return vec![atom];
    }
    let many = (limit / 400).max(1);
    let part = |set: &str,
                kind,
                elements: &[Element],
                make: fn(String, SetKind, Vec<Element>) -> Command| {
        vec![make(set.to_owned(), kind, elements.to_vec())]
    };
    match atom.remove(0) {
        Command::AddElements(set, kind, elements) => elements
            .chunks(many)
            .map(|some| part(&set, kind, some, Command::AddElements))
            .collect(),
        Command::DeleteElements(set, kind, elements) => elements
            .chunks(many)
            .map(|some| part(&set, kind, some, Command::DeleteElements))
            .collect(),
        other => vec![vec![other]],
    }
}

/// A version of the policy with the names of its objects.
#[derive(Clone, Copy)]
struct Version<'a> {
    policy: &'a NodePolicy,
    births: &'a OrdMap<GroupId, Generation>,
}

impl Version<'_> {
    fn group(&self, id: GroupId) -> String {
        names::group(id, &self.policy.groups()[&id], self.births[&id])
    }

    fn class(&self, id: ClassId) -> String {
        let class = &self.policy.classes()[&id];
        let births = class.groups().map(|group| self.births[&group]);
        names::class_chain(id, class, &self.summary(id), births)
    }

    fn summary(&self, id: ClassId) -> String {
        let describe = |group| self.policy.groups()[&group].spec.description.clone();
        render::class_summary(&self.policy.classes()[&id], describe)
    }

    /// Which group has a chain in which direction.
    fn group_uses(&self) -> BTreeSet<(Direction, GroupId)> {
        let classes = self.policy.classes().values();
        classes
            .flat_map(|class| class.groups().map(|group| (class.direction, group)))
            .collect()
    }
}

struct Planner<'a> {
    options: &'a Options,
    /// What earlier updates left behind and is still there: if it is wanted again it need not be made.
    kept: &'a Garbage,
    garbage: Garbage,
    reused: BTreeSet<String>,
}

impl Planner<'_> {
    fn half(&mut self, old: Version<'_>, new: Version<'_>) -> Half {
        let mut half = Half::default();
        self.frame(old, new, &mut half);
        let shrinking = self.groups(old, new, &mut half);
        self.chains(old, new, &mut half);
        self.endpoints(old, new, &shrinking, &mut half);
        half
    }

    /// Other workload ranges are other sets, and the frame's rules name them.
    fn frame(&mut self, old: Version<'_>, new: Version<'_>, half: &mut Half) {
        if old.policy.workload_ranges() == new.policy.workload_ranges() {
            return;
        }
        let before = render::workload_sets(self.options, old.policy);
        let after = render::workload_sets(self.options, new.policy);
        for (name, commands) in &after {
            if !before.contains_key(name) && !self.is_still_there(name) {
                half.prepare.extend(commands.iter().cloned());
            }
        }
        let gone = before.into_keys().filter(|name| !after.contains_key(name));
        self.garbage.sets.extend(gone);
        let chains: BTreeMap<_, _> = render::frame_chains(self.options, old.policy)
            .into_iter()
            .collect();
        for (name, rules) in render::frame_chains(self.options, new.policy) {
            if chains.get(name) != Some(&rules) {
                half.frame.push(render::replace_rules(name, rules));
            }
        }
        if let Some(last) = half.frame.last_mut() {
            let fingerprint = render::frame_fingerprint(self.options, new.policy);
            last.extend(stamp::write_frame(&fingerprint, false));
        }
    }

    /// Sets of groups that come and go, members of groups that stay. Returns the groups that lose members.
    fn groups(&mut self, old: Version<'_>, new: Version<'_>, half: &mut Half) -> BTreeSet<GroupId> {
        let mut shrinking = BTreeSet::new();
        for item in old.policy.groups().diff(new.policy.groups()) {
            match item {
                DiffItem::Add(&id, group) => {
                    half.prepare
                        .extend(render::add_group(&new.group(id), group));
                }
                DiffItem::Remove(&id, group) => {
                    self.garbage
                        .sets
                        .extend(render::group_set_names(&old.group(id), group));
                }
                DiffItem::Update {
                    old: (_, before),
                    new: (&id, group),
                } => {
                    let (add, remove) = before.member_changes(group);
                    let name = new.group(id);
                    let change = |addresses: &[IpAddr], change| {
                        render::change_members(&name, group, addresses, change)
                    };
                    half.add_members.extend(change(&add, Command::AddElements));
                    half.remove_members
                        .extend(change(&remove, Command::DeleteElements));
                    if !remove.is_empty() {
                        shrinking.insert(id);
                    }
                }
            }
        }
        shrinking
    }

    /// Chains of classes, and of groups in the directions in which classes name them.
    fn chains(&mut self, old: Version<'_>, new: Version<'_>, half: &mut Half) {
        let changes: Vec<_> = old.policy.classes().diff(new.policy.classes()).collect();
        if changes.is_empty() {
            return;
        }
        let (before, after) = (old.group_uses(), new.group_uses());
        for &(direction, id) in after.difference(&before) {
            let (name, group) = (new.group(id), &new.policy.groups()[&id]);
            let rules = render::group_rules(direction, &name, group);
            self.add_chain(
                names::group_chain(direction, &name),
                &group.spec.description,
                rules,
                half,
            );
        }
        for &(direction, id) in before.difference(&after) {
            self.garbage
                .chains
                .insert(names::group_chain(direction, &old.group(id)));
        }
        for item in changes {
            match item {
                DiffItem::Add(&id, class) => {
                    let chain = |group| names::group_chain(class.direction, &new.group(group));
                    let rules = render::class_rules(class, chain);
                    self.add_chain(new.class(id), &new.summary(id), rules, half);
                }
                DiffItem::Remove(&id, _) => {
                    self.garbage.chains.insert(old.class(id));
                }
                DiffItem::Update { .. } => unreachable!("a class's id is a hash of it"),
            }
        }
    }

    /// Whether what is wanted was let go of, by this update or an earlier one, and not deleted yet. It is as it would
    /// be made: names of chains and of workload ranges say all that is in them.
    fn is_still_there(&mut self, name: &str) -> bool {
        let kept = self.kept.chains.contains(name) || self.kept.sets.contains(name);
        if kept {
            self.reused.insert(name.to_owned());
        }
        self.garbage.chains.remove(name) || self.garbage.sets.remove(name) || kept
    }

    fn add_chain(
        &mut self,
        name: String,
        comment: &str,
        rules: Vec<crate::nft::command::Rule>,
        half: &mut Half,
    ) {
        if self.is_still_there(&name) {
            return;
        }
        half.prepare.push(Command::AddChain {
            name: name.clone(),
            forward: false,
            comment: comment.into(),
        });
        half.prepare.extend(render::replace_rules(&name, rules));
    }

    /// Elements of the maps that lead packets to classes. What is replaced is deleted and added in one batch.
    fn endpoints(
        &self,
        old: Version<'_>,
        new: Version<'_>,
        shrinking: &BTreeSet<GroupId>,
        half: &mut Half,
    ) {
        let changes: Vec<_> = old
            .policy
            .endpoints()
            .diff(new.policy.endpoints())
            .collect();
        for some in changes.chunks(ENDPOINTS_IN_ATOM) {
            let (mut gone, mut come) = (Elements::new(), Elements::new());
            for item in some {
                let (before, after) = match *item {
                    DiffItem::Add(&address, endpoint) => (None, Some((address, endpoint))),
                    DiffItem::Remove(&address, endpoint) => (Some((address, endpoint)), None),
                    DiffItem::Update {
                        old: (&address, before),
                        new: (_, after),
                    } => (Some((address, before)), Some((address, after))),
                };
                let (mut was, mut is) = (old.elements(before), new.elements(after));
                was.retain(|element| !is.remove(element));
                for (map, kind, element) in was {
                    gone.entry(map)
                        .or_insert((kind, Vec::new()))
                        .1
                        .push(element);
                }
                for (map, kind, element) in is {
                    come.entry(map)
                        .or_insert((kind, Vec::new()))
                        .1
                        .push(element);
                }
                half.grace |= old.leaves_shrinking_class(before, after, shrinking);
            }
            let gone = gone
                .into_iter()
                .map(|(map, (kind, all))| Command::DeleteElements(map, kind, all));
            let come = come
                .into_iter()
                .map(|(map, (kind, all))| Command::AddElements(map, kind, all));
            half.dispatch.push(gone.chain(come).collect());
        }
    }
}

/// Elements by the map that they are of.
type Elements = BTreeMap<String, (SetKind, Vec<Element>)>;

/// An endpoint of one version.
type Seat<'a> = Option<(IpAddr, &'a Arc<Endpoint>)>;

impl Version<'_> {
    fn elements(&self, seat: Seat<'_>) -> BTreeSet<(String, SetKind, Element)> {
        let Some((address, endpoint)) = seat else {
            return BTreeSet::new();
        };
        let chain = |direction| Some(self.class(endpoint.class(direction)?));
        render::endpoint_elements(address, endpoint, chain)
            .into_iter()
            .collect()
    }

    /// Whether an endpoint leaves a class of this version, one of whose groups loses members at the same time.
    fn leaves_shrinking_class(
        &self,
        before: Seat<'_>,
        after: Seat<'_>,
        shrinking: &BTreeSet<GroupId>,
    ) -> bool {
        let class =
            |seat: Seat<'_>, direction| seat.and_then(|(_, endpoint)| endpoint.class(direction));
        Direction::BOTH.into_iter().any(|direction| {
            let left = class(before, direction);
            left != class(after, direction)
                && left.is_some_and(|id| {
                    self.policy.classes()[&id]
                        .groups()
                        .any(|group| shrinking.contains(&group))
                })
        })
    }
}
