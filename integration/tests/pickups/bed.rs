//! The cluster: for each loss a node (or two), for each policy a pair of pods there. Knows how a loss is brought about
//! on a node; opens no conversation and judges none.

use std::{
    net::{IpAddr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use sallyport_integration::{
    binaries::binaries,
    connections::flush_all,
    deployment::{Client, Deployment, PATIENCE, Streams, delete, put},
};
use sallyport_testbed::{
    Host, Mode, Testbed,
    kernel_tests::{Failed, Outcome},
};

use crate::cells::{Loss, Policy, Start};

/// The places of the pods of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Places {
    /// Both on one node.
    OneNode,
    /// On a node each, both of which lose the conversation.
    TwoNodes,
}

/// A client and a server that nobody else talks to.
pub(crate) struct Pair {
    pub(crate) loss: Loss,
    pub(crate) policy: Policy,
    pub(crate) client: Host,
    pub(crate) server: Host,
    /// The nodes that both are on, the client's first.
    pub(crate) nodes: Vec<usize>,
}

impl Pair {
    /// The node that the server is on.
    fn servers_node(&self) -> usize {
        self.nodes[self.nodes.len() - 1]
    }
}

pub(crate) struct Bed {
    pub(crate) deployment: Deployment,
    pub(crate) pairs: Vec<Pair>,
    api: Client,
}

/// The ports of servers: of each conversation another one.
pub(crate) const FIRST_PORT: u16 = 7000;
const LAST_PORT: u16 = 7099;

/// An enforcer that has nothing to do has cleaned up after this long.
const CLEANED: Duration = Duration::from_millis(400);

/// Whoever looks at a connection's state has conntrack track all that comes by.
const TRACKING: &str = "
table inet tracking {
  chain forward { type filter hook forward priority 0; ct state new counter; }
}
";

impl Bed {
    /// The nodes and pods, of which those have joined whose enforcers start first. There is no policy.
    pub(crate) fn make(mode: Mode, places: Places) -> Result<Bed, Failed> {
        let of_each = match places {
            Places::OneNode => 1,
            Places::TwoNodes => 2,
        };
        let bed = Testbed::builder()
            .nodes(of_each * Loss::ALL.len())
            .mode(mode)
            .build()?;
        let mut pairs = Vec::new();
        for (place, loss) in Loss::ALL.into_iter().enumerate() {
            let nodes: Vec<usize> = (place * of_each..(place + 1) * of_each).collect();
            for (number, policy) in Policy::ALL.into_iter().enumerate() {
                let pod = |node: usize, number: usize, role: &str| {
                    let name = format!("default/{}-{}-{role}", loss.name(), policy.name());
                    bed.add_pod(node, &name, &addresses(node, 2 + number))
                };
                let client = pod(nodes[0], 2 * number, "client")?;
                let server = pod(nodes[of_each - 1], 2 * number + 1, "server")?;
                pairs.push(Pair {
                    loss,
                    policy,
                    client,
                    server,
                    nodes: nodes.clone(),
                });
            }
        }
        let deployment =
            Deployment::start_without_enforcers(binaries()?, bed, &[], &[], Streams::default())?;
        let mut bed = Bed {
            api: deployment.client()?,
            deployment,
            pairs,
        };
        bed.join(Start::First)?;
        bed.track()?;
        Ok(bed)
    }

    /// Nodes join the cluster with their pods, and their enforcers start. When this returns each has a table.
    fn join(&mut self, start: Start) -> Outcome {
        let of = |loss: Loss| loss.start() == start;
        let mut manifest =
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n---\n".to_owned();
        let pods = self.pods(of);
        for (node, _) in &pods {
            let name = Deployment::node_name(*node);
            manifest += &format!(
                "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {{name: {name}}}\n---\n"
            );
        }
        for pair in self.pairs.iter().filter(|pair| of(pair.loss)) {
            manifest += &workload(&pair.client, pair.nodes[0]);
            manifest += &workload(&pair.server, pair.servers_node());
        }
        let revision = self.api.apply(vec![put(manifest)])?;
        for (node, _) in &pods {
            self.deployment.start_enforcer(*node)?;
        }
        self.api.wait_enforced(revision)?;
        for (node, pod) in pods {
            let deadline = Instant::now() + PATIENCE;
            while !self.deployment.ruleset(node)?.contains(&pod) {
                if Instant::now() > deadline {
                    return Err(format!("node {} knows no {pod}", node + 1).into());
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    /// The nodes of some losses, each with the name of a pod on it.
    fn pods(&self, of: impl Fn(Loss) -> bool) -> Vec<(usize, String)> {
        let of_policy = |pair: &&Pair| pair.policy == Policy::Nothing && of(pair.loss);
        let mut pods = Vec::new();
        for pair in self.pairs.iter().filter(of_policy) {
            pods.push((pair.servers_node(), pair.server.name().to_owned()));
            if pair.nodes.len() > 1 {
                pods.push((pair.nodes[0], pair.client.name().to_owned()));
            }
        }
        pods
    }

    /// Has the nodes track connections that are to be tracked before their enforcers start.
    fn track(&self) -> Outcome {
        for (node, _) in self.pods(Loss::is_tracked_by_others) {
            if !self.deployment.nft(node, &[TRACKING])? {
                return Err("nft does not take the table".into());
            }
        }
        Ok(())
    }

    /// Brings the losses about.
    pub(crate) fn lose(&mut self) -> Outcome {
        for (node, _) in self.pods(Loss::is_flushed) {
            flush_all(self.deployment.bed.node(node).netns())?;
        }
        let put_again: String = self
            .pairs
            .iter()
            .filter(|pair| pair.loss == Loss::PutAgain)
            .map(|pair| workload(&pair.server, pair.servers_node()))
            .collect();
        self.api.enforce(vec![delete(put_again.clone())])?;
        thread::sleep(CLEANED);
        self.api.enforce(vec![put(put_again)])?;
        self.join(Start::Late)
    }

    /// Puts all policies at once. When this returns they are enforced.
    pub(crate) fn isolate(&mut self) -> Outcome {
        let policies: String = self.pairs.iter().map(policy).collect();
        self.api.enforce(vec![put(policies)])?;
        self.join(Start::Last)
    }
}

fn addresses(node: usize, pod: usize) -> [IpAddr; 2] {
    let (network, pod) = (node as u16 + 1, pod as u16);
    [
        IpAddr::from([10, 9, network as u8, pod as u8]),
        Ipv6Addr::new(0xfd00, 9, network, 0, 0, 0, 0, pod).into(),
    ]
}

/// A pod's name as the API has it.
fn name(pod: &Host) -> &str {
    pod.name().trim_start_matches("default/")
}

fn workload(pod: &Host, node: usize) -> String {
    let (name, node) = (name(pod), Deployment::node_name(node));
    let addresses: Vec<String> = pod
        .addresses()
        .iter()
        .map(|one| format!("\"{one}\""))
        .collect();
    let addresses = addresses.join(", ");
    format!(
        "apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {name}, labels: {{pod: {name}}}}}
spec: {{node: {node}, addresses: [{addresses}]}}
---
"
    )
}

/// The policy of a pair.
fn policy(pair: &Pair) -> String {
    let (isolated, rules) = match pair.policy {
        Policy::Nothing => return String::new(),
        Policy::Denied => (&pair.server, String::new()),
        Policy::Mirrored => (&pair.client, String::new()),
        Policy::Allowed => {
            let peer = name(&pair.client);
            let ports = ["TCP", "UDP"].map(|protocol| {
                format!("{{protocol: {protocol}, port: {FIRST_PORT}, endPort: {LAST_PORT}}}")
            });
            let rule = format!(
                "  ingress: [{{from: [{{podSelector: {{matchLabels: {{pod: {peer}}}}}}}], ports: [{}]}}]\n",
                ports.join(", ")
            );
            (&pair.server, rule)
        }
    };
    let isolated = name(isolated);
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: {isolated}}}
spec:
  podSelector: {{matchLabels: {{pod: {isolated}}}}}
  policyTypes: [Ingress]
{rules}---
"
    )
}
