//! Accepting connections: an error is logged, seldom, and waited out, so that a process at its limit of open files does
//! not spin. The open connections are counted.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::sleep,
};
use tracing::warn;

use crate::{Throttle, descriptors};

/// The time to wait after an error: at first, and at most. A connection that ends meanwhile frees a descriptor.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The interval between log lines of the same text.
const SAY: Duration = Duration::from_secs(10);

/// What is counted of a listener's connections.
#[derive(Debug, Default)]
pub struct Counts {
    open: AtomicU64,
    errors: AtomicU64,
    /// Connections that were closed since they asked for nothing.
    pub silent: AtomicU64,
}

impl Counts {
    /// The open connections.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// The number of times that no connection could be accepted.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }
}

/// An open connection, as far as it is counted.
#[derive(Debug)]
pub struct Counted(Arc<Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Where connections come from.
pub trait Listen: Sync {
    /// A connection.
    type Stream: Send;

    /// The next one.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        let (stream, _) = self.accept().await?;
        // Where it fails the connection is gone, and reading it says so.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Listen for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

/// Accepts for one listener.
#[derive(Debug)]
pub struct Acceptor {
    counts: Arc<Counts>,
    limit: u64,
    failing: Throttle,
    crowded: Throttle,
}

impl Acceptor {
    /// Counts here.
    pub fn new(counts: Arc<Counts>) -> Acceptor {
        Acceptor {
            counts,
            limit: descriptors::limit(),
            failing: Throttle::new(SAY),
            crowded: Throttle::new(SAY),
        }
    }

    /// The next connection. Errors are waited out.
    pub async fn accept<L: Listen>(&self, listener: &L) -> (L::Stream, Counted) {
        let mut pause = PAUSE.0;
        loop {
            match listener.next().await {
                Ok(stream) => return (stream, self.counted()),
                // The peer left while it waited (accept(2)).
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.counts.errors.fetch_add(1, Relaxed);
                    if let Some(times) = self.failing.happened() {
                        let (open, limit) = (self.counts.open(), self.limit);
                        warn!(%error, times, open, limit, "cannot accept connections: new clients wait; trying again");
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    fn counted(&self) -> Counted {
        let open = self.counts.open.fetch_add(1, Relaxed) + 1;
        let limit = self.limit;
        if open > limit / 10 * 8 && self.crowded.happened().is_some() {
            warn!(
                open,
                limit, "the process has most of its permitted connections open: raise LimitNOFILE"
            );
        }
        Counted(self.counts.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Fails some times, and counts how often it was asked.
    struct Failing(Mutex<u32>);

    impl Listen for Failing {
        type Stream = ();

        async fn next(&self) -> io::Result<()> {
            let mut asked = self.0.lock().expect("nothing panics");
            *asked += 1;
            match *asked {
                1 => Err(io::ErrorKind::ConnectionAborted.into()),
                2..=4 => Err(io::Error::from_raw_os_error(24)),
                _ => Ok(()),
            }
        }
    }

    #[tokio::test]
    async fn errors_are_waited_out_longer_each_time() {
        let counts = Arc::<Counts>::default();
        let acceptor = Acceptor::new(counts.clone());
        let started = std::time::Instant::now();
        let ((), counted) = acceptor.accept(&Failing(Mutex::new(0))).await;
        assert!(started.elapsed() >= Duration::from_millis(20 + 40 + 80));
        assert_eq!((counts.errors(), counts.open()), (3, 1));
        drop(counted);
        assert_eq!(counts.open(), 0);
    }
}
