//! Owns another process's system calls for a while: counts those that change something outside of it, and kills it at
//! one of them, or has one fail. Knows nothing of what the process is; nothing in it is made ready for this.
//!
//! The state after a crash is the work of system calls. So a program that is killed at each of its calls in turn has
//! been killed at every step, and it is the program that users run.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

/// The threads that a process has now.
fn threads(leader: Pid) -> io::Result<Vec<Pid>> {
    let entries = fs::read_dir(format!("/proc/{leader}/task"))?;
    let number = |entry: io::Result<fs::DirEntry>| {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        Ok(Pid::from_raw(number.ok_or(io::ErrorKind::InvalidData)?))
    };
    entries.map(number).collect()
}

/// A system call that reaches out of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The call's name; `ask` for a message to netlink that only asks for something.
    pub name: &'static str,
    /// The object of the call: the name of a file, `socket`, or `netlink`; empty where there is none.
    pub object: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.object)
    }
}

/// The fate of a call that is hit.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// The process is killed, and the call is not made.
    Kill,
    /// The call is not made, and fails.
    Fail(Errno),
    /// The call is made, and fails all the same: its answer is lost.
    Lose(Errno),
    /// Nothing: calls are counted.
    Watch,
}

/// Chooses calls.
pub type Calls = fn(&Call) -> bool;

/// The calls that are counted, those of them that are hit, and their fate.
#[derive(Clone, Copy)]
pub struct Fault {
    /// The calls that are counted.
    pub calls: Calls,
    /// The first that is hit, counted from 1, ...
    pub first: usize,
    /// ... and how many are.
    pub count: usize,
    /// The fate of the calls that are hit.
    pub act: Act,
}

impl Fault {
    /// Kills at the call of this number, of all that reach out of the process.
    pub fn kill_at(first: usize) -> Fault {
        let calls = Call::is_effect;
        Fault {
            calls,
            first,
            count: 1,
            act: Act::Kill,
        }
    }
}

impl Call {
    /// Whether the call changes anything outside of the process.
    pub fn is_effect(&self) -> bool {
        !matches!(self.name, "recvfrom" | "ask")
    }

    /// Whether the call changes something in the kernel's tables: commits a batch, or deletes a connection.
    pub fn is_commit(&self) -> bool {
        self.name == "sendto" && self.object == NETLINK
    }

    /// Whether the call waits for packets that are under way.
    pub fn is_grace(&self) -> bool {
        self.name == "membarrier"
    }

    /// Whether the call says something to another program.
    pub fn is_message(&self) -> bool {
        self.is_effect() && self.object == SOCKET
    }

    /// Whether the call changes files.
    pub fn is_of_files(&self) -> bool {
        self.is_effect() && !self.is_commit() && !self.is_grace() && !self.is_message()
    }
}

/// Whether a process has ended; it need not be waited for yet.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name is in parentheses, and may hold some.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.is_empty() || state.starts_with(['Z', 'X'])
}

/// A process under observation, until this is dropped or finished. Nobody of its own process may wait for it meanwhile,
/// not even to ask whether it has ended: that takes away what the tracer is told.
#[derive(Debug)]
pub struct Tracer {
    pid: Pid,
    stop: Arc<AtomicBool>,
    hits: Arc<Mutex<Vec<Call>>>,
    thread: Option<JoinHandle<usize>>,
}

impl Tracer {
    /// Begins with all threads that a process has and will have.
    pub fn attach(pid: u32, fault: Fault) -> io::Result<Tracer> {
        let pid = Pid::from_raw(pid.cast_signed());
        let (stop, hits) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let (attached, is_attached) = mpsc::channel();
        let mut tracing = TracerThread {
            leader: pid,
            fault,
            counted: 0,
            stop: stop.clone(),
            hits: hits.clone(),
            answers: BTreeSet::new(),
        };
        // Whoever attaches must be the one who waits.
        let thread = thread::Builder::new()
            .name("tracer".to_owned())
            .spawn(move || {
                let result = tracing.attach();
                let failed = result.is_err();
                let _ = attached.send(result);
                if !failed {
                    tracing.run();
                }
                tracing.counted
            })?;
        is_attached
            .recv()
            .map_err(|_| io::ErrorKind::BrokenPipe)??;
        Ok(Tracer {
            pid,
            stop,
            hits,
            thread: Some(thread),
        })
    }

    /// The calls that were hit up to now.
    pub fn hits(&self) -> Vec<Call> {
        self.hits
            .lock()
            .expect("nothing panics while holding it")
            .clone()
    }

    /// Lets go of the process. Returns how many calls were counted, and which were hit.
    pub fn finish(mut self) -> (usize, Vec<Call>) {
        (self.end(), self.hits())
    }

    fn end(&mut self) -> usize {
        let Some(thread) = self.thread.take() else {
            return 0;
        };
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the tracer; to the process it means nothing. It may be dead, and then the tracer is at its end.
        let _ = kill(self.pid, Signal::SIGURG);
        thread.join().unwrap_or(0)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The state of the tracer's thread. When the thread ends the kernel detaches it from all that it traced.
struct TracerThread {
    leader: Pid,
    fault: Fault,
    counted: usize,
    stop: Arc<AtomicBool>,
    hits: Arc<Mutex<Vec<Call>>>,
    /// Threads in a call whose answer is to be another.
    answers: BTreeSet<Pid>,
}

impl TracerThread {
    fn attach(&self) -> io::Result<()> {
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
        let mut known = BTreeSet::new();
        // One that is not traced yet may make another meanwhile, which nobody would see.
        loop {
            let before = known.len();
            for thread in threads(self.leader)? {
                if !known.insert(thread) {
                    continue;
                }
                match ptrace::seize(thread, options).and_then(|()| ptrace::interrupt(thread)) {
                    // The thread ended meanwhile, or was made by one that is traced.
                    Err(Errno::ESRCH | Errno::EPERM) if thread != self.leader => {}
                    result => result?,
                }
            }
            if known.len() == before {
                return Ok(());
            }
        }
    }

    fn run(&mut self) {
        let own = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let any = own | WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        while !self.stop.load(Ordering::SeqCst) {
            let seen = match waitid(Id::All, any) {
                Ok(seen) => seen,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let Some(thread) = seen.pid() else { return };
            let is_over = matches!(seen, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
            if is_over && thread == self.leader {
                // Its end is its parent's to be told.
                return;
            }
            let Ok(status) = waitpid(thread, Some(own)) else {
                continue;
            };
            let result = match status {
                WaitStatus::PtraceSyscall(thread) => match self.at_call(thread) {
                    Ok(true) => ptrace::syscall(thread, None),
                    Ok(false) => return,
                    Err(errno) => Err(errno),
                },
                WaitStatus::Stopped(thread, signal) => {
                    let passed_on = Some(signal).filter(|&signal| signal != Signal::SIGURG);
                    ptrace::syscall(thread, passed_on)
                }
                WaitStatus::PtraceEvent(thread, ..) => ptrace::syscall(thread, None),
                _ => Ok(()),
            };
            // A thread that was killed in between is gone.
            debug_assert!(matches!(result, Ok(()) | Err(Errno::ESRCH)), "{result:?}");
        }
    }

    /// A thread is at the beginning or at the end of a call. Returns whether it goes on.
    fn at_call(&mut self, thread: Pid) -> nix::Result<bool> {
        let info = ptrace::syscall_info(thread)?;
        if info.op == libc::PTRACE_SYSCALL_INFO_EXIT {
            if self.answers.remove(&thread)
                && let Act::Fail(errno) | Act::Lose(errno) = self.fault.act
            {
                answer(thread, errno)?;
            }
            return Ok(true);
        }
        // SAFETY: the kernel says that it is this part of the union.
        let entry = unsafe { info.u.entry };
        let Some(call) = call(thread, entry.nr, entry.args) else {
            return Ok(true);
        };
        if !(self.fault.calls)(&call) {
            return Ok(true);
        }
        self.counted += 1;
        let hit = self.fault.first..self.fault.first + self.fault.count;
        if !hit.contains(&self.counted) {
            return Ok(true);
        }
        match self.fault.act {
            Act::Watch => {}
            // A thread that dies at the beginning of a call does not make it.
            Act::Kill => kill(self.leader, Signal::SIGKILL)?,
            Act::Fail(_) => {
                skip(thread)?;
                self.answers.insert(thread);
            }
            Act::Lose(_) => drop(self.answers.insert(thread)),
        }
        self.hits
            .lock()
            .expect("nothing panics while holding it")
            .push(call);
        Ok(!matches!(self.fault.act, Act::Kill))
    }
}

/// A call that reaches out of the process; `None` for all others, and for what only wakes its own threads or writes a
/// log.
fn call(thread: Pid, number: u64, arguments: [u64; 6]) -> Option<Call> {
    let number = number.cast_signed();
    let name = CALLS.iter().find(|(one, _)| *one == number)?.1;
    let object = match name {
        "openat" => {
            let creates = arguments[2] & libc::O_CREAT as u64 != 0;
            return creates.then_some(Call {
                name,
                object: String::new(),
            });
        }
        "membarrier" | "rename" | "unlink" | "mkdir" => String::new(),
        _ => object(thread, arguments[0])?,
    };
    let asks = name == "sendto" && object == NETLINK && !changes(thread, arguments[1]);
    let name = if asks { "ask" } else { name };
    Some(Call { name, object })
}

/// Whether a message to netlink, by the address of its header, changes anything.
fn changes(thread: Pid, header: u64) -> bool {
    let Ok(word) = ptrace::read(thread, header as ptrace::AddressType) else {
        return true;
    };
    // A length of 32 bits, then the kind.
    let bytes = word.to_ne_bytes();
    CHANGES.contains(&u16::from_ne_bytes([bytes[4], bytes[5]]))
}

/// The names for a netlink socket, and for any other.
const NETLINK: &str = "netlink";
const SOCKET: &str = "socket";

/// The kinds of messages to netfilter that change something, as the enforcer sends them: the beginning of a batch
/// (`NFNL_MSG_BATCH_BEGIN`), and the deletion of a connection (`IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`).
const CHANGES: [u16; 2] = [0x10, 1 << 8 | 2];

const CALLS: [(i64, &str); 19] = [
    (libc::SYS_write, "write"),
    (libc::SYS_pwrite64, "pwrite64"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_sendto, "sendto"),
    (libc::SYS_sendmsg, "sendmsg"),
    (libc::SYS_recvfrom, "recvfrom"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_sync_file_range, "sync_file_range"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_openat, "openat"),
    (libc::SYS_membarrier, "membarrier"),
    (libc::SYS_renameat, "rename"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_unlinkat, "unlink"),
    (libc::SYS_mkdirat, "mkdir"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_rename, "rename"),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_unlink, "unlink"),
];

fn object(thread: Pid, descriptor: u64) -> Option<String> {
    let path = fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()?;
    let text = path.to_string_lossy();
    if let Some(inode) = text.strip_prefix("socket:[") {
        let inode = inode.trim_end_matches(']');
        let netlink = fs::read_to_string(format!("/proc/{thread}/net/netlink")).unwrap_or_default();
        let is_netlink = netlink
            .lines()
            .any(|line| line.split_whitespace().last() == Some(inode));
        return Some(if is_netlink { NETLINK } else { SOCKET }.to_owned());
    }
    let name = path.file_name()?.to_string_lossy().into_owned();
    let is_own = text.starts_with("anon_inode:") || text.starts_with("pipe:");
    (text.starts_with('/') && !is_own && !name.ends_with(".log")).then_some(name)
}

/// Has a thread, which is at the beginning of a call, not make it.
#[cfg(target_arch = "x86_64")]
fn skip(thread: Pid) -> nix::Result<()> {
    let mut registers = ptrace::getregs(thread)?;
    registers.orig_rax = u64::MAX;
    ptrace::setregs(thread, registers)
}

/// Has a thread, which is at the end of a call, see it fail.
#[cfg(target_arch = "x86_64")]
fn answer(thread: Pid, errno: Errno) -> nix::Result<()> {
    let mut registers = ptrace::getregs(thread)?;
    registers.rax = (-i64::from(errno as i32)).cast_unsigned();
    ptrace::setregs(thread, registers)
}

#[cfg(not(target_arch = "x86_64"))]
fn skip(_: Pid) -> nix::Result<()> {
    panic!("calls can be made to fail on x86-64 only")
}

#[cfg(not(target_arch = "x86_64"))]
fn answer(_: Pid, _: Errno) -> nix::Result<()> {
    panic!("calls can be made to fail on x86-64 only")
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell that waits for a line, then writes three lines to three files.
    fn writer(directory: &std::path::Path) -> Child {
        let script = "read line; for n in 1 2 3; do echo $n > $n || exit 7; done; echo all > all";
        Command::new("sh")
            .args(["-c", script])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn go(child: &mut Child) {
        let mut stdin = child.stdin.take().unwrap();
        io::Write::write_all(&mut stdin, b"go\n").unwrap();
    }

    fn await_end(child: &Child) {
        while !has_ended(child.id()) {
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn is_write(call: &Call) -> bool {
        call.name == "write"
    }

    #[test]
    fn a_process_is_killed_at_each_of_its_calls() {
        for first in 1.. {
            let directory = tempfile::tempdir().unwrap();
            let mut child = writer(directory.path());
            let calls = is_write;
            let fault = Fault {
                calls,
                ..Fault::kill_at(first)
            };
            let tracer = Tracer::attach(child.id(), fault).unwrap();
            go(&mut child);
            await_end(&child);
            let (counted, hits) = tracer.finish();
            let status = child.wait().unwrap();
            let written = |n: usize| {
                fs::read(directory.path().join(n.to_string())).is_ok_and(|text| !text.is_empty())
            };
            for n in 1..=3 {
                assert_eq!(written(n), n < first, "killed at {first}");
            }
            if status.success() {
                assert_eq!((first, counted, hits.len()), (5, 4, 0));
                return;
            }
            assert_eq!((counted, hits.len()), (first, 1));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_call_fails_or_is_made_and_its_answer_lost() {
        for (act, made) in [
            (Act::Fail(Errno::ENOSPC), false),
            (Act::Lose(Errno::EIO), true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let mut child = writer(directory.path());
            let calls = is_write;
            let (first, count) = (2, 1);
            let fault = Fault {
                calls,
                first,
                count,
                act,
            };
            let tracer = Tracer::attach(child.id(), fault).unwrap();
            go(&mut child);
            await_end(&child);
            assert_eq!(tracer.finish().1.len(), 1);
            assert_eq!(child.wait().unwrap().code(), Some(7));
            assert_eq!(
                fs::read_to_string(directory.path().join("2")).unwrap(),
                if made { "2\n" } else { "" }
            );
        }
    }
}
