//! Which selections match which workloads: namespaces, the scopes that they are in, and the selections of each scope,
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

/// A namespace that an object, a workload or a selection speaks of.
#[derive(Debug, Default)]
pub(super) struct Space {
    name: String,
    labels: Arc<Labels>,
    has_object: bool,
    /// The scope that is this namespace alone.
    own: Option<ScopeId>,
    /// The scopes that it is in by its labels.
    realms: BTreeSet<ScopeId>,
    /// How many workloads name it.
    residents: usize,
    /// Those of them that policies see.
    rows: Labelled<WorkloadId>,
}

/// A scope that some selection has.
#[derive(Debug)]
pub(super) struct Realm {
    scope: Scope,
    spaces: BTreeSet<NamespaceId>,
    selections: usize,
    by_label: Selectors<SelectorId>,
}

/// A selection that somebody uses: who is in it, and who must hear when that changes.
#[derive(Debug)]
pub(super) struct Selected {
    selection: Arc<Selection>,
    realm: ScopeId,
    users: usize,
    /// The workloads that match.
    pub(super) members: BTreeSet<WorkloadId>,
    /// What policies with this podSelector say: ingress, egress.
    pub(super) subjects: [Option<PolicySetId>; 2],
    /// The named ports that are resolved here.
    pub(super) families: Vec<NamedPortId>,
    /// The terms of it that some group has, by the hash of the set of each alone.
    pub(super) terms: BTreeMap<u128, Arc<Named>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Selections {
    spaces: Slab<NamespaceId, Space>,
    space_by_name: HashMap<String, NamespaceId>,
    spaces_by_label: Labelled<NamespaceId>,
    realms: Slab<ScopeId, Realm>,
    realm_by_scope: HashMap<Scope, ScopeId>,
    realms_by_label: Selectors<ScopeId>,
    selected: Slab<SelectorId, Selected>,
    /// By a hash of the selection.
    by_selection: HashMap<u64, Vec<SelectorId>>,
    /// New since the last look.
    fresh: Vec<SelectorId>,
    /// Perhaps without users.
    idle: BTreeSet<SelectorId>,
    /// Perhaps spoken of by nobody.
    empty: BTreeSet<NamespaceId>,
}

impl Selections {
    /// A selection.
    pub(super) fn get(&self, id: SelectorId) -> &Selected {
        &self.selected[id]
    }

    /// A selection, to tell it who uses it.
    pub(super) fn get_mut(&mut self, id: SelectorId) -> &mut Selected {
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
    pub(super) fn matching(&self, space: NamespaceId, labels: &Labels) -> Vec<SelectorId> {
        let space = &self.spaces[space];
        let marks = marks(labels);
        let mut matching: Vec<SelectorId> = Vec::new();
        for &realm in space.own.iter().chain(&space.realms) {
            let candidates = self.realms[realm].by_label.candidates(&marks);
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
        let realm = self.realm(&selection.scope);
        let id = self.selected.insert(Selected {
            selection: selection.clone(),
            realm,
            users: 1,
            members: BTreeSet::new(),
            subjects: [None; 2],
            families: Vec::new(),
            terms: BTreeMap::new(),
        });
        self.realms[realm].selections += 1;
        self.realms[realm].by_label.insert(id, &selection.pods);
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

    /// The workloads that selections match that are new since the last call.
    pub(super) fn rows_of_fresh(&mut self) -> BTreeSet<WorkloadId> {
        let mut rows = BTreeSet::new();
        for id in std::mem::take(&mut self.fresh) {
            let Selected {
                selection, realm, ..
            } = &self.selected[id];
            for &space in &self.realms[*realm].spaces {
                rows.extend(self.spaces[space].rows.matching(&selection.pods));
            }
        }
        rows
    }

    /// Removes the selections that have no users, and what nobody speaks of any more. Returns each one with those who
    /// were in it.
    pub(super) fn sweep(&mut self) -> BTreeMap<SelectorId, BTreeSet<WorkloadId>> {
        let mut swept = BTreeMap::new();
        for id in std::mem::take(&mut self.idle) {
            if self.selected[id].users > 0 {
                continue;
            }
            let gone = self.selected.remove(id);
            debug_assert!(gone.terms.is_empty() && gone.families.is_empty());
            self.forget(id, &gone.selection);
            let realm = &mut self.realms[gone.realm];
            realm.by_label.remove(id, &gone.selection.pods);
            realm.selections -= 1;
            if realm.selections == 0 {
                self.remove_realm(gone.realm);
            }
            swept.insert(id, gone.members);
        }
        for id in std::mem::take(&mut self.empty) {
            self.remove_space_if_empty(id);
        }
        swept
    }

    fn forget(&mut self, id: SelectorId, selection: &Selection) {
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

    /// Takes note of a namespace's object, or that it is gone. Returns the workloads for which that may matter.
    pub(super) fn set_space(
        &mut self,
        name: &str,
        labels: Option<&Arc<Labels>>,
    ) -> Vec<WorkloadId> {
        let id = self.space(name);
        let space = &mut self.spaces[id];
        space.has_object = labels.is_some();
        if labels.is_none() {
            self.empty.insert(id);
        }
        let labels = labels.cloned().unwrap_or_default();
        if space.labels == labels {
            return Vec::new();
        }
        space.labels = labels.clone();
        self.spaces_by_label.insert(id, &labels);
        let realms = self.realms_of(&labels);
        let before = std::mem::replace(&mut self.spaces[id].realms, realms.clone());
        for &realm in before.difference(&realms) {
            self.realms[realm].spaces.remove(&id);
        }
        for &realm in realms.difference(&before) {
            self.realms[realm].spaces.insert(id);
        }
        if before == realms {
            return Vec::new();
        }
        self.spaces[id].rows.ids().collect()
    }

    /// One more workload in a namespace.
    pub(super) fn move_in(&mut self, name: &str) -> NamespaceId {
        let id = self.space(name);
        self.spaces[id].residents += 1;
        id
    }

    /// One workload less.
    pub(super) fn move_out(&mut self, id: NamespaceId) {
        self.spaces[id].residents -= 1;
        self.empty.insert(id);
    }

    /// Makes a workload visible to selections, with these labels; or, with none, invisible.
    pub(super) fn show(
        &mut self,
        row: WorkloadId,
        space: NamespaceId,
        labels: Option<&Arc<Labels>>,
    ) {
        match labels {
            Some(labels) => self.spaces[space].rows.insert(row, labels),
            None => self.spaces[space].rows.remove(row),
        }
    }

    fn space(&mut self, name: &str) -> NamespaceId {
        if let Some(&id) = self.space_by_name.get(name) {
            return id;
        }
        let labels = Arc::<Labels>::default();
        let realms = self.realms_of(&labels);
        let id = self.spaces.insert(Space {
            name: name.into(),
            realms: realms.clone(),
            labels: labels.clone(),
            ..Space::default()
        });
        for realm in realms {
            self.realms[realm].spaces.insert(id);
        }
        self.space_by_name.insert(name.into(), id);
        self.spaces_by_label.insert(id, &labels);
        id
    }

    fn remove_space_if_empty(&mut self, id: NamespaceId) {
        let Some(space) = self.spaces.get(id) else {
            return;
        };
        if space.has_object || space.residents > 0 || space.own.is_some() {
            return;
        }
        let space = self.spaces.remove(id);
        for realm in space.realms {
            self.realms[realm].spaces.remove(&id);
        }
        self.space_by_name.remove(&space.name);
        self.spaces_by_label.remove(id);
    }

    /// The scopes that a namespace with these labels is in by them.
    fn realms_of(&self, labels: &Labels) -> BTreeSet<ScopeId> {
        let marks = marks(labels);
        let candidates = self.realms_by_label.candidates(&marks);
        let matches = |id: &ScopeId| match &self.realms[*id].scope {
            Scope::Matching(selector) => selector.matches(labels),
            Scope::Namespace(_) => false,
        };
        candidates.filter(matches).collect()
    }

    fn realm(&mut self, scope: &Scope) -> ScopeId {
        if let Some(&id) = self.realm_by_scope.get(scope) {
            return id;
        }
        let spaces: BTreeSet<NamespaceId> = match scope {
            Scope::Namespace(name) => BTreeSet::from([self.space(name)]),
            Scope::Matching(selector) => self
                .spaces_by_label
                .matching(selector)
                .into_iter()
                .collect(),
        };
        let id = self.realms.insert(Realm {
            scope: scope.clone(),
            spaces: spaces.clone(),
            selections: 0,
            by_label: Selectors::default(),
        });
        self.realm_by_scope.insert(scope.clone(), id);
        match scope {
            Scope::Namespace(_) => {
                for space in spaces {
                    self.spaces[space].own = Some(id);
                }
            }
            Scope::Matching(selector) => {
                for space in spaces {
                    self.spaces[space].realms.insert(id);
                }
                self.realms_by_label.insert(id, selector);
            }
        }
        id
    }

    fn remove_realm(&mut self, id: ScopeId) {
        let realm = self.realms.remove(id);
        self.realm_by_scope.remove(&realm.scope);
        if let Scope::Matching(selector) = &realm.scope {
            self.realms_by_label.remove(id, selector);
        }
        for space in realm.spaces {
            let of = &mut self.spaces[space];
            of.realms.remove(&id);
            if of.own == Some(id) {
                of.own = None;
                self.empty.insert(space);
            }
        }
    }
}

fn hash(scope: ScopeRef<'_>, pods: &LabelSelector) -> u64 {
    let mut hasher = DefaultHasher::new();
    (scope, pods).hash(&mut hasher);
    hasher.finish()
}
