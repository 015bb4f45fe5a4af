//! Owns the table of ways and what is known of each; makes none and sends nothing itself.

use anyhow::{Context, Result};
use sallyport_testbed::probe::{Protocol, Server, Stream, Traffic};

use crate::{
    measure::{self, Both, PORT, Seen},
    wiring::{self, Way},
};

/// The packets of a way that a drop in the forward hook stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stops {
    Both,
    Replies,
    Nothing,
}

/// A way, whether its connection is established before anything is dropped, and what is known of it.
struct Row {
    name: &'static str,
    make: fn() -> Result<Way>,
    established: bool,
    known: Stops,
}

/// A way for connections that are made when they are asked about.
const fn row(name: &'static str, known: Stops, make: fn() -> Result<Way>) -> Row {
    Row {
        name,
        make,
        established: false,
        known,
    }
}

/// A way for a connection that is established before anything is dropped.
const fn established(name: &'static str, known: Stops, make: fn() -> Result<Way>) -> Row {
    Row {
        established: true,
        ..row(name, known, make)
    }
}

const ROWS: [Row; 19] = [
    row("veth, routed", Stops::Both, wiring::routed),
    row("bridge, br_netfilter", Stops::Both, || {
        wiring::bridged(true)
    }),
    row("bridge, no br_netfilter", Stops::Nothing, || {
        wiring::bridged(false)
    }),
    row(
        "bridge with vlan_filtering, br_netfilter",
        Stops::Both,
        wiring::vlan_aware_bridge,
    ),
    row("VLAN device, routed", Stops::Both, wiring::vlan_routed),
    row(
        "VLAN frames on a bridge, filter-vlan-tagged=0",
        Stops::Nothing,
        || wiring::vlan_bridged(false),
    ),
    row(
        "VLAN frames on a bridge, filter-vlan-tagged=1",
        Stops::Both,
        || wiring::vlan_bridged(true),
    ),
    row("macvlan (bridge), same node", Stops::Nothing, || {
        wiring::on_uplink("macvlan mode bridge")
    }),
    row("macvlan (bridge), to outside", Stops::Nothing, || {
        wiring::on_uplink_to_outside("macvlan mode bridge")
    }),
    row("ipvlan l2, same node", Stops::Nothing, || {
        wiring::on_uplink("ipvlan mode l2")
    }),
    row("ipvlan l2, to outside", Stops::Nothing, || {
        wiring::on_uplink_to_outside("ipvlan mode l2")
    }),
    row("ipvlan l3, same node", Stops::Nothing, || {
        wiring::on_uplink("ipvlan mode l3")
    }),
    row("ipvlan l3, to outside", Stops::Nothing, || {
        wiring::on_uplink_to_outside("ipvlan mode l3")
    }),
    row("ipvlan l3s, same node", Stops::Nothing, || {
        wiring::on_uplink("ipvlan mode l3s")
    }),
    row("ipvlan l3s, to outside", Stops::Nothing, || {
        wiring::on_uplink_to_outside("ipvlan mode l3s")
    }),
    row(
        "IPVS (masquerading), vs.conntrack=0",
        Stops::Replies,
        || wiring::ipvs(false),
    ),
    row(
        "IPVS (masquerading), vs.conntrack=1",
        Stops::Replies,
        || wiring::ipvs(true),
    ),
    established("veth, routed, established", Stops::Both, wiring::routed),
    established(
        "veth, routed, established, flowtable",
        Stops::Nothing,
        wiring::flowtable,
    ),
];

/// Checks every way, and prints the table. Returns the names of wrong ways.
pub(crate) fn run() -> Vec<String> {
    println!(
        "{:<46}{:<37}{:<34}a drop in the forward hook",
        "way", "requests meet", "replies meet"
    );
    ROWS.iter().filter_map(|row| check(row).err()).collect()
}

/// Checks one way, and prints its line.
fn check(row: &Row) -> Result<(), String> {
    let seen = measure(row).map_err(|error| {
        println!("{:<46}FAILED {error:#}", row.name);
        row.name.to_owned()
    })?;
    let [requests, replies] = &seen;
    let met = |seen: &Seen| match seen.hooks.is_empty() {
        true => "nothing".to_owned(),
        false => seen.hooks.join(" "),
    };
    let found = match [requests.stopped, replies.stopped] {
        [true, true] => Some(Stops::Both),
        [false, true] => Some(Stops::Replies),
        [false, false] => Some(Stops::Nothing),
        [true, false] => None,
    };
    let word = match found {
        Some(Stops::Both) => "stops it",
        Some(Stops::Replies) => "stops replies; REQUESTS PASS",
        Some(Stops::Nothing) => "stops nothing: ALL PASSES",
        None => "stops requests alone",
    };
    println!(
        "{:<46}{:<37}{:<34}{word}",
        row.name,
        met(requests),
        met(replies)
    );
    if found == Some(row.known) {
        return Ok(());
    }
    Err(format!(
        "{}: a drop {word}, but {:?} was known",
        row.name, row.known
    ))
}

fn measure(row: &Row) -> Result<Both> {
    let way = (row.make)()?;
    if row.established {
        let stream = Stream::start(&way.client, &way.server, Traffic::tcp(PORT))
            .context("start a connection")?;
        return measure::established(&way, &stream);
    }
    let _server = Server::start(&way.server, &[(Protocol::Tcp, PORT)]).context("start a server")?;
    measure::fresh(&way)
}
