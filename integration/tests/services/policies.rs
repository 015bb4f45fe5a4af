//! The policies of the rows, and which ways each leaves open.

use crate::ways::Way;

/// The traffic that a policy judges. The policy does not select other pods.
#[derive(Clone, Copy)]
enum Selects {
    All,
    /// Packets to the servers.
    Servers,
    /// Packets from the client.
    Client,
}

/// A policy, and what it allows of what it judges.
pub(crate) struct Policy {
    pub(crate) name: &'static str,
    pub(crate) text: String,
    selects: Selects,
    allows: &'static [&'static str],
}

impl Policy {
    /// Whether a way is to be open.
    pub(crate) fn opens(&self, way: &Way) -> bool {
        let is_judged = match self.selects {
            Selects::All => true,
            Selects::Servers => way.to_server,
            Selects::Client => way.of_client,
        };
        way.always || !is_judged || self.allows.contains(&way.name)
    }
}

/// Nobody may send or be sent anything.
pub(crate) const DENY_ALL: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: deny-all}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---";

/// Only one of two servers may be reached.
pub(crate) const ONLY_NEAR: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: only-near}
spec: {podSelector: {matchLabels: {at: far}}}
---";

fn ingress(rule: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: servers}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  policyTypes: [Ingress]
  ingress: [{{{rule}}}]
---"
    )
}

fn egress(rule: &str) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: client}}
spec:
  podSelector: {{matchLabels: {{app: client}}}}
  policyTypes: [Egress]
  egress: [{{{rule}}}]
---"
    )
}

const FROM_CLIENT: &str = "from: [{podSelector: {matchLabels: {app: client}}}]";
const TO_SERVER: &str = "to: [{podSelector: {matchLabels: {app: server}}}]";

/// The client's ways whose ends, as the servers' nodes see them, are the client and a server.
const FROM_CLIENT_TO_SERVERS: &[&str] = &[
    "pod-clusterip-near",
    "pod-clusterip-far",
    "pod-nodeport-near",
    "pod-other-nodeport",
    "pod-hostport",
];

/// Those of these ways whose ends are the same for the client's node.
const BETWEEN_CLIENT_AND_SERVERS: &[&str] = &[
    "pod-clusterip-near",
    "pod-clusterip-far",
    "pod-nodeport-near",
    "pod-hostport",
];

/// All policies. Kubernetes' documentation leaves open whether source and destination are judged before or after they
/// are rewritten ("Behavior of to and from selectors"). Its conformance tests want egress to a Service judged by the
/// pods behind it. Sallyport judges a connection by who began it, as the judging node saw it arrive, and by the pod
/// that it ends at.
pub(crate) fn policies() -> Vec<Policy> {
    let servers = |name, rule: &str, allows| Policy {
        name,
        text: ingress(rule),
        selects: Selects::Servers,
        allows,
    };
    let client = |name, rule: &str, allows| Policy {
        name,
        text: egress(rule),
        selects: Selects::Client,
        allows,
    };
    let all = |name, text, allows| Policy {
        name,
        text,
        selects: Selects::All,
        allows,
    };
    let ports = |peers: &str, port: &str| format!("{peers}, ports: [{{port: {port}}}]");
    let both_ends = [
        DENY_ALL,
        &ingress(&ports(FROM_CLIENT, "8080")),
        &egress(&ports(TO_SERVER, "8080")),
    ];
    vec![
        all("deny all", DENY_ALL.to_owned(), &[]),
        // By a node port of another node the client comes as that node, and no selector of pods selects a node.
        servers(
            "ingress from the client at the pod's port",
            &ports(FROM_CLIENT, "8080"),
            FROM_CLIENT_TO_SERVERS,
        ),
        servers(
            "ingress from the client at the port's name",
            &ports(FROM_CLIENT, "http"),
            FROM_CLIENT_TO_SERVERS,
        ),
        servers(
            "ingress from the client at the Service's port",
            &ports(FROM_CLIENT, "80"),
            &[],
        ),
        servers(
            "ingress from the client at the node port",
            &ports(FROM_CLIENT, "30080"),
            &[],
        ),
        // If the first node is the pod's, its table sees the client itself, though the pod sees the node.
        servers(
            "ingress from the address outside",
            "from: [{ipBlock: {cidr: 203.0.113.7/32}}, {ipBlock: {cidr: '2001:db8:203::7/128'}}]",
            &[
                "outside-nodeport-near",
                "outside-nodeport-local",
                "outside-hostport",
            ],
        ),
        servers(
            "ingress from another address outside",
            "from: [{ipBlock: {cidr: 203.0.113.8/32}}, {ipBlock: {cidr: '2001:db8:203::8/128'}}]",
            &[],
        ),
        // Packets that the first node forwards in its own name, and packets that it sends itself.
        servers(
            "ingress from the first node",
            "from: [{ipBlock: {cidr: 198.18.0.10/32}}, {ipBlock: {cidr: 'fdff:5a11::a/128'}}]",
            &[
                "outside-nodeport-far",
                "pod-nodeport-far",
                "node-clusterip-far",
                "node-to-pod-far",
            ],
        ),
        // Egress is judged on the client's own node, which knows the pod behind what it translates itself.
        client(
            "egress to the servers at the pod's port",
            &ports(TO_SERVER, "8080"),
            &[
                "pod-clusterip-near",
                "pod-clusterip-far",
                "pod-nodeport-near",
                "pod-nodeport-far",
                "pod-hostport",
            ],
        ),
        client(
            "egress to the near server's address",
            "to: [{ipBlock: {cidr: 10.9.1.3/32}}, {ipBlock: {cidr: 'fd00:9:1::3/128'}}]",
            &["pod-clusterip-near", "pod-nodeport-near", "pod-hostport"],
        ),
        client(
            "egress to the servers at the Service's port",
            &ports(TO_SERVER, "80"),
            &[],
        ),
        client(
            "egress to the ClusterIPs",
            "to: [{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: 'fd00:96::/112'}}]",
            &[],
        ),
        client(
            "egress to the first node",
            "to: [{ipBlock: {cidr: 198.18.0.10/32}}, {ipBlock: {cidr: 'fdff:5a11::a/128'}}]",
            &[],
        ),
        // By a Service of the second node itself, or a node port there: what is asked is that node.
        client(
            "egress to the second node",
            "to: [{ipBlock: {cidr: 198.18.0.11/32}}, {ipBlock: {cidr: 'fdff:5a11::b/128'}}]",
            &["pod-other-node", "pod-other-nodeport"],
        ),
        all(
            "both ends deny but for each other",
            both_ends.concat(),
            BETWEEN_CLIENT_AND_SERVERS,
        ),
    ]
}
