//! The TLS of a control plane, whose files may be replaced while it serves: new connections use the new files, and open
//! connections go on.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{info, warn};

use crate::{
    certificate::Details,
    credentials::{Credentials, LoadError},
    name::{Identity, Subject},
    words::{Side, words},
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A refused client has this long, and so many bytes, to read why.
const FAREWELL: Duration = Duration::from_secs(1);
const LAST_BYTES: u64 = 64 << 10;

const EXPECTED: &str = "the control plane needs its own, in DIR/controlplane after `sallyport-controlplane init --dir DIR`";

/// The TLS of a control plane.
#[derive(Debug)]
pub struct ServerTls {
    directory: PathBuf,
    identity: Identity,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    details: Details,
    stamp: Stamp,
}

/// Tells one state of the files from another: device, inode, size and time of the last change of each.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 3];

fn stamp(directory: &Path) -> Stamp {
    Credentials::files(directory).map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((
            found.dev(),
            found.ino(),
            found.size(),
            found.ctime(),
            found.ctime_nsec(),
        ))
    })
}

fn load(directory: &Path) -> Result<Loaded, LoadError> {
    // Before the files are read: a change meanwhile is another stamp.
    let stamp = stamp(directory);
    let credentials = Credentials::load(directory)?;
    let details = credentials.details().clone();
    let is_fit = details.identity.subject == Subject::ControlPlane;
    credentials.require(is_fit, EXPECTED)?;
    Ok(Loaded {
        config: Arc::new(credentials.server_config()?),
        details,
        stamp,
    })
}

impl ServerTls {
    /// Loads the files of a directory.
    pub fn load(directory: &Path) -> Result<ServerTls, LoadError> {
        let loaded = load(directory)?;
        Ok(ServerTls {
            directory: directory.to_owned(),
            identity: loaded.details.identity.clone(),
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// The certificate in use.
    pub fn details(&self) -> Details {
        self.current.load().details.clone()
    }

    /// Loads the files again whenever they change, for ever. Files that are of no use change nothing.
    pub async fn watch(&self) {
        let mut doubted = None;
        let mut told = None;
        loop {
            sleep(LOOK).await;
            let directory = self.directory.clone();
            let used = self.current.load().stamp;
            let looked = spawn_blocking(move || {
                let found = stamp(&directory);
                (found != used).then(|| (found, load(&directory)))
            });
            let Ok(Some((found, loaded))) = looked.await else {
                continue;
            };
            let cause = match loaded {
                Ok(loaded) if loaded.details.identity == self.identity => {
                    let until = loaded.details.not_after;
                    info!(%until, "loaded the renewed TLS files of {}", self.directory.display());
                    self.current.store(Arc::new(loaded));
                    continue;
                }
                Ok(loaded) => format!(
                    "the certificate is now of {}, and this is {}: start the control plane again to change that",
                    loaded.details.identity, self.identity
                ),
                Err(error) => error.to_string(),
            };
            // Key and certificate are two files: between their replacements they do not fit together.
            if doubted == Some(found) && told != Some(found) {
                warn!(%cause, "cannot use the changed TLS files: the files loaded before stay in use");
                told = Some(found);
            }
            doubted = Some(found);
        }
    }

    /// TLS on an accepted connection, and the identity of the client. The error is the cause in words, and the
    /// connection to [`dismiss`](ServerTls::dismiss).
    pub async fn accept<S>(&self, stream: S) -> Result<(TlsStream<S>, Identity), (String, S)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.current.load().config.clone());
        let accepted = acceptor.accept(stream).into_fallible().await;
        let stream = accepted.map_err(|(error, stream)| (words(Side::Server, &error), stream))?;
        let certificates = stream.get_ref().1.peer_certificates();
        let identity = match certificates.and_then(|chain| chain.first()) {
            Some(certificate) => Details::read(certificate).map_err(|error| error.to_string()),
            None => Err("the client has no certificate".to_owned()),
        };
        match identity {
            Ok(details) => Ok((stream, details.identity)),
            Err(cause) => Err((cause, stream.into_inner().0)),
        }
    }

    /// Closes a connection that was refused, so that the client can read the alert: unread bytes would make the kernel
    /// reset the connection (RFC 2525, section 2.17).
    pub async fn dismiss<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
        let rest = async {
            let _ = stream.shutdown().await;
            let mut rest = (&mut stream).take(LAST_BYTES);
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        };
        // How it ends is the client's affair.
        let _ = timeout(FAREWELL, rest).await;
    }
}
