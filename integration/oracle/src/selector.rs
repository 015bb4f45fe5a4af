//! Owns what a label selector matches; knows nothing of whose labels they are.

use crate::{
    Labels,
    api::{LabelSelector, Operator, Requirement},
};

impl LabelSelector {
    /// "All of the requirements, from both `matchLabels` and `matchExpressions`, must be satisfied"; "an empty label
    /// selector matches all objects".
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        let pairs = self.match_labels.iter().flatten();
        let requirements = self.match_expressions.iter().flatten();
        pairs
            .map(|(key, value)| labels.get(key) == Some(value))
            .chain(requirements.map(|requirement| requirement.holds(labels)))
            .all(|satisfied| satisfied)
    }
}

impl Requirement {
    /// NotIn, like `!=`, selects also "all resources with no labels with the key".
    fn holds(&self, labels: &Labels) -> bool {
        let listed = |value: &String| self.values.iter().flatten().any(|one| one == value);
        match (self.operator, labels.get(&self.key)) {
            (Operator::In, Some(value)) => listed(value),
            (Operator::In, None) => false,
            (Operator::NotIn, Some(value)) => !listed(value),
            (Operator::NotIn, None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_missing_key_is_not_in_anything() {
        let labels = Labels::from([("app".into(), "web".into()), ("empty".into(), "".into())]);
        let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        for (selector, matches) in [
            (json!({}), true),
            (json!({"matchLabels": {}, "matchExpressions": null}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "web", "tier": "x"}}), false),
            (json!({"matchLabels": {"empty": ""}}), true),
            (json!({"matchLabels": {"tier": ""}}), false),
            (expression("app", "In", json!(["db", "web"])), true),
            (expression("app", "In", json!(["db"])), false),
            (expression("tier", "In", json!([""])), false),
            (expression("app", "NotIn", json!(["web"])), false),
            (expression("app", "NotIn", json!(["db"])), true),
            (expression("tier", "NotIn", json!(["x"])), true),
            (expression("app", "Exists", json!(null)), true),
            (expression("tier", "Exists", json!([])), false),
            (expression("app", "DoesNotExist", json!(null)), false),
            (expression("tier", "DoesNotExist", json!(null)), true),
        ] {
            let read: LabelSelector = serde_json::from_value(selector.clone()).expect("a selector");
            assert_eq!(read.matches(&labels), matches, "{selector}");
        }
    }
}
