//! Owns how a container of the walk-through comes by its routes, through rtnetlink since its image has no `ip`, and how
//! it gives up the privilege that took; never decides which routes.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::{fmt, io, net::Ipv4Addr, str::FromStr};

use rtnetlink::{LinkUnspec, RouteMessageBuilder};

/// The index of every namespace's loopback.
const LOOPBACK: u32 = 1;

/// A route, written `DESTINATION=GATEWAY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination, and the length of its prefix.
    pub to: (Ipv4Addr, u8),
    /// By whom.
    pub gateway: Ipv4Addr,
}

impl Route {
    /// The default route.
    pub fn default_by(gateway: Ipv4Addr) -> Route {
        Route {
            to: (Ipv4Addr::UNSPECIFIED, 0),
            gateway,
        }
    }
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Route, String> {
        let parse = || {
            let (destination, gateway) = text.split_once('=')?;
            let (address, length) = destination.split_once('/')?;
            let length: u8 = length.parse().ok().filter(|&length| length <= 32)?;
            Some(Route {
                to: (address.parse().ok()?, length),
                gateway: gateway.parse().ok()?,
            })
        };
        parse().ok_or_else(|| {
            "a route is written DESTINATION=GATEWAY, such as 10.9.2.0/24=198.18.10.12".into()
        })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Route {
            to: (address, length),
            gateway,
        } = self;
        write!(f, "{address}/{length} via {gateway}")
    }
}

/// Why a container has not the routes that it needs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the kernel.
    #[error("open an rtnetlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error(
        "{change}: {source} (does the container have CAP_NET_ADMIN, and the network of that gateway?)"
    )]
    Refused {
        /// What, as an `ip` command.
        change: String,
        /// Why.
        source: rtnetlink::Error,
    },
    /// The capability could not be given up.
    #[error("give up every capability: {0}")]
    Capabilities(#[source] io::Error),
}

/// Gives this network namespace an address of its own, if any, and routes, which prefer that address as their source.
/// A route that is there already to the same destination is replaced.
pub async fn set_up(address: Option<Ipv4Addr>, routes: &[Route]) -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let connection = tokio::spawn(connection);
    let loopback = LinkUnspec::new_with_index(LOOPBACK).up().build();
    refusal(
        "ip link set lo up",
        handle.link().set(loopback).execute().await,
    )?;
    if let Some(address) = address {
        let add = handle.address().add(LOOPBACK, address.into(), 32).replace();
        refusal(
            &format!("ip address replace {address}/32 dev lo"),
            add.execute().await,
        )?;
    }
    for route in routes {
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.to.0, route.to.1)
            .gateway(route.gateway);
        if let Some(address) = address {
            message = message.pref_source(address);
        }
        let replace = handle.route().add(message.build()).replace();
        refusal(
            &format!("ip route replace {route}"),
            replace.execute().await,
        )?;
    }
    connection.abort();
    Ok(())
}

fn refusal(change: &str, result: Result<(), rtnetlink::Error>) -> Result<(), Error> {
    result.map_err(|source| Error::Refused {
        change: change.to_owned(),
        source,
    })
}

/// Gives up every capability of the calling thread, for good: call it while there is no other thread.
pub fn give_up_privilege() -> Result<(), Error> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`, whose sets are two words of three masks.
    const VERSION: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let none = [[0_u32; 3]; 2];
    // SAFETY: both are laid out as `capset(2)` wants them, and outlive the call.
    let status = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    if status == 0 {
        Ok(())
    } else {
        Err(Error::Capabilities(io::Error::last_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads() {
        let route: Route = "10.9.2.0/24=198.18.10.12".parse().unwrap();
        assert_eq!(route.to_string(), "10.9.2.0/24 via 198.18.10.12");
        for wrong in [
            "",
            "10.9.2.0/24",
            "10.9.2.0=198.18.10.12",
            "10.9.2.0/33=198.18.10.12",
            "10.9.2.0/24=here",
        ] {
            assert!(
                wrong
                    .parse::<Route>()
                    .unwrap_err()
                    .contains("DESTINATION=GATEWAY"),
                "{wrong}"
            );
        }
    }
}
