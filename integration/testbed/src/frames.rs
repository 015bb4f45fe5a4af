//! Frames of every kind, sent from a pod as they are, and looked for where they should arrive or not. `kinds` has their
//! content.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

mod kinds;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{Family, Host, Mac};
use kinds::{Frames, mark, tagged};

pub use kinds::Kind;

/// Why frames cannot be made, sent or received.
pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The time that a frame may be under way.
const PATIENCE: Duration = Duration::from_millis(400);

/// A pod that sends and receives.
pub struct Party {
    host: Host,
    mac: [u8; 6],
    /// The node's hardware address on the pod's link.
    router: [u8; 6],
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Party {
    /// A pod with both families, its hardware address, and that of its router.
    pub fn new(host: Host, mac: Mac, router: Mac) -> Party {
        let address = |family| host.address(family).expect("it has both families");
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address(Family::V4), address(Family::V6)) else {
            unreachable!("each is of its family");
        };
        Party {
            mac: mac.0,
            router: router.0,
            v4,
            v6,
            host,
        }
    }

    /// The address that its hardware address gives it (RFC 4291, appendix A).
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac;
        let pair = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            pair(a ^ 2, b),
            pair(c, 0xff),
            pair(0xfe, d),
            pair(e, f),
        )
    }
}

/// The kinds that arrive at one pod from another. With `routed` all frames are sent to the router, which forwards those
/// that it can.
pub fn arrivals(
    from: &Party,
    to: &Party,
    another: &Party,
    routed: bool,
) -> Result<BTreeMap<Kind, bool>, Failed> {
    let frames = Frames::new(from, to, another, routed);
    let greeting = Frames::new(to, from, another, routed);
    arrivals_of(from, to, &greeting, &|kind| {
        frames.of(kind, kind as u32 + 1)
    })
}

/// The same with an 802.1Q tag before each frame, outside of the tags that it has by itself.
pub fn arrivals_tagged(
    from: &Party,
    to: &Party,
    another: &Party,
    vlan: u16,
) -> Result<BTreeMap<Kind, bool>, Failed> {
    let frames = Frames::new(from, to, another, false);
    let greeting = Frames::new(to, from, another, false);
    arrivals_of(from, to, &greeting, &|kind| {
        Ok(tagged(frames.of(kind, kind as u32 + 1)?, &[(0x8100, vlan)]))
    })
}

fn arrivals_of(
    from: &Party,
    to: &Party,
    greeting: &Frames<'_>,
    frame: &dyn Fn(Kind) -> Result<Vec<u8>, Failed>,
) -> Result<BTreeMap<Kind, bool>, Failed> {
    let receiver = to.host.netns().run(open)?;
    receiver.set_nonblocking(true)?;
    let sender = from.host.netns().run(open)?;
    // The answer tells the way to conntrack and to the bridge.
    let greeting = greeting.of(Kind::Own4, 0)?;
    for kind in Kind::ALL {
        sender.send(&frame(kind)?)?;
        if kind == Kind::Own4 {
            to.host.netns().run(open)?.send(&greeting)?;
        }
    }
    let mut arrived: BTreeMap<Kind, bool> = Kind::ALL.map(|kind| (kind, false)).into();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        arrived.extend(receive(&receiver).map(|kind| (kind, true)));
    }
    Ok(arrived)
}

/// Frames of some kinds from one pod to another, all the time, until it is dropped.
pub struct Rain {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<Mutex<BTreeMap<Kind, u64>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Rain {
    /// Begins, with a frame each millisecond. `routed` are all sent to the router.
    pub fn start(
        from: &Party,
        to: &Party,
        another: &Party,
        routed: bool,
        kinds: &[Kind],
    ) -> Result<Rain, Failed> {
        let frames = Frames::new(from, to, another, routed);
        let frames: Vec<Vec<u8>> = kinds
            .iter()
            .map(|&kind| frames.of(kind, kind as u32 + 1))
            .collect::<Result<_, _>>()?;
        let receiver = to.host.netns().run(open)?;
        receiver.set_nonblocking(true)?;
        let sender = from.host.netns().run(open)?;
        let mut rain = Rain {
            stop: Arc::default(),
            sent: Arc::default(),
            arrived: Arc::default(),
            threads: Vec::new(),
        };
        let (stop, sent) = (Arc::clone(&rain.stop), Arc::clone(&rain.sent));
        rain.threads.push(thread::spawn(move || {
            for frame in frames.iter().cycle() {
                if stop.load(Relaxed) {
                    return;
                }
                sent.fetch_add(u64::from(sender.send(frame).is_ok()), Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        }));
        let (stop, arrived) = (Arc::clone(&rain.stop), Arc::clone(&rain.arrived));
        rain.threads.push(thread::spawn(move || {
            while !stop.load(Relaxed) {
                for kind in receive(&receiver) {
                    *arrived
                        .lock()
                        .expect("nobody panics")
                        .entry(kind)
                        .or_default() += 1;
                }
            }
        }));
        Ok(rain)
    }

    /// The number of frames that were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The number of frames of each kind that arrived.
    pub fn arrived(&self) -> BTreeMap<Kind, u64> {
        self.arrived.lock().expect("nobody panics").clone()
    }
}

impl Drop for Rain {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The kind of a frame that has come; waits a moment if none has.
fn receive(receiver: &Socket) -> impl Iterator<Item = Kind> + use<> {
    let mut buffer = [0; 2_048];
    // SAFETY: the buffer is as long as is said, and lives as long as the call.
    let length = unsafe {
        libc::recv(
            receiver.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    };
    let length = usize::try_from(length).unwrap_or_else(|_| {
        thread::sleep(Duration::from_millis(2));
        0
    });
    Kind::ALL.into_iter().filter(move |&kind| {
        let mark = mark(kind as u32 + 1);
        let mut parts = buffer[..length].windows(mark.len());
        parts.any(|part| part == mark)
    })
}

/// A socket for frames of the pod's only link.
fn open() -> io::Result<Socket> {
    let all = i32::from((libc::ETH_P_ALL as u16).to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(all.into()))?;
    let index = nix::net::if_::if_nametoindex("eth0")?;
    // SAFETY: the address is as long as is said, and lives as long as the call.
    let bound = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
