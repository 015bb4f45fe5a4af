//! Owns the conformance files: their schema and how they are read, gzipped or not; never knows how a case is run.
//!
//! The schema is described where the files are, in `shared/conformance/README.md`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read},
    net::IpAddr,
    path::Path,
    slice,
};

use flate2::read::MultiGzDecoder;
use sallyport_policy::Protocol;
use sallyport_testbed::probe;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Error;

pub(super) type Labels = BTreeMap<String, String>;

/// A protocol and a port of it.
pub(super) type Service = (Carrier, u16);

/// A cluster, and what is done to it.
#[derive(Debug, Deserialize)]
pub(super) struct Case {
    pub(super) id: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) description: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tags: Vec<String>,
    pub(super) cluster: ClusterSpec,
    pub(super) steps: Vec<Step>,
}

/// A cluster before anything is done to it.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterSpec {
    #[serde(deserialize_with = "spaces")]
    pub(super) namespaces: BTreeMap<String, Labels>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) pods: Vec<Pod>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) externals: BTreeMap<String, Addresses>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) nodes: Vec<NodeSpec>,
}

/// One address, or one of each family.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Addresses {
    One(IpAddr),
    Several(Vec<IpAddr>),
}

#[derive(Debug, Deserialize)]
pub(super) struct NodeSpec {
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
    pub(super) ip: IpAddr,
    /// All addresses of a pod that has more than one; ours, the shared files have none.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) ips: Vec<IpAddr>,
    /// The ports of a pod that is created without any: the first pod's.
    pub(super) ports: Option<Vec<Port>>,
    pub(super) node: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) host_network: bool,
    #[serde(
        default,
        rename = "served_undeclared_ports",
        deserialize_with = "or_default"
    )]
    pub(super) served_undeclared_ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) protocol: Carrier,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Carrier {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// Some actions, and what is so after them.
#[derive(Debug, Deserialize)]
pub(super) struct Step {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) title: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) actions: Vec<Action>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) policies: Vec<Value>,
    /// The cluster after the actions, if they changed it.
    pub(super) cluster: Option<ClusterSpec>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) endpoints: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) expect: Vec<Expect>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(super) enum Action {
    CreatePolicy { policy: Value },
    UpdatePolicy { policy: Value },
    DeletePolicy { namespace: String, name: String },
    CreateNamespace(Labelled),
    SetNamespaceLabels(Labelled),
    DeleteNamespace { namespace: String },
    CreatePod(Pod),
    SetPodLabels(LabelledPod),
    DeletePod { namespace: String, name: String },
}

#[derive(Debug, Deserialize)]
pub(super) struct Labelled {
    pub(super) namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
}

#[derive(Debug, Deserialize)]
pub(super) struct LabelledPod {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: Labels,
}

/// The expectation for one port: a row for each source, with a character for each destination. A cell covers every
/// address family that both ends have.
#[derive(Debug, Deserialize)]
pub(super) struct Expect {
    pub(super) port: u16,
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) protocol: Carrier,
    pub(super) ingress: Option<Vec<String>>,
    pub(super) egress: Option<Vec<String>>,
    pub(super) combined: Vec<String>,
    /// The only family that counts; ours, the shared files have none.
    pub(super) family: Option<Version>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Version {
    V4,
    V6,
}

/// Reads null as absent: some writers have null for an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn spaces<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Labels>, D::Error> {
    let spaces: BTreeMap<String, Option<Labels>> = or_default(deserializer)?;
    let spaces = spaces.into_iter();
    Ok(spaces
        .map(|(name, labels)| (name, labels.unwrap_or_default()))
        .collect())
}

/// Reads a file of cases.
pub(super) fn read(path: &Path) -> Result<Vec<Case>, Error> {
    let failed = |reason| Error::Read {
        path: path.to_owned(),
        reason,
    };
    let bytes = unzipped(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|reason| Error::Schema {
        path: path.to_owned(),
        reason,
    })
}

/// A file's content. Its first bytes decide whether it is gzipped, not its name.
fn unzipped(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    BufReader::new(File::open(path)?).read_to_end(&mut bytes)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    MultiGzDecoder::new(&bytes[..]).read_to_end(&mut plain)?;
    Ok(plain)
}

impl Case {
    /// Whether it is one of those that are asked for.
    pub(super) fn matches(&self, substring: &str) -> bool {
        let mut texts = [&self.id, &self.description].into_iter().chain(&self.tags);
        texts.any(|text| text.contains(substring))
    }

    /// Every pod that there ever is in it.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        let actions = self.steps.iter().flat_map(|step| &step.actions);
        let created = actions.filter_map(|action| match action {
            Action::CreatePod(pod) => Some(pod),
            _ => None,
        });
        self.cluster.pods.iter().chain(created)
    }

    /// The nodes that the pods name, in the file's order.
    pub(super) fn nodes(&self) -> Vec<&str> {
        let declared = self.cluster.nodes.iter().map(|node| node.name.as_str());
        let mut names: Vec<&str> = declared.collect();
        let told = self.pods().filter_map(|pod| pod.node.as_deref());
        let told: BTreeSet<&str> = told.filter(|name| !name.is_empty()).collect();
        for name in told {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Every port that is asked for.
    pub(super) fn asked(&self) -> BTreeSet<Service> {
        let expected = self.steps.iter().flat_map(|step| &step.expect);
        expected
            .map(|expect| (expect.protocol, expect.port))
            .collect()
    }
}

impl Pod {
    /// The pod's name in endpoints.
    pub(super) fn endpoint(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The pod as a case's action creates it: if it declares no ports, with those of the first pod.
    pub(super) fn with_ports_of(&self, case: &Case) -> Pod {
        let first = case.cluster.pods.first().and_then(|pod| pod.ports.as_ref());
        Pod {
            ports: self.ports.as_ref().or(first).cloned(),
            ..self.clone()
        }
    }

    /// Its addresses, the first one first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let others = self.ips.iter().copied().filter(|&ip| ip != self.ip);
        [self.ip].into_iter().chain(others).collect()
    }

    /// The ports that it declares.
    pub(super) fn declared(&self) -> &[Port] {
        self.ports.as_deref().unwrap_or_default()
    }

    /// The ports that it listens on.
    pub(super) fn serves(&self) -> impl Iterator<Item = Service> {
        let ports = self.declared().iter().chain(&self.served_undeclared_ports);
        ports.map(|port| (port.protocol, port.port))
    }
}

impl Addresses {
    pub(super) fn as_slice(&self) -> &[IpAddr] {
        match self {
            Addresses::One(address) => slice::from_ref(address),
            Addresses::Several(addresses) => addresses,
        }
    }
}

impl Version {
    pub(super) fn of(address: IpAddr) -> Version {
        match address {
            IpAddr::V4(_) => Version::V4,
            IpAddr::V6(_) => Version::V6,
        }
    }
}

impl From<Carrier> for sallyport_oracle::Transport {
    fn from(carrier: Carrier) -> sallyport_oracle::Transport {
        match carrier {
            Carrier::Tcp => sallyport_oracle::Transport::Tcp,
            Carrier::Udp => sallyport_oracle::Transport::Udp,
            Carrier::Sctp => sallyport_oracle::Transport::Sctp,
        }
    }
}

impl From<Carrier> for probe::Protocol {
    fn from(carrier: Carrier) -> probe::Protocol {
        match carrier {
            Carrier::Tcp => probe::Protocol::Tcp,
            Carrier::Udp => probe::Protocol::Udp,
            Carrier::Sctp => probe::Protocol::Sctp,
        }
    }
}

impl From<Carrier> for Protocol {
    fn from(carrier: Carrier) -> Protocol {
        match carrier {
            Carrier::Tcp => Protocol::Tcp,
            Carrier::Udp => Protocol::Udp,
            Carrier::Sctp => Protocol::Sctp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_reads() {
        let case: Case = serde_json::from_str(
            r#"{"id": "a", "family": "v6", "cluster": {"namespaces": {"x": {"k": "v"}},
                "pods": [{"namespace": "x", "name": "p", "ip": "fd00::1", "ips": ["10.0.0.1", "fd00::1"], "hostNetwork": true, "node": "n2",
                          "ports": [{"port": 80}], "served_undeclared_ports": [{"port": 1, "protocol": "SCTP"}]}],
                "externals": {"out": "2001:db8::1", "two": ["192.0.2.1", "2001:db8::2"]}, "nodes": [{"name": "n1", "labels": {}}]},
              "steps": [{"actions": [
                  {"op": "create-pod", "namespace": "x", "name": "q", "labels": {}, "ip": "fd00::2"},
                  {"op": "set-namespace-labels", "namespace": "x", "labels": {}},
                  {"op": "delete-policy", "namespace": "x", "name": "none"}],
                "endpoints": ["x/p", "out"],
                "expect": [{"port": 80, "protocol": "UDP", "family": "v6", "combined": ["-.", "X-"]}]}]}"#,
        )
        .expect("it is of the schema");
        assert_eq!(case.nodes(), ["n1", "n2"]);
        assert_eq!(case.asked(), [(Carrier::Udp, 80)].into());
        let served: Vec<Service> = case.cluster.pods[0].serves().collect();
        assert_eq!(served, [(Carrier::Tcp, 80), (Carrier::Sctp, 1)]);
        assert_eq!(case.pods().count(), 2);
        assert!(case.cluster.pods[0].host_network);
        let addresses: [IpAddr; 2] =
            ["fd00::1", "10.0.0.1"].map(|text| text.parse().expect("an address"));
        assert_eq!(case.cluster.pods[0].addresses(), addresses);
        assert_eq!(case.cluster.externals["two"].as_slice().len(), 2);
        assert_eq!(case.steps[0].expect[0].family, Some(Version::V6));
    }
}
