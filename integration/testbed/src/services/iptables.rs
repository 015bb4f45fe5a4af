//! Owns the rules that kube-proxy writes in iptables mode: chains below those of the kernel, a mark for what is to be
//! masqueraded, chances among endpoints.

use std::fmt;
use std::net::SocketAddr;

use super::{ExternalTrafficPolicy, Port, View, hash};
use crate::Family;

/// The text for `iptables-restore`.
pub(super) fn rules(view: &View) -> String {
    format!("{}{}", filter(view), nat(view))
}

/// A table of iptables in the making.
struct Table {
    name: &'static str,
    chains: Vec<String>,
    rules: Vec<String>,
}

impl Table {
    fn new(name: &'static str, chains: &[&str]) -> Self {
        Self {
            name,
            chains: chains.iter().map(|&chain| chain.to_owned()).collect(),
            rules: Vec::new(),
        }
    }

    fn add(&mut self, chain: &str, rule: impl fmt::Display) {
        self.rules.push(format!("-A {chain} {rule}"));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        for chain in &self.chains {
            writeln!(f, ":{chain} - [0:0]")?;
        }
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        writeln!(f, "COMMIT")
    }
}

fn comment(text: impl fmt::Display) -> String {
    format!("-m comment --comment \"{text}\"")
}

fn filter(view: &View) -> Table {
    let mut table = Table::new(
        "filter",
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-FIREWALL",
        ],
    );
    let new = "-m conntrack --ctstate NEW";
    let firewall = comment("kubernetes load balancer firewall");
    let portals = comment("kubernetes service portals");
    let external = comment("kubernetes externally-visible service portals");
    for chain in ["INPUT", "FORWARD", "OUTPUT"] {
        table.add(chain, format!("{new} {firewall} -j KUBE-PROXY-FIREWALL"));
    }
    let health = comment("kubernetes health check service ports");
    table.add("INPUT", format!("{health} -j KUBE-NODEPORTS"));
    let forwarding = comment("kubernetes forwarding rules");
    table.add("FORWARD", format!("{forwarding} -j KUBE-FORWARD"));
    for chain in ["FORWARD", "OUTPUT"] {
        table.add(chain, format!("{new} {portals} -j KUBE-SERVICES"));
    }
    for chain in ["INPUT", "FORWARD"] {
        table.add(chain, format!("{new} {external} -j KUBE-EXTERNAL-SERVICES"));
    }
    for chain in ["INPUT", "OUTPUT"] {
        table.add(chain, "-j KUBE-FIREWALL");
    }
    if view.family == Family::V4 {
        let localnet = comment("block incoming localnet connections");
        let foreign = "-d 127.0.0.0/8 ! -s 127.0.0.0/8";
        let unknown = "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT";
        table.add(
            "KUBE-FIREWALL",
            format!("{localnet} {foreign} {unknown} -j DROP"),
        );
    }
    table.add("KUBE-FORWARD", "-m conntrack --ctstate INVALID -j DROP");
    table.add(
        "KUBE-FORWARD",
        format!("{forwarding} -m mark --mark 0x4000/0x4000 -j ACCEPT"),
    );
    let known = comment("kubernetes forwarding conntrack rule");
    table.add(
        "KUBE-FORWARD",
        format!("{known} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
    );
    for port in view.ports() {
        let only_elsewhere =
            port.service.external == ExternalTrafficPolicy::Local && port.local.is_empty();
        if let (true, Some(node_port)) = (only_elsewhere, port.service.node_port) {
            let none = comment(format!("{} has no local endpoints", port.id));
            let (own, protocol) = ("-m addrtype --dst-type LOCAL", &port.protocol);
            let at = format!("{none} {own} -m {protocol} -p {protocol} --dport {node_port}");
            table.add("KUBE-EXTERNAL-SERVICES", format!("{at} -j DROP"));
        }
    }
    table
}

fn nat(view: &View) -> Table {
    let mut table = Table::new(
        "nat",
        &[
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
        ],
    );
    let portals = comment("kubernetes service portals");
    for chain in ["PREROUTING", "OUTPUT"] {
        table.add(chain, format!("{portals} -j KUBE-SERVICES"));
    }
    let postrouting = comment("kubernetes postrouting rules");
    table.add("POSTROUTING", format!("{postrouting} -j KUBE-POSTROUTING"));
    table.add(
        "KUBE-POSTROUTING",
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    );
    table.add("KUBE-POSTROUTING", "-j MARK --xor-mark 0x4000");
    let snat = comment("kubernetes service traffic requiring SNAT");
    table.add(
        "KUBE-POSTROUTING",
        format!("{snat} -j MASQUERADE --random-fully"),
    );
    table.add("KUBE-MARK-MASQ", "-j MARK --or-mark 0x4000");
    for port in view.ports() {
        service(&mut table, view, &port);
    }
    let last =
        comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain");
    table.add(
        "KUBE-SERVICES",
        format!("{last} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"),
    );
    table
}

/// The chains of one port of a Service, and the rules that lead there.
fn service(table: &mut Table, view: &View, port: &Port) {
    let Port { id, protocol, .. } = port;
    let name = hash(&format!("{id}{protocol}"), 16);
    let svc = format!("KUBE-SVC-{name}");
    let at = format!(
        "{} -m {protocol} -p {protocol} -d {} --dport {}",
        comment(format!("{id} cluster IP")),
        port.address,
        port.service.port
    );
    table.chains.push(svc.clone());
    table.add("KUBE-SERVICES", format!("{at} -j {svc}"));
    table.add(&svc, format!("{at} ! -s {} -j KUBE-MARK-MASQ", view.pods()));
    for endpoint in &port.all {
        endpoint_chain(table, port, *endpoint);
    }
    choose(table, &svc, port, &port.all);
    if let Some(node_port) = port.service.node_port {
        let ext = format!("KUBE-EXT-{name}");
        let at = format!(
            "{} -m {protocol} -p {protocol} --dport {node_port}",
            comment(id)
        );
        table.chains.push(ext.clone());
        table.add("KUBE-NODEPORTS", format!("{at} -j {ext}"));
        external(table, view, port, &name);
    }
}

/// The rules for traffic from outside.
fn external(table: &mut Table, view: &View, port: &Port, name: &str) {
    let (ext, svc) = (format!("KUBE-EXT-{name}"), format!("KUBE-SVC-{name}"));
    let of = |what: &str| comment(format!("{what} for {} external destinations", port.id));
    match port.service.external {
        ExternalTrafficPolicy::Cluster => {
            let masquerade = of("masquerade traffic");
            table.add(&ext, format!("{masquerade} -j KUBE-MARK-MASQ"));
            table.add(&ext, format!("-j {svc}"));
        }
        ExternalTrafficPolicy::Local => {
            let own = "-m addrtype --src-type LOCAL";
            let (pods, masquerade) = (of("pod traffic"), of("masquerade LOCAL traffic"));
            table.add(&ext, format!("{pods} -s {} -j {svc}", view.pods()));
            table.add(&ext, format!("{masquerade} {own} -j KUBE-MARK-MASQ"));
            let route = of("route LOCAL traffic");
            table.add(&ext, format!("{route} {own} -j {svc}"));
            if !port.local.is_empty() {
                let svl = format!("KUBE-SVL-{name}");
                table.chains.push(svl.clone());
                table.add(&ext, format!("-j {svl}"));
                choose(table, &svl, port, &port.local);
            }
        }
    }
}

fn endpoint_name(port: &Port, endpoint: SocketAddr) -> String {
    let text = format!("{}{}{endpoint}", port.id, port.protocol);
    format!("KUBE-SEP-{}", hash(&text, 16))
}

fn endpoint_chain(table: &mut Table, port: &Port, endpoint: SocketAddr) {
    let (name, id) = (endpoint_name(port, endpoint), comment(&port.id));
    let protocol = &port.protocol;
    table.chains.push(name.clone());
    table.add(
        &name,
        format!("{id} -s {} -j KUBE-MARK-MASQ", endpoint.ip()),
    );
    let to = format!("-j DNAT --to-destination {endpoint}");
    table.add(&name, format!("{id} -m {protocol} -p {protocol} {to}"));
}

/// Every endpoint with the same chance: the first of three with a third, the second of the two left with a half.
fn choose(table: &mut Table, chain: &str, port: &Port, endpoints: &[SocketAddr]) {
    for (done, &endpoint) in endpoints.iter().enumerate() {
        let to = comment(format!("{} -> {endpoint}", port.id));
        let left = endpoints.len() - done;
        let chance = match left {
            1 => String::new(),
            _ => format!(
                "-m statistic --mode random --probability {:.10} ",
                1.0 / left as f64
            ),
        };
        let jump = endpoint_name(port, endpoint);
        table.add(chain, format!("{to} {chance}-j {jump}"));
    }
}
