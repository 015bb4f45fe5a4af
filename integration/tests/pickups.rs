//! Connections that conntrack picked up in the middle, since it lost them or never saw their beginning: to conntrack
//! the side that spoke first then is the client, whichever side opened them. The packets that pass after a policy is
//! enforced depend on neither.
//!
//! A cell is what becomes of one conversation. All cells of a bed live side by side, and take each step together: they
//! are opened, conntrack loses them, one side speaks, policies come, both sides speak. `cells` says which there are and
//! what is wanted of each, `bed` is the cluster, `stages` are the steps.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

#[path = "pickups/bed.rs"]
mod bed;
#[path = "pickups/cells.rs"]
mod cells;
#[path = "pickups/report.rs"]
mod report;
#[path = "pickups/stages.rs"]
mod stages;

use std::process::ExitCode;

use sallyport_integration::binaries::binaries;
use sallyport_testbed::{Mode, kernel_tests};

use bed::Places;

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("what_was_picked_up_is_judged_anew_routed", || {
            stages::play(Mode::Routed, Places::OneNode)
        }),
        ("what_was_picked_up_is_judged_anew_bridged", || {
            stages::play(Mode::Bridged, Places::OneNode)
        }),
        ("what_was_picked_up_is_judged_anew_across_nodes", || {
            stages::play(Mode::Routed, Places::TwoNodes)
        }),
    ])
}
