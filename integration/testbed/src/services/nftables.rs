//! Owns the rules that kube-proxy writes in nftables mode: one table a family, maps from addresses and ports to chains.

use std::net::SocketAddr;

use super::{ExternalTrafficPolicy, Port, View, hash};
use crate::Family;

/// The text for `nft -f`. With `maps` the endpoints of a Service are elements of one map.
pub(super) fn rules(view: &View, maps: bool) -> String {
    let (ip, kind) = match view.family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let mut writer = Writer {
        view,
        maps,
        ip,
        text: String::new(),
    };
    writer.frame(kind);
    for port in view.ports() {
        writer.service(&port);
    }
    writer.text
}

struct Writer<'a> {
    view: &'a View<'a>,
    maps: bool,
    ip: &'static str,
    text: String,
}

impl Writer<'_> {
    fn add(&mut self, object: &str, rest: &str) {
        let ip = self.ip;
        self.text += &format!("add {object} {ip} kube-proxy {rest}\n");
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        self.add("chain", name);
        for rule in rules {
            self.add("rule", &format!("{name} {rule}"));
        }
    }

    fn element(&mut self, set: &str, element: &str) {
        self.add("element", &format!("{set} {{ {element} }}"));
    }

    /// The part that exists without any Service.
    fn frame(&mut self, kind: &str) {
        let ip = self.ip;
        self.text +=
            &format!("add table {ip} kube-proxy {{ comment \"rules for kube-proxy\" ; }}\n");
        let at = format!("{kind} . inet_proto . inet_service");
        let sets = [
            ("cluster-ips", kind.to_owned(), "Active ClusterIPs"),
            (
                "nodeport-ips",
                kind.to_owned(),
                "IPs that accept NodePort traffic",
            ),
        ];
        for (name, kind, comment) in sets {
            self.add(
                "set",
                &format!("{name} {{ type {kind} ; comment \"{comment}\" ; }}"),
            );
        }
        if self.maps {
            let hairpins =
                format!("type {kind} . {at} ; comment \"service hairpin connections\" ;");
            self.add("set", &format!("hairpin-connections {{ {hairpins} }}"));
        }
        let nodes = "inet_proto . inet_service".to_owned();
        let maps = [
            ("firewall-ips", &at),
            ("no-endpoint-services", &at),
            ("no-endpoint-nodeports", &nodes),
            ("service-ips", &at),
            ("service-nodeports", &nodes),
        ];
        for (name, kind) in maps {
            self.add("map", &format!("{name} {{ type {kind} : verdict ; }}"));
        }
        self.helpers();
        let bases = [
            (
                "filter-prerouting-pre-dnat",
                "filter hook prerouting priority -110",
            ),
            ("filter-output-pre-dnat", "filter hook output priority -110"),
            ("filter-forward", "filter hook forward priority 0"),
            ("filter-input", "filter hook input priority 0"),
            ("filter-output", "filter hook output priority 0"),
            ("nat-output", "nat hook output priority -100"),
            ("nat-postrouting", "nat hook postrouting priority 100"),
            ("nat-prerouting", "nat hook prerouting priority -100"),
        ];
        for (name, hook) in bases {
            self.add("chain", &format!("{name} {{ type {hook} ; }}"));
        }
        let jumps = [
            (
                "filter-prerouting-pre-dnat",
                "ct state new jump firewall-check",
            ),
            (
                "filter-forward",
                "ct state new jump service-endpoints-check",
            ),
            ("filter-forward", "ct state new jump cluster-ips-check"),
            ("filter-input", "ct state new jump nodeport-endpoints-check"),
            ("filter-input", "ct state new jump service-endpoints-check"),
            ("filter-output", "ct state new jump service-endpoints-check"),
            ("filter-output-pre-dnat", "ct state new jump firewall-check"),
            ("filter-output", "ct state new jump cluster-ips-check"),
            ("nat-output", "jump services"),
            ("nat-postrouting", "jump masquerading"),
            ("nat-prerouting", "jump services"),
        ];
        for (base, jump) in jumps {
            self.add("rule", &format!("{base} {jump}"));
        }
        self.element("nodeport-ips", &self.view.address.to_string());
    }

    /// The chains that base chains jump to.
    fn helpers(&mut self) {
        let (ip, range, pods) = (self.ip, self.view.services(), self.view.pods());
        let at = format!("{ip} daddr . meta l4proto . th dport vmap");
        let node = format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap");
        self.chain(
            "cluster-ips-check",
            &[
                format!("{ip} daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\""),
                format!("{ip} daddr {{ {range} }} drop comment \"Drop traffic to unallocated ClusterIPs\""),
            ],
        );
        self.chain("firewall-check", &[format!("{at} @firewall-ips")]);
        self.chain(
            "nodeport-endpoints-check",
            &[format!("{node} @no-endpoint-nodeports")],
        );
        self.chain(
            "service-endpoints-check",
            &[format!("{at} @no-endpoint-services")],
        );
        let mut services = vec![
            format!("{at} @service-ips"),
            format!("{node} @service-nodeports"),
        ];
        if self.maps {
            let outside = format!("{ip} daddr @cluster-ips {ip} saddr != {pods}");
            services.insert(0, format!("{outside} mark set mark or 0x4000"));
            let hairpin = format!("{ip} saddr . {ip} daddr . meta l4proto . th dport");
            let masquerading = [
                "mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random".to_owned(),
                format!("ct status dnat {hairpin} @hairpin-connections masquerade fully-random"),
            ];
            self.chain("masquerading", &masquerading);
        } else {
            self.chain(
                "mark-for-masquerade",
                &["mark set mark or 0x4000".to_owned()],
            );
            let masquerading = [
                "mark and 0x4000 == 0 return",
                "mark set mark xor 0x4000",
                "masquerade fully-random",
            ];
            self.chain("masquerading", &masquerading.map(str::to_owned));
        }
        self.chain("services", &services);
    }

    /// The chains of one port of a Service, and the elements that lead there.
    fn service(&mut self, port: &Port) {
        let (ip, protocol, address) = (self.ip, &port.protocol, port.address);
        let name = format!("{}/{protocol}/{}", port.service.name, port.service.port);
        let name = format!("{}-{name}", hash(&name, 8));
        let mut rules = Vec::new();
        if self.maps {
            for endpoint in &port.local {
                let at = format!(
                    "{0} . {0} . {protocol} . {1}",
                    endpoint.ip(),
                    endpoint.port()
                );
                self.element("hairpin-connections", &at);
            }
        } else {
            let pods = self.view.pods();
            let outside = format!("{ip} daddr {address} {ip} saddr != {pods}");
            rules.push(format!("{outside} jump mark-for-masquerade"));
            for &endpoint in &port.all {
                self.endpoint(port, endpoint);
            }
        }
        rules.push(self.choose(port, &port.all));
        self.chain(&format!("service-{name}"), &rules);
        self.element("cluster-ips", &address.to_string());
        let at = format!("{address} . {protocol} . {}", port.service.port);
        self.element("service-ips", &format!("{at} : goto service-{name}"));
        if let Some(node_port) = port.service.node_port {
            self.external(port, &name);
            let at = format!("{protocol} . {node_port}");
            self.element("service-nodeports", &format!("{at} : goto external-{name}"));
            if port.local.is_empty() && port.service.external == ExternalTrafficPolicy::Local {
                self.element(
                    "no-endpoint-nodeports",
                    &format!("{at} comment \"{}\" : drop", port.id),
                );
            }
        }
    }

    /// The rules for traffic from outside.
    fn external(&mut self, port: &Port, name: &str) {
        let (ip, pods) = (self.ip, self.view.pods());
        let mark = match self.maps {
            true => "mark set mark or 0x4000",
            false => "jump mark-for-masquerade",
        };
        let goto = format!("goto service-{name}");
        let mut rules = match port.service.external {
            ExternalTrafficPolicy::Cluster => vec![mark.to_owned(), goto],
            ExternalTrafficPolicy::Local => vec![
                format!("{ip} saddr {pods} {goto} comment \"short-circuit pod traffic\""),
                format!("fib saddr type local {mark} comment \"masquerade local traffic\""),
                format!("fib saddr type local {goto} comment \"short-circuit local traffic\""),
            ],
        };
        if port.service.external == ExternalTrafficPolicy::Local && !port.local.is_empty() {
            rules.push(self.choose(port, &port.local));
        }
        self.chain(&format!("external-{name}"), &rules);
    }

    fn endpoint_name(port: &Port, endpoint: SocketAddr) -> String {
        let (protocol, number) = (&port.protocol, port.service.port);
        let address = endpoint.ip().to_string().replace(':', ".");
        let name = format!(
            "{}/{protocol}/{number}__{address}/{}",
            port.service.name,
            endpoint.port()
        );
        format!("endpoint-{}-{name}", hash(&name, 8))
    }

    fn endpoint(&mut self, port: &Port, endpoint: SocketAddr) {
        let (ip, protocol) = (self.ip, &port.protocol);
        let own = format!("{ip} saddr {} jump mark-for-masquerade", endpoint.ip());
        let to = format!("meta l4proto {protocol} dnat to {endpoint}");
        self.chain(&Self::endpoint_name(port, endpoint), &[own, to]);
    }

    /// The rule that takes one endpoint, every one with the same chance.
    fn choose(&self, port: &Port, endpoints: &[SocketAddr]) -> String {
        let number = endpoints.len();
        let element = |(index, endpoint): (usize, &SocketAddr)| match self.maps {
            true => format!("{index} : {} . {}", endpoint.ip(), endpoint.port()),
            false => format!("{index} : goto {}", Self::endpoint_name(port, *endpoint)),
        };
        let elements: Vec<_> = endpoints.iter().enumerate().map(element).collect();
        let (elements, protocol, ip) = (elements.join(" , "), &port.protocol, self.ip);
        match self.maps {
            true => format!(
                "meta l4proto {protocol} dnat {ip} addr . port to numgen random mod {number} map {{ {elements} }}"
            ),
            false => format!("numgen random mod {number} vmap {{ {elements} }}"),
        }
    }
}
