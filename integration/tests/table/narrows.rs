//! The guard follows the policy on the safe side: addresses that workloads may use beside their own are let through
//! once policy judges them, and until then no longer.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    sys::socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
    },
};
use sallyport_enforcer::{
    agent,
    guard::Rules,
    health::Health,
    table::{ports::Ports, render::Options},
};
use sallyport_nft::{
    command::{Family, SetKind, TableFamily},
    decode,
    encode::attributes,
};
use sallyport_policy::{Delta, Endpoint, NodePolicy, Owner, Ranges, Source, Update};
use sallyport_testbed::{
    Netns,
    kernel_tests::{Failed, Outcome},
};

use crate::{options, position};

/// A workload behind an interface, which may use some addresses of 192.0.2.0/24.
fn policy(spans: &[[u8; 2]]) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let endpoint = Endpoint {
        name: "gateway".into(),
        interface: "veth9".into(),
        ..Endpoint::default()
    };
    policy.set_endpoint([10, 0, 0, 1].into(), Arc::new(endpoint));
    let ranges = spans.iter().map(|&[first, last]| {
        let [first, last] = [first, last].map(|n| [192, 0, 2, n].into());
        Ranges::span(first, last).expect("a range")
    });
    let ranges: Vec<Ranges> = ranges.collect();
    let source = Source {
        owners: vec![Owner {
            name: "gateway".into(),
            ..Owner::default()
        }],
        ranges: Ranges::union_all(&ranges),
        ..Source::default()
    };
    policy.set_sources(Arc::new(Source::canonical([source])));
    policy
}

/// The number of the multicast group that hears of commits (`NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`), as a
/// bit.
const COMMITS: u32 = 1 << 6;

/// `NFT_MSG_NEWSETELEM` and `NFT_MSG_DELSETELEM`, the set's name and its elements in them
/// (`linux/netfilter/nf_tables.h`).
const MESSAGES: [(u8, &str); 2] = [(12, "add"), (14, "delete")];
const SET: u16 = 2;
const ELEMENTS: u16 = 3;

/// A socket that hears of commits. nft 1.0.6 hears of them, too, and dies of ranges behind interfaces.
fn listen() -> nix::Result<OwnedFd> {
    let (kind, protocol) = (SockType::Raw, SockProtocol::NetlinkNetFilter);
    let socket = socket::socket(AddressFamily::Netlink, kind, SockFlag::empty(), protocol)?;
    // Nothing is read before all is done.
    socket::setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
    socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, COMMITS))?;
    Ok(socket)
}

/// The commits so far, in order: the changes of the addresses, and the steps of updates.
fn commits(socket: &OwnedFd) -> nix::Result<Vec<String>> {
    let (mut commits, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let flags = MsgFlags::MSG_DONTWAIT;
        let length = match socket::recv(socket.as_raw_fd(), &mut buffer, flags) {
            Err(Errno::EAGAIN) => return Ok(commits),
            received => received?,
        };
        let mut rest = &buffer[..length];
        while let Some((header, _)) = rest.split_at_checked(20) {
            let size = u32::from_ne_bytes(header[..4].try_into().expect("four bytes")) as usize;
            if let Some((_, verb)) = MESSAGES.iter().find(|(kind, _)| *kind == header[4]) {
                let family = match i32::from(header[16]) {
                    libc::NFPROTO_BRIDGE => TableFamily::Bridge,
                    _ => TableFamily::Inet,
                };
                note(&mut commits, &format!("{family} {verb}"), &rest[20..size]);
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn note(commits: &mut Vec<String>, verb: &str, body: &[u8]) {
    let set = attributes::find(body, SET).map(attributes::text);
    let elements = attributes::find(body, ELEMENTS).unwrap_or_default();
    let elements = || attributes::read(elements).map(|(_, element)| element);
    match set.as_deref() {
        Some("port_ranges4") => {
            let kind = SetKind::InterfaceRanges(Family::V4);
            let all = decode::elements(kind, elements()).into_iter().flatten();
            commits.extend(all.map(|element| format!("{verb} {element}")));
        }
        Some("stamp") if verb == "inet add" => {
            let all = decode::elements(SetKind::Numbers, elements());
            let stamps = all.into_iter().flatten().map(|stamp| stamp.to_string());
            let revision = |stamp: String| {
                let mut words = stamp.split(' ').skip_while(|word| *word != "revision");
                words.nth(1).map(|number| format!("revision {number}"))
            };
            commits.extend(stamps.filter_map(revision));
            // Each step of an update says so.
            commits.dedup();
        }
        _ => {}
    }
}

pub(crate) fn before_policy_releases_addresses() -> Outcome {
    let netns = Netns::new("narrows")?;
    let directory = tempfile::tempdir()?;
    let agent = netns.run(|| {
        let (rules, health) = (Rules::default(), Health::default());
        let options = Options {
            lease: None,
            ports: Ports::default(),
            ..options()
        };
        agent::start(directory.path(), options, rules, health)
    })?;
    let socket = netns.run(listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (mut before, mut base) = (NodePolicy::default(), None);
    let updates: [&[[u8; 2]]; 4] = [&[[1, 5]], &[[1, 9]], &[[1, 3]], &[]];
    for (spans, revision) in updates.into_iter().zip(1..) {
        let policy = policy(spans);
        let target = position(&policy, revision);
        let update = Update {
            base,
            target,
            keep: Vec::new(),
            delta: Delta::between(&before, &policy),
        };
        runtime.block_on(agent.apply(update))?;
        (before, base) = (policy, Some(target));
    }
    let commits = commits(&socket)?;
    let tables = [TableFamily::Inet, TableFamily::Bridge];
    let changes = |changes: &[(&str, u8)]| -> Vec<String> {
        let of = |table: TableFamily| {
            let change = move |(verb, last): &(&str, u8)| {
                format!("{table} {verb} \"veth9\" . 192.0.2.1-192.0.2.{last}")
            };
            changes.iter().map(change)
        };
        tables.into_iter().flat_map(of).collect()
    };
    let revision = |n: u8| vec![format!("revision {n}")];
    let expected = [
        revision(1),
        changes(&[("add", 5)]),
        revision(2),
        changes(&[("delete", 5), ("add", 9)]),
        changes(&[("delete", 9), ("add", 3)]),
        revision(3),
        changes(&[("delete", 3)]),
        revision(4),
    ];
    match commits == expected.concat() {
        true => Ok(()),
        false => Err(Failed::from(format!(
            "{commits:#?} instead of {expected:#?}"
        ))),
    }
}
