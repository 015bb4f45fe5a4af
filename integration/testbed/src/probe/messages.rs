//! Owns the two ends of a stream: tasks that send, and tasks that count what arrives; never decides when they end.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use socket2::{Protocol as Carrier, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::nonce;
use super::socket::{Packets, asking};
use crate::Netns;
use crate::reactor;

/// The counts of both ends.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    /// Set when nothing more shall be sent. The sockets stay, so that what is under way can arrive.
    pub(super) stopped: AtomicBool,
}

/// From where a client's sockets are opened, and to where they lead.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) netns: Netns,
    pub(super) source: IpAddr,
    pub(super) target: SocketAddr,
}

/// When to send how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// When.
    tick: Duration,
    burst: u32,
}

impl Pace {
    pub(super) fn new(every: Duration) -> Self {
        let tick = every.max(Duration::from_millis(1));
        let burst = tick.as_nanos() / every.as_nanos().max(1);
        Self {
            tick,
            burst: u32::try_from(burst).unwrap_or(u32::MAX).clamp(1, 10_000),
        }
    }

    fn ticks(self, tally: &Arc<Tally>) -> Ticks {
        let mut interval = interval(self.tick);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ticks {
            interval,
            tally: tally.clone(),
        }
    }
}

/// The times to send, which end when the stream is stopped.
struct Ticks {
    interval: Interval,
    tally: Arc<Tally>,
}

impl Ticks {
    async fn next(&mut self) {
        self.interval.tick().await;
        if self.tally.stopped.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
    }
}

impl Tally {
    /// Counts a message before it is sent: it may arrive, and is counted then, before the sender goes on.
    fn sent(&self) {
        self.sent.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes a message back that could not be sent.
    fn not_sent(&self) {
        self.sent.fetch_sub(1, Ordering::SeqCst);
    }

    /// Sends a message, and counts it if that works.
    fn counted<T>(&self, send: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.sent();
        send().inspect_err(|_| self.not_sent())
    }

    fn received(&self, messages: u64) {
        self.received.fetch_add(messages, Ordering::SeqCst);
    }
}

pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    reactor::runtime().spawn(task)
}

pub(super) fn in_namespace<T: Send>(
    netns: &Netns,
    open: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    netns.run(|| {
        let _context = reactor::runtime().enter();
        open()
    })
}

pub(super) async fn send_datagrams(socket: Arc<Packets>, pace: Pace, tally: Arc<Tally>) {
    let mut ticks = pace.ticks(&tally);
    loop {
        ticks.next().await;
        for _ in 0..pace.burst {
            tally.sent();
            if socket.send(&nonce().to_be_bytes()).await.is_err() {
                tally.not_sent();
            }
        }
    }
}

pub(super) async fn send_from_fresh_ports(route: Route, pace: Pace, tally: Arc<Tally>) {
    let mut ticks = pace.ticks(&tally);
    loop {
        ticks.next().await;
        route.netns.run(|| {
            let send = || -> io::Result<()> {
                let socket = asking(route.source, route.target, Type::DGRAM, Carrier::UDP)?;
                socket
                    .send_to(&nonce().to_be_bytes(), &route.target.into())
                    .map(drop)
            };
            for _ in 0..pace.burst {
                // A message that could not be sent is not counted.
                let _ = tally.counted(send);
            }
        });
    }
}

pub(super) async fn count_datagrams(socket: Arc<Packets>, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    loop {
        if socket.receive(&mut buffer).await.is_ok() {
            tally.received(1);
        }
    }
}

/// Answers the first datagram, and counts all.
pub(super) async fn answer_and_count(socket: Arc<Packets>, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    let mut answered = false;
    loop {
        if let Ok(arrival) = socket.arrival(&mut buffer).await {
            tally.received(1);
            if !answered {
                answered = socket.answer(&arrival, b"answer").await.is_ok();
            }
        }
    }
}

/// Opens the flow by a datagram, again and again until the first answer, and counts the answers.
pub(super) async fn open_and_count(socket: Arc<Packets>, tally: Arc<Tally>) {
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
pub(super) async fn send_answers(socket: Arc<Packets>, pace: Pace, tally: Arc<Tally>) {
    let mut buffer = [0; 64];
    let arrival = loop {
        if let Ok(arrival) = socket.arrival(&mut buffer).await {
            break arrival;
        }
    };
    let mut ticks = pace.ticks(&tally);
    loop {
        ticks.next().await;
        for _ in 0..pace.burst {
            tally.sent();
            let answered = socket.answer(&arrival, &nonce().to_be_bytes()).await;
            if answered.is_err() {
                tally.not_sent();
            }
        }
    }
}

/// The part of an end of a TCP connection.
pub(super) enum Part {
    Speak(Pace),
    Listen,
}

const MESSAGE: usize = 8;

async fn take_part(mut stream: TcpStream, part: Part, tally: Arc<Tally>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match part {
        Part::Speak(pace) => {
            let mut ticks = pace.ticks(&tally);
            loop {
                ticks.next().await;
                for _ in 0..pace.burst {
                    tally.sent();
                    let written = stream.write_all(&[0; MESSAGE]).await;
                    written.inspect_err(|_| tally.not_sent())?;
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

pub(super) async fn connect_and(route: Route, part: Part, tally: Arc<Tally>) {
    let stream = loop {
        match connect(&route, Duration::from_secs(1)).await {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    };
    let _ = take_part(stream, part, tally).await;
}

pub(super) async fn accept_and(listener: TcpListener, part: Part, tally: Arc<Tally>) {
    let stream = loop {
        if let Ok((stream, _)) = listener.accept().await {
            break stream;
        }
    };
    let _ = take_part(stream, part, tally).await;
}

async fn connect(route: &Route, patience: Duration) -> io::Result<TcpStream> {
    let socket = in_namespace(&route.netns, || {
        let socket = asking(route.source, route.target, Type::STREAM, Carrier::TCP)?;
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    })?;
    tokio::time::timeout(patience, socket.connect(route.target)).await?
}

/// Opens a connection at each tick, whatever becomes of those before it; a SYN is a message sent.
pub(super) async fn open_connections(route: Route, pace: Pace, tally: Arc<Tally>) {
    let mut ticks = pace.ticks(&tally);
    let mut held: VecDeque<(Instant, Vec<Socket>)> = VecDeque::new();
    loop {
        ticks.next().await;
        let opened: Vec<Socket> = route.netns.run(|| {
            (0..pace.burst)
                .filter_map(|_| tally.counted(|| begin_connection(&route)).ok())
                .collect()
        });
        held.push_back((Instant::now(), opened));
        // Before its SYN would be sent a second time a connection is given up.
        while held
            .front()
            .is_some_and(|(at, _)| at.elapsed() > Duration::from_millis(900))
        {
            held.pop_front();
        }
    }
}

/// Sends a SYN and does not wait for what becomes of it.
fn begin_connection(route: &Route) -> io::Result<Socket> {
    let socket = asking(route.source, route.target, Type::STREAM, Carrier::TCP)?;
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&route.target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

pub(super) async fn count_connections(listener: TcpListener, tally: Arc<Tally>) {
    loop {
        if listener.accept().await.is_ok() {
            tally.received(1);
        }
    }
}
