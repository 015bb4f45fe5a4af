//! Laws of manifests: what was accepted is accepted again and means the same, spelling does not change meaning, and no
//! text brings the reader down. Owns generators; the rules themselves are in the tables beside this.

use proptest::{collection::vec, option, prelude::*};
use sallyport_controlplane::{manifest, model::Object};
use serde_json::{Map, Value, json};

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?"
}

fn label() -> impl Strategy<Value = (String, String)> {
    (
        "([a-z]{1,5}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,8}[A-Za-z0-9])?",
        "([A-Za-z0-9]([-_.A-Za-z0-9]{0,8}[A-Za-z0-9])?)?",
    )
}

fn labels() -> impl Strategy<Value = Value> {
    vec(label(), 0..4).prop_map(|labels| {
        Value::Object(
            labels
                .into_iter()
                .map(|(key, value)| (key, Value::from(value)))
                .collect(),
        )
    })
}

fn metadata() -> impl Strategy<Value = Value> {
    (name(), option::of(name()), labels(), labels()).prop_map(|(name, namespace, labels, annotations)| {
        json!({"name": name, "namespace": namespace, "labels": labels, "annotations": annotations,
               "creationTimestamp": "2025-11-03T09:14:21Z"})
    })
}

fn selector() -> impl Strategy<Value = Value> {
    let values = || vec(label().prop_map(|(_, value)| value), 1..4);
    let expression =
        (label(), 0..4, values()).prop_map(|((key, _), operator, values)| match operator {
            0 => json!({"key": key, "operator": "In", "values": values}),
            1 => json!({"key": key, "operator": "NotIn", "values": values}),
            2 => json!({"key": key, "operator": "Exists"}),
            _ => json!({"key": key, "operator": "DoesNotExist", "values": []}),
        });
    (option::of(labels()), option::of(vec(expression, 0..3))).prop_map(|(labels, expressions)| {
        let mut selector = Map::new();
        selector.extend(labels.map(|labels| ("matchLabels".to_owned(), labels)));
        selector.extend(
            expressions.map(|expressions| ("matchExpressions".to_owned(), json!(expressions))),
        );
        Value::Object(selector)
    })
}

fn block() -> impl Strategy<Value = Value> {
    let v4 = (any::<[u8; 4]>(), 0_u8..=31, vec((any::<u32>(), 1_u8..=32), 0..3)).prop_map(|(ip, prefix, except)| {
        let base = u32::from_be_bytes(ip);
        let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let except: Vec<_> = except
            .into_iter()
            .map(|(bits, longer)| {
                let address = std::net::Ipv4Addr::from(base & !host | bits & host);
                format!("{address}/{}", prefix + 1 + longer % (32 - prefix))
            })
            .collect();
        json!({"cidr": format!("{}/{prefix}", std::net::Ipv4Addr::from(base)), "except": except})
    });
    let v6 = (any::<[u16; 8]>(), 0_u8..=128).prop_map(
        |(ip, prefix)| json!({"cidr": format!("{}/{prefix}", std::net::Ipv6Addr::from(ip))}),
    );
    prop_oneof![v4, v6]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|selector| json!({"podSelector": selector})),
        selector().prop_map(|selector| json!({"namespaceSelector": selector})),
        (selector(), selector()).prop_map(
            |(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})
        ),
        block().prop_map(|block| json!({"ipBlock": block})),
    ]
}

fn protocol() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!("TCP")),
        Just(json!("UDP")),
        Just(json!("SCTP"))
    ]
}

fn port_name() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9]{0,6}[a-z])?"
}

fn port() -> impl Strategy<Value = Value> {
    (protocol(), 0..4, 1_u16.., 1_u16.., port_name()).prop_map(|(protocol, form, a, b, name)| {
        match form {
            0 => json!({"protocol": protocol}),
            1 => json!({"protocol": protocol, "port": a}),
            2 => json!({"protocol": protocol, "port": a.min(b), "endPort": a.max(b)}),
            _ => json!({"protocol": protocol, "port": name}),
        }
    })
}

fn rules(peers: &'static str) -> impl Strategy<Value = Value> {
    let rule = (option::of(vec(peer(), 0..3)), option::of(vec(port(), 0..3)))
        .prop_map(move |(given, ports)| json!({peers: given, "ports": ports}));
    option::of(vec(rule, 0..3)).prop_map(|rules| json!(rules))
}

fn policy() -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just(Value::Null),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Egress", "Ingress"])),
    ];
    (metadata(), selector(), rules("from"), rules("to"), types).prop_map(
        |(metadata, selector, ingress, egress, types)| {
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata,
                   "spec": {"podSelector": selector, "ingress": ingress, "egress": egress, "policyTypes": types}})
        },
    )
}

fn address() -> impl Strategy<Value = Vec<String>> {
    (option::of(any::<[u8; 3]>()), option::of(any::<[u16; 7]>())).prop_map(|(v4, v6)| {
        let v4 = v4.map(|[b, c, d]| format!("10.{b}.{c}.{d}"));
        let v6 = v6.map(|v6| {
            let mut all = [0xfd00; 8];
            all[1..].copy_from_slice(&v6);
            std::net::Ipv6Addr::from(all).to_string()
        });
        v4.into_iter().chain(v6).collect()
    })
}

fn pod() -> impl Strategy<Value = Value> {
    let ports = (protocol(), 1_u16.., option::of(port_name()))
        .prop_map(|(protocol, port, name)| (protocol, port, name));
    let phase = prop_oneof![
        Just("Pending"),
        Just("Running"),
        Just("Succeeded"),
        Just("Failed")
    ];
    (metadata(), option::of(name()), any::<bool>(), address(), ports, phase).prop_map(
        |(metadata, node, host_network, ips, (protocol, port, name), phase)| {
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                   "spec": {"nodeName": node, "hostNetwork": host_network, "containers": [
                       {"name": "c", "resources": {"limits": {"cpu": 1.5, "memory": "1Gi"}},
                        "ports": [{"containerPort": port, "protocol": protocol, "name": name}]}]},
                   "status": {"phase": phase, "podIP": ips.first(),
                              "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}})
        },
    )
}

fn workload() -> impl Strategy<Value = Value> {
    (
        metadata(),
        option::of(name()),
        address(),
        protocol(),
        1_u16..,
        port_name(),
        option::of("[a-z][a-z0-9.-]{0,14}"),
        option::of(address()),
    )
        .prop_map(|(metadata, node, ips, protocol, port, name, interface, sources)| {
            let ranges = |ips: Vec<String>| ips.iter().map(|ip| format!("{ip}/24")).collect::<Vec<_>>();
            let sources = sources.map(ranges);
            json!({"apiVersion": "sallyport.dev/v1", "kind": "Workload", "metadata": metadata,
                   "spec": {"node": node, "addresses": ips, "interface": interface, "allowedSources": sources,
                            "ports": [{"name": name, "port": port, "protocol": protocol}]}})
        })
}

fn cluster_wide() -> impl Strategy<Value = Value> {
    (name(), labels(), address(), 0..3).prop_map(|(name, labels, ips, kind)| {
        let metadata = json!({"name": name, "labels": labels});
        let cidrs: Vec<_> = ips.iter().map(|ip| format!("{ip}/24")).collect();
        let addresses: Vec<_> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        match kind {
            0 => json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
            1 => json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"podCIDRs": cidrs},
                        "status": {"addresses": addresses}}),
            _ => json!({"apiVersion": "sallyport.dev/v1", "kind": "Node", "metadata": metadata,
                        "spec": {"workloadCIDRs": cidrs, "addresses": ips}}),
        }
    })
}

fn object() -> impl Strategy<Value = Value> {
    prop_oneof![4 => policy(), 2 => pod(), 1 => workload(), 1 => cluster_wide()]
}

fn parsed(text: &str) -> Vec<Object> {
    manifest::parse(text, "m").unwrap_or_else(|problems| {
        panic!(
            "{text}\n{}",
            problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        )
    })
}

proptest! {
    /// Replay equals the first time: the journal holds manifests only.
    #[test]
    fn a_manifest_read_again_is_the_same_object(given in object()) {
        let first = parsed(&given.to_string());
        prop_assert_eq!(first.len(), 1);
        let replayed = manifest::object_from_json(&first[0].manifest);
        prop_assert_eq!(replayed.as_ref(), Ok(&first[0]));
        prop_assert_eq!(&parsed(&first[0].manifest), &first);
    }

    /// YAML and JSON, alone and in lists, are spellings of one thing.
    #[test]
    fn the_form_of_a_text_does_not_change_its_meaning(given in vec(object(), 0..4)) {
        let stream: String = given.iter().map(|object| format!("{object}\n")).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": given}).to_string();
        let pretty: Vec<_> = given.iter().map(|object| serde_json::to_string_pretty(object).unwrap()).collect();
        let yaml: String = pretty.iter().map(|json| format!("---\n# as YAML\n{json}\n")).collect();
        let expected = parsed(&stream);
        prop_assert_eq!(expected.len(), given.len());
        prop_assert_eq!(&parsed(&list), &expected);
        prop_assert_eq!(&parsed(&yaml), &expected);
        let keys: Vec<_> = expected.iter().map(|object| object.key.clone()).collect();
        prop_assert_eq!(manifest::parse_keys(&yaml, "m"), Ok(keys));
    }

    /// A list is told of in the same words whatever else is in the text.
    #[test]
    fn one_wrong_object_does_not_hide_another(given in vec(object(), 1..4), wrong in 1..4_usize) {
        let unknown = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}, "wrong": 1});
        let items: Vec<_> = given.into_iter().chain(std::iter::repeat_n(unknown, wrong)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let told: Vec<_> = manifest::parse(&list, "m").unwrap_err().iter().map(ToString::to_string).collect();
        prop_assert_eq!(told, vec!["m: document 1: Namespace a: unknown field \"wrong\"".to_owned(); wrong]);
    }

    #[test]
    fn no_text_brings_the_reader_down(text in "\\PC*") {
        let _ = manifest::parse(&text, "m");
        let _ = manifest::parse_keys(&text, "m");
        let _ = manifest::object_from_json(&text);
    }

    #[test]
    fn no_damage_to_a_manifest_brings_the_reader_down(given in object(), at in any::<prop::sample::Index>(),
                                                       put in "[-{}\\[\\]:,\"'&*!#\n 0a]{0,3}", cut in 0..4_usize) {
        let text = serde_json::to_string_pretty(&given).unwrap();
        let start = at.index(text.len());
        let damaged = format!("{}{put}{}", &text[..start], &text[(start + cut).min(text.len())..]);
        if let Ok(objects) = manifest::parse(&damaged, "m") {
            for object in objects {
                prop_assert_eq!(manifest::object_from_json(&object.manifest), Ok(object));
            }
        }
    }

    /// Any value put in any place of an object is accepted, and then survives its replay, or it is told of.
    #[test]
    fn a_value_of_another_type_is_taken_or_told_of(given in object(), at in any::<prop::sample::Index>(), put in 0..5_usize) {
        let mut pointers = Vec::new();
        collect(&given, String::new(), &mut pointers);
        let pointer = at.get(&pointers);
        let mut damaged = given.clone();
        let put = [json!(null), json!(true), json!(5), json!([5]), json!({"x": "y"})][put].clone();
        *damaged.pointer_mut(pointer).unwrap() = put;
        if let Ok(objects) = manifest::parse(&damaged.to_string(), "m") {
            for object in objects {
                prop_assert_eq!(manifest::object_from_json(&object.manifest), Ok(object));
            }
        }
    }
}

/// The JSON pointer of every value in an object.
fn collect(value: &Value, at: String, pointers: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{at}/{key}"), pointers);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                collect(item, format!("{at}/{i}"), pointers);
            }
        }
        _ => {}
    }
    pointers.push(at);
}
