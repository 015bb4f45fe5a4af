//! The result of a scenario or a control, as a line of JSON, and the reason if it does not show the expected.

use std::time::Duration;

use sallyport_integration::scenario::{Control, Scenario, traffic::tallies};
use sallyport_testbed::probe::FloodReport;
use serde_json::json;

/// The measurements.
pub(crate) struct Measured {
    pub(crate) transactions: u32,
    pub(crate) lasted: Duration,
    pub(crate) report: FloodReport,
}

/// A scenario, or one of its controls, that was run.
pub(crate) struct Outcome {
    pub(crate) scenario: Scenario,
    pub(crate) control: Option<Control>,
    pub(crate) measured: Measured,
}

impl Outcome {
    fn name(&self) -> String {
        self.scenario.name_of(self.control)
    }

    fn leaked(&self) -> u64 {
        tallies(&self.measured.report.classes).0.received
    }

    fn lost(&self) -> u64 {
        let allowed = tallies(&self.measured.report.classes).1;
        allowed.sent - allowed.received
    }

    pub(crate) fn json(&self) -> String {
        let Measured {
            transactions,
            lasted,
            report,
        } = &self.measured;
        let (denied, allowed) = tallies(&report.classes);
        json!({
            "scenario": self.name(),
            "control": self.control.is_some(),
            "edits": transactions * self.scenario.edits_in_one,
            "transactions": transactions,
            "seconds": (lasted.as_secs_f64() * 10.0).round() / 10.0,
            "denied_packets": denied.sent,
            "allowed_packets": allowed.sent,
            "leaked": self.leaked(),
            "lost": self.lost(),
            "machine_drops": report.machine_drops,
        })
        .to_string()
    }

    /// Why it does not show what it should.
    pub(crate) fn failure(&self) -> Option<String> {
        let name = self.name();
        let Measured {
            transactions,
            report,
            ..
        } = &self.measured;
        let (denied, allowed) = tallies(&report.classes);
        if denied.sent.min(allowed.sent) < u64::from(*transactions) {
            return Some(format!("{name}: fewer packets than transactions were sent"));
        }
        match self.control {
            Some(Control::TwoTransactions) => (self.lost() == 0)
                .then(|| format!("{name} lost nothing, so the zeros mean nothing: raise --edits")),
            Some(_) => (self.leaked() == 0)
                .then(|| format!("{name} did not leak, so the zeros mean nothing: raise --edits")),
            None if self.leaked() > 0 => Some(format!("{name} leaked {} packets", self.leaked())),
            None if self.lost() > 0 => Some(match report.machine_drops {
                0 => format!("{name} lost {} packets", self.lost()),
                drops => format!(
                    "{name} lost {} packets, but the machine dropped {drops}: it is too busy",
                    self.lost()
                ),
            }),
            None => None,
        }
    }
}

/// The length of a control: a control runs until it has shown the expected failure, within these numbers of transactions.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) least: u32,
    pub(crate) most: u32,
}

impl Bounds {
    /// A tenth of what the scenario makes; at most as much, or where a leak is rare many times as much.
    pub(crate) fn beside(transactions: u32, control: Control) -> Bounds {
        Bounds {
            least: (transactions / 10).max(20),
            most: match control {
                Control::OneBatch => transactions.saturating_mul(4).max(20_000),
                _ => transactions.max(100),
            },
        }
    }
}
