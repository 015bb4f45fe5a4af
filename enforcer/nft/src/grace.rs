//! Grace periods. A grace period ends when every packet that was in the kernel's tables at its beginning has left them.

use std::{thread, time::Duration};

use tracing::debug;

/// `MEMBARRIER_CMD_GLOBAL` (`linux/membarrier.h`): returns after a grace period of RCU, under which packets travel.
const GLOBAL: libc::c_int = 1;

/// The time to wait on kernels and in sandboxes without the system call. Packets take far less.
const FALLBACK: Duration = Duration::from_millis(100);

/// Returns when every packet that was under way has passed. The wait was 25-32 ms as measured on Linux 6.18.
#[expect(unsafe_code, reason = "no library has membarrier")]
pub(crate) fn period() {
    // SAFETY: membarrier takes three integers and touches no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        debug!(error = %std::io::Error::last_os_error(), "the system call membarrier failed: waiting a fixed time");
        thread::sleep(FALLBACK);
    }
}
