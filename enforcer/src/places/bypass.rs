//! The interfaces whose packets pass the forward hook by.

use std::fmt;

use rtnetlink::packet_route::link::InfoKind;

/// Why packets of an interface pass the forward hook of the node by: its kind (`IFLA_INFO_KIND` of `linux/if_link.h`),
/// or that of the link that it is enslaved to. `datapath ways` of the integration tests tries macvlan and ipvlan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// Its lower interface sends its frames to the other ones of it and to the wire.
    Macvlan,
    /// The same, and a process takes the frames from it (a virtual machine).
    Macvtap,
    /// Its lower interface sends its packets to the other ones of it and to the wire.
    Ipvlan,
    /// The same, and a process takes the frames from it.
    Ipvtap,
    /// An Open vSwitch datapath, or an internal port of one.
    OpenVswitch,
    /// An interface that is a port of an Open vSwitch datapath.
    OpenVswitchPort,
}

impl Bypass {
    /// The bypass of an interface of a kind, if its packets do not meet the forward hook.
    pub(super) fn of(kind: &InfoKind) -> Option<Bypass> {
        match kind {
            InfoKind::MacVlan => Some(Bypass::Macvlan),
            InfoKind::MacVtap => Some(Bypass::Macvtap),
            InfoKind::IpVlan => Some(Bypass::Ipvlan),
            InfoKind::IpVtap => Some(Bypass::Ipvtap),
            // `DP_VPORT_TYPE_NAME` of the kernel's `net/openvswitch/vport-internal_dev.c`.
            InfoKind::Other(kind) if kind == "openvswitch" => Some(Bypass::OpenVswitch),
            _ => None,
        }
    }
}

impl fmt::Display for Bypass {
    /// As a noun: `a macvlan device`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bypass::Macvlan => "a macvlan device",
            Bypass::Macvtap => "a macvtap device",
            Bypass::Ipvlan => "an ipvlan device",
            Bypass::Ipvtap => "an ipvtap device",
            Bypass::OpenVswitch => "a device of Open vSwitch",
            Bypass::OpenVswitchPort => "a port of Open vSwitch",
        })
    }
}
