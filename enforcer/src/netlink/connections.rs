//! Makes conntrack forget the connections of addresses. It touches no connection but those whose client or server has
//! one of them.
//!
//! Formats: `linux/netfilter/nfnetlink_conntrack.h`. Connections are read and deleted one by one: the kernel has a
//! search of its own (`CTA_FILTER`), which old kernels lack and which, of IPv6, finds all but what was asked for
//! (measured on Linux 6.18).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags},
};

use super::{Error, Netlink, messages, request};
use crate::nft::{
    command::Family,
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

/// In a tuple: its addresses, and of these the source.
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;

impl Netlink {
    /// Deletes every connection of which one of some addresses is the client or the server, both as they are behind all
    /// translation. When this returns `Ok` none is left of those that there were; who goes on sending begins a new one.
    /// Costs a reading of the table of connections (10 ms with 262,144 buckets), once for all.
    pub fn forget(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        Family::BOTH
            .into_iter()
            .filter(|&family| {
                addresses
                    .iter()
                    .any(|&address| Family::of(address) == family)
            })
            .try_for_each(|family| self.forget_of(family, addresses))
    }

    fn forget_of(&self, family: Family, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        self.connections_of(family, addresses)?
            .iter()
            .try_for_each(|connection| self.delete(family, connection))
    }

    /// The connections of addresses, as the kernel describes them.
    fn connections_of(
        &self,
        family: Family,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let is_of = |connection: &[u8]| {
            [CTA_TUPLE_ORIG, CTA_TUPLE_REPLY]
                .into_iter()
                .filter_map(|tuple| source(attributes::find(connection, tuple)?))
                .any(|address| addresses.contains(&address))
        };
        let all = request(
            SUBSYSTEM | IPCTNL_MSG_CT_GET,
            libc::NLM_F_DUMP,
            number(family),
            &Attributes::default(),
        );
        self.dump_wanted(&all, is_of).map_err(|error| match error {
            Error::Socket { errno, .. } => Error::Socket {
                step: "list connections (CONFIG_NF_CT_NETLINK)",
                errno,
            },
            other => other,
        })
    }

    fn delete(&self, family: Family, connection: &[u8]) -> Result<(), Error> {
        let request = request(
            SUBSYSTEM | IPCTNL_MSG_CT_DELETE,
            libc::NLM_F_ACK,
            number(family),
            &identity(connection),
        );
        self.send(&request)?;
        match self.acknowledgement()? {
            // It ended by itself.
            0 | libc::ENOENT => Ok(()),
            errno => {
                let end = |tuple| attributes::find(connection, tuple).and_then(source);
                let text =
                    |end: Option<IpAddr>| end.map_or_else(String::new, |end| end.to_string());
                Err(Error::Refused {
                    command: format!(
                        "conntrack --delete --orig-src {} --reply-src {}",
                        text(end(CTA_TUPLE_ORIG)),
                        text(end(CTA_TUPLE_REPLY))
                    ),
                    errno: Errno::from_raw(errno),
                })
            }
        }
    }

    /// The error number in the answer to one request; 0 when it was carried out.
    fn acknowledgement(&self) -> Result<i32, Error> {
        let mut buffer = vec![0; 1 << 12];
        loop {
            match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => {
                    return messages(&buffer[..length])
                        .find(|message| message.kind == libc::NLMSG_ERROR as u16)
                        .and_then(|message| message.errno())
                        .ok_or(Error::Malformed("no acknowledgement of a deletion"));
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::AnswerLost(errno)),
            }
        }
    }
}

fn number(family: Family) -> u8 {
    let number = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    number as u8
}

/// The source address of a tuple.
fn source(tuple: &[u8]) -> Option<IpAddr> {
    let addresses = attributes::find(tuple, CTA_TUPLE_IP)?;
    if let Some(four) = attributes::find(addresses, CTA_IP_V4_SRC) {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(four).ok()?).into());
    }
    let sixteen = attributes::find(addresses, CTA_IP_V6_SRC)?;
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(sixteen).ok()?).into())
}

/// What tells one connection from all others, out of the kernel's description of it.
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
