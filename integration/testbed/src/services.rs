//! Owns the rules that others write on a node for Kubernetes' Services, host ports and the node's DNS cache, in the
//! shape in which they really write them; never writes a rule of Sallyport's.
//!
//! Chains have the names that they have there, but for the hashes in them.

mod host_ports;
mod iptables;
mod nftables;
mod node_dns;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

pub use host_ports::{HostPort, write_host_ports};
pub use node_dns::write_node_dns;

use crate::probe::Protocol;
use crate::{Family, Host, Netns};

/// The form of kube-proxy's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// `--proxy-mode=iptables`.
    Iptables,
    /// `--proxy-mode=nftables` up to Kubernetes 1.35: each endpoint has a chain.
    Nftables,
    /// `--proxy-mode=nftables` since Kubernetes 1.36: endpoints are elements of one map, and hairpins of one set.
    NftablesMaps,
}

/// The endpoints that a Service sends traffic of its node port to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalTrafficPolicy {
    /// To any endpoint, from the node's own address.
    Cluster,
    /// To an endpoint of the same node, from the client's address.
    Local,
}

/// A port of a Service.
#[derive(Debug, Clone)]
pub struct Service {
    /// The namespace and the name of the Service, as `default/web`.
    pub name: &'static str,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The `clusterIPs`.
    pub addresses: Vec<IpAddr>,
    /// The port at these.
    pub port: u16,
    /// The port at every node.
    pub node_port: Option<u16>,
    /// The endpoints of that traffic.
    pub external: ExternalTrafficPolicy,
    pub endpoints: Vec<Endpoint>,
}

/// A pod behind a Service, or a node where the pod has no network of its own.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The pod.
    pub pod: Host,
    /// The node that it is on.
    pub node: usize,
    /// The port that it listens on: the `targetPort`.
    pub port: u16,
}

/// The cluster as kube-proxy sees it.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// The `--cluster-cidr`s, IPv4 first.
    pub pods: [&'static str; 2],
    /// The ranges of Services, IPv4 first.
    pub ranges: [&'static str; 2],
    /// The Services' ports.
    pub services: Vec<Service>,
}

impl Proxy {
    /// Writes the rules of one node, in both families.
    pub fn write(self, cluster: &Cluster, index: usize, node: &Host) -> io::Result<()> {
        for family in [Family::V4, Family::V6] {
            let view = View {
                cluster,
                family,
                index,
                address: node.address(family).expect("a node has both families"),
            };
            match self {
                Self::Iptables => restore(node.netns(), family, &iptables::rules(&view))?,
                Self::Nftables => load(node.netns(), &nftables::rules(&view, false))?,
                Self::NftablesMaps => load(node.netns(), &nftables::rules(&view, true))?,
            }
        }
        Ok(())
    }
}

/// The cluster as one node sees it in one family.
struct View<'a> {
    cluster: &'a Cluster,
    family: Family,
    index: usize,
    address: IpAddr,
}

/// A port of a Service in one family.
struct Port<'a> {
    service: &'a Service,
    /// The name in comments: `default/web:http`.
    id: String,
    protocol: String,
    address: IpAddr,
    /// All endpoints.
    all: Vec<SocketAddr>,
    /// The endpoints on the node.
    local: Vec<SocketAddr>,
}

impl View<'_> {
    fn of_family<'a>(&self, texts: &'a [&'static str; 2]) -> &'a str {
        match self.family {
            Family::V4 => texts[0],
            Family::V6 => texts[1],
        }
    }

    fn pods(&self) -> &str {
        self.of_family(&self.cluster.pods)
    }

    fn services(&self) -> &str {
        self.of_family(&self.cluster.ranges)
    }

    fn ports(&self) -> Vec<Port<'_>> {
        let services = self.cluster.services.iter();
        services.filter_map(|service| self.port(service)).collect()
    }

    fn port<'a>(&self, service: &'a Service) -> Option<Port<'a>> {
        let mut addresses = service.addresses.iter();
        let address = *addresses.find(|&&one| Family::of(one) == self.family)?;
        let socket = |endpoint: &Endpoint| {
            let address = endpoint.pod.address(self.family)?;
            Some(SocketAddr::new(address, endpoint.port))
        };
        let local = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.node == self.index);
        Some(Port {
            service,
            id: format!("{}:{}", service.name, service.port),
            protocol: service.protocol.to_string().to_lowercase(),
            address,
            all: service.endpoints.iter().filter_map(socket).collect(),
            local: local.filter_map(socket).collect(),
        })
    }
}

/// The part of a chain's name that tells it from others: as long as others make it, and of their letters.
fn hash(text: &str, length: usize) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let letter = |place: usize| {
        let mut hasher = DefaultHasher::new();
        (text, place).hash(&mut hasher);
        char::from(letters[(hasher.finish() % 32) as usize])
    };
    (0..length).map(letter).collect()
}

/// Adds rules to those that iptables has in a namespace.
fn restore(netns: &Netns, family: Family, rules: &str) -> io::Result<()> {
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    feed(netns, program, &["--noflush", "--wait", "5"], rules)
}

/// Adds rules to those that nftables has in a namespace.
fn load(netns: &Netns, rules: &str) -> io::Result<()> {
    feed(netns, "nft", &["--file", "-"], rules)
}

fn feed(netns: &Netns, program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut command = netns.command(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = netns.spawn(command)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {said}\n{input}")))
}
