//! Owns one anonymous network namespace: its making, running code and programs in it; never names it in the file
//! system, so that it goes when its last handle, socket and process are gone, however they end.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, mpsc};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::reactor;
use crate::{Change, Error, LOOPBACK, link};

/// A network namespace; clones share it, and it lives as long as any of them.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    label: String,
    fd: OwnedFd,
    /// The rtnetlink connection into the namespace, opened when first needed.
    netlink: OnceLock<rtnetlink::Handle>,
}

/// The sysctls of every namespace of a bed: addresses usable at once, no packet judged by its way in, and every refusal
/// reported. The kernel rations ICMP errors, and a refusal without one would look like a drop.
const DEFAULTS: [(&str, &str); 10] = [
    ("net.ipv4.icmp_ratemask", "0"),
    ("net.ipv6.icmp.ratemask", "0"),
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.all.accept_ra", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
];

impl Netns {
    /// Makes a namespace, with its loopback up; `label` is what errors call it.
    pub fn new(label: &str) -> Result<Self, Error> {
        Self::with_sysctls(label, &[])
    }

    /// The same, with `sysctls` set before any link exists in it.
    pub fn with_sysctls(label: &str, sysctls: &[(&str, &str)]) -> Result<Self, Error> {
        let made = on_fresh_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace {
                namespace: label.to_owned(),
                source: errno.into(),
            })?;
            for (name, value) in DEFAULTS.iter().chain(sysctls) {
                write_sysctl(label, name, value)?;
            }
            Self::current(label)
        })?;
        made.apply(vec![Change::Up { index: LOOPBACK }])?;
        Ok(made)
    }

    /// The namespace that the calling thread is in.
    pub fn current(label: &str) -> Result<Self, Error> {
        let fd = File::open("/proc/thread-self/ns/net").map_err(|source| Error::Namespace {
            namespace: label.to_owned(),
            source,
        })?;
        Ok(Self(Arc::new(Inner {
            label: label.to_owned(),
            fd: fd.into(),
            netlink: OnceLock::new(),
        })))
    }

    /// The name in errors.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Runs `work` on a fresh thread inside the namespace. Sockets made there stay there, wherever they are used.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_fresh_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET).expect("whoever made a namespace may enter it");
            work()
        })
    }

    /// A command that will run inside the namespace and be killed when the thread that spawned it ends (that is how
    /// Linux counts parents). For a program that shall live as long as this process use [`Netns::spawn`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let (namespace, parent) = (self.clone(), nix::unistd::getpid());
        let prepare = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        };
        // SAFETY: three system calls that allocate nothing, as code between fork and exec must.
        unsafe { command.pre_exec(prepare) };
        command
    }

    /// Spawns a [`Netns::command`] from a thread that lives as long as this process: the child dies with the process,
    /// even if that is killed, and not earlier.
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        static NURSERY: LazyLock<Mutex<mpsc::Sender<Birth>>> = LazyLock::new(|| {
            let (requests, births) = mpsc::channel::<Birth>();
            thread::Builder::new()
                .name("nursery".to_owned())
                .spawn(move || {
                    for Birth { mut command, reply } in births {
                        let _ = reply.send(command.spawn());
                    }
                })
                .expect("a thread can be started");
            Mutex::new(requests)
        });
        let (reply, born) = mpsc::channel();
        let nursery = NURSERY
            .lock()
            .expect("nothing panics while holding it")
            .clone();
        nursery
            .send(Birth { command, reply })
            .expect("the nursery never ends");
        born.recv().expect("the nursery always replies")
    }

    /// Writes a setting of this namespace, e.g. `net.ipv4.ip_forward`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<(), Error> {
        self.run(|| write_sysctl(self.label(), name, value))
    }

    /// Reads a setting of this namespace.
    pub fn read_sysctl(&self, name: &str) -> Result<String, Error> {
        self.run(|| fs::read_to_string(sysctl_path(name)))
            .map(|value| value.trim().to_owned())
            .map_err(|source| Error::Sysctl {
                name: name.to_owned(),
                namespace: self.label().to_owned(),
                source,
            })
    }

    /// Executes `changes` to links, addresses and routes of this namespace, in order.
    pub fn apply(&self, changes: Vec<Change>) -> Result<(), Error> {
        let namespace = self.clone();
        reactor::wait(async move { namespace.apply_async(changes).await })
    }

    pub(crate) async fn apply_async(&self, changes: Vec<Change>) -> Result<(), Error> {
        link::execute(self.netlink()?, self.label(), changes).await
    }

    fn netlink(&self) -> Result<rtnetlink::Handle, Error> {
        if let Some(handle) = self.0.netlink.get() {
            return Ok(handle.clone());
        }
        let opened = self.run(|| {
            let _context = reactor::runtime().enter();
            rtnetlink::new_connection()
        });
        let (connection, handle, _) = opened.map_err(|source| Error::Namespace {
            namespace: self.label().to_owned(),
            source,
        })?;
        reactor::runtime().spawn(connection);
        Ok(self.0.netlink.get_or_init(|| handle).clone())
    }
}

/// A child to be spawned, and who waits for it.
struct Birth {
    command: Command,
    reply: mpsc::Sender<io::Result<Child>>,
}

fn on_fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

fn write_sysctl(namespace: &str, name: &str, value: &str) -> Result<(), Error> {
    fs::write(sysctl_path(name), value).map_err(|source| Error::Sysctl {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        source,
    })
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fd = self.0.fd.as_raw_fd();
        let inode = fs::metadata(format!("/proc/self/fd/{fd}"))
            .map(|meta| meta.ino())
            .unwrap_or(0);
        write!(f, "Netns({}, net:[{inode}])", self.0.label)
    }
}
