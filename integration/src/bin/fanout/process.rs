//! The processes that are measured: how they are started, told things and ended.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sallyport_testbed::usage::Usage;

use crate::simulate::{self, Answer};

/// The time that the control plane may take to be up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The control plane.
pub(crate) struct ControlPlane {
    child: Child,
    pub(crate) url: String,
}

impl ControlPlane {
    /// Starts it with data and log in a directory, and waits until it serves.
    pub(crate) fn start(program: &Path, directory: &Path) -> Result<ControlPlane> {
        let log = directory.join("controlplane.log");
        let child = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--history", "1000", "--data-dir"])
            .arg(directory.join("data"))
            // Not a line for each node.
            .args(["--log-level", "warn,sallyport_controlplane::server=info"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut started = ControlPlane {
            child,
            url: String::new(),
        };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let text = fs::read_to_string(&log)?;
            if let Some((_, rest)) = text.split_once("listening on ") {
                let address = rest.split(',').next().context("an address")?;
                started.url = format!("http://{address}");
                return Ok(started);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "the control plane does not listen: {}",
            fs::read_to_string(&log)?
        )
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage(self.child.id())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process of simulated enforcers.
pub(crate) struct Simulated {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Simulated {
    /// Starts this program again for some of the nodes.
    pub(crate) fn start(server: &str, first: usize, count: usize) -> Result<Simulated> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["simulate", server, &first.to_string(), &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().context("a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Simulated {
            child,
            commands,
            answers,
        })
    }

    /// Executes a command.
    pub(crate) fn execute(&mut self, command: simulate::Command) -> Result<Answer> {
        writeln!(self.commands, "{}", serde_json::to_string(&command)?)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line)
            .with_context(|| format!("{command:?} was answered with {line:?}"))
    }

    /// The counts of the process.
    pub(crate) fn counts(&mut self) -> Result<crate::board::Counts> {
        match self.execute(simulate::Command::Count)? {
            Answer::Counts(counts) => Ok(counts),
            Answer::Done => bail!("counts were asked for"),
        }
    }

    /// Stops it in its tracks, or lets it go on.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage(self.child.id())
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
