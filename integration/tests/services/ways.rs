//! The ways of packets that have to do with Services: who asks whom, at which address, and what is always allowed.

use std::net::SocketAddr;

use sallyport_testbed::{
    Family, Host,
    probe::{Probe, Protocol},
};

use crate::world::{self, HOST_PORT, NODE_PORTS, TARGET, World};

/// A way of packets.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) from: Host,
    to: Host,
    protocol: Protocol,
    at: Box<dyn Fn(Family) -> SocketAddr>,
    /// Whether no policy may stop it.
    pub(crate) always: bool,
    /// Whether its packets are neither forwarded nor translated.
    pub(crate) direct: bool,
    /// Whether another node than the client's translates it.
    pub(crate) elsewhere: bool,
    /// Whether the pod sees the address of a node as the client's.
    pub(crate) masqueraded: bool,
    /// Whether it begins at the pod `client`.
    pub(crate) of_client: bool,
    /// Whether it ends at one of the pods with the label `app: server`.
    pub(crate) to_server: bool,
}

impl Way {
    pub(crate) fn probe(&self, family: Family) -> Probe {
        Probe::new(&self.from, &self.to, self.protocol, 0, family).at(self.target(family))
    }

    pub(crate) fn target(&self, family: Family) -> SocketAddr {
        (self.at)(family)
    }

    /// Whether TCP by this way ends at a pod.
    pub(crate) fn leads_to(&self, pod: &Host) -> bool {
        self.protocol == Protocol::Tcp && self.to.name() == pod.name()
    }

    pub(crate) fn begins_at_pod(&self) -> bool {
        self.from.name().starts_with("default/")
    }

    fn elsewhere(self) -> Way {
        Way {
            elsewhere: true,
            ..self
        }
    }

    fn direct(self) -> Way {
        Way {
            direct: true,
            ..self
        }
    }

    fn masqueraded(self) -> Way {
        Way {
            masqueraded: true,
            ..self
        }
    }

    fn always(self) -> Way {
        Way {
            always: true,
            ..self
        }
    }
}

fn at(host: &Host, port: u16) -> impl Fn(Family) -> SocketAddr + 'static {
    let host = host.clone();
    move |family| SocketAddr::new(host.address(family).expect("both families"), port)
}

/// All ways.
pub(crate) fn ways(world: &World) -> Vec<Way> {
    let World {
        bed,
        client,
        other,
        near,
        far,
        dns,
        outside,
        ..
    } = world;
    let (node, node_2) = (bed.node(0), bed.node(1));
    let way = |name, from: &Host, to: &Host, at: Box<dyn Fn(Family) -> SocketAddr>| Way {
        name,
        from: from.clone(),
        to: to.clone(),
        protocol: Protocol::Tcp,
        at,
        always: false,
        direct: false,
        elsewhere: false,
        masqueraded: false,
        of_client: from.name() == client.name(),
        to_server: to.name() == near.name() || to.name() == far.name(),
    };
    let udp = |way: Way| Way {
        protocol: Protocol::Udp,
        ..way
    };
    let node_port = |index: usize| Box::new(at(node, NODE_PORTS[index]));
    let host_port = || Box::new(at(node, HOST_PORT));
    vec![
        way("pod-clusterip-near", client, near, Box::new(world::near)),
        way("pod-clusterip-far", client, far, Box::new(world::far)),
        way("other-clusterip-near", other, near, Box::new(world::near)),
        way("other-clusterip-far", other, far, Box::new(world::far)),
        // By the node of the pod: its source is replaced by the node's on the way to the pod.
        way("outside-nodeport-near", outside, near, node_port(0)).masqueraded(),
        // By another node than the pod's: the pod's node sees it come from the first node.
        way("outside-nodeport-far", outside, far, node_port(1)).masqueraded(),
        way("outside-nodeport-local", outside, near, node_port(2)),
        way("pod-nodeport-near", client, near, node_port(0)).masqueraded(),
        way("pod-nodeport-far", client, far, node_port(1)).masqueraded(),
        // By the node of the pod, which is not the client's own: that one sees a packet to the other node.
        way(
            "pod-other-nodeport",
            client,
            far,
            Box::new(at(node_2, NODE_PORTS[1])),
        )
        .masqueraded()
        .elsewhere(),
        way("outside-hostport", outside, near, host_port()),
        way("pod-hostport", client, near, host_port()).masqueraded(),
        // Packets from a process of the node to a Service: to the node's own pod, and to one of another node.
        way("node-clusterip-near", node, near, Box::new(world::near))
            .masqueraded()
            .always(),
        way("node-clusterip-far", node, far, Box::new(world::far)).masqueraded(),
        // Kubelet's probes, and what is none of them: another node's packets to the pod.
        way("kubelet-near", node, near, Box::new(at(near, TARGET)))
            .direct()
            .always(),
        way("kubelet-far", node_2, far, Box::new(at(far, TARGET)))
            .direct()
            .always(),
        way("node-to-pod-far", node, far, Box::new(at(far, TARGET))),
        // A pod by its own Service to itself. The source is replaced, or the pod would answer itself.
        way("hairpin-near", near, near, Box::new(world::near))
            .masqueraded()
            .always(),
        way("hairpin-far", far, far, Box::new(world::far))
            .masqueraded()
            .always(),
        way("hairpin-nodeport", near, near, node_port(0))
            .masqueraded()
            .always(),
        way("hairpin-hostport", near, near, host_port())
            .masqueraded()
            .always(),
        // A Service of something that runs on nodes themselves.
        way("pod-own-node", client, node, Box::new(world::own_node)).always(),
        way(
            "pod-other-node",
            client,
            node_2,
            Box::new(world::other_node),
        ),
        // The node's DNS cache answers at an address of its own and at that of the cluster's DNS.
        udp(way("pod-node-dns", client, node, Box::new(world::node_dns))).always(),
        udp(way(
            "pod-cached-dns",
            client,
            node,
            Box::new(world::cluster_dns),
        ))
        .always(),
        // The second node has no cache: the same question goes to the pod of the cluster's DNS.
        udp(way(
            "pod-cluster-dns",
            far,
            dns,
            Box::new(world::cluster_dns),
        )),
    ]
}
