//! The memory of an enforcer whose one policy has many peers. Measures no packet.

use anyhow::{Context, Result};
use sallyport_integration::{binaries::Binaries, deployment::Deployment};
use sallyport_testbed::{Testbed, usage::Usage};

use crate::{
    beds::deploy,
    cluster::{LOCAL, SERVER, Size},
};

/// The memory of an enforcer once it enforces, and its peak until then, in MiB.
pub(crate) fn measure(programs: &Binaries, peers: u32) -> Result<(f64, f64)> {
    let bed = Testbed::builder().build()?;
    bed.add_pod(0, "bench/server", &[SERVER.into()])?;
    bed.add_pod(0, "bench/local", &[LOCAL.into()])?;
    let size = Size {
        policies: 1,
        senders: peers,
    };
    let deployment: Deployment = deploy(bed, programs, size)?;
    let pid = deployment
        .enforcer_pid(0)
        .context("the enforcer has ended")?;
    let (now, most) = Usage(pid).memory()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok((mib(now), mib(most)))
}
