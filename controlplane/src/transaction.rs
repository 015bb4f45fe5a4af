//! A list of edits against a cluster: the cluster as it would be and what changes, or everything that is wrong with
//! the list. Pure: it commits nothing.
//!
//! Edits are applied in order. References (to namespaces, nodes) are checked after all edits, so that an edit may refer
//! to an object that a later one puts.

mod bound;
mod moves;
mod port_names;
mod rules;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, sync::Arc};

use sallyport_policy::Revision;
use sallyport_proto::object::{Kind, ObjectKey};

use crate::{
    cluster::{Cluster, Stored},
    contests,
    history::{Committed, Event, Replaced},
    manifest,
    model::Object,
};

/// The most edits that a transaction may have.
pub const MAX_EDITS: usize = 100_000;

/// The largest an object may be, as JSON: as in etcd.
pub const MAX_OBJECT: usize = 3 << 19;

/// One change of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit {
    /// The text that asked for it, a file's name: problems begin with it. Empty when no text did.
    pub source: Arc<str>,
    pub op: Op,
}

/// The operation on an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Create or replace it.
    Put(Object),
    /// Delete it; with a namespace, what is in it too.
    Delete(ObjectKey),
}

impl Op {
    fn key(&self) -> &ObjectKey {
        match self {
            Op::Put(object) => &object.key,
            Op::Delete(key) => key,
        }
    }
}

/// The effect of a transaction on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The object is new.
    Created,
    /// The object existed and is different now.
    Configured,
    /// The object is as before.
    Unchanged,
    /// The object is gone.
    Deleted,
}

/// The change of one object by a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: ObjectKey,
    pub action: Action,
}

/// The kinds of reason why a transaction is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The edit makes no sense, whatever is stored.
    Invalid,
    /// The edit names an object that does not exist.
    NotFound,
    /// The edit claims a name or an address that another object has.
    AlreadyExists,
}

/// One thing that is wrong with a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem.
    pub reason: Reason,
    /// The problem, on one line: the source, the object, the cause.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<manifest::Problem> for Problem {
    fn from(problem: manifest::Problem) -> Problem {
        Problem {
            reason: Reason::Invalid,
            message: problem.to_string(),
        }
    }
}

/// A transaction that can be committed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The cluster after it.
    pub cluster: Cluster,
    /// The changes, one entry an object, in the order of the edits.
    pub changes: Vec<Change>,
    /// The transaction to commit, without a time; `None` when it changes nothing.
    pub committed: Option<Committed>,
    /// The warnings for an operator, each on one line. The last line counts the warnings that are left out.
    pub warnings: Vec<String>,
    /// The step to commit before: the removal of the workloads whose addresses go to another node.
    pub removal: Option<Step>,
}

/// A transaction that is a part of another one.
#[derive(Clone, Debug)]
pub struct Step {
    /// The cluster after it.
    pub cluster: Cluster,
    /// The transaction to commit, without a time.
    pub committed: Committed,
}

/// Applies edits to a copy of the cluster, as a revision, or as two if addresses go to another node. Returns all
/// problems if any edit has one.
pub fn apply(
    base: &Cluster,
    edits: Vec<Edit>,
    revision: Revision,
) -> Result<Outcome, Vec<Problem>> {
    if edits.len() > MAX_EDITS {
        return Err(vec![Problem {
            reason: Reason::Invalid,
            message: format!(
                "the transaction has {} edits: the limit is {MAX_EDITS}; split it",
                edits.len()
            ),
        }]);
    }
    let mut draft = Draft::on(base, revision);
    for edit in edits {
        draft.apply(edit);
    }
    draft.finish()
}

/// Whether what objects refer to is there, of a whole cluster: the first thing that is not.
pub fn consistent(cluster: &Cluster) -> Result<(), Problem> {
    for stored in cluster.objects() {
        let key = &stored.object.key;
        if let Some((reason, message)) = rules::broken(cluster, cluster, key).into_iter().next() {
            return Err(Problem {
                reason,
                message: format!("{key}: {message}"),
            });
        }
    }
    Ok(())
}

/// A transaction under way.
struct Draft<'a> {
    base: &'a Cluster,
    cluster: Cluster,
    revision: Revision,
    /// Every object that an edit names or takes along, in order, with the last source that named it.
    touched: Vec<(ObjectKey, Arc<str>)>,
    places: HashMap<ObjectKey, usize>,
    problems: Vec<Problem>,
}

impl<'a> Draft<'a> {
    fn on(base: &'a Cluster, revision: Revision) -> Draft<'a> {
        Draft {
            base,
            cluster: base.clone(),
            revision,
            touched: Vec::new(),
            places: HashMap::new(),
            problems: Vec::new(),
        }
    }

    fn apply(&mut self, edit: Edit) {
        let Edit { source, op } = edit;
        self.touch(op.key().clone(), &source);
        match op {
            Op::Put(object) => self.put(object, &source),
            Op::Delete(key) => self.delete(&key, &source),
        }
    }

    fn put(&mut self, object: Object, source: &str) {
        let size = object.manifest.len();
        if size > MAX_OBJECT {
            let message =
                format!("the object is {size} bytes as JSON: the limit is {MAX_OBJECT} (1.5 MiB)");
            return self.problem(Reason::Invalid, &object.key, source, &message);
        }
        match self.base.get(&object.key) {
            // The same again keeps its revision, and its text.
            Some(stored) if manifest::is_same(&stored.object, &object) => {
                self.cluster.put_stored(stored.clone())
            }
            _ => self.cluster.put(object, self.revision),
        }
    }

    fn delete(&mut self, key: &ObjectKey, source: &Arc<str>) {
        if self.cluster.remove(key).is_none() {
            let message = not_found(key.kind, &key.name);
            return self.problem(Reason::NotFound, key, source, &message);
        }
        if key.kind == Kind::Namespace {
            let within = self.cluster.within(&key.name);
            let keys: Vec<_> = within.map(|stored| stored.object.key.clone()).collect();
            for key in keys {
                self.cluster.remove(&key);
                self.touch(key, source);
            }
        }
    }

    fn touch(&mut self, key: ObjectKey, source: &Arc<str>) {
        match self.places.get(&key) {
            Some(&place) => self.touched[place].1 = source.clone(),
            None => {
                self.places.insert(key.clone(), self.touched.len());
                self.touched.push((key, source.clone()));
            }
        }
    }

    /// Notes what is wrong with an object. One that is deleted by reference is not introduced: the message names it.
    fn problem(&mut self, reason: Reason, key: &ObjectKey, source: &str, message: &str) {
        let by_reference = self.cluster.get(key).is_none() && reason != Reason::Invalid;
        let message = match (source, by_reference) {
            ("", true) => message.to_owned(),
            ("", false) => format!("{key}: {message}"),
            (source, _) => format!("{source}: {key}: {message}"),
        };
        self.problems.push(Problem { reason, message });
    }

    fn finish(mut self) -> Result<Outcome, Vec<Problem>> {
        let touched = std::mem::take(&mut self.touched);
        for (key, source) in &touched {
            for (reason, message) in rules::broken(self.base, &self.cluster, key) {
                self.problem(reason, key, source, &message);
            }
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        let mut changes = Vec::with_capacity(touched.len());
        let (mut events, mut replaced) = (Vec::new(), Vec::new());
        let keys = touched.iter().map(|(key, _)| key);
        let warnings = contests::begun(self.base, &self.cluster, keys);
        for (key, _) in touched {
            let before = self.base.get(&key);
            let (action, event) = became(&key, before, self.cluster.get(&key));
            replaced.extend(before.filter(|_| event.is_some()).map(|stored| Replaced {
                key: key.clone(),
                manifest: stored.object.manifest.clone(),
            }));
            events.extend(event);
            changes.push(Change { key, action });
        }
        let committed = Committed {
            revision: self.revision,
            events,
            at_ms: None,
            before: Some(replaced),
        };
        let outcome = Outcome {
            cluster: self.cluster,
            changes,
            committed: Some(committed).filter(|committed| !committed.events.is_empty()),
            warnings,
            removal: None,
        };
        Ok(moves::split(self.base, outcome))
    }
}

/// The change of an object, for the caller and for the journal.
fn became(
    key: &ObjectKey,
    before: Option<&Arc<Stored>>,
    after: Option<&Arc<Stored>>,
) -> (Action, Option<Event>) {
    match (before, after) {
        (None, Some(after)) => (Action::Created, Some(Event::Put(after.clone()))),
        (Some(_), None) => (Action::Deleted, Some(Event::Delete(key.clone()))),
        (Some(before), Some(after)) if before.revision != after.revision => {
            (Action::Configured, Some(Event::Put(after.clone())))
        }
        // The same as before, or created and deleted by the same transaction.
        _ => (Action::Unchanged, None),
    }
}

/// The API server's words for what is not there.
pub fn not_found(kind: Kind, name: &str) -> String {
    format!("{} \"{name}\" not found", kind.resource())
}
