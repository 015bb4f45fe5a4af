//! Owns the servers of a host: its listening sockets, opened in its namespace and served on the shared runtime; never
//! knows who may reach them.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::socket::Packets;
use super::{Protocol, sctp, transport};
use crate::reactor;
use crate::{Family, Host};

/// Servers on some ports of one host, at whatever addresses it has, that answer with its name. They end when this is
/// dropped. ICMP needs none.
#[derive(Debug)]
#[must_use = "the servers end when this is dropped"]
pub struct Server {
    _tasks: JoinSet<()>,
}

impl Server {
    /// Listens on `ports`.
    pub fn start(host: &Host, ports: &[(Protocol, u16)]) -> io::Result<Self> {
        let of = |protocol| {
            let wanted = ports.iter().filter(move |(other, _)| *other == protocol);
            wanted.map(|&(_, port)| port).collect::<BTreeSet<u16>>()
        };
        let name: Arc<str> = host.name().into();
        host.netns().run(|| {
            let _context = reactor::runtime().enter();
            let mut tasks = JoinSet::new();
            for port in of(Protocol::Tcp) {
                tasks.spawn(transport::serve_tcp(listen(port)?, name.clone()));
            }
            for port in of(Protocol::Udp) {
                let socket = Packets::answering(Family::V6, Some(port), socket2::Protocol::UDP)?;
                tasks.spawn(transport::serve_udp(socket, name.clone()));
            }
            let sctp_ports = of(Protocol::Sctp);
            if !sctp_ports.is_empty() {
                for family in [Family::V4, Family::V6] {
                    let socket = Packets::answering(family, None, sctp::SCTP)?;
                    tasks.spawn(sctp::serve(
                        socket,
                        family,
                        sctp_ports.clone(),
                        name.clone(),
                    ));
                }
            }
            Ok(Self { _tasks: tasks })
        })
    }
}

/// Listens on a port in both families.
pub(super) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::IPV6,
        Type::STREAM.nonblocking(),
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(SocketAddr::from((
        Ipv6Addr::UNSPECIFIED,
        port,
    ))))?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
