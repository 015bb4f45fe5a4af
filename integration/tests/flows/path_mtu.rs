//! The path's MTU: routers tell it by ICMP errors, which pass because the connection that they are of is permitted,
//! where ICMP as such is not.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sallyport_integration::deployment::put;
use sallyport_testbed::{
    Family, Host, Mode, Netns,
    kernel_tests::{Failed, Outcome},
    probe::{self, Probe, Prober, Protocol},
};

use crate::{Bed, bed};

/// Smaller than what the pods' own links take, and enough for IPv6, which asks for 1,280 of every link.
const NARROW: u32 = 1300;

/// Many segments.
const BYTES: usize = 1 << 20;

/// The time that a transfer may take. A transfer takes a few milliseconds, or for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time that a transfer is watched that must not come through.
const WATCHED: Duration = Duration::from_secs(2);

/// Client and servers may use one TCP port between them, in both their policies, and nothing else.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 7000}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 7000}]}]
";

/// The table that makes a node ignore the ICMP errors of routers about a path.
const DEAF: &str = "
table inet deaf {
  chain forward {
    type filter hook forward priority -10;
    icmp type destination-unreachable counter drop;
    icmpv6 type packet-too-big counter drop;
  }
}
";

/// The sender.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Upload,
    Download,
}

pub(super) fn discovered() -> Outcome {
    // Each in a bed of its own: what one end has learnt of a path it tells the other (as its MSS).
    discovered_by(Way::Upload)?;
    discovered_by(Way::Download)
}

fn discovered_by(way: Way) -> Outcome {
    let Bed {
        deployment,
        client,
        servers: [_, far],
    } = bed(Mode::Routed)?;
    deployment.client()?.enforce(vec![put(POLICIES)])?;
    let bed = &deployment.bed;
    // The hearer's node tells the speaker, through the speaker's node.
    let (hearer, speakers_node) = match way {
        Way::Upload => (&far, bed.node(0).netns()),
        Way::Download => (&client, bed.node(1).netns()),
    };
    bed.set_mtu(hearer.name(), NARROW)?;
    nft(speakers_node, &[DEAF])?;
    for family in [Family::V4, Family::V6] {
        let arrived = transfer(&client, &far, family, way, WATCHED)?;
        if arrived == BYTES {
            return Err(format!("{way:?} {family}: no segment was too large: no test").into());
        }
    }
    nft(speakers_node, &["delete", "table", "inet", "deaf"])?;
    for family in [Family::V4, Family::V6] {
        let ping = Prober::default().probe(Probe::new(&client, &far, Protocol::Icmp, 0, family));
        if ping != probe::Outcome::Blocked {
            return Err(format!("{way:?} {family}: ICMP as such is not allowed: {ping}").into());
        }
        let arrived = transfer(&client, &far, family, way, PATIENCE)?;
        if arrived < BYTES {
            return Err(format!("{way:?} {family}: stalls after {arrived} of {BYTES}").into());
        }
    }
    Ok(())
}

fn nft(netns: &Netns, arguments: &[&str]) -> Outcome {
    let mut nft = netns.command("nft");
    nft.args(arguments);
    match netns.spawn(nft)?.wait()?.success() {
        true => Ok(()),
        false => Err(format!("nft does not take {arguments:?}").into()),
    }
}

/// Sends `BYTES` over a new connection to port 7000. Returns how many arrive in time.
fn transfer(
    client: &Host,
    server: &Host,
    family: Family,
    way: Way,
    patience: Duration,
) -> Result<usize, Failed> {
    let address = server.address(family).ok_or("no address of that family")?;
    let target = SocketAddr::new(address, 7000);
    let listener = server.netns().run(|| TcpListener::bind(target))?;
    let connect = || TcpStream::connect_timeout(&target, Duration::from_secs(5));
    let opened = client.netns().run(connect)?;
    let (accepted, _) = listener.accept()?;
    let (mut speaker, mut hearer) = match way {
        Way::Upload => (opened, accepted),
        Way::Download => (accepted, opened),
    };
    speaker.set_write_timeout(Some(patience))?;
    hearer.set_read_timeout(Some(Duration::from_millis(100)))?;
    let speaking = thread::spawn(move || {
        // One that stalls is given up.
        let _ = speaker.write_all(&vec![0; BYTES]);
        speaker
    });
    let (mut arrived, mut buffer) = (0, vec![0; 1 << 16]);
    let deadline = Instant::now() + patience;
    while arrived < BYTES && Instant::now() < deadline {
        arrived += hearer.read(&mut buffer).unwrap_or(0);
    }
    drop(hearer);
    drop(speaking.join());
    Ok(arrived)
}
