//! Owns batches that are encoded before they are needed, so that one commit follows another within microseconds; the
//! encoding is the product's. With marks, each chain that a batch makes begins with a rule that marks the packet.

use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags},
};
use sallyport_enforcer::table;
use sallyport_nft::{
    command::Command,
    encode,
    netlink::{Error, Netlink},
};

use crate::marks::Marks;

/// The message that ends a batch: a netlink header and an nfgenmsg.
const END: usize = 20;

/// A batch as the kernel takes it.
pub(crate) struct Batch(Vec<u8>);

impl Batch {
    /// Encodes commands, and the rules that mark, if they are wanted.
    pub(crate) fn of(commands: &[Command], marks: Option<&mut Marks>) -> Batch {
        let mut bytes = encode::batch(table::INET, commands, None).bytes;
        if let Some(marks) = marks {
            let end = bytes.split_off(bytes.len() - END);
            bytes.extend(marks.rules(commands));
            bytes.extend(end);
        }
        Batch(bytes)
    }

    /// Commits it: all of it or nothing.
    pub(crate) fn commit(&self, netlink: &Netlink) -> Result<(), Error> {
        let fd = netlink.as_fd().as_raw_fd();
        while let Err(errno) = socket::send(fd, &self.0, MsgFlags::empty()) {
            if errno != Errno::EINTR {
                let step = "send";
                return Err(Error::Socket { step, errno });
            }
        }
        answer(fd)
    }
}

/// Takes out all that the kernel has said: it was done, or there is an error. (It is through when `send` returns.)
fn answer(fd: i32) -> Result<(), Error> {
    let (mut buffer, mut refusal) = (vec![0; 1 << 16], None);
    loop {
        let length = match socket::recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => break,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Error::AnswerLost(errno)),
        };
        let mut rest = &buffer[..length];
        // Length, type, flags, sequence number, port; then, of an error, its number.
        while let Some(header) = rest.get(..20) {
            let field = |at: usize| i32::from_ne_bytes(header[at..at + 4].try_into().expect("4"));
            let is_error = u16::from_ne_bytes([header[4], header[5]]) == libc::NLMSG_ERROR as u16;
            if is_error && field(16) != 0 {
                refusal.get_or_insert((field(8), Errno::from_raw(-field(16))));
            }
            let next = (field(0).max(16) as usize).next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
    match refusal {
        Some((message, errno)) => {
            let command = format!("message {message} of a batch");
            Err(Error::Refused { command, errno })
        }
        None => Ok(()),
    }
}
