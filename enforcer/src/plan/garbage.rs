//! The objects that plans leave behind, and their deletion. It plans no update.

use std::collections::BTreeSet;

use sallyport_nft::command::Command;

use crate::plan::{
    Limits, Plan,
    batches::{Part, batches},
};

/// Kernel objects that no packet can reach any more, to be deleted when those that could are through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Chains, by name.
    pub chains: BTreeSet<String>,
    /// Sets and maps, by name.
    pub sets: BTreeSet<String>,
}

impl Garbage {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty()
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.chains.len() + self.sets.len()
    }

    /// Takes in what a plan left behind, and out what it makes again.
    pub fn after(&mut self, plan: &Plan) {
        let made = Garbage::made_by(plan.steps.iter().flat_map(|step| &step.commands));
        self.chains.retain(|name| !made.chains.contains(name));
        self.sets.retain(|name| !made.sets.contains(name));
        self.extend(plan.garbage.clone());
    }

    /// Takes in what else is garbage.
    pub fn extend(&mut self, other: Garbage) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
    }

    /// Takes out what is not in a table of these chains and sets.
    pub fn retain(&mut self, chains: &BTreeSet<String>, sets: &BTreeSet<String>) {
        self.chains.retain(|name| chains.contains(name));
        self.sets.retain(|name| sets.contains(name));
    }

    /// Takes out what commands delete.
    pub fn without_deleted(&mut self, commands: &[Command]) {
        for command in commands {
            match command {
                Command::DeleteChain(name) => drop(self.chains.remove(name)),
                Command::DeleteSet(name) => drop(self.sets.remove(name)),
                _ => {}
            }
        }
    }

    /// The objects that commands make.
    pub(super) fn made_by<'a>(commands: impl IntoIterator<Item = &'a Command>) -> Garbage {
        let mut made = Garbage::default();
        for command in commands {
            match command {
                Command::AddChain { name, .. } => made.chains.insert(name.clone()),
                Command::AddSet { name, .. } => made.sets.insert(name.clone()),
                _ => false,
            };
        }
        made
    }

    /// The commands that delete all of it: first what refers, then what is referred to. A map may lead to chains.
    pub fn delete(&self) -> Vec<Command> {
        let flush = self.chains.iter().cloned().map(Command::FlushChain);
        let sets = self.sets.iter().cloned().map(Command::DeleteSet);
        let chains = self.chains.iter().cloned().map(Command::DeleteChain);
        flush.chain(sets).chain(chains).collect()
    }

    /// The same commands in the same order, in batches that the socket takes and that are done soon.
    pub fn delete_in_batches(&self, limits: Limits) -> Vec<Vec<Command>> {
        let steps = batches(vec![Part::of(self.delete())], limits);
        steps.into_iter().map(|step| step.commands).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::batches::COMMANDS;

    #[test]
    fn batches_are_short_and_in_order() {
        let names = |word: &str| (0..300).map(|n| format!("{word}-{n}")).collect();
        let garbage = Garbage {
            chains: names("chain"),
            sets: names("set"),
        };
        for (batch, most) in [(1 << 20, COMMANDS), (2_000, 50)] {
            let batches = garbage.delete_in_batches(Limits { batch });
            assert!(batches.iter().all(|batch| batch.len() <= most), "{batch}");
            assert_eq!(batches.concat(), garbage.delete());
        }
        let mut left = garbage.clone();
        left.without_deleted(&garbage.delete()[..301]);
        let first = garbage.sets.iter().next().expect("there are some");
        assert_eq!(left.chains, garbage.chains);
        assert_eq!(left.sets.len(), 299);
        assert!(!left.sets.contains(first));
        left.without_deleted(&garbage.delete());
        assert!(left.is_empty());
    }
}
