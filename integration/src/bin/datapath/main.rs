//! What the running kernel does with packets, where the kernel that Sallyport is developed on lacks the parts: SCTP of
//! the kernel's own under policy, and the ways of a packet that meet the forward hook or pass it by. Owns the command line.

mod measure;
mod sctp;
mod ways;
mod wiring;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use sallyport_integration::{binaries::binaries, testbed};

/// Looks at what the running kernel does with packets. Needs `nft`, and `ip` and `modprobe` for the ways.
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
    /// A table of the ways from one workload to another: which hooks of its node a packet meets on each, and whether a
    /// drop in the forward hook stops it. Fails where a way cannot be made, or is not as it is known to be.
    Ways,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let wrong = match arguments.what {
        What::Sctp => {
            binaries()?;
            testbed::enter()?;
            sctp::run()?
        }
        What::Ways => {
            ensure!(
                testbed::enter()? == testbed::Privilege::Root,
                "modules are loaded here: run as root"
            );
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
