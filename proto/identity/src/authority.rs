//! The authority of a cluster: issues certificates for keys that it makes, or for keys that stay elsewhere.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    certificate::{self, CertificateError},
    name::{ClusterId, Identity, Subject},
};

/// The life of an authority that this module makes.
const LIFE: Duration = Duration::from_secs(3650 * 86_400);

/// Clocks that are behind by this much accept a new certificate.
const SKEW: Duration = Duration::from_secs(300);

/// Why no certificate is issued.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The given authority is none.
    #[error("the CA's certificate cannot sign: {0}")]
    NoAuthority(String),
    /// The given key is another one's.
    #[error("the CA's key does not belong to the CA's certificate")]
    OtherKey,
    /// A name of a server is neither.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    /// The certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A request or a key is malformed.
    #[error("{subject}: {cause}")]
    Malformed {
        /// The text that cannot be read.
        subject: &'static str,
        /// The library's cause.
        cause: rcgen::Error,
    },
    /// Signing failed.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

/// The life of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// Its beginning.
    pub not_before: Timestamp,
    /// Its end.
    pub not_after: Timestamp,
}

impl Validity {
    /// From now on, for this long.
    pub fn lasting(life: Duration) -> Validity {
        let now = Timestamp::now();
        Validity {
            not_before: now - SKEW,
            not_after: now + life,
        }
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// The authority of a cluster.
#[derive(Debug)]
pub struct Authority {
    cluster: ClusterId,
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A new P-256 key, in PEM.
pub(crate) fn generate_key() -> Result<String, AuthorityError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem())
}

impl Authority {
    /// A new authority.
    pub fn create(cluster: ClusterId) -> Result<Authority, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(
            Validity::lasting(LIFE),
            &format!("Sallyport cluster {cluster}"),
        );
        // Certificates of this authority sign no others.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority {
            cluster,
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// An authority that exists: its certificate and key in PEM.
    pub fn load(
        cluster: ClusterId,
        certificate: &str,
        key: &str,
    ) -> Result<Authority, AuthorityError> {
        let unusable = |cause: String| AuthorityError::NoAuthority(cause);
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        let der = der.map_err(|error| unusable(format!("no PEM certificate: {error}")))?;
        let key = KeyPair::from_pem(key).map_err(|cause| AuthorityError::Malformed {
            subject: "the CA's key",
            cause,
        })?;
        let parsed = certificate::parse(&der)?;
        if !parsed.is_ca() {
            return Err(unusable("its basic constraints name no CA".to_owned()));
        }
        let usage = parsed.key_usage().ok().flatten();
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(unusable("its key usage lacks keyCertSign".to_owned()));
        }
        let end = parsed.validity().not_after.timestamp();
        if Timestamp::from_second(end).is_ok_and(|end| end < Timestamp::now()) {
            return Err(unusable(format!(
                "it expired at {}",
                parsed.validity().not_after
            )));
        }
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return Err(AuthorityError::OtherKey);
        }
        Ok(Authority {
            cluster,
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            certificate: certificate.to_owned(),
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority's certificate, in PEM: all that others need to know of it.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The authority's key, in PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate with a new key. The names are those of a control plane's machine: DNS names and addresses.
    pub fn issue(
        &self,
        subject: &Subject,
        names: &[String],
        validity: Validity,
    ) -> Result<Issued, AuthorityError> {
        let key = generate_key()?;
        Ok(Issued {
            certificate: self.renew(&key, subject, names, validity)?,
            key,
        })
    }

    /// A certificate for a key that exists, in PEM.
    pub fn renew(
        &self,
        key: &str,
        subject: &Subject,
        names: &[String],
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(|cause| AuthorityError::Malformed {
            subject: "the key",
            cause,
        })?;
        self.certify(&key, subject, names, validity)
    }

    /// A certificate for the key of a signing request (PKCS #10, in PEM). The request proves that its sender has the
    /// key. No name or extension of the request is taken over: the caller decides who the sender is.
    pub fn sign(
        &self,
        request: &str,
        subject: &Subject,
        names: &[String],
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        let request = CertificateSigningRequestParams::from_pem(request);
        let request = request.map_err(|cause| AuthorityError::Malformed {
            subject: "the signing request",
            cause,
        })?;
        self.certify(&request.public_key, subject, names, validity)
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        subject: &Subject,
        names: &[String],
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        let identity = Identity {
            cluster: self.cluster,
            subject: subject.clone(),
        };
        let mut params = params(validity, &subject.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match subject {
            Subject::ControlPlane => ExtendedKeyUsagePurpose::ServerAuth,
            Subject::Node(_) | Subject::Operator(_) => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(identity.uri().try_into()?)];
        for name in names {
            params.subject_alt_names.push(alternative_name(name)?);
        }
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

fn params(validity: Validity, common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = SystemTime::from(validity.not_before).into();
    params.not_after = SystemTime::from(validity.not_after).into();
    // A key that gets a second certificate needs a second number; rcgen derives the number from the key.
    let mut number: [u8; 16] = rand::random();
    // A number is positive and not longer than 20 bytes (RFC 5280, section 4.1.2.2).
    number[0] = number[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&number));
    params.distinguished_name = DistinguishedName::new();
    // A common name has at most 64 characters (RFC 5280, ub-common-name). Nothing reads it but people.
    let end = common_name.floor_char_boundary(64);
    let name = &common_name[..end];
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn alternative_name(name: &str) -> Result<SanType, AuthorityError> {
    use rustls::pki_types::DnsName;
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    match DnsName::try_from(name) {
        Ok(_) => Ok(SanType::DnsName(name.try_into()?)),
        Err(_) => Err(AuthorityError::Name(name.to_owned())),
    }
}
