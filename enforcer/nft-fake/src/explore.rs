//! Every verdict that a packet may meet while commits go on: all mixes of generations that its looks at the table can
//! see. This module changes nothing.
//!
//! A packet's time only goes forward. So of two ways to one place the earlier one sees all that the later one sees.
//! Each place is looked at once, from its earliest time on.

use std::{fmt, ops::RangeInclusive, rc::Rc};

use rustc_hash::FxHashMap;

use crate::{
    FakeKernel, Judgement, Packet, RulesetGeneration,
    compile::{Hit, Target},
    walk::{Need, Position, Seen, copy_of},
};

/// The possible verdicts on a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Whether the packet may pass.
    pub can_pass: bool,
    /// Whether the packet may be dropped.
    pub can_drop: bool,
}

/// A packet's way to its verdict: each look at the table, its time and its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// A line for each look, in order.
    pub looks: Vec<String>,
    /// The verdict on the packet.
    pub judgement: Judgement,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for look in &self.looks {
            writeln!(f, "{look}")?;
        }
        match self.judgement {
            Judgement::Pass => f.write_str("so it passes"),
            Judgement::Drop => f.write_str("so it is dropped"),
        }
    }
}

/// A place that a packet came to, with the place before it, the outcome of the look there, and the time.
struct Node {
    position: Rc<Position>,
    before: usize,
    seen: Option<(RulesetGeneration, RulesetGeneration, Seen)>,
    end: Option<Judgement>,
}

struct Search<'a> {
    kernel: &'a FakeKernel,
    packet: &'a Packet,
    from: RulesetGeneration,
    to: RulesetGeneration,
    nodes: Vec<Node>,
    earliest: FxHashMap<Rc<Position>, RulesetGeneration>,
    open: Vec<(usize, RulesetGeneration)>,
}

pub(super) fn verdicts(
    kernel: &FakeKernel,
    packet: &Packet,
    generations: RangeInclusive<RulesetGeneration>,
) -> Verdicts {
    let mut verdicts = Verdicts::default();
    let mut search = Search::new(kernel, packet, generations);
    while !(verdicts.can_pass && verdicts.can_drop) {
        match search.next_end() {
            Some(node) if search.nodes[node].end == Some(Judgement::Pass) => {
                verdicts.can_pass = true;
            }
            Some(_) => verdicts.can_drop = true,
            None => break,
        }
    }
    verdicts
}

pub(super) fn explain(
    kernel: &FakeKernel,
    packet: &Packet,
    generations: RangeInclusive<RulesetGeneration>,
    judgement: Judgement,
) -> Option<Trace> {
    let mut search = Search::new(kernel, packet, generations);
    loop {
        let node = search.next_end()?;
        if search.nodes[node].end == Some(judgement) {
            return Some(Trace {
                looks: search.describe(node),
                judgement,
            });
        }
    }
}

impl<'a> Search<'a> {
    fn new(
        kernel: &'a FakeKernel,
        packet: &'a Packet,
        generations: RangeInclusive<RulesetGeneration>,
    ) -> Search<'a> {
        let from = (*generations.start()).max(kernel.horizon);
        let start = Node {
            position: Rc::new(Position::start()),
            before: 0,
            seen: None,
            end: None,
        };
        Search {
            kernel,
            packet,
            from,
            to: (*generations.end()).min(kernel.generation),
            nodes: vec![start],
            earliest: FxHashMap::default(),
            open: vec![(0, from)],
        }
    }

    /// The next place at which the packet's way ends.
    fn next_end(&mut self) -> Option<usize> {
        while let Some((node, now)) = self.open.pop() {
            if self.nodes[node].end.is_some() {
                return Some(node);
            }
            if self
                .earliest
                .get(&self.nodes[node].position)
                .is_some_and(|&earlier| earlier < now)
            {
                continue;
            }
            for (then, view, seen) in self.views(node, now) {
                self.follow(node, then, view, seen);
            }
        }
        None
    }

    fn follow(
        &mut self,
        before: usize,
        then: RulesetGeneration,
        view: RulesetGeneration,
        seen: Seen,
    ) {
        let mut position = Position::clone(&self.nodes[before].position);
        let end = position.go_on(&seen, self.packet);
        let position = Rc::new(position);
        if end.is_none() && !self.is_one_way() {
            match self.earliest.get_mut(&position) {
                Some(earliest) if *earliest <= then => return,
                Some(earliest) => *earliest = then,
                None => {
                    self.earliest.insert(position.clone(), then);
                }
            }
        }
        self.nodes.push(Node {
            position,
            before,
            seen: Some((then, view, seen)),
            end,
        });
        self.open.push((self.nodes.len() - 1, then));
    }

    /// Whether a packet sees but one outcome at each place, and so comes to none twice.
    fn is_one_way(&self) -> bool {
        self.from == self.to && self.from == self.kernel.horizon
    }

    /// The outcomes that a packet may see at a place from a time on. Each has its earliest time, its generation, and
    /// the outcome itself.
    fn views(
        &self,
        node: usize,
        now: RulesetGeneration,
    ) -> Vec<(RulesetGeneration, RulesetGeneration, Seen)> {
        let position = &self.nodes[node].position;
        let table = &self.kernel.table;
        let mut views: Vec<(RulesetGeneration, RulesetGeneration, Seen)> = Vec::new();
        let mut add = |then, view, seen: Seen| {
            if !views.iter().any(|(.., there)| *there == seen) {
                views.push((then, view, seen));
            }
        };
        let late = position.is_late(table);
        for then in now..=self.to {
            let is_last = then == self.to;
            match position.need {
                Need::Hooks => {
                    add(then, then, Seen::Hooks(table.hooks(then, false)));
                    if !is_last {
                        add(then, then, Seen::Hooks(table.hooks(then, true)));
                    }
                }
                Need::Parity(_) => add(then, then, Seen::Parity(then % 2 == 1)),
                Need::Rules(chain) => {
                    let copy = copy_of(position.odd, then);
                    add(then, copy, Seen::Rules(table.rules(chain, copy).clone()));
                    // A commit writes its copy of the rules before it moves the generation.
                    if copy < then && !is_last {
                        let early = then + 1;
                        add(then, early, Seen::Rules(table.rules(chain, early).clone()));
                    }
                }
                Need::Lookup => {
                    if late && then > self.kernel.horizon {
                        let view = then - 1;
                        let hit = position.find(self.packet, table, view);
                        add(then, view, Seen::Lookup(hit));
                    }
                    let hit = position.find(self.packet, table, then);
                    add(then, then, Seen::Lookup(hit));
                    for hit in self.early(position, now, then) {
                        add(then, then + 1, Seen::Lookup(hit));
                    }
                }
            }
        }
        views
    }

    /// The outcomes that a lookup has by a batch that is not committed when the lookup reads an element, at `then`; the
    /// lookup began at `now` or later.
    ///
    /// A lookup samples the parity of the generation, and reads an element at some later moment. When one commit lies
    /// in between, the sampled parity is that of the next generation. The lookup then finds all elements that the next
    /// batch has added so far, also if that batch is refused in the end. A miss is tried again where the kernel sees
    /// that the generation moved meanwhile (Linux 6.17).
    fn early(
        &self,
        position: &Position,
        now: RulesetGeneration,
        then: RulesetGeneration,
    ) -> Vec<Hit> {
        let table = &self.kernel.table;
        let mut hits = Vec::new();
        if position.is_late(table) {
            return hits;
        }
        if then > now {
            hits = position.find_refused(self.packet, table, then);
        }
        if then > now && then < self.to {
            hits.push(position.find(self.packet, table, then + 1));
        }
        if self.kernel.retries {
            hits.retain(|hit| *hit != Hit::Miss);
        } else if then < self.to && position.is_replaced_after(self.packet, table, then) {
            hits.push(Hit::Miss);
        }
        hits
    }

    /// Describes the looks that led to a place.
    fn describe(&self, mut node: usize) -> Vec<String> {
        let mut looks = Vec::new();
        while let Some((then, view, seen)) = &self.nodes[node].seen {
            let before = self.nodes[node].before;
            let what = self.describe_look(&self.nodes[before].position, seen);
            let mut line = format!("generation {then}: {what}");
            if view != then {
                line += &format!(" (as of generation {view})");
            }
            looks.push(line);
            node = before;
        }
        looks.reverse();
        looks
    }

    fn describe_look(&self, position: &Position, seen: &Seen) -> String {
        let name = |id| self.kernel.table.chain(id).name.as_str();
        match (position.need, seen) {
            (_, Seen::Hooks(hooks)) if hooks.is_empty() => "there is no base chain".into(),
            (_, Seen::Hooks(hooks)) => {
                let names: Vec<&str> = hooks.iter().map(|&id| name(id)).collect();
                format!("the hook calls {}", names.join(", "))
            }
            (Need::Parity(chain), Seen::Parity(odd)) => {
                let parity = if *odd { "odd" } else { "even" };
                format!("enters {}, for {parity} generations", name(chain))
            }
            (Need::Rules(chain), Seen::Rules(rules)) => {
                format!("{} has {} rules", name(chain), rules.len())
            }
            (_, Seen::Lookup(hit)) => {
                let found = match hit {
                    Hit::Miss => "not there".to_owned(),
                    Hit::Found => "there".to_owned(),
                    Hit::Verdict(Target::Goto(chain)) => format!("goto {}", name(*chain)),
                    Hit::Verdict(Target::Jump(chain)) => format!("jump {}", name(*chain)),
                    Hit::Verdict(target) => format!("{target:?}").to_lowercase(),
                };
                format!("`{}`: {found}", position.rule().source)
            }
            _ => unreachable!("it sees what it looked at"),
        }
    }
}
