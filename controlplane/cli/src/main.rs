//! The `sallyport` command: takes the arguments, runs one command, turns its outcome into an exit code. Does no work.

mod args;
mod client;
mod columns;
mod commit;
mod enforced;
mod failure;
mod get;
mod history;
mod input;
mod journal;
mod kind;
mod label;
mod node;
mod output;
mod rollback;
mod status;
mod summary;
mod watch;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _, error::ErrorKind};

use crate::{
    args::{Cli, Command},
    failure::{Exit, Failure},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::MissingSubcommand => {
            output::remark(Cli::command().render_help().to_string().trim_end());
            return ExitCode::from(Exit::Usage as u8);
        }
        Err(error) if error.use_stderr() => error.exit(),
        Err(help) => return exit_of(print(&help)),
    };
    exit_of(run(&cli).await)
}

/// Help that was asked for is the output. (clap's own `exit` takes a full disk for success.)
fn print(help: &clap::Error) -> Result<(), Failure> {
    help.print()?;
    Ok(io::stdout().flush()?)
}

fn exit_of(outcome: Result<(), Failure>) -> ExitCode {
    let exit = match outcome {
        Ok(()) => Exit::Ok,
        Err(failure) => {
            let exit = failure.exit();
            if exit != Exit::Ok {
                complain(&failure);
            }
            exit
        }
    };
    ExitCode::from(exit as u8)
}

async fn run(cli: &Cli) -> Result<(), Failure> {
    let (server, out) = (&cli.server, &mut io::BufWriter::new(io::stdout()));
    let outcome = match &cli.command {
        Command::Apply(args) => commit::apply(args, server, out).await,
        Command::Get(args) => get::run(args, server, out).await,
        Command::Delete(args) => commit::delete(args, server, out).await,
        Command::Label(args) => label::run(args, server, out).await,
        Command::Node(args) => node::run(args, server, out).await,
        Command::Status(args) => status::run(args, server, out).await,
        Command::Wait(args) => enforced::run(args, server, out).await,
        Command::History(args) => history::run(args, server, out).await,
        Command::Rollback(args) => rollback::run(args, server, out).await,
        Command::Journal(args) => journal::run(args, server, out).await,
        Command::Version => Ok(writeln!(out, "sallyport {}", env!("CARGO_PKG_VERSION"))?),
        Command::Completion(args) => {
            // clap_complete panics when it cannot write, so it writes to memory.
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "sallyport", &mut script);
            Ok(out.write_all(&script)?)
        }
    };
    outcome.and(out.flush().map_err(Failure::from))
}

fn complain(failure: &Failure) {
    let mut prefix = output::error_prefix();
    for line in failure.lines() {
        output::remark(&format!("{prefix} {line}"));
        prefix = " ".repeat("error:".len());
    }
}
