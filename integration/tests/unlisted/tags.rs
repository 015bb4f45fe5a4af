//! Frames with one VLAN tag on a node where policy judges them, as the table is where a bridge filters VLANs. The
//! bridge here does not: kernels for tests lack that. So the table is written by the library for ports that the test
//! names, and what a bridge that filters VLANs does with tags behind the chain `source` is imitated by leaving that
//! chain out. On a kernel that has such bridges `datapath vlans` tries all of it.

use std::{collections::BTreeSet, time::Duration};

use sallyport_enforcer::{
    agent::BridgeTable,
    table::{
        self,
        bridge::{Ground, KnownPort, UnknownPorts},
    },
};
use sallyport_integration::deployment::put;
use sallyport_policy::Ranges;
use sallyport_testbed::{
    frames::{Kind, arrivals_tagged},
    kernel_tests::{Failed, Outcome},
};

use crate::{Bed, OUTSIDE, PODS, addresses, bed_among, compare, expect, table::SETUPS};

const SHOWN: &str = "net.bridge.bridge-nf-filter-vlan-tagged";

/// The number of the VLAN.
const VLAN: u16 = 5;

/// Nobody may talk to this one.
const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: closed}
spec:
  podSelector: {matchLabels: {app: free-2}}
  policyTypes: [Ingress]
";

const LINKS: [Kind; 3] = [
    Kind::ArpOwn,
    Kind::Solicitation,
    Kind::SolicitationLinkLocal,
];

/// The kinds with a tag of their own, which have two here.
const STACKED: [Kind; 4] = [
    Kind::PriorityTag,
    Kind::VlanTag,
    Kind::StackedTags,
    Kind::ServiceTag,
];

const LINK_LOCAL: [Kind; 3] = [Kind::LinkLocal, Kind::FromLinkLocal, Kind::ToLinkLocal];

const OWN: [Kind; 2] = [Kind::Own4, Kind::Own6];

/// Checks which of some kinds arrive with a tag, and which do not.
fn expect_tagged(
    what: &str,
    bed: &Bed,
    [from, to]: [&str; 2],
    kinds: &[Kind],
    passes: bool,
) -> Outcome {
    let (from, to, peer) = (&bed.parties[from], &bed.parties[to], &bed.parties["peer"]);
    let arrived = arrivals_tagged(from, to, peer, VLAN)?;
    compare(what, &arrived, kinds, passes)
}

/// The ground that the enforcer would see on this node in strict mode, for known ports or unknown ones.
fn ground(bed: &Bed, known: bool, judges_tags: bool) -> Result<Ground, Failed> {
    let plane = &bed.deployment.bed;
    let mut ground = Ground {
        judges_tags,
        ..Ground::default()
    };
    if known {
        for (name, last) in PODS {
            let port = plane.interface_of(name)?;
            let known = KnownPort {
                addresses: addresses(last).into(),
                ..KnownPort::default()
            };
            ground.known.insert(port, known);
        }
        for name in ["server", "free-2"] {
            ground.isolated.insert(plane.interface_of(name)?);
        }
        return Ok(ground);
    }
    let uplinks = OUTSIDE.map(|(name, _)| plane.interface_of(name));
    let [first, last] = [addresses(0), addresses(255)];
    let ranges = [0, 1].map(|family| Ranges::span(first[family], last[family]));
    let [Some(v4), Some(v6)] = ranges else {
        return Err("no ranges".into());
    };
    ground.unknown = Some(UnknownPorts {
        elsewhere: uplinks.into_iter().collect::<Result<BTreeSet<_>, _>>()?,
        addresses: PODS
            .into_iter()
            .flat_map(|(_, last)| addresses(last))
            .collect(),
        ranges: v4.union(&v6),
        isolated: true,
    });
    Ok(ground)
}

fn write(bed: &Bed, ground: Ground) -> Outcome {
    let node = bed.deployment.bed.node(0).netns();
    let kernel = node.run(table::open)?;
    kernel
        .for_table(table::BRIDGE)
        .await_orphan(Duration::from_secs(5))?;
    Ok(BridgeTable::beside(&kernel, false).set(ground)?)
}

/// Frames with one tag are treated as those without, to and from ports that lead away: by the table, and by policy.
pub(crate) fn judged(column: usize) -> Outcome {
    let setup = SETUPS[column];
    let mut bed = bed_among(setup, &OUTSIDE, &[])?;
    bed.deployment.client()?.enforce(vec![put(CLOSED)])?;
    let untouched = ["outside-1", "server"];
    expect_tagged("before", &bed, untouched, &Kind::ALL, false)?;
    bed.deployment.kill_enforcer(0);
    let ground = |judges_tags| ground(&bed, setup.known, judges_tags);
    write(&bed, ground(false)?)?;
    expect_tagged("not judged", &bed, untouched, &Kind::ALL, false)?;
    write(&bed, ground(true)?)?;
    let shown = |value| bed.deployment.bed.node(0).netns().sysctl(SHOWN, value);
    shown("1")?;

    let groups = [Kind::Multicast4, Kind::Broadcast, Kind::Mdns4, Kind::Mdns6];
    let entering = [
        &LINKS[..],
        &OWN,
        &[Kind::RouterAdvertisement, Kind::DhcpReply, Kind::Dhcp6Reply],
    ];
    let kept_out = [
        &STACKED[..],
        &LINK_LOCAL,
        &groups,
        &[Kind::OtherEtherType, Kind::Unlisted4],
    ];
    let (entering, kept_out) = (entering.concat(), kept_out.concat());
    let ends = ["outside-1", "server"];
    expect_tagged("entering", &bed, ends, &entering, true)?;
    expect_tagged("entering", &bed, ends, &kept_out, false)?;
    expect("entering, no tag", &bed, setup, ends, &entering, true)?;
    let denied = ["outside-1", "free-2"];
    expect_tagged("denied", &bed, denied, &OWN, false)?;
    // The control: that is policy, which does not judge them otherwise.
    shown("0")?;
    expect_tagged("not shown", &bed, denied, &OWN, true)?;
    shown("1")?;

    // A tag that the workload has put on itself.
    for ends in [["free-1", "outside-1"], ["client", "server"]] {
        expect_tagged("own tag", &bed, ends, &Kind::ALL, false)?;
    }
    // One that the bridge has put on, behind the chain.
    if !bed
        .deployment
        .nft(0, &["flush", "chain", "bridge", "sallyport", "source"])?
    {
        return Err("the chain cannot be flushed".into());
    }
    let leaving = [&LINKS[..], &[Kind::DhcpRequest, Kind::Dhcp6Request]].concat();
    let kept_in = [
        &STACKED[..],
        &LINK_LOCAL,
        &[Kind::OtherEtherType, Kind::RouterAdvertisement],
    ];
    let kept_in = kept_in.concat();
    let ends = ["free-1", "outside-1"];
    expect_tagged("leaving", &bed, ends, &[&leaving[..], &OWN].concat(), true)?;
    expect_tagged("leaving", &bed, ends, &kept_in, false)?;
    let ends = ["client", "outside-1"];
    expect_tagged("leaving, restricted", &bed, ends, &leaving, true)?;
    expect_tagged("leaving, restricted", &bed, ends, &OWN, false)?;
    shown("0")?;
    expect_tagged("leaving, not shown", &bed, ends, &OWN, true)?;
    shown("1")?;
    expect_tagged("among", &bed, ["client", "server"], &Kind::ALL, false)
}
