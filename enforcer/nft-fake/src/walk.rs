//! One packet's way through the rules, up to each moment at which the kernel reads a state that a commit may change.
//! This module does not choose the outcome of such a read: its callers do.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::{
    FakeKernel, Packet, RulesetGeneration,
    compile::{Hit, Rule, Target},
    table::{ChainId, Rules, Table},
};

/// The verdict on a packet at the forward hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Judgement {
    /// The packet goes on.
    Pass,
    /// The packet is dropped.
    Drop,
}

/// The position of a packet in its copy of a chain's rules.
#[derive(Clone, Debug)]
struct RuleCursor {
    rules: Rules,
    at: usize,
}

/// The next state that a packet reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Need {
    /// The list of base chains.
    Hooks,
    /// The parity of the generation, at the entry of a base chain. The parity decides which copy of the rules the
    /// packet reads.
    Parity(ChainId),
    /// The packet's copy of a chain's rules.
    Rules(ChainId),
    /// An element of the set of the packet's present check.
    Lookup,
}

/// The place of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Position {
    pub(super) need: Need,
    /// The base chains to come, the next one last.
    hooks: Vec<ChainId>,
    pub(super) odd: bool,
    /// The places where the packet goes on after its jumps.
    stack: Vec<RuleCursor>,
    here: RuleCursor,
    check: usize,
}

/// The outcome of a look at the table.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// The base chains, first to last.
    Hooks(Vec<ChainId>),
    /// The generation's parity.
    Parity(bool),
    /// A chain's rules.
    Rules(Rules),
    /// A lookup's outcome.
    Lookup(Hit),
}

impl PartialEq for RuleCursor {
    fn eq(&self, other: &RuleCursor) -> bool {
        Arc::ptr_eq(&self.rules, &other.rules) && self.at == other.at
    }
}

impl Eq for RuleCursor {}

impl Hash for RuleCursor {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Arc::as_ptr(&self.rules) as usize, self.at).hash(state);
    }
}

impl PartialEq for Seen {
    fn eq(&self, other: &Seen) -> bool {
        match (self, other) {
            (Seen::Hooks(a), Seen::Hooks(b)) => a == b,
            (Seen::Parity(a), Seen::Parity(b)) => a == b,
            (Seen::Rules(a), Seen::Rules(b)) => Arc::ptr_eq(a, b),
            (Seen::Lookup(a), Seen::Lookup(b)) => a == b,
            _ => false,
        }
    }
}

impl Position {
    pub(super) fn start() -> Position {
        let rules = Rules::default();
        Position {
            need: Need::Hooks,
            hooks: Vec::new(),
            odd: false,
            stack: Vec::new(),
            here: RuleCursor { rules, at: 0 },
            check: 0,
        }
    }

    /// The rule at the cursor.
    pub(super) fn rule(&self) -> &Arc<Rule> {
        &self.here.rules[self.here.at]
    }

    /// The outcome in a generation of the lookup that is due.
    pub(super) fn find(&self, packet: &Packet, table: &Table, at: RulesetGeneration) -> Hit {
        let rule = self.rule();
        rule.find(&rule.checks[self.check], packet, table, at)
    }

    /// The outcomes that the lookup that is due had by a batch that was refused during a generation.
    pub(super) fn find_refused(
        &self,
        packet: &Packet,
        table: &Table,
        during: RulesetGeneration,
    ) -> Vec<Hit> {
        let rule = self.rule();
        rule.find_refused(&rule.checks[self.check], packet, table, during)
    }

    /// Whether the lookup that is due finds an element in a generation, and another in its place in the next.
    pub(super) fn is_replaced_after(
        &self,
        packet: &Packet,
        table: &Table,
        generation: RulesetGeneration,
    ) -> bool {
        let rule = self.rule();
        rule.is_replaced_after(&rule.checks[self.check], packet, table, generation)
    }

    /// Whether the lookup that is due may show the content of one generation earlier.
    pub(super) fn is_late(&self, table: &Table) -> bool {
        if self.need != Need::Lookup {
            return false;
        }
        let rule = self.rule();
        rule.is_late(&rule.checks[self.check], table)
    }

    /// Goes on with the outcome of a look, to the next look or to the end.
    pub(super) fn go_on(&mut self, seen: &Seen, packet: &Packet) -> Option<Judgement> {
        let end = match seen {
            Seen::Hooks(hooks) => {
                self.hooks = hooks.iter().rev().copied().collect();
                self.next_hook()
            }
            Seen::Parity(odd) => {
                self.odd = *odd;
                let Need::Parity(chain) = self.need else {
                    unreachable!("only a base chain's entry asks for it");
                };
                return self.stop_at(Need::Rules(chain));
            }
            Seen::Rules(rules) => {
                let rules = rules.clone();
                self.here = RuleCursor { rules, at: 0 };
                self.check = 0;
                return self.run(packet);
            }
            Seen::Lookup(Hit::Found) => {
                self.check += 1;
                return self.run(packet);
            }
            Seen::Lookup(Hit::Miss) => {
                self.next_rule();
                return self.run(packet);
            }
            Seen::Lookup(Hit::Verdict(target)) => self.follow(*target),
        };
        match end {
            Flow::Look => None,
            Flow::Run => self.run(packet),
            Flow::End(judgement) => Some(judgement),
        }
    }

    /// Runs through rules up to the next look at the table.
    fn run(&mut self, packet: &Packet) -> Option<Judgement> {
        loop {
            let flow = match self.here.rules.get(self.here.at) {
                None => self.leave(),
                Some(rule) => match rule.checks.get(self.check) {
                    Some(check) => match check.holds(packet) {
                        None => return self.stop_at(Need::Lookup),
                        Some(true) => {
                            self.check += 1;
                            Flow::Run
                        }
                        Some(false) => self.next_rule(),
                    },
                    None => match rule.verdict {
                        Some(target) => self.follow(target),
                        None => self.next_rule(),
                    },
                },
            };
            match flow {
                Flow::Run => {}
                Flow::Look => return None,
                Flow::End(judgement) => return Some(judgement),
            }
        }
    }

    /// Stops before a look at the table.
    fn stop_at(&mut self, need: Need) -> Option<Judgement> {
        self.need = need;
        None
    }

    fn next_rule(&mut self) -> Flow {
        self.here.at += 1;
        self.check = 0;
        Flow::Run
    }

    fn follow(&mut self, target: Target) -> Flow {
        match target {
            Target::Drop => Flow::End(Judgement::Drop),
            Target::Accept => self.next_hook(),
            Target::Return => self.leave(),
            Target::Jump(chain) => {
                let at = self.here.at + 1;
                let rules = self.here.rules.clone();
                self.stack.push(RuleCursor { rules, at });
                self.need = Need::Rules(chain);
                Flow::Look
            }
            Target::Goto(chain) => {
                self.need = Need::Rules(chain);
                Flow::Look
            }
        }
    }

    /// Goes back to the rule after the last jump. The policy of the base chain is to accept.
    fn leave(&mut self) -> Flow {
        self.check = 0;
        match self.stack.pop() {
            Some(spot) => {
                self.here = spot;
                Flow::Run
            }
            None => self.next_hook(),
        }
    }

    fn next_hook(&mut self) -> Flow {
        self.stack.clear();
        match self.hooks.pop() {
            Some(chain) => {
                self.need = Need::Parity(chain);
                Flow::Look
            }
            None => Flow::End(Judgement::Pass),
        }
    }
}

enum Flow {
    Run,
    Look,
    End(Judgement),
}

/// The newest generation up to `now` whose rules are in the copy that a packet reads.
pub(super) fn copy_of(odd: bool, now: RulesetGeneration) -> RulesetGeneration {
    if now % 2 == RulesetGeneration::from(odd) {
        now
    } else {
        now.saturating_sub(1)
    }
}

/// A packet under way, taken through step by step: commits may come between two steps.
#[derive(Clone, Debug)]
pub struct Walk {
    packet: Packet,
    position: Position,
    end: Option<Judgement>,
    began: RulesetGeneration,
}

impl Walk {
    /// A packet that arrives at the forward hook now.
    pub fn enter(kernel: &FakeKernel, packet: Packet) -> Walk {
        Walk {
            packet,
            position: Position::start(),
            end: None,
            began: kernel.generation,
        }
    }

    /// The packet.
    pub fn packet(&self) -> &Packet {
        &self.packet
    }

    /// The generation in which the packet arrived.
    pub fn began(&self) -> RulesetGeneration {
        self.began
    }

    /// Takes one look at the table as it is now: at the base chains, the generation, the rules of a chain, or a set.
    /// With `late`, a set of ranges shows its content from before the last commit. Returns the verdict on the packet
    /// once it is decided.
    ///
    /// # Panics
    ///
    /// If there was a grace period since the packet arrived: a grace period ends when all such packets have passed.
    pub fn step(&mut self, kernel: &FakeKernel, late: bool) -> Option<Judgement> {
        if self.end.is_some() {
            return self.end;
        }
        assert!(
            self.began >= kernel.horizon,
            "a packet outlived a grace period"
        );
        let now = kernel.generation;
        let seen = match self.position.need {
            Need::Hooks => Seen::Hooks(kernel.table.hooks(now, false)),
            Need::Parity(_) => Seen::Parity(now % 2 == 1),
            Need::Rules(chain) => {
                let copy = copy_of(self.position.odd, now);
                Seen::Rules(kernel.table.rules(chain, copy).clone())
            }
            Need::Lookup => {
                let late = late && now > kernel.horizon && self.position.is_late(&kernel.table);
                let at = now - RulesetGeneration::from(late);
                Seen::Lookup(self.position.find(&self.packet, &kernel.table, at))
            }
        };
        self.end = self.position.go_on(&seen, &self.packet);
        self.end
    }

    /// Takes the packet to its end while nothing is committed.
    pub fn finish(&mut self, kernel: &FakeKernel) -> Judgement {
        loop {
            if let Some(judgement) = self.step(kernel, false) {
                return judgement;
            }
        }
    }
}
