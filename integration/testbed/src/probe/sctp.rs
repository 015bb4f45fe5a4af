//! Owns the SCTP packets (RFC 9260) of a handshake, written and read by hand, and both ends of a probe that makes one;
//! needs no SCTP in the kernel, and conntrack sees a true association come and go.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Protocol, Type};

use super::socket::{Packets, payload};
use super::transport::ask;
use super::{Answer, nonce};
use crate::Family;

pub(super) const SCTP: Protocol = Protocol::SCTP;

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// The parameter of an INIT-ACK that the other side returns in its COOKIE-ECHO.
const STATE_COOKIE: u16 = 7;
/// On an ABORT: its verification tag is the one of the packet that it answers.
const REFLECTED_TAG: u8 = 1;

/// A packet of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    source: u16,
    destination: u16,
    tag: u32,
    kind: u8,
    flags: u8,
    body: Vec<u8>,
}

impl Packet {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, self.flags]);
        bytes.extend((self.body.len() as u16 + 4).to_be_bytes());
        bytes.extend(&self.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a packet's first chunk; `None` if it is none or its checksum is wrong.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let mut unsigned = bytes.to_vec();
        unsigned.get_mut(8..12)?.fill(0);
        if bytes[8..12] != crc32c(&unsigned).to_le_bytes() {
            return None;
        }
        let length = usize::from(half(14)?);
        Some(Self {
            source: half(0)?,
            destination: half(2)?,
            tag: word(bytes, 4)?,
            kind: *bytes.get(12)?,
            flags: *bytes.get(13)?,
            body: bytes.get(16..12 + length)?.to_vec(),
        })
    }

    fn again(&self, tag: u32, kind: u8, body: Vec<u8>) -> Self {
        Self {
            tag,
            kind,
            flags: 0,
            body,
            ..*self
        }
    }

    fn answer(&self, tag: u32, kind: u8, flags: u8, body: Vec<u8>) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            tag,
            kind,
            flags,
            body,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The body of an INIT or, with a cookie, of an INIT-ACK.
fn initiation(own_tag: u32, cookie: Option<&[u8]>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(own_tag.to_be_bytes());
    body.extend(65_536u32.to_be_bytes()); // receiver window
    body.extend([0, 1, 0, 1]); // one stream out, one in
    body.extend(own_tag.to_be_bytes()); // first sequence number
    if let Some(cookie) = cookie {
        body.extend(STATE_COOKIE.to_be_bytes());
        body.extend((cookie.len() as u16 + 4).to_be_bytes());
        body.extend(cookie);
    }
    body
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}

/// An SCTP probe under way.
pub(super) struct SctpExchange {
    socket: Packets,
    family: Family,
    port: u16,
}

impl SctpExchange {
    pub(super) fn open(source: IpAddr, target: SocketAddr) -> io::Result<Self> {
        let socket = Packets::connected(source, target, Type::RAW, SCTP)?;
        Ok(Self {
            socket,
            family: Family::of(source),
            port: target.port(),
        })
    }

    pub(super) async fn run(self, again: Duration) -> Answer {
        let number = nonce();
        // Tag 0 is not allowed; ports below 1024 would be odd.
        let (own_tag, port) = ((number >> 32) as u32 | 1, (number >> 16) as u16 | 0x8000);
        let init = Packet {
            source: port,
            destination: self.port,
            tag: 0,
            kind: INIT,
            flags: 0,
            body: initiation(own_tag, None),
        };
        let acknowledged = self.exchange(&init, own_tag, INIT_ACK, again).await?;
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed INIT-ACK");
        let peer_tag = word(&acknowledged.body, 0).ok_or_else(malformed)?;
        let cookie = acknowledged.body.get(20..).ok_or_else(malformed)?;
        let echo = init.again(peer_tag, COOKIE_ECHO, cookie.to_vec());
        self.exchange(&echo, own_tag, COOKIE_ACK, again).await?;
        self.socket
            .send(&init.again(peer_tag, ABORT, Vec::new()).encode())
            .await?;
        let name = cookie.get(4..).unwrap_or_default();
        Ok(Some(String::from_utf8_lossy(name).into_owned()))
    }

    /// Sends `question` until its answer comes, which is a chunk of `kind` or an ABORT.
    async fn exchange(
        &self,
        question: &Packet,
        own_tag: u32,
        kind: u8,
        again: Duration,
    ) -> io::Result<Packet> {
        let answer = ask(&self.socket, &question.encode(), again, |packet| {
            let packet = Packet::decode(payload(packet, self.family))?;
            let ours = (packet.source, packet.destination)
                == (question.destination, question.source)
                && (packet.tag == own_tag || packet.flags & REFLECTED_TAG != 0);
            (ours && [kind, ABORT].contains(&packet.kind)).then_some(packet)
        })
        .await?;
        if answer.kind == ABORT {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "answered by an SCTP ABORT",
            ));
        }
        Ok(answer)
    }
}

/// Answers what comes for `ports`, and with an ABORT what comes for others. Keeps no state: the client's tag and the
/// server's name travel in the cookie.
pub(super) async fn serve(socket: Packets, family: Family, ports: BTreeSet<u16>, name: Arc<str>) {
    let mut buffer = [0; 2048];
    loop {
        let Ok(arrival) = socket.arrival(&mut buffer).await else {
            continue;
        };
        let Some(packet) = Packet::decode(payload(&buffer[..arrival.length], family)) else {
            continue;
        };
        if let Some(answer) = answer(&packet, ports.contains(&packet.destination), &name) {
            let _ = socket.answer(&arrival, &answer.encode()).await;
        }
    }
}

fn answer(packet: &Packet, served: bool, name: &str) -> Option<Packet> {
    let client_tag = word(&packet.body, 0)?;
    match packet.kind {
        INIT if served => {
            let cookie = [&client_tag.to_be_bytes(), name.as_bytes()].concat();
            Some(packet.answer(
                client_tag,
                INIT_ACK,
                0,
                initiation(!client_tag, Some(&cookie)),
            ))
        }
        INIT => Some(packet.answer(client_tag, ABORT, 0, Vec::new())),
        COOKIE_ECHO if served => Some(packet.answer(client_tag, COOKIE_ACK, 0, Vec::new())),
        COOKIE_ECHO => Some(packet.answer(packet.tag, ABORT, REFLECTED_TAG, Vec::new())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_rfc() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn packets_survive_the_wire_and_damage_does_not() {
        let packet = Packet {
            source: 40_000,
            destination: 80,
            tag: 7,
            kind: INIT,
            flags: 0,
            body: initiation(9, Some(b"abc")),
        };
        let mut bytes = packet.encode();
        assert_eq!(Packet::decode(&bytes), Some(packet));
        bytes[20] ^= 1;
        assert_eq!(Packet::decode(&bytes), None);
    }

    #[test]
    fn the_cookie_names_the_server() {
        let init = Packet {
            source: 40_000,
            destination: 80,
            tag: 0,
            kind: INIT,
            flags: 0,
            body: initiation(9, None),
        };
        let acknowledged = answer(&init, true, "default/web").expect("an INIT is answered");
        assert_eq!((acknowledged.kind, acknowledged.tag), (INIT_ACK, 9));
        assert_eq!(&acknowledged.body[24..], b"default/web");
        assert_eq!(
            answer(&init, false, "default/web").map(|packet| packet.kind),
            Some(ABORT)
        );
    }
}
