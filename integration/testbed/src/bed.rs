//! Owns a bed of nodes, pods and external hosts as network namespaces of the real kernel, and what is attached where;
//! never sends a packet of its own, and leaves nothing behind however the process ends.
//!
//! ```text
//!            fabric 198.18.0.1 ──── external 203.0.113.7
//!            /     \
//!      node-0       node-1            uplinks 198.18.0.10, .11, ...
//!      /    \          \
//!  pod      pod        pod            each with a veth to its node, routed or on the node's bridge
//! ```
//!
//! Uplinks lie in 198.18.0.0/15 and fdff:5a11::/64: ranges for benchmarks and for nobody, that no pods are given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};

use futures::future::try_join_all;
use ipnetwork::IpNetwork;

use crate::state::{Attached, State};
use crate::wiring::{self, Owner, Plan};
use crate::{Change, Destination, Error, Host, Mac, Netns, reactor};

/// The connection of a node's pods to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Each pod's veth is a routed link; pods of a node reach each other by routing.
    Routed,
    /// The veths are ports of a bridge in the node; pods of a node reach each other through it, and the bridge hands
    /// their packets to the forward hook (`net.bridge.bridge-nf-call-iptables` and `ip6tables` are 1).
    Bridged,
}

/// The plan of a bed; see [`Testbed::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: usize,
    mode: Mode,
    permanent_neighbours: bool,
}

impl Builder {
    /// Sets the number of nodes; the default is one.
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// Sets the connection of pods to their node; the default is routed.
    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Tells pods of one bridge each other's hardware addresses, instead of leaving them to ARP and neighbour
    /// discovery. Needed for more than some thirty pods a bridge: the kernel keeps no more than 1,024 discovered
    /// neighbours for all namespaces together (`net.ipv4.neigh.default.gc_thresh3`).
    pub fn permanent_neighbours(self) -> Self {
        Self {
            permanent_neighbours: true,
            ..self
        }
    }

    /// Makes the namespaces and joins the nodes to the fabric.
    pub fn build(self) -> Result<Testbed, Error> {
        let addresses = uplink_addresses(1);
        let fabric = Host::new(
            "fabric",
            Netns::with_sysctls("fabric", &ROUTER)?,
            &addresses,
        );
        execute(wiring::fabric(fabric.netns(), &addresses))?;
        let mut bed = Testbed {
            mode: self.mode,
            permanent_neighbours: self.permanent_neighbours,
            fabric,
            nodes: Vec::new(),
            state: Mutex::new(State::default()),
        };
        for index in 0..self.nodes {
            let node = bed.make_node(index)?;
            bed.nodes.push(node);
        }
        Ok(bed)
    }
}

/// The sysctls that make a namespace a router.
const ROUTER: [(&str, &str); 4] = [
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
];

const BRIDGE_NETFILTER: [(&str, &str); 2] = [
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.bridge.bridge-nf-call-ip6tables", "1"),
];

/// Nodes, pods and external hosts, joined. It is gone when it is dropped and the last handle on its hosts with it.
#[derive(Debug)]
pub struct Testbed {
    mode: Mode,
    permanent_neighbours: bool,
    fabric: Host,
    nodes: Vec<Node>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Node {
    host: Host,
    owner: Owner,
}

impl Testbed {
    /// Describes a bed: one node with routed pods, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            nodes: 1,
            mode: Mode::Routed,
            permanent_neighbours: false,
        }
    }

    /// The connection of pods to their node.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The number of nodes.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The node of that index, counted from 0: where an enforcer runs. Its addresses are its uplink's.
    ///
    /// # Panics
    /// If the bed has fewer nodes.
    pub fn node(&self, index: usize) -> &Host {
        &self.nodes[index].host
    }

    /// The backbone that routes between the nodes: where a control plane runs.
    pub fn fabric(&self) -> &Host {
        &self.fabric
    }

    /// The address at which every node reaches a server in the fabric.
    pub fn fabric_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, 1)
    }

    /// Adds a pod on a node. Any address will do that nobody has: it is a /32 or /128 of its own.
    pub fn add_pod(&self, node: usize, name: &str, addresses: &[IpAddr]) -> Result<Host, Error> {
        self.add(Some(node), name, addresses)
    }

    /// Adds a host outside the cluster, attached to the fabric.
    pub fn add_external(&self, name: &str, addresses: &[IpAddr]) -> Result<Host, Error> {
        self.add(None, name, addresses)
    }

    /// The pod or external of that name.
    pub fn host(&self, name: &str) -> Option<Host> {
        self.state()
            .hosts
            .get(name)
            .map(|attached| attached.host.clone())
    }

    /// All pods and externals, by name.
    pub fn hosts(&self) -> Vec<Host> {
        self.state()
            .hosts
            .values()
            .map(|attached| attached.host.clone())
            .collect()
    }

    /// The node a pod is on.
    pub fn node_of(&self, name: &str) -> Option<usize> {
        self.state()
            .hosts
            .get(name)
            .and_then(|attached| attached.node)
    }

    /// The interface of its node behind which a pod is.
    pub fn interface_of(&self, name: &str) -> Result<String, Error> {
        Ok(wiring::interface(self.state().find(name)?.port))
    }

    /// Has a pod's node send what is for some networks to the pod, as where there are machines behind it.
    pub fn route_behind(&self, name: &str, networks: &[IpNetwork]) -> Result<(), Error> {
        let Attached { node, port, .. } = self.state().find(name)?;
        let route = |&network| Change::Route {
            to: Destination::Network(network),
            via: None,
            index: port.0,
            source: None,
        };
        let routes = networks.iter().map(route).collect();
        self.owner(node)?.netns.apply(routes)
    }

    /// The hardware addresses of a pod, and of its node where the pod's packets leave the link: that of the bridge, if
    /// there is one.
    pub fn macs_of(&self, name: &str) -> Result<(Mac, Mac), Error> {
        let Attached { node, port, .. } = self.state().find(name)?;
        let router = match self.owner(node)?.bridge {
            Some(bridge) => bridge.inner(),
            None => port.outer(),
        };
        Ok((port.inner(), router))
    }

    /// Takes a pod or external away. Its namespace lives on, cut off, while somebody holds a handle, socket or process.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        let attached = state.find(name)?;
        self.detach(&state, &attached)?;
        state.hosts.remove(name);
        Ok(())
    }

    /// Gives a pod or external other addresses. Sockets in it live on.
    pub fn set_addresses(&self, name: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let state = self.state();
        let Attached { host, node, port } = state.find(name)?;
        state.require_free(addresses, Some(name))?;
        let (owner, others) = (
            self.owner(node)?,
            state.others_on_bridge(self.mode, node, name),
        );
        let mut plan = wiring::withdraw(&owner, host.netns(), port, &host.addresses(), &others);
        plan.extend(wiring::assign(
            &owner,
            host.netns(),
            port,
            addresses,
            &others,
        ));
        execute(plan)?;
        host.set_addresses(addresses);
        Ok(())
    }

    /// Lets packets of at most `mtu` bytes go to a pod or external, at the router's end of its link: 1,500 at first.
    /// The host itself does not know.
    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        let Attached { node, port, .. } = self.state().find(name)?;
        let index = port.0;
        self.owner(node)?
            .netns
            .apply(vec![Change::Mtu { index, mtu }])
    }

    /// Has the bridge that a pod is on send the pod's frames back to it, where they are for it. Kubelet's
    /// `hairpin-veth` and the CNI plugin's `hairpinMode` do the same.
    pub fn set_hairpin(&self, name: &str) -> Result<(), Error> {
        let Attached { node, port, .. } = self.state().find(name)?;
        let index = port.0;
        self.owner(node)?
            .netns
            .apply(vec![Change::Hairpin { index }])
    }

    /// Gives a node a link to nobody, with addresses, as a dummy is. Not every kernel has dummies.
    pub fn add_link(&self, node: usize, name: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let (owner, port) = (self.owner(Some(node))?, self.state().take_port());
        execute(wiring::nowhere(
            &owner,
            self.fabric.netns(),
            port,
            name,
            addresses,
        ))
    }

    /// Cuts a pod or external off, as when its node is down. Its namespace and sockets live on.
    pub fn cut_off(&self, name: &str) -> Result<(), Error> {
        let state = self.state();
        self.detach(&state, &state.find(name)?)
    }

    /// Joins one again that was cut off.
    pub fn join(&self, name: &str) -> Result<(), Error> {
        let state = self.state();
        self.attach(&state, &state.find(name)?)
    }

    /// Moves a pod to another node, with its namespace, addresses and listening sockets.
    pub fn move_pod(&self, name: &str, node: usize) -> Result<(), Error> {
        let mut state = self.state();
        let mut attached = state.find(name)?;
        if attached.node.is_none() {
            return Err(Error::NotAPod(name.to_owned()));
        }
        self.owner(Some(node))?;
        self.detach(&state, &attached)?;
        attached.node = Some(node);
        attached.port = state.take_port();
        self.attach(&state, &attached)?;
        state.hosts.insert(name.to_owned(), attached);
        Ok(())
    }

    fn add(&self, node: Option<usize>, name: &str, addresses: &[IpAddr]) -> Result<Host, Error> {
        let netns = Netns::new(name)?;
        let mut state = self.state();
        if state.hosts.contains_key(name) {
            return Err(Error::NameTaken(name.to_owned()));
        }
        state.require_free(addresses, None)?;
        let attached = Attached {
            host: Host::new(name, netns, addresses),
            node,
            port: state.take_port(),
        };
        self.attach(&state, &attached)?;
        state.hosts.insert(name.to_owned(), attached.clone());
        Ok(attached.host)
    }

    fn attach(&self, state: &State, attached: &Attached) -> Result<(), Error> {
        let Attached { host, node, port } = attached;
        let (owner, others) = (
            self.owner(*node)?,
            state.others_on_bridge(self.mode, *node, host.name()),
        );
        let mut plan = wiring::plug(&owner, host.netns(), *port);
        plan.extend(wiring::assign(
            &owner,
            host.netns(),
            *port,
            &host.addresses(),
            &others,
        ));
        execute(plan)
    }

    fn detach(&self, state: &State, attached: &Attached) -> Result<(), Error> {
        let Attached { host, node, port } = attached;
        let (owner, others) = (
            self.owner(*node)?,
            state.others_on_bridge(self.mode, *node, host.name()),
        );
        let mut plan = wiring::withdraw(&owner, host.netns(), *port, &host.addresses(), &others);
        plan.extend(wiring::unplug(&owner, *port));
        execute(plan)
    }

    fn owner(&self, node: Option<usize>) -> Result<Owner, Error> {
        match node {
            Some(index) => self
                .nodes
                .get(index)
                .map(|node| node.owner.clone())
                .ok_or(Error::NoSuchNode(index)),
            None => Ok(Owner {
                netns: self.fabric.netns().clone(),
                addresses: self.fabric.addresses(),
                bridge: None,
                permanent_neighbours: false,
                uplink: None,
            }),
        }
    }

    fn make_node(&self, index: usize) -> Result<Node, Error> {
        let name = format!("node-{index}");
        let mut sysctls = ROUTER.to_vec();
        if self.mode == Mode::Bridged {
            sysctls.extend(BRIDGE_NETFILTER);
        }
        let netns = Netns::with_sysctls(&name, &sysctls)?;
        let number = u16::try_from(index + 10).map_err(|_| Error::NoSuchNode(index))?;
        let addresses = uplink_addresses(number);
        let uplink = self.state().take_port();
        execute(wiring::uplink(
            self.fabric.netns(),
            &self.fabric.addresses(),
            &netns,
            &addresses,
            uplink,
        ))?;
        let bridge = (self.mode == Mode::Bridged).then(|| self.state().take_port());
        if let Some(bridge) = bridge {
            execute(wiring::bridge(&netns, bridge))?;
        }
        let owner = Owner {
            netns: netns.clone(),
            addresses: addresses.to_vec(),
            bridge,
            permanent_neighbours: self.permanent_neighbours,
            uplink: Some((self.fabric.netns().clone(), uplink)),
        };
        Ok(Node {
            host: Host::new(&name, netns, &addresses),
            owner,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic of another test thread leaves a bed that is whole enough to be looked at.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn uplink_addresses(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [
        Ipv4Addr::new(198, 18, high, low).into(),
        Ipv6Addr::new(0xfdff, 0x5a11, 0, 0, 0, 0, 0, number).into(),
    ]
}

fn execute(plan: Plan) -> Result<(), Error> {
    reactor::wait(async move {
        for stage in plan {
            try_join_all(
                stage
                    .into_iter()
                    .map(|(netns, changes)| async move { netns.apply_async(changes).await }),
            )
            .await?;
        }
        Ok(())
    })
}
