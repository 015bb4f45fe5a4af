//! Policies by meaning: the policies with the same podSelector are one policy set in each direction, with each rule
//! once. It knows policies, not the workloads that they select.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sallyport_policy::{Direction, Protocol};
use sallyport_proto::object::ObjectKey;

use super::{
    by_key::ByKey,
    dirty::Dirty,
    ids::{PolicySetId, ProfileId, SelectorId},
    named_ports::NamedPorts,
    peers::ScopeRef,
    rule::Rule,
    selections::Selections,
    slab::Slab,
};
use crate::{
    cluster::Stored,
    model::{self, Body, Established, LabelSelector, NetworkPolicy},
};

/// The policies of one namespace with one podSelector, in one direction.
#[derive(Debug)]
pub(super) struct PolicySet {
    /// The workloads that they isolate.
    pub(super) selection: SelectorId,
    /// The profiles that it is part of.
    pub(super) profiles: BTreeSet<ProfileId>,
    /// The number of policies.
    policies: usize,
    /// The number of policies that do not keep established connections: one is enough.
    rechecking: usize,
    /// The rules, each with the number of policies that have it.
    rules: BTreeMap<Arc<Rule>, usize>,
    /// The ports that the isolated workloads themselves resolve, each with the number of rules that name it.
    names: BTreeMap<(Protocol, Arc<str>), usize>,
}

/// The share of a policy in its policy sets.
#[derive(Debug)]
struct Record {
    selection: SelectorId,
    keep_established: bool,
    rules: [Option<BTreeSet<Arc<Rule>>>; 2],
}

/// All policy sets.
#[derive(Debug, Default)]
pub(super) struct PolicySets {
    records: HashMap<ByKey, Record>,
    policy_sets: Slab<PolicySetId, PolicySet>,
    /// Policy sets without policies, until `sweep`.
    idle: Vec<PolicySetId>,
    /// The default for established connections, for policies that do not choose.
    established: Established,
    /// The named ports of their rules.
    pub(super) named_ports: NamedPorts,
}

impl PolicySet {
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

impl PolicySets {
    /// None yet, in a cluster with this default.
    pub(super) fn new(established: Established) -> PolicySets {
        PolicySets {
            established,
            ..PolicySets::default()
        }
    }

    /// A policy set.
    pub(super) fn get(&self, id: PolicySetId) -> &PolicySet {
        &self.policy_sets[id]
    }

    /// A policy set, to change its profiles.
    pub(super) fn get_mut(&mut self, id: PolicySetId) -> &mut PolicySet {
        &mut self.policy_sets[id]
    }

    /// Makes room for many policies.
    pub(super) fn reserve(&mut self, policies: usize) {
        self.records.reserve(policies);
    }

    /// Adds, replaces or removes a policy.
    pub(super) fn set(
        &mut self,
        key: &ObjectKey,
        stored: Option<&Arc<Stored>>,
        selections: &mut Selections,
        dirty: &mut Dirty,
    ) {
        let known = self.records.get_key_value(key);
        if let (Some((known, _)), Some(stored)) = (known, stored)
            && Arc::ptr_eq(&known.0, stored)
        {
            return;
        }
        let old = self.records.remove(key);
        if let Some(stored) = stored {
            let record = self.enter(stored, selections, dirty);
            self.records.insert(ByKey(stored.clone()), record);
        }
        if let Some(old) = old {
            self.withdraw(old, selections, dirty);
        }
    }

    /// Removes the policy sets without policies, and the named ports that no rule names.
    pub(super) fn sweep(&mut self, selections: &mut Selections) {
        for id in std::mem::take(&mut self.idle) {
            let gone = self.policy_sets.remove(id);
            debug_assert!(gone.rules.is_empty() && gone.profiles.is_empty());
        }
        self.named_ports.sweep(selections);
    }

    fn enter(
        &mut self,
        stored: &Arc<Stored>,
        selections: &mut Selections,
        dirty: &mut Dirty,
    ) -> Record {
        let policy = policy(stored);
        let keep_established = policy.keeps(self.established);
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
                let policy_set = self.policy_set(selection, direction, selections, dirty);
                self.count_in(policy_set, keep_established, dirty);
                for rule in rules {
                    self.add_rule(policy_set, rule, selections, dirty);
                }
            }
        }
        Record {
            selection,
            keep_established,
            rules,
        }
    }

    fn count_in(&mut self, id: PolicySetId, keep_established: bool, dirty: &mut Dirty) {
        let policy_set = &mut self.policy_sets[id];
        let kept = policy_set.keeps();
        policy_set.policies += 1;
        policy_set.rechecking += usize::from(!keep_established);
        if policy_set.keeps() != kept {
            dirty.policy_sets.insert(id);
        }
    }

    fn count_out(&mut self, id: PolicySetId, keep_established: bool, dirty: &mut Dirty) {
        let policy_set = &mut self.policy_sets[id];
        let kept = policy_set.keeps();
        policy_set.policies -= 1;
        policy_set.rechecking -= usize::from(!keep_established);
        if policy_set.keeps() != kept {
            dirty.policy_sets.insert(id);
        }
    }

    fn withdraw(&mut self, record: Record, selections: &mut Selections, dirty: &mut Dirty) {
        for (direction, rules) in Direction::BOTH.into_iter().zip(&record.rules) {
            let Some(rules) = rules else { continue };
            let policy_sets = &mut selections.get_mut(record.selection).policy_sets;
            let id = policy_sets[direction as usize].expect("a policy has its policy set");
            self.count_out(id, record.keep_established, dirty);
            if self.policy_sets[id].policies == 0 {
                policy_sets[direction as usize] = None;
                self.idle.push(id);
                dirty.reselected.insert(record.selection);
            }
            for rule in rules {
                self.remove_rule(id, rule, selections, dirty);
            }
        }
        selections.release(record.selection);
    }

    fn policy_set(
        &mut self,
        selection: SelectorId,
        direction: Direction,
        selections: &mut Selections,
        dirty: &mut Dirty,
    ) -> PolicySetId {
        let known = &mut selections.get_mut(selection).policy_sets[direction as usize];
        if let Some(id) = *known {
            return id;
        }
        let id = self.policy_sets.insert(PolicySet {
            selection,
            policies: 0,
            rechecking: 0,
            rules: BTreeMap::new(),
            names: BTreeMap::new(),
            profiles: BTreeSet::new(),
        });
        *known = Some(id);
        dirty.reselected.insert(selection);
        id
    }

    fn add_rule(
        &mut self,
        id: PolicySetId,
        rule: &Arc<Rule>,
        selections: &mut Selections,
        dirty: &mut Dirty,
    ) {
        let policy_set = &mut self.policy_sets[id];
        let policies = policy_set.rules.entry(rule.clone()).or_insert(0);
        *policies += 1;
        if *policies > 1 {
            return;
        }
        dirty.policy_sets.insert(id);
        for selection in rule.selections() {
            selections.acquire(selection);
        }
        for target in rule.named_targets() {
            self.named_ports.acquire(target, id, selections);
        }
        for name in rule.own_names() {
            let rules = policy_set.names.entry(name.clone()).or_insert(0);
            *rules += 1;
            if *rules == 1 {
                dirty.reselected.insert(policy_set.selection);
            }
        }
    }

    fn remove_rule(
        &mut self,
        id: PolicySetId,
        rule: &Arc<Rule>,
        selections: &mut Selections,
        dirty: &mut Dirty,
    ) {
        let policy_set = &mut self.policy_sets[id];
        let policies = policy_set.rules.get_mut(rule).expect("the rule was added");
        *policies -= 1;
        if *policies > 0 {
            return;
        }
        policy_set.rules.remove(rule);
        dirty.policy_sets.insert(id);
        for target in rule.named_targets() {
            self.named_ports.release(&target, id);
        }
        for name in rule.own_names() {
            let rules = policy_set.names.get_mut(name).expect("the name was added");
            *rules -= 1;
            if *rules == 0 {
                policy_set.names.remove(name);
                dirty.reselected.insert(policy_set.selection);
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
