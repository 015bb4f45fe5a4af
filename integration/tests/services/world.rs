//! The world of the rows: two nodes, pods on them, hosts outside, Services of the pods, and what answers.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use sallyport_testbed::{
    Family, Host, Mode, Testbed,
    kernel_tests::Failed,
    probe::{Protocol, Server},
    services::{
        Cluster, Endpoint, ExternalTrafficPolicy, HostPort, Proxy, Service, write_host_ports,
        write_node_dns,
    },
};

/// The same for Sallyport.
pub(crate) const CLUSTER: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
spec: {workloadCIDRs: [10.9.1.0/24, 'fd00:9:1::/64']}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-2}
spec: {workloadCIDRs: [10.9.2.0/24, 'fd00:9:2::/64']}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: client, labels: {app: client}}
spec: {node: node-1, addresses: [10.9.1.2, 'fd00:9:1::2']}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: other, labels: {app: other}}
spec: {node: node-1, addresses: [10.9.1.4, 'fd00:9:1::4']}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: near, labels: {app: server, at: near}}
spec: {node: node-1, addresses: [10.9.1.3, 'fd00:9:1::3'], ports: [{name: http, port: 8080}]}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: far, labels: {app: server, at: far}}
spec: {node: node-2, addresses: [10.9.2.3, 'fd00:9:2::3'], ports: [{name: http, port: 8080}]}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: dns, labels: {app: dns}}
spec: {node: node-2, addresses: [10.9.2.5, 'fd00:9:2::5']}
";

/// The servers' port in their pods. Services have it as 80.
pub(crate) const TARGET: u16 = 8080;

/// The node ports: to the near pod, to the far pod, and to the near pod with `externalTrafficPolicy: Local`.
pub(crate) const NODE_PORTS: [u16; 3] = [30080, 30081, 30082];

/// The host port of the near pod.
pub(crate) const HOST_PORT: u16 = 9080;

/// The port of what nodes themselves serve by Services, as API servers do.
pub(crate) const API: u16 = 6443;

/// The ClusterIPs: of the near pod, of the far pod, of both, of the cluster's DNS, of the first node, of the second.
const CLUSTER_IPS: [[&str; 2]; 6] = [
    ["10.96.0.1", "fd00:96::1"],
    ["10.96.0.2", "fd00:96::2"],
    ["10.96.0.3", "fd00:96::3"],
    ["10.96.0.10", "fd00:96::a"],
    ["10.96.0.5", "fd00:96::5"],
    ["10.96.0.6", "fd00:96::6"],
];

/// The addresses of a node's DNS cache, beside the ClusterIP of the cluster's DNS.
const NODE_DNS: [&str; 2] = ["169.254.20.10", "fd00:20::10"];

pub(crate) struct World {
    pub(crate) bed: Testbed,
    /// On the first node, as are `other` and `near`.
    pub(crate) client: Host,
    pub(crate) other: Host,
    pub(crate) near: Host,
    /// On the second node, as is `dns`.
    pub(crate) far: Host,
    pub(crate) dns: Host,
    pub(crate) outside: Host,
}

impl World {
    /// Builds it, with everything that others write on nodes. The DNS cache is on the first node alone.
    pub(crate) fn build(proxy: Proxy, mode: Mode) -> Result<World, Failed> {
        let bed = Testbed::builder().nodes(2).mode(mode).build()?;
        let pod = |node, name: &str, addresses| bed.add_pod(node, name, &ips(addresses));
        let client = pod(0, "default/client", ["10.9.1.2", "fd00:9:1::2"])?;
        let other = pod(0, "default/other", ["10.9.1.4", "fd00:9:1::4"])?;
        let near = pod(0, "default/near", ["10.9.1.3", "fd00:9:1::3"])?;
        let far = pod(1, "default/far", ["10.9.2.3", "fd00:9:2::3"])?;
        let dns = pod(1, "default/dns", ["10.9.2.5", "fd00:9:2::5"])?;
        let outside = bed.add_external("outside", &ips(["203.0.113.7", "2001:db8:203::7"]))?;
        if mode == Mode::Bridged {
            bed.set_hairpin(near.name())?;
            bed.set_hairpin(far.name())?;
        }
        let cluster = Cluster {
            pods: ["10.9.0.0/16", "fd00:9::/32"],
            ranges: ["10.96.0.0/16", "fd00:96::/112"],
            services: services(&bed, [&near, &far, &dns]),
        };
        for node in 0..2 {
            proxy.write(&cluster, node, bed.node(node))?;
        }
        let (host, pod) = (HOST_PORT, TARGET);
        write_host_ports(bed.node(0), &near, HostPort { host, pod }, [24, 64])?;
        let cached: Vec<_> = [NODE_DNS, CLUSTER_IPS[3]]
            .into_iter()
            .flat_map(ips)
            .collect();
        bed.add_link(0, "nodelocaldns", &cached)?;
        write_node_dns(bed.node(0), &cached)?;
        Ok(World {
            bed,
            client,
            other,
            near,
            far,
            dns,
            outside,
        })
    }

    /// Starts the servers: the pods, the first node's DNS cache, and both nodes themselves.
    pub(crate) fn serve(&self) -> io::Result<Vec<Server>> {
        [
            Server::start(&self.near, &[(Protocol::Tcp, TARGET)]),
            Server::start(&self.far, &[(Protocol::Tcp, TARGET)]),
            Server::start(&self.dns, &[(Protocol::Udp, 53)]),
            Server::start(
                self.bed.node(0),
                &[(Protocol::Udp, 53), (Protocol::Tcp, API)],
            ),
            Server::start(self.bed.node(1), &[(Protocol::Tcp, API)]),
        ]
        .into_iter()
        .collect()
    }
}

fn services(bed: &Testbed, [near, far, dns]: [&Host; 3]) -> Vec<Service> {
    let at = |pod: &Host, node, port| Endpoint {
        pod: pod.clone(),
        node,
        port,
    };
    let (near, far, dns) = (at(near, 0, TARGET), at(far, 1, TARGET), at(dns, 1, 53));
    let service = |name, ips_of: usize, endpoints: Vec<Endpoint>| Service {
        name,
        protocol: Protocol::Tcp,
        addresses: ips(CLUSTER_IPS[ips_of]),
        port: 80,
        node_port: None,
        external: ExternalTrafficPolicy::Cluster,
        endpoints,
    };
    let mut services = vec![
        service("default/near", 0, vec![near.clone()]),
        service("default/far", 1, vec![far.clone()]),
        service("default/both", 2, vec![near.clone(), far]),
        service("kube-system/kube-dns", 3, vec![dns]),
        service("default/near-local", 0, vec![near]),
        service("default/own-node", 4, vec![at(bed.node(0), 0, API)]),
        service("default/other-node", 5, vec![at(bed.node(1), 1, API)]),
    ];
    services[0].node_port = Some(NODE_PORTS[0]);
    services[1].node_port = Some(NODE_PORTS[1]);
    services[3].protocol = Protocol::Udp;
    services[3].port = 53;
    services[4].port = 81;
    services[4].node_port = Some(NODE_PORTS[2]);
    services[4].external = ExternalTrafficPolicy::Local;
    services
}

/// All addresses that are a node's own: of its uplink, of its bridge, of its DNS cache. The kernel takes any of them
/// for the source where it masquerades to a pod whose link has none.
pub(crate) fn addresses_of_nodes(bed: &Testbed) -> Vec<IpAddr> {
    let mut addresses = ips(NODE_DNS);
    addresses.push(IpAddr::from([169, 254, 1, 1]));
    addresses.extend(
        [0, 1]
            .into_iter()
            .flat_map(|node| bed.node(node).addresses()),
    );
    addresses
}

fn ips(texts: [&str; 2]) -> Vec<IpAddr> {
    let parse = |text: &str| text.parse().expect("an address");
    texts.map(parse).to_vec()
}

fn of(texts: [&str; 2], family: Family, port: u16) -> SocketAddr {
    let [v4, v6] = texts;
    let text = if family == Family::V4 { v4 } else { v6 };
    SocketAddr::new(text.parse().expect("an address"), port)
}

/// The ClusterIPs with the ports of their Services.
pub(crate) fn near(family: Family) -> SocketAddr {
    of(CLUSTER_IPS[0], family, 80)
}

pub(crate) fn far(family: Family) -> SocketAddr {
    of(CLUSTER_IPS[1], family, 80)
}

pub(crate) fn both(family: Family) -> SocketAddr {
    of(CLUSTER_IPS[2], family, 80)
}

pub(crate) fn cluster_dns(family: Family) -> SocketAddr {
    of(CLUSTER_IPS[3], family, 53)
}

pub(crate) fn own_node(family: Family) -> SocketAddr {
    of(CLUSTER_IPS[4], family, 80)
}

pub(crate) fn other_node(family: Family) -> SocketAddr {
    of(CLUSTER_IPS[5], family, 80)
}

/// The address of the first node's DNS cache.
pub(crate) fn node_dns(family: Family) -> SocketAddr {
    of(NODE_DNS, family, 53)
}
