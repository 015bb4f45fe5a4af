//! Owns forged UDP datagrams, whole with their IP header, and their sending in batches; never counts what arrives.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use socket2::Socket;

use super::flood::Class;
use super::icmp::internet_checksum;

/// The source port of every packet, or the first of several: with one a class has as many connections as addresses, and
/// conntrack does not fill.
pub(super) const SOURCE_PORT: u16 = 40_000;
const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const PAYLOAD: usize = 18;

/// A batch of a class's packets, of which only the source and the checksum change.
pub(super) struct Template {
    packets: Vec<Vec<u8>>,
    class: Class,
    target: IpAddr,
    /// How many packets there have been: which address is next.
    turn: u32,
    /// How many source ports there are: the next when every address had its turn.
    ports: u16,
    /// The port in turn.
    port: u16,
}

impl Template {
    pub(super) fn new(class: &Class, target: IpAddr, batch: usize) -> Self {
        let packets = vec![header(class, target); batch];
        Self {
            packets,
            class: class.clone(),
            target,
            turn: 0,
            ports: 1,
            port: 0,
        }
    }

    /// The same from so many source ports in turn.
    pub(super) fn with_ports(self, ports: u16) -> Self {
        Self { ports, ..self }
    }

    /// Gives every packet the next source address, and the next source port when every address had its turn.
    pub(super) fn advance(&mut self) {
        let addresses = self.class.addresses.max(1);
        for packet in &mut self.packets {
            let port = SOURCE_PORT.wrapping_add(self.port).to_be_bytes();
            match self.class.first {
                IpAddr::V4(first) => {
                    // An IPv4 datagram needs no checksum, and the kernel writes the header's.
                    packet[12..16].copy_from_slice(&(first.to_bits() + self.turn).to_be_bytes());
                    packet[20..22].copy_from_slice(&port);
                }
                IpAddr::V6(first) => {
                    let source = first.to_bits() + u128::from(self.turn);
                    packet[8..24].copy_from_slice(&source.to_be_bytes());
                    packet[40..42].copy_from_slice(&port);
                    let sum = checksum_v6(packet);
                    packet[46..48].copy_from_slice(&sum.to_be_bytes());
                }
            }
            self.turn = (self.turn + 1) % addresses;
            if self.turn == 0 {
                self.port = (self.port + 1) % self.ports;
            }
        }
    }

    /// Sends the batch and says how many packets the kernel took.
    pub(super) fn send(&mut self, socket: &Socket) -> io::Result<u64> {
        let target = socket2::SockAddr::from(std::net::SocketAddr::new(self.target, 0));
        let mut slices: Vec<libc::iovec> = self
            .packets
            .iter_mut()
            .map(|packet| libc::iovec {
                iov_base: packet.as_mut_ptr().cast(),
                iov_len: packet.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = slices
            .iter_mut()
            .map(|slice| {
                // SAFETY: a plain C structure for which all zero is a value.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = slice;
                message.msg_hdr.msg_iovlen = 1;
                message.msg_hdr.msg_name = target.as_ptr().cast_mut().cast();
                message.msg_hdr.msg_namelen = target.len();
                message
            })
            .collect();
        // SAFETY: the messages, their slices, packets and the address outlive the call.
        let taken = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                messages.len() as u32,
                0,
            )
        };
        match u64::try_from(taken) {
            Ok(taken) => Ok(taken),
            Err(_) => match io::Error::last_os_error() {
                // No room in a queue: none was sent, none is counted.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
                // An ICMP error for an earlier packet, or a rule of the own namespace: the packet was not sent.
                error if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ECONNREFUSED)) => {
                    Ok(0)
                }
                error => Err(error),
            },
        }
    }
}

/// A packet of the class without source address and checksum.
fn header(class: &Class, target: IpAddr) -> Vec<u8> {
    let length = (UDP_HEADER + PAYLOAD) as u16;
    let mut packet = match target {
        IpAddr::V4(target) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0, 0, 64, UDP, 0, 0, 0, 0, 0, 0]);
            header.extend(target.octets());
            header
        }
        IpAddr::V6(target) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([UDP, 64]);
            header.extend([0; 16]);
            header.extend(target.octets());
            header
        }
    };
    packet.extend(SOURCE_PORT.to_be_bytes());
    packet.extend(class.port.to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend([0; 2 + PAYLOAD]);
    packet
}

/// The UDP checksum of an IPv6 packet; it goes over a pseudo-header, whose words are all in the packet but the
/// protocol.
fn checksum_v6(packet: &mut [u8]) -> u16 {
    packet[46..48].fill(0);
    let mut summed = Vec::with_capacity(packet.len());
    summed.extend([0, UDP]);
    summed.extend(&packet[4..6]);
    summed.extend(&packet[8..]);
    match internet_checksum(&summed) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_used_in_turn() {
        let class = Class {
            name: "x".to_owned(),
            first: [10, 0, 0, 255].into(),
            addresses: 2,
            port: 7,
        };
        let mut batch = Template::new(&class, [10, 0, 0, 1].into(), 3);
        batch.advance();
        let sources: Vec<&[u8]> = batch.packets.iter().map(|packet| &packet[12..16]).collect();
        assert_eq!(sources, [[10, 0, 0, 255], [10, 0, 1, 0], [10, 0, 0, 255]]);
        assert!(
            batch
                .packets
                .iter()
                .all(|packet| packet.len() == 46 && packet[22..24] == [0, 7])
        );
    }

    #[test]
    fn ports_are_used_in_turn_after_addresses() {
        let class = Class {
            name: "x".to_owned(),
            first: [10, 0, 0, 1].into(),
            addresses: 2,
            port: 7,
        };
        let mut batch = Template::new(&class, [10, 0, 0, 9].into(), 5).with_ports(2);
        batch.advance();
        let sources = batch.packets.iter().map(|packet| {
            let port = u16::from_be_bytes([packet[20], packet[21]]);
            (packet[15], port - SOURCE_PORT)
        });
        let expected = [(1, 0), (2, 0), (1, 1), (2, 1), (1, 0)];
        assert_eq!(sources.collect::<Vec<_>>(), expected);
    }
}
