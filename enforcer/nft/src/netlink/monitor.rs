//! Receives notices of other processes' commits in the network namespace, and names the process that changed one of
//! some tables. This module changes nothing. The commits of one socket, the owner of the tables, cause no notice.
//!
//! The kernel sends the changes of a commit object by object, then the new generation and the process that made it
//! (`NFT_MSG_NEWGEN`). The kernel does so only while a socket listens, and then makes a message for each element. A
//! filter keeps the owner's commits out of the socket, but their messages are made before. So a monitor is worth its
//! cost only where the kernel does not protect the table.

use std::{
    fmt,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
    },
};
use rustables::sys;

use super::{Error, Netlink, requests::messages};
use crate::{command::TableName, encode::attributes};

/// The size of the socket's buffer. When the buffer is full the kernel drops messages, and the table must be read.
const BUFFER: usize = 4 << 20;

/// The table's name in messages of tables, chains, rules, sets, elements and objects alike (`NFTA_TABLE_NAME`,
/// `NFTA_CHAIN_TABLE`, ...).
const NAME: u16 = 1;

/// The process that committed, according to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Culprit {
    /// The process id in the first pid namespace; 0 when it is not known.
    pub pid: u32,
    /// The name of the process (`comm`), up to 15 bytes; empty when it is not known.
    pub name: String,
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str("somebody"),
            pid => write!(f, "{} (pid {pid})", self.name),
        }
    }
}

/// A received notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Another process changed one of the tables.
    Touched(Culprit),
    /// Another process committed, and changed none of the tables.
    Elsewhere(Culprit),
    /// Messages were lost. Any change is possible.
    Lost,
}

/// A socket that receives the commits of other processes.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
    tables: Vec<TableName>,
    /// Whether the commit whose messages are being read changes one of the tables.
    touches: bool,
}

impl Monitor {
    /// Listens to the commits of all sockets but one, for changes of some tables. The network namespace is that of the
    /// calling thread.
    pub fn open(but: &Netlink, tables: &[TableName]) -> Result<Monitor, Error> {
        let failed = |step| move |errno| Error::Socket { step, errno };
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("socket"))?;
        ignore(&socket, but.port()?).map_err(failed("filter"))?;
        let _ = socket::setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        let group = 1 << (sys::NFNLGRP_NFTABLES - 1);
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, group)).map_err(failed("bind"))?;
        Ok(Monitor {
            socket,
            tables: tables.to_vec(),
            touches: false,
        })
    }

    /// Receives the notices that come within a time limit, if any.
    pub fn receive(&mut self, patience: Duration) -> Result<Vec<Notice>, Error> {
        let failed = |errno| Error::Socket {
            step: "listen",
            errno,
        };
        let micros = i64::try_from(patience.as_micros()).unwrap_or(i64::MAX);
        let limit = nix::sys::time::TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        socket::setsockopt(&self.socket, sockopt::ReceiveTimeout, &limit).map_err(failed)?;
        let mut buffer = vec![0; 1 << 16];
        match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => Ok(self.understand(&buffer[..length])),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
            Err(Errno::ENOBUFS) => {
                self.touches = false;
                Ok(vec![Notice::Lost])
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    fn understand(&mut self, bytes: &[u8]) -> Vec<Notice> {
        let mut notices = Vec::new();
        for message in messages(bytes) {
            let (subsystem, kind) = (message.kind >> 8, u32::from(message.kind & 0xff));
            if u32::from(subsystem) != sys::NFNL_SUBSYS_NFTABLES {
                continue;
            }
            let Some((header, body)) = message.body.split_at_checked(4) else {
                continue;
            };
            if kind != sys::NFT_MSG_NEWGEN {
                let name = attributes::find(body, NAME).map(attributes::text);
                self.touches |= self.tables.iter().any(|table| {
                    table.family.number() == header[0] && name.as_deref() == Some(table.name)
                });
                continue;
            }
            let pid = attributes::find(body, sys::NFTA_GEN_PROC_PID).and_then(attributes::number);
            let name = attributes::find(body, sys::NFTA_GEN_PROC_NAME).map(attributes::text);
            let culprit = Culprit {
                pid: pid.unwrap_or_default(),
                name: name.unwrap_or_default(),
            };
            notices.push(match std::mem::take(&mut self.touches) {
                true => Notice::Touched(culprit),
                false => Notice::Elsewhere(culprit),
            });
        }
        notices
    }
}

/// Keeps the messages of a port's commits out of the socket: all messages of one commit have its port in their header.
#[expect(unsafe_code, reason = "nix does not have this socket option")]
fn ignore(socket: &OwnedFd, port: u32) -> nix::Result<()> {
    let code = |code: u32, k, jt, jf| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // `nlmsg_pid`, which the filter reads as a number in network byte order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let mut program = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 12, 0, 0),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, port, 0, 1),
        code(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        code(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives as long as the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}
