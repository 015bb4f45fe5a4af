//! Owns the one tokio runtime on which every socket of every testbed is served; never enters a namespace itself: a
//! socket stays in the network namespace it was made in, so sockets of hundreds of pods share these few threads.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::future::Future;
use std::sync::{LazyLock, mpsc};

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    raise_descriptor_limit();
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("testbed")
        .enable_all()
        .build()
        .expect("a runtime can be built where threads can be started")
});

/// The shared runtime.
pub(crate) fn runtime() -> &'static Runtime {
    &RUNTIME
}

/// Runs `future` on the shared runtime and waits for it. Unlike `Runtime::block_on` it may be called from a thread of
/// another runtime; never from a task of this one, which would wait for itself.
pub fn wait<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = mpsc::sync_channel(1);
    let task = RUNTIME.spawn(async move {
        let _ = done.send(future.await);
    });
    match result.recv() {
        Ok(value) => value,
        Err(_) => match RUNTIME.block_on(task) {
            Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
            _ => unreachable!("the task ends only by sending its result or by a panic"),
        },
    }
}

/// Allows as many descriptors as the hard limit does: the usual soft limit of 1,024 is a few dozen pods and their
/// servers.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls only use the structure they are given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
