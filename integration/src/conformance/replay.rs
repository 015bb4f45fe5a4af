//! Owns the comparison of files with our oracle, which needs neither kernel nor deployment: what a file expects against
//! what the oracle says; never asks the compiler.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use sallyport_oracle::{Flow, Oracle, Packet, Side};
use serde_json::Value;

use super::{
    Error,
    case::{self, Action, Case, Expect, Labelled, Labels, Pod, Step},
    cells::cells,
    manifests,
};

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The cases.
    pub cases: u64,
    /// Their steps.
    pub steps: u64,
    /// The verdicts that were compared: of ingress alone, of egress alone, and of both.
    pub verdicts: u64,
    /// The verdicts that differ, each on a line.
    pub differences: Vec<String>,
}

/// Compares every verdict of a file with the oracle's. A file whose own account of its cluster and its policies is not
/// what its actions lead to makes no sense.
pub fn replay(path: &Path) -> Result<Replayed, Error> {
    let mut replayed = Replayed::default();
    for case in case::read(path)? {
        replayed.cases += 1;
        let mut state = State::default();
        state.enter(&case)?;
        for (index, step) in case.steps.iter().enumerate() {
            replayed.steps += 1;
            for action in &step.actions {
                state.act(&case, action)?;
            }
            let named = format!("case {}, step {}", case.id, index + 1);
            let off = |what: String| Error::Case(format!("{named}: {what}"));
            state.check_state(step).map_err(off)?;
            state.compare(step, &named, &mut replayed)?;
        }
    }
    Ok(replayed)
}

/// The cluster of a case under way.
#[derive(Default)]
struct State {
    oracle: Oracle,
    namespaces: BTreeMap<String, Labels>,
    pods: BTreeMap<String, Pod>,
    /// By namespace and name.
    policies: BTreeMap<(String, String), Value>,
    externals: BTreeMap<String, Vec<IpAddr>>,
}

impl State {
    fn enter(&mut self, case: &Case) -> Result<(), Error> {
        for (name, labels) in &case.cluster.namespaces {
            self.set_namespace(name, labels)?;
        }
        for pod in &case.cluster.pods {
            self.set_pod(pod.clone())?;
        }
        let externals = case.cluster.externals.iter();
        self.externals = externals
            .map(|(name, addresses)| (name.clone(), addresses.as_slice().to_vec()))
            .collect();
        Ok(())
    }

    fn act(&mut self, case: &Case, action: &Action) -> Result<(), Error> {
        match action {
            Action::CreatePolicy { policy } | Action::UpdatePolicy { policy } => {
                self.oracle.put(policy)?;
                self.policies.insert(identity(policy), policy.clone());
            }
            Action::DeletePolicy { namespace, name } => {
                self.oracle.delete(&manifests::policy(namespace, name))?;
                self.policies.remove(&(namespace.clone(), name.clone()));
            }
            Action::CreateNamespace(Labelled { namespace, labels })
            | Action::SetNamespaceLabels(Labelled { namespace, labels }) => {
                self.set_namespace(namespace, labels)?;
            }
            Action::DeleteNamespace { namespace } => {
                let object = manifests::namespace(namespace, &Labels::new());
                self.oracle.delete(&object)?;
                self.namespaces.remove(namespace);
                self.pods.retain(|_, pod| pod.namespace != *namespace);
                self.policies.retain(|(within, _), _| within != namespace);
            }
            Action::CreatePod(pod) => self.set_pod(pod.with_ports_of(case))?,
            Action::SetPodLabels(wanted) => {
                let name = format!("{}/{}", wanted.namespace, wanted.name);
                let mut pod = self.pod(&name)?.clone();
                pod.labels = wanted.labels.clone();
                self.set_pod(pod)?;
            }
            Action::DeletePod { namespace, name } => {
                let pod = self.pod(&format!("{namespace}/{name}"))?.clone();
                self.oracle.delete(&manifests::pod(&pod, ""))?;
                self.pods.remove(&pod.endpoint());
            }
        }
        Ok(())
    }

    fn set_namespace(&mut self, name: &str, labels: &Labels) -> Result<(), Error> {
        self.oracle.put(&manifests::namespace(name, labels))?;
        self.namespaces.insert(name.to_owned(), labels.clone());
        Ok(())
    }

    /// If files do not name a pod's node, a node of its own stands for it.
    fn set_pod(&mut self, pod: Pod) -> Result<(), Error> {
        let name = pod.endpoint();
        let node = pod.node.as_ref().unwrap_or(&name);
        self.oracle.put(&manifests::pod(&pod, node))?;
        self.pods.insert(name, pod);
        Ok(())
    }

    fn pod(&self, endpoint: &str) -> Result<&Pod, Error> {
        let missing = || Error::Case(format!("{endpoint} is no pod"));
        self.pods.get(endpoint).ok_or_else(missing)
    }

    /// Checks the step's own statement of the state after its actions, if it has one.
    fn check_state(&self, step: &Step) -> Result<(), String> {
        let same = |what: &str, same: bool| match same {
            true => Ok(()),
            false => Err(format!("its {what} are not those that its actions lead to")),
        };
        let policies = step.policies.iter();
        let policies: BTreeMap<_, _> = policies
            .map(|policy| (identity(policy), policy.clone()))
            .collect();
        same("policies", policies == self.policies)?;
        let Some(told) = &step.cluster else {
            return Ok(());
        };
        let namespaces = without_names(&told.namespaces) == without_names(&self.namespaces);
        same("namespaces", namespaces)?;
        let pods: BTreeMap<String, _> = told.pods.iter().map(summary).collect();
        same("pods", pods == self.pods.values().map(summary).collect())
    }

    fn compare(&self, step: &Step, named: &str, replayed: &mut Replayed) -> Result<(), Error> {
        let addresses = |endpoint: &str| match self.externals.get(endpoint) {
            Some(addresses) => Ok(addresses.clone()),
            None => Ok(self.pod(endpoint)?.addresses()),
        };
        for (index, expect) in step.expect.iter().enumerate() {
            for (judge, rows) in [
                (Sides::Both, Some(&expect.combined)),
                (Sides::Only(Side::Ingress), expect.ingress.as_ref()),
                (Sides::Only(Side::Egress), expect.egress.as_ref()),
            ] {
                let Some(rows) = rows else { continue };
                for cell in cells(step, index, rows, &addresses)? {
                    let flow = self.oracle.flow(cell.source, cell.target);
                    let open = judge.allows(&flow, expect);
                    replayed.verdicts += 1;
                    if open != cell.open {
                        let (from, to) = (&step.endpoints[cell.from], &step.endpoints[cell.to]);
                        let (protocol, port) = (expect.protocol, expect.port);
                        replayed.differences.push(format!(
                            "{named}: {from} ({}) -> {to} ({}) {protocol:?} {port}, {judge:?}: the oracle says {open}",
                            cell.source, cell.target,
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The side whose policies a table covers.
#[derive(Clone, Copy, Debug)]
enum Sides {
    Both,
    Only(Side),
}

impl Sides {
    fn allows(self, flow: &Flow<'_>, expect: &Expect) -> bool {
        let packet = Packet::To(expect.protocol.into(), expect.port);
        match self {
            Sides::Both => flow.allows(packet),
            Sides::Only(side) => flow.allowed_by(side, packet),
        }
    }
}

/// A policy's namespace and name.
fn identity(policy: &Value) -> (String, String) {
    let text = |field: &str| policy["metadata"][field].as_str();
    let namespace = text("namespace").unwrap_or("default").to_owned();
    (namespace, text("name").unwrap_or_default().to_owned())
}

/// The namespaces without the label that each has, and that files list for some.
fn without_names(namespaces: &BTreeMap<String, Labels>) -> BTreeMap<&str, Labels> {
    let without_name = |labels: &Labels| {
        let mut labels = labels.clone();
        labels.remove("kubernetes.io/metadata.name");
        labels
    };
    let namespaces = namespaces.iter();
    namespaces
        .map(|(name, labels)| (name.as_str(), without_name(labels)))
        .collect()
}

/// The facts that files have of a pod.
fn summary(pod: &Pod) -> (String, (Vec<IpAddr>, &Labels)) {
    (pod.endpoint(), (pod.addresses(), &pod.labels))
}
