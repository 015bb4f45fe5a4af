//! Connections that a namespace's conntrack has without a packet of theirs, as `conntrack --create` makes them, until
//! there is no room for more. Makes and deletes its own connections only; `entries` lists and deletes those of others.
//!
//! The limit, `nf_conntrack_max`, is one number for the whole machine, which namespaces can read; each namespace is
//! counted by itself. So one namespace is really filled up, and no other is touched.

mod entries;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use sallyport_nft::encode::attributes::Attributes;
use sallyport_testbed::Netns;

pub use entries::{ConntrackEntry, entries, flush_all};

/// Messages of `NFNL_SUBSYS_CTNETLINK`, and attributes: `linux/netfilter/nfnetlink_conntrack.h`.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

/// `IPS_CONFIRMED`; and with answers (`IPS_SEEN_REPLY`, `IPS_ASSURED`), which the kernel gives up for no new one.
const CONFIRMED: u32 = 1 << 3;
const ASSURED: u32 = CONFIRMED | 1 << 1 | 1 << 2;

/// The mark that distinguishes these connections from all others.
const MARK: u32 = 0x5a11_f111;

/// How many are made with one message, and at most.
const BATCH: u32 = 64;
const MOST: u32 = 1 << 22;

/// Whether the kernel gives up connections of a kind for new ones, when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both ends were heard of: it does not.
    Assured,
    /// The entry makes room, if the kernel finds it in a place near that of the new one.
    Unanswered,
}

/// Connections that leave no room for others: as many as there may be, and more as soon as there is room again. They
/// are deleted when this is dropped.
#[derive(Debug)]
pub struct Crowd {
    netns: Netns,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Crowd {
    /// Fills a namespace, in which something must look at connections: else the kernel keeps none.
    pub fn fill(netns: &Netns, kind: Kind) -> io::Result<Crowd> {
        let most = limit(netns)?;
        if most == 0 || most > MOST {
            let message = format!("nf_conntrack_max is {most}: it cannot be filled up");
            return Err(io::Error::other(message));
        }
        let mut maker = Maker::new(netns, kind)?;
        while count(netns)? < most {
            if maker.made > 2 * most {
                return Err(io::Error::other(
                    "there is always room for more connections",
                ));
            }
            maker.make()?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("crowd".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::SeqCst) {
                    maker.make()?;
                    thread::sleep(Duration::from_millis(20));
                }
                maker.delete_all()
            })?;
        Ok(Crowd {
            netns: netns.clone(),
            stop,
            thread: Some(thread),
        })
    }

    /// How many connections there are in the namespace, of anybody, and how many there may be.
    pub fn occupied(&self) -> io::Result<(u32, u32)> {
        Ok((count(&self.netns)?, limit(&self.netns)?))
    }

    /// Deletes them all.
    pub fn leave(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(io::Error::other("the thread that makes them panicked")))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

fn count(netns: &Netns) -> io::Result<u32> {
    number(netns, "net.netfilter.nf_conntrack_count")
}

fn limit(netns: &Netns) -> io::Result<u32> {
    number(netns, "net.netfilter.nf_conntrack_max")
}

fn number(netns: &Netns, name: &str) -> io::Result<u32> {
    let text = netns.read_sysctl(name).map_err(io::Error::other)?;
    text.trim().parse().map_err(io::Error::other)
}

/// Makes one connection after the other.
#[derive(Debug)]
struct Maker {
    conntrack: Conntrack,
    status: u32,
    made: u32,
}

impl Maker {
    fn new(netns: &Netns, kind: Kind) -> io::Result<Maker> {
        Ok(Maker {
            conntrack: Conntrack::open(netns)?,
            status: match kind {
                Kind::Assured => ASSURED,
                Kind::Unanswered => CONFIRMED,
            },
            made: 0,
        })
    }

    /// Makes some more. For those for which there is no room there is none.
    fn make(&mut self) -> io::Result<()> {
        let mut messages = Vec::new();
        for number in self.made..self.made + BATCH {
            let is_last = number + 1 == self.made + BATCH;
            let flags =
                libc::NLM_F_CREATE | libc::NLM_F_EXCL | if is_last { libc::NLM_F_ACK } else { 0 };
            messages.extend(message(
                NEW,
                flags,
                libc::AF_INET,
                number,
                &connection(number, self.status),
            ));
        }
        self.made += BATCH;
        let refused = self.conntrack.send(&messages, self.made - 1)?;
        let is_full = |errno: i32| matches!(errno, libc::ENOMEM | libc::EEXIST);
        match refused.into_iter().find(|&errno| !is_full(errno)) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    fn delete_all(&self) -> io::Result<()> {
        let mut which = Attributes::default();
        which.u32(CTA_MARK, MARK).u32(CTA_MARK_MASK, u32::MAX);
        self.conntrack.delete(libc::AF_INET, &which)
    }
}

/// A namespace's conntrack, spoken to over ctnetlink.
#[derive(Debug)]
struct Conntrack {
    socket: OwnedFd,
}

impl Conntrack {
    fn open(netns: &Netns) -> io::Result<Conntrack> {
        let open = || {
            socket::socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkNetFilter,
            )
        };
        Ok(Conntrack {
            socket: netns.run(open)?,
        })
    }

    /// Deletes the connections that some attributes describe.
    fn delete(&self, family: i32, which: &Attributes) -> io::Result<()> {
        let refused = self.send(&message(DELETE, libc::NLM_F_ACK, family, 0, which), 0)?;
        match refused.first() {
            Some(&errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }

    /// Sends messages, and returns the errors that were answered, up to the answer to the last.
    fn send(&self, messages: &[u8], last: u32) -> io::Result<Vec<i32>> {
        socket::send(self.socket.as_raw_fd(), messages, MsgFlags::empty())?;
        let mut refused = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            // A header of 16 bytes, with the length first and the sequence in the middle; then the error's number.
            while let Some(header) = rest.get(..20) {
                let word = |at: usize| {
                    u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"))
                };
                let errno = -word(16).cast_signed();
                if errno != 0 {
                    refused.push(errno);
                }
                if word(8) == last {
                    return Ok(refused);
                }
                let next = (word(0) as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
            }
        }
    }
}

fn message(kind: u16, flags: i32, family: i32, sequence: u32, body: &Attributes) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let mut message = Vec::new();
    message.extend_from_slice(&(20 + body.bytes.len() as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&[family as u8, 0, 0, 0]);
    message.extend_from_slice(&body.bytes);
    message
}

/// A connection over UDP between addresses that are nobody's (RFC 2544).
fn connection(number: u32, status: u32) -> Attributes {
    let client = (
        Ipv4Addr::from_bits(0xc613_0000 | number >> 12),
        1024 + (number & 0xfff) as u16,
    );
    let server = (Ipv4Addr::new(198, 19, 255, 254), 9);
    let mut connection = Attributes::default();
    connection
        .nest(CTA_TUPLE_ORIG, &tuple(client, server))
        .nest(CTA_TUPLE_REPLY, &tuple(server, client))
        .u32(CTA_STATUS, status)
        .u32(CTA_TIMEOUT, 600)
        .u32(CTA_MARK, MARK);
    connection
}

fn tuple(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Attributes {
    let (mut addresses, mut ports, mut tuple) = <(Attributes, Attributes, Attributes)>::default();
    addresses
        .bytes(1, &from.0.octets())
        .bytes(2, &to.0.octets());
    ports
        .bytes(1, &[libc::IPPROTO_UDP as u8])
        .bytes(2, &from.1.to_be_bytes())
        .bytes(3, &to.1.to_be_bytes());
    tuple
        .nest(CTA_TUPLE_IP, &addresses)
        .nest(CTA_TUPLE_PROTO, &ports);
    tuple
}
