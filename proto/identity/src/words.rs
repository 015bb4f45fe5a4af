//! The failure of a TLS connection in words for an operator.

use std::{error::Error as _, io};

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// The end of a connection that reports its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// A node or an operator.
    Client,
    /// A control plane.
    Server,
}

impl Side {
    fn peer(self) -> &'static str {
        match self {
            Side::Client => "the control plane",
            Side::Server => "the client",
        }
    }
}

/// The cause of a failed handshake.
pub(crate) fn words(side: Side, error: &io::Error) -> String {
    let peer = side.peer();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(inner) => of_tls(side, inner),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("{peer} closed the connection during the TLS handshake")
        }
        None => match error.source() {
            Some(source) => source.to_string(),
            None => error.to_string(),
        },
    }
}

fn of_tls(side: Side, error: &Error) -> String {
    let peer = side.peer();
    match error {
        Error::InvalidCertificate(cause) => {
            format!("the certificate of {peer} is refused: {}", of_certificate(cause))
        }
        Error::NoCertificatesPresented => format!("{peer} has no certificate"),
        Error::InvalidMessage(_) => match side {
            Side::Client => "the server at this address does not speak TLS: start the control plane with --tls, or \
                             connect without --tls"
                .to_owned(),
            Side::Server => "the client does not speak TLS: start the client with --tls".to_owned(),
        },
        Error::AlertReceived(alert) => of_alert(side, *alert),
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => format!("{peer} does not speak TLS 1.3"),
        other => other.to_string(),
    }
}

fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: compare the clocks of both machines".to_owned()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is not signed by the cluster's CA".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it was issued for another purpose".to_owned()
        }
        CertificateError::NotValidForName => "it is not for this address".to_owned(),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "it is not for {}, but for {}: connect to one of these, or issue the certificate again with --server {}",
            expected.to_str(),
            presented.join(", "),
            expected.to_str()
        ),
        CertificateError::Other(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

/// An alert of the peer (RFC 8446, section 6.2), as rustls derives it from the peer's cause.
fn of_alert(side: Side, alert: AlertDescription) -> String {
    let peer = side.peer();
    let cause = match alert {
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet",
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is not signed by the CA that the other side knows"
        }
        AlertDescription::CertificateRequired => return format!("{peer} requires a certificate"),
        AlertDescription::UnsupportedCertificate => "it was issued for another purpose",
        AlertDescription::CertificateUnknown => {
            "it is of another cluster, or its URI name is of no identity that may connect; the log of the other side \
             names the cause"
        }
        AlertDescription::BadCertificate => "it is malformed, or not for this address",
        AlertDescription::ProtocolVersion => return format!("{peer} does not speak TLS 1.3"),
        other => return format!("{peer} ended the TLS handshake: {other:?}"),
    };
    format!("{peer} refused this certificate: {cause}")
}
