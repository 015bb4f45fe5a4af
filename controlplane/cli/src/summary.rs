//! A summary of a stored NetworkPolicy, in a few words for a table. Tolerant: the server validates, this only shows.

use serde_json::Value;

/// How many rules or peers are spelled out before `+N more`.
const SHOWN: usize = 3;

/// A direction of traffic, as policyTypes names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the selected pods.
    Ingress,
    /// From them.
    Egress,
}

/// A label selector as `kubectl get -l` takes it; `*` selects all.
pub(crate) fn selector(selector: &Value) -> String {
    let mut parts = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", text(value)));
    }
    for requirement in items(&selector["matchExpressions"]) {
        let key = text(&requirement["key"]);
        let values = items(&requirement["values"]).map(text).collect::<Vec<_>>();
        parts.push(
            match (text(&requirement["operator"]).as_str(), &values[..]) {
                ("In", [value]) => format!("{key}={value}"),
                ("NotIn", [value]) => format!("{key}!={value}"),
                ("In", values) => format!("{key} in ({})", values.join(",")),
                ("NotIn", values) => format!("{key} notin ({})", values.join(",")),
                ("Exists", _) => key,
                ("DoesNotExist", _) => format!("!{key}"),
                (other, _) => format!("{key} {other}?"),
            },
        );
    }
    match parts.is_empty() {
        true => "*".to_owned(),
        false => parts.join(","),
    }
}

/// The policy's types, with what Kubernetes assumes when there are none.
pub(crate) fn policy_types(spec: &Value) -> Vec<Direction> {
    let named: Vec<_> = items(&spec["policyTypes"]).filter_map(direction).collect();
    match (named.is_empty(), items(&spec["egress"]).next()) {
        (false, _) => named,
        (true, None) => vec![Direction::Ingress],
        (true, Some(_)) => vec![Direction::Ingress, Direction::Egress],
    }
}

fn direction(value: &Value) -> Option<Direction> {
    match value.as_str()? {
        "Ingress" => Some(Direction::Ingress),
        "Egress" => Some(Direction::Egress),
        _ => None,
    }
}

/// The rules of a policy in a direction: `-` when it does not isolate for it.
pub(crate) fn rules(spec: &Value, direction: Direction) -> String {
    let (rules, peers) = match direction {
        Direction::Ingress => (&spec["ingress"], "from"),
        Direction::Egress => (&spec["egress"], "to"),
    };
    if !policy_types(spec).contains(&direction) {
        return "-".to_owned();
    }
    let rule = |rule: &Value| {
        let peers = some_of(items(&rule[peers]).map(peer), " or ");
        let ports = some_of(items(&rule["ports"]).map(port), ",");
        match (peers.as_deref(), ports.as_deref()) {
            (None, None) => "all".to_owned(),
            (None, Some(ports)) => format!("all on {ports}"),
            (Some(peers), None) => peers.to_owned(),
            (Some(peers), Some(ports)) => format!("{peers} on {ports}"),
        }
    };
    some_of(items(rules).map(rule), "; ").unwrap_or_else(|| "nothing".to_owned())
}

fn some_of(all: impl Iterator<Item = String>, separator: &str) -> Option<String> {
    let mut all: Vec<_> = all.collect();
    if all.len() > SHOWN {
        let more = all.len() - (SHOWN - 1);
        all.truncate(SHOWN - 1);
        all.push(format!("+{more} more"));
    }
    (!all.is_empty()).then(|| all.join(separator))
}

fn peer(peer: &Value) -> String {
    if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
        return match some_of(items(&peer["ipBlock"]["except"]).map(text), ",") {
            None => cidr.to_owned(),
            Some(except) => format!("{cidr} except {except}"),
        };
    }
    let pods = match &peer["podSelector"] {
        Value::Null => None,
        pods => Some(format!("pod({})", selector(pods))),
    };
    match (&peer["namespaceSelector"], pods) {
        (Value::Null, pods) => pods.unwrap_or_else(|| "?".to_owned()),
        (namespaces, None) => format!("ns({})", selector(namespaces)),
        (namespaces, Some(pods)) => format!("ns({})/{pods}", selector(namespaces)),
    }
}

fn port(port: &Value) -> String {
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    match (&port["port"], &port["endPort"]) {
        (Value::Null, _) => protocol.to_owned(),
        (first, Value::Null) => format!("{}/{protocol}", text(first)),
        (first, last) => format!("{}-{}/{protocol}", text(first), text(last)),
    }
}

/// The items of an array; none of anything else.
pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A scalar without quotes.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors() {
        let show = |value| selector(&value);
        assert_eq!(show(json!({})), "*");
        assert_eq!(show(Value::Null), "*");
        assert_eq!(
            show(json!({"matchLabels": {"b": "2", "a": "1"}})),
            "a=1,b=2"
        );
        let expressions = json!({"matchExpressions": [
            {"key": "a", "operator": "In", "values": ["x", "y"]},
            {"key": "b", "operator": "In", "values": ["x"]},
            {"key": "c", "operator": "NotIn", "values": ["x"]},
            {"key": "d", "operator": "NotIn", "values": ["x", "y"]},
            {"key": "e", "operator": "Exists"},
            {"key": "f", "operator": "DoesNotExist"},
        ]});
        assert_eq!(show(expressions), "a in (x,y),b=x,c!=x,d notin (x,y),e,!f");
    }

    #[test]
    fn types_default_as_in_kubernetes() {
        let types = |spec| policy_types(&spec);
        assert_eq!(types(json!({})), [Direction::Ingress]);
        assert_eq!(types(json!({"egress": []})), [Direction::Ingress]);
        assert_eq!(
            types(json!({"egress": [{}]})),
            [Direction::Ingress, Direction::Egress]
        );
        assert_eq!(
            types(json!({"policyTypes": ["Egress"]})),
            [Direction::Egress]
        );
    }

    #[test]
    fn rules_in_a_few_words() {
        let ingress = |value: Value| rules(&json!({"ingress": value}), Direction::Ingress);
        assert_eq!(ingress(Value::Null), "nothing");
        assert_eq!(ingress(json!([{}])), "all");
        assert_eq!(
            ingress(json!([{"ports": [{"port": 53, "protocol": "UDP"}]}])),
            "all on 53/UDP"
        );
        let web = json!([
            {"from": [
                {"podSelector": {"matchLabels": {"app": "client"}}},
                {"namespaceSelector": {}, "podSelector": {}},
                {"namespaceSelector": {"matchLabels": {"team": "x"}}},
            ], "ports": [{"port": "http"}, {"port": 8000, "endPort": 8080}, {"protocol": "SCTP"}]},
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]},
        ]);
        assert_eq!(
            ingress(web),
            "pod(app=client) or ns(*)/pod(*) or ns(team=x) on http/TCP,8000-8080/TCP,SCTP; \
             10.0.0.0/8 except 10.1.0.0/16"
        );
        let port = |port| json!({"port": port});
        let many = json!([{"ports": [port(1), port(2), port(3), port(4)]}]);
        assert_eq!(ingress(many), "all on 1/TCP,2/TCP,+2 more");
        assert_eq!(rules(&json!({}), Direction::Egress), "-");
        let sealed = json!({"policyTypes": ["Egress"]});
        assert_eq!(rules(&sealed, Direction::Egress), "nothing");
        assert_eq!(rules(&sealed, Direction::Ingress), "-");
    }
}
