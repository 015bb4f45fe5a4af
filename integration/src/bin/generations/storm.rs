//! Owns hold-ups: one processor is kept in a hard interrupt for a fraction of a millisecond, when it is asked for, as a
//! hypervisor does that gives the processor to somebody else. It knows nothing of packets.
//!
//! The interrupt is that of a timer on which thousands of watchers of one epoll wait: the kernel wakes them one by one.
//! A timer fires on the processor that armed it, so a thread is bound there to arm it.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    time::TimeSpec,
};

/// From when a hold-up is asked for until it begins: the thread that arms the timer must be asleep again by then.
const LEAD: u64 = 120_000;

/// Watchers that are timed to learn what one costs.
const SAMPLE: usize = 2_000;

/// Open files that the rest of the program needs.
const OTHER_FILES: usize = 512;

/// Holds a processor up when asked.
pub(crate) struct Storm {
    ask: Sender<u64>,
    begins: Receiver<io::Result<u64>>,
    held: Duration,
}

impl Storm {
    /// Prepares hold-ups of a processor, of about this length.
    pub(crate) fn start(processor: usize, hold: Duration) -> Result<Storm> {
        let (ask, asked) = mpsc::channel();
        let (tell, begins) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        thread::Builder::new().name("storm".into()).spawn(move || {
            real_time(2);
            let timer = bind(processor).and_then(|()| Timer::holding(hold));
            let timer = match timer {
                Ok((timer, held)) => {
                    let _ = ready.send(Ok(held));
                    timer
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            for lead in asked {
                let at = now() + LEAD + lead;
                if tell.send(timer.arm(at).map(|()| at)).is_err() {
                    break;
                }
            }
        })?;
        let held = is_ready.recv().context("the storm's thread died")??;
        Ok(Storm { ask, begins, held })
    }

    /// The time that a hold-up lasts, as measured at the beginning.
    pub(crate) fn held(&self) -> Duration {
        self.held
    }

    /// Asks for a hold-up, and returns when it begins, by [`now`]: not before that many nanoseconds.
    pub(crate) fn strike(&self, lead: u64) -> Result<u64> {
        self.ask.send(lead).context("the storm's thread died")?;
        let begins = self.begins.recv().context("the storm's thread died")?;
        Ok(begins?)
    }
}

/// A timer and who waits for it.
struct Timer {
    timer: OwnedFd,
    epoll: OwnedFd,
    watchers: Vec<OwnedFd>,
}

impl Timer {
    /// A timer with so many watchers that they take about this long. Tells how long they do take.
    fn holding(hold: Duration) -> Result<(Timer, Duration)> {
        let mut timer = Timer::new()?;
        timer.watch(SAMPLE)?;
        let each = timer.measure()? / SAMPLE as u64;
        let wanted = hold.as_nanos() as u64 / each.max(1);
        timer.watch((wanted as usize).saturating_sub(SAMPLE))?;
        timer.watchers.truncate(wanted as usize);
        let held = timer.measure()?;
        Ok((timer, Duration::from_nanos(held)))
    }

    fn new() -> Result<Timer> {
        // SAFETY: these take numbers only.
        let (timer, epoll) = unsafe {
            (
                libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC),
                libc::epoll_create1(libc::EPOLL_CLOEXEC),
            )
        };
        Ok(Timer {
            timer: owned(timer).context("timerfd_create")?,
            epoll: owned(epoll).context("epoll_create1")?,
            watchers: Vec::new(),
        })
    }

    /// Adds watchers: copies of the descriptor, since an epoll takes each only once.
    fn watch(&mut self, more: usize) -> Result<()> {
        allow_files(self.watchers.len() + more + OTHER_FILES)?;
        for _ in 0..more {
            let copy = self.timer.try_clone()?;
            let mut event = libc::epoll_event {
                events: libc::EPOLLIN as u32,
                u64: 0,
            };
            // SAFETY: the event outlives the call; the descriptors are open.
            let status = unsafe {
                let (epoll, copy) = (self.epoll.as_raw_fd(), copy.as_raw_fd());
                libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, copy, &raw mut event)
            };
            check(status).context("epoll_ctl")?;
            self.watchers.push(copy);
        }
        Ok(())
    }

    /// Has it fire on this processor, at a time by [`now`].
    fn arm(&self, at: u64) -> io::Result<()> {
        let when = libc::itimerspec {
            it_interval: *TimeSpec::from_duration(Duration::ZERO).as_ref(),
            it_value: *TimeSpec::from_duration(Duration::from_nanos(at)).as_ref(),
        };
        // SAFETY: the value outlives the call; nothing is wanted back.
        let status = unsafe {
            let timer = self.timer.as_raw_fd();
            libc::timerfd_settime(
                timer,
                libc::TFD_TIMER_ABSTIME,
                &raw const when,
                std::ptr::null_mut(),
            )
        };
        check(status)
    }

    /// For how long this processor is held up, in nanoseconds: the median of some times. Others' interrupts only add.
    fn measure(&self) -> Result<u64> {
        let mut gaps = Vec::new();
        for _ in 0..15 {
            let at = now() + 50_000;
            self.arm(at)?;
            let (mut last, mut widest) = (now(), 0);
            while last < at + 2_000_000 {
                let time = now();
                widest = widest.max(time - last);
                last = time;
            }
            gaps.push(widest);
        }
        gaps.sort_unstable();
        Ok(gaps[gaps.len() / 2])
    }
}

/// Nanoseconds of the clock that the timer goes by.
pub(crate) fn now() -> u64 {
    let mut time = TimeSpec::from_duration(Duration::ZERO);
    // SAFETY: the structure outlives the call; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, std::ptr::from_mut(time.as_mut())) };
    Duration::from(time).as_nanos() as u64
}

/// Returns at a time by [`now`], without sleeping: on the microsecond.
pub(crate) fn wait_until(time: u64) {
    while now() < time {
        std::hint::spin_loop();
    }
}

/// Binds the calling thread, and those that it starts, to a processor.
pub(crate) fn bind(processor: usize) -> Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(processor)?;
    let this = nix::unistd::Pid::from_raw(0);
    nix::sched::sched_setaffinity(this, &set)
        .with_context(|| format!("this machine has no processor {processor}"))
}

/// Prefers the calling thread, and those that it starts, to the machine's other work. Without that right an edit is
/// seldom where it should be when a hold-up ends, but all counts are as good.
pub(crate) fn prefer() {
    real_time(1);
}

/// Lets the calling thread run at once when it is ready, at a priority of `SCHED_FIFO`.
fn real_time(priority: i32) {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the parameters outlive the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

/// Raises the limit of open files, if it is lower.
fn allow_files(number: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = number as u64;
    if soft >= wanted {
        return Ok(());
    }
    if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_err() {
        bail!("the storm needs {wanted} open files, and {hard} are allowed: give a shorter --hold");
    }
    Ok(())
}

fn owned(descriptor: RawFd) -> io::Result<OwnedFd> {
    check(descriptor)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn check(status: i32) -> io::Result<()> {
    match status {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The processors in use: one for the edits, one for the sender.
pub(crate) fn processors() -> Result<(usize, usize)> {
    let there = thread::available_parallelism()?.get();
    ensure!(there >= 2, "this needs 2 processors, and there is 1");
    Ok((0, 1))
}
