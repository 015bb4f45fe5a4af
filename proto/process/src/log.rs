//! The log on standard error. A thread of its own writes it from a bounded queue, so that no thread that enforces, serves
//! or acknowledges ever waits for a disk, a pipe or a terminal. A line that cannot be written is lost and counted.
//!
//! A line is one event, whatever text of others is in it: control characters are escaped, long values are cut, and a
//! place in the code that logs too often is left out and counted.

mod annotate;
mod clean;
mod limit;

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use tracing::{Metadata, error};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use self::{clean::Fields, limit::Limit};

/// Lines that wait to be written. A line has some 16 KiB at most.
const QUEUE: usize = 4096;

/// The time that the end of the program waits for the last lines. `WorkerGuard` itself waits for up to 1.1 s.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Lines that standard error did not take.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);
/// Lines that the queue had no room for.
static OVERFLOWED: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines of places that log too often.
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Writes the last lines when it is dropped, for a bounded time.
#[derive(Debug)]
pub struct Guard(Option<WorkerGuard>);

/// Starts the log of this process, panics included.
pub fn start(filter: EnvFilter, format: Format, target: bool) -> Guard {
    let stderr = Unfailing {
        inner: io::stderr(),
        format,
        said: 0,
        torn: false,
    };
    let (queue, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE)
        .thread_name("log")
        .finish(stderr);
    OVERFLOWED.get_or_init(|| queue.error_counter());
    let limit = Limit::default();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(target)
        .with_ansi(io::stderr().is_terminal())
        // They would be told on standard error, at once, with a panic if it takes nothing.
        .log_internal_errors(false)
        .with_writer(Lines {
            queue,
            format,
            limit,
        });
    match format {
        Format::Text => log.fmt_fields(Fields).init(),
        Format::Json => log.json().with_target(true).init(),
    }
    std::panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = info.location().map(ToString::to_string);
        error!(
            thread = thread.name().unwrap_or_default(),
            place = place.unwrap_or_default(),
            "a thread panicked: {}",
            text.unwrap_or("(no text)")
        );
    }));
    Guard(Some(guard))
}

/// Lines of the log that were lost since the start, because nobody took them in time.
pub fn lost() -> u64 {
    let overflowed = OVERFLOWED.get().map_or(0, ErrorCounter::dropped_lines);
    UNWRITTEN.load(Relaxed) + overflowed as u64
}

/// Lines of the log that were left out since the start, because too many came from one place in the code.
pub fn left_out() -> u64 {
    LEFT_OUT.load(Relaxed)
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Where the queue is full `WorkerGuard` prints to standard output, which may block for ever.
        let (done, ended) = mpsc::channel::<()>();
        let guard = self.0.take();
        let flushing = thread::Builder::new().spawn(move || {
            drop(guard);
            drop(done);
        });
        if flushing.is_ok() {
            let _ = ended.recv_timeout(PATIENCE);
        }
    }
}

/// Standard error as the writer thread sees it: every write succeeds, or is counted.
#[derive(Debug)]
struct Unfailing<W> {
    inner: W,
    format: Format,
    /// The lost lines that the log told of.
    said: u64,
    /// The last line may have been written in part.
    torn: bool,
}

impl<W: Write> Unfailing<W> {
    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.inner.write_all(b"\n")?;
            self.torn = false;
        }
        let lost = lost();
        if lost > self.said {
            let note = annotate::annotate(line, self.format, "lost", lost - self.said);
            self.inner.write_all(&note)?;
            self.said = lost;
        } else {
            self.inner.write_all(line)?;
        }
        self.inner.flush()
    }
}

impl<W: Write> Write for Unfailing<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.try_write(line).is_err() {
            UNWRITTEN.fetch_add(1, Relaxed);
            self.torn = true;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where events are written to: cleaned, counted, queued. Never blocks.
#[derive(Debug)]
struct Lines {
    queue: NonBlocking,
    format: Format,
    limit: Limit,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            queue: Some(self.queue.clone()),
            format: self.format,
            left_out: 0,
        }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        match self.limit.take(event) {
            Some(left_out) => Line {
                left_out,
                ..self.make_writer()
            },
            None => {
                LEFT_OUT.fetch_add(1, Relaxed);
                Line {
                    queue: None,
                    format: self.format,
                    left_out: 0,
                }
            }
        }
    }
}

/// Takes one event, in one write.
#[derive(Debug)]
struct Line {
    /// None: it is left out.
    queue: Option<NonBlocking>,
    format: Format,
    /// Events of the same place that were left out before this one.
    left_out: u64,
}

impl Write for Line {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        if let Some(queue) = &mut self.queue {
            let mut line = match self.format {
                Format::Text => event.to_vec(),
                Format::Json => clean::json(event),
            };
            let left_out = std::mem::take(&mut self.left_out);
            if left_out > 0 {
                line = annotate::annotate(&line, self.format, "left_out", left_out);
            }
            queue.write_all(&line)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
