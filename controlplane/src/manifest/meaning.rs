//! Whether two manifests of one object say the same. Compares what a person or a controller asks for; what an API
//! server and a kubelet note beside it (status, managedFields, resourceVersion, ...) says nothing of that.

use serde_json::{Map, Value};

use crate::model::{Body, Object};

/// The metadata fields that only an API server writes.
const SERVER_FIELDS: [&str; 6] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Whether two objects are the same but for spelling: order of fields, nulls, empty lists and maps, defaults, and what
/// a cluster notes about itself. Costs nothing where the texts are equal, or where the bodies are not.
pub(crate) fn is_same(a: &Object, b: &Object) -> bool {
    a.body == b.body && (a.manifest == b.manifest || compared_fields(a) == compared_fields(b))
}

/// The fields of a manifest to compare beyond the object's body; `None` if it cannot be read.
fn compared_fields(object: &Object) -> Option<Value> {
    let mut value: Value = serde_json::from_str(&object.manifest).ok()?;
    let fields = value.as_object_mut()?;
    fields.remove("status");
    // The body is all that a spec of these says.
    let is_ours = |fields: &Map<String, Value>| {
        let version = fields.get("apiVersion").and_then(Value::as_str);
        version.is_some_and(|version| version.starts_with("sallyport.dev/"))
    };
    let is_policy = matches!(object.body, Body::NetworkPolicy(_));
    if is_policy || is_ours(fields) {
        fields.remove("spec");
    }
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in SERVER_FIELDS {
            metadata.remove(field);
        }
        if !is_policy {
            metadata.remove("labels");
        }
    }
    drop_empty(&mut value);
    Some(value)
}

/// Takes out the fields that are null or empty: absent means the same.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(drop_empty);
            fields.retain(|_, value| match value {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) => !fields.is_empty(),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}
