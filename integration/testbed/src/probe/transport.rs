//! Owns the client's and the server's half of a TCP and a UDP probe: a nonce, and the nonce back with the server's
//! name; never opens a server's socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Protocol, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::socket::{Packets, asking};
use super::{Answer, nonce};

const NONCE: usize = size_of::<u64>();

/// A TCP probe under way.
pub(super) struct TcpExchange {
    socket: TcpSocket,
    target: SocketAddr,
}

impl TcpExchange {
    pub(super) fn open(source: IpAddr, target: SocketAddr) -> io::Result<Self> {
        let socket = asking(source, target, Type::STREAM, Protocol::TCP)?;
        // Close by a reset: no port lingers in TIME_WAIT, so tens of thousands of probes do not run out of them.
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(Self {
            socket: TcpSocket::from_std_stream(socket.into()),
            target,
        })
    }

    pub(super) async fn run(self) -> Answer {
        let mut stream = self.socket.connect(self.target).await?;
        let nonce = nonce().to_be_bytes();
        stream.write_all(&nonce).await?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        match reply.strip_prefix(&nonce) {
            Some(name) => Ok(Some(String::from_utf8_lossy(name).into_owned())),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the server did not return the nonce",
            )),
        }
    }
}

/// A UDP probe under way.
pub(super) struct UdpExchange(Packets);

impl UdpExchange {
    pub(super) fn open(source: IpAddr, target: SocketAddr) -> io::Result<Self> {
        Packets::connected(source, target, Type::DGRAM, Protocol::UDP).map(Self)
    }

    pub(super) async fn run(self, again: Duration) -> Answer {
        let nonce = nonce().to_be_bytes();
        ask(&self.0, &nonce, again, |reply| {
            reply
                .strip_prefix(&nonce)
                .map(|name| String::from_utf8_lossy(name).into_owned())
        })
        .await
        .map(Some)
    }
}

/// Sends `question` every `again` until a packet comes that is an answer.
pub(super) async fn ask<T>(
    socket: &Packets,
    question: &[u8],
    again: Duration,
    answer: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<T> {
    let mut buffer = [0; 2048];
    let mut ticks = tokio::time::interval(again.max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            biased;
            received = socket.receive(&mut buffer) => {
                if let Some(answer) = answer(&buffer[..received?]) {
                    return Ok(answer);
                }
            }
            _ = ticks.tick() => socket.send(question).await?,
        }
    }
}

/// Answers every connection with the nonce and `name`.
pub(super) async fn serve_tcp(listener: TcpListener, name: Arc<str>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer_connection(stream, name.clone()));
            }
            // Out of descriptors, or a client that is gone again: the next one may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn answer_connection(mut stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    let mut nonce = [0; NONCE];
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, stream.read_exact(&mut nonce)).await??;
    stream
        .write_all(&[&nonce, name.as_bytes()].concat())
        .await?;
    stream.shutdown().await
}

/// Answers every datagram with its nonce and `name`.
pub(super) async fn serve_udp(socket: Packets, name: Arc<str>) {
    let mut buffer = [0; 2048];
    loop {
        // An error here is one packet's (an ICMP error for an earlier answer, say), not the socket's.
        let Ok(arrival) = socket.arrival(&mut buffer).await else {
            continue;
        };
        if let Some(nonce) = buffer.get(..NONCE.min(arrival.length)) {
            let _ = socket
                .answer(&arrival, &[nonce, name.as_bytes()].concat())
                .await;
        }
    }
}
