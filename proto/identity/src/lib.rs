//! Identities of a cluster: a certificate names a node, an operator or a control plane of one cluster. An authority
//! issues certificates, and TLS lets both ends of a connection prove theirs. Knows no policy, no message, no service.

mod authority;
mod certificate;
mod connector;
mod credentials;
mod name;
mod reload;
#[cfg(test)]
mod tests;
mod tls;
mod words;

pub use self::{
    authority::{Authority, AuthorityError, Issued, Validity},
    certificate::{CertificateError, Details},
    connector::Connector,
    credentials::{Credentials, LoadError, write_authority, write_certificate, write_key},
    name::{ClusterId, Identity, NameError, Subject},
    reload::ServerTls,
    tls::{ForeignCluster, WrongEnd},
};
