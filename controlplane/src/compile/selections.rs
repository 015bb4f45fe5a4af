//! The index from selections to workloads: namespaces, the scopes that they are in, and the selections of each scope,
//! interned and counted. It knows a workload as a number with labels in a namespace, and nothing of policies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use super::{
    ids::{NamedPortId, NamespaceId, PolicySetId, ScopeId, SelectorId, WorkloadId},
    index::{Labelled, Selectors, marks},
    peers::{Named, Scope, ScopeRef, Selection},
    slab::Slab,
};
use crate::model::{LabelSelector, Labels};

/// A namespace that is an object, or that a workload or a selection names.
#[derive(Debug, Default)]
pub(super) struct NamespaceEntry {
    name: String,
    labels: Arc<Labels>,
    has_object: bool,
    /// The scope that is this namespace alone.
    own: Option<ScopeId>,
    /// The scopes that it is in by its labels.
    scopes: BTreeSet<ScopeId>,
    /// The number of workloads that name the entry.
    residents: usize,
    /// The workloads among them that policies see.
    workloads: Labelled<WorkloadId>,
}

/// A scope, the set of namespaces of a selection.
#[derive(Debug)]
pub(super) struct ScopeEntry {
    scope: Scope,
    namespaces: BTreeSet<NamespaceId>,
    selections: usize,
    by_label: Selectors<SelectorId>,
}

/// A selection in use: its members, and the entries that depend on them.
#[derive(Debug)]
pub(super) struct SelectorEntry {
    selection: Arc<Selection>,
    scope_id: ScopeId,
    users: usize,
    /// The workloads that match.
    pub(super) members: BTreeSet<WorkloadId>,
    /// The policies with this podSelector: ingress, egress.
    pub(super) policy_sets: [Option<PolicySetId>; 2],
    /// The named ports that are resolved here.
    pub(super) named_ports: Vec<NamedPortId>,
    /// The terms of it that some group has, by the hash of the set of each alone.
    pub(super) terms: BTreeMap<u128, Arc<Named>>,
}

/// The namespaces, scopes and selections.
#[derive(Debug, Default)]
pub(super) struct Selections {
    namespaces: Slab<NamespaceId, NamespaceEntry>,
    namespace_by_name: HashMap<String, NamespaceId>,
    namespaces_by_label: Labelled<NamespaceId>,
    scopes: Slab<ScopeId, ScopeEntry>,
    scope_by_meaning: HashMap<Scope, ScopeId>,
    scopes_by_label: Selectors<ScopeId>,
    selected: Slab<SelectorId, SelectorEntry>,
    /// By a hash of the selection.
    by_selection: HashMap<u64, Vec<SelectorId>>,
    /// Selections whose members are not yet known.
    fresh: Vec<SelectorId>,
    /// Selections that may be without users.
    idle: BTreeSet<SelectorId>,
    /// Namespaces that nothing may name any more.
    empty: BTreeSet<NamespaceId>,
}

impl Selections {
    /// A selection.
    pub(super) fn get(&self, id: SelectorId) -> &SelectorEntry {
        &self.selected[id]
    }

    /// A selection, to change the entries that depend on it.
    pub(super) fn get_mut(&mut self, id: SelectorId) -> &mut SelectorEntry {
        &mut self.selected[id]
    }

    /// The number of a selection that is in use.
    pub(super) fn find(&self, selection: &Selection) -> SelectorId {
        self.find_parts(selection.scope.lend(), &selection.pods)
            .expect("a selection that is in use")
    }

    /// The selection of a scope and a podSelector, if there is one; else a new one, for `acquire`.
    pub(super) fn intern(&self, scope: ScopeRef<'_>, pods: &LabelSelector) -> Arc<Selection> {
        match self.find_parts(scope, pods) {
            Some(id) => self.selected[id].selection.clone(),
            None => Selection::new(scope, pods),
        }
    }

    fn find_parts(&self, scope: ScopeRef<'_>, pods: &LabelSelector) -> Option<SelectorId> {
        let ids = self.by_selection.get(&hash(scope, pods))?;
        ids.iter().copied().find(|&id| {
            let selection = &self.selected[id].selection;
            selection.scope.lend() == scope && selection.pods == *pods
        })
    }

    /// The selections that match a workload, in ascending order.
    pub(super) fn matching(&self, namespace: NamespaceId, labels: &Labels) -> Vec<SelectorId> {
        let namespace = &self.namespaces[namespace];
        let marks = marks(labels);
        let mut matching: Vec<SelectorId> = Vec::new();
        for &scope_id in namespace.own.iter().chain(&namespace.scopes) {
            let candidates = self.scopes[scope_id].by_label.candidates(&marks);
            matching
                .extend(candidates.filter(|&id| self.selected[id].selection.pods.matches(labels)));
        }
        matching.sort_unstable();
        matching.dedup();
        matching
    }

    /// One more user of a selection.
    pub(super) fn acquire(&mut self, selection: &Arc<Selection>) -> SelectorId {
        let (scope, pods) = (selection.scope.lend(), &selection.pods);
        if let Some(id) = self.find_parts(scope, pods) {
            self.selected[id].users += 1;
            return id;
        }
        let scope_id = self.intern_scope(&selection.scope);
        let id = self.selected.insert(SelectorEntry {
            selection: selection.clone(),
            scope_id,
            users: 1,
            members: BTreeSet::new(),
            policy_sets: [None; 2],
            named_ports: Vec::new(),
            terms: BTreeMap::new(),
        });
        self.scopes[scope_id].selections += 1;
        self.scopes[scope_id].by_label.insert(id, &selection.pods);
        let ids = self.by_selection.entry(hash(scope, pods));
        ids.or_default().push(id);
        self.fresh.push(id);
        id
    }

    /// One user less. The selection stays until `sweep`.
    pub(super) fn release(&mut self, id: SelectorId) {
        self.selected[id].users -= 1;
        if self.selected[id].users == 0 {
            self.idle.insert(id);
        }
    }

    /// The workloads that match a selection created since the last call.
    pub(super) fn workloads_of_fresh(&mut self) -> BTreeSet<WorkloadId> {
        let mut workloads = BTreeSet::new();
        for id in std::mem::take(&mut self.fresh) {
            let SelectorEntry {
                selection,
                scope_id,
                ..
            } = &self.selected[id];
            for &namespace in &self.scopes[*scope_id].namespaces {
                workloads.extend(
                    self.namespaces[namespace]
                        .workloads
                        .matching(&selection.pods),
                );
            }
        }
        workloads
    }

    /// Removes the selections without users, and the scopes and namespaces that nothing names. Returns the removed
    /// selections with their members.
    pub(super) fn sweep(&mut self) -> BTreeMap<SelectorId, BTreeSet<WorkloadId>> {
        let mut swept = BTreeMap::new();
        for id in std::mem::take(&mut self.idle) {
            if self.selected[id].users > 0 {
                continue;
            }
            let gone = self.selected.remove(id);
            debug_assert!(gone.terms.is_empty() && gone.named_ports.is_empty());
            self.remove_from_index(id, &gone.selection);
            let scope_id = &mut self.scopes[gone.scope_id];
            scope_id.by_label.remove(id, &gone.selection.pods);
            scope_id.selections -= 1;
            if scope_id.selections == 0 {
                self.remove_scope(gone.scope_id);
            }
            swept.insert(id, gone.members);
        }
        for id in std::mem::take(&mut self.empty) {
            self.remove_namespace_if_unused(id);
        }
        swept
    }

    /// Removes a selector from the index by its selection.
    fn remove_from_index(&mut self, id: SelectorId, selection: &Selection) {
        let hash = hash(selection.scope.lend(), &selection.pods);
        let ids = self
            .by_selection
            .get_mut(&hash)
            .expect("it was found by its hash");
        ids.retain(|&other| other != id);
        if ids.is_empty() {
            self.by_selection.remove(&hash);
        }
    }

    /// Sets the labels of a namespace's object; `None` once it is deleted. Returns the workloads whose selections may
    /// change.
    pub(super) fn set_namespace(
        &mut self,
        name: &str,
        labels: Option<&Arc<Labels>>,
    ) -> Vec<WorkloadId> {
        let id = self.intern_namespace(name);
        let namespace = &mut self.namespaces[id];
        namespace.has_object = labels.is_some();
        if labels.is_none() {
            self.empty.insert(id);
        }
        let labels = labels.cloned().unwrap_or_default();
        if namespace.labels == labels {
            return Vec::new();
        }
        namespace.labels = labels.clone();
        self.namespaces_by_label.insert(id, &labels);
        let scopes = self.scopes_of(&labels);
        let before = std::mem::replace(&mut self.namespaces[id].scopes, scopes.clone());
        for &scope_id in before.difference(&scopes) {
            self.scopes[scope_id].namespaces.remove(&id);
        }
        for &scope_id in scopes.difference(&before) {
            self.scopes[scope_id].namespaces.insert(id);
        }
        if before == scopes {
            return Vec::new();
        }
        self.namespaces[id].workloads.ids().collect()
    }

    /// One more workload in a namespace.
    pub(super) fn add_workload(&mut self, name: &str) -> NamespaceId {
        let id = self.intern_namespace(name);
        self.namespaces[id].residents += 1;
        id
    }

    /// One workload less.
    pub(super) fn remove_workload(&mut self, id: NamespaceId) {
        self.namespaces[id].residents -= 1;
        self.empty.insert(id);
    }

    /// Makes a workload visible to selections, with these labels; or, with none, invisible.
    pub(super) fn show(
        &mut self,
        workload: WorkloadId,
        namespace: NamespaceId,
        labels: Option<&Arc<Labels>>,
    ) {
        match labels {
            Some(labels) => self.namespaces[namespace]
                .workloads
                .insert(workload, labels),
            None => self.namespaces[namespace].workloads.remove(workload),
        }
    }

    fn intern_namespace(&mut self, name: &str) -> NamespaceId {
        if let Some(&id) = self.namespace_by_name.get(name) {
            return id;
        }
        let labels = Arc::<Labels>::default();
        let scopes = self.scopes_of(&labels);
        let id = self.namespaces.insert(NamespaceEntry {
            name: name.into(),
            scopes: scopes.clone(),
            labels: labels.clone(),
            ..NamespaceEntry::default()
        });
        for scope_id in scopes {
            self.scopes[scope_id].namespaces.insert(id);
        }
        self.namespace_by_name.insert(name.into(), id);
        self.namespaces_by_label.insert(id, &labels);
        id
    }

    fn remove_namespace_if_unused(&mut self, id: NamespaceId) {
        let Some(namespace) = self.namespaces.get(id) else {
            return;
        };
        if namespace.has_object || namespace.residents > 0 || namespace.own.is_some() {
            return;
        }
        let namespace = self.namespaces.remove(id);
        for scope_id in namespace.scopes {
            self.scopes[scope_id].namespaces.remove(&id);
        }
        self.namespace_by_name.remove(&namespace.name);
        self.namespaces_by_label.remove(id);
    }

    /// The scopes that a namespace with these labels is in by them.
    fn scopes_of(&self, labels: &Labels) -> BTreeSet<ScopeId> {
        let marks = marks(labels);
        let candidates = self.scopes_by_label.candidates(&marks);
        let matches = |id: &ScopeId| match &self.scopes[*id].scope {
            Scope::Matching(selector) => selector.matches(labels),
            Scope::Namespace(_) => false,
        };
        candidates.filter(matches).collect()
    }

    fn intern_scope(&mut self, scope: &Scope) -> ScopeId {
        if let Some(&id) = self.scope_by_meaning.get(scope) {
            return id;
        }
        let namespaces: BTreeSet<NamespaceId> = match scope {
            Scope::Namespace(name) => BTreeSet::from([self.intern_namespace(name)]),
            Scope::Matching(selector) => self
                .namespaces_by_label
                .matching(selector)
                .into_iter()
                .collect(),
        };
        let id = self.scopes.insert(ScopeEntry {
            scope: scope.clone(),
            namespaces: namespaces.clone(),
            selections: 0,
            by_label: Selectors::default(),
        });
        self.scope_by_meaning.insert(scope.clone(), id);
        match scope {
            Scope::Namespace(_) => {
                for namespace in namespaces {
                    self.namespaces[namespace].own = Some(id);
                }
            }
            Scope::Matching(selector) => {
                for namespace in namespaces {
                    self.namespaces[namespace].scopes.insert(id);
                }
                self.scopes_by_label.insert(id, selector);
            }
        }
        id
    }

    fn remove_scope(&mut self, id: ScopeId) {
        let scope = self.scopes.remove(id);
        self.scope_by_meaning.remove(&scope.scope);
        if let Scope::Matching(selector) = &scope.scope {
            self.scopes_by_label.remove(id, selector);
        }
        for namespace in scope.namespaces {
            let of = &mut self.namespaces[namespace];
            of.scopes.remove(&id);
            if of.own == Some(id) {
                of.own = None;
                self.empty.insert(namespace);
            }
        }
    }
}

fn hash(scope: ScopeRef<'_>, pods: &LabelSelector) -> u64 {
    let mut hasher = DefaultHasher::new();
    (scope, pods).hash(&mut hasher);
    hasher.finish()
}
