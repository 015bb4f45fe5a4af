//! Flushes selected connections from conntrack.
//!
//! Formats: `linux/netfilter/nfnetlink_conntrack.h`. Connections are read and deleted one by one. The kernel has a
//! search of its own (`CTA_FILTER`), but old kernels lack it. For IPv6 the search finds all connections but those that
//! were asked for (measured on Linux 6.18).

use std::{net::IpAddr, os::fd::AsRawFd as _};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags},
};

use super::{
    Error, Netlink,
    requests::{Request, messages},
};
use crate::{
    command::Family,
    connection::{Connection, End},
    encode::attributes::{self, Attributes},
};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1 << 8;

const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

const CTA_PROTOINFO: u16 = 4;

/// Attributes in a tuple: its addresses, and of these the source; its protocol, and of this the source's port.
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;

/// Conntrack's state of TCP: for each direction its flags (`linux/netfilter/nf_conntrack_tcp.h`), and the mask of the
/// flags that count.
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 8;

impl Netlink {
    /// Deletes every connection that a predicate selects, and returns their number. After `Ok` none of those that
    /// existed is left. Later packets of a flow begin a new connection. The cost is one listing of conntrack (12 ms or
    /// more with 262,144 empty buckets).
    pub fn flush_conntrack(&self, which: impl Fn(&Connection) -> bool) -> Result<usize, Error> {
        let is_one = |body: &[u8]| connection(body).is_some_and(|connection| which(&connection));
        let all = Request::new(
            SUBSYSTEM | IPCTNL_MSG_CT_GET,
            libc::NLM_F_DUMP,
            libc::AF_UNSPEC as u8,
            &Attributes::default(),
        );
        let found = self
            .dump_wanted(&all, is_one)
            .map_err(|error| match error {
                Error::Socket { errno, .. } => Error::Socket {
                    step: "list connections (CONFIG_NF_CT_NETLINK)",
                    errno,
                },
                other => other,
            })?;
        found.iter().try_for_each(|body| self.delete(body))?;
        Ok(found.len())
    }

    fn delete(&self, body: &[u8]) -> Result<(), Error> {
        let Some(connection) = connection(body) else {
            return Err(Error::Malformed("a connection without ends"));
        };
        let request = Request::new(
            SUBSYSTEM | IPCTNL_MSG_CT_DELETE,
            libc::NLM_F_ACK,
            number(Family::of(connection.client.address)),
            &identity(body),
        );
        match self.acknowledged(request)? {
            // ENOENT: the connection ended by itself.
            0 | libc::ENOENT => Ok(()),
            errno => {
                let (client, server) = (connection.client.address, connection.server.address);
                Err(Error::Refused {
                    command: format!("conntrack --delete --orig-src {client} --reply-src {server}"),
                    errno: Errno::from_raw(errno),
                })
            }
        }
    }

    /// The error number in the answer to one request; 0 when the request was executed.
    fn acknowledged(&self, request: Request) -> Result<i32, Error> {
        let mut turn = self.turn.lock();
        let seq = self.ask(&mut turn, request)?;
        let mut buffer = vec![0; 1 << 12];
        loop {
            let length = match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::AnswerLost(errno)),
            };
            let answer = messages(&buffer[..length]).find(|message| message.seq == seq);
            if let Some(answer) = answer {
                let is_error = answer.kind == libc::NLMSG_ERROR as u16;
                let errno = answer.errno().filter(|_| is_error);
                return errno.ok_or(Error::Malformed("no acknowledgement of a deletion"));
            }
        }
    }
}

fn number(family: Family) -> u8 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    number.cast_unsigned() as u8
}

/// Reads the kernel's description of a connection; `None` where the description has no addresses.
fn connection(body: &[u8]) -> Option<Connection> {
    let original = attributes::find(body, CTA_TUPLE_ORIG)?;
    let protocol = attributes::find(original, CTA_TUPLE_PROTO)?;
    Some(Connection {
        protocol: *attributes::find(protocol, CTA_PROTO_NUM)?.first()?,
        client: source(original)?,
        server: source(attributes::find(body, CTA_TUPLE_REPLY)?)?,
        picked_up: is_picked_up(body).unwrap_or(false),
    })
}

/// The source of a tuple.
fn source(tuple: &[u8]) -> Option<End> {
    let addresses = attributes::find(tuple, CTA_TUPLE_IP)?;
    let four = attributes::find(addresses, CTA_IP_V4_SRC)
        .and_then(|four| Some(IpAddr::from(<[u8; 4]>::try_from(four).ok()?)));
    let sixteen = || <[u8; 16]>::try_from(attributes::find(addresses, CTA_IP_V6_SRC)?).ok();
    let port = attributes::find(
        attributes::find(tuple, CTA_TUPLE_PROTO)?,
        CTA_PROTO_SRC_PORT,
    )
    .and_then(|port| Some(u16::from_be_bytes(port.try_into().ok()?)));
    Some(End {
        address: four.or_else(|| sixteen().map(IpAddr::from))?,
        port: port.unwrap_or(0),
    })
}

/// Whether both ends have liberal flags; `None` where the connection is not TCP.
fn is_picked_up(body: &[u8]) -> Option<bool> {
    let info = attributes::find(attributes::find(body, CTA_PROTOINFO)?, CTA_PROTOINFO_TCP)?;
    let is_liberal = |kind| {
        let flags = attributes::find(info, kind)?.first()?;
        Some(flags & IP_CT_TCP_FLAG_BE_LIBERAL != 0)
    };
    let both = [
        CTA_PROTOINFO_TCP_FLAGS_ORIGINAL,
        CTA_PROTOINFO_TCP_FLAGS_REPLY,
    ];
    Some(both.map(is_liberal) == [Some(true); 2])
}

/// The attributes that identify one connection, out of the kernel's description of it.
fn identity(connection: &[u8]) -> Attributes {
    let mut which = Attributes::default();
    if let Some(tuple) = attributes::find(connection, CTA_TUPLE_ORIG) {
        let tuple = Attributes {
            bytes: tuple.to_vec(),
        };
        which.nest(CTA_TUPLE_ORIG, &tuple);
    }
    for kind in [CTA_ZONE, CTA_ID] {
        if let Some(number) = attributes::find(connection, kind) {
            which.bytes(kind, number);
        }
    }
    which
}
