//! The way to the control plane: its address, and the certificate by which this node proves its name.

use std::path::{Path, PathBuf};

use sallyport_identity::{Credentials, Subject};
use sallyport_policy::NodeName;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const FORMS: &str = "use http://HOST:PORT, https://HOST:PORT with --tls DIR, or unix:///PATH";

/// The address where a control plane listens, if no other is given.
const DEFAULT: &str = "127.0.0.1:7443";

/// A control plane, and how to reach it.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    url: String,
    endpoint: Endpoint,
    tls: Option<PathBuf>,
}

impl ControlPlane {
    /// A control plane at a URL, with the directory of this node's certificate if the URL is `https`. Without a URL the
    /// control plane is on this machine. The certificate is not read yet: a node enforces also without.
    pub fn new(url: Option<&str>, tls: Option<&Path>) -> Result<ControlPlane, String> {
        let (url, tls) = match (url, tls) {
            (None, None) => (format!("http://{DEFAULT}"), None),
            (None, Some(tls)) => (format!("https://{DEFAULT}"), Some(tls)),
            (Some(url), tls) => (url.to_owned(), tls),
        };
        let is_secure = is_secure(&url)?;
        match (is_secure, &tls) {
            (true, None) => {
                return Err(format!(
                    "{url} needs a certificate of this node: give --tls DIR (SALLYPORT_TLS)"
                ));
            }
            (false, Some(_)) => {
                return Err(format!(
                    "{url} is without TLS, and --tls is given: use https://HOST:PORT, or leave out --tls \
                     (SALLYPORT_TLS)"
                ));
            }
            _ => {}
        }
        let endpoint =
            Endpoint::from_shared(url.clone()).map_err(|error| format!("{error}; {FORMS}"))?;
        Ok(ControlPlane {
            url,
            endpoint,
            tls: tls.map(Path::to_owned),
        })
    }

    /// As the operator has it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The directory of this node's certificate.
    pub fn tls(&self) -> Option<&Path> {
        self.tls.as_deref()
    }

    /// Whether others on the network between can read and change the policy.
    pub fn is_exposed(&self) -> bool {
        let rest = self.url.strip_prefix("http://");
        let Some(host) = rest.and_then(|rest| rest.rsplit_once(':').map(|(host, _)| host)) else {
            return rest.is_some();
        };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        host != "localhost"
            && !address.is_ok_and(|address: std::net::IpAddr| address.to_canonical().is_loopback())
    }

    /// The same with other settings of the connection.
    pub(crate) fn tuned(self, tune: impl FnOnce(Endpoint) -> Endpoint) -> ControlPlane {
        ControlPlane {
            endpoint: tune(self.endpoint),
            ..self
        }
    }

    /// Connects as a node. The certificate is read each time, so that the next connection uses a renewed one.
    pub(crate) async fn connect(&self, node: &NodeName) -> Result<Channel, Status> {
        let channel = match &self.tls {
            None => self.endpoint.connect().await,
            Some(directory) => {
                let unusable = |error: sallyport_identity::LoadError| {
                    Status::unauthenticated(error.to_string())
                };
                let credentials = Credentials::load(directory).map_err(unusable)?;
                names_the_node(&credentials, node)?;
                let connector = credentials.connector().map_err(unusable)?;
                self.endpoint.connect_with_connector(connector).await
            }
        };
        channel.map_err(|error| Status::unavailable(source_of(&error)))
    }
}

/// An error if the certificate is another one's, before the control plane says so.
fn names_the_node(credentials: &Credentials, node: &NodeName) -> Result<(), Status> {
    match &credentials.details().identity.subject {
        Subject::Node(name) if name == node.as_str() => Ok(()),
        other => Err(Status::permission_denied(format!(
            "this is node {node}, and its certificate is of {other}: give the certificate of node {node} with --tls, \
             or the certificate's name with --node-name"
        ))),
    }
}

/// Whether a URL asks for TLS. An error if it can never be that of a control plane.
pub fn is_secure(url: &str) -> Result<bool, String> {
    let is_secure = match url.split_once("://") {
        Some(("http", rest)) if !rest.is_empty() => false,
        Some(("https", rest)) if !rest.is_empty() => true,
        Some(("unix", path)) if path.starts_with('/') => false,
        _ => return Err(FORMS.to_owned()),
    };
    Endpoint::from_shared(url.to_owned()).map_err(|error| format!("{error}; {FORMS}"))?;
    Ok(is_secure)
}

/// The innermost cause: the transport's own words say nothing.
fn source_of(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_url_of_a_control_plane_is_taken() {
        for (url, secure) in [
            ("http://10.0.0.1:7443", false),
            ("http://[::1]:1", false),
            ("https://10.0.0.1:7443", true),
            ("unix:///run/a.sock", false),
        ] {
            assert_eq!(is_secure(url), Ok(secure), "{url}");
        }
        for url in [
            "",
            "10.0.0.1:7443",
            "ftp://a",
            "http://",
            "https://",
            "HTTPS://a",
            "unix://a",
            "http://a b",
        ] {
            let said = is_secure(url).expect_err(url);
            assert!(said.contains("http://HOST:PORT"), "{url}: {said}");
        }
    }

    #[test]
    fn tls_and_the_url_must_agree() {
        let tls = Some(Path::new("/tls"));
        let at = |url, tls| ControlPlane::new(url, tls).map(|plane| plane.url);
        assert_eq!(at(None, None), Ok("http://127.0.0.1:7443".to_owned()));
        assert_eq!(at(None, tls), Ok("https://127.0.0.1:7443".to_owned()));
        assert_eq!(at(Some("https://a:1"), tls), Ok("https://a:1".to_owned()));
        let said = at(Some("https://a:1"), None).expect_err("no certificate");
        assert!(said.contains("give --tls DIR"), "{said}");
        for url in ["http://a:1", "unix:///a"] {
            let said = at(Some(url), tls).expect_err(url);
            assert!(said.contains("leave out --tls"), "{said}");
        }
    }

    #[test]
    fn a_network_between_is_exposed_without_tls() {
        for (url, exposed) in [
            ("http://10.0.0.1:7443", true),
            ("http://cp.example:7443", true),
            ("http://cp.example", true),
            ("http://127.0.0.1:7443", false),
            ("http://[::1]:7443", false),
            ("http://localhost:7443", false),
            ("unix:///run/a.sock", false),
        ] {
            let plane = ControlPlane::new(Some(url), None).expect(url);
            assert_eq!(plane.is_exposed(), exposed, "{url}");
        }
    }
}
