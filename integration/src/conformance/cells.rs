//! Owns which verdicts a step asks for: its tables, cell by cell and family by family; never knows what came of one.

use std::net::IpAddr;

use super::{
    Error,
    case::{Step, Version},
};

/// A cell with an expectation, of one address family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    /// The index into the step's expectations.
    pub(super) expect: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    pub(super) open: bool,
}

/// The addresses of an endpoint.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Result<Vec<IpAddr>, Error> + 'a;

/// The cells of a table that say something: not of an endpoint and itself, and neither `-` nor `?`.
pub(super) fn cells(
    step: &Step,
    expect: usize,
    rows: &[String],
    addresses: &Lookup<'_>,
) -> Result<Vec<Cell>, Error> {
    let size = step.endpoints.len();
    if rows.len() != size || rows.iter().any(|row| row.chars().count() != size) {
        return Err(Error::Case(format!(
            "expectation {expect} is not of {size} rows and columns"
        )));
    }
    let mut cells = Vec::new();
    for (from, row) in rows.iter().enumerate() {
        for (to, mark) in row.chars().enumerate() {
            let open = match mark {
                '.' => true,
                'X' => false,
                '-' | '?' => continue,
                other => return Err(Error::Case(format!("no cell is {other:?}"))),
            };
            if from == to {
                continue;
            }
            let (source, target) = (&step.endpoints[from], &step.endpoints[to]);
            let pairs = pairs(
                step.expect[expect].family,
                &addresses(source)?,
                &addresses(target)?,
            );
            if pairs.is_empty() {
                return Err(Error::Case(format!(
                    "{source} and {target} have no addresses of one family"
                )));
            }
            cells.extend(pairs.into_iter().map(|(source, target)| Cell {
                expect,
                from,
                to,
                source,
                target,
                open,
            }));
        }
    }
    Ok(cells)
}

/// The addresses by which two endpoints can reach each other.
fn pairs(only: Option<Version>, from: &[IpAddr], to: &[IpAddr]) -> Vec<(IpAddr, IpAddr)> {
    let mut pairs = Vec::new();
    for &source in from {
        let version = Version::of(source);
        if only.is_none_or(|only| only == version) {
            let same = to.iter().filter(|&&target| Version::of(target) == version);
            pairs.extend(same.map(|&target| (source, target)));
        }
    }
    pairs
}
