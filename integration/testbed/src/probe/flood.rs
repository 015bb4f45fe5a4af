//! Owns floods: hundreds of thousands of datagrams a second from forged source addresses, counted exactly at both ends,
//! class by class; never changes what the packets meet.
//!
//! The receiving end counts in the kernel: a packet socket for each class, with a filter for it, that nobody reads. The
//! kernel counts what passes the filter, whether it finds room or not. (A raw socket that is full counts what its
//! filter would have refused, too.)

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::datagram::Template;
use crate::{Family, Host};

/// Packets that are counted together: those from a range of source addresses to one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// The name in the report.
    pub name: String,
    /// The first source address.
    pub first: IpAddr,
    /// How many source addresses, one after the other from the first; used in turn.
    pub addresses: u32,
    /// The destination's port.
    pub port: u16,
}

/// The counts of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassCount {
    /// The class's name.
    pub name: String,
    /// Packets that the sender's kernel took.
    pub sent: u64,
    /// Packets that arrived in the destination's namespace.
    pub received: u64,
}

/// The result of a flood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FloodReport {
    /// Every class, in the order given.
    pub classes: Vec<ClassCount>,
    /// Packets that the machine threw away since a CPU's queue was full, of this flood or of anybody's. While it is 0 a
    /// packet that did not arrive was dropped by a rule.
    pub machine_drops: u64,
    /// The time that the flood lasted.
    pub lasted: Duration,
}

/// A flood under way; ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    counters: Vec<Counter>,
    sender: Option<JoinHandle<io::Result<()>>>,
    machine_drops: u64,
    started: Instant,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    sent: Vec<AtomicU64>,
}

/// Packets of one class handed to the kernel in one call.
const BATCH: usize = 64;

impl Flood {
    /// Starts sending from `from` to the first address of `to` in each class's family, a batch of each class in turn.
    /// `per_second` limits all classes together; without it they go as fast as one CPU sends.
    pub fn start(
        from: &Host,
        to: &Host,
        classes: &[Class],
        per_second: Option<u32>,
    ) -> io::Result<Self> {
        let missing =
            || io::Error::new(io::ErrorKind::AddrNotAvailable, "no address of that family");
        let mut routes = BTreeMap::new();
        for family in classes.iter().map(|class| Family::of(class.first)) {
            if let btree_map::Entry::Vacant(route) = routes.entry(family) {
                let target = to.address(family).ok_or_else(missing)?;
                let socket = from.netns().run(|| forging_socket(target))?;
                route.insert((target, Arc::new(socket)));
            }
        }
        let counters = to.netns().run(|| {
            classes
                .iter()
                .map(Counter::open)
                .collect::<io::Result<Vec<_>>>()
        })?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sent: classes.iter().map(|_| AtomicU64::new(0)).collect(),
        });
        let batches = classes
            .iter()
            .map(|class| {
                let (target, socket) = &routes[&Family::of(class.first)];
                (Template::new(class, *target, BATCH), socket.clone())
            })
            .collect();
        let (machine_drops, started) = (machine_drops()?, Instant::now());
        let sender = {
            let shared = shared.clone();
            thread::Builder::new()
                .name("flood".to_owned())
                .spawn(move || send(batches, per_second, &shared))?
        };
        Ok(Self {
            shared,
            counters,
            sender: Some(sender),
            machine_drops,
            started,
        })
    }

    /// The counts up to now.
    pub fn counts(&self) -> Vec<ClassCount> {
        let sent = self
            .shared
            .sent
            .iter()
            .map(|sent| sent.load(Ordering::SeqCst));
        let count = |(sent, counter): (u64, &Counter)| ClassCount {
            name: counter.class.name.clone(),
            sent,
            received: counter.received(),
        };
        sent.zip(&self.counters).map(count).collect()
    }

    /// Stops sending and tells what was counted, when nothing is under way any more.
    pub fn stop(mut self) -> io::Result<FloodReport> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let sender = self.sender.take().expect("only stop and drop take it");
        sender.join().expect("the sender does not panic")?;
        let lasted = self.started.elapsed();
        let mut classes = self.counts();
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(20));
            let later = self.counts();
            if later == classes {
                break;
            }
            classes = later;
        }
        Ok(FloodReport {
            classes,
            machine_drops: machine_drops()? - self.machine_drops,
            lasted,
        })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

impl fmt::Display for FloodReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .classes
            .iter()
            .map(|class| class.name.len())
            .max()
            .unwrap_or(0);
        for ClassCount {
            name,
            sent,
            received,
        } in &self.classes
        {
            writeln!(
                f,
                "{name:<width$}  sent {sent:>10}  received {received:>10}"
            )?;
        }
        let seconds = self.lasted.as_secs_f64();
        let sent: u64 = self.classes.iter().map(|class| class.sent).sum();
        writeln!(
            f,
            "{:.0} packets/s for {seconds:.1} s, {} thrown away by the machine",
            sent as f64 / seconds,
            self.machine_drops
        )
    }
}

/// A socket that takes whole packets, header and all.
pub(super) fn forging_socket(target: IpAddr) -> io::Result<Socket> {
    const WHOLE_PACKETS: i32 = libc::IPPROTO_RAW;
    let target = SocketAddr::new(target, 0);
    let socket = Socket::new(
        Domain::for_address(target),
        Type::RAW,
        Some(Protocol::from(WHOLE_PACKETS)),
    )?;
    socket.set_send_buffer_size(4 << 20)?;
    socket.connect(&SockAddr::from(target))?;
    Ok(socket)
}

fn send(
    mut batches: Vec<(Template, Arc<Socket>)>,
    per_second: Option<u32>,
    shared: &Shared,
) -> io::Result<()> {
    let started = Instant::now();
    let mut total = 0u64;
    while !shared.stop.load(Ordering::Relaxed) {
        for ((batch, socket), sent) in batches.iter_mut().zip(&shared.sent) {
            batch.advance();
            let taken = batch.send(socket)?;
            sent.fetch_add(taken, Ordering::SeqCst);
            total += taken;
        }
        if let Some(per_second) = per_second {
            let due = Duration::from_secs_f64(total as f64 / f64::from(per_second.max(1)));
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    Ok(())
}

/// The receiving end of a class.
#[derive(Debug)]
struct Counter {
    class: Class,
    socket: Socket,
    /// The kernel's count at the last query: a query resets the kernel's counter.
    counted: AtomicU64,
    /// Takes the datagrams to the port, so that no ICMP errors answer them.
    _sink: Option<Socket>,
}

impl Counter {
    fn open(class: &Class) -> io::Result<Self> {
        let ethertype = match class.first {
            IpAddr::V4(_) => libc::ETH_P_IP,
            IpAddr::V6(_) => libc::ETH_P_IPV6,
        };
        // The socket receives nothing before it has a protocol, and gets that only when it has its filter.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.attach_filter(&filter(class))?;
        socket.set_recv_buffer_size(1)?;
        bind_to_protocol(&socket, ethertype as u16)?;
        Ok(Self {
            class: class.clone(),
            socket,
            counted: AtomicU64::new(0),
            _sink: sink(class.port)?,
        })
    }

    fn received(&self) -> u64 {
        let more = u64::from(packets_since_last_asked(&self.socket));
        self.counted.fetch_add(more, Ordering::SeqCst) + more
    }
}

/// Lets a packet socket receive a protocol from every interface (`man 7 packet`).
fn bind_to_protocol(socket: &Socket, ethertype: u16) -> io::Result<()> {
    // SAFETY: a plain C structure for which all zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    // SAFETY: the address is as long as said, and outlives the call.
    let status = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The number of packets that passed a packet socket's filter since the last query (`PACKET_STATISTICS`).
fn packets_since_last_asked(socket: &Socket) -> u32 {
    let mut statistics = [0u32; 2];
    let mut length = size_of_val(&statistics) as libc::socklen_t;
    // SAFETY: the buffer is as long as said, and outlives the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            statistics.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert_eq!(status, 0, "every packet socket tells its statistics");
    statistics[0]
}

/// A socket at the port that takes nothing; none if another class, or a server, has the port already.
fn sink(port: u16) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    socket.attach_filter(&[statement(RETURN, 0)])?;
    match socket.bind(&SockAddr::from(SocketAddr::from((
        Ipv6Addr::UNSPECIFIED,
        port,
    )))) {
        Ok(()) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn statement(code: u16, k: u32) -> SockFilter {
    SockFilter::new(code, 0, 0, k)
}

/// A filter that takes the class's packets: those whose words are as they must be, whose last word of the source
/// address is in the range, and whose destination port is the class's.
fn filter(class: &Class) -> Vec<SockFilter> {
    let at = |offset: u32| (libc::SKF_NET_OFF as u32).wrapping_add(offset);
    let (fixed, last, source_end, port_at): (Vec<u32>, u32, u32, u32) = match class.first {
        IpAddr::V4(first) => (Vec::new(), first.to_bits(), 16, 22),
        IpAddr::V6(first) => {
            let words: Vec<u32> = (0..4)
                .map(|word| (first.to_bits() >> (96 - 32 * word)) as u32)
                .collect();
            (words[..3].to_vec(), words[3], 24, 42)
        }
    };
    // Each test: load, and go on if it holds, else to the end.
    let mut tests: Vec<(u16, u32, u16, u32, bool)> = Vec::new();
    for (index, word) in (0..).zip(&fixed) {
        tests.push((LOAD_WORD, at(8 + 4 * index), IF_EQUAL, *word, true));
    }
    tests.push((LOAD_WORD, at(source_end - 4), IF_AT_LEAST, last, true));
    if let Some(beyond) = last.checked_add(class.addresses) {
        tests.push((LOAD_WORD, at(source_end - 4), IF_AT_LEAST, beyond, false));
    }
    tests.push((
        LOAD_HALF,
        at(port_at),
        IF_EQUAL,
        u32::from(class.port),
        true,
    ));
    let mut program = Vec::new();
    for (index, &(load, offset, test, value, wanted)) in tests.iter().enumerate() {
        let refuse = ((tests.len() - index - 1) * 2 + 1) as u8;
        let (yes, no) = if wanted { (0, refuse) } else { (refuse, 0) };
        program.push(statement(load, offset));
        program.push(SockFilter::new(test, yes, no, value));
    }
    program.push(statement(RETURN, 64));
    program.push(statement(RETURN, 0));
    program
}

/// Packets that did not fit into a CPU's queue since the machine was started.
fn machine_drops() -> io::Result<u64> {
    let table = fs::read_to_string("/proc/net/softnet_stat")?;
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    Ok(table.lines().filter_map(dropped).sum())
}
