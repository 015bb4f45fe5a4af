//! Grace periods: waiting until every packet that is on its way through the kernel's tables now is through.

use std::{thread, time::Duration};

use tracing::debug;

/// `MEMBARRIER_CMD_GLOBAL` (`linux/membarrier.h`): returns after a grace period of RCU, under which packets travel.
const GLOBAL: libc::c_int = 1;

/// Far longer than a packet takes, for kernels and sandboxes without the system call.
const FALLBACK: Duration = Duration::from_millis(100);

/// Returns when every packet that was under way is through. 25-32 ms as measured on Linux 6.18.
#[expect(unsafe_code, reason = "no library has membarrier")]
pub(crate) fn period() {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result != 0 {
        debug!(error = %std::io::Error::last_os_error(), "the system call membarrier failed: waiting a fixed time");
        thread::sleep(FALLBACK);
    }
}
