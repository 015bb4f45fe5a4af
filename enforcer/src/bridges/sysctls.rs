//! The sysctls of a network namespace that send bridged frames through the forward hook. Knows no bridge.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
};

/// The directory of br_netfilter's sysctls, those of the reader's network namespace. Without the module it does not
/// exist.
pub(super) const DIRECTORY: &str = "/proc/sys/net/bridge";

/// A sysctl that sends some bridged frames through the forward hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `bridge-nf-call-iptables`.
    V4,
    /// `bridge-nf-call-ip6tables`.
    V6,
    /// `bridge-nf-filter-vlan-tagged`, for IPv4 and IPv6 in frames with one tag, which the other two say nothing of
    /// (`is_vlan_ip` of the kernel's `net/bridge/br_netfilter_hooks.c`). No attribute of a bridge does the same.
    VlanTagged,
}

impl Call {
    pub(super) const ALL: [Call; 3] = [Call::V4, Call::V6, Call::VlanTagged];

    /// The traffic that meets no policy without it.
    pub(super) fn traffic(self) -> &'static str {
        match self {
            Call::V4 => "IPv4",
            Call::V6 => "IPv6",
            Call::VlanTagged => "IPv4 and IPv6 with a VLAN tag",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Call::V4 => "bridge-nf-call-iptables",
            Call::V6 => "bridge-nf-call-ip6tables",
            Call::VlanTagged => "bridge-nf-filter-vlan-tagged",
        }
    }
}

/// As `sysctl` takes it.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net.bridge.{}", self.file())
    }
}

/// The value of a sysctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    On,
    /// Something else than 1.
    Off(String),
    /// There is none: br_netfilter is not loaded.
    Missing,
    /// The file exists and cannot be read.
    Unreadable(String),
}

impl Value {
    /// Whether frames of a bridge meet the forward hook, which asks for it itself or does not. A bridge that asks is
    /// heard by br_netfilter alone.
    pub(super) fn judges(&self, bridge_asks: bool) -> bool {
        match self {
            Value::On => true,
            Value::Off(_) => bridge_asks,
            Value::Missing | Value::Unreadable(_) => false,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::On => f.write_str("is 1"),
            Value::Off(value) => write!(f, "is {value}"),
            Value::Missing => f.write_str("is not there"),
            Value::Unreadable(error) => write!(f, "cannot be read ({error})"),
        }
    }
}

/// The sysctls in a directory.
#[derive(Debug)]
pub(super) struct Sysctls(PathBuf);

impl Sysctls {
    pub(super) fn new(directory: PathBuf) -> Sysctls {
        Sysctls(directory)
    }

    /// The value that a sysctl has now.
    pub(super) fn read(&self, call: Call) -> Value {
        match fs::read_to_string(self.0.join(call.file())) {
            Ok(text) if text.trim() == "1" => Value::On,
            Ok(text) => Value::Off(text.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Missing,
            Err(error) => Value::Unreadable(error.to_string()),
        }
    }

    /// Sets a sysctl to 1. Makes no file. Returns why it cannot, in words.
    pub(super) fn set(&self, call: Call) -> Result<(), String> {
        let path = self.0.join(call.file());
        let file = File::options().write(true).open(path);
        file.and_then(|mut file| file.write_all(b"1\n"))
            .map_err(|error| format!("{error}{}", hint(error.kind())))
    }
}

/// The likely cause of an error, in words.
fn hint(error: io::ErrorKind) -> &'static str {
    match error {
        io::ErrorKind::ReadOnlyFilesystem => {
            ": /proc/sys is read-only for the enforcer, as in containers that are not privileged and under systemd's \
             ProtectKernelTunables=yes"
        }
        io::ErrorKind::PermissionDenied => {
            ": that takes CAP_NET_ADMIN in the user namespace of the network namespace"
        }
        io::ErrorKind::NotFound => ": br_netfilter is not loaded",
        _ => "",
    }
}
