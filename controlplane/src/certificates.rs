//! `sallyport-controlplane init` and `issue`: the certificates of a cluster, made by whoever has the key of its CA.
//! Neither needs a running control plane.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use sallyport_controlplane::config::{InitArguments, IssueArguments, IssueCommand};
use sallyport_identity::{
    Authority, ClusterId, Credentials, Details, Subject, Validity, write_authority,
    write_certificate, write_key,
};
use sallyport_process::files;

/// The names that a control plane has on its own machine.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The life of the certificates that `init` makes: `issue --renew` renews them.
const LIFE: Duration = Duration::from_secs(365 * 86_400);

const CLUSTER_ID: &str = "cluster-id";
const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CONTROL_PLANE: &str = "controlplane";
const ADMIN: &str = "admin";

/// Makes a cluster. Its directory appears whole, or not at all.
pub(crate) fn init(arguments: &InitArguments) -> Result<()> {
    let dir = &arguments.dir;
    refuse_unless_empty(dir, "init makes a new cluster and overwrites nothing")?;
    let cluster = ClusterId::random();
    let (authority, own_key) = match (&arguments.ca_cert, &arguments.ca_key) {
        (Some(certificate), Some(key)) => (
            Authority::load(cluster, &read(certificate)?, &read(key)?)?,
            false,
        ),
        _ => (Authority::create(cluster)?, true),
    };
    let parent = parent_of(dir);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let made = tempfile::Builder::new()
        .prefix(".sallyport-init-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .with_context(|| format!("cannot create a directory in {}", parent.display()))?;
    let at = made.path();
    let of_cluster = write_cluster(at, &authority, own_key);
    of_cluster.with_context(|| format!("cannot write into {}", at.display()))?;
    let names = machine_names(&arguments.server);
    let admin = Subject::operator(ADMIN)?;
    let life = Validity::lasting(LIFE);
    let server = make(
        &authority,
        &at.join(CONTROL_PLANE),
        &Subject::ControlPlane,
        &names,
        life,
    )?;
    let admin = make(&authority, &at.join(ADMIN), &admin, &[], life)?;
    fs::rename(at, dir)
        .with_context(|| format!("cannot move {} to {}", at.display(), dir.display()))?;
    // The directory has another name now, so there is nothing to remove.
    let _ = made.keep();
    files::print(&made_cluster(arguments, cluster, own_key, &server, &admin))?;
    Ok(())
}

fn write_cluster(at: &Path, authority: &Authority, own_key: bool) -> std::io::Result<()> {
    let write = |name: &str, text: &str| {
        files::replace(&at.join(name), |out| out.write_all(text.as_bytes()))
    };
    write(CLUSTER_ID, &format!("{}\n", authority.cluster()))?;
    write(CA_CERTIFICATE, authority.certificate())?;
    match own_key {
        true => write(CA_KEY, &authority.key()),
        false => Ok(()),
    }
}

/// The output of `init`: the files, and the next commands.
fn made_cluster(
    arguments: &InitArguments,
    cluster: ClusterId,
    own_key: bool,
    server: &Details,
    admin: &Details,
) -> String {
    let dir = arguments.dir.display();
    let host = arguments.server.first().map_or("127.0.0.1", String::as_str);
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    let (key, option) = match (own_key, &arguments.ca_key) {
        (false, Some(key)) => (
            "ca.crt         the certificate of the CA that you gave; its key was not copied"
                .to_owned(),
            format!(" --ca-key {}", key.display()),
        ),
        _ => (
            "ca.crt ca.key  the CA of the cluster. Whoever has ca.key can be any node or operator"
                .to_owned(),
            String::new(),
        ),
    };
    format!(
        "Made cluster {cluster} in {dir}:
  {key}
  controlplane/  the certificate of the control plane for {}, until {}
  admin/         the certificate of operator admin, until {}

Start the control plane:
  sallyport-controlplane --listen {host}:7443 --tls {dir}/controlplane

Issue a certificate for each node, and copy its directory to the node as /etc/sallyport/tls:
  sallyport-controlplane issue node NAME --dir {dir} --out NAME{option}
  sallyport-enforcer --node-name NAME --control-plane https://{host}:7443 --tls /etc/sallyport/tls

Use the cluster as operator admin:
  export SALLYPORT_SERVER=https://{host}:7443 SALLYPORT_TLS={dir}/admin
  sallyport status
",
        server.names.join(", "),
        day(server),
        day(admin),
    )
}

/// Issues or renews a certificate.
pub(crate) fn issue(command: &IssueCommand) -> Result<()> {
    let (subject, server, arguments) = match command {
        IssueCommand::Node { name, issue } => (Subject::node(name)?, &[][..], issue),
        IssueCommand::Operator { name, issue } => (Subject::operator(name)?, &[][..], issue),
        IssueCommand::Controlplane { server, issue } => {
            (Subject::ControlPlane, server.as_slice(), issue)
        }
    };
    let authority = authority_of(arguments)?;
    let names = match subject {
        Subject::ControlPlane => machine_names(server),
        _ => Vec::new(),
    };
    let life = Validity::lasting(Duration::from_secs(u64::from(arguments.days) * 86_400));
    let out = &arguments.out;
    let details = match (&arguments.csr, arguments.renew) {
        (Some(request), _) => {
            refuse_unless_empty(out, "give another --out")?;
            let certificate = authority.sign(&read(request)?, &subject, &names, life)?;
            create(out)?;
            write_authority(out, authority.certificate())
                .and_then(|()| write_certificate(out, &certificate))
                .with_context(|| format!("cannot write into {}", out.display()))?;
            Details::of_pem(&certificate)?
        }
        (None, true) => renew(&authority, out, &subject, server, life)?,
        (None, false) => {
            refuse_unless_empty(out, "give another --out, or --renew")?;
            make(&authority, out, &subject, &names, life)?
        }
    };
    let what = match (&arguments.csr, arguments.renew) {
        (_, true) => "Renewed",
        (Some(_), _) => "Signed",
        _ => "Issued",
    };
    files::print(&format!(
        "{what} the certificate of {} in {}, until {}{}\n",
        details.identity,
        out.display(),
        day(&details),
        next(&subject, arguments),
    ))?;
    Ok(())
}

/// The commands that use a new certificate.
fn next(subject: &Subject, arguments: &IssueArguments) -> String {
    if arguments.renew {
        return ". Programs on this machine use it from now on; copy tls.crt where others have the old one".to_owned();
    }
    match subject {
        Subject::Node(name) => format!(
            "\nCopy the directory to the node, and start its enforcer:\n  sallyport-enforcer --node-name {name} \
             --control-plane https://HOST:7443 --tls DIR"
        ),
        Subject::Operator(_) => format!(
            "\nGive the directory to the operator:\n  export SALLYPORT_SERVER=https://HOST:7443 SALLYPORT_TLS={}",
            arguments.out.display()
        ),
        Subject::ControlPlane => format!(
            "\nStart the control plane:\n  sallyport-controlplane --listen HOST:7443 --tls {}",
            arguments.out.display()
        ),
    }
}

/// A new certificate for the owner and the key of an old one.
fn renew(
    authority: &Authority,
    out: &Path,
    subject: &Subject,
    server: &[String],
    life: Validity,
) -> Result<Details> {
    let old = Credentials::load(out)?.details().clone();
    if old.identity.cluster != authority.cluster() || old.identity.subject != *subject {
        bail!(
            "{} has the certificate of {}, not that of {subject} of cluster {}: give another --out",
            out.display(),
            old.identity,
            authority.cluster()
        );
    }
    let names = match server.is_empty() {
        true => old.names,
        false => machine_names(server),
    };
    let key = read(&out.join("tls.key"))?;
    let certificate = authority.renew(&key, subject, &names, life)?;
    write_certificate(out, &certificate)
        .with_context(|| format!("cannot write into {}", out.display()))?;
    Ok(Details::of_pem(&certificate)?)
}

/// A new key with its certificate, in a directory that is new.
fn make(
    authority: &Authority,
    directory: &Path,
    subject: &Subject,
    names: &[String],
    life: Validity,
) -> Result<Details> {
    let issued = authority.issue(subject, names, life)?;
    create(directory)?;
    write_authority(directory, authority.certificate())
        .and_then(|()| write_key(directory, &issued.key))
        .and_then(|()| write_certificate(directory, &issued.certificate))
        .with_context(|| format!("cannot write into {}", directory.display()))?;
    Ok(Details::of_pem(&issued.certificate)?)
}

/// The authority of a cluster's directory.
fn authority_of(arguments: &IssueArguments) -> Result<Authority> {
    let dir = &arguments.dir;
    let id = read(&dir.join(CLUSTER_ID))
        .context("--dir is the directory that `sallyport-controlplane init` made")?;
    let id: ClusterId = id
        .trim_end()
        .parse()
        .with_context(|| format!("{} is of no use", dir.join(CLUSTER_ID).display()))?;
    let key = match &arguments.ca_key {
        Some(key) => key.clone(),
        None => dir.join(CA_KEY),
    };
    let key = read(&key).context("--ca-key names the key of a CA that `init` was given")?;
    Ok(Authority::load(
        id,
        &read(&dir.join(CA_CERTIFICATE))?,
        &key,
    )?)
}

/// The names of a control plane's machine, each once.
fn machine_names(server: &[String]) -> Vec<String> {
    let mut names = server.to_vec();
    for name in LOCAL {
        if !server.iter().any(|given| given == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn refuse_unless_empty(directory: &Path, remedy: &str) -> Result<()> {
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => bail!("{} is not empty: {remedy}", directory.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}

/// Creates a directory that only its owner can open.
fn create(directory: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    let created = builder.create(directory);
    created.with_context(|| format!("cannot create {}", directory.display()))
}

fn parent_of(directory: &Path) -> &Path {
    let parent = directory.parent();
    parent
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The last day of a certificate.
fn day(details: &Details) -> String {
    details.not_after.strftime("%Y-%m-%d").to_string()
}
