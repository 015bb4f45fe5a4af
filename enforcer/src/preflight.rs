//! What must be so before a node can enforce: the privilege. Looks, and changes nothing. Its bridges are another module's.

use std::fs;

/// Why a node cannot enforce.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The capability is missing.
    #[error(
        "CAP_NET_ADMIN is missing: run as root, or grant just that capability \
         (systemd: AmbientCapabilities=CAP_NET_ADMIN; containers: cap_add: [NET_ADMIN], uid 0)"
    )]
    Privilege,
}

/// The bit of CAP_NET_ADMIN (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;

/// Checks that the process has CAP_NET_ADMIN.
pub fn privilege() -> Result<(), Problem> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    if effective & (1 << CAP_NET_ADMIN) == 0 {
        return Err(Problem::Privilege);
    }
    Ok(())
}
