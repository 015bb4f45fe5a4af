//! Owns what the kernel counts of a running process, memory and CPU time; starts and ends none.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// A running process, by its number.
#[derive(Clone, Copy, Debug)]
pub struct Usage(pub u32);

impl Usage {
    /// Memory in use now, and at most so far, in bytes.
    pub fn memory(self) -> Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes =
                line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            kilobytes
                .map(|kilobytes| kilobytes << 10)
                .context("a process has memory")
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// The CPU time that it took so far.
    pub fn cpu(self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // The name may hold anything, and ends with the last parenthesis; user and system time are fields 14 and 15.
        let (_, fields) = stat.rsplit_once(')').context("a process has a name")?;
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>())
            .sum::<Result<u64, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock ticks")?;
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }
}
