//! The recent transactions, as watchers are told them; the oldest go when there are too many. It holds what was
//! committed: it decides nothing and reads no journal.

use std::{collections::BTreeMap, sync::Arc};

use imbl::OrdMap;
use sallyport_policy::Revision;
use sallyport_proto::object::ObjectKey;

use crate::cluster::Stored;

/// A committed transaction: what became of each object that it changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The revision that the transaction is.
    pub revision: Revision,
    /// What it did, in the order of its edits; at most one event an object.
    pub events: Vec<Event>,
    /// When, in milliseconds since 1970; unknown of one that an earlier version journalled.
    pub at_ms: Option<u64>,
    /// The objects that it replaced or deleted, as they were; unknown of one that an earlier version journalled.
    pub before: Option<Vec<Replaced>>,
}

/// An object as it was before a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Which object.
    pub key: ObjectKey,
    /// The object as compact JSON, as it was put.
    pub manifest: Arc<str>,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It was created or replaced by this.
    Put(Arc<Stored>),
    /// It is gone.
    Delete(ObjectKey),
}

impl Event {
    /// Which object.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Event::Put(stored) => &stored.object.key,
            Event::Delete(key) => key,
        }
    }

    fn size(&self) -> usize {
        let key = self.key();
        let manifest = match self {
            Event::Put(stored) => stored.object.manifest.len(),
            Event::Delete(_) => 0,
        };
        key.namespace.len() + key.name.len() + manifest
    }
}

impl Committed {
    fn size(&self) -> usize {
        let events: usize = self.events.iter().map(Event::size).sum();
        let before = self.before.iter().flatten();
        events + before.map(|object| object.manifest.len()).sum::<usize>()
    }
}

/// How much of the past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At most this many transactions, and at least one.
    pub transactions: usize,
    /// At most this many bytes of manifests.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            transactions: 10_000,
            bytes: 256 << 20,
        }
    }
}

/// The longest run of recent transactions that is within the bounds. Cloning it is cheap.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    transactions: OrdMap<Revision, Arc<Committed>>,
    latest: Revision,
    bytes: usize,
    bounds: Bounds,
}

/// The transactions asked for are not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the transactions after revision {asked} are compacted: the history starts after revision {oldest}; list the \
     objects, then watch from the list's revision"
)]
pub struct Compacted {
    /// What was asked for.
    pub asked: Revision,
    /// The least that can be.
    pub oldest: Revision,
}

/// Why it is not known how objects were at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrecorded {
    /// What happened since is not kept any more.
    #[error(
        "the transactions after revision {asked} are compacted: the oldest revision for a rollback is {oldest}"
    )]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The least that can be.
        oldest: Revision,
    },
    /// A transaction since was journalled by a version that did not note what it replaced.
    #[error(
        "an earlier version wrote revision {revision} to the journal without the replaced objects: the oldest \
         revision for a rollback is {revision}"
    )]
    NotNoted {
        /// The last such transaction.
        revision: Revision,
    },
}

impl History {
    /// No transaction after a revision, yet.
    pub fn starting_after(revision: Revision, bounds: Bounds) -> History {
        History {
            transactions: OrdMap::new(),
            latest: revision,
            bytes: 0,
            bounds,
        }
    }

    /// Adds the next transaction, and drops what is too old.
    pub fn push(&mut self, committed: Arc<Committed>) {
        debug_assert_eq!(
            committed.revision,
            self.latest.next(),
            "revisions have no holes"
        );
        self.latest = committed.revision;
        self.bytes += committed.size();
        self.transactions.insert(committed.revision, committed);
        while self.transactions.len() > 1
            && (self.transactions.len() > self.bounds.transactions
                || self.bytes > self.bounds.bytes)
        {
            if let Some((revision, oldest)) = self.transactions.get_min().cloned() {
                self.bytes -= oldest.size();
                self.transactions.remove(&revision);
            }
        }
    }

    /// The revision of the latest transaction.
    pub fn latest(&self) -> Revision {
        self.latest
    }

    /// The least revision of which all later transactions are here.
    pub fn oldest(&self) -> Revision {
        self.transactions
            .get_min()
            .map_or(self.latest, |(revision, _)| revision.previous())
    }

    /// The transactions before a revision, the latest first.
    pub fn before(&self, revision: Revision) -> impl Iterator<Item = &Arc<Committed>> + use<'_> {
        let earlier = self.transactions.range(..revision).rev();
        earlier.map(|(_, committed)| committed)
    }

    /// The objects that changed after a revision, as they were at it; `None` for those that were not there.
    pub fn undone(
        &self,
        to: Revision,
    ) -> Result<BTreeMap<&ObjectKey, Option<&Arc<str>>>, Unrecorded> {
        let later = self.after(to);
        let later =
            later.map_err(|Compacted { asked, oldest }| Unrecorded::Compacted { asked, oldest })?;
        let mut objects = BTreeMap::new();
        let mut not_noted = None;
        for committed in later {
            let Some(before) = &committed.before else {
                not_noted = Some(committed.revision);
                continue;
            };
            let before: BTreeMap<_, _> = before
                .iter()
                .map(|object| (&object.key, &object.manifest))
                .collect();
            for key in committed.events.iter().map(Event::key) {
                let was = before.get(key).copied();
                objects.entry(key).or_insert(was);
            }
        }
        match not_noted {
            Some(revision) => Err(Unrecorded::NotNoted { revision }),
            None => Ok(objects),
        }
    }

    /// The transactions after a revision, in order.
    pub fn after(
        &self,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &Arc<Committed>> + use<'_>, Compacted> {
        let oldest = self.oldest();
        if revision < oldest {
            return Err(Compacted {
                asked: revision,
                oldest,
            });
        }
        let later = self.transactions.range(revision.next()..);
        Ok(later.map(|(_, committed)| committed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sallyport_proto::object::Kind;

    fn committed(revision: Revision, name: &str) -> Arc<Committed> {
        let key = ObjectKey {
            kind: Kind::Node,
            namespace: String::new(),
            name: name.to_owned(),
        };
        Arc::new(Committed {
            revision,
            events: vec![Event::Delete(key)],
            at_ms: None,
            before: None,
        })
    }

    #[test]
    fn keeps_the_longest_run_within_the_bounds() {
        let mut history = History::starting_after(
            Revision(0),
            Bounds {
                transactions: 3,
                bytes: 10,
            },
        );
        assert_eq!(history.oldest(), Revision(0));
        assert_eq!(history.after(Revision(0)).map(Iterator::count), Ok(0));
        for revision in 1..=5 {
            history.push(committed(Revision(revision), "n"));
        }
        assert_eq!(
            (history.oldest(), history.latest()),
            (Revision(2), Revision(5))
        );
        let seen: Vec<_> = history
            .after(Revision(3))
            .unwrap()
            .map(|committed| committed.revision)
            .collect();
        assert_eq!(seen, [Revision(4), Revision(5)]);
        assert_eq!(
            history.after(Revision(1)).err(),
            Some(Compacted {
                asked: Revision(1),
                oldest: Revision(2)
            })
        );
        assert_eq!(
            history.after(Revision(u64::MAX)).map(Iterator::count),
            Ok(0)
        );

        history.push(committed(Revision(6), "nine-long"));
        assert_eq!(history.oldest(), Revision(4), "9 + 1 bytes");
        history.push(committed(Revision(7), "longer than the bound"));
        assert_eq!(history.oldest(), Revision(6), "the latest is always there");
    }
}
