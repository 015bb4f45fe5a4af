//! The measurements, ratios first, as a table and as JSON. Measures nothing, and judges no time.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::beds::Flows;

/// Median, least and most over the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// # Panics
    /// If there are none.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
        Spread {
            median: rounded(median),
            min: rounded(values[0]),
            max: rounded(values[values.len() - 1]),
        }
    }

    fn shown(self, digits: usize) -> String {
        let Spread { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }
}

/// The cost of a packet with one variant, beside others in the same rounds.
#[derive(Debug, Serialize)]
pub(crate) struct PacketCost {
    pub(crate) benchmark: &'static str,
    pub(crate) part: &'static str,
    pub(crate) flows: Flows,
    pub(crate) variant: String,
    pub(crate) policies: Option<u32>,
    pub(crate) rounds: usize,
    /// As a multiple of a table that asks conntrack alone.
    pub(crate) to_conntrack: Option<Spread>,
    /// The ratio to the same variant with the fewest policies.
    pub(crate) to_fewest: Option<Spread>,
    /// The ratio to this checkout's programs with as many policies.
    pub(crate) to_sallyport: Option<Spread>,
    pub(crate) nanoseconds: Spread,
}

/// The machine of the measurement, and its load.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) benchmark: &'static str,
    pub(crate) part: &'static str,
    pub(crate) kernel: String,
    /// The CPU that sent.
    pub(crate) cpu: usize,
    /// The load of the last minute, before the first round and after the last.
    pub(crate) load_before: f64,
    pub(crate) load_after: f64,
}

/// The memory of an enforcer.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) benchmark: &'static str,
    pub(crate) part: &'static str,
    pub(crate) variant: String,
    pub(crate) peers: u32,
    pub(crate) rss_mib: f64,
    pub(crate) peak_mib: f64,
}

/// A measurement that is not possible here.
#[derive(Debug, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) benchmark: &'static str,
    pub(crate) part: &'static str,
    pub(crate) variant: &'static str,
    pub(crate) reason: String,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) machines: Vec<Machine>,
    pub(crate) costs: Vec<PacketCost>,
    pub(crate) memories: Vec<Memory>,
    pub(crate) left_out: Vec<LeftOut>,
    /// The reasons why the numbers mean nothing.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// A JSON object in each line.
    pub(crate) fn json(&self) -> Result<String> {
        let lines = [
            each(&self.machines)?,
            each(&self.costs)?,
            each(&self.memories)?,
            each(&self.left_out)?,
        ];
        Ok(lines.concat())
    }

    /// The report for people.
    // Writing to a string does not fail.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for machine in &self.machines {
            let _ = writeln!(
                text,
                "Median (least-most) over the rounds. Linux {}, sent by CPU {}, load {} before and {} after.",
                machine.kernel, machine.cpu, machine.load_before, machine.load_after
            );
        }
        let _ = writeln!(text, "\n{}", HEADINGS.line());
        for cost in &self.costs {
            let _ = writeln!(text, "{}", cost.cells().line());
        }
        for memory in &self.memories {
            let _ = writeln!(
                text,
                "\n{}: the enforcer of {} with {} peers holds {:.1} MiB, {:.1} MiB at most until then",
                memory.benchmark, memory.variant, memory.peers, memory.rss_mib, memory.peak_mib
            );
        }
        for part in &self.left_out {
            let _ = writeln!(
                text,
                "\n{}: {} was left out: {}",
                part.benchmark, part.variant, part.reason
            );
        }
        text
    }

    pub(crate) fn verdict(&self) -> String {
        match self.failures.is_empty() {
            true => "bench: ok".to_owned(),
            false => format!("bench: FAILED {}", self.failures.join("; ")),
        }
    }
}

fn each(rows: &[impl Serialize]) -> Result<String> {
    let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
    Ok(lines?.iter().map(|line| format!("{line}\n")).collect())
}

/// A line of the table.
struct Cells<T>([T; 8]);

const HEADINGS: Cells<&str> = Cells([
    "",
    "flows",
    "variant",
    "policies",
    "to conntrack",
    "to the fewest policies",
    "to sallyport",
    "ns",
]);

impl<T: std::fmt::Display> Cells<T> {
    fn line(&self) -> String {
        let Cells(
            [
                id,
                flows,
                variant,
                policies,
                conntrack,
                fewest,
                sallyport,
                ns,
            ],
        ) = self;
        let line = format!(
            "{id:<5}{flows:<7}{variant:<12}{policies:>8}  {conntrack:<21}{fewest:<24}{sallyport:<18}{ns}"
        );
        line.trim_end().to_owned()
    }
}

impl PacketCost {
    fn cells(&self) -> Cells<String> {
        let ratio = |spread: Option<Spread>| spread.map_or_else(String::new, |one| one.shown(2));
        Cells([
            self.benchmark.to_owned(),
            format!("{:?}", self.flows).to_lowercase(),
            self.variant.clone(),
            self.policies
                .map_or_else(String::new, |one| one.to_string()),
            ratio(self.to_conntrack),
            ratio(self.to_fewest),
            ratio(self.to_sallyport),
            self.nanoseconds.shown(0),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter());
        assert_eq!(spread.shown(1), "2.5 (1.0-4.0)");
        let odd = Spread::of([3.0, 1.0, 9.0].into_iter());
        assert_eq!(odd.shown(0), "3 (1-9)");
    }
}
