//! Cutting the parts of a plan into batches that the socket takes, keeping apart those that make chains from those that
//! lead to them, and stamping each. It changes no order.

use std::{collections::BTreeSet, net::IpAddr};

use sallyport_nft::{
    command::{Command, Element, Match, SetKind, Verdict},
    encode,
};

use crate::{
    plan::{Installed, Limits, Review, Step},
    table::stamp::Stamp,
};

/// The most commands that a batch has, if it can be cut.
pub(super) const COMMANDS: usize = 256;

/// The fewest commands after which a batch is cut: each batch has a price of its own.
const COMMANDS_LEAST: usize = 8;

/// The most sets that the kernel looks at for the commands of a batch. It finds a set by walking the list of all sets
/// of the table. Meanwhile it holds back all other commits of the namespace, that of a lease too, and kernels without
/// preemption (`PREEMPT_NONE`) let nothing else run on that processor.
const SETS_LOOKED_AT: usize = 200_000;

/// Commands that must be in one batch.
pub(super) type Atom = Vec<Command>;

/// Commands that may be cut into batches between atoms, and what must be done before them: packets under way must be
/// through, connections must be flushed or reviewed.
#[derive(Default)]
pub(super) struct Part {
    pub(super) atoms: Vec<Atom>,
    pub(super) grace: bool,
    pub(super) flush: BTreeSet<IpAddr>,
    pub(super) review: Option<Review>,
}

impl Part {
    pub(super) fn new(atoms: Vec<Atom>) -> Part {
        Part {
            atoms,
            ..Part::default()
        }
    }

    /// Commands that may be in different batches.
    pub(super) fn of(commands: Vec<Command>) -> Part {
        Part::new(commands.into_iter().map(|command| vec![command]).collect())
    }

    /// The same part, committed when packets that were under way before it are through.
    pub(super) fn after_grace(self) -> Part {
        Part {
            grace: true,
            ..self
        }
    }

    /// Commands that must be in one batch.
    pub(super) fn whole(commands: Atom) -> Part {
        Part::new(vec![commands])
    }
}

/// The purpose of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PlanKind {
    /// Creates a table.
    Table,
    /// Changes the policy that a table enforces.
    Update,
    /// Rewrites the frame of a table; the policy stays.
    Frame,
}

/// Cuts parts into batches of a size that the socket takes, for steps that are not stamped.
pub(super) fn cut(parts: Vec<Part>, limits: Limits) -> Vec<Step> {
    // The commands change nothing, and yet the kernel's generation moves.
    let nothing = "nothing".to_owned();
    let made = Command::AddChain {
        name: nothing.clone(),
        base: None,
        comment: String::new(),
    };
    apart(
        batches(parts, limits),
        &[made, Command::DeleteChain(nothing)],
    )
}

/// A part may be cut between any two atoms: what it prepares cannot be reached, and what can be reached changes one
/// way.
pub(super) fn batches(parts: Vec<Part>, limits: Limits) -> Vec<Step> {
    let most = commands_at_once(&parts);
    let mut steps: Vec<Step> = Vec::new();
    for part in parts {
        let Part {
            atoms,
            mut grace,
            mut flush,
            mut review,
        } = part;
        let (mut size, mut commands) = (0, Vec::new());
        for atom in atoms
            .into_iter()
            .flat_map(|atom| split(atom, limits.batch / 2))
        {
            let bytes: usize = atom.iter().map(encode::size_bound).sum();
            let is_full = size + bytes > limits.batch || commands.len() + atom.len() > most;
            if is_full && !commands.is_empty() {
                steps.push(Step {
                    commands: std::mem::take(&mut commands),
                    grace: std::mem::take(&mut grace),
                    flush: std::mem::take(&mut flush),
                    review: review.take(),
                });
                size = 0;
            }
            size += bytes;
            commands.extend(atom);
        }
        // Connections are flushed and reviewed before a step, even if nothing but the stamp changes in it.
        if !commands.is_empty() || !flush.is_empty() || review.is_some() {
            steps.push(Step {
                commands,
                grace,
                flush,
                review,
            });
        }
    }
    steps
}

/// The most commands of a batch. There are at least about as many sets in the table as parts name.
fn commands_at_once(parts: &[Part]) -> usize {
    let names_a_set = |command: &&Command| {
        matches!(
            command,
            Command::AddSet { .. }
                | Command::FlushSet(_)
                | Command::DeleteSet(_)
                | Command::AddElements(..)
                | Command::DeleteElements(..)
        )
    };
    let commands = parts.iter().flat_map(|part| &part.atoms).flatten();
    let sets = commands.filter(names_a_set).count();
    (SETS_LOOKED_AT / sets.max(1)).clamp(COMMANDS_LEAST, COMMANDS)
}

/// Puts a step that does `nothing` between one that makes chains, rules of theirs, or ranges, and the next, if that
/// leads to them.
///
/// A rule is in one of two copies of its chain until the commit after the one that made it. A lookup that began before
/// that one may find what the batch after it adds, before it is committed, and lead a packet to the copy without it
/// (docs/KERNEL.md). With a commit in between there is none. Ranges, too, are found one commit late.
fn apart(steps: Vec<Step>, nothing: &[Command]) -> Vec<Step> {
    let mut result: Vec<Step> = Vec::new();
    for step in steps {
        let before = result.last().map(made).unwrap_or_default();
        if !before.is_empty() && leads_to(&step, &before) {
            result.push(Step {
                commands: nothing.to_vec(),
                ..Step::default()
            });
        }
        result.push(step);
    }
    result
}

/// The chains and the sets of ranges that a step makes.
fn made(step: &Step) -> BTreeSet<&str> {
    let commands = step.commands.iter();
    commands
        .filter_map(|command| match command {
            Command::AddChain { name, .. }
            | Command::AddRule(name, _)
            | Command::InsertRule(name, ..)
            | Command::AddElements(name, SetKind::Ranges(_), _) => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

/// Whether packets get by a step to one of some chains, or look into one of some sets.
fn leads_to(step: &Step, made: &BTreeSet<&str>) -> bool {
    let to = |verdict: &Verdict| verdict.chain().is_some_and(|chain| made.contains(chain));
    let into = |condition: &Match| condition.set().is_some_and(|set| made.contains(set));
    step.commands.iter().any(|command| match command {
        Command::AddRule(_, rule) | Command::InsertRule(_, rule, _) => {
            rule.verdicts().any(to) || rule.matches.iter().any(into)
        }
        Command::AddElements(_, SetKind::Verdicts(_), elements) => elements
            .iter()
            .any(|element| matches!(element, Element::Verdict(_, verdict, _) if to(verdict))),
        _ => false,
    })
}

/// Cuts parts into batches, and stamps each with what they lead to.
pub(super) fn steps(
    parts: Vec<Part>,
    after: &Installed,
    limits: Limits,
    kind: PlanKind,
) -> Vec<Step> {
    let mut steps = apart(batches(parts, limits), &[]);
    if steps.is_empty() {
        steps.push(Step::default());
    }
    let all = u32::try_from(steps.len()).expect("memory ends before 2^32 steps");
    for (done, step) in (1..).zip(&mut steps) {
        let progress = (done < all).then_some((done, all));
        let stamp = Stamp {
            frame: kind == PlanKind::Frame && progress.is_some(),
            ..after.stamp(progress)
        };
        // The table's first batch makes the stamp, all others replace it.
        let fresh = kind == PlanKind::Table && done == 1;
        step.commands.extend(stamp.write(fresh));
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
