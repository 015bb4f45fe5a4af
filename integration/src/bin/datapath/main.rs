//! The treatment of packets by the running kernel, where the kernel that Sallyport is developed on lacks the parts:
//! SCTP of the kernel's own under policy, bridges that filter VLANs, and the ways of a packet that meet the forward
//! hook or bypass it. Owns the command line.

#![allow(
    clippy::cast_possible_truncation,
    reason = "test equipment: its numbers are small, and a wrong one fails the run"
)]

mod measure;
mod sctp;
mod vlans;
mod ways;
mod wiring;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use sallyport_integration::binaries::binaries;

/// Looks at what the running kernel does with packets. Needs `nft`, `ip` and `modprobe`, and `bridge` for the VLANs.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum What {
    /// Associations between the kernel's own SCTP sockets, let through, denied and cut by policy
    Sctp,
    /// Policy between workloads on a bridge that filters VLANs and a machine behind its trunk. Fails where the kernel
    /// has no such bridges.
    Vlans,
    /// A table of the ways from one workload to another: which hooks of its node a packet meets on each, and whether a
    /// drop in the forward hook stops it. Fails where a way cannot be made, or is not as it is known to be.
    Ways,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let wrong = match arguments.what {
        What::Sctp => {
            binaries()?;
            sallyport_testbed::enter()?;
            sctp::run()?
        }
        What::Vlans => {
            binaries()?;
            enter_as_root()?;
            vlans::run()?
        }
        What::Ways => {
            enter_as_root()?;
            ways::run()
        }
    };
    if wrong.is_empty() {
        println!("datapath: ok");
        return Ok(ExitCode::SUCCESS);
    }
    println!("datapath: FAILED {}", wrong.join("; "));
    Ok(ExitCode::FAILURE)
}

fn enter_as_root() -> Result<()> {
    ensure!(
        sallyport_testbed::enter()? == sallyport_testbed::Privilege::Root,
        "modules are loaded here: run as root"
    );
    Ok(())
}
