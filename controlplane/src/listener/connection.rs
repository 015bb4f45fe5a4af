//! A connection that must ask for something in time: whoever sends nothing holds no descriptor for ever. After the first
//! request HTTP/2's pings find the dead ones. Reads no byte of what is sent.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use sallyport_identity::Identity;
use sallyport_process::{
    Throttle,
    accept::{Counted, Counts},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::Connected;
use tracing::warn;

/// The first bytes of a client (RFC 9113, section 3.4): 24 bytes, and the header of a SETTINGS frame.
const PREFACE: usize = 24 + 9;

/// The interval between log lines about silent connections.
const SAY: Duration = Duration::from_secs(10);

/// The times that a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until it spoke HTTP/2.
    pub(crate) preface: Duration,
    /// Until its first request, from then on.
    pub(crate) request: Duration,
}

/// The client of a connection. Every request carries it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    asked: Arc<AtomicBool>,
    /// Its address; none of one that came by a unix socket.
    pub(crate) address: Option<IpAddr>,
    /// The identity that its certificate proved; none without TLS.
    pub(crate) identity: Option<Arc<Identity>>,
}

impl Client {
    /// A request came.
    pub(crate) fn asks(&self) {
        self.asked.store(true, Relaxed);
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    client: Client,
    /// None once it asked.
    deadline: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    read: usize,
    counts: Arc<Counts>,
    _counted: Counted,
}

impl<S> Connection<S> {
    /// A connection that was just opened.
    pub(crate) fn new(
        stream: S,
        address: Option<IpAddr>,
        identity: Option<Arc<Identity>>,
        counted: Counted,
        counts: Arc<Counts>,
        patience: Patience,
    ) -> Connection<S> {
        Connection {
            stream,
            client: Client {
                asked: Arc::default(),
                address,
                identity,
            },
            deadline: Some(Box::pin(sleep(patience.preface))),
            patience,
            read: 0,
            counts,
            _counted: counted,
        }
    }

    /// An error once it was silent for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        static SAID: LazyLock<Throttle> = LazyLock::new(|| Throttle::new(SAY));
        let Some(deadline) = &mut self.deadline else {
            return Ok(());
        };
        if self.client.asked.load(Relaxed) {
            self.deadline = None;
        } else if deadline.as_mut().poll(context).is_ready() {
            self.deadline = None;
            self.counts.silent.fetch_add(1, Relaxed);
            if let Some(connections) = SAID.happened() {
                warn!(connections, "closed connections on which no request came");
            }
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_silence(context)?;
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        let spoke = self.read >= PREFACE;
        self.read = self.read.saturating_add(buffer.filled().len() - before);
        if !spoke && self.read >= PREFACE {
            let until = Instant::now() + self.patience.request;
            if let Some(deadline) = &mut self.deadline {
                deadline.as_mut().reset(until);
            }
            // So that the new deadline wakes this task.
            self.poll_silence(context)?;
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sallyport_process::accept::{Acceptor, Listen};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// One connection.
    struct Once(Mutex<Option<DuplexStream>>);

    impl Listen for Once {
        type Stream = DuplexStream;

        async fn next(&self) -> io::Result<DuplexStream> {
            let stream = self.0.lock().unwrap().take();
            stream.ok_or_else(|| io::ErrorKind::NotFound.into())
        }
    }

    /// The time that a connection lasts that sends so many bytes. A request comes after 50 ms or never.
    async fn lasts(bytes: usize, asks: bool) -> Option<Duration> {
        let counts = Arc::<Counts>::default();
        let (mut client, server) = duplex(1024);
        client.write_all(&vec![0; bytes]).await.unwrap();
        let server = Once(Mutex::new(Some(server)));
        let acceptor = Acceptor::new(counts.clone());
        let (server, counted) = acceptor.accept(&server).await;
        let patience = Patience {
            preface: Duration::from_millis(200),
            request: Duration::from_millis(600),
        };
        let mut connection = Connection::new(server, None, None, counted, counts.clone(), patience);
        assert_eq!(counts.open(), 1);
        let (info, started) = (connection.connect_info(), Instant::now());
        let asking = async {
            sleep(Duration::from_millis(50)).await;
            if asks {
                info.asks();
            }
            // It reads on when something comes.
            client.write_all(b".").await.unwrap();
            std::future::pending::<()>().await;
        };
        let mut all = Vec::new();
        let ended = tokio::select! {
            () = asking => None,
            ended = connection.read_to_end(&mut all) => Some((ended, started.elapsed())),
            () = sleep(Duration::from_secs(2)) => None,
        };
        drop(connection);
        assert_eq!(counts.open(), 0);
        assert_eq!(counts.silent.load(Relaxed), u64::from(ended.is_some()));
        let (result, after) = ended?;
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
        Some(after)
    }

    #[tokio::test]
    async fn whoever_asks_for_nothing_is_cut_off() {
        let within = |from, to| Duration::from_millis(from)..Duration::from_millis(to);
        let silent = lasts(0, false).await.unwrap();
        assert!(within(200, 550).contains(&silent), "{silent:?}");
        let half = lasts(PREFACE - 2, false).await.unwrap();
        assert!(within(200, 550).contains(&half), "{half:?}");
        let spoke = lasts(PREFACE, false).await.unwrap();
        assert!(within(600, 1500).contains(&spoke), "{spoke:?}");
        assert_eq!(lasts(PREFACE, true).await, None);
    }
}
