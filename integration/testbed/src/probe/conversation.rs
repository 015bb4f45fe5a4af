//! A connection over TCP, or an exchange of datagrams, in which each side speaks only on request. Never judges the
//! received words.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::Protocol;
use crate::{Family, Host, Netns};

/// The time that a connection may take to open.
const PATIENCE: Duration = Duration::from_secs(5);

/// One side of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that opened it.
    Client,
    /// The one that it was opened to.
    Server,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// A connection, or an exchange of datagrams between one port and one port. Silent unless a side is told to speak.
#[derive(Debug)]
pub struct Conversation {
    client: Speaker,
    server: Speaker,
    /// Whence new connections can be opened.
    netns: Netns,
    /// Goes on listening, so that one can connect again.
    _listener: Option<TcpListener>,
}

/// A side's socket and what came of it.
#[derive(Debug)]
struct Speaker {
    carrier: Carrier,
    address: SocketAddr,
    received: String,
    end: Option<io::Error>,
}

#[derive(Debug)]
enum Carrier {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Conversation {
    /// Connects a client with a port of a server, which nobody else may have, over TCP. Over UDP nothing is sent yet.
    pub fn open(
        client: &Host,
        server: &Host,
        protocol: Protocol,
        port: u16,
        family: Family,
    ) -> io::Result<Self> {
        let address = |host: &Host| {
            let missing = || io::Error::from(io::ErrorKind::AddrNotAvailable);
            host.address(family).ok_or_else(missing)
        };
        let (source, target) = (
            SocketAddr::new(address(client)?, 0),
            SocketAddr::new(address(server)?, port),
        );
        let netns = client.netns().clone();
        if protocol == Protocol::Udp {
            let asking = netns.run(|| UdpSocket::bind(source))?;
            let source = asking.local_addr()?;
            asking.connect(target)?;
            let answering = server.netns().run(|| UdpSocket::bind(target))?;
            answering.connect(source)?;
            return Ok(Self {
                client: Speaker::new(Carrier::Udp(asking), source)?,
                server: Speaker::new(Carrier::Udp(answering), target)?,
                netns,
                _listener: None,
            });
        }
        let listener = server.netns().run(|| TcpListener::bind(target))?;
        listener.set_nonblocking(true)?;
        let asking: TcpStream = netns.run(|| -> io::Result<_> {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.bind(&SockAddr::from(source))?;
            socket.connect_timeout(&SockAddr::from(target), PATIENCE)?;
            Ok(socket.into())
        })?;
        let source = asking.local_addr()?;
        let answering = accept(&listener)?;
        Ok(Self {
            client: Speaker::new(Carrier::Tcp(asking), source)?,
            server: Speaker::new(Carrier::Tcp(answering), target)?,
            netns,
            _listener: Some(listener),
        })
    }

    /// The address and port of a side.
    pub fn address(&self, side: Side) -> SocketAddr {
        self.speaker(side).address
    }

    /// Sends words of a side. Whether they arrive, or the conversation is at its end, shows later.
    pub fn send(&mut self, side: Side, words: &str) {
        let speaker = self.speaker_mut(side);
        let said = match &mut speaker.carrier {
            Carrier::Tcp(stream) => stream.write_all(words.as_bytes()),
            Carrier::Udp(socket) => socket.send(words.as_bytes()).map(drop),
        };
        if let Err(error) = said {
            speaker.end.get_or_insert(error);
        }
    }

    /// The words that a side has received up to now.
    pub fn received(&mut self, side: Side) -> &str {
        let speaker = self.speaker_mut(side);
        speaker.listen();
        &speaker.received
    }

    /// Why the conversation is at its end for a side, if it is.
    pub fn end(&mut self, side: Side) -> Option<&io::Error> {
        let speaker = self.speaker_mut(side);
        speaker.listen();
        speaker.end.as_ref()
    }

    /// The number of segments that the kernels of both sides have sent again; no datagram is.
    pub fn sent_again(&self) -> u32 {
        let of = |speaker: &Speaker| match &speaker.carrier {
            Carrier::Tcp(stream) => sent_again(stream),
            Carrier::Udp(_) => 0,
        };
        of(&self.client) + of(&self.server)
    }

    /// Begins to open a new connection over TCP, from a new port to the same one.
    pub fn connect_again(&self) -> io::Result<Attempt> {
        let (source, target) = (
            SocketAddr::new(self.client.address.ip(), 0),
            self.server.address,
        );
        self.netns.run(|| {
            let socket = Socket::new(
                Domain::for_address(target),
                Type::STREAM.nonblocking(),
                None,
            )?;
            socket.bind(&SockAddr::from(source))?;
            match socket.connect(&SockAddr::from(target)) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Ok(Attempt(socket)),
            }
        })
    }

    fn speaker(&self, side: Side) -> &Speaker {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        }
    }

    fn speaker_mut(&mut self, side: Side) -> &mut Speaker {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

impl Speaker {
    fn new(carrier: Carrier, address: SocketAddr) -> io::Result<Self> {
        match &carrier {
            Carrier::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                // A message does not wait for the answer to the one before.
                stream.set_nodelay(true)?;
            }
            Carrier::Udp(socket) => socket.set_nonblocking(true)?,
        }
        Ok(Self {
            carrier,
            address,
            received: String::new(),
            end: None,
        })
    }

    /// Takes in what has arrived.
    fn listen(&mut self) {
        let mut buffer = [0; 1 << 10];
        loop {
            let (received, is_stream) = match &mut self.carrier {
                Carrier::Tcp(stream) => (stream.read(&mut buffer), true),
                Carrier::Udp(socket) => (socket.recv(&mut buffer), false),
            };
            match received {
                Ok(0) if is_stream => {
                    let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
                    self.end.get_or_insert_with(closed);
                    return;
                }
                Ok(length) => self.received += &String::from_utf8_lossy(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.end.get_or_insert(error);
                    return;
                }
            }
        }
    }
}

/// A connection that is being opened.
#[derive(Debug)]
pub struct Attempt(Socket);

impl Attempt {
    /// Whether the connection is open. `None` as long as nobody answers.
    pub fn is_open(&self) -> io::Result<Option<()>> {
        match self.0.take_error()? {
            Some(error) => Err(error),
            None => Ok(self.0.peer_addr().ok().map(drop)),
        }
    }
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn sent_again(stream: &TcpStream) -> u32 {
    // SAFETY: a plain C structure for which all zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the structure is as long as said, and outlives the call.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &mut length,
        )
    };
    assert_eq!(status, 0, "every TCP socket tells its TCP_INFO");
    info.tcpi_total_retrans
}
