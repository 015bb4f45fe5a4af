//! The control plane's process: command line, log, signals. Everything else is the library's.

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use sallyport_controlplane::{
    config::{Config, LogFormat},
    server,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    limit_arenas();
    let config = Config::parse();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has the C library keep one heap for each processor, instead of one for each of its threads: what a thread that read a
/// large transaction gave back is there for the nodes' streams then, which cost a quarter less memory so.
fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    if let Ok(processors) = std::thread::available_parallelism()
        && let Ok(arenas) = i32::try_from(processors.get())
    {
        // SAFETY: it sets a number, and there is no other thread yet. Refused, all is as it was.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config))
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_level)
        .with_context(|| format!("--log-level {}", config.log_level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
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
    info!(signal, "asked to stop");
    handle.stop().await.context("stopping")
}
