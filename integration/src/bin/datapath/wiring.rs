//! Owns how each way from a workload to another is made, with `ip` on a testbed of one node; never sends a packet.

#![expect(unsafe_code, reason = "system calls and sockets that no library has")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use sallyport_testbed::{Host, Mode, Netns, Testbed};

use crate::measure::{PORT, nft};

/// Two hosts, and how one reaches the other through the node.
pub(crate) struct Way {
    bed: Testbed,
    pub(crate) client: Host,
    pub(crate) server: Host,
    pub(crate) source: IpAddr,
    pub(crate) target: IpAddr,
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 3);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

/// The addresses on devices that a way makes.
const INNER_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const INNER_SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 3);

/// A service's.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

impl Way {
    pub(crate) fn node(&self) -> &Netns {
        self.bed.node(0).netns()
    }

    fn new(mode: Mode) -> Result<Way> {
        let bed = Testbed::builder().mode(mode).build()?;
        let client = bed.add_pod(0, "client", &[CLIENT.into()])?;
        let server = bed.add_pod(0, "server", &[SERVER.into()])?;
        Ok(Way {
            bed,
            client,
            server,
            source: CLIENT.into(),
            target: SERVER.into(),
        })
    }

    /// The same from and to addresses on devices that the way makes.
    fn inner(self) -> Way {
        Way {
            source: INNER_CLIENT.into(),
            target: INNER_SERVER.into(),
            ..self
        }
    }
}

/// Workloads with a veth and a route each.
pub(crate) fn routed() -> Result<Way> {
    Way::new(Mode::Routed)
}

/// Workloads on a bridge that shows its packets to the forward hook, or does not.
pub(crate) fn bridged(shown: bool) -> Result<Way> {
    let way = Way::new(Mode::Bridged)?;
    let value = if shown { "1" } else { "0" };
    way.bed
        .node(0)
        .sysctl("net.bridge.bridge-nf-call-iptables", value)?;
    Ok(way)
}

/// A workload whose veth carries a VLAN that ends in the node, which routes.
pub(crate) fn vlan_routed() -> Result<Way> {
    let way = Way::new(Mode::Routed)?;
    let port = format!("p{}", index(&way.client)?);
    vlan(way.client.netns(), INNER_CLIENT)?;
    ip(
        way.client.netns(),
        &format!("route replace {SERVER}/32 via 10.7.0.1 src {INNER_CLIENT}"),
    )?;
    for arguments in [
        format!("link add link {port} name vlan7 type vlan id 7"),
        "address add 10.7.0.1/24 dev vlan7".to_owned(),
        "link set vlan7 up".to_owned(),
    ] {
        ip(way.node(), &arguments)?;
    }
    Ok(Way {
        source: INNER_CLIENT.into(),
        ..way
    })
}

/// Workloads that send tagged frames through the node's bridge, which shows packets to the forward hook, and those in
/// tagged frames too or not.
pub(crate) fn vlan_bridged(shown: bool) -> Result<Way> {
    let way = bridged(true)?.inner();
    let value = if shown { "1" } else { "0" };
    way.bed
        .node(0)
        .sysctl("net.bridge.bridge-nf-filter-vlan-tagged", value)?;
    vlan(way.client.netns(), INNER_CLIENT)?;
    vlan(way.server.netns(), INNER_SERVER)?;
    Ok(way)
}

/// Workloads on a bridge that keeps VLANs apart itself, and shows its packets to the forward hook.
pub(crate) fn vlan_aware_bridge() -> Result<Way> {
    let way = bridged(true)?;
    ip(way.node(), "link set br0 type bridge vlan_filtering 1")?;
    Ok(way)
}

/// Workloads with a macvlan or an ipvlan device of the node's uplink, as `kind` says to `ip`.
pub(crate) fn on_uplink(kind: &str) -> Result<Way> {
    let way = Way::new(Mode::Routed)?.inner();
    child(&way, &way.client, kind, INNER_CLIENT)?;
    child(&way, &way.server, kind, INNER_SERVER)?;
    Ok(way)
}

/// A workload with such a device, and a host outside the cluster.
pub(crate) fn on_uplink_to_outside(kind: &str) -> Result<Way> {
    let way = Way::new(Mode::Routed)?;
    let outside = way.bed.add_external("outside", &[OUTSIDE.into()])?;
    child(&way, &way.client, kind, INNER_CLIENT)?;
    let fabric = way.bed.fabric_address();
    let uplink = format!("n{}", index_of(way.node(), "uplink")?);
    ip(
        way.client.netns(),
        &format!("route replace {OUTSIDE}/32 via {fabric} dev child onlink src {INNER_CLIENT}"),
    )?;
    // As a switch would: to the device's hardware address, whosever it is.
    let hardware = hardware(way.client.netns(), "child")?;
    for arguments in [
        format!("neighbour replace {INNER_CLIENT} lladdr {hardware} dev {uplink} nud permanent"),
        format!("route replace {INNER_CLIENT}/32 dev {uplink}"),
    ] {
        ip(way.bed.fabric().netns(), &arguments)?;
    }
    Ok(Way {
        server: outside,
        source: INNER_CLIENT.into(),
        target: OUTSIDE.into(),
        ..way
    })
}

/// A service of IPVS in the node, by masquerading: kube-proxy's way. Conntrack knows of its connections, or does not.
pub(crate) fn ipvs(conntrack: bool) -> Result<Way> {
    modprobe("ip_vs")?;
    let way = Way::new(Mode::Routed)?;
    ip(way.node(), "link add service type dummy")?;
    ip(way.node(), &format!("address add {VIRTUAL}/32 dev service"))?;
    ip(way.node(), "link set service up")?;
    let value = if conntrack { "1" } else { "0" };
    way.bed.node(0).sysctl("net.ipv4.vs.conntrack", value)?;
    way.node()
        .run(add_service)
        .context("add a service to IPVS")?;
    Ok(Way {
        target: VIRTUAL.into(),
        ..way
    })
}

/// Workloads of the node, and a flowtable over both their links for every TCP connection.
pub(crate) fn flowtable() -> Result<Way> {
    let way = Way::new(Mode::Routed)?;
    let (near, far) = (index(&way.client)?, index(&way.server)?);
    nft(
        way.node(),
        &format!(
            "table inet shortcut {{
                flowtable fast {{ hook ingress priority 0; devices = {{ p{near}, p{far} }}; }}
                chain forward {{ type filter hook forward priority -10; ip protocol tcp flow add @fast; }}
            }}"
        ),
    )?;
    Ok(way)
}

fn vlan(netns: &Netns, address: Ipv4Addr) -> Result<()> {
    ip(netns, "link add link eth0 name vlan7 type vlan id 7")?;
    ip(netns, &format!("address add {address}/24 dev vlan7"))?;
    ip(netns, "link set vlan7 up")
}

/// Gives a pod a device of the node's uplink.
fn child(way: &Way, pod: &Host, kind: &str, address: Ipv4Addr) -> Result<()> {
    let netns = pod.netns();
    let path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    );
    ip(
        way.node(),
        &format!("link add link uplink name child type {kind}"),
    )?;
    ip(way.node(), &format!("link set child netns {path}"))?;
    ip(netns, &format!("address add {address}/24 dev child"))?;
    ip(netns, "link set child up")
}

/// The index of a host's only link, and so of its other end.
fn index(host: &Host) -> Result<u32> {
    index_of(host.netns(), "eth0")
}

fn index_of(netns: &Netns, link: &str) -> Result<u32> {
    let text = run(netns, &format!("-oneline link show dev {link}"))?;
    let index = text
        .split(':')
        .next()
        .and_then(|number| number.parse().ok());
    index.with_context(|| format!("ip says no index: {text}"))
}

fn hardware(netns: &Netns, link: &str) -> Result<String> {
    let text = run(netns, &format!("-oneline link show dev {link}"))?;
    let mut words = text.split(' ').skip_while(|word| *word != "link/ether");
    let address = words.nth(1).map(str::to_owned);
    address.with_context(|| format!("ip says no hardware address: {text}"))
}

pub(crate) fn ip(netns: &Netns, arguments: &str) -> Result<()> {
    run(netns, arguments).map(drop)
}

fn run(netns: &Netns, arguments: &str) -> Result<String> {
    run_program(netns, "ip", arguments)
}

/// Runs a program of iproute2 in a namespace, with arguments between single spaces.
pub(crate) fn run_program(netns: &Netns, program: &str, arguments: &str) -> Result<String> {
    let mut command = netns.command(program);
    command
        .args(arguments.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = netns
        .spawn(command)
        .and_then(|child| child.wait_with_output())
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {arguments}: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn modprobe(module: &str) -> Result<()> {
    let output = Command::new("modprobe")
        .arg(module)
        .output()
        .context("run modprobe")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("modprobe {module}: {}", said.trim());
    }
    Ok(())
}

/// `struct ip_vs_service_user` and `struct ip_vs_dest_user` of linux/ip_vs.h, one after the other as
/// IP_VS_SO_SET_ADDDEST wants them; IP_VS_SO_SET_ADD wants the first alone.
#[repr(C)]
struct Service {
    protocol: u16,
    address: u32,
    port: u16,
    mark: u32,
    scheduler: [u8; 16],
    flags: u32,
    timeout: u32,
    netmask: u32,
    destination: Destination,
}

#[repr(C)]
struct Destination {
    address: u32,
    port: u16,
    /// 0: masquerading.
    flags: u32,
    weight: i32,
    upper: u32,
    lower: u32,
}

const IP_VS_SO_SET_ADD: libc::c_int = 1154;
const IP_VS_SO_SET_ADDDEST: libc::c_int = 1159;

/// Adds the service and its one server to the IPVS of the namespace that this thread is in.
fn add_service() -> io::Result<()> {
    let mut scheduler = [0; 16];
    scheduler[..2].copy_from_slice(b"rr");
    let service = Service {
        protocol: libc::IPPROTO_TCP as u16,
        address: u32::from(VIRTUAL).to_be(),
        port: PORT.to_be(),
        mark: 0,
        scheduler,
        flags: 0,
        timeout: 0,
        netmask: u32::MAX,
        destination: Destination {
            address: u32::from(SERVER).to_be(),
            port: PORT.to_be(),
            flags: 0,
            weight: 1,
            upper: 0,
            lower: 0,
        },
    };
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::RAW,
        Some(socket2::Protocol::from(libc::IPPROTO_RAW)),
    )?;
    let alone = std::mem::offset_of!(Service, destination);
    for (option, length) in [
        (IP_VS_SO_SET_ADD, alone),
        (IP_VS_SO_SET_ADDDEST, size_of::<Service>()),
    ] {
        // SAFETY: the kernel reads `length` bytes of a plain C structure that is at least as long and lives on.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_IP,
                option,
                (&raw const service).cast(),
                length as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
