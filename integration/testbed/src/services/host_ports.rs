//! Owns the rules that the CNI plugin `portmap` writes for the host ports of a pod, with iptables.

use std::io;

use super::{hash, restore};
use crate::{Family, Host};

/// A pod's port that is reached at its node's addresses.
#[derive(Debug, Clone, Copy)]
pub struct HostPort {
    /// The port of the node.
    pub host: u16,
    /// The port of the pod.
    pub pod: u16,
}

/// Writes the rules for a TCP port of a pod. `prefixes` are those of the addresses that the pod got with the range of
/// its node's pods, IPv4 first.
pub fn write_host_ports(
    node: &Host,
    pod: &Host,
    port: HostPort,
    prefixes: [u8; 2],
) -> io::Result<()> {
    for (family, prefix) in [Family::V4, Family::V6].into_iter().zip(prefixes) {
        if let Some(address) = pod.address(family) {
            let to = std::net::SocketAddr::new(address, port.pod);
            let own = format!("{address}/{prefix}");
            let chain = format!("CNI-DN-{}", hash(&format!("{}{to}", pod.name()), 21));
            restore(
                node.netns(),
                family,
                &rules(family, &chain, &own, port, &to.to_string()),
            )?;
        }
    }
    Ok(())
}

fn rules(family: Family, chain: &str, own: &str, port: HostPort, to: &str) -> String {
    let at = format!("-p tcp --dport {}", port.host);
    let localhost = match family {
        Family::V4 => format!("-A {chain} {at} -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK\n"),
        Family::V6 => String::new(),
    };
    format!(
        "*nat
:CNI-HOSTPORT-SETMARK - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:{chain} - [0:0]
-I POSTROUTING 1 -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-DNAT -m comment --comment \"dnat name: cbr0\" -m multiport -p tcp --destination-ports {} -j {chain}
-A {chain} {at} -s {own} -j CNI-HOSTPORT-SETMARK
{localhost}-A {chain} {at} -j DNAT --to-destination {to}
COMMIT
",
        port.host
    )
}
