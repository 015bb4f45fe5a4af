//! Owns a table of outcomes between hosts, seen or expected, its display and its comparison; never sends a probe.

use std::fmt::{self, Write};

use super::Outcome;

/// The outcomes of the probes between every two of some hosts. Displays as a table, rows from, columns to; with `{:#}`
/// in plain ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    title: String,
    names: Vec<String>,
    cells: Vec<Vec<Option<Outcome>>>,
}

/// A cell that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The source.
    pub from: String,
    /// The destination.
    pub to: String,
    pub expected: Outcome,
    /// The observed outcome; `None` if nobody probed.
    pub seen: Option<Outcome>,
}

impl Matrix {
    /// A table in which nothing has been probed and nothing is expected.
    pub fn new<'a>(title: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let cells = vec![vec![None; names.len()]; names.len()];
        Self {
            title: title.to_owned(),
            names,
            cells,
        }
    }

    /// A table with the same outcome between all different hosts.
    pub fn all<'a>(names: impl IntoIterator<Item = &'a str>, outcome: &Outcome) -> Self {
        let mut matrix = Self::new("expected", names);
        for (from, row) in matrix.cells.iter_mut().enumerate() {
            for (to, cell) in row.iter_mut().enumerate() {
                *cell = (from != to).then(|| outcome.clone());
            }
        }
        matrix
    }

    /// Reads an expectation, one string a row and one character a cell: `.` open, `X` blocked, anything else (the
    /// conformance files have `-` and `?`) not asked. `None` if it is not as many rows and columns as names.
    pub fn expected<'a>(names: impl IntoIterator<Item = &'a str>, rows: &[&str]) -> Option<Self> {
        let mut matrix = Self::new("expected", names);
        let size = matrix.names.len();
        if rows.len() != size || rows.iter().any(|row| row.chars().count() != size) {
            return None;
        }
        for (cells, row) in matrix.cells.iter_mut().zip(rows) {
            for (cell, mark) in cells.iter_mut().zip(row.chars()) {
                *cell = match mark {
                    '.' => Some(Outcome::Open),
                    'X' => Some(Outcome::Blocked),
                    _ => None,
                };
            }
        }
        Some(matrix)
    }

    /// The hosts, in the order of rows and columns.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The observed outcome from one host to another, by name.
    pub fn get(&self, from: &str, to: &str) -> Option<&Outcome> {
        let index = |name| self.names.iter().position(|other| other == name);
        self.cells[index(from)?][index(to)?].as_ref()
    }

    /// Sets the cell of row `from` and column `to`.
    ///
    /// # Panics
    /// If there is no such row or column.
    pub fn set(&mut self, from: usize, to: usize, outcome: Option<Outcome>) {
        self.cells[from][to] = outcome;
    }

    /// Every cell that `expected` asks for and that is not so here. Hosts are matched by name; what is expected of a
    /// host that is not here differs.
    pub fn differences(&self, expected: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (from, row) in expected.names.iter().zip(&expected.cells) {
            for (to, cell) in expected.names.iter().zip(row) {
                let Some(wanted) = cell else { continue };
                let seen = self.get(from, to);
                if seen != Some(wanted) {
                    let (from, to) = (from.clone(), to.clone());
                    differences.push(Difference {
                        from,
                        to,
                        expected: wanted.clone(),
                        seen: seen.cloned(),
                    });
                }
            }
        }
        differences
    }

    /// Fails with the table and the cells that differ, unless everything is as expected.
    pub fn require(&self, expected: &Self) -> Result<(), String> {
        let differences = self.differences(expected);
        if differences.is_empty() {
            return Ok(());
        }
        let mut message = format!(
            "{self}{} of the cells differ from what was expected:\n",
            differences.len()
        );
        for difference in differences {
            writeln!(message, "  {difference}").expect("writing to a string succeeds");
        }
        Err(message)
    }

    /// Fails unless every pair of different hosts has `outcome`.
    pub fn require_all(&self, outcome: &Outcome) -> Result<(), String> {
        self.require(&Self::all(self.names(), outcome))
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ascii = f.alternate();
        let mark = |cell: &Option<Outcome>| match (cell, ascii) {
            (None, false) => '·',
            (None, true) => '-',
            (Some(Outcome::Open), false) => '●',
            (Some(Outcome::Open), true) => '.',
            (Some(Outcome::Blocked), false) => '✗',
            (Some(Outcome::Blocked), true) => 'X',
            (Some(Outcome::Refused(_)), _) => '!',
            (Some(Outcome::Wrong(_)), _) => '?',
        };
        let width = self
            .names
            .iter()
            .map(|name| name.chars().count())
            .max()
            .unwrap_or(0);
        writeln!(f, "{}: from row to column", self.title)?;
        write!(f, "{:>width$}   ", "", width = width + 3)?;
        for number in 1..=self.names.len() {
            write!(f, "{number:>3}")?;
        }
        writeln!(f)?;
        for (number, (name, row)) in (1..).zip(self.names.iter().zip(&self.cells)) {
            write!(f, "{number:>3}  {name:<width$} ")?;
            for cell in row {
                write!(f, "{:>3}", mark(cell))?;
            }
            writeln!(f)?;
        }
        for (from, row) in self.names.iter().zip(&self.cells) {
            for (to, cell) in self.names.iter().zip(row) {
                if let Some(odd @ (Outcome::Refused(_) | Outcome::Wrong(_))) = cell {
                    writeln!(f, "     {from} -> {to}: {odd}")?;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {}: expected {}, ",
            self.from, self.to, self.expected
        )?;
        match &self.seen {
            Some(seen) => write!(f, "but it is {seen}"),
            None => f.write_str("but it was not probed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reads_and_compares() {
        let expected =
            Matrix::expected(["a", "b", "c"], &["-.X", ".-.", "?.-"]).expect("three by three");
        let mut seen = Matrix::all(["a", "b", "c"], &Outcome::Open);
        assert_eq!(
            seen.require(&expected)
                .expect_err("a -> c is open")
                .lines()
                .last(),
            Some("  a -> c: expected blocked, but it is open")
        );
        seen.set(0, 2, Some(Outcome::Blocked));
        assert_eq!(seen.require(&expected), Ok(()));
        assert_eq!(
            format!("{seen:#}"),
            "expected: from row to column\n         1  2  3\n  1  a   -  .  X\n  2  b   .  -  .\n  3  c   .  .  -\n"
        );
    }

    #[test]
    fn the_wrong_size_is_no_table() {
        assert_eq!(Matrix::expected(["a", "b"], &["-."]), None);
        assert_eq!(Matrix::expected(["a", "b"], &["-.", "."]), None);
    }
}
