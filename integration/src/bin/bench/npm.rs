//! The sets and rules that Azure Network Policy Manager (version 2, Linux) makes of a cluster, for `ipset restore` and
//! `iptables-restore`. Only writes them.
//!
//! Its rules have comments, which are left out: they would only cost more.

use std::fmt::Write as _;

use crate::cluster::{LOCAL, PORT, SERVER, Size};

/// The set of the pods of the namespace, and that of the pods that the policies select.
const NAMESPACE_SET: &str = "ns";
const SELECTED_SET: &str = "podlabel-server";

/// The address sets: of each label, and of the namespace.
pub(crate) fn sets(size: Size) -> String {
    let mut text = String::new();
    create(&mut text, SELECTED_SET);
    add(&mut text, SELECTED_SET, SERVER);
    create(&mut text, NAMESPACE_SET);
    for pod in [SERVER, LOCAL] {
        add(&mut text, NAMESPACE_SET, pod);
    }
    for policy in 0..size.policies {
        let set = peer_set(policy);
        create(&mut text, &set);
        for address in size.peers(policy) {
            add(&mut text, &set, address);
            add(&mut text, NAMESPACE_SET, address);
        }
    }
    add(&mut text, &peer_set(0), LOCAL);
    text
}

fn peer_set(policy: u32) -> String {
    format!("podlabel-p{policy}")
}

// Writing to a string does not fail.
fn create(text: &mut String, set: &str) {
    let _ = writeln!(text, "create {set} hash:net maxelem 4294967295");
}

fn add(text: &mut String, set: &str, address: std::net::Ipv4Addr) {
    let _ = writeln!(text, "add {set} {address}");
}

/// The table `filter`. A policy that is new goes before those that there are, so policy 0 comes last.
pub(crate) fn rules(size: Size) -> String {
    let mut text = String::from(BASE_CHAINS);
    for policy in 0..size.policies {
        let _ = writeln!(text, ":AZURE-NPM-INGRESS-{policy} - [0:0]");
    }
    text += BEFORE_POLICIES;
    for policy in (0..size.policies).rev() {
        let _ = writeln!(
            text,
            "-A AZURE-NPM-INGRESS -j AZURE-NPM-INGRESS-{policy} \
             -m set --match-set {SELECTED_SET} dst -m set --match-set {NAMESPACE_SET} dst"
        );
    }
    text += BEHIND_POLICIES;
    for policy in 0..size.policies {
        let peers = peer_set(policy);
        let _ = writeln!(
            text,
            "-A AZURE-NPM-INGRESS-{policy} -j AZURE-NPM-INGRESS-ALLOW-MARK -p udp --dport {PORT} \
             -m set --match-set {peers} src -m set --match-set {NAMESPACE_SET} src\n\
             -A AZURE-NPM-INGRESS-{policy} -j MARK --set-mark 0x4000"
        );
    }
    text + "COMMIT\n"
}

const BASE_CHAINS: &str = "*filter
:FORWARD ACCEPT [0:0]
:AZURE-NPM - [0:0]
:AZURE-NPM-INGRESS - [0:0]
:AZURE-NPM-INGRESS-ALLOW-MARK - [0:0]
:AZURE-NPM-EGRESS - [0:0]
:AZURE-NPM-ACCEPT - [0:0]
";

const BEFORE_POLICIES: &str = "-A FORWARD -m conntrack --ctstate NEW -j AZURE-NPM
-A AZURE-NPM -j AZURE-NPM-INGRESS
-A AZURE-NPM -j AZURE-NPM-EGRESS
-A AZURE-NPM -j AZURE-NPM-ACCEPT
";

const BEHIND_POLICIES: &str = "-A AZURE-NPM-INGRESS -j DROP -m mark --mark 0x4000
-A AZURE-NPM-INGRESS-ALLOW-MARK -j MARK --set-mark 0x2000
-A AZURE-NPM-INGRESS-ALLOW-MARK -j AZURE-NPM-EGRESS
-A AZURE-NPM-EGRESS -j DROP -m mark --mark 0x5000
-A AZURE-NPM-EGRESS -j AZURE-NPM-ACCEPT -m mark --mark 0x2000
-A AZURE-NPM-ACCEPT -j MARK --set-mark 0x0
-A AZURE-NPM-ACCEPT -j ACCEPT
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_that_allows_the_senders_is_asked_last() {
        let rules = rules(Size {
            policies: 3,
            senders: 1,
        });
        let asked: Vec<_> = rules
            .lines()
            .filter_map(|line| line.strip_prefix("-A AZURE-NPM-INGRESS -j AZURE-NPM-INGRESS-"))
            .map(|line| &line[..1])
            .collect();
        assert_eq!(asked, ["2", "1", "0"]);
    }
}
