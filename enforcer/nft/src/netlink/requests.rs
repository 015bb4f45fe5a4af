//! Requests outside of batches, and their answers: one message, or the many of a dump. A request and its answer have
//! the same sequence number.
//!
//! Byte layout: `man 7 netlink`, `linux/netlink.h`.

use std::os::fd::AsRawFd as _;

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags, NetlinkAddr},
};
use rustables::sys;

use super::{Error, Netlink};
use crate::encode::attributes::Attributes;

impl Netlink {
    /// Sends a request, and returns its sequence number.
    pub(super) fn ask(&self, turn: &mut u32, mut request: Request) -> Result<u32, Error> {
        let seq = take(turn, 1);
        request.0[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.send(&request.0)?;
        Ok(seq)
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        loop {
            match socket::send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    return Err(Error::Socket {
                        step: "send",
                        errno,
                    });
                }
            }
        }
    }

    /// The netlink port of the socket.
    pub(super) fn port(&self) -> Result<u32, Error> {
        let address: NetlinkAddr =
            socket::getsockname(self.socket.as_raw_fd()).map_err(|errno| Error::Socket {
                step: "getsockname",
                errno,
            })?;
        Ok(address.pid())
    }

    /// The body of the one message, of a given kind, that answers a request.
    pub(super) fn one(&self, request: Request, kind: u32) -> Result<Vec<u8>, Error> {
        let failed = |errno| Error::Socket { step: "ask", errno };
        let mut turn = self.turn.lock();
        let seq = self.ask(&mut turn, request)?;
        let kind = (sys::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16;
        let mut buffer = vec![0; 1 << 12];
        loop {
            let length = match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            {
                Ok(length) => length,
                Err(Errno::EINTR | Errno::ENOBUFS) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            for message in messages(&buffer[..length]).filter(|message| message.seq == seq) {
                if message.kind == kind {
                    return Ok(message.body.get(4..).unwrap_or_default().to_vec());
                }
                let errno = message.errno().unwrap_or_default();
                if message.kind == libc::NLMSG_ERROR as u16 && errno != 0 {
                    return Err(failed(Errno::from_raw(errno)));
                }
            }
        }
    }

    /// The bodies of everything that a dump of nf_tables returns.
    pub(super) fn dump(&self, kind: u32, which: &Attributes) -> Result<Vec<Vec<u8>>, Error> {
        self.dump_of(self.table.family.number(), kind, which)
    }

    /// The bodies of everything that a dump of nf_tables returns for a family, or for all families (`NFPROTO_UNSPEC`).
    pub(super) fn dump_of(
        &self,
        family: u8,
        kind: u32,
        which: &Attributes,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let kind = (sys::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16;
        let request = Request::new(kind, libc::NLM_F_DUMP, family, which);
        self.dump_wanted(&request, |_| true)
    }

    /// The bodies of a dump that the caller wants. A dump that a commit disturbed is requested again.
    pub(super) fn dump_wanted(
        &self,
        request: &Request,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>, Error> {
        for _ in 0..32 {
            if let Some(bodies) = self.try_dump(request, &is_wanted)? {
                return Ok(bodies);
            }
        }
        Err(Error::Malformed("a dump was disturbed 32 times"))
    }

    /// The bodies of a dump; `None` if a commit disturbed it. An earlier dump that was not read to its end also gives
    /// `None`.
    fn try_dump(
        &self,
        request: &Request,
        is_wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let mut turn = self.turn.lock();
        let seq = self.ask(&mut turn, request.clone())?;
        let (mut bodies, mut disturbed) = (Vec::new(), false);
        let mut buffer = vec![0; 1 << 17];
        loop {
            let length = match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            {
                Ok(length) => length,
                // ENOBUFS concerns an earlier message. Dumps are flow-controlled, and lose nothing.
                Err(Errno::EINTR | Errno::ENOBUFS) => continue,
                Err(errno) => {
                    return Err(Error::Socket {
                        step: "dump",
                        errno,
                    });
                }
            };
            for message in messages(&buffer[..length]).filter(|message| message.seq == seq) {
                disturbed |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE => return Ok((!disturbed).then_some(bodies)),
                    libc::NLMSG_ERROR => match message.errno() {
                        Some(libc::ENOENT) => return Ok(Some(Vec::new())),
                        Some(libc::EBUSY) => {
                            self.drain();
                            return Ok(None);
                        }
                        Some(errno) => {
                            return Err(Error::Socket {
                                step: "dump",
                                errno: Errno::from_raw(errno),
                            });
                        }
                        None => return Err(Error::Malformed("an error without a number")),
                    },
                    _ => {
                        let body = message.body.get(4..).filter(|&body| is_wanted(body));
                        bodies.extend(body.map(<[u8]>::to_vec));
                    }
                }
            }
        }
    }

    /// Drains the socket. The kernel continues a dump as it is read, so nothing of a dump is left afterwards.
    fn drain(&self) {
        let mut buffer = vec![0; 1 << 17];
        let mut read =
            || socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT);
        while matches!(read(), Ok(1..) | Err(Errno::EINTR | Errno::ENOBUFS)) {}
    }
}

/// A message of its own, outside of batches, without a sequence number yet.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, flags: i32, family: u8, body: &Attributes) -> Request {
        let flags = (libc::NLM_F_REQUEST | flags).cast_unsigned() as u16;
        let length = u32::try_from(20 + body.bytes.len()).expect("a request is short");
        let mut request = Vec::new();
        request.extend_from_slice(&length.to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&flags.to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&[family, 0, 0, 0]);
        request.extend_from_slice(&body.bytes);
        Request(request)
    }
}

/// Takes `count` sequence numbers, and returns the first. None is used again before all others are.
pub(super) fn take(next: &mut u32, count: u32) -> u32 {
    let first = *next;
    *next = next.wrapping_add(count);
    first
}

pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
    pub(super) body: &'a [u8],
}

impl Message<'_> {
    /// The error number of an error message; 0 is an acknowledgement.
    pub(super) fn errno(&self) -> Option<i32> {
        let negative = i32::from_ne_bytes(self.body.get(..4)?.try_into().ok()?);
        Some(negative.saturating_neg())
    }
}

/// The messages in what one read returned. Stops at the first that is cut off.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.get(..16)?;
        let field = |at: usize| [header[at], header[at + 1]];
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes(field(4)),
            flags: u16::from_ne_bytes(field(6)),
            seq: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            body: bytes.get(16..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}
