//! Owns the comparison of a step: what the file expects, what packets did and what the compiler says; never changes
//! the cluster.

use std::time::Duration;

use sallyport_policy::Direction;
use sallyport_testbed::probe::{Outcome, Prober};

use super::{
    Error,
    case::{Expect, Step},
    cells::{Cell, cells},
    compiled::Compiled,
    world::World,
};

/// The times that the first answer and a repeated one may take.
const QUICK: Duration = Duration::from_millis(300);
const PATIENT: Duration = Duration::from_millis(1_500);

/// How many probes are under way at once: as many as two busy cores answer within [`QUICK`].
const AT_ONCE: usize = 1_000;

/// The result of a step.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// How many cells were compared with packets.
    pub(super) cells: u64,
    /// How many verdicts of one direction were compared with the compiler's.
    pub(super) compiled: u64,
    /// How many cells had to be asked again: packets were late.
    pub(super) again: u64,
    /// How many cells say of a node and its own pod that they cannot reach each other: true of other placements only.
    pub(super) local: u64,
    pub(super) wrong: Vec<Wrong>,
}

/// A cell that is not as expected.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) cell: Cell,
    /// The observation.
    pub(super) seen: String,
}

/// Compares everything that a step expects.
pub(super) fn judge(world: &World, compiled: &Compiled, step: &Step) -> Result<Judged, Error> {
    let mut judged = Judged::default();
    let addresses = |endpoint: &str| Ok(world.party(endpoint)?.addresses.clone());
    let mut asked = Vec::new();
    for (index, expect) in step.expect.iter().enumerate() {
        for cell in cells(step, index, &expect.combined, &addresses)? {
            let (from, to) = (&step.endpoints[cell.from], &step.endpoints[cell.to]);
            if !cell.open && world.party(from)?.is_node_of(world.party(to)?) {
                judged.local += 1;
            } else {
                asked.push(cell);
            }
        }
        for (direction, rows) in [
            (Direction::Ingress, &expect.ingress),
            (Direction::Egress, &expect.egress),
        ] {
            if let Some(rows) = rows {
                let cells = cells(step, index, rows, &addresses)?;
                compare_compiled(world, compiled, step, direction, &cells, &mut judged)?;
            }
        }
    }
    compare_packets(world, step, &asked, &mut judged)?;
    judged
        .wrong
        .sort_by_key(|Wrong { cell, .. }| (cell.expect, cell.from, cell.to));
    Ok(judged)
}

fn compare_compiled(
    world: &World,
    compiled: &Compiled,
    step: &Step,
    direction: Direction,
    cells: &[Cell],
    judged: &mut Judged,
) -> Result<(), Error> {
    judged.compiled += cells.len() as u64;
    for cell in cells {
        let from = world.party(&step.endpoints[cell.from])?;
        let to = world.party(&step.endpoints[cell.to])?;
        let Expect { protocol, port, .. } = step.expect[cell.expect];
        let ends = (from.at(cell.source), to.at(cell.target));
        let open = compiled.allows(direction, ends, (protocol, port));
        if open != cell.open {
            let verdict = if open { "allows" } else { "denies" };
            judged
                .wrong
                .push(cell.wrong(format!("compiled {direction} alone {verdict}")));
        }
    }
    Ok(())
}

/// Sends a packet for every cell. One that came through where it must not is wrong at once; one that did not come may
/// be late, and is asked for again. When any was late the machine is slow, so then what is blocked as expected is asked
/// for again as well: it might be late too.
fn compare_packets(
    world: &World,
    step: &Step,
    cells: &[Cell],
    judged: &mut Judged,
) -> Result<(), Error> {
    judged.cells += cells.len() as u64;
    let quick = Prober::default().at_once(AT_ONCE).with_timeout(QUICK);
    let patient = quick.with_timeout(PATIENT);
    let mut outcomes = probe(world, step, cells, quick)?;
    let late =
        |(cell, outcome): &(&Cell, &Outcome)| !cell.agrees(outcome) && **outcome != Outcome::Open;
    let lates = cells.iter().zip(&outcomes).filter(late).count();
    if lates > 0 {
        judged.again += lates as u64;
        let unsure = (0..cells.len()).filter(|&index| outcomes[index] != Outcome::Open);
        let unsure: Vec<usize> = unsure.collect();
        let again: Vec<Cell> = unsure.iter().map(|&index| cells[index]).collect();
        for (index, outcome) in unsure.into_iter().zip(probe(world, step, &again, patient)?) {
            outcomes[index] = outcome;
        }
    }
    let all = cells.iter().zip(&outcomes);
    let wrong = all.filter(|(cell, outcome)| !cell.agrees(outcome));
    judged
        .wrong
        .extend(wrong.map(|(cell, outcome)| cell.wrong(format!("packets: {outcome}"))));
    Ok(())
}

fn probe(
    world: &World,
    step: &Step,
    cells: &[Cell],
    prober: Prober,
) -> Result<Vec<Outcome>, Error> {
    let mut probes = Vec::with_capacity(cells.len());
    for cell in cells {
        let from = world.party(&step.endpoints[cell.from])?;
        let to = world.party(&step.endpoints[cell.to])?;
        let Expect { protocol, port, .. } = step.expect[cell.expect];
        probes.push(from.probe(cell.source, to, cell.target, (protocol, port)));
    }
    Ok(prober.probe_all(probes))
}

impl Cell {
    /// A refusal agrees with nothing: nobody here refuses.
    fn agrees(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Open => self.open,
            Outcome::Blocked => !self.open,
            Outcome::Refused(_) | Outcome::Wrong(_) => false,
        }
    }

    fn wrong(self, seen: String) -> Wrong {
        Wrong { cell: self, seen }
    }
}
