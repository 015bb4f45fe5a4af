//! What the control plane can be told on its command line. Opens nothing.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use sallyport_process::duration;

use crate::{
    history::Bounds,
    journal,
    model::Established,
    nodes::{Settings, UnreachablePolicy},
};

const AFTER_HELP: &str = "\
Examples:
  sallyport-controlplane
      Serve on 127.0.0.1:7443, keep data in /var/lib/sallyport/controlplane.
  sallyport-controlplane init --dir /etc/sallyport/tls --server 10.0.0.1
      Make a cluster: its CA, and the certificates of the control plane and of operator admin.
  sallyport-controlplane --listen 10.0.0.1:7443 --tls /etc/sallyport/tls/controlplane
      Serve nodes on other machines, by TLS.
  sallyport-controlplane --listen unix:///run/sallyport/api.sock --data-dir /tmp/try
      Serve on a socket that only this user can open.
  sallyport-controlplane journal verify
      Check whether the journal of a stopped control plane is whole.

Apply manifests with `sallyport apply`. The control plane stops on SIGTERM and SIGINT; all acknowledged \
transactions are on the disk.";

/// Sallyport's control plane: takes policies in transactions, computes what each node must enforce, and streams the
/// differences to the nodes.
///
/// The control plane serves gRPC: sallyport.v1.PolicyService for operators, sallyport.v1.NodeService for nodes,
/// health checks and reflection. With --tls each client proves by a certificate which node or operator it is. Without
/// --tls every client of the address can read and change all objects, so listen on the loopback address or on a unix
/// socket then.
#[derive(Debug, Parser)]
#[command(
    name = "sallyport-controlplane",
    version,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Arguments {
    /// A command that runs instead of the server.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub config: Config,
}

/// A command that runs instead of the server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Inspect or back up the journal of a stopped control plane, or make a journal from a backup
    #[command(subcommand, after_help = JOURNAL_HELP)]
    Journal(JournalCommand),
    /// Make a cluster: its id, its CA, and the certificates of the control plane and of operator admin
    #[command(after_help = INIT_HELP)]
    Init(InitArguments),
    /// Issue or renew a certificate of a cluster, with the key of its CA
    #[command(subcommand, after_help = ISSUE_HELP)]
    Issue(IssueCommand),
}

/// The arguments of `init`.
#[derive(Debug, Args)]
pub struct InitArguments {
    /// The directory of the cluster: empty, or not created yet
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A DNS name or IP address by which nodes and operators reach the control plane, beside localhost, 127.0.0.1 and
    /// ::1 (repeatable)
    #[arg(long, value_name = "NAME|IP", value_delimiter = ',')]
    pub server: Vec<String>,
    /// The certificate of an existing CA, in PEM [default: a new CA]
    #[arg(long, value_name = "FILE", requires = "ca_key")]
    pub ca_cert: Option<PathBuf>,
    /// The key of that CA, in PEM; the key is not copied
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,
}

/// The owner of a new certificate.
#[derive(Debug, Subcommand)]
pub enum IssueCommand {
    /// A certificate for a node
    Node {
        /// The name of the Node object
        name: String,
        /// How to issue it.
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// A certificate for an operator: a person or program that uses the API
    Operator {
        /// The name of the operator
        name: String,
        /// How to issue it.
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// A certificate for the control plane
    Controlplane {
        /// A DNS name or IP address of the control plane, beside localhost, 127.0.0.1 and ::1 (repeatable) [default
        /// with --renew: the names of the old certificate]
        #[arg(long, value_name = "NAME|IP", value_delimiter = ',')]
        server: Vec<String>,
        /// How to issue it.
        #[command(flatten)]
        issue: IssueArguments,
    },
}

/// How to issue a certificate.
#[derive(Debug, Args)]
pub struct IssueArguments {
    /// The directory of the cluster, as `init` made it
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The directory for ca.crt, tls.crt and tls.key: empty, or not created yet
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The life of the certificate in days
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Replace the certificate in --out by a new one for the same owner and key; programs that use it go on
    #[arg(long)]
    pub renew: bool,
    /// A signing request (PKCS #10, in PEM) of a machine that keeps its key. No tls.key is written then
    #[arg(long, value_name = "FILE", conflicts_with = "renew")]
    pub csr: Option<PathBuf>,
    /// The key of the CA, in PEM [default: ca.key in the directory of the cluster]
    #[arg(long, value_name = "FILE")]
    pub ca_key: Option<PathBuf>,
}

/// The commands on the journal of a control plane that is stopped.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Read every record and report whether the journal is whole (exit code 0) or damaged (1); changes nothing
    #[command(after_help = VERIFY_HELP)]
    Verify(JournalArguments),
    /// Print the objects or transactions of the journal; changes nothing
    #[command(after_help = DUMP_HELP)]
    Dump(DumpArguments),
    /// Write a backup of the last revision into a file; changes nothing
    #[command(after_help = BACKUP_HELP)]
    Backup(BackupArguments),
    /// Make a journal from a backup, in an empty directory
    #[command(after_help = RESTORE_HELP)]
    Restore(RestoreArguments),
}

/// Where a journal is.
#[derive(Debug, Args)]
pub struct JournalArguments {
    /// The data directory of a stopped control plane
    #[arg(
        long,
        env = "SALLYPORT_DATA_DIR",
        value_name = "DIR",
        default_value = DATA_DIR
    )]
    pub data_dir: PathBuf,
}

/// The arguments of `journal dump`.
#[derive(Debug, Args)]
pub struct DumpArguments {
    /// Where the journal is.
    #[command(flatten)]
    pub journal: JournalArguments,
    /// Print the transactions in the log instead of the objects
    #[arg(long)]
    pub transactions: bool,
    /// The form of the output
    #[arg(short, long, value_enum, value_name = "FORM", default_value = "yaml")]
    pub output: Form,
}

/// The form of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// YAML
    Yaml,
    /// JSON
    Json,
}

/// Where a backup goes, and of which journal.
#[derive(Debug, Args)]
pub struct BackupArguments {
    /// The file; an existing file is replaced once the backup is complete
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where the journal is.
    #[command(flatten)]
    pub journal: JournalArguments,
}

/// Which backup becomes a journal, and where.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// The backup. Without one the journal is empty, for manifests to be applied
    #[arg(value_name = "FILE", required_unless_present = "epoch")]
    pub file: Option<PathBuf>,
    /// The directory of the new journal: empty, or not created yet
    #[arg(
        long,
        env = "SALLYPORT_DATA_DIR",
        value_name = "DIR",
        default_value = DATA_DIR
    )]
    pub data_dir: PathBuf,
    /// The epoch of the new journal, above every epoch that a node has seen [default: the backup's epoch plus 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub epoch: Option<u64>,
}

/// Where a control plane keeps its journal unless told otherwise.
const DATA_DIR: &str = "/var/lib/sallyport/controlplane";

const JOURNAL_HELP: &str = "\
For a running control plane use `sallyport journal backup`.

Examples:
  sallyport-controlplane journal verify
  sallyport-controlplane journal restore /backup/sallyport";

const INIT_HELP: &str = "\
The key of the CA (ca.key) can sign a certificate for any node and operator: keep its directory away from others. \
Nothing is overwritten.

Examples:
  sallyport-controlplane init --dir /etc/sallyport/tls --server cp.example.com,10.0.0.1
  sallyport-controlplane init --dir tls --server 10.0.0.1 --ca-cert company.crt --ca-key company.key";

const ISSUE_HELP: &str = "\
Copy the made directory to its machine by a way that nobody else can read, or use --csr.

Examples:
  sallyport-controlplane issue node web-1 --dir /etc/sallyport/tls --out web-1
  sallyport-controlplane issue operator alice --dir /etc/sallyport/tls --out alice --days 90
  sallyport-controlplane issue node web-1 --dir /etc/sallyport/tls --out web-1 --csr web-1.csr
  sallyport-controlplane issue controlplane --renew --dir /etc/sallyport/tls --out /etc/sallyport/tls/controlplane";

const VERIFY_HELP: &str = "\
The command reads a copy, so the journal does not change. The control plane must be stopped.

Examples:
  sallyport-controlplane journal verify
  sallyport-controlplane journal verify --data-dir /mnt/copy";

const DUMP_HELP: &str = "\
`sallyport apply -f -` reads the printed objects.

Examples:
  sallyport-controlplane journal dump > cluster.yaml
  sallyport-controlplane journal dump --transactions -o json | jq '.[-1]'";

const BACKUP_HELP: &str = "\
The control plane must be stopped. The backup holds the state at the last revision, and no history.

Examples:
  sallyport-controlplane journal backup /backup/sallyport";

const RESTORE_HELP: &str = "\
The journal's epoch is the backup's epoch plus 1. Nodes that are ahead of the backup refuse to go back \
within an epoch, and accept updates of a later one. To restore the same backup twice, give --epoch.

Examples:
  sallyport-controlplane journal restore /backup/sallyport --data-dir /srv/sallyport
  sallyport-controlplane journal restore /backup/sallyport --epoch 7
  sallyport-controlplane journal restore --epoch 7
      No backup: start empty, then apply the manifests.";

/// How to serve.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// The address to listen on: IP:PORT (port 0 takes a free port), or unix:///PATH
    #[arg(
        long,
        env = "SALLYPORT_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:7443"
    )]
    pub listen: Address,

    /// The directory with ca.crt, tls.crt and tls.key of this control plane: serve TLS 1.3, and require the certificate
    /// of a node or operator of each client. Replaced files are used without a restart [default: no TLS]
    #[arg(long, env = "SALLYPORT_TLS", value_name = "DIR")]
    pub tls: Option<PathBuf>,

    /// The directory of the journal; created if missing
    #[arg(
        long,
        env = "SALLYPORT_DATA_DIR",
        value_name = "DIR",
        default_value = DATA_DIR
    )]
    pub data_dir: PathBuf,

    /// The number of transactions in the history, for watches and rollbacks; each takes memory
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub history: u32,

    /// The longest time that a packet takes between two nodes: the pause between the revokes of an edit and its
    /// grants
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = duration::parse)]
    pub drain: Duration,

    /// How an edit proceeds when a node does not acknowledge its revokes. `fence` waits for a node whose enforcer
    /// runs without --lease
    #[arg(long, default_value = "wait", value_parser = unreachable())]
    pub unreachable: UnreachablePolicy,

    /// The time that an edit waits for a node before `skip` goes on without the node
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    pub skip_after: Duration,

    /// The treatment of established connections that an edit revokes: `recheck` cuts these connections at once,
    /// `keep` lets them go on until they end. The annotation sallyport.dev/established of a policy takes precedence
    #[arg(
        long,
        env = "SALLYPORT_ESTABLISHED",
        value_name = "MODE",
        default_value = "recheck",
        value_parser = established()
    )]
    pub established: Established,

    /// The address to serve Prometheus metrics on, at /metrics [default: no metrics]
    #[arg(long, env = "SALLYPORT_METRICS", value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,

    /// The format of the log on standard error
    #[arg(
        long,
        env = "SALLYPORT_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// The log level: error, warn, info, debug, trace, or directives like sallyport_controlplane=debug,h2=warn
    #[arg(long, env = "RUST_LOG", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where to serve, or where it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        const FORMS: &str = "use HOST:PORT with an IP address, such as 127.0.0.1:7443 or [::1]:7443, or unix:///PATH";
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Address::Unix(path.into())),
            Some(_) => Err(FORMS.to_owned()),
            None => text.parse().map(Address::Tcp).map_err(|_| FORMS.to_owned()),
        }
    }
}

impl Address {
    /// Whether others than this machine may reach it.
    pub fn is_exposed(&self) -> bool {
        match self {
            Address::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Address::Unix(_) => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

fn unreachable() -> impl TypedValueParser<Value = UnreachablePolicy> {
    let value = |policy: UnreachablePolicy| PossibleValue::new(policy.as_str()).help(policy.help());
    PossibleValuesParser::new(UnreachablePolicy::ALL.map(value))
        .map(|text| text.parse().expect("one of the possible values"))
}

fn established() -> impl TypedValueParser<Value = Established> {
    PossibleValuesParser::new(Established::NAMES)
        .map(|name| Established::named(&name).expect("one of the names"))
}

impl Config {
    /// The defaults, with data in a directory and a free port on the loopback address: for tests.
    pub fn local(data_dir: impl Into<PathBuf>) -> Config {
        Config {
            listen: Address::Tcp(([127, 0, 0, 1], 0).into()),
            tls: None,
            data_dir: data_dir.into(),
            history: 10_000,
            drain: Settings::default().drain,
            unreachable: UnreachablePolicy::Wait,
            skip_after: Settings::default().patience,
            established: Established::default(),
            metrics: None,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }

    /// How edits are led through the cluster.
    pub(crate) fn nodes(&self) -> Settings {
        Settings {
            drain: self.drain,
            unreachable: self.unreachable,
            patience: self.skip_after,
            ..Settings::default()
        }
    }

    /// How the journal is to be kept.
    pub(crate) fn journal(&self) -> journal::Settings {
        let transactions = usize::try_from(self.history).unwrap_or(usize::MAX);
        journal::Settings {
            history: Bounds {
                transactions,
                ..Bounds::default()
            },
            fold_after: self.history.into(),
            ..journal::Settings::at(journal::within(&self.data_dir))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        for word in [
            "--listen",
            "--data-dir",
            "--established",
            "sallyport.dev/established",
            "--log-format",
            "--log-level",
            "--tls",
            "SALLYPORT_TLS",
            "Without --tls every client of the address can read and change all objects",
            "init",
            "issue",
            "Examples:",
            "takes policies in transactions",
            "journal",
        ] {
            assert!(help.contains(word), "{word} in:\n{help}");
        }
    }

    #[test]
    fn options_of_the_server_are_none_of_the_journal() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let serves = parse("sallyport-controlplane --history 5").expect("it serves");
        assert!(serves.command.is_none() && serves.config.history == 5);
        let looks = parse("sallyport-controlplane journal verify --data-dir x").expect("it looks");
        assert!(matches!(
            looks.command,
            Some(Command::Journal(JournalCommand::Verify(_)))
        ));
        for (line, kind) in [
            (
                "sallyport-controlplane --history 5 journal verify",
                ErrorKind::ArgumentConflict,
            ),
            (
                "sallyport-controlplane init",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "sallyport-controlplane init --dir a --ca-key b",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "sallyport-controlplane issue node a --dir b --out c --renew --csr d",
                ErrorKind::ArgumentConflict,
            ),
            (
                "sallyport-controlplane journal restore",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "sallyport-controlplane journal backup",
                ErrorKind::MissingRequiredArgument,
            ),
        ] {
            assert_eq!(parse(line).expect_err(line).kind(), kind, "{line}");
        }
    }

    #[test]
    fn only_loopback_and_sockets_are_not_exposed() {
        for (text, exposed) in [
            ("127.0.0.1:7443", false),
            ("127.1.2.3:7443", false),
            ("[::1]:7443", false),
            ("[::ffff:127.0.0.1]:7443", false),
            ("unix:///run/a.sock", false),
            ("0.0.0.0:7443", true),
            ("[::]:7443", true),
            ("10.0.0.1:7443", true),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.is_exposed(), exposed, "{text}");
        }
    }

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in ["127.0.0.1:7443", "[::1]:0", "unix:///run/a.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "7443", "localhost", "unix://relative"] {
            assert!(
                text.parse::<Address>().unwrap_err().contains("HOST:PORT"),
                "{text}"
            );
        }
    }
}
