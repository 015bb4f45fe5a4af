//! The socket to netfilter: commits batches to a table, and lists the table's content. This module decides nothing, and
//! changes only the table that the socket was opened for. Of other tables it lists the flowtables.

#![expect(
    clippy::cast_possible_truncation,
    reason = "constants and lengths of netlink: `int` in the kernel's headers, 8 to 32 bits in a message"
)]

mod connections;
mod content;
mod error;
mod flowtables;
mod monitor;
mod requests;
mod rules;

pub use error::{Error, shorten};
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
use requests::{messages, take};

/// The buffer size that the socket asks for. The kernel takes a batch as one message.
const BUFFER: usize = 256 << 20;

/// The most bytes of a batch that fit into a socket without privilege over the kernel's limits (`net.core.wmem_default`
/// is 212,992).
const BATCH_UNPRIVILEGED: usize = 150_000;

/// The flag of a table that has an owner (`NFT_TABLE_F_OWNER`).
const OWNER: u32 = 2;

/// `NFTA_TABLE_OWNER`, of Linux 5.12.
const TABLE_OWNER: u16 = 7;

/// The most bytes of a batch with privilege. The kernel executes one batch at a time, whoever sent it. So a commit that
/// is urgent, such as one that refreshes a timeout, waits for the end of this one.
const BATCH_PRIVILEGED: usize = 1 << 20;

/// The names of a table's objects, as the kernel lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The table's flags.
    pub flags: u32,
    /// The names of the chains.
    pub chains: BTreeSet<String>,
    /// The names of the base chains.
    pub bases: BTreeSet<String>,
    /// The names of the sets and maps, without anonymous ones.
    pub sets: BTreeSet<String>,
}

/// A socket to nf_tables of the network namespace that it was opened in, for one table. Clones share the socket. The
/// socket is the owner of the tables that it made with [an owner](Command::AddTable).
#[derive(Clone, Debug)]
pub struct Netlink {
    socket: Arc<OwnedFd>,
    table: TableName,
    /// The sequence number of the next message. The lock is held from a request to the end of its answer, and the
    /// thread that waits longest gets it next. The kernel answers with the number of the request. So a late answer is
    /// not taken for that of another request.
    turn: Arc<FairMutex<u32>>,
    batch: usize,
}

impl Netlink {
    /// Opens a socket for a table. The table need not exist yet.
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
        // Refused in a user namespace: then batches stay small. The answers of a batch are few with and without the
        // privilege.
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

    /// Uses a socket whose other end a fuzzer may hold.
    #[doc(hidden)]
    pub fn over(socket: OwnedFd, table: TableName, batch: usize) -> Netlink {
        Netlink {
            socket: Arc::new(socket),
            table,
            // Messages that answer no request have the number 0.
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

    /// Commits commands as one batch, if the ruleset is still of a generation. After any other commit the error [is
    /// that it is outdated](Error::is_outdated).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the kernel counts with 32 bits"
    )]
    pub fn commit_at(&self, generation: u64, commands: &[Command]) -> Result<(), Error> {
        // The generation 0 would match any ruleset.
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

    /// The kernel's answer to a batch whose begin has the sequence number `first`. The answer is the message (counted
    /// from there) and the number of the first error, or that message `last` was executed. The kernel has executed the
    /// batch when `send` returns, and its whole answer lies in the socket.
    fn answer(&self, first: u32, last: u32) -> Result<Option<(u32, i32)>, Error> {
        let (mut error, mut done, mut lost) = (None, None, None);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let flags = MsgFlags::MSG_DONTWAIT;
            let length = match socket::recv(self.socket.as_raw_fd(), &mut buffer, flags) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                // The kernel reports the overflow once. The messages that fit into the socket are still there.
                Err(errno) if lost.is_none() => {
                    lost = Some(errno);
                    continue;
                }
                Err(errno) => return Err(Error::AnswerLost(errno)),
            };
            for message in messages(&buffer[..length]) {
                let number = message.seq.wrapping_sub(first);
                // The batch's end has one number more.
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

    /// Returns once no socket owns the table, or after `patience`. The kernel removes an owner from a table a moment
    /// after the owner died.
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

    /// The descriptions of objects that are the table's, because kernels differ in which dumps they filter. `attribute`
    /// has the name of an object's table.
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

    /// Whether the table was made to have an owner. Such a table has one, or lost it and waits for the next.
    pub fn is_made_to_be_owned(&self) -> bool {
        self.flags & TABLE_PERSISTS != 0
    }
}

/// Asks for errors with a message. Older kernels send errors without one.
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
