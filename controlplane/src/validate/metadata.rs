//! The rules for the metadata of every object: name, namespace, labels, annotations. Ignores the fields that only a
//! Kubernetes API server writes (owner references, finalizers, managed fields).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sallyport_proto::names;

use super::field::{Faults, Path, quote};

/// The most bytes that an object's annotations may have together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// The rule for an object's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// A DNS-1123 label.
    Label,
    /// A DNS-1123 subdomain.
    Subdomain,
}

/// Checks an object's metadata. The namespace must have been defaulted.
pub(crate) fn metadata(
    meta: &ObjectMeta,
    name_rule: NameRule,
    namespaced: bool,
    faults: &mut Faults,
) {
    let at = Path::ROOT.field("metadata");
    match meta.name.as_deref().unwrap_or_default() {
        "" if meta
            .generate_name
            .as_deref()
            .is_some_and(|prefix| !prefix.is_empty()) =>
        {
            faults.required(
                at.field("name"),
                "name is required: generateName is not supported",
            );
        }
        "" => faults.required(at.field("name"), "name or generateName is required"),
        name => faults.invalid_each(
            at.field("name"),
            name,
            match name_rule {
                NameRule::Label => names::dns1123_label(name),
                NameRule::Subdomain => names::dns1123_subdomain(name),
            },
        ),
    }
    match (namespaced, meta.namespace.as_deref().unwrap_or_default()) {
        (true, "") => faults.required(at.field("namespace"), ""),
        (true, name) => {
            faults.invalid_each(at.field("namespace"), name, names::dns1123_label(name))
        }
        (false, "") => {}
        (false, _) => faults.forbidden(at.field("namespace"), "not allowed on this type"),
    }
    if let Some(generation) = meta.generation.filter(|generation| *generation < 0) {
        faults.invalid(
            at.field("generation"),
            generation,
            "must be greater than or equal to 0",
        );
    }
    if let Some(map) = &meta.labels {
        labels(map, at.field("labels"), faults);
    }
    if let Some(map) = &meta.annotations {
        annotations(map, at.field("annotations"), faults);
    }
}

/// Checks labels: an object's, or a selector's `matchLabels`.
pub(crate) fn labels(map: &BTreeMap<String, String>, at: Path<'_>, faults: &mut Faults) {
    for (key, value) in map {
        faults.invalid_each(at, key, names::label_key(key));
        faults.invalid_each(at, value, names::label_value(value));
    }
}

fn annotations(map: &BTreeMap<String, String>, at: Path<'_>, faults: &mut Faults) {
    let mut size = 0;
    for (key, value) in map {
        size += key.len() + value.len();
        // The rule is a label key's, except that case does not matter, in the prefix either.
        for rule in names::label_key(&key.to_lowercase()) {
            faults.invalid(at, quote(key), rule);
        }
    }
    if size > MAX_ANNOTATIONS {
        faults.add(
            at,
            format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes"),
        );
    }
}
