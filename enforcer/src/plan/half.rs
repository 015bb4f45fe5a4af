//! One half of an update: what is prepared, what packets can reach and when, between two versions of a policy of which
//! one allows all that the other does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, ordmap::DiffItem};
use sallyport_nft::command::{Command, Element, Rule, SetKind};
use sallyport_policy::{ClassId, Direction, Endpoint, GroupId, NodePolicy};

use crate::{
    plan::{Garbage, VERSION, batches::Atom, families::Between, reach::Reach},
    table::{
        frame::Frame,
        names::{self, UpdateSeq},
        render::{self, Options},
        stamp,
    },
};

/// One half of an update.
#[derive(Default)]
pub(super) struct Half {
    pub(super) prepare: Vec<Command>,
    pub(super) dispatch: Vec<Atom>,
    /// Endpoints that go while the frame changes: what drops their addresses, or lets them pass, comes first.
    pub(super) departures: Vec<Atom>,
    pub(super) add_members: Vec<Command>,
    pub(super) remove_members: Vec<Command>,
    /// Whether an endpoint leaves a class one of whose groups loses members in this half.
    pub(super) grace: bool,
    pub(super) frame: Vec<Atom>,
    pub(super) reach: Reach,
}

/// The number of endpoints that are pointed elsewhere in one atom.
const ENDPOINTS_IN_ATOM: usize = 32;

/// A version of the policy with the names of its objects.
#[derive(Clone, Copy)]
pub(super) struct Version<'a> {
    pub(super) policy: &'a NodePolicy,
    pub(super) births: &'a OrdMap<GroupId, UpdateSeq>,
}

impl Version<'_> {
    pub(super) fn group(&self, id: GroupId) -> String {
        names::group(id, &self.policy.groups()[&id], self.births[&id])
    }

    pub(super) fn class(&self, id: ClassId) -> String {
        let class = &self.policy.classes()[&id];
        let births = class.groups().map(|group| self.births[&group]);
        names::class_chain(id, class, &self.summary(id), births)
    }

    pub(super) fn frame<'a>(&self, options: &'a Options) -> Frame<'a> {
        Frame::of(options, self.policy, |id| self.class(id))
    }

    fn summary(&self, id: ClassId) -> String {
        let describe = |group| self.policy.groups()[&group].spec.description.clone();
        render::class_summary(&self.policy.classes()[&id], describe)
    }

    /// The groups that have a chain, with the direction.
    pub(super) fn group_uses(&self) -> BTreeSet<(Direction, GroupId)> {
        group_uses(self.policy)
    }
}

/// The groups that classes look into, with the direction.
pub(super) fn group_uses(policy: &NodePolicy) -> BTreeSet<(Direction, GroupId)> {
    let classes = policy.classes().values();
    classes
        .flat_map(|class| class.groups().map(|group| (class.direction, group)))
        .collect()
}

pub(super) struct Planner<'a> {
    pub(super) options: &'a Options,
    pub(super) families: Between,
    pub(super) garbage: Garbage,
}

impl Planner<'_> {
    pub(super) fn half(&mut self, old: Version<'_>, new: Version<'_>) -> Half {
        let mut half = Half::default();
        self.frame(old, new, &mut half);
        let shrinking = self.groups(old, new, &mut half);
        self.chains(old, new, &mut half);
        self.endpoints(old, new, &shrinking, &mut half);
        // A source may leave a class whose group loses members, as an endpoint may.
        half.grace |= !half.frame.is_empty() && !shrinking.is_empty();
        half.reach.frame = !half.frame.is_empty();
        half
    }

    /// Other ranges are other sets, and the frame's rules name them. They name the chains of the sources' classes, too.
    fn frame(&mut self, old: Version<'_>, new: Version<'_>, half: &mut Half) {
        if old.policy.workload_ranges() == new.policy.workload_ranges()
            && old.policy.sources() == new.policy.sources()
        {
            return;
        }
        let [before, after] = [old, new].map(|version| version.frame(self.options));
        let (before_sets, after_sets) = (before.range_sets(), after.range_sets());
        for (name, commands) in &after_sets {
            if !before_sets.contains_key(name) && !self.is_still_there(name) {
                half.prepare.extend(commands.iter().cloned());
            }
        }
        let gone = before_sets.into_keys();
        let gone = gone.filter(|name| !after_sets.contains_key(name));
        self.garbage.sets.extend(gone);
        let chains: BTreeMap<_, _> = before.chains().into_iter().collect();
        for (name, rules) in after.chains() {
            if chains.get(name) != Some(&rules) {
                half.frame.push(render::replace_rules(name, rules));
            }
        }
        if let Some(last) = half.frame.last_mut() {
            last.extend(stamp::write_frame(&after.fingerprint(VERSION), false));
        }
    }

    /// Sets of groups that come and go, members of groups that stay: those have the sets that they need. Returns the
    /// groups that lose members.
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
                    half.reach
                        .change_members(id, add.iter().chain(&remove).copied());
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
            let families = self.families.of(id, group);
            let rules = render::group_rules(direction, &name, group, families);
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

    /// Whether what is wanted was let go of in this update's other half. It is as it would be made: names of class
    /// chains and of workload ranges say all that is in them, and a group's chain looks into the same sets in both
    /// halves. (What an earlier update let go of is made again, so that a plan does not depend on what happens to be
    /// left.)
    fn is_still_there(&mut self, name: &str) -> bool {
        self.garbage.chains.remove(name) || self.garbage.sets.remove(name)
    }

    fn add_chain(&mut self, name: String, comment: &str, rules: Vec<Rule>, half: &mut Half) {
        if self.is_still_there(&name) {
            return;
        }
        half.prepare.push(Command::AddChain {
            name: name.clone(),
            base: None,
            comment: comment.into(),
        });
        half.prepare.extend(render::replace_rules(&name, rules));
    }

    /// Elements of the maps that lead packets to classes. An element that is replaced is deleted and added in one
    /// batch.
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
        let (departures, others): (Vec<_>, Vec<_>) = changes
            .into_iter()
            .map(|item| match item {
                DiffItem::Add(&address, endpoint) => (None, Some((address, endpoint))),
                DiffItem::Remove(&address, endpoint) => (Some((address, endpoint)), None),
                DiffItem::Update {
                    old: (&address, before),
                    new: (_, after),
                } => (Some((address, before)), Some((address, after))),
            })
            .inspect(|&(before, after)| {
                half.grace |= old.leaves_shrinking_class(before, after, shrinking);
                half.reach.lead(old.policy, before, after);
            })
            .partition(|(_, after)| after.is_none() && !half.frame.is_empty());
        half.departures = point_elsewhere(old, new, &departures);
        half.dispatch = point_elsewhere(old, new, &others);
    }
}

/// Deletes and adds the elements of endpoints, some endpoints in an atom.
fn point_elsewhere(
    old: Version<'_>,
    new: Version<'_>,
    changes: &[(EndpointAt<'_>, EndpointAt<'_>)],
) -> Vec<Atom> {
    let atom = |some: &[(EndpointAt<'_>, EndpointAt<'_>)]| {
        let (mut gone, mut come) = (Elements::new(), Elements::new());
        for &(before, after) in some {
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
        }
        let gone = gone
            .into_iter()
            .map(|(map, (kind, all))| Command::DeleteElements(map, kind, all));
        let come = come
            .into_iter()
            .map(|(map, (kind, all))| Command::AddElements(map, kind, all));
        gone.chain(come).collect()
    };
    // A change may concern only facts that the table does not have of endpoints: their workload and their interface.
    let atoms = changes.chunks(ENDPOINTS_IN_ATOM).map(atom);
    atoms.filter(|atom: &Atom| !atom.is_empty()).collect()
}

/// Elements by the map that they are of.
type Elements = BTreeMap<String, (SetKind, Vec<Element>)>;

/// The address and endpoint of one version; `None` where that version has no endpoint at the address.
pub(super) type EndpointAt<'a> = Option<(IpAddr, &'a Arc<Endpoint>)>;

impl Version<'_> {
    fn elements(&self, endpoint_at: EndpointAt<'_>) -> BTreeSet<(String, SetKind, Element)> {
        let Some((address, endpoint)) = endpoint_at else {
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
        before: EndpointAt<'_>,
        after: EndpointAt<'_>,
        shrinking: &BTreeSet<GroupId>,
    ) -> bool {
        let class = |endpoint_at: EndpointAt<'_>, direction| {
            endpoint_at.and_then(|(_, endpoint)| endpoint.class(direction))
        };
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
