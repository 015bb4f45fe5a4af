//! The measurements, as JSON, and whether they are within the limits. Measures nothing.

use std::{collections::BTreeMap, time::Duration};

use sallyport_testbed::probe::FloodReport;
use serde::Serialize;

use crate::cluster::{ALLOWED, DENIED, Size};

/// From so many pods on times are judged.
const LARGE: usize = 100_000;

/// Median, least and most of several, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Times {
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    rounds: usize,
}

impl Times {
    /// # Panics
    /// If there are none.
    pub(crate) fn of(mut times: Vec<Duration>) -> Times {
        times.sort();
        let ms = |time: Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
        Times {
            median_ms: ms(times[times.len() / 2]),
            min_ms: ms(times[0]),
            max_ms: ms(times[times.len() - 1]),
            rounds: times.len(),
        }
    }
}

/// The rate at which transactions of one object became durable.
#[derive(Debug, Serialize)]
pub(crate) struct Edits {
    pub(crate) scenario: &'static str,
    pub(crate) size: Size,
    pub(crate) load_s: f64,
    pub(crate) transactions: usize,
    pub(crate) clients: usize,
    pub(crate) per_second: f64,
}

/// The results of a number of restarts.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    /// Whether packets must leak, so that a zero of the others means something.
    pub(crate) control: bool,
    /// From exec, by what it is until.
    pub(crate) times: BTreeMap<&'static str, Times>,
    /// The time that must be within so many milliseconds.
    #[serde(skip)]
    pub(crate) bar: Option<(&'static str, f64)>,
    pub(crate) pods: usize,
    pub(crate) allowed_packets: u64,
    pub(crate) denied_packets: u64,
    pub(crate) leaked: u64,
    pub(crate) lost: u64,
    pub(crate) machine_drops: u64,
}

impl Report {
    pub(crate) fn of(scenario: &'static str, size: Size, flood: &FloodReport) -> Report {
        let of = |name: &str| {
            let mut named = flood.classes.iter().filter(|class| class.name == name);
            let class = named.next().expect("the flood has the class");
            (class.sent, class.received)
        };
        let ((allowed, arrived), (denied, leaked)) = (of(ALLOWED), of(DENIED));
        Report {
            scenario,
            control: false,
            times: BTreeMap::new(),
            bar: None,
            pods: size.pods,
            allowed_packets: allowed,
            denied_packets: denied,
            leaked,
            lost: allowed - arrived,
            machine_drops: flood.machine_drops,
        }
    }

    /// The deviations from the expected.
    pub(crate) fn missed(&self) -> Vec<String> {
        let name = self.scenario;
        let mut missed = Vec::new();
        if let Some((what, most)) = self.bar.filter(|_| self.pods >= LARGE)
            && self.times[what].median_ms > most
        {
            let found = self.times[what].median_ms;
            missed.push(format!(
                "{name}: {what} after {found} ms, not within {most} ms"
            ));
        }
        match (self.control, self.leaked, self.lost) {
            (true, 0, _) => missed.push(format!(
                "{name} did not leak, so the zeros mean nothing: raise --rounds"
            )),
            (true, ..) | (false, 0, 0) => {}
            (false, leaked, lost) => missed.push(format!(
                "{name}: {leaked} leaked, {lost} lost (the machine dropped {})",
                self.machine_drops
            )),
        }
        if self.allowed_packets.min(self.denied_packets) < 1_000 {
            missed.push(format!("{name}: too few packets to say anything"));
        }
        missed
    }
}
