//! Conntrack forgets the connections of an address, all of them, and nobody else's: on the real kernel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::ExitCode,
};

use sallyport_enforcer::table;
use sallyport_nft::netlink::Netlink;
use sallyport_testbed::{
    Change, LOOPBACK, Netns,
    kernel_tests::{self, Failed, Outcome},
};

fn main() -> ExitCode {
    kernel_tests::run(&[
        ("an_address_is_forgotten_and_no_other", one_address),
        ("so_are_several_addresses_at_once", several_addresses),
    ])
}

/// A rule about a connection's state makes conntrack track it. Beside it is a service whose server is 10.0.0.3. Packets
/// to port 9 are tracked in a zone of their own.
const TRACKING: &str = "
table inet tracking {
  chain raw { type filter hook output priority raw; udp dport 9 ct zone set 5; udp sport 9 ct zone set 5; }
  chain output { type filter hook output priority filter; ct state new counter; }
  chain service { type nat hook output priority -100; ip daddr 10.96.0.1 udp dport 53 dnat ip to 10.0.0.3:7000; }
}
";

/// The service's address.
const SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));

/// A connection: the sources of its two tuples, and the rest that tells it from others.
type Connection = (IpAddr, IpAddr, String);

fn connections(netns: &Netns) -> Result<BTreeSet<Connection>, Failed> {
    let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))?;
    let connection = |line: &str| -> Option<Connection> {
        let mut sources = line.split(' ').filter_map(|word| word.strip_prefix("src="));
        let mut source = || sources.next()?.parse().ok();
        let rest = line
            .split(' ')
            .filter(|word| word.contains("port=") || word.contains("zone"));
        Some((source()?, source()?, rest.collect::<Vec<_>>().join(" ")))
    };
    Ok(text.lines().filter_map(connection).collect())
}

fn hosts() -> impl Iterator<Item = IpAddr> {
    (1..=4).flat_map(|n| {
        let v6 = std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into());
        [IpAddr::from([10, 0, 0, n]), v6.into()]
    })
}

/// Everybody talks to everybody of the same family, answered and not, and to the service.
fn talk() -> std::io::Result<Vec<UdpSocket>> {
    let servers = hosts()
        .flat_map(|host| [7000, 7001, 9].map(|port| (host, port)))
        .map(|(host, port)| Ok((port == 7001, UdpSocket::bind((host, port))?)))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut sockets = Vec::new();
    for client in hosts() {
        let service = SocketAddr::from((SERVICE, 53));
        if client.is_ipv4() {
            let socket = UdpSocket::bind((client, 0))?;
            socket.send_to(b"?", service)?;
            sockets.push(socket);
        }
        for (answers, server) in &servers {
            let to = server.local_addr()?;
            if to.is_ipv4() != client.is_ipv4() || to.ip() == client {
                continue;
            }
            let socket = UdpSocket::bind((client, 0))?;
            socket.send_to(b"?", to)?;
            if *answers {
                server.recv_from(&mut [0; 8])?;
                server.send_to(b"!", socket.local_addr()?)?;
            }
            sockets.push(socket);
        }
    }
    sockets.extend(servers.into_iter().map(|(_, server)| server));
    Ok(sockets)
}

/// A namespace in which everybody has talked to everybody.
struct Talk {
    netns: Netns,
    netlink: Netlink,
    _sockets: Vec<UdpSocket>,
}

impl Talk {
    fn new() -> Result<Talk, Failed> {
        let netns = Netns::new("connections")?;
        let addresses = hosts().chain([SERVICE]).map(|address| Change::Address {
            index: LOOPBACK,
            address,
        });
        netns.apply(addresses.collect())?;
        let mut nft = netns.command("nft");
        nft.arg(TRACKING);
        if !netns.spawn(nft)?.wait()?.success() {
            return Err("nft does not take the table".into());
        }
        Ok(Talk {
            _sockets: netns.run(talk)?,
            netlink: netns.run(table::open)?,
            netns,
        })
    }

    /// Forgets addresses, and sees that exactly their connections go. Returns how many.
    fn flush_conntrack(&self, addresses: &BTreeSet<IpAddr>) -> Result<usize, Failed> {
        let is_of = |(client, server, _): &Connection| {
            addresses.contains(client) || addresses.contains(server)
        };
        let before = connections(&self.netns)?;
        let (gone, stays): (BTreeSet<_>, BTreeSet<_>) = before.into_iter().partition(is_of);
        self.netlink.flush_conntrack(|one| one.is_of(addresses))?;
        let after = connections(&self.netns)?;
        if after == stays {
            return Ok(gone.len());
        }
        let left: Vec<_> = after.difference(&stays).collect();
        let lost: Vec<_> = stays.difference(&after).collect();
        Err(format!("{addresses:?}: not deleted {left:#?}, deleted {lost:#?}").into())
    }
}

fn one_address() -> Outcome {
    let talk = Talk::new()?;
    for host in hosts() {
        let gone = talk.flush_conntrack(&BTreeSet::from([host]))?;
        // The last hosts of a family have all been flushed with the others.
        let last = hosts().skip(6).any(|last| last == host);
        if (gone == 0) != last {
            return Err(format!("{host}: {gone} connections are no test").into());
        }
    }
    // The service's address is nobody's, behind translation.
    match talk.flush_conntrack(&BTreeSet::from([SERVICE]))? {
        0 => Ok(()),
        gone => Err(format!("{gone} connections of the service's address").into()),
    }
}

fn several_addresses() -> Outcome {
    let talk = Talk::new()?;
    let both = hosts().take(4).collect();
    let gone = talk.flush_conntrack(&both)?;
    let left = connections(&talk.netns)?.len();
    if gone == 0 || left == 0 {
        return Err(format!("{gone} forgotten, {left} left: no test").into());
    }
    Ok(())
}
