//! TLS handshakes: each within a time limit. A client that failed learns why, and the log does.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sallyport_identity::{Identity, ServerTls};
use sallyport_process::Throttle;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::server::TlsStream;
use tracing::warn;

/// The longest time of a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often failures are logged.
const SAY: Duration = Duration::from_secs(10);

/// The counts of handshakes.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    /// Handshakes that made a connection.
    pub(crate) completed: AtomicU64,
    /// Handshakes that failed, for whatever cause.
    pub(crate) failed: AtomicU64,
}

/// Performs handshakes.
#[derive(Debug)]
pub(super) struct Handshaker {
    tls: Arc<ServerTls>,
    counts: Arc<Handshakes>,
    failing: Throttle,
}

impl Handshaker {
    pub(super) fn new(tls: Arc<ServerTls>, counts: Arc<Handshakes>) -> Handshaker {
        Handshaker {
            tls,
            counts,
            failing: Throttle::new(SAY),
        }
    }

    /// TLS on a connection, and the identity of its client; none if the client did not prove one in time.
    pub(super) async fn secure(
        &self,
        stream: TcpStream,
        address: Option<IpAddr>,
    ) -> Option<(TlsStream<TcpStream>, Identity)> {
        match timeout(PATIENCE, self.tls.accept(stream)).await {
            Ok(Ok(secured)) => {
                self.counts.completed.fetch_add(1, Relaxed);
                Some(secured)
            }
            Ok(Err((cause, stream))) => {
                self.failed(address, &cause);
                ServerTls::dismiss(stream).await;
                None
            }
            Err(_) => {
                self.failed(
                    address,
                    "the client did not complete the handshake within 10 seconds",
                );
                None
            }
        }
    }

    fn failed(&self, address: Option<IpAddr>, cause: &str) {
        self.counts.failed.fetch_add(1, Relaxed);
        if let Some(failures) = self.failing.happened() {
            let peer = address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
            warn!(
                peer,
                cause, failures, "refused a connection: the TLS handshake failed"
            );
        }
    }
}
