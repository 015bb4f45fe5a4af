//! The table in docs/UNLISTED.md, read.

use std::fmt;

use sallyport_testbed::kernel_tests::Failed;

/// A kind of node: a column of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) bridged: bool,
    /// Whether the interfaces of workloads are named.
    pub(crate) known: bool,
    pub(crate) strict: bool,
}

const fn setup(bridged: bool, known: bool, strict: bool) -> Setup {
    Setup {
        bridged,
        known,
        strict,
    }
}

/// The columns, as they are in the table.
pub(crate) const SETUPS: [Setup; 6] = [
    setup(false, false, true),
    setup(false, false, false),
    setup(true, true, true),
    setup(true, true, false),
    setup(true, false, true),
    setup(true, false, false),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passes,
    Dropped,
}

/// The verdicts on a kind of frame between workloads that policies select, and between others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) selected: Verdict,
    pub(crate) free: Verdict,
}

pub(crate) struct Row {
    pub(crate) kind: String,
    pub(crate) cells: [Cell; 6],
}

impl Verdict {
    pub(crate) fn of(passes: bool) -> Verdict {
        match passes {
            true => Verdict::Passes,
            false => Verdict::Dropped,
        }
    }

    fn read(text: &str) -> Result<Verdict, Failed> {
        match text {
            "passes" => Ok(Verdict::Passes),
            "dropped" => Ok(Verdict::Dropped),
            other => Err(format!("docs/UNLISTED.md: `{other}` is no verdict").into()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Passes => "passes",
            Verdict::Dropped => "dropped",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.selected == self.free {
            true => self.selected.fmt(f),
            false => write!(f, "{}, {}", self.selected, self.free),
        }
    }
}

/// The rows of the table with six verdicts each.
pub(crate) fn read() -> Result<Vec<Row>, Failed> {
    let text = include_str!("../../../docs/UNLISTED.md");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| sent "));
    rows.map(|line| {
        let mut columns = line.trim_matches('|').split('|').map(str::trim);
        let kind = columns.next().unwrap_or_default().to_owned();
        let cells = columns.map(|cell| {
            let (selected, free) = cell.split_once(", ").unwrap_or((cell, cell));
            Ok(Cell {
                selected: Verdict::read(selected)?,
                free: Verdict::read(free)?,
            })
        });
        let cells: Vec<Cell> = cells.collect::<Result<_, Failed>>()?;
        let cells = cells
            .try_into()
            .map_err(|_| format!("docs/UNLISTED.md: `{line}` has not six verdicts"))?;
        Ok(Row { kind, cells })
    })
    .collect()
}
