//! The kernel's answers, as no kernel gives them: read by the enforcer's own socket code, over a pair of sockets.
#![no_main]

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use sallyport_enforcer::table::{self, state};
use sallyport_nft::{command::Command, encode::attributes::Attributes, netlink::Netlink};

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    // An answer that is not written before it is asked for never comes: neither end waits.
    let (ours, kernel) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
    )
    .expect("a pair of sockets");
    let mut netlink = Netlink::over(ours, table::INET, 1 << 16);
    let question = u.int_in_range(0..=5)?;
    for _ in 0..u.int_in_range(0..=24)? {
        answer(u, &kernel)?;
    }
    match question {
        0 => drop(state::read(&mut netlink)),
        1 => drop(state::read_stamp(&mut netlink)),
        2 => drop(state::read_lease(&mut netlink)),
        3 => drop(netlink.await_orphan(Duration::ZERO)),
        4 => drop(netlink.commit(&[Command::AddTable { owned: true }, Command::DeleteTable])),
        _ => {
            let all = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd; 16])];
            let all = BTreeSet::from(all);
            drop(
                netlink
                    .flush_conntrack(|connection| connection.is_of(&all) || connection.picked_up),
            );
        }
    }
    Ok(())
}

/// The comments that the stamp may have.
const STAMPS: [&str; 4] = [
    "epoch 1 revision 2 digest 3 update 4 step 1/2",
    "epoch 1 revision",
    "",
    "\u{1f6aa}",
];

/// One read's worth of messages.
fn answer(u: &mut Unstructured<'_>, kernel: &OwnedFd) -> Result<()> {
    let mut datagram = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        let kind: u16 = match u.int_in_range(0..=7)? {
            0 => 2,     // NLMSG_ERROR
            1 | 2 => 3, // NLMSG_DONE
            3 => u.arbitrary()?,
            _ => 10 << 8 | u.int_in_range(0..=0x20)?,
        };
        let flags: u16 = *u.choose(&[0, 2, 2, 2, 0x10])?;
        // The numbers of the first requests.
        let seq = u.int_in_range(0u32..=8)?;
        let body = match u.ratio(1, 4)? {
            true => u.arbitrary::<&[u8]>()?.to_vec(),
            false => [&[1, 0, 0, 0][..], &attributes(u, 4)?.bytes].concat(),
        };
        let length = match u.ratio(1, 16)? {
            true => u.arbitrary()?,
            false => 16 + body.len() as u32,
        };
        datagram.extend(length.to_ne_bytes());
        datagram.extend(kind.to_ne_bytes());
        datagram.extend(flags.to_ne_bytes());
        datagram.extend(seq.to_ne_bytes());
        datagram.extend([0; 4]);
        datagram.extend(body);
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }
    if datagram.is_empty() {
        // Not even a netlink socket of one's own making says nothing.
        datagram.push(0);
    }
    // More than the pair holds is not sent.
    let _ = send(kernel.as_raw_fd(), &datagram, MsgFlags::empty());
    Ok(())
}

fn attributes(u: &mut Unstructured<'_>, depth: u32) -> Result<Attributes> {
    let mut all = Attributes::default();
    for _ in 0..u.int_in_range(0..=4)? {
        let kind = u.int_in_range(0..=20)?;
        match u.int_in_range(0..=7)? {
            0 | 1 if depth > 0 => {
                let inner = attributes(u, depth - 1)?;
                all.nest(kind, &inner);
            }
            2 => drop(all.text(kind, "sallyport")),
            3 => drop(all.text(
                kind,
                u.choose(&["stamp", "lease", "lease-a", "lookup", "forward_egress"])?,
            )),
            4 => drop(all.u32(kind, u.arbitrary()?)),
            5 => {
                let text = u.choose(&STAMPS)?;
                all.bytes(
                    kind,
                    &[&[0, text.len() as u8][..], text.as_bytes(), &[0]].concat(),
                );
            }
            6 => drop(all.bytes(kind, &[10, 0, 0, 1])),
            _ => drop(all.bytes(kind, u.arbitrary()?)),
        }
        if all.bytes.len() > 4_000 {
            break;
        }
    }
    if u.ratio(1, 16)? && !all.bytes.is_empty() {
        let last = all.bytes.len() - 1;
        let at = u.int_in_range(0..=last)?;
        all.bytes[at] ^= u.arbitrary::<u8>()?;
    }
    Ok(all)
}
