//! The TLS of both ends: version 1.3 alone, certificates on both sides, and an identity of the own cluster in each.
//!
//! No session is resumed: a resumed session would not verify the certificate again, so an expired one would go on.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use crate::{
    certificate::Details,
    name::{ClusterId, Identity, Subject},
};

/// The protocol of gRPC (RFC 7301; RFC 9113, section 3.1).
const HTTP2: &[u8] = b"h2";

/// A peer of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {found}, and this is cluster {own}")]
pub struct ForeignCluster {
    /// The peer.
    pub found: Identity,
    /// The own cluster.
    pub own: ClusterId,
}

/// A node or operator that answers, or a control plane that asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is of {0}: only a control plane answers, and only nodes and operators ask")]
pub struct WrongEnd(pub Identity);

/// Keys that others can offer, and the way to check their signatures.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The configuration of a control plane.
pub(crate) fn server(
    cluster: ClusterId,
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Error> {
    let authorities = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let authorities = authorities
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let clients = Clients {
        cluster,
        authorities,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(clients))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The configuration of a node or an operator.
pub(crate) fn client(
    cluster: ClusterId,
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, Error> {
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    let authorities = authorities
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let servers = Servers {
        cluster,
        authorities,
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        // `dangerous` since the verifier is not rustls' own. It asks rustls' own, and then more.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(servers))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn refusal(cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(cause))))
}

/// Verifies that a client is a node or an operator of the cluster.
#[derive(Debug)]
struct Clients {
    cluster: ClusterId,
    authorities: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .authorities
            .verify_client_cert(end_entity, intermediates, now);
        let identity = identity_of(self.cluster, end_entity, verified.as_ref().err())?;
        let verified = verified?;
        match identity.subject {
            Subject::Node(_) | Subject::Operator(_) => Ok(verified),
            Subject::ControlPlane => Err(refusal(WrongEnd(identity))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Verifies that a server is the control plane of the cluster.
#[derive(Debug)]
struct Servers {
    cluster: ClusterId,
    authorities: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let identity = identity_of(self.cluster, end_entity, verified.as_ref().err())?;
        let verified = verified?;
        match identity.subject {
            Subject::ControlPlane => Ok(verified),
            Subject::Node(_) | Subject::Operator(_) => Err(refusal(WrongEnd(identity))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// The identity of a peer of the cluster. Another cluster is told before a doubt about the certificate, since that
/// cluster's authority is unknown here: the ids of both say more.
fn identity_of(
    cluster: ClusterId,
    end_entity: &CertificateDer<'_>,
    doubt: Option<&Error>,
) -> Result<Identity, Error> {
    match (Details::read(end_entity), doubt) {
        (Ok(details), _) if details.identity.cluster != cluster => Err(refusal(ForeignCluster {
            found: details.identity,
            own: cluster,
        })),
        (_, Some(doubt)) => Err(doubt.clone()),
        (Ok(details), None) => Ok(details.identity),
        (Err(error), None) => Err(refusal(error)),
    }
}
