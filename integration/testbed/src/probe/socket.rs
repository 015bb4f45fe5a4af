//! Owns datagram and raw sockets on the shared runtime, which tell to which address a packet came and answer from it;
//! never knows what is in a packet. Sockets are opened by the caller's thread, in its namespace.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Family;

/// A socket for datagrams or raw packets.
#[derive(Debug)]
pub(super) struct Packets(AsyncFd<Socket>);

/// From where a packet came, and to which of the own addresses.
pub(super) struct Arrival {
    pub(super) length: usize,
    from: SockaddrStorage,
    to: Option<IpAddr>,
}

/// Makes a non-blocking socket with which `source` asks `target`, and which learns of every ICMP error.
pub(super) fn asking(
    source: IpAddr,
    target: SocketAddr,
    kind: Type,
    protocol: Protocol,
) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(target),
        kind.nonblocking(),
        Some(protocol),
    )?;
    match Family::of(source) {
        Family::V4 => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
        Family::V6 => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
    }
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    Ok(socket)
}

impl Packets {
    /// A socket that exchanges packets with `target` alone. Of a raw socket's target the port is ignored.
    pub(super) fn connected(
        source: IpAddr,
        target: SocketAddr,
        kind: Type,
        protocol: Protocol,
    ) -> io::Result<Self> {
        let socket = asking(source, target, kind, protocol)?;
        let port = if kind == Type::RAW { 0 } else { target.port() };
        socket.connect(&SockAddr::from(SocketAddr::new(target.ip(), port)))?;
        Self::registered(socket)
    }

    /// A socket that answers whoever sends to any address of the namespace: with a port both families' datagrams, raw
    /// (without one) the packets of `family`.
    pub(super) fn answering(
        family: Family,
        port: Option<u16>,
        protocol: Protocol,
    ) -> io::Result<Self> {
        let (domain, any) = match family {
            Family::V4 => (Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            Family::V6 => (Domain::IPV6, IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)),
        };
        let kind = if port.is_some() {
            Type::DGRAM
        } else {
            Type::RAW
        };
        let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
        match family {
            Family::V4 => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            Family::V6 => {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                if port.is_some() {
                    socket.set_only_v6(false)?;
                }
            }
        }
        socket.bind(&SockAddr::from(SocketAddr::new(any, port.unwrap_or(0))))?;
        Self::registered(socket)
    }

    /// Makes room for what arrives while nobody reads; as much as this process is allowed.
    pub(super) fn enlarge(&self) {
        let size = 8 << 20;
        if setsockopt(self.0.get_ref(), sockopt::RcvBufForce, &size).is_err() {
            let _ = self.0.get_ref().set_recv_buffer_size(size);
        }
    }

    /// The number of packets that arrived and found no room.
    pub(super) fn overflowed(&self) -> u32 {
        overflowed(self.0.get_ref())
    }

    fn registered(socket: Socket) -> io::Result<Self> {
        // SAFETY: the socket owns its descriptor and is never replaced.
        Ok(Self(unsafe { AsyncFd::register(socket) }?))
    }

    /// Sends to the connected target.
    pub(super) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.0
            .async_io(Interest::WRITABLE, |socket| socket.send(packet))
            .await
            .map(drop)
    }

    /// Receives from the connected target; of a raw IPv4 socket the IP header comes first.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.arrival(buffer).await.map(|arrival| arrival.length)
    }

    /// Receives from anybody.
    pub(super) async fn arrival(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        let receive = |socket: &Socket| {
            let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
            let mut slices = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::empty(),
            )?;
            let to = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into())
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some(IpAddr::from(info.ipi6_addr.s6_addr))
                }
                _ => None,
            });
            // A connected raw socket is not told again whom it is connected to.
            let from = message
                .address
                .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)).into());
            Ok(Arrival {
                length: message.bytes,
                from,
                to,
            })
        };
        // An ICMP error makes the socket neither readable nor writable.
        self.0
            .async_io(Interest::READABLE | Interest::ERROR, receive)
            .await
    }

    /// Answers a packet, from the address that it was sent to.
    pub(super) async fn answer(&self, arrival: &Arrival, packet: &[u8]) -> io::Result<()> {
        let send = |socket: &Socket| {
            let slices = [IoSlice::new(packet)];
            // SAFETY: both are plain C structures for which all zero is a value.
            let (mut v4, mut v6): (libc::in_pktinfo, libc::in6_pktinfo) =
                unsafe { std::mem::zeroed() };
            let control = match arrival.to {
                Some(IpAddr::V4(address)) => {
                    v4.ipi_spec_dst.s_addr = u32::from(address).to_be();
                    vec![ControlMessage::Ipv4PacketInfo(&v4)]
                }
                Some(IpAddr::V6(address)) => {
                    v6.ipi6_addr.s6_addr = address.octets();
                    vec![ControlMessage::Ipv6PacketInfo(&v6)]
                }
                None => Vec::new(),
            };
            sendmsg(
                socket.as_raw_fd(),
                &slices,
                &control,
                MsgFlags::empty(),
                Some(&arrival.from),
            )?;
            Ok(())
        };
        self.0.async_io(Interest::WRITABLE, send).await
    }
}

/// The payload of a packet from a raw socket: without the IP header that IPv4 hands over too.
pub(super) fn payload(packet: &[u8], family: Family) -> &[u8] {
    match family {
        Family::V6 => packet,
        Family::V4 => {
            let header = packet
                .first()
                .map_or(0, |first| usize::from(first & 0x0f) * 4);
            packet.get(header..).unwrap_or_default()
        }
    }
}

/// The number of packets that a socket has turned away since its buffer was full.
pub(super) fn overflowed(socket: &Socket) -> u32 {
    const DROPS: usize = 8;
    let mut memory = [0u32; DROPS + 1];
    let mut length = size_of_val(&memory) as libc::socklen_t;
    // SAFETY: the buffer is as long as said, and outlives the call.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            memory.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert_eq!(status, 0, "every socket tells its SO_MEMINFO");
    memory[DROPS]
}
