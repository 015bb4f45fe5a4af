//! Owns a TCP relay that delays every byte, both ways, and can be cut: a bad line between an enforcer and its control
//! plane, where the kernel has no netem. Reads nothing of what it carries, and keeps the order within a connection.

use std::{
    future::pending,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use crate::{Netns, reactor};

/// Chunks under way in one direction; a sender that is further ahead waits.
const CHUNKS: usize = 1_024;

/// The most bytes of a chunk.
const CHUNK: usize = 64 << 10;

/// A relay at work; its connections break when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    line: Arc<Mutex<Line>>,
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

/// The target and the delay of a relay.
#[derive(Clone, Copy, Debug)]
struct Line {
    target: SocketAddr,
    delay: Duration,
}

impl Relay {
    /// Listens at an address of a namespace, at any port, and connects from there to `target` for each that connects.
    pub fn start(
        netns: &Netns,
        address: std::net::IpAddr,
        target: SocketAddr,
        delay: Duration,
    ) -> io::Result<Relay> {
        let listener = netns.run(|| TcpListener::bind((address, 0)))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let netns = netns.clone();
        let line = Arc::new(Mutex::new(Line { target, delay }));
        let (cuts, cut) = watch::channel(0);
        let leads = line.clone();
        let task = reactor::runtime().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)
                .expect("a fresh socket is taken by the runtime");
            // The connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (netns, line, mut cut) = (netns.clone(), leads.clone(), cut.clone());
                cut.mark_unchanged();
                connections.spawn(async move {
                    let target = of(&line).target;
                    // Whoever connected sees the connection close when the target does not answer.
                    if let Ok(far) = connect(netns, target).await {
                        carry(near, far, line, cut).await;
                    }
                });
            }
        });
        Ok(Relay {
            address,
            line,
            cuts,
            task,
        })
    }

    /// The address of the listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the delay of bytes that are read from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.line
            .lock()
            .expect("nothing panics while holding it")
            .delay = delay;
    }

    /// Sets the target of clients that connect from now on.
    pub fn set_target(&self, target: SocketAddr) {
        self.line
            .lock()
            .expect("nothing panics while holding it")
            .target = target;
    }

    /// Breaks every connection. The client sees it at once, and loses the bytes under way. The target still gets the
    /// bytes under way, when they are due, perhaps after those of the next connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

fn of(line: &Mutex<Line>) -> Line {
    *line.lock().expect("nothing panics while holding it")
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(netns: Netns, target: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let connected = tokio::task::spawn_blocking(move || {
        netns.run(|| {
            let stream = TcpStream::connect(target)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        })
    });
    let stream: io::Result<TcpStream> = connected.await.expect("connecting does not panic");
    tokio::net::TcpStream::from_std(stream?)
}

async fn carry(
    near: tokio::net::TcpStream,
    far: tokio::net::TcpStream,
    line: Arc<Mutex<Line>>,
    cut: watch::Receiver<u64>,
) {
    for stream in [&near, &far] {
        // A delay of its own is not wanted; a socket that is broken already shows when it is used.
        let _ = stream.set_nodelay(true);
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let (mut silent, mut deaf) = (cut.clone(), cut);
    tokio::join!(
        one_way(
            near_read,
            far_write,
            &line,
            silent.changed(),
            pending::<()>()
        ),
        one_way(far_read, near_write, &line, pending::<()>(), deaf.changed()),
    );
}

/// Carries until one end closes, and tells the other by closing; or until nothing more is to be read, or written.
async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: &Mutex<Line>,
    silent: impl Future,
    deaf: impl Future,
) {
    let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let chunk = (Instant::now() + of(line).delay, buffer[..length].to_vec());
            if queue.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((at, chunk)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(until(read, silent), until(write, deaf));
}

/// Ends with the first of two.
async fn until(work: impl Future, end: impl Future) {
    tokio::select! {
        _ = work => {}
        _ = end => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_come_whole_in_order_and_late() {
        let here = Netns::current("here").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let delay = Duration::from_millis(30);
        let relay = Relay::start(
            &here,
            [127, 0, 0, 1].into(),
            listener.local_addr().unwrap(),
            delay,
        )
        .unwrap();
        let mut near = TcpStream::connect(relay.address()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let started = std::time::Instant::now();
        let writer = std::thread::spawn({
            let (mut near, sent) = (near.try_clone().unwrap(), sent.clone());
            move || near.write_all(&sent).unwrap()
        });
        let mut received = vec![0; sent.len()];
        far.read_exact(&mut received).unwrap();
        assert!(started.elapsed() >= delay);
        assert_eq!(received, sent);
        writer.join().unwrap();
        let answered = std::time::Instant::now();
        far.write_all(b"yes").unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).unwrap();
        assert!(answered.elapsed() >= delay);
        assert_eq!(answer, "yes");
    }

    #[test]
    fn what_is_under_way_when_it_is_cut_comes_after_what_the_next_connection_brings() {
        let here = Netns::current("here").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let late = Duration::from_millis(200);
        let target = listener.local_addr().unwrap();
        let relay = Relay::start(&here, [127, 0, 0, 1].into(), target, late).unwrap();
        let mut near = TcpStream::connect(relay.address()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"old").unwrap();
        std::thread::sleep(late / 4);
        relay.cut();
        assert_eq!(near.read(&mut [0; 8]).unwrap_or(0), 0);
        relay.set_delay(Duration::ZERO);
        let mut next = TcpStream::connect(relay.address()).unwrap();
        let (mut after, _) = listener.accept().unwrap();
        next.write_all(b"new").unwrap();
        let mut received = [0; 3];
        after.read_exact(&mut received).unwrap();
        far.set_nonblocking(true).unwrap();
        assert!(far.read(&mut received).is_err(), "it is under way");
        far.set_nonblocking(false).unwrap();
        let mut all = Vec::new();
        far.read_to_end(&mut all).unwrap();
        assert_eq!((&received, &*all), (b"new", &b"old"[..]));
    }
}
