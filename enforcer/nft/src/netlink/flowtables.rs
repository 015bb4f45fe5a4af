//! Reads from which devices the flowtables of all tables take packets. This module changes nothing.
//!
//! A flowtable forwards the packets of connections that a rule gave to it (`flow add`), from the ingress hook of its
//! devices. These packets meet no other hook (the kernel's `Documentation/networking/nf_flowtable.rst`). Formats:
//! `linux/netfilter/nf_tables.h`.

use std::collections::BTreeMap;

use rustables::sys;

use super::{Error, Netlink};
use crate::encode::attributes::{self, Attributes};

/// `NFTA_DEVICE_PREFIX`, of Linux 6.16. The headers that many systems build with are older.
const DEVICE_PREFIX: u16 = 2;

/// The devices of all flowtables of the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flowtables {
    /// One flowtable for each device, by the device's name.
    devices: BTreeMap<String, String>,
    /// One flowtable for all devices whose names have a prefix, by the prefix.
    prefixes: BTreeMap<String, String>,
}

impl Flowtables {
    /// A flowtable that takes packets from a device, as `FAMILY TABLE NAME`; `None` if there is none.
    pub fn with(&self, device: &str) -> Option<&str> {
        let named = self.devices.get(device);
        let begins = || {
            let mut prefixes = self.prefixes.iter();
            prefixes.find(|(prefix, _)| device.starts_with(&***prefix))
        };
        named
            .or_else(|| begins().map(|(_, flowtable)| flowtable))
            .map(String::as_str)
    }

    /// A flowtable, as `FAMILY TABLE NAME`, for each of some devices.
    pub fn of<const N: usize>(devices: [(&str, &str); N]) -> Flowtables {
        let devices = devices.map(|(device, flowtable)| (device.to_owned(), flowtable.to_owned()));
        Flowtables {
            devices: devices.into(),
            prefixes: BTreeMap::new(),
        }
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.prefixes.is_empty()
    }

    /// Adds a flowtable as the kernel describes it: the family of its table, and its attributes.
    fn add(&mut self, family: u8, body: &[u8]) {
        let text = |kind| attributes::find(body, kind).map(attributes::text);
        let table = text(sys::NFTA_FLOWTABLE_TABLE).unwrap_or_default();
        let name = text(sys::NFTA_FLOWTABLE_NAME).unwrap_or_default();
        let name = format!("{} {table} {name}", family_name(family));
        let hook = attributes::find(body, sys::NFTA_FLOWTABLE_HOOK).unwrap_or_default();
        let devices = attributes::find(hook, sys::NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default();
        for (kind, device) in attributes::read(devices) {
            let known = match kind {
                sys::NFTA_DEVICE_NAME => &mut self.devices,
                DEVICE_PREFIX => &mut self.prefixes,
                _ => continue,
            };
            known.insert(attributes::text(device), name.clone());
        }
    }
}

impl Netlink {
    /// The devices of the flowtables of all tables in the network namespace.
    pub fn flowtables(&self) -> Result<Flowtables, Error> {
        let mut found = Flowtables::default();
        for family in [libc::NFPROTO_INET, libc::NFPROTO_IPV4, libc::NFPROTO_IPV6] {
            let family = family.cast_unsigned() as u8;
            let kind = sys::NFT_MSG_GETFLOWTABLE;
            for body in self.dump_of(family, kind, &Attributes::default())? {
                found.add(family, &body);
            }
        }
        Ok(found)
    }
}

/// The families whose tables may have flowtables (`nf_flow_table_inet.c` of the kernel), in nft's spelling.
fn family_name(family: u8) -> &'static str {
    match i32::from(family) {
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        _ => "inet",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flowtable as `nf_tables_fill_flowtable_info` of the kernel's `net/netfilter/nf_tables_api.c` writes it.
    fn flowtable(table: &str, name: &str, devices: &[(u16, &str)]) -> Vec<u8> {
        let mut list = Attributes::default();
        for (kind, device) in devices {
            match *kind {
                // A prefix has no NUL at its end.
                DEVICE_PREFIX => list.bytes(*kind, device.as_bytes()),
                _ => list.text(*kind, device),
            };
        }
        let mut hook = Attributes::default();
        hook.u32(sys::NFTA_FLOWTABLE_HOOK_NUM, 0);
        hook.u32(sys::NFTA_FLOWTABLE_HOOK_PRIORITY, 0);
        hook.nest(sys::NFTA_FLOWTABLE_HOOK_DEVS, &list);
        let mut body = Attributes::default();
        body.text(sys::NFTA_FLOWTABLE_TABLE, table);
        body.text(sys::NFTA_FLOWTABLE_NAME, name);
        body.u32(sys::NFTA_FLOWTABLE_USE, 1);
        body.nest(sys::NFTA_FLOWTABLE_HOOK, &hook);
        body.bytes
    }

    #[test]
    fn devices_are_found_by_name_and_by_prefix() {
        let mut found = Flowtables::default();
        assert!(found.is_empty());
        let name = sys::NFTA_DEVICE_NAME;
        let devices = [(name, "eth0"), (name, "veth1")];
        found.add(
            libc::NFPROTO_INET as u8,
            &flowtable("filter", "fast", &devices),
        );
        let devices = [(DEVICE_PREFIX, "cali")];
        found.add(libc::NFPROTO_IPV4 as u8, &flowtable("nat", "f", &devices));
        assert_eq!(found.with("eth0"), Some("inet filter fast"));
        assert_eq!(found.with("veth1"), Some("inet filter fast"));
        assert_eq!(found.with("veth"), None);
        assert_eq!(found.with("veth10"), None);
        assert_eq!(found.with("cali12345"), Some("ip nat f"));
        assert!(!found.is_empty());
    }

    #[test]
    fn what_is_no_flowtable_has_no_devices() {
        let mut found = Flowtables::default();
        found.add(0, &[]);
        let whole = flowtable("t", "f", &[(sys::NFTA_DEVICE_NAME, "eth0")]);
        for length in 0..whole.len() - 8 {
            found.add(1, &whole[..length]);
        }
        assert!(found.is_empty(), "{found:?}");
    }
}
