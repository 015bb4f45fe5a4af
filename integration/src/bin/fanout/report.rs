//! The measurements, ratios first, as JSON and as a table, and whether they are within the limits. Measures nothing.

use std::time::Duration;

use serde::Serialize;

use crate::cluster::Size;

/// From so many nodes on the bars are judged.
const LARGE: usize = 1_000;

/// Median, least and most of several, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) median_ms: f64,
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

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ms ({}-{})", self.median_ms, self.min_ms, self.max_ms)
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// One delta to all, as a multiple of the plain TCP fan-out of as many bytes.
    pub(crate) delta_to_raw_ratio: f64,
    /// Two deltas to all but a frozen node, as a multiple of the same with no node frozen.
    pub(crate) frozen_to_free_ratio: f64,
    pub(crate) stream_memory_kib: f64,
    pub(crate) peak_memory_both_gib: f64,
    pub(crate) size: Size,
    pub(crate) load_s: f64,
    pub(crate) ready_s: f64,
    /// From the API call that adds one address to a group of every node, until all have acknowledged.
    pub(crate) delta_to_all: Times,
    pub(crate) delta_bytes: u64,
    pub(crate) raw_to_all: Times,
    /// An edit by which every node loses a hundred addresses and gets as many others.
    pub(crate) cluster_wide_edit: Times,
    /// From the moment in which all connect at once, with an update pending, until all enforce it.
    pub(crate) reconnect_all_s: f64,
    pub(crate) with_one_frozen: Times,
    pub(crate) with_none_frozen: Times,
    pub(crate) server_cpu_per_message_us: f64,
    pub(crate) server_memory_before_mib: f64,
    pub(crate) server_memory_with_streams_mib: f64,
    pub(crate) server_peak_memory_mib: f64,
    pub(crate) enforcers_peak_memory_mib: f64,
    /// Streams that broke while nobody connected or disconnected.
    pub(crate) lost_streams: u64,
    /// Streams that could not be opened at once when all connected at once, and were tried again.
    pub(crate) failed_tries_to_connect: u64,
}

impl Report {
    /// The bars that it misses. With few nodes the API call and the journal are most of what is measured, and only lost
    /// streams are judged.
    pub(crate) fn missed(&self) -> Vec<String> {
        let judged =
            |(what, ..): &(&str, f64, f64)| self.size.nodes >= LARGE || *what == "streams lost";
        let bars = [
            (
                "one delta to all over raw TCP",
                self.delta_to_raw_ratio,
                3.0,
            ),
            (
                "deltas beside a frozen node",
                self.frozen_to_free_ratio,
                1.1,
            ),
            (
                "KiB of server memory a stream",
                self.stream_memory_kib,
                32.0,
            ),
            ("GiB of memory in all", self.peak_memory_both_gib, 8.0),
            ("streams lost", self.lost_streams as f64, 0.0),
        ];
        let missed = bars
            .into_iter()
            .filter(judged)
            .filter(|(_, found, most)| found > most);
        missed
            .map(|(what, found, most)| format!("{what}: {found}, not within {most}"))
            .collect()
    }

    /// The report for people.
    pub(crate) fn table(&self) -> String {
        let rows = [
            (
                "one delta to all / raw TCP",
                format!("{:.2}", self.delta_to_raw_ratio),
            ),
            (
                "deltas, one node frozen / none",
                format!("{:.2}", self.frozen_to_free_ratio),
            ),
            (
                "server memory a stream",
                format!("{:.1} KiB", self.stream_memory_kib),
            ),
            (
                "peak memory, all processes",
                format!("{:.2} GiB", self.peak_memory_both_gib),
            ),
            ("time to ready", format!("{:.2} s", self.ready_s)),
            ("one delta to all", self.delta_to_all.to_string()),
            ("the same bytes by raw TCP", self.raw_to_all.to_string()),
            ("cluster-wide edit", self.cluster_wide_edit.to_string()),
            ("reconnect of all", format!("{:.2} s", self.reconnect_all_s)),
            (
                "server CPU a message",
                format!("{:.1} us", self.server_cpu_per_message_us),
            ),
        ];
        let lines = rows.map(|(what, value)| format!("  {what:<36}{value}\n"));
        lines.concat()
    }
}
