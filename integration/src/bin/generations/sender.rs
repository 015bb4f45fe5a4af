//! Owns the thread that sends datagrams through the output hook of its namespace, from the processor that is held up. A
//! packet is judged before the call that sends it returns: when the thread has ended, nothing is under way.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow};
use sallyport_testbed::Netns;

use crate::storm;

/// Sends until it is stopped.
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Sender {
    /// Sends to an address from a processor.
    pub(crate) fn start(netns: &Netns, to: SocketAddr, processor: usize) -> Result<Sender> {
        let socket = netns.run(|| UdpSocket::bind("127.0.0.1:0"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("sender".into())
            .spawn(move || {
                storm::bind(processor)?;
                storm::prefer();
                while !stopped.load(Ordering::Relaxed) {
                    send(&socket, to)?;
                }
                Ok(())
            })?;
        Ok(Sender { stop, thread })
    }

    /// Stops it.
    pub(crate) fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the sender's thread panicked"))?
    }
}

/// Sends one datagram, which the hook drops: that is told as a lack of permission.
fn send(socket: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    match socket.send_to(&[0; 18], to) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}
