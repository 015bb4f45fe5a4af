//! The command line: every command, option and line of help. Never does anything.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, Styles, TypedValueParser},
};
use clap_complete::Shell;
use sallyport_process::duration;
use sallyport_proto::{UnreachablePolicy, wire::Unreachable};

use crate::{
    client,
    failure::Exit,
    kind::{self, Target},
    label::LabelEdit,
};

/// Network policy for Linux nodes: apply objects, show stored objects, and show the policy in force.
#[derive(Debug, Parser)]
#[command(
    name = "sallyport",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = headed(&Exit::help())
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) server: Server,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The address of the control plane, and the patience with its answers.
#[derive(Clone, Debug, Args)]
pub(crate) struct Server {
    /// The control plane: https://HOST:PORT with --tls, http://HOST:PORT or unix:///PATH without; HOST:PORT for either
    #[arg(
        id = "server",
        long = "server",
        global = true,
        env = "SALLYPORT_SERVER",
        hide_env_values = true,
        value_name = "URL",
        default_value = client::DEFAULT_SERVER,
        value_parser = client::parse_server,
        help_heading = "Global options",
        display_order = 900
    )]
    pub(crate) url: String,
    /// The directory with ca.crt, tls.crt and tls.key of an operator: connect by TLS, only to a control plane of the
    /// certificate's cluster
    #[arg(
        long,
        global = true,
        env = "SALLYPORT_TLS",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Global options",
        display_order = 901
    )]
    pub(crate) tls: Option<PathBuf>,
    /// Give up when an answer takes longer than this; a wait for nodes has its own --timeout
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = client::parse_request_timeout,
        help_heading = "Global options",
        display_order = 902
    )]
    pub(crate) request_timeout: Duration,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or replace objects from files, all in one transaction
    #[command(after_help = headed(APPLY_HELP))]
    Apply(Apply),
    /// Show objects
    #[command(after_help = headed(GET_HELP))]
    Get(Get),
    /// Delete objects, by name or by file, all in one transaction
    #[command(after_help = headed(DELETE_HELP))]
    Delete(Delete),
    /// Change the labels of one object
    #[command(after_help = headed(LABEL_HELP))]
    Label(Label),
    /// Show the control plane's revision and the state of every node
    #[command(after_help = headed(STATUS_HELP))]
    Status(Status),
    /// Choose the enforcer of a node whose data directory was copied
    #[command(subcommand, after_help = headed(NODE_HELP))]
    Node(Node),
    /// Wait until every node enforces a revision
    #[command(after_help = headed(WAIT_HELP))]
    Wait(Wait),
    /// Show the recent transactions with their times and changes
    #[command(after_help = headed(HISTORY_HELP))]
    History(History),
    /// Return objects to their state at a revision, in a new transaction
    #[command(after_help = headed(ROLLBACK_HELP))]
    Rollback(Rollback),
    /// Back up the state of the control plane
    #[command(subcommand, after_help = headed(JOURNAL_HELP))]
    Journal(Journal),
    /// Print the version of this program
    Version,
    /// Print a completion script for a shell
    #[command(after_help = headed(COMPLETION_HELP))]
    Completion(Completion),
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) input: Input,
    #[command(flatten)]
    pub(crate) commit: Commit,
}

/// The files of a transaction.
#[derive(Debug, Args)]
pub(crate) struct Input {
    /// A file, a directory (its .yaml, .yml and .json files), or - for standard input; repeatable
    #[arg(short, long, required = true, value_name = "FILE|DIR|-")]
    pub(crate) filename: Vec<PathBuf>,
    /// Read the directories of -f with everything below them
    #[arg(short = 'R', long, requires = "filename")]
    pub(crate) recursive: bool,
    /// Leave out objects of kinds that are not Sallyport's (Service, Deployment, ...), and name them
    #[arg(long)]
    pub(crate) ignore_unknown_kinds: bool,
}

/// The options of a commit, and of the wait for it.
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Check the whole change, and commit nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Refuse, with exit code 5, unless N is the current revision
    #[arg(long, value_name = "N")]
    pub(crate) expected_revision: Option<u64>,
    /// Return only when every node enforces the change
    #[arg(long)]
    pub(crate) wait: bool,
    /// Give up waiting after this long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        requires = "wait",
        value_parser = duration::parse
    )]
    pub(crate) timeout: Duration,
    /// How the change proceeds when a node does not acknowledge its revokes [default: --unreachable of the control
    /// plane]
    #[arg(long, value_name = "HOW", value_parser = unreachable())]
    pub(crate) on_unreachable: Option<UnreachablePolicy>,
}

fn unreachable() -> impl TypedValueParser<Value = UnreachablePolicy> {
    let value = |policy: UnreachablePolicy| PossibleValue::new(policy.as_str()).help(policy.help());
    PossibleValuesParser::new(UnreachablePolicy::ALL.map(value))
        .map(|text| text.parse().expect("one of the possible values"))
}

impl Commit {
    /// The policy for nodes that cannot be reached, as a number on the wire.
    pub(crate) fn unreachable(&self) -> i32 {
        let wire = self
            .on_unreachable
            .map_or(Unreachable::Unspecified, Unreachable::from);
        wire.into()
    }
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    #[arg(help = format!("{}; several with commas; all; or KIND/NAME", kind::HELP))]
    pub(crate) kind: Target,
    /// Only the objects of these names
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// The objects of every namespace
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "names"])]
    pub(crate) all_namespaces: bool,
    /// The form of the output
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true,
        help = "The form of the output: table, wide, json, yaml or name"
    )]
    pub(crate) output: Form,
    /// Keep showing every change, until interrupted
    #[arg(short, long, conflicts_with = "names")]
    pub(crate) watch: bool,
}

/// The namespace.
#[derive(Debug, Args)]
pub(crate) struct Scope {
    /// The namespace [default: default]
    #[arg(short, long, value_name = "NS")]
    pub(crate) namespace: Option<String>,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[arg(required_unless_present = "filename", conflicts_with = "filename",
          help = format!("{}; or KIND/NAME", kind::HELP))]
    pub(crate) kind: Option<Target>,
    /// The objects' names
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Delete the objects in a file, a directory or standard input (-); repeatable
    #[arg(short, long, value_name = "FILE|DIR|-", conflicts_with = "namespace")]
    pub(crate) filename: Vec<PathBuf>,
    /// Read the directories of -f with everything below them
    #[arg(short = 'R', long, requires = "filename")]
    pub(crate) recursive: bool,
    /// Leave out objects of kinds that are not Sallyport's (Service, Deployment, ...), and name them
    #[arg(long, requires = "filename")]
    pub(crate) ignore_unknown_kinds: bool,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    pub(crate) commit: Commit,
}

/// Arguments of `label`.
#[derive(Debug, Args)]
pub(crate) struct Label {
    #[arg(help = format!("{}; or KIND/NAME", kind::HELP))]
    pub(crate) kind: Target,
    /// The object's name (not after KIND/NAME), then KEY=VALUE to set and KEY- to remove
    #[arg(required = true, value_name = "NAME> <KEY=VALUE|KEY-")]
    pub(crate) words: Vec<String>,
    /// Change labels that already have another value
    #[arg(long)]
    pub(crate) overwrite: bool,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    pub(crate) commit: Commit,
}

impl Label {
    /// The names and the edits among the words.
    pub(crate) fn split(&self) -> Result<(Vec<String>, Vec<LabelEdit>), String> {
        let first = self
            .words
            .iter()
            .position(|word| LabelEdit::looks_like(word));
        let (names, edits) = self.words.split_at(first.unwrap_or(self.words.len()));
        let edits: Vec<_> = edits
            .iter()
            .map(|word| word.parse())
            .collect::<Result<_, _>>()?;
        match edits.is_empty() {
            true => Err("no label given: write KEY=VALUE or KEY-".to_owned()),
            false => Ok((names.to_vec(), edits)),
        }
    }
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The form of the output
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true,
        help = "The form of the output: table, wide, json, yaml or name"
    )]
    pub(crate) output: Form,
}

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The revision to wait for [default: the current one]
    #[arg(long, value_name = "N")]
    pub(crate) revision: Option<u64>,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub(crate) timeout: Duration,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Show at most N transactions, the latest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Show only transactions before this revision
    #[arg(long, value_name = "REVISION")]
    pub(crate) before: Option<u64>,
    /// The form of the output
    #[arg(
        short,
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        hide_possible_values = true,
        help = "The form of the output: table, wide (every object), json, yaml or name (revisions)"
    )]
    pub(crate) output: Form,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The revision whose state of the objects is restored
    #[arg(value_name = "REVISION")]
    pub(crate) revision: u64,
    #[arg(
        long,
        value_name = "KINDS",
        help = "Only objects of these kinds, such as netpol or ns,netpol"
    )]
    pub(crate) only: Option<Target>,
    #[command(flatten)]
    pub(crate) commit: Commit,
}

/// Commands of `node`.
#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Choose one of several enforcers with one instance id; `sallyport status` lists the enforcers
    #[command(after_help = headed(BELIEVE_HELP))]
    Believe(Believe),
}

/// Arguments of `node believe`.
#[derive(Debug, Args)]
pub(crate) struct Believe {
    /// The node
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// The process of the chosen enforcer, as `sallyport status` shows it
    #[arg(long, value_name = "PROCESS", value_parser = process)]
    pub(crate) process: u64,
}

/// A process of an enforcer: 16 hexadecimal digits.
fn process(text: &str) -> Result<u64, String> {
    let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex);
    number.ok_or_else(|| {
        "a process is 16 hexadecimal digits, as `sallyport status` shows it".to_owned()
    })
}

/// Commands of `journal`.
#[derive(Debug, Subcommand)]
pub(crate) enum Journal {
    /// Write a backup of the current state into a file
    #[command(after_help = headed(BACKUP_HELP))]
    Backup(Backup),
}

/// Arguments of `journal backup`.
#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// The file; an existing file is replaced once the backup is complete
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Arguments of `completion`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// The form of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Aligned columns.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Only KIND/NAMESPACE/NAME, one a line.
    Name,
}

/// The text with its own headings styled like clap's. (clap drops the style where there is no terminal.)
fn headed(text: &str) -> String {
    let style = *Styles::default().get_header();
    ["Examples:", "Exit codes:"]
        .iter()
        .fold(text.to_owned(), |text, heading| {
            text.replace(heading, &format!("{style}{heading}{style:#}"))
        })
}

const APPLY_HELP: &str = "\
All objects of all -f arguments are one transaction: it is accepted whole or refused whole, and
becomes one revision. The files are YAML (also of several documents) or JSON.

Examples:
  sallyport apply -f demo-policy.yaml
  sallyport apply -f cluster/ -R --dry-run          Check whether the control plane accepts the files
  sallyport apply -f policy.yaml --wait             Return when every node enforces it
  sallyport get netpol -A -o yaml > backup.yaml && sallyport apply -f backup.yaml
  kubectl get ns,no,po,netpol -A -o yaml | sallyport apply -f -
  sallyport apply -f chart.yaml --ignore-unknown-kinds    Its policies; its Services are named and left out
  sallyport apply -f - --expected-revision 41 < edited.yaml";

const GET_HELP: &str = "\
`sallyport apply -f -` reads the output of -o yaml and -o json.

Examples:
  sallyport get netpol                      The policies of namespace default
  sallyport get netpol -A -o wide           The policies of all namespaces, with a summary of their rules
  sallyport get netpol demo-policy -n prod -o yaml
  sallyport get pods,workloads -n prod
  sallyport get all -A -o yaml > cluster.yaml
  sallyport get netpol -A --watch           Then every change as it is committed";

const DELETE_HELP: &str = "\
Deleting a namespace deletes all objects in it.

Examples:
  sallyport delete netpol demo-policy other-policy -n prod
  sallyport delete netpol/prod/demo-policy
  sallyport delete -f demo-policy.yaml --wait";

const LABEL_HELP: &str = "\
KEY=VALUE sets a label, KEY- removes one. A label that already has another value is changed only
with --overwrite.

Examples:
  sallyport label pod web role=frontend
  sallyport label ns prod team=payments stage-        Set one, remove one
  sallyport label wl db tier=2 -n prod --overwrite --wait";

const NODE_HELP: &str = "\
Examples:
  sallyport node believe web-1 --process 9f86d081884c7d65";

const BELIEVE_HELP: &str = "\
Two enforcers with one instance id run on copies of one data directory. The control plane gives
neither a session, and both keep enforcing their last policy. After the choice the other enforcers
stay refused until their machines have an id of their own: `sallyport-enforcer new-identity`.

Examples:
  sallyport status                          List the enforcers
  sallyport node believe web-1 --process 9f86d081884c7d65";

const STATUS_HELP: &str = "\
A node is slow while its enforcer answers and an update takes seconds. A node is silent while its
enforcer does not answer. A node is cloned while several enforcers run under one instance id.

LAG counts the revisions from the first that a node does not enforce yet to the current one. 0 means
that the node enforces all revisions that concern it, and - that the lag is unknown.
Of more than 20 nodes the table shows only nodes that do not enforce, that lag, or that have a
condition.

Examples:
  sallyport status
  sallyport status -o wide                  All nodes, with the first revision that is not enforced
  sallyport status -o json | jq '.nodes[] | select(.state != \"enforcing\")'";

const WAIT_HELP: &str = "\
Exits with 4 after the timeout, and names the nodes that lag and the reasons.

Examples:
  sallyport wait                            For the current revision
  sallyport wait --revision 42 --timeout 5s || sallyport status";

const HISTORY_HELP: &str = "\
The option --history of the control plane limits the number of transactions.

Examples:
  sallyport history
  sallyport history -n 5 -o wide            The last five, with every object
  sallyport history -o json | jq '.transactions[] | select(.changes[].object | startswith(\"networkpolicy/\"))'";

const ROLLBACK_HELP: &str = "\
A rollback is a transaction like any other: it becomes a revision of its own, is accepted whole or
refused whole, and can be rolled back itself. The history must hold all transactions after REVISION.

Examples:
  sallyport rollback 41 --dry-run                Show the changes without a commit
  sallyport rollback 41 --only netpol --wait     Policies alone; return when every node enforces them";

const JOURNAL_HELP: &str = "\
The commands verify, dump and restore are in `sallyport-controlplane journal`, on the machine with
the journal. So is the backup of a control plane that is stopped.

Examples:
  sallyport journal backup /backup/sallyport-$(date +%F)";

const BACKUP_HELP: &str = "\
The control plane keeps serving meanwhile. The backup holds the state at one revision, and no
history. For a stopped control plane use `sallyport-controlplane journal backup`.

Examples:
  sallyport journal backup /backup/sallyport";

const COMPLETION_HELP: &str = "\
Examples:
  source <(sallyport completion bash)
  sallyport completion zsh > \"${fpath[1]}/_sallyport\"
  sallyport completion fish > ~/.config/fish/completions/sallyport.fish";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;

    fn refused(line: &str) -> ErrorKind {
        let words = line.split(' ');
        Cli::try_parse_from(words).expect_err(line).kind()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for (line, kind) in [
            ("sallyport apply", ErrorKind::MissingRequiredArgument),
            (
                "sallyport apply -f x --dry-run --wait",
                ErrorKind::ArgumentConflict,
            ),
            (
                "sallyport apply -f x --timeout 3s",
                ErrorKind::MissingRequiredArgument,
            ),
            ("sallyport delete", ErrorKind::MissingRequiredArgument),
            (
                "sallyport delete netpol x -f y",
                ErrorKind::ArgumentConflict,
            ),
            ("sallyport get netpol x -A", ErrorKind::ArgumentConflict),
            ("sallyport get netpol -A -n x", ErrorKind::ArgumentConflict),
            ("sallyport get deployments", ErrorKind::ValueValidation),
            ("sallyport wait --timeout 30", ErrorKind::ValueValidation),
            (
                "sallyport --server ftp://x status",
                ErrorKind::ValueValidation,
            ),
            (
                "sallyport status --request-timeout 0s",
                ErrorKind::ValueValidation,
            ),
        ] {
            assert_eq!(refused(line), kind, "{line}");
        }
    }

    #[test]
    fn label_words_are_names_first_and_edits_after() {
        let split = |line: &str| {
            let words = line.split(' ');
            match Cli::try_parse_from(words).expect(line).command {
                Command::Label(label) => label.split().map(|(names, edits)| (names, edits.len())),
                other => panic!("{other:?}"),
            }
        };
        let web = vec!["web".to_owned()];
        assert_eq!(split("sallyport label pod web a=b c-"), Ok((web, 2)));
        assert_eq!(split("sallyport label pod/web a=b"), Ok((vec![], 1)));
        assert!(split("sallyport label pod web").is_err());
        assert!(split("sallyport label pod a=b web").is_err());
    }
}
