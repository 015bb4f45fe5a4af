//! The results of the rows, as a table and as JSON. Judges nothing.

use std::{fmt::Write as _, path::PathBuf};

use serde::Serialize;

use crate::rows::Row;

/// The result of a row.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The row applies edits as others do, and must leak.
    pub(crate) control: bool,
    /// Packets that must pass, and how many of them did not.
    pub(crate) allowed: u64,
    pub(crate) lost: u64,
    /// Packets that must not pass, and how many of them did.
    pub(crate) denied: u64,
    pub(crate) leaked: u64,
    /// Packets of those that must not pass, which passed once the tables were taken away.
    pub(crate) leaked_without_tables: u64,
    pub(crate) seconds: f64,
    pub(crate) note: String,
    pub(crate) failure: Option<String>,
    /// The folder of logs and journals of a row that failed.
    pub(crate) logs: Option<PathBuf>,
}

impl Outcome {
    pub(crate) fn of(row: &Row) -> Outcome {
        Outcome {
            name: row.name,
            about: row.about,
            control: row.leaks,
            allowed: 0,
            lost: 0,
            denied: 0,
            leaked: 0,
            leaked_without_tables: 0,
            seconds: 0.0,
            note: String::new(),
            failure: None,
            logs: None,
        }
    }

    /// The outcome as it is printed at once.
    pub(crate) fn line(&self) -> String {
        match &self.failure {
            None => format!("ok      {:>5.1} s  {}", self.seconds, self.note),
            Some(failure) => format!(
                "FAILED  {:>5.1} s  {failure}\n  seen: allowed {}, lost {}, denied {}, leaked {}; logs and journals: {}",
                self.seconds,
                self.allowed,
                self.lost,
                self.denied,
                self.leaked,
                self.logs
                    .as_ref()
                    .map_or_else(|| "none".into(), |path| path.display().to_string()),
            ),
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Outcome>,
    /// The rows that could not be run, with the reason: they count as nothing.
    pub(crate) not_run: Vec<String>,
}

impl Report {
    pub(crate) fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.failure.is_some()).count()
    }

    /// The report for people.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{:<26}{:>9}{:>7}{:>9}{:>8}{:>7}  {}\n",
            "fault", "allowed", "lost", "denied", "leaked", "s", "what was seen"
        );
        for row in &self.rows {
            let said = match (&row.failure, row.control) {
                (Some(failure), _) => {
                    format!("FAILED: {}", failure.lines().next().unwrap_or_default())
                }
                (None, true) => format!("leaks, as it must. {}", row.note),
                (None, false) => row.note.clone(),
            };
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{:<26}{:>9}{:>7}{:>9}{:>8}{:>7.1}  {said}",
                row.name, row.allowed, row.lost, row.denied, row.leaked, row.seconds
            );
        }
        // Again, and last: what is cut off of a long output is its beginning.
        for row in self.rows.iter().filter(|row| row.failure.is_some()) {
            let _ = writeln!(text, "\n{}: {}", row.name, row.line());
        }
        for row in &self.not_run {
            let _ = writeln!(text, "not run: {row}");
        }
        text
    }

    pub(crate) fn verdict(&self) -> String {
        let failed = self.failed();
        format!(
            "faults: passed {} failed {failed}",
            self.rows.len() - failed
        )
    }
}
