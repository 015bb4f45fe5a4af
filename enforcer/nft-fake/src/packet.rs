//! The properties of a packet that rules can match. This module owns no verdict.

use std::net::IpAddr;

/// A forwarded packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The source in the packet's own header.
    pub source: IpAddr,
    /// The destination in the packet's own header.
    pub destination: IpAddr,
    /// The connection that the packet is of; `None` if conntrack has the state invalid or untracked for the packet.
    pub connection: Option<Connection>,
    /// The type of the packet's ICMPv6 message, if it is one.
    pub icmpv6: Option<u8>,
    /// The interface by which the packet came in.
    pub input: String,
    /// The interface by which the packet goes out.
    pub output: String,
    /// The interface of its arrival, compared with the node's routes.
    pub arrival: Arrival,
}

/// The interface by which a packet arrived, compared with the route to its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// The interface to which the route to its source leads.
    #[default]
    Route,
    /// Another interface.
    Elsewhere,
    /// A bridge to which the route to its source does not lead.
    Bridge,
}

/// A connection as conntrack knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The source of the original tuple: the client.
    pub client: IpAddr,
    /// The source of the reply tuple: the server, after translation of addresses.
    pub server: IpAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// The source port of the reply tuple: the server's.
    pub port: u16,
    /// Whether the packet goes the way that the connection's first packet went.
    pub original: bool,
    /// Whether packets went both ways before.
    pub established: bool,
    /// Whether the packet is none that begins a connection.
    pub late: bool,
}

impl Packet {
    /// A packet from a client to a server, of a connection without translation of addresses.
    pub fn of_connection(client: IpAddr, server: IpAddr, protocol: u8, port: u16) -> Packet {
        Packet {
            connection: Some(Connection {
                client,
                server,
                protocol,
                port,
                original: true,
                established: false,
                late: false,
            }),
            ..Packet::without_connection(client, server)
        }
    }

    /// A packet that conntrack cannot assign to a connection.
    pub fn without_connection(source: IpAddr, destination: IpAddr) -> Packet {
        Packet {
            source,
            destination,
            connection: None,
            icmpv6: None,
            input: String::new(),
            output: String::new(),
            arrival: Arrival::default(),
        }
    }

    /// The same packet, of a connection that is established.
    pub fn established(mut self) -> Packet {
        if let Some(connection) = &mut self.connection {
            (connection.established, connection.late) = (true, true);
        }
        self
    }

    /// The same packet, in the middle of a connection that conntrack does not know.
    pub fn in_the_middle(mut self) -> Packet {
        if let Some(connection) = &mut self.connection {
            (connection.established, connection.late) = (false, true);
        }
        self
    }

    /// The same connection's packet the other way.
    pub fn reply(mut self) -> Packet {
        std::mem::swap(&mut self.source, &mut self.destination);
        std::mem::swap(&mut self.input, &mut self.output);
        if let Some(connection) = &mut self.connection {
            connection.original = !connection.original;
        }
        self
    }

    /// The same packet with another arrival.
    pub fn at(mut self, arrival: Arrival) -> Packet {
        self.arrival = arrival;
        self
    }

    /// The same packet, by these interfaces.
    pub fn by(mut self, input: &str, output: &str) -> Packet {
        self.input = input.into();
        self.output = output.into();
        self
    }
}
