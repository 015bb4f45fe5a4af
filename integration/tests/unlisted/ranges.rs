//! Addresses beside their own that workloads may use: what the guard lets pass for them, and what it goes on keeping out. The
//! guard is written by the library, since the test says which workload may use what; the policy is the enforcer's that died.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sallyport_enforcer::{
    guard::{self, Rules},
    nft::{bridge::Ground, render::Options},
    places::Places,
};
use sallyport_integration::{
    frames::Kind,
    kernel_tests::{Failed, Outcome},
};
use sallyport_proto::{
    Ranges,
    policy::{ClassId, Endpoint, NodePolicy, Owner, Source},
};

use crate::{Bed, PODS, addresses, bed, measure, table::SETUPS, tags::write};

/// What the enforcer would make of this node if workloads may use ranges.
fn ground(bed: &Bed, sources: &[(&str, Ranges)]) -> Result<Ground, Failed> {
    let mut policy = NodePolicy::default();
    for (name, last) in PODS {
        let endpoint = Endpoint {
            name: name.into(),
            interface: bed.deployment.bed.interface_of(name)?,
            ingress: ["server", "free-2"]
                .contains(&name)
                .then_some(ClassId([1; 16])),
            ..Endpoint::default()
        };
        for address in addresses(last) {
            policy.set_endpoint(address, Arc::new(endpoint.clone()));
        }
    }
    let sources = sources.iter().map(|(name, ranges)| Source {
        owners: vec![Owner {
            name: (*name).into(),
            ..Owner::default()
        }],
        ranges: ranges.clone(),
        ..Source::default()
    });
    policy.set_sources(Arc::new(Source::canonical(sources)));
    let options = Options {
        strict: true,
        ..Options::default()
    };
    Ok(guard::ground(
        &policy,
        &options,
        &Rules::default(),
        &Places::default(),
    ))
}

/// Checks which kinds of frames arrive that did not, and that no others cease to.
fn opens(
    what: &str,
    before: &BTreeMap<Kind, bool>,
    after: &BTreeMap<Kind, bool>,
    kinds: &[Kind],
) -> Outcome {
    let others = after.iter().filter(|(kind, now)| before[kind] != **now);
    let others: Vec<Kind> = others.map(|(kind, _)| *kind).collect();
    let all_came = others.iter().all(|kind| after[kind]);
    match all_came && others == kinds {
        true => Ok(()),
        false => Err(format!("{what}: {others:?} instead of {kinds:?}").into()),
    }
}

fn span(first: &str, last: &str) -> Ranges {
    let [first, last] = [first, last].map(|text| text.parse().expect("an address"));
    Ranges::span(first, last).expect("a range")
}

pub(crate) fn by_known_ports() -> Outcome {
    let setup = SETUPS[2];
    let mut bed = bed(setup, &[])?;
    bed.deployment.kill_enforcer(0);
    let apply = |sources: &[(&str, Ranges)]| write(&bed, ground(&bed, sources)?);
    let selected = || measure(&bed, setup, "client", "server");
    let free = || measure(&bed, setup, "free-1", "free-2");

    apply(&[])?;
    let before = (selected()?, free()?);
    let strangers = [Kind::Stranger4, Kind::Stranger6];
    // All of the Internet's, and no pod's, no router's, no group's.
    apply(&[("client", Ranges::everything())])?;
    opens("everything", &before.0, &selected()?, &strangers)?;
    opens("another's", &before.1, &free()?, &[])?;
    let (v4, v6) = (
        span("192.0.2.1", "192.0.2.1"),
        span("2001:db8::", "2001:db8::f"),
    );
    apply(&[("client", v4.clone())])?;
    opens("IPv4", &before.0, &selected()?, &strangers[..1])?;
    apply(&[("client", v6), ("peer", v4)])?;
    opens("IPv6", &before.0, &selected()?, &strangers[1..])?;
    // A destination, of a workload that is isolated.
    apply(&[("free-2", span("192.0.2.8", "192.0.2.15"))])?;
    opens("destination", &before.1, &free()?, &[Kind::Unlisted4])?;
    opens("destination, another's", &before.0, &selected()?, &[])?;
    apply(&[])?;
    opens("nothing", &before.0, &selected()?, &[])?;

    // As if the peer's addresses were no endpoint's: they are claimed by ARP and by neighbour discovery.
    let mut claims = ground(&bed, &[])?;
    let peer = addresses(PODS[2].1);
    let peer = peer.map(|address| Ranges::span(address, address).expect("a range"));
    let client = bed.deployment.bed.interface_of("client")?;
    let known = claims.known.get_mut(&client).ok_or("no client")?;
    known.ranges = Ranges::union_all(&peer);
    let claimed = [
        Kind::Another4,
        Kind::Another6,
        Kind::ArpAnother,
        Kind::AdvertisesAnother,
    ];
    write(&bed, claims.clone())?;
    opens("claims", &before.0, &selected()?, &claimed)?;
    // By a range of several addresses, too.
    let known = claims.known.get_mut(&client).ok_or("no client")?;
    known.ranges = around(addresses(PODS[2].1));
    write(&bed, claims)?;
    opens("claims of ranges", &before.0, &selected()?, &claimed)
}

/// The address of each with the one before it and the one behind it.
fn around(addresses: [IpAddr; 2]) -> Ranges {
    let ranges = addresses.map(|address| {
        let (first, last) = match address {
            IpAddr::V4(it) => {
                let near = |n: u32| IpAddr::V4(n.into());
                (near(it.to_bits() - 1), near(it.to_bits() + 1))
            }
            IpAddr::V6(it) => {
                let near = |n: u128| IpAddr::V6(n.into());
                (near(it.to_bits() - 1), near(it.to_bits() + 1))
            }
        };
        Ranges::span(first, last).expect("a range")
    });
    Ranges::union_all(&ranges)
}

pub(crate) fn by_routed_interfaces() -> Outcome {
    let setup = SETUPS[0];
    let mut bed = bed(setup, &[])?;
    bed.deployment.kill_enforcer(0);
    let selected = || measure(&bed, setup, "client", "server");
    let before = selected()?;
    let [client, free] = ["client", "free-1"].map(|name| bed.deployment.bed.interface_of(name));
    let (client, free) = (client?, free?);
    let set = |interface: &str, set: &str, range: &str| -> Outcome {
        let element = format!("{{ \"{interface}\" . {range} }}");
        let arguments = ["add", "element", "inet", "sallyport", set, &element];
        match bed.deployment.nft(0, &arguments)? {
            true => Ok(()),
            false => Err(format!("{element} cannot be added").into()),
        }
    };
    set(&free, "port_ranges4", "192.0.2.0/24")?;
    opens("another's", &before, &selected()?, &[])?;
    set(&client, "port_ranges4", "192.0.2.0/24")?;
    opens("IPv4", &before, &selected()?, &[Kind::Stranger4])?;
    set(&client, "port_ranges6", "2001:db8::/64")?;
    let strangers = [Kind::Stranger4, Kind::Stranger6];
    opens("IPv6", &before, &selected()?, &strangers)
}
