//! Connections to the control plane, for tonic's `connect_with_connector`.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use crate::words::{Side, words};

/// The first bytes of a server are read into a buffer of this size. Longer reads pass it by.
const FIRST: usize = 64;

/// A connection on which the control plane has accepted the certificate.
type Secured = BufReader<TlsStream<TcpStream>>;

type BoxError = Box<dyn Error + Send + Sync>;

/// Connects by TCP and TLS.
#[derive(Clone, Debug)]
pub struct Connector {
    tcp: HttpConnector,
    config: Arc<ClientConfig>,
}

impl Connector {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Connector { tcp, config }
    }

    /// TLS on a TCP connection to a control plane of this name or address. Errors are of the kind `InvalidData`, in
    /// words for an operator.
    pub async fn secure(&self, host: &str, stream: TcpStream) -> io::Result<Secured> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            let problem = format!("{host:?} is neither a DNS name nor an IP address");
            io::Error::new(io::ErrorKind::InvalidData, problem)
        })?;
        let explained = |error: io::Error| {
            let cause = words(Side::Client, &error);
            io::Error::new(io::ErrorKind::InvalidData, cause)
        };
        let connector = TlsConnector::from(self.config.clone());
        let stream = connector.connect(name, stream).await.map_err(explained)?;
        // In TLS 1.3 a client ends its handshake before the server has seen its certificate. A refusal is the first
        // message after that. A server that accepts begins with SETTINGS (RFC 9113, section 3.4).
        let mut stream = BufReader::with_capacity(FIRST, stream);
        match stream.fill_buf().await.map_err(explained)? {
            [] => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the control plane closed the connection after the TLS handshake",
            )),
            _ => Ok(stream),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Secured>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (this, connecting) = (self.clone(), self.tcp.call(uri.clone()));
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            // An IPv6 address stands in brackets in a URI, and without them in a certificate.
            let host = uri.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Ok(TokioIo::new(this.secure(host, stream).await?))
        })
    }
}
