//! Handshakes over loopback TCP: the two ends that must refuse each other do, and say why.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    SanType,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject as _},
    version::TLS13,
};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Authority, AuthorityError, ClusterId, Connector, Credentials, Identity, LoadError, ServerTls,
    Subject, Validity, authority::generate_key, tls, write_authority, write_certificate, write_key,
};

const DAY: Duration = Duration::from_secs(86_400);

/// An authority, and a directory for credentials.
struct Cluster {
    authority: Authority,
    directory: TempDir,
}

fn node(name: &str) -> Subject {
    Subject::node(name).expect("a name")
}

impl Cluster {
    fn new() -> Cluster {
        Cluster {
            authority: Authority::create(ClusterId::random()).expect("an authority"),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    /// Credentials that live for a day.
    fn issue(&self, name: &str, subject: &Subject) -> PathBuf {
        self.issue_for(name, subject, Validity::lasting(DAY))
    }

    fn issue_for(&self, name: &str, subject: &Subject, validity: Validity) -> PathBuf {
        let names = match subject {
            Subject::ControlPlane => vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
            _ => Vec::new(),
        };
        let issued = self.authority.issue(subject, &names, validity);
        let issued = issued.expect("a certificate");
        self.store(name, &issued.certificate, &issued.key)
    }

    /// Credentials with these URIs and this purpose, as this authority would never issue them.
    fn forge(&self, name: &str, uris: &[&str], purpose: ExtendedKeyUsagePurpose) -> PathBuf {
        let ca = KeyPair::from_pem(&self.authority.key()).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(self.authority.certificate(), ca);
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        for &uri in uris {
            let uri = uri.try_into().expect("ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer.expect("an issuer"));
        let certificate = certificate.expect("a certificate").pem();
        self.store(name, &certificate, &key.serialize_pem())
    }

    fn store(&self, name: &str, certificate: &str, key: &str) -> PathBuf {
        let directory = self.directory.path().join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        write_authority(&directory, self.authority.certificate()).expect("written");
        write_key(&directory, key).expect("written");
        write_certificate(&directory, certificate).expect("written");
        directory
    }

    fn uri(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.authority.cluster())
    }
}

/// The identity that the server sees, and the client's outcome.
type Ends = (Result<Identity, String>, Result<(), String>);

async fn handshake(server: &Path, client: &Path) -> Ends {
    let server = ServerTls::load(server).expect("a server");
    let connector = Credentials::load(client).expect("credentials").connector();
    converse(&server, &connector.expect("a connector"), "localhost").await
}

async fn converse(server: &ServerTls, connector: &Connector, host: &str) -> Ends {
    let serve = async |stream| match server.accept(stream).await {
        Ok((mut stream, identity)) => {
            // As HTTP/2 does, the server begins.
            let _ = stream.write_all(b"SETTINGS").await;
            let _ = stream.shutdown().await;
            Ok(identity)
        }
        Err((cause, stream)) => {
            ServerTls::dismiss(stream).await;
            Err(cause)
        }
    };
    over_tcp(serve, connector, host).await
}

async fn over_tcp<T>(
    serve: impl AsyncFnOnce(TcpStream) -> T,
    connector: &Connector,
    host: &str,
) -> (T, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let serve = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        serve(stream).await
    };
    let ask = async {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let secured = connector.secure(host, stream).await;
        secured.map(drop).map_err(|error| error.to_string())
    };
    tokio::join!(serve, ask)
}

fn chain(directory: &Path) -> Vec<CertificateDer<'static>> {
    let found = CertificateDer::pem_file_iter(directory.join("tls.crt")).expect("a file");
    found.collect::<Result<_, _>>().expect("certificates")
}

fn key(directory: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(directory.join("tls.key")).expect("a key")
}

impl Cluster {
    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.certificate().as_bytes());
        roots.add(ca.expect("a certificate")).expect("a root");
        roots
    }

    /// A client that trusts this cluster, and proves whatever a directory holds.
    fn client_with(&self, directory: &Path) -> Connector {
        let (chain, key) = (chain(directory), key(directory));
        let config = tls::client(self.authority.cluster(), self.roots(), chain, key);
        Connector::new(Arc::new(config.expect("a configuration")))
    }

    /// The outcome for a client of this cluster that connects to a server with the certificate of a directory.
    async fn client_sees(&self, directory: &Path) -> Result<(), String> {
        let (chain, key) = (chain(directory), key(directory));
        let config = tls::server(self.authority.cluster(), self.roots(), chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
        let client = self.issue("client-that-sees", &node("web-1"));
        let client = Credentials::load(&client).expect("credentials").connector();
        let serve = async |stream| drop(acceptor.accept(stream).await);
        over_tcp(serve, &client.expect("a connector"), "localhost")
            .await
            .1
    }
}

fn fails_with(outcome: &Result<impl std::fmt::Debug, String>, words: &str) {
    match outcome {
        Err(cause) if cause.contains(words) => {}
        other => panic!("{words:?} is not in {other:?}"),
    }
}

#[tokio::test]
async fn both_ends_of_one_cluster_know_each_other() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let alice = Subject::operator("alice").expect("a name");
    for subject in [node("web-1"), alice] {
        let client = cluster.issue("client", &subject);
        let (seen, got) = handshake(&server, &client).await;
        let seen = seen.expect("a client that is known");
        assert_eq!(
            (seen.cluster, seen.subject),
            (cluster.authority.cluster(), subject)
        );
        got.expect("a server that is known");
    }
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_by_both_ids() {
    let (own, foreign) = (Cluster::new(), Cluster::new());
    let server = foreign.issue("server", &Subject::ControlPlane);
    let client = own.issue("client", &node("web-1"));
    let (seen, got) = handshake(&server, &client).await;
    for id in [own.authority.cluster(), foreign.authority.cluster()] {
        fails_with(&got, &id.to_string());
    }
    fails_with(&got, "it is the control plane of cluster");
    fails_with(&seen, "the client refused this certificate");
}

#[tokio::test]
async fn a_client_of_a_foreign_cluster_is_refused() {
    let (own, foreign) = (Cluster::new(), Cluster::new());
    let server = own.issue("server", &Subject::ControlPlane);
    let server = ServerTls::load(&server).expect("a server");
    // The client trusts the server, so that only the server can refuse.
    let client = own.client_with(&foreign.issue("client", &node("web-1")));
    let (seen, got) = converse(&server, &client, "localhost").await;
    for id in [own.authority.cluster(), foreign.authority.cluster()] {
        fails_with(&seen, &id.to_string());
    }
    fails_with(&got, "the control plane refused this certificate");
    // A certificate that claims the cluster needs the cluster's authority.
    let claims = Authority::create(own.authority.cluster()).expect("an authority");
    let issued = claims
        .issue(&node("web-1"), &[], Validity::lasting(DAY))
        .expect("issued");
    let client = own.client_with(&own.store("claims", &issued.certificate, &issued.key));
    let (seen, got) = converse(&server, &client, "localhost").await;
    fails_with(&seen, "it is not signed by the cluster's CA");
    fails_with(&got, "it is not signed by the CA");
}

#[tokio::test]
async fn one_authority_may_serve_two_clusters_which_stay_apart() {
    let own = Cluster::new();
    let authority = &own.authority;
    let other = Authority::load(
        ClusterId::random(),
        authority.certificate(),
        &authority.key(),
    );
    let other = Cluster {
        authority: other.expect("the same authority"),
        directory: tempfile::tempdir().expect("a directory"),
    };
    let server = own.issue("server", &Subject::ControlPlane);
    let client = other.issue("client", &node("web-1"));
    let (_, got) = handshake(&server, &client).await;
    fails_with(&got, &own.authority.cluster().to_string());
    let server = ServerTls::load(&server).expect("a server");
    let (seen, got) = converse(&server, &own.client_with(&client), "localhost").await;
    fails_with(&seen, &other.authority.cluster().to_string());
    fails_with(&got, "the control plane refused this certificate");
}

#[tokio::test]
async fn certificates_of_another_time_are_refused_at_both_ends() {
    let cluster = Cluster::new();
    let now = Timestamp::now();
    let past = Validity {
        not_before: now - 2 * DAY,
        not_after: now - DAY,
    };
    let future = Validity {
        not_before: now + DAY,
        not_after: now + 2 * DAY,
    };
    let server = cluster.issue("server", &Subject::ControlPlane);
    let client = cluster.issue("client", &node("web-1"));
    for (validity, at_the_peer) in [(past, "it has expired"), (future, "it is not valid yet")] {
        let bad = cluster.issue_for("bad", &node("web-1"), validity);
        assert!(
            Credentials::load(&bad)
                .expect("credentials")
                .details()
                .untimely(now)
                .is_some()
        );
        let (seen, got) = handshake(&server, &bad).await;
        fails_with(&seen, at_the_peer);
        fails_with(
            &got,
            "refused this certificate: it has expired, or is not valid yet",
        );
        let bad = cluster.issue_for("bad", &Subject::ControlPlane, validity);
        let (_, got) = handshake(&bad, &client).await;
        fails_with(&got, at_the_peer);
    }
}

#[tokio::test]
async fn a_node_is_no_server_and_a_control_plane_no_client() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let as_server = cluster.issue("node", &node("web-2"));
    let error = ServerTls::load(&as_server).expect_err("a node's certificate");
    assert!(matches!(error, LoadError::Purpose { .. }), "{error}");
    // Even if the authority made one for servers, a node's name is no control plane's.
    let uri = cluster.uri("/node/web-2");
    let forged = cluster.forge("forged", &[&uri], ExtendedKeyUsagePurpose::ServerAuth);
    for (directory, cause) in [
        (&as_server, "it was issued for another purpose"),
        (&forged, "only a control plane answers"),
    ] {
        fails_with(&cluster.client_sees(directory).await, cause);
    }
    let (seen, _) = handshake(&server, &server).await;
    fails_with(&seen, "it was issued for another purpose");
    let uri = cluster.uri("/controlplane");
    let forged = cluster.forge("forged", &[&uri], ExtendedKeyUsagePurpose::ClientAuth);
    let (seen, got) = handshake(&server, &forged).await;
    fails_with(&seen, "only nodes and operators ask");
    fails_with(&got, "the control plane refused this certificate");
}

#[tokio::test]
async fn a_certificate_without_exactly_one_identity_is_refused() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let (one, two) = (cluster.uri("/node/web-1"), cluster.uri("/operator/alice"));
    let malformed = cluster.uri("/node/Web 1");
    let bare = cluster.uri("");
    let cases: [(&[&str], &str); 5] = [
        (&[], "has 0 URI names"),
        (&[&one, &two], "has 2 URI names"),
        (&[&one, "https://example.com"], "has 2 URI names"),
        (&[&malformed], "a node's name has at most 253 characters"),
        (&[&bare], "ends with /node/NAME"),
    ];
    for (uris, cause) in cases {
        let forged = cluster.forge("forged", uris, ExtendedKeyUsagePurpose::ClientAuth);
        let error = Credentials::load(&forged)
            .expect_err("no identity")
            .to_string();
        assert!(error.contains(cause), "{error}");
        // A client that does not look at its own certificate is refused by the server.
        let server = ServerTls::load(&server).expect("a server");
        let (seen, got) = converse(&server, &cluster.client_with(&forged), "localhost").await;
        fails_with(&seen, cause);
        fails_with(&got, "the control plane refused this certificate");
        let forged = cluster.forge("forged", uris, ExtendedKeyUsagePurpose::ServerAuth);
        fails_with(&cluster.client_sees(&forged).await, cause);
    }
}

#[tokio::test]
async fn a_server_is_only_at_the_addresses_of_its_certificate() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let server = ServerTls::load(&server).expect("a server");
    let client = cluster.client_with(&cluster.issue("client", &node("web-1")));
    for (host, expected) in [
        ("localhost", None),
        ("127.0.0.1", None),
        (
            "10.0.0.1",
            Some("issue the certificate again with --server 10.0.0.1"),
        ),
        ("example.com", Some("it is not for example.com, but for")),
        ("a b", Some("neither a DNS name nor an IP address")),
    ] {
        let (_, got) = converse(&server, &client, host).await;
        match expected {
            None => got.expect(host),
            Some(words) => fails_with(&got, words),
        }
    }
}

#[tokio::test]
async fn a_peer_without_tls_is_named_as_such() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let server = ServerTls::load(&server).expect("a server");
    let client = cluster.client_with(&cluster.issue("client", &node("web-1")));
    let plain = async |mut stream: TcpStream| {
        let _ = stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await;
        let _ = stream.shutdown().await;
    };
    let ((), got) = over_tcp(plain, &client, "localhost").await;
    fails_with(
        &got,
        "does not speak TLS: start the control plane with --tls",
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let mut plain = TcpStream::connect(listener.local_addr().expect("one"))
        .await
        .expect("one");
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .expect("sent");
    let (stream, _) = listener.accept().await.expect("a connection");
    let (cause, _) = server.accept(stream).await.expect_err("a refusal");
    assert!(cause.contains("the client does not speak TLS"), "{cause}");
    drop((plain, listener));
    let (ours, theirs) = tokio::io::duplex(64);
    drop(theirs);
    let (cause, _) = server.accept(ours).await.expect_err("a refusal");
    assert!(cause.contains("closed the connection"), "{cause}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let server = ServerTls::load(&server).expect("a server");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("a version")
        .with_root_certificates(cluster.roots())
        .with_no_client_auth();
    let client = Connector::new(Arc::new(config));
    let (seen, got) = converse(&server, &client, "localhost").await;
    fails_with(&seen, "the client has no certificate");
    fails_with(&got, "the control plane requires a certificate");
}

#[tokio::test]
async fn renewed_files_are_used_and_files_of_no_use_are_not() {
    let cluster = Cluster::new();
    let server = cluster.issue("server", &Subject::ControlPlane);
    let tls = ServerTls::load(&server).expect("a server");
    let client = cluster.client_with(&cluster.issue("client", &node("web-1")));
    let before = tls.details();
    let life = 2 * DAY;
    let change = async {
        // Key and certificate of another identity, then a key alone, then both.
        cluster.issue("server", &node("web-1"));
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(tls.details(), before);
        converse(&tls, &client, "localhost")
            .await
            .0
            .expect("the files from before");
        let validity = Validity::lasting(life);
        let names = ["localhost".to_owned()];
        let issued = cluster
            .authority
            .issue(&Subject::ControlPlane, &names, validity);
        let issued = issued.expect("a certificate");
        write_key(&server, &issued.key).expect("written");
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(tls.details(), before);
        write_certificate(&server, &issued.certificate).expect("written");
        for _ in 0..50 {
            if tls.details() != before {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        assert!(tls.details().not_after > before.not_after);
        let (seen, got) = converse(&tls, &client, "localhost").await;
        seen.expect("the new files");
        got.expect("the new files");
        fails_with(
            &converse(&tls, &client, "127.0.0.1").await.1,
            "it is not for 127.0.0.1",
        );
    };
    tokio::select! {
        () = tls.watch() => unreachable!("it watches for ever"),
        () = change => {}
    }
}

#[test]
fn a_request_gets_a_certificate_for_its_key_and_no_name_of_its_own() {
    let cluster = Cluster::new();
    let secret = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["control-plane.example".to_owned()]);
    let mut params = params.expect("parameters");
    let wish = cluster.uri("/controlplane").try_into().expect("ASCII");
    params.subject_alt_names.push(SanType::URI(wish));
    let request = params.serialize_request(&secret).expect("a request");
    let request = request.pem().expect("PEM");
    let validity = Validity::lasting(DAY);
    let signed = cluster
        .authority
        .sign(&request, &node("web-1"), &[], validity);
    let signed = signed.expect("a certificate");
    let directory = cluster.store("signed", &signed, &secret.serialize_pem());
    let credentials = Credentials::load(&directory).expect("credentials");
    assert_eq!(credentials.details().identity.subject, node("web-1"));
    assert!(credentials.connector().is_ok(), "the key is another one");
    let parsed = chain(&directory);
    assert!(!String::from_utf8_lossy(&parsed[0]).contains("control-plane.example"));
    // A request whose signature is another key's proves nothing.
    let other = KeyPair::generate().expect("a key");
    let other = params.serialize_request(&other).expect("a request");
    let mut torn = request_of(&request);
    let length = torn.len();
    torn[length - 20..].copy_from_slice(&other.der()[other.der().len() - 20..]);
    assert!(CertificateSigningRequestParams::from_der(&torn.into()).is_err());
    let error = cluster
        .authority
        .sign("no request", &node("web-1"), &[], validity);
    assert!(matches!(error, Err(AuthorityError::Malformed { .. })));
}

fn request_of(pem: &str) -> Vec<u8> {
    let request = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    request.expect("a request").to_vec()
}

#[test]
fn an_authority_that_exists_must_be_one_and_have_its_key() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let id = cluster.authority.cluster();
    let (certificate, key) = (cluster.authority.certificate(), cluster.authority.key());
    assert!(Authority::load(id, certificate, &key).is_ok());
    let error = Authority::load(id, certificate, &other.authority.key());
    assert!(matches!(error, Err(AuthorityError::OtherKey)));
    let issued = cluster
        .authority
        .issue(&node("a"), &[], Validity::lasting(DAY));
    let issued = issued.expect("a certificate");
    let error = Authority::load(id, &issued.certificate, &issued.key);
    assert!(matches!(error, Err(AuthorityError::NoAuthority(_))));
    let error = Authority::load(id, "", &key);
    assert!(matches!(error, Err(AuthorityError::NoAuthority(_))));
    let names = ["a b".to_owned()];
    let error = cluster
        .authority
        .issue(&Subject::ControlPlane, &names, Validity::lasting(DAY));
    assert!(matches!(error, Err(AuthorityError::Name(_))));
}

#[test]
fn files_that_do_not_fit_together_are_named() {
    let cluster = Cluster::new();
    let client = cluster.issue("client", &node("web-1"));
    write_key(&client, &generate_key().expect("a key")).expect("written");
    let credentials = Credentials::load(&client).expect("each file is well");
    let error = credentials
        .connector()
        .expect_err("another key")
        .to_string();
    assert!(
        error.contains("tls.key is not the key of tls.crt"),
        "{error}"
    );
    std::fs::write(client.join("ca.crt"), "").expect("written");
    let error = Credentials::load(&client)
        .expect_err("no authority")
        .to_string();
    assert!(error.contains("ca.crt is of no use"), "{error}");
    std::fs::remove_file(client.join("ca.crt")).expect("removed");
    let error = Credentials::load(&client)
        .expect_err("no authority")
        .to_string();
    assert!(error.contains("cannot read"), "{error}");
    let mode = std::fs::metadata(client.join("tls.key"))
        .expect("a key")
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
}
