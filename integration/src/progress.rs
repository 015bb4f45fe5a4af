//! The progress of a run, on standard error: over and over on one line of a terminal, and now and then elsewhere.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    time::{Duration, Instant},
};

/// The progress of one scenario.
pub struct Progress {
    name: String,
    unit: &'static str,
    terminal: bool,
    started: Instant,
    printed: Instant,
}

impl Progress {
    /// The progress of a run that begins now, and counts in this unit.
    pub fn of(name: String, unit: &'static str) -> Progress {
        let now = Instant::now();
        let terminal = stderr().is_terminal();
        if !terminal {
            eprintln!("{name} ...");
        }
        Progress {
            name,
            unit,
            terminal,
            started: now,
            printed: now,
        }
    }

    /// Prints a message on a line of its own.
    pub fn print(&self, what: &str) {
        let begin = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!("{begin}{}: {what}", self.name);
    }

    /// Prints the progress, if the last line is a while ago.
    pub fn at(&mut self, done: u32, most: u32) {
        let every = if self.terminal { 250 } else { 10_000 };
        if self.printed.elapsed() < Duration::from_millis(every) {
            return;
        }
        self.printed = Instant::now();
        let line = format!(
            "{}: {done} of {most} {} in {:.0} s",
            self.name,
            self.unit,
            self.started.elapsed().as_secs_f64()
        );
        // Nobody may be reading.
        let _ = match self.terminal {
            true => write!(stderr(), "\r\x1b[K{line}"),
            false => writeln!(stderr(), "{line}"),
        };
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
