//! NetworkPolicy: the API server's rules for its spec, its defaults, our annotation, and what it means. Never looks at
//! other objects.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1 as k8s, apimachinery::pkg::apis::meta::v1 as meta,
    apimachinery::pkg::util::intstr::IntOrString,
};
use sallyport_policy::Protocol;
use sallyport_proto::names;

use super::{
    MAX_EXCEPTS, MAX_PEERS, MAX_PORTS, MAX_RULES, addresses,
    field::{Faults, Path, quote},
    selector::label_selector,
    workload,
};
use crate::model::{Established, LabelSelector, NetworkPolicy, Peer, Port, PortMatch, Rule};

type Ports = Option<Vec<k8s::NetworkPolicyPort>>;
type Peers = Option<Vec<k8s::NetworkPolicyPeer>>;

/// The annotation that says what becomes of connections that are established when the policy no longer allows them.
pub(crate) const ESTABLISHED: &str = "sallyport.dev/established";

/// The model of a policy. An absent podSelector selects every pod of the namespace, like an empty one.
pub(crate) fn network_policy(
    annotations: Option<&BTreeMap<String, String>>,
    spec: Option<&k8s::NetworkPolicySpec>,
    faults: &mut Faults,
) -> NetworkPolicy {
    let established = established(annotations, faults);
    let absent = k8s::NetworkPolicySpec::default();
    let spec = spec.unwrap_or(&absent);
    let at = Path::ROOT.field("spec");
    let pod_selector = spec
        .pod_selector
        .as_ref()
        .map(|selector| label_selector(selector, at.field("podSelector"), faults))
        .unwrap_or_default();
    let ingress = spec.ingress.as_deref().unwrap_or_default();
    let egress = spec.egress.as_deref().unwrap_or_default();
    let ingress_rules = rules(
        ingress.iter().map(|rule| (&rule.from, &rule.ports)),
        "from",
        at.field("ingress"),
        faults,
    );
    let egress_rules = rules(
        egress.iter().map(|rule| (&rule.to, &rule.ports)),
        "to",
        at.field("egress"),
        faults,
    );
    let types = directions(
        spec.policy_types.as_deref().unwrap_or_default(),
        !egress.is_empty(),
        at,
        faults,
    );
    NetworkPolicy {
        pod_selector,
        ingress: types.ingress.then_some(ingress_rules),
        egress: types.egress.then_some(egress_rules),
        established,
    }
}

fn established(
    annotations: Option<&BTreeMap<String, String>>,
    faults: &mut Faults,
) -> Option<Established> {
    let text = annotations?.get(ESTABLISHED)?;
    let found = Established::named(text);
    if found.is_none() {
        let at = Path::ROOT.field("metadata");
        let at = at.field("annotations");
        faults.unsupported(at.key(ESTABLISHED), text, &Established::NAMES);
    }
    found
}

struct Directions {
    ingress: bool,
    egress: bool,
}

/// The directions that a policy isolates. Without policyTypes: ingress always, egress if there is an egress rule. Rules
/// of a direction that policyTypes leaves out are checked and have no effect, as in Kubernetes.
fn directions(
    types: &[String],
    egress_rules: bool,
    at: Path<'_>,
    faults: &mut Faults,
) -> Directions {
    const KNOWN: [&str; 2] = ["Ingress", "Egress"];
    let at = at.field("policyTypes");
    if types.is_empty() {
        return Directions {
            ingress: true,
            egress: egress_rules,
        };
    }
    if types.len() > KNOWN.len() {
        let given: Vec<_> = types.iter().take(10).map(|name| quote(name)).collect();
        faults.invalid(
            at,
            format!("[{}]", given.join(",")),
            "may not specify more than two policyTypes",
        );
    } else {
        for (i, name) in types
            .iter()
            .enumerate()
            .filter(|(_, name)| !KNOWN.contains(&name.as_str()))
        {
            faults.unsupported(at.index(i), name, &KNOWN);
        }
    }
    let has = |wanted: &str| types.iter().any(|name| name == wanted);
    Directions {
        ingress: has("Ingress"),
        egress: has("Egress"),
    }
}

fn rules<'a>(
    given: impl ExactSizeIterator<Item = (&'a Peers, &'a Ports)>,
    peers_field: &str,
    at: Path<'_>,
    faults: &mut Faults,
) -> Vec<Rule> {
    if !faults.within(at, given.len(), MAX_RULES) {
        return Vec::new();
    }
    let mut rules = Vec::with_capacity(given.len());
    for (i, (given_peers, given_ports)) in given.enumerate() {
        let at = at.index(i);
        let ports = ports(
            given_ports.as_deref().unwrap_or_default(),
            at.field("ports"),
            faults,
        );
        let peers = peers(
            given_peers.as_deref().unwrap_or_default(),
            at.field(peers_field),
            faults,
        );
        rules.push(Rule { peers, ports });
    }
    rules
}

fn ports(given: &[k8s::NetworkPolicyPort], at: Path<'_>, faults: &mut Faults) -> Vec<Port> {
    if !faults.within(at, given.len(), MAX_PORTS) {
        return Vec::new();
    }
    given
        .iter()
        .enumerate()
        .filter_map(|(i, given)| port(given, at.index(i), faults))
        .collect()
}

fn port(given: &k8s::NetworkPolicyPort, at: Path<'_>, faults: &mut Faults) -> Option<Port> {
    let protocol = match given.protocol.as_deref() {
        None => Some(Protocol::Tcp),
        Some(text) => {
            let known = workload::protocol(text);
            if known.is_none() {
                faults.unsupported(at.field("protocol"), text, &["TCP", "UDP", "SCTP"]);
            }
            known
        }
    };
    let ports = match &given.port {
        Some(IntOrString::Int(first)) => range(*first, given.end_port, at, faults),
        Some(IntOrString::String(name)) => {
            if let Some(end) = given.end_port {
                faults.invalid(
                    at.field("endPort"),
                    end,
                    "may not be specified when `port` is non-numeric",
                );
            }
            faults.invalid_each(at.field("port"), name, names::port_name(name));
            Some(PortMatch::Named(name.clone()))
        }
        None => {
            if let Some(end) = given.end_port {
                faults.invalid(
                    at.field("endPort"),
                    end,
                    "may not be specified when `port` is not specified",
                );
            }
            Some(PortMatch::All)
        }
    };
    Some(Port {
        protocol: protocol?,
        ports: ports?,
    })
}

fn range(first: i32, last: Option<i32>, at: Path<'_>, faults: &mut Faults) -> Option<PortMatch> {
    let low = names::port_number(first)
        .map_err(|rule| faults.invalid(at.field("port"), first, rule))
        .ok();
    let Some(last) = last else {
        return low.map(|port| PortMatch::Range(port, port));
    };
    let at = at.field("endPort");
    if last < first {
        faults.invalid(at, last, "must be greater than or equal to `port`");
    }
    let high = names::port_number(last)
        .map_err(|rule| faults.invalid(at, last, rule))
        .ok();
    Some(PortMatch::Range(low?, high?))
}

fn peers(given: &[k8s::NetworkPolicyPeer], at: Path<'_>, faults: &mut Faults) -> Vec<Peer> {
    if !faults.within(at, given.len(), MAX_PEERS) {
        return Vec::new();
    }
    given
        .iter()
        .enumerate()
        .filter_map(|(i, given)| peer(given, at.index(i), faults))
        .collect()
}

fn peer(given: &k8s::NetworkPolicyPeer, at: Path<'_>, faults: &mut Faults) -> Option<Peer> {
    let mut selector = |selector: &Option<meta::LabelSelector>, name| {
        selector
            .as_ref()
            .map(|selector| label_selector(selector, at.field(name), faults))
    };
    let pods = selector(&given.pod_selector, "podSelector");
    let namespaces = selector(&given.namespace_selector, "namespaceSelector");
    let block = given
        .ip_block
        .as_ref()
        .map(|block| ip_block(block, at.field("ipBlock"), faults));
    match (pods, namespaces, block) {
        (None, None, None) => {
            faults.required(at, "must specify a peer");
            None
        }
        (None, None, Some(block)) => block,
        (_, _, Some(_)) => {
            faults.forbidden(at, "may not specify both ipBlock and another peer");
            None
        }
        (pods, namespaces, None) => Some(Peer::Pods {
            namespaces,
            pods: pods.unwrap_or_else(LabelSelector::default),
        }),
    }
}

fn ip_block(given: &k8s::IPBlock, at: Path<'_>, faults: &mut Faults) -> Option<Peer> {
    if given.cidr.is_empty() {
        faults.required(at.field("cidr"), "");
        return None;
    }
    let block = addresses::cidr(&given.cidr, at.field("cidr"), faults);
    let excepts = given.except.as_deref().unwrap_or_default();
    let at_except = at.field("except");
    if !faults.within(at_except, excepts.len(), MAX_EXCEPTS) {
        return None;
    }
    let block = block?;
    let mut except = Vec::with_capacity(excepts.len());
    for (i, text) in excepts.iter().enumerate() {
        let at = at_except.index(i);
        match addresses::cidr(text, at, faults) {
            Some(span) if block.strictly_contains(&span) => except.push(span.network),
            Some(_) => faults.invalid(at, quote(text), "must be a strict subset of `cidr`"),
            None => {}
        }
    }
    Some(Peer::Block {
        cidr: block.network,
        except,
    })
}
