//! Label selectors: the API server's rules, and the canonical form that the model has. Never matches anything.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as k8s;
use sallyport_proto::names;

use super::{
    MAX_REQUIREMENTS,
    field::{Faults, Path, quote},
    metadata,
};
use crate::model::{LabelSelector, Operator, Requirement};

/// The model of a selector. `matchLabels` are requirements like any other: `k: v` is `k In [v]`.
pub(crate) fn label_selector(
    selector: &k8s::LabelSelector,
    at: Path<'_>,
    faults: &mut Faults,
) -> LabelSelector {
    let mut requirements = BTreeSet::new();
    if let Some(labels) = &selector.match_labels {
        let at = at.field("matchLabels");
        if faults.within(at, labels.len(), MAX_REQUIREMENTS) {
            metadata::labels(labels, at, faults);
            requirements.extend(labels.iter().map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In(BTreeSet::from([value.clone()])),
            }));
        }
    }
    if let Some(expressions) = &selector.match_expressions {
        let at = at.field("matchExpressions");
        if faults.within(at, expressions.len(), MAX_REQUIREMENTS) {
            for (i, expression) in expressions.iter().enumerate() {
                requirements.extend(requirement(expression, at.index(i), faults));
            }
        }
    }
    LabelSelector(requirements)
}

fn requirement(
    expression: &k8s::LabelSelectorRequirement,
    at: Path<'_>,
    faults: &mut Faults,
) -> Option<Requirement> {
    let values = expression.values.as_deref().unwrap_or_default();
    let set = || values.iter().cloned().collect::<BTreeSet<_>>();
    let operator = match expression.operator.as_str() {
        "In" => Some(Operator::In(set())),
        "NotIn" => Some(Operator::NotIn(set())),
        "Exists" => Some(Operator::Exists),
        "DoesNotExist" => Some(Operator::DoesNotExist),
        other => {
            faults.invalid(
                at.field("operator"),
                quote(other),
                "not a valid selector operator",
            );
            None
        }
    };
    match &operator {
        Some(Operator::In(_) | Operator::NotIn(_)) if values.is_empty() => {
            faults.required(
                at.field("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            );
        }
        Some(Operator::Exists | Operator::DoesNotExist) if !values.is_empty() => {
            faults.forbidden(
                at.field("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            );
        }
        _ => {}
    }
    faults.invalid_each(
        at.field("key"),
        &expression.key,
        names::label_key(&expression.key),
    );
    let at_values = at.field("values");
    if faults.within(at_values, values.len(), MAX_REQUIREMENTS) {
        for (i, value) in values.iter().enumerate() {
            faults.invalid_each(at_values.index(i), value, names::label_value(value));
        }
    }
    operator.map(|operator| Requirement {
        key: expression.key.clone(),
        operator,
    })
}
