//! Where connections come in: TCP, or a unix socket that only its owner can open. Knows no service.

mod connection;
mod handshake;

use std::{
    fs::{self, Permissions},
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream::unfold};
use sallyport_identity::ServerTls;
use sallyport_process::accept::{Acceptor, Counts, Listen};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Router;

pub(crate) use self::connection::Client;
pub(crate) use self::handshake::Handshakes;
use self::{
    connection::{Connection, Patience},
    handshake::Handshaker,
};
use crate::config::Address;

/// A client's library may connect some time before its first call.
const PATIENCE: Patience = Patience {
    preface: Duration::from_secs(10),
    request: Duration::from_secs(60),
};

/// Connections that wait to be taken: thousands of nodes may come back at once. The kernel allows no more than
/// `net.core.somaxconn` (4,096 unless set otherwise).
const BACKLOG: u32 = 65_535;

/// An open listener.
#[derive(Debug)]
pub(crate) struct Listener {
    address: Address,
    socket: Socket,
    counts: Arc<Counts>,
    handshakes: Arc<Handshakes>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Opens an address.
    pub(crate) async fn bind(address: &Address) -> io::Result<Listener> {
        match address {
            Address::Tcp(address) => {
                let socket = match address {
                    SocketAddr::V4(_) => TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => TcpSocket::new_v6()?,
                };
                // As `TcpListener::bind` does: a port in TIME_WAIT can be taken again.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                let listener = socket.listen(BACKLOG)?;
                Ok(Listener {
                    address: Address::Tcp(listener.local_addr()?),
                    socket: Socket::Tcp(listener),
                    counts: Arc::default(),
                    handshakes: Arc::default(),
                })
            }
            Address::Unix(path) => {
                let listener = bind_unix(path).await?;
                Ok(Listener {
                    address: address.clone(),
                    socket: Socket::Unix(listener),
                    counts: Arc::default(),
                    handshakes: Arc::default(),
                })
            }
        }
    }

    /// The address, with the port that was taken when 0 was asked for.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The counts of its connections.
    pub(crate) fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// The counts of its TLS handshakes.
    pub(crate) fn handshakes(&self) -> Arc<Handshakes> {
        self.handshakes.clone()
    }

    /// Serves until `shutdown`, then until the calls under way are over. TLS is for TCP alone.
    pub(crate) async fn serve(
        self,
        router: Router,
        tls: Option<Arc<ServerTls>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let counts = self.counts;
        match (self.socket, tls) {
            (Socket::Tcp(listener), Some(tls)) => {
                let handshaker = Arc::new(Handshaker::new(tls, self.handshakes));
                let incoming = Box::pin(secured(counts, listener, handshaker));
                router
                    .serve_with_incoming_shutdown(incoming, shutdown)
                    .await
            }
            (Socket::Tcp(listener), None) => {
                let incoming = Box::pin(connections(counts, listener, address_of));
                router
                    .serve_with_incoming_shutdown(incoming, shutdown)
                    .await
            }
            (Socket::Unix(listener), _) => {
                let incoming = Box::pin(connections(counts, listener, |_| None));
                router
                    .serve_with_incoming_shutdown(incoming, shutdown)
                    .await
            }
        }
    }
}

/// The address of a client; none if it has left already.
fn address_of(stream: &TcpStream) -> Option<IpAddr> {
    Some(stream.peer_addr().ok()?.ip().to_canonical())
}

/// Connections as they come, for ever.
fn connections<L: Listen + Send>(
    counts: Arc<Counts>,
    listener: L,
    address: fn(&L::Stream) -> Option<IpAddr>,
) -> impl Stream<Item = io::Result<Connection<L::Stream>>> + Send {
    let acceptor = Acceptor::new(counts.clone());
    unfold(
        (acceptor, listener, counts),
        move |(acceptor, listener, counts)| async move {
            let (stream, counted) = acceptor.accept(&listener).await;
            let address = address(&stream);
            let connection =
                Connection::new(stream, address, None, counted, counts.clone(), PATIENCE);
            Some((Ok(connection), (acceptor, listener, counts)))
        },
    )
}

/// Connections whose clients have proved their identities, as they come, for ever.
fn secured(
    counts: Arc<Counts>,
    listener: TcpListener,
    handshaker: Arc<Handshaker>,
) -> impl Stream<Item = io::Result<Connection<TlsStream<TcpStream>>>> + Send {
    let acceptor = Acceptor::new(counts.clone());
    let handshakes = JoinSet::new();
    unfold(
        (acceptor, listener, handshakes),
        move |(acceptor, listener, mut handshakes)| {
            let (counts, handshaker) = (counts.clone(), handshaker.clone());
            async move {
                loop {
                    tokio::select! {
                        (stream, counted) = acceptor.accept(&listener) => {
                            let (counts, handshaker) = (counts.clone(), handshaker.clone());
                            handshakes.spawn(async move {
                                let address = address_of(&stream);
                                let (stream, identity) = handshaker.secure(stream, address).await?;
                                let identity = Some(Arc::new(identity));
                                Some(Connection::new(stream, address, identity, counted, counts, PATIENCE))
                            });
                        }
                        Some(done) = handshakes.join_next() => {
                            if let Ok(Some(connection)) = done {
                                return Some((Ok(connection), (acceptor, listener, handshakes)));
                            }
                        }
                    }
                }
            }
        },
    )
}

/// Takes over a socket file that nobody listens on.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path).await => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn is_dead(path: &Path) -> bool {
    let connected = UnixStream::connect(path).await;
    connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
