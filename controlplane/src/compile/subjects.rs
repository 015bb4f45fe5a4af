//! What policies say, by meaning: whom they select, and their rules, each once however many policies say it. It knows
//! policies, not who is selected by them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sallyport_policy::{Direction, Protocol};

use super::{
    by_key::ByKey,
    dirty::Dirty,
    families::Families,
    ids::{PolicySetId, ProfileId, SelectorId},
    peers::ScopeRef,
    rule::Rule,
    selections::Selections,
    slab::Slab,
};
use crate::{
    cluster::Stored,
    model::{self, Body, Established, LabelSelector, NetworkPolicy, ObjectKey},
};

/// All that policies with one podSelector in one namespace say about one direction.
#[derive(Debug)]
pub(super) struct Subject {
    /// Whom they isolate.
    pub(super) selection: SelectorId,
    /// The profiles that it is part of.
    pub(super) profiles: BTreeSet<ProfileId>,
    /// How many policies there are.
    policies: usize,
    /// How many of them do not keep established connections: one is enough.
    rechecking: usize,
    /// What they allow, each with the number of policies that do.
    rules: BTreeMap<Arc<Rule>, usize>,
    /// The ports that the isolated workloads themselves resolve, each with the number of rules that name it.
    names: BTreeMap<(Protocol, Arc<str>), usize>,
}

/// What a policy was taken in as.
#[derive(Debug)]
struct Record {
    selection: SelectorId,
    keep: bool,
    rules: [Option<BTreeSet<Arc<Rule>>>; 2],
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Subjects {
    records: HashMap<ByKey, Record>,
    subjects: Slab<PolicySetId, Subject>,
    /// Without policies, until `sweep`.
    idle: Vec<PolicySetId>,
    /// What becomes of established connections where a policy does not say.
    established: Established,
    /// The named ports of their rules.
    pub(super) families: Families,
}

impl Subject {
    /// Whether all policies keep established connections.
    pub(super) fn keeps(&self) -> bool {
        self.rechecking == 0
    }

    /// The rules, each once.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.rules.keys()
    }

    /// The ports that the isolated workloads themselves resolve.
    pub(super) fn names(&self) -> impl Iterator<Item = &(Protocol, Arc<str>)> {
        self.names.keys()
    }
}

impl Subjects {
    /// None yet, in a cluster with this default.
    pub(super) fn new(established: Established) -> Subjects {
        Subjects {
            established,
            ..Subjects::default()
        }
    }

    /// A subject.
    pub(super) fn get(&self, id: PolicySetId) -> &Subject {
        &self.subjects[id]
    }

    /// A subject, to tell it of its profiles.
    pub(super) fn get_mut(&mut self, id: PolicySetId) -> &mut Subject {
        &mut self.subjects[id]
    }

    /// Makes room for many policies.
    pub(super) fn reserve(&mut self, policies: usize) {
        self.records.reserve(policies);
    }

    /// Takes note of a policy, or that it is gone.
    pub(super) fn set(
        &mut self,
        key: &ObjectKey,
        stored: Option<&Arc<Stored>>,
        selections: &mut Selections,
        work: &mut Dirty,
    ) {
        let known = self.records.get_key_value(key);
        if let (Some((known, _)), Some(stored)) = (known, stored)
            && Arc::ptr_eq(&known.0, stored)
        {
            return;
        }
        let old = self.records.remove(key);
        if let Some(stored) = stored {
            let record = self.enter(stored, selections, work);
            self.records.insert(ByKey(stored.clone()), record);
        }
        if let Some(old) = old {
            self.withdraw(old, selections, work);
        }
    }

    /// Removes the subjects that no policy speaks for any more, and families that no rule names.
    pub(super) fn sweep(&mut self, selections: &mut Selections) {
        for id in std::mem::take(&mut self.idle) {
            let gone = self.subjects.remove(id);
            debug_assert!(gone.rules.is_empty() && gone.profiles.is_empty());
        }
        self.families.sweep(selections);
    }

    fn enter(
        &mut self,
        stored: &Arc<Stored>,
        selections: &mut Selections,
        work: &mut Dirty,
    ) -> Record {
        let policy = policy(stored);
        let keep = policy.keeps(self.established);
        let namespace = &stored.object.key.namespace;
        let own = selections.intern(ScopeRef::Namespace(namespace), &policy.pod_selector);
        let selection = selections.acquire(&own);
        let intern = |scope: ScopeRef<'_>, pods: &LabelSelector| selections.intern(scope, pods);
        let rules = Direction::BOTH.map(|direction| {
            let rules = rules_of(policy, direction)?.iter();
            let rules = rules.map(|rule| Arc::new(Rule::new(namespace, rule, direction, &intern)));
            Some(rules.collect::<BTreeSet<_>>())
        });
        for (direction, rules) in Direction::BOTH.into_iter().zip(&rules) {
            if let Some(rules) = rules {
                let subject = self.subject(selection, direction, selections, work);
                self.count_in(subject, keep, work);
                for rule in rules {
                    self.add_rule(subject, rule, selections, work);
                }
            }
        }
        Record {
            selection,
            keep,
            rules,
        }
    }

    fn count_in(&mut self, id: PolicySetId, keep: bool, work: &mut Dirty) {
        let subject = &mut self.subjects[id];
        let kept = subject.keeps();
        subject.policies += 1;
        subject.rechecking += usize::from(!keep);
        if subject.keeps() != kept {
            work.subjects.insert(id);
        }
    }

    fn count_out(&mut self, id: PolicySetId, keep: bool, work: &mut Dirty) {
        let subject = &mut self.subjects[id];
        let kept = subject.keeps();
        subject.policies -= 1;
        subject.rechecking -= usize::from(!keep);
        if subject.keeps() != kept {
            work.subjects.insert(id);
        }
    }

    fn withdraw(&mut self, record: Record, selections: &mut Selections, work: &mut Dirty) {
        for (direction, rules) in Direction::BOTH.into_iter().zip(&record.rules) {
            let Some(rules) = rules else { continue };
            let subjects = &mut selections.get_mut(record.selection).subjects;
            let id = subjects[direction as usize].expect("a policy has its subject");
            self.count_out(id, record.keep, work);
            if self.subjects[id].policies == 0 {
                subjects[direction as usize] = None;
                self.idle.push(id);
                work.reselected.insert(record.selection);
            }
            for rule in rules {
                self.remove_rule(id, rule, selections, work);
            }
        }
        selections.release(record.selection);
    }

    fn subject(
        &mut self,
        selection: SelectorId,
        direction: Direction,
        selections: &mut Selections,
        work: &mut Dirty,
    ) -> PolicySetId {
        let known = &mut selections.get_mut(selection).subjects[direction as usize];
        if let Some(id) = *known {
            return id;
        }
        let id = self.subjects.insert(Subject {
            selection,
            policies: 0,
            rechecking: 0,
            rules: BTreeMap::new(),
            names: BTreeMap::new(),
            profiles: BTreeSet::new(),
        });
        *known = Some(id);
        work.reselected.insert(selection);
        id
    }

    fn add_rule(
        &mut self,
        id: PolicySetId,
        rule: &Arc<Rule>,
        selections: &mut Selections,
        work: &mut Dirty,
    ) {
        let subject = &mut self.subjects[id];
        let policies = subject.rules.entry(rule.clone()).or_insert(0);
        *policies += 1;
        if *policies > 1 {
            return;
        }
        work.subjects.insert(id);
        for selection in rule.selections() {
            selections.acquire(selection);
        }
        for target in rule.named_targets() {
            self.families.acquire(target, id, selections);
        }
        for name in rule.own_names() {
            let rules = subject.names.entry(name.clone()).or_insert(0);
            *rules += 1;
            if *rules == 1 {
                work.reselected.insert(subject.selection);
            }
        }
    }

    fn remove_rule(
        &mut self,
        id: PolicySetId,
        rule: &Arc<Rule>,
        selections: &mut Selections,
        work: &mut Dirty,
    ) {
        let subject = &mut self.subjects[id];
        let policies = subject.rules.get_mut(rule).expect("the rule was added");
        *policies -= 1;
        if *policies > 0 {
            return;
        }
        subject.rules.remove(rule);
        work.subjects.insert(id);
        for target in rule.named_targets() {
            self.families.release(&target, id);
        }
        for name in rule.own_names() {
            let rules = subject.names.get_mut(name).expect("the name was added");
            *rules -= 1;
            if *rules == 0 {
                subject.names.remove(name);
                work.reselected.insert(subject.selection);
            }
        }
        for selection in rule.selections() {
            let id = selections.find(selection);
            selections.release(id);
        }
    }
}

fn policy(stored: &Stored) -> &NetworkPolicy {
    match &stored.object.body {
        Body::NetworkPolicy(policy) => policy,
        _ => unreachable!("a key of a policy's kind names a policy"),
    }
}

fn rules_of(policy: &NetworkPolicy, direction: Direction) -> Option<&Vec<model::Rule>> {
    match direction {
        Direction::Ingress => policy.ingress.as_ref(),
        Direction::Egress => policy.egress.as_ref(),
    }
}
