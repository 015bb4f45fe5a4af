//! The socket to netfilter: commits batches to a table, and lists what the table holds. It decides nothing, and changes no table
//! but the one that it was opened for. Of other tables it lists the flowtables.

#![expect(
    clippy::cast_possible_truncation,
    reason = "constants and lengths of netlink: `int` in the kernel's headers, 8 to 32 bits in a message"
)]

mod connections;
mod content;
mod flowtables;
mod monitor;
mod rules;

pub use flowtables::Flowtables;
pub use monitor::{Culprit, Monitor, Notice};
pub use rules::Counter;

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{
        self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt,
    },
};
use parking_lot::FairMutex;
use rustables::sys;

use crate::{
    command::{Command, Element, SetKind, TableName},
    decode,
    encode::{
        self, TABLE_OWNED, TABLE_PERSISTS,
        attributes::{self, Attributes},
    },
};

/// What the socket asks for; the kernel takes a batch as one message.
const BUFFER: usize = 256 << 20;

/// What a socket without privilege over the kernel's limits takes for sure (`net.core.wmem_default` is 212,992).
const BATCH_UNPRIVILEGED: usize = 150_000;

/// The table's flag that it has an owner (`NFT_TABLE_F_OWNER`).
const OWNER: u32 = 2;

/// `NFTA_TABLE_OWNER`, of Linux 5.12.
const TABLE_OWNER: u16 = 7;

/// The kernel executes one batch at a time, of whoever sent it: a lease that is renewed meanwhile waits for the end of
/// this one.
const BATCH_PRIVILEGED: usize = 1 << 20;

/// Why the kernel did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It refused one command, and so the batch; nothing changed.
    #[error("the kernel refused `{command}`: {errno}{}", hint(*.errno))]
    Refused {
        /// The command, as nft would spell it, shortened.
        command: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The socket failed before the kernel saw the batch; nothing changed.
    #[error("netlink: {step}: {errno}{}", hint(*.errno))]
    Socket {
        /// What failed.
        step: &'static str,
        /// The kernel's reason.
        errno: Errno,
    },
    /// The kernel's answer was lost. It may have committed the batch: only what the table holds tells.
    #[error(
        "netlink: the kernel's answer was lost ({0}): the content of the table tells whether the batch was committed"
    )]
    AnswerLost(Errno),
    /// The kernel's answer makes no sense.
    #[error("netlink: the kernel's answer cannot be decoded: {0}")]
    Malformed(&'static str),
}

impl Error {
    /// Whether somebody else committed in between, and nothing was changed: to be read, and decided, anew.
    pub fn is_outdated(&self) -> bool {
        let (Error::Refused { errno, .. } | Error::Socket { errno, .. }) = self else {
            return false;
        };
        *errno == Errno::ERESTART
    }
}

/// What helps with an error, for an operator.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => {
            " (CAP_NET_ADMIN is needed in this network namespace; another process may own the table)"
        }
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
            " (this kernel has no nf_tables: load the module or enable CONFIG_NF_TABLES)"
        }
        Errno::EBUSY => " (another object still refers to this object)",
        Errno::EMSGSIZE => {
            " (the batch is larger than a socket may send here: net.core.wmem_default)"
        }
        Errno::ENOMEM | Errno::ENOBUFS => " (the kernel has no memory for the request)",
        Errno::ERESTART => " (another process changed the ruleset at the same time)",
        _ => "",
    }
}

/// The names of a table's objects, as the kernel lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The table's flags.
    pub flags: u32,
    /// The names of its chains.
    pub chains: BTreeSet<String>,
    /// The names of its base chains.
    pub bases: BTreeSet<String>,
    /// The names of its sets and maps, without anonymous ones.
    pub sets: BTreeSet<String>,
}

/// A socket to nf_tables of the network namespace that it was opened in, for one table. Clones share the socket, which is the owner
/// of the tables that it made with [an owner](Command::AddTable).
#[derive(Clone, Debug)]
pub struct Netlink {
    socket: Arc<OwnedFd>,
    table: TableName,
    /// Held from a request to the end of its answer; the thread that waits longest gets it next. It has the sequence number of the
    /// next message. The kernel answers with the number of the request, so that a late answer is not taken for that of another one.
    turn: Arc<FairMutex<u32>>,
    batch: usize,
}

impl Netlink {
    /// Opens a socket for a table, which may not be there yet.
    pub fn open(table: TableName) -> Result<Netlink, Error> {
        let failed = |step| move |errno| Error::Socket { step, errno };
        let socket = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("socket"))?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("bind"))?;
        // Refused in a user namespace: then batches stay small. The answers of a batch are few either way.
        let forced = socket::setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_ok();
        let _ = socket::setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20));
        let batch = if forced {
            BATCH_PRIVILEGED
        } else {
            BATCH_UNPRIVILEGED
        };
        extended_errors(&socket);
        let netlink = Netlink::over(socket, table, batch);
        netlink
            .timeout(Duration::from_secs(10))
            .map_err(failed("timeout"))?;
        Ok(netlink)
    }

    /// Talks over a socket, which a fuzzer may hold the other end of.
    #[doc(hidden)]
    pub fn over(socket: OwnedFd, table: TableName, batch: usize) -> Netlink {
        Netlink {
            socket: Arc::new(socket),
            table,
            // Messages that answer no request have 0.
            turn: Arc::new(FairMutex::new(1)),
            batch,
        }
    }

    /// The same socket, for another table.
    pub fn for_table(&self, table: TableName) -> Netlink {
        Netlink {
            table,
            ..self.clone()
        }
    }

    /// The most bytes that a batch should have.
    pub fn batch_limit(&self) -> usize {
        self.batch
    }

    fn timeout(&self, limit: Duration) -> nix::Result<()> {
        let limit = nix::sys::time::TimeVal::new(limit.as_secs().cast_signed(), 0);
        socket::setsockopt(&self.socket, sockopt::ReceiveTimeout, &limit)
    }

    /// Commits commands as one batch: all of them or none.
    pub fn commit(&self, commands: &[Command]) -> Result<(), Error> {
        self.commit_batch(commands, None)
    }

    /// The same, if the ruleset is still of a generation; else the error [is that it is outdated](Error::is_outdated).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the kernel counts with 32 bits"
    )]
    pub fn commit_at(&self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        // 0 would be any.
        self.commit_batch(commands, Some(generation as u32))
    }

    /// Sends one batch, and reads the kernel's answer to it.
    fn commit_batch(&self, commands: &[Command], generation: Option<u32>) -> Result<(), Error> {
        let mut encoded = encode::batch(self.table, commands, generation);
        let last = encoded.acknowledged();
        let mut turn = self.turn.lock();
        let first = take(&mut turn, last + 2);
        encoded.number_from(first);
        self.send(&encoded.bytes)?;
        let answer = self.answer(first, last);
        drop(turn);
        let (number, errno) = match answer? {
            Some((_, 0)) => return Ok(()),
            Some((number, errno)) => (number, Errno::from_raw(errno)),
            None if encoded.origins.is_empty() => return Ok(()),
            None => return Err(Error::AnswerLost(Errno::ENODATA)),
        };
        let index = (number as usize)
            .checked_sub(1)
            .and_then(|at| encoded.origins.get(at));
        match index {
            Some(&index) => Err(Error::Refused {
                command: shorten(&commands[index].of(self.table).to_string()),
                errno,
            }),
            None => Err(Error::Socket {
                step: "commit",
                errno,
            }),
        }
    }

    /// The kernel's answer to a batch whose begin has the sequence number `first`: the message (counted from there) and
    /// the number of the first error, or that message `last` was executed. The kernel has executed the batch when
    /// `send` returns, and its whole answer lies in the socket.
    fn answer(&self, first: u32, last: u32) -> Result<Option<(u32, i32)>, Error> {
        let (mut error, mut done, mut lost) = (None, None, None);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let flags = MsgFlags::MSG_DONTWAIT;
            let length = match socket::recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                // Told once; what did fit into the socket is still there.
                Err(errno) if lost.is_none() => {
                    lost = Some(errno);
                    continue;
                }
                Err(errno) => return Err(Error::AnswerLost(errno)),
            };
            for message in messages(&buffer[..length]) {
                let number = message.seq.wrapping_sub(first);
                // The batch's end is one more.
                if message.kind != libc::NLMSG_ERROR as u16 || number > last + 1 {
                    continue;
                }
                match message.errno() {
                    Some(0) if number == last => done = Some((number, 0)),
                    Some(errno) if errno != 0 && error.is_none() => error = Some((number, errno)),
                    _ => {}
                }
            }
        }
        match (error.or(done), lost) {
            (None, Some(errno)) => Err(Error::AnswerLost(errno)),
            (answer, _) => Ok(answer),
        }
    }

    /// The names of the table's objects; `None` when there is no table.
    pub fn outline(&self) -> Result<Option<Outline>, Error> {
        let Some(flags) = self.table_flags()? else {
            return Ok(None);
        };
        let names = |messages: Vec<Vec<u8>>, name: u16| -> BTreeSet<String> {
            messages
                .iter()
                .filter_map(|body| attributes::find(body, name).map(attributes::text))
                .filter(|name| !name.starts_with("__"))
                .collect()
        };
        let chains = self.chains()?;
        let is_base = |chain: &Vec<u8>| attributes::find(chain, sys::NFTA_CHAIN_HOOK).is_some();
        let bases = chains.iter().filter(|&chain| is_base(chain)).cloned();
        let bases = names(bases.collect(), sys::NFTA_CHAIN_NAME);
        Ok(Some(Outline {
            flags,
            chains: names(chains, sys::NFTA_CHAIN_NAME),
            bases,
            sets: names(self.sets()?, sys::NFTA_SET_NAME),
        }))
    }

    /// The elements of a set or map; `None` when some do not fit the kind. A set that is not there has none.
    pub fn elements(&self, set: &str, kind: SetKind) -> Result<Option<BTreeSet<Element>>, Error> {
        let listed = self.described_elements(set)?;
        Ok(decode::elements(kind, listed.iter().map(Vec::as_slice)))
    }

    /// The table's chains, as the kernel describes them.
    fn chains(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.dump_of_table(sys::NFT_MSG_GETCHAIN, sys::NFTA_CHAIN_TABLE)
    }

    /// The table's sets and maps, as the kernel describes them, anonymous ones too.
    fn sets(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.dump_of_table(sys::NFT_MSG_GETSET, sys::NFTA_SET_TABLE)
    }

    /// The elements of a set, as the kernel describes them.
    fn described_elements(&self, set: &str) -> Result<Vec<Vec<u8>>, Error> {
        let mut which = self.named(sys::NFTA_SET_ELEM_LIST_TABLE);
        which.text(sys::NFTA_SET_ELEM_LIST_SET, set);
        let lists = self.dump(sys::NFT_MSG_GETSETELEM, &which)?;
        let lists = lists
            .iter()
            .filter_map(|body| attributes::find(body, sys::NFTA_SET_ELEM_LIST_ELEMENTS));
        let elements = lists.flat_map(|list| attributes::read(list).map(|(_, one)| one.to_vec()));
        Ok(elements.collect())
    }

    /// Returns once no socket owns the table, or after `patience`: the kernel takes an owner off it a moment after that died.
    pub fn await_orphan(&self, patience: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + patience;
        while self.table_flags()?.is_some_and(|flags| flags & OWNER != 0) {
            if Instant::now() >= deadline {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The netlink port of the socket that owns the table, if one does.
    pub fn owner(&self) -> Result<Option<u32>, Error> {
        let owner =
            |body: Vec<u8>| attributes::find(&body, TABLE_OWNER).and_then(attributes::number);
        Ok(self.table()?.and_then(owner))
    }

    /// Whether the table is there.
    pub fn is_there(&self) -> Result<bool, Error> {
        Ok(self.table()?.is_some())
    }

    fn table_flags(&self) -> Result<Option<u32>, Error> {
        let flags = |body: Vec<u8>| {
            attributes::find(&body, sys::NFTA_TABLE_FLAGS)
                .and_then(attributes::number)
                .unwrap_or(0)
        };
        Ok(self.table()?.map(flags))
    }

    /// The table, as the kernel describes it.
    fn table(&self) -> Result<Option<Vec<u8>>, Error> {
        let tables = self.dump(sys::NFT_MSG_GETTABLE, &Attributes::default())?;
        let mut tables = self.only_of_table(tables, sys::NFTA_TABLE_NAME).into_iter();
        Ok(tables.next())
    }

    /// An attribute with the table's name.
    fn named(&self, attribute: u16) -> Attributes {
        let mut which = Attributes::default();
        which.text(attribute, self.table.name);
        which
    }

    /// The descriptions of objects that are the table's: kernels differ in which dumps they filter. `attribute` has the name of an
    /// object's table.
    fn only_of_table(&self, mut bodies: Vec<Vec<u8>>, attribute: u16) -> Vec<Vec<u8>> {
        bodies.retain(|body| {
            let name = attributes::find(body, attribute).map(attributes::text);
            name.as_deref() == Some(self.table.name)
        });
        bodies
    }

    /// The descriptions of the table's objects of a kind. `attribute` has the name of an object's table.
    fn dump_of_table(&self, kind: u32, attribute: u16) -> Result<Vec<Vec<u8>>, Error> {
        let bodies = self.dump(kind, &self.named(attribute))?;
        Ok(self.only_of_table(bodies, attribute))
    }

    /// Sends a request, and returns its sequence number.
    fn ask(&self, turn: &mut u32, mut request: Request) -> Result<u32, Error> {
        let seq = take(turn, 1);
        request.0[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.send(&request.0)?;
        Ok(seq)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
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

    /// The port that the kernel knows the socket by.
    fn port(&self) -> Result<u32, Error> {
        let address: NetlinkAddr =
            socket::getsockname(self.socket.as_raw_fd()).map_err(|errno| Error::Socket {
                step: "getsockname",
                errno,
            })?;
        Ok(address.pid())
    }

    /// The body of the one message, of a kind, that answers a request.
    fn one(&self, request: Request, kind: u32) -> Result<Vec<u8>, Error> {
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
    fn dump(&self, kind: u32, which: &Attributes) -> Result<Vec<Vec<u8>>, Error> {
        self.dump_of(self.table.family.number(), kind, which)
    }

    /// The bodies of everything that a dump of nf_tables returns for a family, or for all families (`NFPROTO_UNSPEC`).
    fn dump_of(&self, family: u8, kind: u32, which: &Attributes) -> Result<Vec<Vec<u8>>, Error> {
        let kind = (sys::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16;
        let request = Request::new(kind, libc::NLM_F_DUMP, family, which);
        self.dump_wanted(&request, |_| true)
    }

    /// The bodies, of all that a dump returns, that are wanted. One that was disturbed by a commit is asked for again.
    fn dump_wanted(
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

    /// The bodies of a dump; `None` if a commit disturbed it, or if an earlier dump that was not read to its end was in its way.
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
                // ENOBUFS is about an earlier message. Dumps wait for their reader, and lose nothing.
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

    /// Reads all that the kernel has to say now. A dump goes on as it is read: nothing is left of it afterwards.
    fn drain(&self) {
        let mut buffer = vec![0; 1 << 17];
        let mut read =
            || socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT);
        while matches!(read(), Ok(1..) | Err(Errno::EINTR | Errno::ENOBUFS)) {}
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Outline {
    /// Whether the kernel protects the table and keeps it when its owner dies.
    pub fn is_owned(&self) -> bool {
        self.flags & TABLE_OWNED == TABLE_OWNED
    }

    /// Whether the table was made to have an owner: it has one, or lost it and waits for the next.
    pub fn is_made_to_be_owned(&self) -> bool {
        self.flags & TABLE_PERSISTS != 0
    }
}

/// A message of its own, outside of batches, without a sequence number yet.
#[derive(Clone, Debug)]
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32, family: u8, body: &Attributes) -> Request {
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

/// The first of so many sequence numbers, none of which is used again before all others are.
fn take(next: &mut u32, count: u32) -> u32 {
    let first = *next;
    *next = next.wrapping_add(count);
    first
}

/// Asks for errors with a message. Older kernels do without.
#[expect(unsafe_code, reason = "nix does not have this socket option")]
fn extended_errors(socket: &OwnedFd) {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of `on`, which lives as long as the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_EXT_ACK,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "this kernel has no extended netlink acknowledgements");
    }
}

/// A command short enough for a message.
pub fn shorten(command: &str) -> String {
    match command.char_indices().nth(160) {
        Some((end, _)) => format!("{} ...", &command[..end]),
        None => command.to_owned(),
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    seq: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// The error number of an error message; 0 is an acknowledgement.
    fn errno(&self) -> Option<i32> {
        let negative = i32::from_ne_bytes(self.body.get(..4)?.try_into().ok()?);
        Some(negative.saturating_neg())
    }
}

/// The messages in what one read returned. Stops at the first that is cut off.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
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
