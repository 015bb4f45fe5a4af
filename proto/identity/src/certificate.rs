//! The details that a certificate states: its identity and its dates. Verifies no signature: `tls` does that.

use std::net::IpAddr;

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::name::{Identity, NameError};

/// Why a certificate has no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The bytes are no certificate.
    #[error("the certificate is malformed: {0}")]
    Unreadable(String),
    /// The certificate has no URI, or several, of which each could be meant.
    #[error(
        "the certificate has {0} URI names, and needs exactly one: issue it by `sallyport-controlplane issue`"
    )]
    Uris(usize),
    /// The URI is no identity.
    #[error("the certificate's URI name {uri:?} is no identity: {reason}")]
    Name {
        /// The URI.
        uri: String,
        /// The rule that it breaks.
        reason: NameError,
    },
}

/// The details that a certificate states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// The owner.
    pub identity: Identity,
    /// The DNS names and addresses of the owner's machine.
    pub names: Vec<String>,
    /// The beginning of the certificate's life.
    pub not_before: Timestamp,
    /// The end of the certificate's life.
    pub not_after: Timestamp,
}

impl Details {
    /// Reads a certificate in DER.
    pub fn read(der: &[u8]) -> Result<Details, CertificateError> {
        let certificate = parse(der)?;
        let uri = uri_of(&certificate)?;
        let identity = Identity::from_uri(uri).map_err(|reason| CertificateError::Name {
            uri: uri.to_owned(),
            reason,
        })?;
        let validity = certificate.validity();
        Ok(Details {
            identity,
            names: general_names(&certificate)?
                .iter()
                .filter_map(machine)
                .collect(),
            not_before: timestamp(validity.not_before.timestamp()),
            not_after: timestamp(validity.not_after.timestamp()),
        })
    }

    /// Reads the first certificate of a text in PEM.
    pub fn of_pem(text: &str) -> Result<Details, CertificateError> {
        let der = CertificateDer::from_pem_slice(text.as_bytes());
        let der = der.map_err(|error| CertificateError::Unreadable(error.to_string()))?;
        Details::read(&der)
    }

    /// Why the certificate is of no use at a time.
    pub fn untimely(&self, now: Timestamp) -> Option<String> {
        if now > self.not_after {
            return Some(format!("expired at {}", self.not_after));
        }
        (now < self.not_before).then(|| format!("is not valid before {}", self.not_before))
    }
}

/// Parses exactly one certificate.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(CertificateError::Unreadable(
            "bytes follow the certificate".to_owned(),
        )),
        Err(error) => Err(CertificateError::Unreadable(error.to_string())),
    }
}

fn uri_of<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, CertificateError> {
    let uris: Vec<&str> = general_names(certificate)?
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(CertificateError::Uris(uris.len())),
    }
}

fn general_names<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<&'a [GeneralName<'a>], CertificateError> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    Ok(names.map_or(&[][..], |names| &names.value.general_names))
}

/// The name of a machine, if a name is one.
fn machine(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

/// A time; the last one that can be written for a time after all years that people write.
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}
