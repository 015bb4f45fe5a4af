//! Owns the rules that NodeLocal DNS writes for the addresses that its cache listens on: no connection of theirs is
//! tracked, and so none is translated.

use std::io;
use std::net::IpAddr;

use super::restore;
use crate::{Family, Host};

/// Writes the rules for the cache's addresses on a node, where they are addresses of a link of the node.
pub fn write_node_dns(node: &Host, addresses: &[IpAddr]) -> io::Result<()> {
    for &address in addresses {
        restore(node.netns(), Family::of(address), &rules(address))?;
    }
    Ok(())
}

fn rules(address: IpAddr) -> String {
    let both = |line: &str| ["tcp", "udp"].map(|protocol| line.replace("PROTOCOL", protocol));
    let raw = [
        both(&format!(
            "-I PREROUTING -p PROTOCOL -d {address} --dport 53 -j NOTRACK"
        )),
        both(&format!(
            "-I OUTPUT -p PROTOCOL -s {address} --sport 53 -j NOTRACK"
        )),
        both(&format!(
            "-I OUTPUT -p PROTOCOL -d {address} --dport 53 -j NOTRACK"
        )),
    ];
    let filter = [
        both(&format!(
            "-I INPUT -p PROTOCOL -d {address} --dport 53 -j ACCEPT"
        )),
        both(&format!(
            "-I OUTPUT -p PROTOCOL -s {address} --sport 53 -j ACCEPT"
        )),
    ];
    let health = format!(
        "-I OUTPUT -p tcp -d {address} --dport 8080 -j NOTRACK\n-I OUTPUT -p tcp -s {address} --sport 8080 -j NOTRACK"
    );
    let (raw, filter) = (raw.concat().join("\n"), filter.concat().join("\n"));
    format!("*raw\n{raw}\n{health}\nCOMMIT\n*filter\n{filter}\nCOMMIT\n")
}
