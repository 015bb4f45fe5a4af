//! Sources that are not the sender's own, on nodes that route: what comes in where the route to its source does not
//! lead passes nowhere, whoever's address it is.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use sallyport_integration::{
    deployment::{Deployment, Streams, put},
    pods,
};
use sallyport_testbed::{
    Family, Host, Mode, Testbed,
    kernel_tests::{Failed, Outcome},
};
use socket2::{Domain, Socket, Type};

use crate::{PODS, cluster};

/// Nothing may leave the client, and to the servers comes what is of servers, or of one network outside.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: client}
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: servers}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: server}}
    - ipBlock: {cidr: 192.0.2.0/24}
    - ipBlock: {cidr: '2001:db8::/32'}
";

const PORT: u16 = 7000;

/// The time that a datagram may be under way.
const PATIENCE: Duration = Duration::from_millis(300);

struct Bed {
    deployment: Deployment,
    client: Host,
    near: Host,
    far: Host,
}

/// Two nodes that route, which have no say in what passes themselves: reverse path filters are off.
fn bed(arguments: &[&str]) -> Result<Bed, Failed> {
    let bed = Testbed::builder().nodes(2).mode(Mode::Routed).build()?;
    let [client, near, far] = pods::add(&bed, &PODS)?;
    let fabric = std::iter::once(bed.fabric());
    for router in (0..bed.nodes()).map(|node| bed.node(node)).chain(fabric) {
        let listed = router
            .netns()
            .run(|| std::fs::read_dir("/proc/sys/net/ipv4/conf"))?;
        for interface in listed {
            let interface = interface?.file_name();
            let name = format!("net.ipv4.conf.{}.rp_filter", interface.display());
            router.sysctl(&name, "0")?;
        }
    }
    let deployment = Deployment::start_with(bed, &[], arguments, Streams::default())?;
    deployment.client()?.enforce(vec![put(cluster())])?;
    Ok(Bed {
        deployment,
        client,
        near,
        far,
    })
}

/// A socket of an address that the host need not have.
fn socket(host: &Host, address: IpAddr) -> io::Result<UdpSocket> {
    host.netns().run(|| {
        let address = SocketAddr::new(address, 0);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    })
}

/// Whether a datagram from a host arrives at another one under a source.
fn arrives(from: &Host, source: IpAddr, to: &Host) -> Result<bool, Failed> {
    let family = Family::of(source);
    let destination = to.address(family).ok_or("it has no such address")?;
    let server = to.netns().run(|| UdpSocket::bind((destination, PORT)))?;
    server.set_read_timeout(Some(Duration::from_millis(20)))?;
    let sender = socket(from, source)?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 16];
    while Instant::now() < deadline {
        // A packet that waits for neighbour discovery may be lost.
        sender.send_to(b"spoofed", (destination, PORT))?;
        if let Ok((_, peer)) = server.recv_from(&mut buffer) {
            if peer.ip() != source {
                return Err(format!("{source} arrives as {peer}").into());
            }
            return Ok(true);
        }
    }
    Ok(false)
}

fn expect(what: &str, from: &Host, source: IpAddr, to: &Host, wanted: bool) -> Outcome {
    match arrives(from, source, to)? == wanted {
        true => Ok(()),
        false => {
            let (from, to) = (from.name(), to.name());
            Err(format!("{what}: {source} from {from} to {to}: not {wanted}").into())
        }
    }
}

fn own(host: &Host) -> Result<[IpAddr; 2], Failed> {
    let [v4, v6] = [Family::V4, Family::V6].map(|family| host.address(family));
    Ok([v4.ok_or("no IPv4")?, v6.ok_or("no IPv6")?])
}

/// The number of packets that a node counts as spoofed.
fn counted(deployment: &Deployment, node: usize) -> Result<u64, Failed> {
    let ruleset = deployment.ruleset(node)?;
    let rules = ruleset
        .lines()
        .filter(|line| line.contains("behind another interface"));
    let packets = rules.filter_map(|rule| {
        let (_, rest) = rule.split_once("counter packets ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(packets.sum())
}

/// Takes the tables away, and who would make them again.
fn without_tables(deployment: &mut Deployment) -> Outcome {
    for node in 0..2 {
        deployment.kill_enforcer(node);
        if !deployment.nft(node, &["flush", "ruleset"])? {
            return Err("the table cannot be taken away".into());
        }
    }
    Ok(())
}

/// The address of another pod of the node, which may what the sender may not.
pub(crate) fn another_pods() -> Outcome {
    let Bed {
        mut deployment,
        client,
        near,
        far,
    } = bed(&[])?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(POLICIES)])?;
    for (of_client, of_near) in own(&client)?.into_iter().zip(own(&near)?) {
        expect("its own, denied", &client, of_client, &far, false)?;
        expect("the other's", &client, of_near, &far, false)?;
        // From another node it comes in by the uplink.
        expect("from elsewhere", &far, of_near, &client, false)?;
        expect("the true one", &near, of_near, &far, true)?;
    }
    if counted(&deployment, 0)? == 0 {
        return Err("no spoofed packet was counted".into());
    }
    // The control: without the table they arrive.
    without_tables(&mut deployment)?;
    for of_near in own(&near)? {
        expect("without a table", &client, of_near, &far, true)?;
        expect("without a table", &far, of_near, &client, true)?;
    }
    Ok(())
}

/// An address that is nobody's here, where the interfaces of workloads are named.
pub(crate) fn a_strangers() -> Outcome {
    let Bed {
        mut deployment,
        client,
        near,
        far,
    } = bed(&["--interface", "p*"])?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(POLICIES)])?;
    let strangers: [IpAddr; 2] = [[192, 0, 2, 1].into(), "2001:db8::1".parse()?];
    for (of_near, stranger) in own(&near)?.into_iter().zip(strangers) {
        expect("a stranger's", &client, stranger, &far, false)?;
        expect("the true one", &near, of_near, &far, true)?;
    }
    without_tables(&mut deployment)?;
    for stranger in strangers {
        expect("without a table", &client, stranger, &far, true)?;
    }
    Ok(())
}
