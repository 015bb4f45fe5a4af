//! The control plane's process: command line, log, signals, and the commands that need no server. Everything else is
//! the library's.

mod certificates;
mod offline;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use mimalloc::MiMalloc;
use sallyport_controlplane::{
    config::{Arguments, Command, Config, LogFormat},
    server,
};
use sallyport_process::{descriptors, log};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

/// A commit that concerns thousands of nodes, and their streams, are many small allocations on several threads, of which
/// one frees what another took: with the C library's allocator one delta to all takes a sixth longer.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let Arguments { command, config } = Arguments::parse();
    let outcome = match command {
        Some(Command::Journal(command)) => offline::run(&command),
        Some(Command::Init(arguments)) => certificates::init(&arguments),
        Some(Command::Issue(command)) => certificates::issue(&command),
        None => run(config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A log that cannot be written is no reason to panic.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let _log = start_log(&config)?;
    descriptors::raise();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config))
}

fn start_log(config: &Config) -> anyhow::Result<log::Guard> {
    let filter = EnvFilter::try_new(&config.log_level)
        .with_context(|| format!("--log-level {} is not a log filter", config.log_level))?;
    let format = match config.log_format {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    };
    Ok(log::start(filter, format, true))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything else, so that a signal during the start is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let mut handle = tokio::select! {
        handle = server::start(config) => handle?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        error = handle.failed() => Err(error.into()),
        _ = terminate.recv() => stop(handle, "SIGTERM").await,
        _ = interrupt.recv() => stop(handle, "SIGINT").await,
    }
}

async fn stop(handle: server::Handle, signal: &str) -> anyhow::Result<()> {
    info!(signal, "received a signal to stop");
    handle
        .stop()
        .await
        .context("cannot stop the control plane cleanly")
}
