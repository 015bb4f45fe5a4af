//! The conntrack entries of a namespace, listed and deleted over ctnetlink. Makes no connection, and judges none.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use nix::sys::socket::{self, MsgFlags};
use sallyport_nft::encode::attributes::{self, Attributes};
use sallyport_testbed::Netns;

use super::{CTA_TUPLE_IP, CTA_TUPLE_ORIG, CTA_TUPLE_PROTO, Conntrack, message};

/// A message of `NFNL_SUBSYS_CTNETLINK` that asks for connections.
const GET: u16 = 1 << 8 | 1;

/// A connection with ports, as its first packet went: that is what the kernel calls its original direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// The protocol's number, as in `IPPROTO_TCP`.
    pub protocol: u8,
    /// Whence the first packet came.
    pub from: SocketAddr,
    /// The destination.
    pub to: SocketAddr,
}

/// The connections with ports that a namespace's conntrack knows, of all families.
pub fn entries(netns: &Netns) -> io::Result<Vec<ConntrackEntry>> {
    let conntrack = Conntrack::open(netns)?;
    let fd = conntrack.socket.as_raw_fd();
    let all = Attributes::default();
    let request = message(GET, libc::NLM_F_DUMP, libc::AF_UNSPEC, 0, &all);
    socket::send(fd, &request, MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = socket::recv(fd, &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        // A header of 16 bytes, with the length and the kind first; then the family, or an error's number.
        while let Some(header) = rest.get(..20) {
            let word =
                |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let length = word(0) as usize;
            match i32::from(word(4) as u16) {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => {
                    return Err(io::Error::from_raw_os_error(-word(16).cast_signed()));
                }
                _ => found.extend(rest.get(20..length).and_then(read)),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Deletes every entry of a namespace's conntrack, as `conntrack --flush` does.
pub fn flush_all(netns: &Netns) -> io::Result<()> {
    Conntrack::open(netns)?.delete(libc::AF_UNSPEC, &Attributes::default())
}

fn read(connection: &[u8]) -> Option<ConntrackEntry> {
    let tuple = attributes::find(connection, CTA_TUPLE_ORIG)?;
    let addresses = attributes::find(tuple, CTA_TUPLE_IP)?;
    let protocol = attributes::find(tuple, CTA_TUPLE_PROTO)?;
    // IPv4's source and destination are attributes 1 and 2, those of IPv6 3 and 4.
    let address = |place: u16| -> Option<IpAddr> {
        if let Some(four) = attributes::find(addresses, place) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?).into());
        }
        let sixteen = attributes::find(addresses, place + 2)?;
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(sixteen).ok()?).into())
    };
    let port = |place: u16| -> Option<u16> {
        let port = attributes::find(protocol, place)?;
        Some(u16::from_be_bytes(port.try_into().ok()?))
    };
    Some(ConntrackEntry {
        protocol: *attributes::find(protocol, 1)?.first()?,
        from: SocketAddr::new(address(1)?, port(2)?),
        to: SocketAddr::new(address(2)?, port(3)?),
    })
}
