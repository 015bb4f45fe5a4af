//! Owns the cluster of the case under way, as namespaces with servers in them and as objects of a running deployment,
//! and leads it from one state to the next by edits; never judges anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use nix::net::if_::if_nametoindex;
use sallyport_controlplane::cluster::Cluster;
use sallyport_proto::{object::Kind, wire::Edit};
use sallyport_testbed::{
    Change, Destination, Family, Host, LOOPBACK, Mode, Testbed, probe::Server,
};

use super::{
    Error,
    case::{Action, Case, Labelled, LabelledPod, Pod, Service},
    manifests, mirror,
    party::{Party, serve},
};
use crate::deployment::{Client, Deployment};

/// How many pods may be on one bridge and still find each other by ARP and neighbour discovery: the kernel keeps 1,024
/// neighbours in all.
const DISCOVERED: usize = 25;

/// The parts that the bed of a run must have.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The nodes that pods are spread over.
    pub(super) nodes: usize,
    pub(super) mode: Mode,
    /// The most nodes that a case names.
    pub(super) named: usize,
    /// The most pods that a case has.
    pub(super) pods: usize,
    /// The services that nodes serve in the place of pods that share their network; empty if there are none.
    pub(super) node_services: BTreeSet<Service>,
}

/// The running cluster.
pub(super) struct World {
    shape: Shape,
    api: Client,
    deployment: Deployment,
    /// The cluster that the control plane was sent.
    cluster: Cluster,
    /// The last revision that was committed.
    revision: u64,
    /// The parties, by their endpoint names in the files.
    parties: BTreeMap<String, Party>,
    /// The services that every host of the case has, since the case asks for them.
    asked: BTreeSet<Service>,
    /// The number of pods that the case has had: it decides where the next goes.
    placed: usize,
    /// The nodes of the case's pods, by address: an address is one node's.
    homes: BTreeMap<IpAddr, usize>,
    _node_servers: Vec<Server>,
}

impl World {
    /// Starts a deployment on an empty bed.
    pub(super) fn start(shape: Shape) -> Result<World, Error> {
        let mut builder = Testbed::builder()
            .nodes(shape.nodes.max(shape.named))
            .mode(shape.mode);
        if shape.pods > DISCOVERED {
            builder = builder.permanent_neighbours();
        }
        let deployment = Deployment::start(builder.build()?, &[])?;
        let nodes = 0..deployment.bed.nodes();
        let servers = nodes
            .clone()
            .map(|node| serve(deployment.bed.node(node), &shape.node_services));
        let servers: Result<Vec<_>, Error> = servers.collect();
        let mut world = World {
            shape,
            api: deployment.client()?,
            _node_servers: servers?.into_iter().flatten().collect(),
            deployment,
            cluster: Cluster::default(),
            revision: 0,
            parties: BTreeMap::new(),
            asked: BTreeSet::new(),
            placed: 0,
            homes: BTreeMap::new(),
        };
        let objects = nodes.map(|node| manifests::node(&Deployment::node_name(node)));
        world.commit(objects.map(|object| manifests::put(&object)).collect())?;
        Ok(world)
    }

    /// The cluster that the control plane was sent.
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The party of a file's endpoint.
    pub(super) fn party(&self, endpoint: &str) -> Result<&Party, Error> {
        let missing = || Error::Case(format!("there is no endpoint {endpoint}"));
        self.parties.get(endpoint).ok_or_else(missing)
    }

    /// Turns the cluster of the case before into the cluster of this one. Objects of both stay.
    pub(super) fn enter(&mut self, case: &Case) -> Result<(), Error> {
        self.asked = case.asked();
        self.placed = 0;
        self.homes.clear();
        let mut pods = Vec::new();
        for pod in &case.cluster.pods {
            let node = self.place(case, pod);
            pods.push((pod.clone(), node));
        }
        let stays = |name: &String, party: &Party| match &party.pod {
            None => {
                let wanted = case.cluster.externals.get(name);
                wanted.is_some_and(|wanted| wanted.as_slice() == party.addresses)
                    && self.asked.is_subset(&party.services)
            }
            Some(old) => pods
                .iter()
                .any(|(pod, node)| self.suits(party, old, pod, *node)),
        };
        let gone = self.parties.iter();
        let gone = gone.filter(|(name, party)| !stays(name, party));
        let gone: Vec<String> = gone.map(|(name, _)| name.clone()).collect();
        self.leave(case, &gone)?;
        let namespaces = case.cluster.namespaces.iter();
        let mut edits: Vec<Edit> = namespaces
            .map(|(name, labels)| manifests::put(&manifests::namespace(name, labels)))
            .collect();
        for (name, addresses) in &case.cluster.externals {
            if !self.parties.contains_key(name) {
                self.add_external(name, addresses.as_slice())?;
            }
        }
        for (pod, node) in pods {
            edits.push(self.put_pod(pod, node)?);
        }
        self.commit(edits)?;
        self.wait_enforced()
    }

    /// Whether a pod that is there can be the pod that is wanted, for another label or declared port at most.
    fn suits(&self, party: &Party, old: &Pod, wanted: &Pod, node: usize) -> bool {
        let identity = |pod: &Pod| (pod.endpoint(), pod.addresses(), pod.host_network);
        identity(old) == identity(wanted)
            && party.node == Some(node)
            && (wanted.host_network
                || wanted
                    .serves()
                    .chain(self.asked.iter().copied())
                    .all(|service| party.services.contains(&service)))
    }

    /// Deletes every policy, the pods that are gone and the namespaces that the case has not.
    fn leave(&mut self, case: &Case, gone: &[String]) -> Result<(), Error> {
        let mut edits = Vec::new();
        for (key, _) in self.cluster.policies() {
            edits.push(manifests::delete(&manifests::policy(
                &key.namespace,
                &key.name,
            )));
        }
        for name in gone {
            edits.extend(self.remove_pod(name)?);
        }
        let spaces = self.cluster.of_kind(Kind::Namespace);
        for name in spaces.map(|stored| &stored.object.key.name) {
            if !case.cluster.namespaces.contains_key(name) {
                edits.push(manifests::delete(&manifests::namespace(
                    name,
                    &BTreeMap::new(),
                )));
            }
        }
        self.commit(edits)
    }

    /// Does what a step does. It need not be enforced when this returns.
    pub(super) fn act(&mut self, case: &Case, action: &Action) -> Result<(), Error> {
        let edit = match action {
            Action::CreatePolicy { policy } | Action::UpdatePolicy { policy } => {
                manifests::put(policy)
            }
            Action::DeletePolicy { namespace, name } => {
                manifests::delete(&manifests::policy(namespace, name))
            }
            Action::CreateNamespace(Labelled { namespace, labels })
            | Action::SetNamespaceLabels(Labelled { namespace, labels }) => {
                manifests::put(&manifests::namespace(namespace, labels))
            }
            Action::DeleteNamespace { namespace } => {
                let within = self.parties.iter().filter(|(_, party)| {
                    let pod = party.pod.as_ref();
                    pod.is_some_and(|pod| pod.namespace == *namespace)
                });
                let within: Vec<String> = within.map(|(name, _)| name.clone()).collect();
                for name in within {
                    // Deleting the namespace deletes the objects.
                    self.remove_pod(&name)?;
                }
                manifests::delete(&manifests::namespace(namespace, &BTreeMap::new()))
            }
            Action::CreatePod(pod) => {
                let pod = pod.with_ports_of(case);
                let node = self.place(case, &pod);
                self.make_way(&pod, node)?;
                self.put_pod(pod, node)?
            }
            Action::SetPodLabels(LabelledPod {
                namespace,
                name,
                labels,
            }) => {
                let endpoint = format!("{namespace}/{name}");
                let party = self.party(&endpoint)?;
                let (Some(mut pod), Some(node)) = (party.pod.clone(), party.node) else {
                    return Err(Error::Case(format!("{endpoint} is no pod")));
                };
                pod.labels = labels.clone();
                self.put_pod(pod, node)?
            }
            Action::DeletePod { namespace, name } => {
                let endpoint = format!("{namespace}/{name}");
                let missing = || Error::Case(format!("{endpoint} is no pod"));
                self.remove_pod(&endpoint)?.ok_or_else(missing)?
            }
        };
        self.commit(vec![edit])
    }

    /// Waits until all that was done is enforced.
    pub(super) fn wait_enforced(&mut self) -> Result<(), Error> {
        Ok(self.api.wait_enforced(self.revision)?)
    }

    /// Takes a pod away that has the name of another one to come, unless it can be that one. A pod does not move to
    /// another node or address: it is deleted, and another is created.
    fn make_way(&mut self, pod: &Pod, node: usize) -> Result<(), Error> {
        let name = pod.endpoint();
        let Some(party) = self.parties.get(&name) else {
            return Ok(());
        };
        let old = party.pod.as_ref();
        if old.is_some_and(|old| self.suits(party, old, pod, node)) {
            return Ok(());
        }
        let edit = self.remove_pod(&name)?;
        self.commit(edit.into_iter().collect())
    }

    /// The node of a pod: the one it is told, the one whose address it has, or the next in turn.
    fn place(&mut self, case: &Case, pod: &Pod) -> usize {
        let turn = self.placed;
        self.placed += 1;
        let told = pod.node.as_deref().and_then(|name| {
            let nodes = case.nodes();
            nodes.iter().position(|&other| other == name)
        });
        if !pod.host_network {
            return told.unwrap_or(turn % self.shape.nodes);
        }
        let home = pod
            .addresses()
            .iter()
            .find_map(|ip| self.homes.get(ip).copied());
        let node = told.or(home).unwrap_or(turn % self.shape.nodes);
        let addresses = pod.addresses().into_iter();
        self.homes.extend(addresses.map(|address| (address, node)));
        node
    }

    /// Puts a pod on a node, with its servers. Returns the edit for it.
    fn put_pod(&mut self, pod: Pod, node: usize) -> Result<Edit, Error> {
        let edit = manifests::put(&manifests::pod(&pod, &Deployment::node_name(node)));
        let name = pod.endpoint();
        if let Some(party) = self.parties.get_mut(&name) {
            party.pod = Some(pod);
            return Ok(edit);
        }
        let addresses = pod.addresses();
        let party = if pod.host_network {
            for &address in &addresses {
                self.lend_network(node, address)?;
            }
            Party {
                node: Some(node),
                addresses,
                host: self.deployment.bed.node(node).clone(),
                services: BTreeSet::new(),
                _server: None,
                pod: Some(pod),
            }
        } else {
            let host = self.deployment.bed.add_pod(node, &name, &addresses)?;
            let services: BTreeSet<Service> =
                pod.serves().chain(self.asked.iter().copied()).collect();
            Party {
                node: Some(node),
                addresses,
                _server: serve(&host, &services)?,
                host,
                services,
                pod: Some(pod),
            }
        };
        self.parties.insert(name, party);
        Ok(edit)
    }

    fn add_external(&mut self, name: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let host = self.deployment.bed.add_external(name, addresses)?;
        let party = Party {
            pod: None,
            node: None,
            addresses: addresses.to_vec(),
            _server: serve(&host, &self.asked)?,
            host,
            services: self.asked.clone(),
        };
        self.parties.insert(name.to_owned(), party);
        Ok(())
    }

    /// Takes a party off the bed. Returns the edit that deletes the pod, if it is one.
    fn remove_pod(&mut self, name: &str) -> Result<Option<Edit>, Error> {
        let missing = || Error::Case(format!("there is no {name}"));
        let party = self.parties.remove(name).ok_or_else(missing)?;
        let (Some(pod), Some(node)) = (party.pod, party.node) else {
            self.deployment.bed.remove(name)?;
            return Ok(None);
        };
        if !pod.host_network {
            self.deployment.bed.remove(name)?;
        } else {
            let is_used = |address: &IpAddr| {
                let mut others = self.parties.values();
                others.any(|other| other.addresses.contains(address))
            };
            for address in pod.addresses().into_iter().filter(|one| !is_used(one)) {
                self.take_network_back(node, address)?;
            }
        }
        let object = manifests::pod(&pod, &Deployment::node_name(node));
        Ok(Some(manifests::delete(&object)))
    }

    /// Gives a node the address of a pod that shares its network.
    fn lend_network(&self, node: usize, address: IpAddr) -> Result<(), Error> {
        let (host, index) = self.uplink(node)?;
        let own = Change::Address {
            index: LOOPBACK,
            address,
        };
        host.netns()
            .apply(vec![own, Change::AwaitAddress { address }])?;
        let lead = Change::Route {
            to: Destination::Host(address),
            via: host.address(Family::of(address)),
            index,
            source: None,
        };
        Ok(self.deployment.bed.fabric().netns().apply(vec![lead])?)
    }

    fn take_network_back(&self, node: usize, address: IpAddr) -> Result<(), Error> {
        let (host, index) = self.uplink(node)?;
        let stop = Change::DropRoute { to: address, index };
        self.deployment.bed.fabric().netns().apply(vec![stop])?;
        let own = Change::DropAddress {
            index: LOOPBACK,
            address,
        };
        Ok(host.netns().apply(vec![own])?)
    }

    /// A node, and the index of its link to the fabric, which is the same at both ends.
    fn uplink(&self, node: usize) -> Result<(&Host, u32), Error> {
        let host = self.deployment.bed.node(node);
        let index = host.netns().run(|| if_nametoindex("uplink"));
        let index = index.map_err(|errno| Error::Server(errno.into()))?;
        Ok((host, index))
    }

    /// Carries out a transaction, here and in the deployment. Puts that change nothing are left out.
    fn commit(&mut self, mut edits: Vec<Edit>) -> Result<(), Error> {
        edits.retain(|edit| !mirror::is_done(&self.cluster, edit));
        if edits.is_empty() {
            return Ok(());
        }
        self.revision = self.api.apply(edits.clone())?;
        for edit in edits {
            mirror::apply(&mut self.cluster, &edit, self.revision);
        }
        Ok(())
    }
}
