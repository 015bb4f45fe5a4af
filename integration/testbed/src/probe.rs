//! Owns the question whether a packet gets from one host to another, asked with real packets; never decides what the
//! answer ought to be.

mod conversation;
mod cost;
mod datagram;
mod flood;
mod icmp;
mod matrix;
mod messages;
mod sctp;
mod server;
mod socket;
mod stream;
mod transport;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

pub use conversation::{Attempt, Conversation, Side};
pub use cost::{Cost, FLOW_PORT, Sender};
pub use flood::{Class, ClassCount, Flood, FloodReport};
pub use matrix::{Difference, Matrix};
pub use server::Server;
pub use stream::{Counts, Pattern, Stream, Traffic};

use crate::reactor;
use crate::{Family, Host};

/// The protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A connection, and over it the server's name.
    Tcp,
    /// A datagram, and in the answer the server's name.
    Udp,
    /// INIT, INIT-ACK (with the server's name as its cookie), COOKIE-ECHO, COOKIE-ACK, ABORT by raw sockets: the kernel
    /// under test need not know SCTP.
    Sctp,
    /// Echo request and reply, of ICMP or ICMPv6. The kernel answers, without a name; the port is ignored.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
            Self::Icmp => "ICMP",
        })
    }
}

/// The outcome of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The right server answered.
    Open,
    /// Nobody said anything for as long as the prober waits: dropped.
    Blocked,
    /// Somebody said no: a reset, an ICMP error, a refusal by the own kernel. The set-up is at fault (no server, no
    /// route), or whoever rejects instead of dropping; it never counts as blocked.
    Refused(String),
    /// Another server than the one that was meant answered: its name.
    Wrong(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Blocked => f.write_str("blocked"),
            Self::Refused(reason) => write!(f, "refused ({reason})"),
            Self::Wrong(name) => write!(f, "answered by {name}"),
        }
    }
}

/// One question: does this get through?
#[derive(Debug, Clone)]
pub struct Probe {
    from: Host,
    source: Option<IpAddr>,
    /// The name that the right server says; `None` if the port is not to be asked for its name.
    expected: String,
    target: Option<SocketAddr>,
    protocol: Protocol,
}

impl Probe {
    /// Asks whether `from` reaches `port` of `to` in the given family, from its first address to its first.
    pub fn new(from: &Host, to: &Host, protocol: Protocol, port: u16, family: Family) -> Self {
        let target = to
            .address(family)
            .map(|address| SocketAddr::new(address, port));
        Self {
            from: from.clone(),
            source: from.address(family),
            expected: to.name().to_owned(),
            target,
            protocol,
        }
    }

    /// The same question by another address of the target: a second one, a service's.
    pub fn at(self, target: SocketAddr) -> Self {
        let source = self.from.address(Family::of(target.ip()));
        Self {
            source,
            target: Some(target),
            ..self
        }
    }

    /// The same question from another address of the source.
    pub fn from_address(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }
}

/// The settings of probes: the longest time for an answer, the number under way at once.
#[derive(Debug, Clone, Copy)]
pub struct Prober {
    timeout: Duration,
    at_once: usize,
}

impl Default for Prober {
    /// 250 ms, which is long on one machine, and 1,000 at once.
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(250),
            at_once: 1_000,
        }
    }
}

impl Prober {
    /// Waits that long for an answer. Datagrams are sent again after a third and two thirds of it.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Has that many probes under way at once: with none, one after the other.
    pub fn at_once(self, at_once: usize) -> Self {
        Self {
            at_once: at_once.max(1),
            ..self
        }
    }

    /// Sends one probe.
    pub fn probe(&self, probe: Probe) -> Outcome {
        self.probe_all(vec![probe]).remove(0)
    }

    /// Sends many; the outcomes are in the same order.
    pub fn probe_all(&self, probes: Vec<Probe>) -> Vec<Outcome> {
        probes
            .chunks(self.at_once)
            .flat_map(|wave| self.wave(wave))
            .collect()
    }

    /// Asks for every pair of different hosts.
    pub fn matrix(&self, hosts: &[Host], protocol: Protocol, port: u16, family: Family) -> Matrix {
        let pairs: Vec<(usize, usize)> = (0..hosts.len())
            .flat_map(|from| (0..hosts.len()).map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .collect();
        let ask = |&(from, to): &(usize, usize)| {
            Probe::new(&hosts[from], &hosts[to], protocol, port, family)
        };
        let outcomes = self.probe_all(pairs.iter().map(ask).collect());
        let title = match protocol {
            Protocol::Icmp => format!("{protocol} over {family}"),
            _ => format!("{protocol} {port} over {family}"),
        };
        let mut matrix = Matrix::new(&title, hosts.iter().map(Host::name));
        for ((from, to), outcome) in pairs.into_iter().zip(outcomes) {
            matrix.set(from, to, Some(outcome));
        }
        matrix
    }

    /// Opens the wave's sockets, one thread for each namespace, and uses them all at once on the shared runtime.
    fn wave(&self, probes: &[Probe]) -> Vec<Outcome> {
        let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, probe) in probes.iter().enumerate() {
            by_source.entry(probe.from.name()).or_default().push(index);
        }
        let mut exchanges: Vec<Option<_>> = probes.iter().map(|_| None).collect();
        for indices in by_source.into_values() {
            let opened = probes[indices[0]].from.netns().run(|| {
                let _context = reactor::runtime().enter();
                indices
                    .iter()
                    .map(|&index| Exchange::open(&probes[index]))
                    .collect::<Vec<_>>()
            });
            for (index, exchange) in indices.into_iter().zip(opened) {
                exchanges[index] = Some(exchange);
            }
        }
        let (patience, expected) = (
            self.timeout,
            probes.iter().map(|probe| probe.expected.clone()),
        );
        let runs: Vec<_> = exchanges
            .into_iter()
            .zip(expected)
            .map(|(exchange, expected)| async move {
                match exchange.expect("every probe has a source") {
                    Ok(exchange) => {
                        outcome(timeout(patience, exchange.run(patience)).await, &expected)
                    }
                    Err(error) => Outcome::Refused(error.to_string()),
                }
            })
            .map(|run| reactor::runtime().spawn(run))
            .collect();
        let done = reactor::wait(join_all(runs));
        done.into_iter()
            .map(|outcome| outcome.expect("a probe does not panic"))
            .collect()
    }
}

/// The end of an exchange; `None` as a name means that an answer came that carries none.
type Answer = io::Result<Option<String>>;

fn outcome(answer: Result<Answer, tokio::time::error::Elapsed>, expected: &str) -> Outcome {
    match answer {
        Err(_) => Outcome::Blocked,
        Ok(Ok(None)) => Outcome::Open,
        Ok(Ok(Some(name))) if name == expected => Outcome::Open,
        Ok(Ok(Some(name))) => Outcome::Wrong(name),
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Outcome::Blocked,
        Ok(Err(error)) => Outcome::Refused(error.to_string()),
    }
}

/// A probe whose socket is open, in the source's namespace.
enum Exchange {
    Tcp(transport::TcpExchange),
    Udp(transport::UdpExchange),
    Sctp(sctp::SctpExchange),
    Icmp(icmp::IcmpExchange),
}

impl Exchange {
    fn open(probe: &Probe) -> io::Result<Self> {
        let unreachable = |message: &str| io::Error::new(io::ErrorKind::AddrNotAvailable, message);
        let target = probe
            .target
            .ok_or_else(|| unreachable("the target has no address of that family"))?;
        let source = probe
            .source
            .ok_or_else(|| unreachable("the source has no address of that family"))?;
        Ok(match probe.protocol {
            Protocol::Tcp => Self::Tcp(transport::TcpExchange::open(source, target)?),
            Protocol::Udp => Self::Udp(transport::UdpExchange::open(source, target)?),
            Protocol::Sctp => Self::Sctp(sctp::SctpExchange::open(source, target)?),
            Protocol::Icmp => Self::Icmp(icmp::IcmpExchange::open(source, target.ip())?),
        })
    }

    async fn run(self, patience: Duration) -> Answer {
        match self {
            Self::Tcp(exchange) => exchange.run().await,
            Self::Udp(exchange) => exchange.run(patience / 3).await,
            Self::Sctp(exchange) => exchange.run(patience / 3).await,
            Self::Icmp(exchange) => exchange.run(patience / 3).await,
        }
    }
}

/// A number that no other probe of this process has.
fn nonce() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    // Spread over all bits, since SCTP and ICMP use only some of them.
    NEXT.fetch_add(1, Ordering::Relaxed)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
