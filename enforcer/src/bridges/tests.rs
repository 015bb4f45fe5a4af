//! Tests of the findings about given bridges and sysctls, and of the corrections.

use std::{fs, path::Path};

use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use tempfile::TempDir;

use super::*;

const V4: &str = "bridge-nf-call-iptables";
const V6: &str = "bridge-nf-call-ip6tables";
const TAGGED: &str = "bridge-nf-filter-vlan-tagged";

fn sysctls(v4: &str, v6: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(V4), v4).unwrap();
    fs::write(directory.path().join(V6), v6).unwrap();
    // As the kernel has it.
    fs::write(directory.path().join(TAGGED), "0\n").unwrap();
    directory
}

fn bridge(name: &str, ports: usize) -> Bridge {
    Bridge {
        name: name.to_owned(),
        ports,
        asks: [false; 2],
        vlan_filtering: false,
    }
}

fn filtering(name: &str, ports: usize) -> Bridge {
    Bridge {
        vlan_filtering: true,
        ..bridge(name, ports)
    }
}

fn tagged(directory: &TempDir, value: &str) {
    fs::write(directory.path().join(TAGGED), value).unwrap();
}

/// Returns how many sysctls were set, or the problem.
fn look_as(rules: Rules, directory: &Path, bridges: &[Bridge]) -> Result<u64, String> {
    let mut all = Bridges::of(rules, directory.into());
    all.look(&Ok(bridges.to_vec()))
        .map(|()| all.set)
        .map_err(|problem| problem.to_string())
}

fn look(directory: &TempDir, bridges: &[Bridge]) -> Result<u64, String> {
    look_as(Rules::default(), directory.path(), bridges)
}

fn managed() -> Rules {
    Rules {
        manage: true,
        ..Rules::default()
    }
}

#[test]
fn a_bridge_that_forwards_needs_both_sysctls() {
    let two = [bridge("br0", 2)];
    assert_eq!(look(&sysctls("1\n", "1\n"), &two), Ok(0));
    let said = look(&sysctls("0\n", "1\n"), &two).unwrap_err();
    assert_eq!(
        said,
        "traffic between the ports of a bridge meets no policy: IPv4 of br0 (2 ports), since \
         net.bridge.bridge-nf-call-iptables is 0. Remedy: `sysctl -w net.bridge.bridge-nf-call-iptables=1`, or start \
         the enforcer with --manage-sysctls; for a bridge without workloads say --ignore-bridge br0"
    );
    let said = look(&sysctls("1\n", "0\n"), &two).unwrap_err();
    assert!(said.contains("IPv6 of br0 (2 ports), since net.bridge.bridge-nf-call-ip6tables is 0"));
    assert!(!said.contains("IPv4"), "{said}");
    let said = look(&sysctls("0\n", "0\n"), &two).unwrap_err();
    assert!(
        said.contains("IPv4 of") && said.contains("; IPv6 of"),
        "{said}"
    );
}

#[test]
fn without_br_netfilter_all_bridges_pass_it_by() {
    let directory = tempfile::tempdir().unwrap();
    let mut asking = bridge("br0", 2);
    asking.asks = [true; 2];
    let said = look(&directory, &[asking]).unwrap_err();
    assert!(
        said.contains("bridge-nf-call-iptables is not there"),
        "{said}"
    );
    assert!(
        said.contains("`modprobe br_netfilter` and `sysctl -w "),
        "{said}"
    );
}

#[test]
fn a_bridge_that_forwards_nothing_or_is_ignored_needs_none() {
    let off = sysctls("0", "0");
    assert_eq!(look(&off, &[]), Ok(0));
    assert_eq!(look(&off, &[bridge("br0", 0), bridge("br1", 1)]), Ok(0));
    let rules = Rules {
        ignored: vec!["br0".to_owned()],
        ..Rules::default()
    };
    assert_eq!(
        look_as(rules.clone(), off.path(), &[bridge("br0", 9)]),
        Ok(0)
    );
    let said = look_as(rules, off.path(), &[bridge("br0", 9), bridge("br1", 2)]).unwrap_err();
    assert!(
        said.contains("br1 (2 ports)") && !said.contains("br0"),
        "{said}"
    );
}

#[test]
fn a_bridge_may_ask_for_itself() {
    let off = sysctls("0", "0");
    let mut asking = bridge("br0", 3);
    asking.asks = [true, true];
    assert_eq!(look(&off, &[asking.clone()]), Ok(0));
    let said = look(&off, &[asking.clone(), bridge("br1", 2)]).unwrap_err();
    assert!(!said.contains("br0"), "{said}");
    asking.asks = [true, false];
    let said = look(&off, &[asking]).unwrap_err();
    assert!(
        said.contains("IPv6 of br0") && !said.contains("IPv4"),
        "{said}"
    );
}

#[test]
fn a_bridge_that_filters_vlans_needs_tagged_frames_shown() {
    let directory = sysctls("1\n", "1\n");
    let bridges = [bridge("br0", 2), filtering("br1", 2)];
    let said = look(&directory, &bridges).unwrap_err();
    assert_eq!(
        said,
        "traffic between the ports of a bridge meets no policy: IPv4 and IPv6 with a VLAN tag of br1 (2 ports), since \
         net.bridge.bridge-nf-filter-vlan-tagged is 0. Remedy: `sysctl -w net.bridge.bridge-nf-filter-vlan-tagged=1`, or \
         start the enforcer with --manage-sysctls; for a bridge without workloads say --ignore-bridge br1"
    );
    assert_eq!(look(&directory, &[bridge("br0", 2)]), Ok(0));
    assert_eq!(look(&directory, &[filtering("br1", 1)]), Ok(0));
    let rules = Rules {
        ignored: vec!["br1".to_owned()],
        ..Rules::default()
    };
    assert_eq!(look_as(rules, directory.path(), &bridges), Ok(0));
    tagged(&directory, "1\n");
    assert_eq!(look(&directory, &bridges), Ok(0));
    // A kernel whose br_netfilter has no such sysctl shows no frame with a tag.
    fs::remove_file(directory.path().join(TAGGED)).unwrap();
    let said = look(&directory, &bridges).unwrap_err();
    assert!(said.contains("filter-vlan-tagged is not there"), "{said}");
}

#[test]
fn what_a_bridge_asks_for_itself_holds_for_no_tagged_frame() {
    let mut asking = filtering("br0", 2);
    asking.asks = [true; 2];
    let off = sysctls("0", "0");
    let said = look(&off, std::slice::from_ref(&asking)).unwrap_err();
    assert!(said.contains("with a VLAN tag of br0"), "{said}");
    assert!(!said.contains("-call-"), "{said}");
    tagged(&off, "1");
    assert_eq!(look(&off, &[asking]), Ok(0));
}

#[test]
fn many_bridges_are_counted() {
    let bridges: Vec<_> = (0..7).map(|n| bridge(&format!("br{n}"), 2)).collect();
    let said = look(&sysctls("0", "1"), &bridges).unwrap_err();
    assert!(said.contains("br4 (2 ports) and 2 more, since"), "{said}");
    assert!(said.ends_with("--ignore-bridge NAME"), "{said}");
}

#[test]
fn what_is_not_known_is_not_taken_for_judged() {
    let failed = || Err("no buffer space available".to_owned());
    for (v4, v6, tags, is_judged) in [
        ("1", "1", "1", true),
        ("1", "0", "1", false),
        ("0", "1", "1", false),
        // One of the bridges may filter VLANs.
        ("1", "1", "0", false),
    ] {
        let directory = sysctls(v4, v6);
        tagged(&directory, tags);
        let mut all = Bridges::of(Rules::default(), directory.path().into());
        let found = all.look(&failed());
        assert_eq!(found.is_ok(), is_judged, "{v4} {v6} {tags}: {found:?}");
    }
    // None of them did when they were last listed.
    let directory = sysctls("1", "1");
    let mut all = Bridges::of(Rules::default(), directory.path().into());
    assert!(all.look(&failed()).is_err());
    assert!(all.look(&Ok(vec![bridge("br0", 2)])).is_ok());
    assert!(all.look(&failed()).is_ok());
    assert!(all.look(&Ok(vec![filtering("br0", 2)])).is_err());
    assert!(all.look(&failed()).is_err());
    let empty = tempfile::tempdir().unwrap();
    let mut all = Bridges::of(Rules::default(), empty.path().into());
    let said = all.look(&failed()).unwrap_err().to_string();
    assert!(said.contains("cannot be listed (no buffer space"), "{said}");
}

#[test]
fn sysctls_are_set_where_that_is_allowed_and_needed() {
    let read = |directory: &TempDir| {
        [V4, V6, TAGGED].map(|file| fs::read_to_string(directory.path().join(file)).unwrap())
    };
    let off = sysctls("0\n", "1\n");
    assert_eq!(look_as(managed(), off.path(), &[]), Ok(0));
    assert_eq!(read(&off), ["0\n", "1\n", "0\n"]);
    // Before the second port joins.
    assert_eq!(look_as(managed(), off.path(), &[bridge("br0", 1)]), Ok(1));
    assert_eq!(read(&off), ["1\n", "1\n", "0\n"]);
    let both = sysctls("0\n", "0\n");
    assert_eq!(look_as(managed(), both.path(), &[bridge("br0", 2)]), Ok(2));
    assert_eq!(read(&both), ["1\n", "1\n", "0\n"]);
    assert_eq!(
        look_as(managed(), both.path(), &[filtering("br0", 1)]),
        Ok(1)
    );
    assert_eq!(read(&both), ["1\n", "1\n", "1\n"]);
}

#[test]
fn a_sysctl_that_cannot_be_set_is_told_with_the_reason() {
    let empty = tempfile::tempdir().unwrap();
    let said = look_as(managed(), empty.path(), &[bridge("br0", 2)]).unwrap_err();
    assert!(
        said.contains("and the sysctl cannot be set: ")
            && said.contains("br_netfilter is not loaded"),
        "{said}"
    );
    assert!(!said.contains("--manage-sysctls"), "{said}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn a_condition_is_set_once_and_cleared() {
    let health = Health::default();
    let mut reporter = Reporter::new(health.clone());
    let condition = || {
        health
            .watch()
            .borrow()
            .conditions
            .get(&Kind::NotJudged)
            .cloned()
    };
    reporter.report(None);
    assert_eq!(condition(), None);
    reporter.report(Some(Problem::Unknown("a".into())));
    let first = condition().unwrap();
    reporter.report(Some(Problem::Unknown("b".into())));
    let second = condition().unwrap();
    assert_eq!(first.since, second.since);
    assert!(second.reason.contains("(b)"), "{}", second.reason);
    reporter.report(None);
    assert_eq!(condition(), None);
}

#[test]
fn bridges_are_told_from_other_links() {
    let link = |index: u32, name: &str, more: Vec<LinkAttribute>| {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        link.attributes.extend(more);
        link
    };
    let kind = |kind, data: Vec<LinkInfo>| {
        let infos = std::iter::once(LinkInfo::Kind(kind)).chain(data);
        vec![LinkAttribute::LinkInfo(infos.collect())]
    };
    let data = LinkInfo::Data(InfoData::Bridge(vec![
        InfoBridge::NfCallIpTables(true),
        InfoBridge::NfCallIp6Tables(false),
        InfoBridge::VlanFiltering(true),
    ]));
    let links = [
        link(1, "lo", vec![]),
        link(2, "br0", kind(InfoKind::Bridge, vec![data])),
        link(3, "br1", kind(InfoKind::Bridge, vec![])),
        link(4, "bond0", kind(InfoKind::Bond, vec![])),
        link(5, "a", vec![LinkAttribute::Controller(2)]),
        link(6, "b", vec![LinkAttribute::Controller(2)]),
        link(7, "c", vec![LinkAttribute::Controller(4)]),
    ];
    let found = links::among(&links);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].name.as_str(), found[0].ports), ("br0", 2));
    assert_eq!(found[0].asks, [true, false]);
    assert!(found[0].vlan_filtering);
    assert_eq!(found[1], bridge("br1", 0));
}
