//! The yardstick: the same bytes to as many plain TCP sockets, each answered with one byte. One task a socket, woken
//! as the control plane wakes its streams; no HTTP/2, no messages.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};

/// The sending end.
pub(crate) struct Raw {
    round: watch::Sender<u64>,
    missing: Arc<AtomicUsize>,
    done: Arc<Notify>,
    sockets: JoinSet<std::io::Result<()>>,
}

/// The listener, and the address that the other end must connect to.
pub(crate) async fn listen() -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Raw {
    /// Takes as many connections.
    pub(crate) async fn accept(listener: TcpListener, count: usize, bytes: usize) -> Result<Raw> {
        let mut raw = Raw {
            round: watch::Sender::new(0),
            missing: Arc::default(),
            done: Arc::default(),
            sockets: JoinSet::new(),
        };
        let message: Arc<[u8]> = vec![7; bytes].into();
        for _ in 0..count {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (round, missing) = (raw.round.subscribe(), raw.missing.clone());
            let (done, message) = (raw.done.clone(), message.clone());
            raw.sockets
                .spawn(serve(stream, round, message, missing, done));
        }
        Ok(raw)
    }

    /// Sends the bytes to every socket. Returns the time until all are answered.
    pub(crate) async fn fan_out(&self) -> Duration {
        self.missing.store(self.sockets.len(), Ordering::SeqCst);
        let started = Instant::now();
        self.round.send_modify(|round| *round += 1);
        self.done.notified().await;
        started.elapsed()
    }
}

async fn serve(
    mut stream: TcpStream,
    mut round: watch::Receiver<u64>,
    message: Arc<[u8]>,
    missing: Arc<AtomicUsize>,
    done: Arc<Notify>,
) -> std::io::Result<()> {
    let mut answer = [0];
    while round.changed().await.is_ok() {
        stream.write_all(&message).await?;
        stream.read_exact(&mut answer).await?;
        if missing.fetch_sub(1, Ordering::SeqCst) == 1 {
            done.notify_one();
        }
    }
    Ok(())
}
