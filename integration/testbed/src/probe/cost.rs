//! Owns what a packet costs in CPU time: one thread on one CPU sends forged datagrams, and the kernel carries each to
//! the other end before the call returns. Never counts what arrives, and never changes what the packets meet.
//!
//! A veth hands a packet to its CPU's queue, and the queue is served when the sender leaves its device: in the sender's
//! thread. So the thread's CPU time has all of it, softirqs too. It is read for each batch. Other work of the machine
//! (interrupts, use of caches, time that the host takes) is in some batches more than in others, and only adds: so the
//! report has the first quartile of the batches.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::Socket;

use super::datagram::{SOURCE_PORT, Template};
use super::flood::{Class, forging_socket};
use crate::Host;

/// The source port of every packet of a [`Sender`] that has one port. A class to this port has answers that look like
/// it.
pub const FLOW_PORT: u16 = SOURCE_PORT;

/// Packets between two looks at the clock, and between two at how long it has lasted.
const BATCH: usize = 64;

/// Batches that are sent before the clock is looked at, and batches that are measured however long it takes.
const WARM_UP: usize = 2;
const LEAST: usize = 2;

/// Sends the datagrams of a class.
pub struct Sender {
    batch: Template,
    socket: Socket,
}

/// The cost of packets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// Packets that the sender's kernel took, those before the clock was looked at among them.
    pub sent: u64,
    /// The mean CPU time of a packet in each batch, in nanoseconds.
    batches: Vec<f64>,
}

impl Cost {
    /// Adds what was measured later of the same.
    pub fn add(&mut self, later: Cost) {
        self.sent += later.sent;
        self.batches.extend(later.batches);
    }

    /// The CPU time of a packet in nanoseconds: the first quartile of the batches. `None` if the kernel took none
    /// whole.
    pub fn nanoseconds(&self) -> Option<f64> {
        let mut sorted = self.batches.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 4).copied()
    }
}

impl Sender {
    /// Makes a sender of batches from a host to an address. Every packet is of another flow than the one before; there
    /// are as many flows as the class's addresses times these source ports, used in turn.
    pub fn new(from: &Host, to: IpAddr, class: &Class, ports: u16) -> io::Result<Self> {
        Ok(Self {
            batch: Template::new(class, to, BATCH).with_ports(ports),
            socket: from.netns().run(|| forging_socket(to))?,
        })
    }

    /// Sends one batch. Returns how many packets the kernel took.
    pub fn send(&mut self) -> io::Result<u64> {
        self.batch.advance();
        self.batch.send(&self.socket)
    }

    /// Sends on one CPU so many packets, or fewer if that takes longer than the limit, and tells what they cost.
    pub fn measure(&mut self, cpu: usize, packets: u64, limit: Duration) -> io::Result<Cost> {
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                pin(cpu)?;
                self.measure_here(packets, limit)
            });
            sender.join().expect("the sender does not panic")
        })
    }

    fn measure_here(&mut self, packets: u64, limit: Duration) -> io::Result<Cost> {
        let mut sent = 0;
        for _ in 0..WARM_UP {
            sent += self.send()?;
        }
        let started = Instant::now();
        let mut batches = Vec::new();
        while sent < packets && (started.elapsed() < limit || batches.len() < LEAST) {
            self.batch.advance();
            let before = thread_time();
            let taken = self.batch.send(&self.socket)?;
            let spent = thread_time() - before;
            sent += taken;
            if taken == BATCH as u64 {
                batches.push(spent.as_secs_f64() * 1e9 / BATCH as f64);
            }
        }
        Ok(Cost { sent, batches })
    }
}

/// Keeps the calling thread on a CPU.
fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The CPU time of the calling thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure outlives the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "every thread has a clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
