//! Where connections come in: TCP, or a unix socket that only its owner can open. Knows no service.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::{Router, TcpIncoming};

use crate::config::Address;

/// Connections that wait to be taken: thousands of nodes may come back at once. The kernel allows no more than
/// `net.core.somaxconn` (4,096 unless set otherwise).
const BACKLOG: u32 = 65_535;

/// An open listener.
#[derive(Debug)]
pub(crate) struct Listener {
    address: Address,
    socket: Socket,
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
                })
            }
            Address::Unix(path) => {
                let listener = bind_unix(path).await?;
                Ok(Listener {
                    address: address.clone(),
                    socket: Socket::Unix(listener),
                })
            }
        }
    }

    /// The address, with the port that was taken when 0 was asked for.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Serves until `shutdown`, then until the calls under way are over.
    pub(crate) async fn serve(
        self,
        router: Router,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        match self.socket {
            Socket::Tcp(listener) => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                router
                    .serve_with_incoming_shutdown(incoming, shutdown)
                    .await
            }
            Socket::Unix(listener) => {
                let incoming = UnixListenerStream::new(listener);
                router
                    .serve_with_incoming_shutdown(incoming, shutdown)
                    .await
            }
        }
    }
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
