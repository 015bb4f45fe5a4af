//! The whole desired state, as persistent maps: a candidate is a cheap copy, and readers keep the version they have.
//! It holds what it is given; whether a transaction may be applied is decided in `transaction`.

use std::{net::IpAddr, sync::Arc, thread};

use imbl::{OrdMap, OrdSet};
use sallyport_policy::Revision;
use sallyport_proto::object::{Kind, ObjectKey};

use crate::model::{Body, Established, Namespace, NetworkPolicy, Node, Object, Workload};

/// An object and the revision that last changed it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The object.
    pub object: Object,
    /// The revision.
    pub revision: Revision,
}

/// The whole desired state: namespaces, nodes, policies, workloads. Cloning it is cheap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    objects: OrdMap<ObjectKey, Arc<Stored>>,
    /// Which workload has which address.
    holders: OrdSet<(IpAddr, ObjectKey)>,
    /// The addresses that several workloads have.
    contested: OrdSet<IpAddr>,
    /// Which workloads are on which node.
    placed: OrdSet<(String, ObjectKey)>,
    /// What policies mean that do not say what becomes of established connections.
    established: Established,
}

/// With fewer objects to index than this, threads cost more than they save.
const WORTH_A_THREAD: usize = 5_000;

/// What sorts before every key: the start of a range.
const FIRST: ObjectKey = ObjectKey {
    kind: Kind::Namespace,
    namespace: String::new(),
    name: String::new(),
};

fn workload(stored: &Stored) -> Option<&Workload> {
    match &stored.object.body {
        Body::Workload(workload) => Some(workload),
        _ => None,
    }
}

/// The addresses that an object holds, as the index has them.
fn held(stored: &Stored) -> impl Iterator<Item = (IpAddr, ObjectKey)> + use<'_> {
    let workload = workload(stored).filter(|workload| !workload.host_network);
    let addresses = workload
        .into_iter()
        .flat_map(|workload| &workload.addresses);
    addresses.map(|&address| (address, stored.object.key.clone()))
}

/// The addresses that several workloads have.
fn shared(holders: &OrdSet<(IpAddr, ObjectKey)>) -> OrdSet<IpAddr> {
    let addresses = || holders.iter().map(|(address, _)| *address);
    let pairs = addresses().zip(addresses().skip(1));
    let pairs = pairs.filter(|(address, next)| address == next);
    pairs.map(|(address, _)| address).collect()
}

/// The node that an object is on, as the index has it.
fn place(stored: &Stored) -> Option<(String, ObjectKey)> {
    let node = workload(stored)?.node.clone()?;
    Some((node, stored.object.key.clone()))
}

impl Cluster {
    /// A cluster of objects, each with a key of its own: as if they were put one by one, and with many of them faster.
    pub fn of(objects: &[Arc<Stored>]) -> Cluster {
        if objects.len() < WORTH_A_THREAD {
            let mut cluster = Cluster::default();
            for stored in objects {
                cluster.put_stored(stored.clone());
            }
            return cluster;
        }
        thread::scope(|scope| {
            let holders = scope.spawn(|| objects.iter().flat_map(|stored| held(stored)).collect());
            let placed =
                scope.spawn(|| objects.iter().filter_map(|stored| place(stored)).collect());
            let holders: OrdSet<_> = holders.join().expect("an index can be made");
            let by_key = |stored: &Arc<Stored>| (stored.object.key.clone(), stored.clone());
            Cluster {
                objects: objects.iter().map(by_key).collect(),
                contested: shared(&holders),
                holders,
                placed: placed.join().expect("an index can be made"),
                established: Established::default(),
            }
        })
    }

    /// What becomes of established connections where a policy does not say.
    pub fn established(&self) -> Established {
        self.established
    }

    /// The same objects, under another default for established connections.
    pub fn with_established(self, established: Established) -> Cluster {
        Cluster {
            established,
            ..self
        }
    }

    /// An object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Stored>> {
        self.objects.get(key)
    }

    /// Every object, by kind, namespace and name.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.values()
    }

    /// The objects of a kind, by namespace and name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Stored>> {
        let first = ObjectKey { kind, ..FIRST };
        self.starting_at(first)
            .take_while(move |stored| stored.object.key.kind == kind)
    }

    /// The objects from a key on, the key's own included.
    pub fn starting_at(&self, key: ObjectKey) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.range(key..).map(|(_, stored)| stored)
    }

    /// What is in a namespace.
    pub fn within(&self, namespace: &str) -> impl Iterator<Item = &Arc<Stored>> {
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.is_namespaced());
        kinds.flat_map(move |kind| {
            let first = ObjectKey {
                kind,
                namespace: namespace.to_owned(),
                name: String::new(),
            };
            self.starting_at(first).take_while(move |stored| {
                let key = &stored.object.key;
                key.kind == kind && key.namespace == namespace
            })
        })
    }

    /// The workloads that have an address, but for those that share their node's network.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &ObjectKey> {
        self.holders
            .range((address, FIRST)..)
            .take_while(move |(held, _)| *held == address)
            .map(|(_, key)| key)
    }

    /// Whether a workload has an address, and does not share its node's network.
    pub fn holds(&self, address: IpAddr, key: &ObjectKey) -> bool {
        self.holders.contains(&(address, key.clone()))
    }

    /// The addresses that several workloads have, ascending.
    pub fn contested(&self) -> &OrdSet<IpAddr> {
        &self.contested
    }

    /// The workloads of a node.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &ObjectKey> {
        self.placed
            .range((node.to_owned(), FIRST)..)
            .take_while(move |(name, _)| name == node)
            .map(|(_, key)| key)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Adds or replaces an object.
    pub fn put(&mut self, object: Object, revision: Revision) {
        self.put_stored(Arc::new(Stored { object, revision }));
    }

    /// Adds or replaces an object that is stored already, in another version of the cluster or in the history.
    pub fn put_stored(&mut self, stored: Arc<Stored>) {
        self.remove(&stored.object.key);
        self.index(&stored, true);
        self.objects.insert(stored.object.key.clone(), stored);
    }

    /// Removes an object and returns it.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Stored>> {
        let old = self.objects.remove(key)?;
        self.index(&old, false);
        Some(old)
    }

    /// Enters an object into the indexes, or takes it out.
    fn index(&mut self, stored: &Stored, enter: bool) {
        for entry in held(stored) {
            let address = entry.0;
            match enter {
                true => self.holders.insert(entry),
                false => self.holders.remove(&entry),
            };
            let is_shared = || self.holders(address).nth(1).is_some();
            if enter && is_shared() {
                self.contested.insert(address);
            } else if !enter && !self.contested.is_empty() && !is_shared() {
                self.contested.remove(&address);
            }
        }
        if let Some(entry) = place(stored) {
            match enter {
                true => self.placed.insert(entry),
                false => self.placed.remove(&entry),
            };
        }
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        let key = ObjectKey {
            kind: Kind::Namespace,
            namespace: String::new(),
            name: name.into(),
        };
        match &self.objects.get(&key)?.object.body {
            Body::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        let key = ObjectKey {
            kind: Kind::Node,
            namespace: String::new(),
            name: name.into(),
        };
        match &self.objects.get(&key)?.object.body {
            Body::Node(node) => Some(node),
            _ => None,
        }
    }

    /// Every namespace, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        self.of_kind(Kind::Namespace)
            .filter_map(|stored| match &stored.object.body {
                Body::Namespace(namespace) => Some((stored.object.key.name.as_str(), namespace)),
                _ => None,
            })
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.of_kind(Kind::Node)
            .filter_map(|stored| match &stored.object.body {
                Body::Node(node) => Some((stored.object.key.name.as_str(), node)),
                _ => None,
            })
    }

    /// Every policy, by namespace and name.
    pub fn policies(&self) -> impl Iterator<Item = (&ObjectKey, &NetworkPolicy)> {
        self.of_kind(Kind::NetworkPolicy)
            .filter_map(|stored| match &stored.object.body {
                Body::NetworkPolicy(policy) => Some((&stored.object.key, policy)),
                _ => None,
            })
    }

    /// Every pod, then every workload, each by namespace and name.
    pub fn workloads(&self) -> impl Iterator<Item = (&ObjectKey, &Workload)> {
        self.of_kind(Kind::Pod)
            .chain(self.of_kind(Kind::Workload))
            .filter_map(|stored| match &stored.object.body {
                Body::Workload(workload) => Some((&stored.object.key, workload)),
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn many_at_once_are_as_many_one_by_one() {
        let workload = |number: usize| {
            let text = format!(
                "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{name: w{number}}}
spec: {{node: n{}, addresses: [10.0.{}.{}]}}
",
                number % 7,
                number / 250,
                number % 250
            );
            let object = manifest::parse(&text, "").expect("a workload").remove(0);
            let revision = 1;
            Arc::new(Stored {
                object,
                revision: Revision(revision),
            })
        };
        let mut objects: Vec<_> = (0..WORTH_A_THREAD).map(workload).collect();
        // The last has the address of the first.
        let text = "{apiVersion: sallyport.dev/v1, kind: Workload, metadata: {name: x}, \
                    spec: {addresses: [10.0.0.0]}}";
        let object = manifest::parse(text, "").expect("a workload").remove(0);
        let revision = 1;
        objects.push(Arc::new(Stored {
            object,
            revision: Revision(revision),
        }));
        let mut expected = Cluster::default();
        for stored in &objects {
            expected.put_stored(stored.clone());
        }
        assert_eq!(Cluster::of(&objects), expected);
        assert!(expected.holders([10, 0, 0, 1].into()).count() == 1);
        let shared = IpAddr::from([10, 0, 0, 0]);
        assert_eq!(expected.contested(), &OrdSet::unit(shared));
        assert!(expected.on_node("n3").count() > 0);
        assert_eq!(Cluster::of(&objects[1..]).len(), objects.len() - 1);
        expected.remove(&objects[0].object.key);
        assert_eq!(expected, Cluster::of(&objects[1..]));
        assert!(expected.contested().is_empty());
    }
}
