//! `init` and `issue` as an operator runs them: the printed text, the files, and the refusals.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use sallyport_identity::{Credentials, Subject};

fn run(directory: &Path, line: &str) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_sallyport-controlplane"))
        .args(line.split(' '))
        .current_dir(directory)
        .output();
    output.expect("the program starts")
}

fn done(directory: &Path, line: &str) -> String {
    let output = run(directory, line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

fn refused(directory: &Path, line: &str) -> String {
    let output = run(directory, line);
    assert_eq!(output.status.code(), Some(1), "{line}");
    String::from_utf8(output.stderr).expect("text")
}

fn credentials(directory: &Path) -> Credentials {
    let credentials = Credentials::load(directory).expect("credentials");
    credentials.connector().expect("they fit together");
    credentials
}

#[test]
fn init_makes_a_cluster_once_and_says_how_to_go_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    let said = done(at, "init --dir tls --server cp.example,10.0.0.1");
    let id = fs::read_to_string(at.join("tls/cluster-id")).expect("an id");
    for words in [
        id.trim(),
        "cp.example, 10.0.0.1, localhost, 127.0.0.1, ::1",
        "sallyport-controlplane --listen cp.example:7443 --tls tls/controlplane",
        "sallyport-controlplane issue node NAME --dir tls --out NAME",
        "export SALLYPORT_SERVER=https://cp.example:7443 SALLYPORT_TLS=tls/admin",
    ] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let server = credentials(&at.join("tls/controlplane"));
    assert_eq!(server.details().identity.subject, Subject::ControlPlane);
    let admin = credentials(&at.join("tls/admin"));
    assert_eq!(
        admin.details().identity.subject,
        Subject::operator("admin").expect("a name")
    );
    for secret in ["ca.key", "controlplane/tls.key", "admin/tls.key"] {
        let mode = fs::metadata(at.join("tls").join(secret))
            .expect(secret)
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{secret}");
    }
    let said = refused(at, "init --dir tls");
    assert!(
        said.contains("tls is not empty: init makes a new cluster"),
        "{said}"
    );
    let after = fs::read_to_string(at.join("tls/cluster-id")).expect("an id");
    assert_eq!(after, id);
    let left = fs::read_dir(at).expect("a directory").count();
    assert_eq!(left, 1, "something is left beside the cluster");
    let said = refused(at, "init --dir other --server a..b");
    assert!(
        said.contains("neither a DNS name nor an IP address"),
        "{said}"
    );
    assert!(!at.join("other").exists());
}

#[test]
fn a_certificate_is_issued_renewed_and_kept_from_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    done(at, "init --dir tls");
    let said = done(at, "issue node web-1 --dir tls --out web-1 --days 30");
    assert!(
        said.contains("Issued the certificate of node web-1 of cluster"),
        "{said}"
    );
    assert!(
        said.contains("sallyport-enforcer --node-name web-1"),
        "{said}"
    );
    let before = credentials(&at.join("web-1")).details().clone();
    let key = fs::read(at.join("web-1/tls.key")).expect("a key");
    let said = refused(at, "issue node web-1 --dir tls --out web-1");
    assert!(said.contains("give another --out, or --renew"), "{said}");
    let said = refused(at, "issue node web-2 --dir tls --out web-1 --renew");
    assert!(said.contains("has the certificate of node web-1"), "{said}");
    done(
        at,
        "issue node web-1 --dir tls --out web-1 --renew --days 60",
    );
    let after = credentials(&at.join("web-1")).details().clone();
    assert!(after.not_after > before.not_after);
    assert_eq!(fs::read(at.join("web-1/tls.key")).expect("a key"), key);
    let names = credentials(&at.join("tls/controlplane"))
        .details()
        .names
        .clone();
    done(
        at,
        "issue controlplane --renew --dir tls --out tls/controlplane",
    );
    assert_eq!(
        credentials(&at.join("tls/controlplane")).details().names,
        names
    );
    let said = refused(at, "issue node Web_1 --dir tls --out x");
    assert!(
        said.contains("a node's name has at most 253 characters"),
        "{said}"
    );
    let said = refused(at, "issue operator alice --dir nowhere --out x");
    assert!(said.contains("--dir is the directory that"), "{said}");
}

#[test]
fn another_authority_and_keys_of_others_are_taken() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    done(at, "init --dir company");
    done(
        at,
        "init --dir tls --ca-cert company/ca.crt --ca-key company/ca.key",
    );
    assert!(
        !at.join("tls/ca.key").exists(),
        "the key of another authority is copied"
    );
    let said = refused(at, "issue operator alice --dir tls --out alice");
    assert!(said.contains("--ca-key names the key"), "{said}");
    done(
        at,
        "issue operator alice --dir tls --out alice --ca-key company/ca.key",
    );
    credentials(&at.join("alice"));
    let said = refused(
        at,
        "init --dir x --ca-cert company/ca.crt --ca-key alice/tls.key",
    );
    assert!(said.contains("the CA's key does not belong"), "{said}");
    let said = refused(
        at,
        "init --dir x --ca-cert alice/tls.crt --ca-key alice/tls.key",
    );
    assert!(said.contains("basic constraints name no CA"), "{said}");
    let said = refused(
        at,
        "issue node a --dir company --out a --csr company/ca.crt",
    );
    assert!(said.contains("the signing request"), "{said}");
}

#[test]
fn a_control_plane_without_its_own_certificate_does_not_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path();
    done(at, "init --dir tls");
    for (options, words) in [
        (
            "--listen 127.0.0.1:0 --tls tls/admin",
            "is the certificate of operator admin",
        ),
        (
            "--listen 127.0.0.1:0 --tls nowhere",
            "cannot serve TLS: cannot read nowhere/ca.crt",
        ),
        (
            "--listen unix:///nowhere/a.sock --tls tls/controlplane",
            "--tls is for TCP",
        ),
    ] {
        let said = refused(at, &format!("{options} --data-dir data"));
        assert!(said.contains(words), "{options}: {said}");
    }
    assert!(
        !at.join("data").exists(),
        "a journal is made before the certificate is read"
    );
}
