//! The first proof of the promise: packets flood a pod while a policy of 50 `ipBlock`s is edited, deleted and
//! re-created. Counts packets that passed although every state denies them, and packets that were lost although every
//! state allows them; beside it, the same edits as others carry them out, which must leak.

mod edits;
mod naive;

use std::{
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, delete, put},
    probe::{Class, Flood, FloodReport},
    testbed::{self, Host, Testbed},
};
use serde_json::json;

use edits::{ALLOWED, DENIED, Edit};

/// Proves on this machine's kernel that edits never open a path and never break one.
///
/// Prints one JSON line for each scenario, then `atomicity: ok` or `atomicity: FAILED` and why. The controls carry the
/// same edits out as one nf_tables batch, and as removal and addition; if they do not leak, the run was too short to
/// show anything, and fails.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How many edits each scenario makes
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    edits: u32,
}

/// The port that is flooded.
const PORT: u16 = 9000;

/// What a scenario came to.
struct Outcome {
    scenario: &'static str,
    /// Whether it is a control, which must leak.
    control: bool,
    edits: u32,
    lasted: Duration,
    report: FloodReport,
}

impl Outcome {
    fn leaked(&self) -> u64 {
        self.report.classes[0].received
    }

    fn lost(&self) -> u64 {
        let allowed = &self.report.classes[1];
        allowed.sent - allowed.received
    }

    fn print(&self) {
        let line = json!({
            "scenario": self.scenario,
            "control": self.control,
            "edits": self.edits,
            "seconds": (self.lasted.as_secs_f64() * 10.0).round() / 10.0,
            "denied_packets": self.report.classes[0].sent,
            "allowed_packets": self.report.classes[1].sent,
            "leaked": self.leaked(),
            "lost": self.lost(),
            "machine_drops": self.report.machine_drops,
        });
        println!("{line}");
    }

    /// Why the scenario does not show what it should.
    fn failure(&self) -> Option<String> {
        let name = self.scenario;
        if self
            .report
            .classes
            .iter()
            .any(|class| class.sent < u64::from(self.edits))
        {
            return Some(format!("{name}: fewer packets than edits were sent"));
        }
        if self.control {
            return (self.leaked() == 0).then(|| {
                format!("{name} did not leak, so the zeros mean nothing: lengthen the run")
            });
        }
        if self.leaked() > 0 {
            return Some(format!("{name} leaked {} packets", self.leaked()));
        }
        if self.lost() > 0 {
            return Some(match self.report.machine_drops {
                0 => format!("{name} lost {} packets", self.lost()),
                drops => format!(
                    "{name} lost {} packets, but the machine dropped {drops}: it is too busy",
                    self.lost()
                ),
            });
        }
        None
    }
}

fn main() -> Result<ExitCode> {
    let Arguments { edits } = Arguments::parse();
    binaries()?;
    testbed::enter()?;
    let scenarios: [(&str, bool, Run); 3] = [
        ("sallyport", false, through_the_api),
        ("control-one-batch", true, naive::one_batch),
        ("control-remove-then-add", true, naive::remove_then_add),
    ];
    let mut failures = Vec::new();
    for (scenario, control, run) in scenarios {
        let bed = Testbed::builder().nodes(1).build()?;
        let (lasted, report) = run(bed, edits).with_context(|| scenario.to_owned())?;
        let outcome = Outcome {
            scenario,
            control,
            edits,
            lasted,
            report,
        };
        outcome.print();
        failures.extend(outcome.failure());
    }
    if failures.is_empty() {
        println!("atomicity: ok");
        return Ok(ExitCode::SUCCESS);
    }
    println!("atomicity: FAILED {}", failures.join("; "));
    Ok(ExitCode::FAILURE)
}

/// Carries a scenario out on a fresh testbed.
type Run = fn(Testbed, u32) -> Result<(Duration, FloodReport)>;

/// The pods: the one that floods, and the one that is flooded.
fn pods(bed: &Testbed) -> Result<(Host, Host)> {
    let client = bed.add_pod(0, "default/client", &[IpAddr::from(edits::CLIENT)])?;
    let server = bed.add_pod(0, "default/server", &[IpAddr::from(edits::SERVER)])?;
    Ok((client, server))
}

fn flood(client: &Host, server: &Host) -> Result<Flood> {
    let class = |name: &str, first: [u8; 4]| Class {
        name: name.into(),
        first: first.into(),
        addresses: 32,
        port: PORT,
    };
    Ok(Flood::start(
        client,
        server,
        &[class("denied", DENIED), class("allowed", ALLOWED)],
        None,
    )?)
}

/// Sallyport as users run it: each edit by the API, and enforced before the next.
fn through_the_api(bed: Testbed, count: u32) -> Result<(Duration, FloodReport)> {
    let (client, server) = pods(&bed)?;
    let deployment = Deployment::start(bed, &[])?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(edits::cluster()), put(edits::policy(0))])?;
    let flood = flood(&client, &server)?;
    let started = Instant::now();
    for edit in edits::sequence(count) {
        let edit = match edit {
            Edit::Put(variant) => put(edits::policy(variant)),
            Edit::Delete => delete(edits::policy(0)),
        };
        api.enforce(vec![edit])?;
    }
    let lasted = started.elapsed();
    Ok((lasted, flood.stop()?))
}
