//! Owns an echo request of ICMP or ICMPv6 and its reply; the replying is the kernel's.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Protocol, Type};

use super::socket::{Packets, payload};
use super::transport::ask;
use super::{Answer, nonce};
use crate::Family;

/// The types of an echo request and an echo reply.
const fn types(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    }
}

/// An echo request under way.
pub(super) struct IcmpExchange {
    socket: Packets,
    family: Family,
}

impl IcmpExchange {
    pub(super) fn open(source: IpAddr, target: IpAddr) -> io::Result<Self> {
        let family = Family::of(target);
        let protocol = if family == Family::V4 {
            Protocol::ICMPV4
        } else {
            Protocol::ICMPV6
        };
        let socket = Packets::connected(source, SocketAddr::new(target, 0), Type::RAW, protocol)?;
        Ok(Self { socket, family })
    }

    pub(super) async fn run(self, again: Duration) -> Answer {
        let (request, reply) = types(self.family);
        let number = nonce().to_be_bytes();
        // Type, code, checksum, then identifier, sequence and payload: all of them the nonce's.
        let mut message = [[request, 0, 0, 0].as_slice(), &number, &number].concat();
        if self.family == Family::V4 {
            let sum = internet_checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let is_reply = |packet: &[u8]| {
            let echo = payload(packet, self.family);
            (echo.first() == Some(&reply) && echo.get(4..) == Some(&message[4..])).then_some(())
        };
        ask(&self.socket, &message, again, is_reply)
            .await
            .map(|()| None)
    }
}

/// The checksum of IPv4, ICMP and UDP over `bytes`.
pub(super) fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::internet_checksum;

    /// The example of RFC 1071, section 3.
    #[test]
    fn checksum_of_the_rfc() {
        assert_eq!(
            internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
