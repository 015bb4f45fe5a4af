//! The named ports of pods and workloads: the API server's rules for container ports. Knows nothing of where in an
//! object a port stands.

use sallyport_policy::Protocol;
use sallyport_proto::names;

use super::field::{Faults, Path, quote};
use crate::model::NamedPort;

/// A port as a container or a workload declares it.
pub(crate) struct PortEntry<'a> {
    /// Its name, if it has one.
    pub(crate) name: &'a str,
    /// Its protocol; empty means TCP.
    pub(crate) protocol: &'a str,
    /// Its number.
    pub(crate) number: i32,
    /// The manifest's field for the number: `containerPort` or `port`.
    pub(crate) number_field: &'static str,
}

/// A protocol by its name.
pub(crate) fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Appends the ports of one container that have a name. A port without a name is checked and otherwise means nothing
/// to a policy, as in Kubernetes.
pub(crate) fn named_ports<'a>(
    entries: impl Iterator<Item = PortEntry<'a>>,
    at: Path<'_>,
    ports: &mut Vec<NamedPort>,
    faults: &mut Faults,
) {
    let first = ports.len();
    for (i, entry) in entries.enumerate() {
        let at = at.index(i);
        if !entry.name.is_empty() {
            let wrong = names::port_name(entry.name);
            if wrong.is_empty() && ports[first..].iter().any(|port| port.name == entry.name) {
                faults.duplicate(at.field("name"), quote(entry.name));
            }
            faults.invalid_each(at.field("name"), entry.name, wrong);
        }
        let number = match entry.number {
            0 => {
                faults.required(at.field(entry.number_field), "");
                None
            }
            number => names::port_number(number)
                .map_err(|rule| faults.invalid(at.field(entry.number_field), number, rule))
                .ok(),
        };
        let protocol = match entry.protocol {
            "" => Some(Protocol::Tcp),
            text => {
                let known = protocol(text);
                if known.is_none() {
                    faults.unsupported(at.field("protocol"), text, &["SCTP", "TCP", "UDP"]);
                }
                known
            }
        };
        if let (false, Some(port), Some(protocol)) = (entry.name.is_empty(), number, protocol) {
            ports.push(NamedPort {
                name: entry.name.to_owned(),
                protocol,
                port,
            });
        }
    }
}
