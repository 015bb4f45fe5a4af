//! The files by which a program proves its identity: `ca.crt`, `tls.crt` and `tls.key` of one directory, named as in a
//! Kubernetes Secret of type kubernetes.io/tls.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
};
use sallyport_process::files;

use crate::{
    certificate::{CertificateError, Details},
    connector::Connector,
    name::Identity,
    tls,
};

const CA: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why a directory proves no identity.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A file holds something else.
    #[error("{} is of no use: {cause}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// The certificate has no identity.
    #[error("{}: {cause}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: CertificateError,
    },
    /// The certificate is for another purpose.
    #[error("{} is the certificate of {found}: {expected}", .path.display())]
    Purpose {
        /// The file.
        path: PathBuf,
        /// The owner of the certificate.
        found: Identity,
        /// The rule, and the remedy.
        expected: &'static str,
    },
    /// The parts do not fit together.
    #[error("the files of {} do not fit together: {cause}", .directory.display())]
    Misfit {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        cause: String,
    },
}

/// The files of a directory, as they were when they were loaded.
pub struct Credentials {
    directory: PathBuf,
    details: Details,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key stays out of every log.
        f.debug_struct("Credentials")
            .field("directory", &self.directory)
            .field("details", &self.details)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// The files that belong to credentials.
    pub(crate) fn files(directory: &Path) -> [PathBuf; 3] {
        [CA, CERTIFICATE, KEY].map(|name| directory.join(name))
    }

    /// Loads a directory. The certificate's dates are not judged: a peer does that, by its own clock.
    pub fn load(directory: &Path) -> Result<Credentials, LoadError> {
        let [ca, certificate, key] = Credentials::files(directory);
        let mut roots = RootCertStore::empty();
        for root in certificates(&ca)? {
            roots.add(root).map_err(|error| LoadError::Malformed {
                path: ca.clone(),
                cause: error.to_string(),
            })?;
        }
        let chain = certificates(&certificate)?;
        let details = Details::read(&chain[0]).map_err(|cause| LoadError::Certificate {
            path: certificate,
            cause,
        })?;
        let text = read(&key)?;
        let private =
            PrivateKeyDer::from_pem_slice(&text).map_err(|error| malformed(&key, error))?;
        Ok(Credentials {
            directory: directory.to_owned(),
            details,
            chain,
            key: private,
            roots,
        })
    }

    /// The owner and the dates of the certificate.
    pub fn details(&self) -> &Details {
        &self.details
    }

    /// Makes connections to the control plane of the certificate's cluster, and to no other.
    pub fn connector(&self) -> Result<Connector, LoadError> {
        Ok(Connector::new(Arc::new(self.client_config()?)))
    }

    pub(crate) fn client_config(&self) -> Result<ClientConfig, LoadError> {
        let config = tls::client(
            self.details.identity.cluster,
            self.roots.clone(),
            self.chain.clone(),
            self.key.clone_key(),
        );
        config.map_err(|error| self.misfit(&error))
    }

    pub(crate) fn server_config(&self) -> Result<ServerConfig, LoadError> {
        let config = tls::server(
            self.details.identity.cluster,
            self.roots.clone(),
            self.chain.clone(),
            self.key.clone_key(),
        );
        config.map_err(|error| self.misfit(&error))
    }

    /// An error unless the owner of the certificate is fit for a purpose.
    pub(crate) fn require(&self, is_fit: bool, expected: &'static str) -> Result<(), LoadError> {
        match is_fit {
            true => Ok(()),
            false => Err(LoadError::Purpose {
                path: self.directory.join(CERTIFICATE),
                found: self.details.identity.clone(),
                expected,
            }),
        }
    }

    fn misfit(&self, error: &rustls::Error) -> LoadError {
        LoadError::Misfit {
            directory: self.directory.clone(),
            cause: match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!("{KEY} is not the key of {CERTIFICATE}")
                }
                other => other.to_string(),
            },
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|cause| LoadError::Read {
        path: path.to_owned(),
        cause,
    })
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(malformed(path, pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(error) => Err(malformed(path, error)),
    }
}

fn malformed(path: &Path, error: pem::Error) -> LoadError {
    LoadError::Malformed {
        path: path.to_owned(),
        cause: match error {
            pem::Error::NoItemsFound => "no PEM block of the expected kind is in it".to_owned(),
            other => other.to_string(),
        },
    }
}

/// Writes the certificate of the authority into a directory.
pub fn write_authority(directory: &Path, certificate: &str) -> io::Result<()> {
    write(&directory.join(CA), certificate)
}

/// Writes a certificate into a directory, in one step.
pub fn write_certificate(directory: &Path, certificate: &str) -> io::Result<()> {
    write(&directory.join(CERTIFICATE), certificate)
}

/// Writes a private key into a directory; only its owner can read it.
pub fn write_key(directory: &Path, key: &str) -> io::Result<()> {
    write(&directory.join(KEY), key)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    files::replace(path, |out| out.write_all(text.as_bytes()))
}
