//! Owns traffic that goes on while something else happens, and the count at both ends: for what must never pass and
//! what must never be lost; never judges the counts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Protocol as Carrier, Type};
use tokio::task::JoinHandle;

use super::Protocol;
use super::messages::{
    Pace, Part, Route, Tally, accept_and, answer_and_count, connect_and, count_connections,
    count_datagrams, in_namespace, open_and_count, open_connections, send_answers, send_datagrams,
    send_from_fresh_ports, spawn,
};
use super::server::listen;
use super::socket::Packets;
use crate::{Family, Host, Netns};

/// The speakers of a stream, and the number of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// The client, over one connection (one pair of ports).
    OneConnection,
    /// The client, over one connection, whose first message the server answers. Over TCP no other than the first.
    Answered,
    /// The server, over one connection that the client opened.
    ServerSpeaks,
    /// The client, each message from a fresh port; over TCP each message is the opening of a connection.
    FreshPorts,
}

/// The traffic of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port at the server, where the stream itself listens.
    pub port: u16,
    /// The family of the addresses.
    pub family: Family,
    /// The time from one message to the next; below a millisecond they go in bursts, one each millisecond.
    pub every: Duration,
    /// The speakers and the number of connections.
    pub pattern: Pattern,
}

impl Traffic {
    /// A datagram every millisecond from one port of the client to `port`, over IPv4.
    pub fn udp(port: u16) -> Self {
        let every = Duration::from_millis(1);
        Self {
            protocol: Protocol::Udp,
            port,
            family: Family::V4,
            every,
            pattern: Pattern::OneConnection,
        }
    }

    /// Eight bytes every millisecond over one connection to `port`, over IPv4.
    pub fn tcp(port: u16) -> Self {
        Self {
            protocol: Protocol::Tcp,
            ..Self::udp(port)
        }
    }

    /// The same over IPv6, or IPv4.
    pub fn family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// The same with another time between messages.
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// The same with another pattern.
    pub fn pattern(self, pattern: Pattern) -> Self {
        Self { pattern, ..self }
    }
}

/// The number of messages that a stream sent, and of those that arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that the speaker's kernel took.
    pub sent: u64,
    /// Messages that arrived in the listener's namespace.
    pub received: u64,
}

impl Counts {
    /// The number of messages that were sent and did not arrive.
    pub fn lost(self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// The counts since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sent: self.sent - earlier.sent,
            received: self.received - earlier.received,
        }
    }
}

/// Traffic under way; ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Stream {
    tally: Arc<Tally>,
    speaker: JoinHandle<()>,
    listener: JoinHandle<()>,
    /// The socket whose overflow counts as received: what did not fit had arrived.
    overflow: Option<Arc<Packets>>,
}

impl Stream {
    /// Starts traffic between a client and a server. Messages that are not let through at first are sent all the same:
    /// only a TCP stream of one connection, or one in which the server speaks, waits for its opening, and keeps trying.
    pub fn start(client: &Host, server: &Host, traffic: Traffic) -> io::Result<Self> {
        let missing =
            || io::Error::new(io::ErrorKind::AddrNotAvailable, "no address of that family");
        let source = client.address(traffic.family).ok_or_else(missing)?;
        let target = SocketAddr::new(
            server.address(traffic.family).ok_or_else(missing)?,
            traffic.port,
        );
        let route = Route {
            netns: client.netns().clone(),
            source,
            target,
        };
        let tally = Arc::new(Tally::default());
        let pace = Pace::new(traffic.every);
        match traffic.protocol {
            Protocol::Udp => Self::udp(&route, server.netns(), traffic, pace, tally),
            Protocol::Tcp => Self::tcp(route, server.netns(), traffic, pace, tally),
            other => {
                let message = format!("no stream over {other}: it has no messages");
                Err(io::Error::new(io::ErrorKind::Unsupported, message))
            }
        }
    }

    fn udp(
        route: &Route,
        server: &Netns,
        traffic: Traffic,
        pace: Pace,
        tally: Arc<Tally>,
    ) -> io::Result<Self> {
        let answering = in_namespace(server, || {
            let socket = Packets::answering(Family::V6, Some(traffic.port), Carrier::UDP)?;
            socket.enlarge();
            Ok(Arc::new(socket))
        })?;
        let asking = in_namespace(&route.netns, || {
            let (source, target) = (route.source, route.target);
            let socket = Packets::connected(source, target, Type::DGRAM, Carrier::UDP)?;
            socket.enlarge();
            Ok(Arc::new(socket))
        })?;
        let (speaker, listener, overflow): (_, _, Arc<Packets>) = match traffic.pattern {
            Pattern::OneConnection => {
                let listener = spawn(count_datagrams(answering.clone(), tally.clone()));
                (
                    spawn(send_datagrams(asking, pace, tally.clone())),
                    listener,
                    answering,
                )
            }
            Pattern::Answered => {
                let listener = spawn(answer_and_count(answering.clone(), tally.clone()));
                (
                    spawn(send_datagrams(asking, pace, tally.clone())),
                    listener,
                    answering,
                )
            }
            Pattern::FreshPorts => {
                let listener = spawn(count_datagrams(answering.clone(), tally.clone()));
                let speaker = send_from_fresh_ports(route.clone(), pace, tally.clone());
                (spawn(speaker), listener, answering)
            }
            Pattern::ServerSpeaks => {
                let listener = spawn(open_and_count(asking.clone(), tally.clone()));
                (
                    spawn(send_answers(answering, pace, tally.clone())),
                    listener,
                    asking,
                )
            }
        };
        Ok(Self {
            tally,
            speaker,
            listener,
            overflow: Some(overflow),
        })
    }

    fn tcp(
        route: Route,
        server: &Netns,
        traffic: Traffic,
        pace: Pace,
        tally: Arc<Tally>,
    ) -> io::Result<Self> {
        let listening = in_namespace(server, || listen(traffic.port))?;
        let (speaker, listener) = match traffic.pattern {
            Pattern::OneConnection | Pattern::Answered => (
                spawn(connect_and(route, Part::Speak(pace), tally.clone())),
                spawn(accept_and(listening, Part::Listen, tally.clone())),
            ),
            Pattern::ServerSpeaks => (
                spawn(accept_and(listening, Part::Speak(pace), tally.clone())),
                spawn(connect_and(route, Part::Listen, tally.clone())),
            ),
            Pattern::FreshPorts => (
                spawn(open_connections(route, pace, tally.clone())),
                spawn(count_connections(listening, tally.clone())),
            ),
        };
        Ok(Self {
            tally,
            speaker,
            listener,
            overflow: None,
        })
    }

    /// The counts up to now; packets under way are counted as sent only.
    pub fn counts(&self) -> Counts {
        let overflow = self
            .overflow
            .as_ref()
            .map_or(0, |socket| socket.overflowed());
        let received = self.tally.received.load(Ordering::SeqCst) + u64::from(overflow);
        Counts {
            sent: self.tally.sent.load(Ordering::SeqCst),
            received,
        }
    }

    /// Waits until the counts are as wanted, and tells them; after `patience` as an error.
    pub fn until(
        &self,
        patience: Duration,
        wanted: impl Fn(Counts) -> bool,
    ) -> Result<Counts, Counts> {
        let started = Instant::now();
        loop {
            let counts = self.counts();
            if wanted(counts) {
                return Ok(counts);
            }
            if started.elapsed() > patience {
                return Err(counts);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops sending, waits until nothing has been counted for 100 ms, and tells the counts. While something is missing
    /// it waits for 500 ms: TCP sends again what a busy machine was late with.
    pub fn stop(self) -> Counts {
        self.tally.stopped.store(true, Ordering::SeqCst);
        let mut counts = self.counts();
        let mut quiet = 0;
        while quiet < if counts.lost() == 0 { 20 } else { 100 } {
            thread::sleep(Duration::from_millis(5));
            let now = self.counts();
            quiet = if now == counts { quiet + 1 } else { 0 };
            counts = now;
        }
        counts
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.speaker.abort();
        self.listener.abort();
    }
}
