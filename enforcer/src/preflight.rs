//! What must be so before a node can enforce: privilege, a kernel with nf_tables, and no traffic that passes the
//! forward hook by. Looks, and changes nothing.

use std::fs;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

/// Why a node cannot enforce.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The capability is missing.
    #[error(
        "CAP_NET_ADMIN is missing: run as root, or grant just that capability \
         (systemd: AmbientCapabilities=CAP_NET_ADMIN; containers: cap_add: [NET_ADMIN], uid 0)"
    )]
    Privilege,
    /// Frames between ports of a bridge do not meet the forward hook.
    #[error(
        "bridge {bridge} has {ports} ports, and traffic between them would bypass enforcement: {sysctl} is {value}. \
         Remedy: `modprobe br_netfilter` and `sysctl -w {sysctl}=1`; if no workloads are behind this bridge, start \
         with `--ignore-bridge {bridge}`"
    )]
    BridgeBypass {
        /// The bridge.
        bridge: String,
        /// How many ports it has.
        ports: usize,
        /// The setting.
        sysctl: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel would not tell which interfaces there are.
    #[error("cannot list the network interfaces: {0}")]
    Interfaces(String),
}

/// The bit of CAP_NET_ADMIN (`linux/capability.h`).
const CAP_NET_ADMIN: u32 = 12;

/// The settings that send bridged frames through the forward hook.
const CALLS: [(&str, &str); 2] = [
    (
        "net.bridge.bridge-nf-call-iptables",
        "/proc/sys/net/bridge/bridge-nf-call-iptables",
    ),
    (
        "net.bridge.bridge-nf-call-ip6tables",
        "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    ),
];

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

/// Checks that bridged traffic meets the forward hook. A bridge with fewer than two ports forwards nothing.
pub async fn bridges(ignored: &[String]) -> Result<(), Problem> {
    let failed = |error: &dyn std::fmt::Display| Problem::Interfaces(error.to_string());
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let links: Result<Vec<LinkMessage>, _> = handle.link().get().execute().try_collect().await;
    connection.abort();
    let links = links.map_err(|error| failed(&error))?;
    let Some((bridge, ports)) = bridges_among(&links, ignored).next() else {
        return Ok(());
    };
    for (sysctl, path) in CALLS {
        let value = fs::read_to_string(path)
            .map_or_else(|_| "not there".into(), |value| value.trim().to_owned());
        if value != "1" {
            return Err(Problem::BridgeBypass {
                bridge,
                ports,
                sysctl,
                value,
            });
        }
    }
    Ok(())
}

fn bridges_among<'a>(
    links: &'a [LinkMessage],
    ignored: &'a [String],
) -> impl Iterator<Item = (String, usize)> + 'a {
    let is_bridge = |link: &&LinkMessage| {
        link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::LinkInfo(infos)
                if infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge))))
        })
    };
    let name = |link: &LinkMessage| {
        link.attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
    };
    links.iter().filter(is_bridge).filter_map(move |bridge| {
        let name = name(bridge)?;
        let index = bridge.header.index;
        let port =
            |link: &&LinkMessage| link.attributes.contains(&LinkAttribute::Controller(index));
        let ports = links.iter().filter(port).count();
        (ports > 1 && !ignored.contains(&name)).then_some((name, ports))
    })
}
