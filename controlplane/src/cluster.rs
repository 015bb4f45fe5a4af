//! The whole desired state, as persistent maps: a candidate is a cheap copy, and readers keep the version they have.
//! It holds what it is given; whether a transaction may be carried out is decided in `transaction`.

use std::sync::Arc;

use imbl::OrdMap;
use sallyport_proto::Revision;

use crate::model::{Body, Kind, Namespace, NetworkPolicy, Node, Object, ObjectKey, Workload};

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
}

impl Cluster {
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
        let first = ObjectKey {
            kind,
            namespace: String::new(),
            name: String::new(),
        };
        self.objects
            .range(first..)
            .map(|(_, stored)| stored)
            .take_while(move |stored| stored.object.key.kind == kind)
    }

    /// Adds or replaces an object.
    pub fn put(&mut self, object: Object, revision: Revision) {
        self.objects
            .insert(object.key.clone(), Arc::new(Stored { object, revision }));
    }

    /// Removes an object and returns it.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Arc<Stored>> {
        self.objects.remove(key)
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
