//! What the control plane can be told on its command line. Opens nothing.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    Parser, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use sallyport_process::duration;

use crate::{
    history::Bounds,
    journal,
    model::Established,
    nodes::{Settings, Unreachable},
};

const AFTER_HELP: &str = "\
Examples:
  sallyport-controlplane
      Serve on 127.0.0.1:7443, keep data in /var/lib/sallyport/controlplane.
  sallyport-controlplane --listen 10.0.0.1:7443 --log-format json
      Serve nodes on another machine's network. There is no TLS yet: only on a network that you trust.
  sallyport-controlplane --listen unix:///run/sallyport/api.sock --data-dir /tmp/try
      Serve on a socket that only this user can open.

Send it manifests with `sallyport apply`. It stops on SIGTERM and SIGINT; whatever it acknowledged is on the disk.";

/// Sallyport's control plane: takes policies in transactions, computes what each node must enforce, and streams the
/// differences to the nodes.
///
/// It serves gRPC: sallyport.v1.PolicyService for operators, sallyport.v1.NodeService for nodes, health checks and
/// reflection. TLS is not supported yet: everyone who reaches the address can read and change everything, so listen
/// on the loopback address, on a unix socket, or on a network that you trust.
#[derive(Clone, Debug, Parser)]
#[command(name = "sallyport-controlplane", version, after_help = AFTER_HELP)]
pub struct Config {
    /// Where to serve: HOST:PORT (port 0 takes a free one), or unix:///PATH
    #[arg(
        long,
        env = "SALLYPORT_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:7443"
    )]
    pub listen: Address,

    /// Where to keep the journal; created if it is not there
    #[arg(
        long,
        env = "SALLYPORT_DATA_DIR",
        value_name = "DIR",
        default_value = "/var/lib/sallyport/controlplane"
    )]
    pub data_dir: PathBuf,

    /// How many transactions a watch can look back; more take more memory
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub history: u32,

    /// How long packets may be on their way between two nodes: what an edit takes away is gone for so long before
    /// what it gives is given
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = duration::parse)]
    pub drain: Duration,

    /// What becomes of an edit when a node does not acknowledge what the edit takes away
    #[arg(long, value_enum, default_value_t = OnUnreachable::Wait)]
    pub unreachable: OnUnreachable,

    /// How long a node that is to be skipped is waited for
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    pub skip_after: Duration,

    /// What becomes of established connections that an edit revokes, where the policies that select the pod do not say
    /// so themselves (annotation sallyport.dev/established): `recheck` cuts them at once, `keep` lets them go on until
    /// they end
    #[arg(
        long,
        env = "SALLYPORT_ESTABLISHED",
        value_name = "MODE",
        default_value = "recheck",
        value_parser = established()
    )]
    pub established: Established,

    /// Where to serve Prometheus metrics, at /metrics [default: nowhere]
    #[arg(long, env = "SALLYPORT_METRICS", value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,

    /// How log lines look on standard error
    #[arg(
        long,
        env = "SALLYPORT_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or directives like sallyport_controlplane=debug,h2=warn
    #[arg(long, env = "RUST_LOG", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// What becomes of an edit when a node does not acknowledge what the edit takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnUnreachable {
    /// It waits: the other nodes enforce what both versions allow.
    Wait,
    /// It goes on once the node's lease has run out: a node that enforces has closed itself by then. A node without `--lease` is waited for.
    Fence,
    /// It goes on without the node: there is no promise for flows that touch it.
    Skip,
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

fn established() -> impl TypedValueParser<Value = Established> {
    PossibleValuesParser::new(Established::NAMES)
        .map(|name| Established::named(&name).expect("one of the names"))
}

impl Config {
    /// The defaults, with data in a directory and a free port on the loopback address: for tests.
    pub fn local(data_dir: impl Into<PathBuf>) -> Config {
        Config {
            listen: Address::Tcp(([127, 0, 0, 1], 0).into()),
            data_dir: data_dir.into(),
            history: 10_000,
            drain: Settings::default().drain,
            unreachable: OnUnreachable::Wait,
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
            unreachable: match self.unreachable {
                OnUnreachable::Wait => Unreachable::Wait,
                OnUnreachable::Fence => Unreachable::Fence,
                OnUnreachable::Skip => Unreachable::Skip,
            },
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
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Config::command().debug_assert();
        let help = Config::command().render_long_help().to_string();
        for word in [
            "--listen",
            "--data-dir",
            "--established",
            "sallyport.dev/established",
            "--log-format",
            "--log-level",
            "TLS is not supported yet",
            "Examples:",
        ] {
            assert!(help.contains(word), "{word} in:\n{help}");
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
