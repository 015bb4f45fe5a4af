//! Owns traffic that goes on while something else happens, and the count at both ends: for what must never pass and what
//! must never be lost; never judges the counts.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Protocol as Carrier, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::server::listen;
use super::socket::{Packets, asking};
use super::{Protocol, nonce};
use crate::reactor;
use crate::testbed::{Family, Host, Netns};

/// Who speaks in a stream, and over how many connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// The client, over one connection (one pair of ports).
    OneConnection,
    /// The server, over one connection that the client opened.
    ServerSpeaks,
    /// The client, each message from a fresh port; over TCP each message is the opening of a connection.
    FreshPorts,
}

/// What a stream carries.
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
    /// Who speaks, over how many connections.
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

/// How many messages a stream sent and how many of them arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that the speaker's kernel took.
    pub sent: u64,
    /// Messages that arrived in the listener's namespace.
    pub received: u64,
}

impl Counts {
    /// How many were sent and did not arrive.
    pub fn lost(self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// What was counted since `earlier`.
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

#[derive(Debug, Default)]
struct Tally {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Stream {
    /// Starts traffic between a client and a server. What is not let through at first is sent all the same: only a TCP
    /// stream of one connection, or one in which the server speaks, waits for its opening, and keeps trying.
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
            source: SocketAddr::new(source, 0),
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
            let (source, target) = (route.source.ip(), route.target);
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
            Pattern::OneConnection => (
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

    /// What has been counted up to now; what is under way is counted as sent only.
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

    /// Stops sending, waits until nothing has arrived for 100 ms, or all has, and tells the counts.
    pub fn stop(self) -> Counts {
        self.speaker.abort();
        let mut counts = self.counts();
        let mut quiet = 0;
        while quiet < 20 && counts.received < counts.sent {
            std::thread::sleep(Duration::from_millis(5));
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

/// From where a client's sockets are opened, and to where they lead.
#[derive(Debug, Clone)]
struct Route {
    netns: Netns,
    source: SocketAddr,
    target: SocketAddr,
}

/// When to send how many.
#[derive(Debug, Clone, Copy)]
struct Pace {
    tick: Duration,
    burst: u32,
}

impl Pace {
    fn new(every: Duration) -> Self {
        let tick = every.max(Duration::from_millis(1));
        let burst = tick.as_nanos() / every.as_nanos().max(1);
        Self {
            tick,
            burst: u32::try_from(burst).unwrap_or(u32::MAX).clamp(1, 10_000),
        }
    }

    fn ticks(self) -> tokio::time::Interval {
        let mut ticks = interval(self.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks
    }
}

impl Tally {
    fn sent(&self) {
        self.sent.fetch_add(1, Ordering::SeqCst);
    }

    fn received(&self, messages: u64) {
        self.received.fetch_add(messages, Ordering::SeqCst);
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    reactor::runtime().spawn(task)
}

fn in_namespace<T: Send>(
    netns: &Netns,
    open: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    netns.run(|| {
        let _context = reactor::runtime().enter();
        open()
    })
}

async fn send_datagrams(socket: Arc<Packets>, pace: Pace, tally: Arc<Tally>) {
    let mut ticks = pace.ticks();
    loop {
        ticks.tick().await;
        for _ in 0..pace.burst {
            if socket.send(&nonce().to_be_bytes()).await.is_ok() {
                tally.sent();
            }
        }
    }
}

async fn send_from_fresh_ports(route: Route, pace: Pace, tally: Arc<Tally>) {
    let mut ticks = pace.ticks();
    loop {
        ticks.tick().await;
        let sent = route.netns.run(|| {
            let send = || -> io::Result<()> {
                let socket = asking(route.source.ip(), route.target, Type::DGRAM, Carrier::UDP)?;
                socket
                    .send_to(&nonce().to_be_bytes(), &route.target.into())
                    .map(drop)
            };
            (0..pace.burst).filter(|_| send().is_ok()).count()
        });
        (0..sent).for_each(|_| tally.sent());
    }
}

async fn count_datagrams(socket: Arc<Packets>, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    loop {
        if socket.receive(&mut buffer).await.is_ok() {
            tally.received(1);
        }
    }
}

/// Opens the flow by a datagram, again and again until the first answer, and counts the answers.
async fn open_and_count(socket: Arc<Packets>, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    let mut ticks = interval(Duration::from_millis(20));
    let mut opened = false;
    loop {
        tokio::select! {
            received = socket.receive(&mut buffer) => if received.is_ok() {
                opened = true;
                tally.received(1);
            },
            _ = ticks.tick(), if !opened => drop(socket.send(b"open").await),
        }
    }
}

/// Waits for the datagram that opens the flow, and then speaks to where it came from.
async fn send_answers(socket: Arc<Packets>, pace: Pace, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    let arrival = loop {
        if let Ok(arrival) = socket.arrival(&mut buffer).await {
            break arrival;
        }
    };
    let mut ticks = pace.ticks();
    loop {
        ticks.tick().await;
        for _ in 0..pace.burst {
            if socket
                .answer(&arrival, &nonce().to_be_bytes())
                .await
                .is_ok()
            {
                tally.sent();
            }
        }
    }
}

/// What an end of a TCP connection does.
enum Part {
    Speak(Pace),
    Listen,
}

const MESSAGE: usize = 8;

async fn take_part(mut stream: TcpStream, part: Part, tally: Arc<Tally>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match part {
        Part::Speak(pace) => {
            let mut ticks = pace.ticks();
            loop {
                ticks.tick().await;
                for _ in 0..pace.burst {
                    stream.write_all(&[0; MESSAGE]).await?;
                    tally.sent();
                }
            }
        }
        Part::Listen => {
            let mut message = [0; MESSAGE];
            loop {
                stream.read_exact(&mut message).await?;
                tally.received(1);
            }
        }
    }
}

async fn connect_and(route: Route, part: Part, tally: Arc<Tally>) {
    let stream = loop {
        match connect(&route, Duration::from_secs(1)).await {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    };
    let _ = take_part(stream, part, tally).await;
}

async fn accept_and(listener: TcpListener, part: Part, tally: Arc<Tally>) {
    let stream = loop {
        if let Ok((stream, _)) = listener.accept().await {
            break stream;
        }
    };
    let _ = take_part(stream, part, tally).await;
}

async fn connect(route: &Route, patience: Duration) -> io::Result<TcpStream> {
    let socket = in_namespace(&route.netns, || {
        let socket = asking(route.source.ip(), route.target, Type::STREAM, Carrier::TCP)?;
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    })?;
    tokio::time::timeout(patience, socket.connect(route.target)).await?
}

/// Opens a connection at each tick, whatever becomes of those before it; a SYN is a message sent.
async fn open_connections(route: Route, pace: Pace, tally: Arc<Tally>) {
    let mut ticks = pace.ticks();
    let mut attempts = JoinSet::new();
    loop {
        ticks.tick().await;
        for _ in 0..pace.burst {
            let route = route.clone();
            tally.sent();
            attempts
                .spawn(async move { connect(&route, Duration::from_millis(900)).await.map(drop) });
        }
        while attempts.try_join_next().is_some() {}
    }
}

async fn count_connections(listener: TcpListener, tally: Arc<Tally>) {
    loop {
        if listener.accept().await.is_ok() {
            tally.received(1);
        }
    }
}
