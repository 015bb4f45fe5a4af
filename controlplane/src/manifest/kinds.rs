//! The kinds of object that manifests may have, and what is common to all: decode, default, validate, convert. The
//! modules beside this one have the rest of each kind.

use std::{mem, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use sallyport_proto::{
    names,
    object::{DEFAULT_NAMESPACE, Kind, ObjectKey},
};
use serde::de::DeserializeOwned;

use super::{
    decode::{self, Decoded},
    expand::Item,
    node,
    problem::{Location, Report},
    tree::Tree,
    workload,
};
use crate::{
    model::{Body, Namespace, Object},
    validate::{self, Fault, Faults, NAMESPACE_NAME_LABEL, NameRule, Path},
};

/// A kind of object as manifests know it.
pub(super) struct Schema {
    pub(super) api_version: &'static str,
    pub(super) name: &'static str,
    kind: Kind,
    from_tree: fn(&Tree) -> Decoded<Converted>,
    from_json: fn(&str) -> serde_json::Result<Converted>,
}

static SCHEMAS: [Schema; 6] = [
    Schema::new::<networking::NetworkPolicy>("networking.k8s.io/v1", "NetworkPolicy"),
    Schema::new::<core::Namespace>("v1", "Namespace"),
    Schema::new::<core::Node>("v1", "Node"),
    Schema::new::<core::Pod>("v1", "Pod"),
    Schema::new::<node::Node>("sallyport.dev/v1", "Node"),
    Schema::new::<workload::Workload>("sallyport.dev/v1", "Workload"),
];

impl Schema {
    const fn new<T: Resource>(api_version: &'static str, name: &'static str) -> Schema {
        Schema {
            api_version,
            name,
            kind: T::KIND,
            from_tree: from_tree::<T>,
            from_json: from_json::<T>,
        }
    }

    /// The schema of a type, if there is one.
    pub(super) fn find(api_version: &str, kind: &str) -> Option<&'static Schema> {
        SCHEMAS
            .iter()
            .find(|schema| schema.name == kind && schema.api_version == api_version)
    }

    /// Whether a type that there is not is one of ours but for its spelling, or in another version of its API group.
    /// Ours has no group; policies were in the group `extensions` once.
    pub(super) fn is_nearly(api_version: &str, kind: &str) -> bool {
        let group = |version: &str| {
            let group = version.split_once('/').map_or("", |(group, _)| group);
            group.to_ascii_lowercase()
        };
        let group_of = group(api_version);
        let singular = |kind: &str| {
            let kind = kind.to_ascii_lowercase();
            let kind = kind.strip_suffix("list").unwrap_or(&kind);
            match kind.strip_suffix("ies") {
                Some(stem) => format!("{stem}y"),
                None => kind.strip_suffix('s').unwrap_or(kind).to_owned(),
            }
        };
        let name = singular(kind);
        let our_group = SCHEMAS
            .iter()
            .any(|schema| group(schema.api_version) == group_of);
        (our_group || group_of == "extensions")
            && SCHEMAS.iter().any(|schema| singular(schema.name) == name)
    }

    /// The message about an unknown type.
    pub(super) fn no_match(api_version: &str, kind: &str) -> String {
        let supported: Vec<_> = SCHEMAS
            .iter()
            .map(|schema| format!("{} {}", schema.api_version, schema.name))
            .collect();
        format!(
            "no matches for kind {} in version {}: supported are {}, and lists of these",
            validate::quote(kind),
            validate::quote(api_version),
            supported.join(", ")
        )
    }

    /// Converts an object that was accepted before, or that an API server sent.
    pub(super) fn convert_json(&self, json: &str) -> serde_json::Result<Converted> {
        (self.from_json)(json)
    }
}

/// The requirements for a Kubernetes type to become an object of the model.
pub(super) trait Resource: DeserializeOwned {
    /// The kind that it becomes.
    const KIND: Kind;
    /// The rule for its name.
    const NAME_RULE: NameRule = NameRule::Subdomain;
    /// Whether its status is written by a cluster, whose version we cannot know.
    const HAS_STATUS: bool = false;
    /// Whether fields of its spec that a later version may have mean nothing to enforcement. Never so for a policy: a
    /// field that is passed over may be one that denies.
    const SPEC_MAY_BE_LATER: bool = false;
    /// Whether its uid tells it from an earlier object of the same name.
    const HAS_UID: bool = false;
    /// Takes out of the metadata of an object that was accepted before what an earlier version did not read and this
    /// version refuses.
    fn clear_unread(&self, _meta: &mut ObjectMeta) {}
    /// Its metadata.
    fn metadata(&mut self) -> &mut ObjectMeta;
    /// Validates and converts all but the metadata, which was looked at.
    fn body(self, key: &ObjectKey, meta: ObjectMeta, faults: &mut Faults) -> Body;
}

/// A decoded object, converted. Worth something only if there is no fault.
pub(super) struct Converted {
    pub(super) key: ObjectKey,
    pub(super) body: Body,
    pub(super) faults: Faults,
    pub(super) namespace_defaulted: bool,
}

fn from_tree<T: Resource>(tree: &Tree) -> Decoded<Converted> {
    let Decoded {
        value,
        unknown,
        wrong,
        zeros,
    } = decode::decode::<T>(tree, tolerated::<T>(tree));
    Decoded {
        value: value.map(|given| convert(given, true)),
        unknown,
        wrong,
        zeros,
    }
}

/// The top-level fields in which unknown fields are those of a later version, and not a person's mistakes. An API
/// server refuses mistakes, and it writes resourceVersion and uid into what it accepted.
fn tolerated<T: Resource>(tree: &Tree) -> &'static [&'static str] {
    let metadata = tree.get("metadata");
    let has = |name| {
        metadata
            .and_then(|tree| tree.get_text(name))
            .is_some_and(|text| !text.is_empty())
    };
    match T::HAS_STATUS {
        true if T::SPEC_MAY_BE_LATER && has("resourceVersion") && has("uid") => &["spec", "status"],
        true => &["status"],
        false => &[],
    }
}

fn from_json<T: Resource>(json: &str) -> serde_json::Result<Converted> {
    serde_json::from_str::<T>(json).map(|given| convert(given, false))
}

/// `arrives` says whether the object was not accepted before.
fn convert<T: Resource>(mut given: T, arrives: bool) -> Converted {
    let mut faults = Faults::default();
    let mut meta = mem::take(given.metadata());
    let namespaced = T::KIND.is_namespaced();
    let namespace_defaulted =
        namespaced && meta.namespace.as_deref().unwrap_or_default().is_empty();
    if namespace_defaulted {
        meta.namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    validate::metadata(&meta, T::NAME_RULE, namespaced, &mut faults);
    let is_wrong = |uid: &mut String| T::HAS_UID && !names::uid(uid).is_empty();
    // Earlier versions did not look at uids: one that they accepted and that is none is unknown.
    if let Some(uid) = meta.uid.take_if(is_wrong).filter(|_| arrives) {
        let at = Path::ROOT.field("metadata");
        faults.invalid_each(at.field("uid"), &uid, names::uid(&uid));
    }
    let key = ObjectKey {
        kind: T::KIND,
        namespace: meta.namespace.take().unwrap_or_default(),
        name: meta.name.take().unwrap_or_default(),
    };
    if !arrives {
        given.clear_unread(&mut meta);
    }
    let body = given.body(&key, meta, &mut faults);
    Converted {
        key,
        body,
        faults,
        namespace_defaulted,
    }
}

/// An item as an object; what is wrong with it goes into the report.
pub(super) fn object(mut item: Item, report: &mut Report) -> Option<Object> {
    let mut found = Vec::new();
    item.tree.take_duplicates(Path::ROOT, &mut found);
    let decoded = (item.schema.from_tree)(&item.tree);
    found.extend(decoded.unknown);
    let mut omitted = 0;
    let mut object = None;
    if let Some(converted) = decoded.value {
        omitted = converted.faults.omitted;
        let beside = |fault: &Fault| !decoded.wrong.iter().any(|wrong| follows(fault, wrong));
        found.extend(converted.faults.list.into_iter().filter(beside));
        object = Some((converted.key, converted.body, converted.namespace_defaulted));
    }
    found.extend(decoded.wrong);
    if !found.is_empty() {
        found.sort_by_key(|fault| item.tree.position_of(&fault.field));
        let name = item_name(&item);
        let location = Location {
            document: item.document,
            object: Some(&name),
            tree: Some(&item.tree),
        };
        for fault in found {
            report.fault(&location, fault);
        }
        report.omitted(omitted);
        return None;
    }
    let (key, body, namespace_defaulted) = object.expect("what cannot be decoded has a fault");
    for (field, value) in decoded.zeros {
        if let Some(place) = item.tree.at_mut(&field) {
            place.value = value;
        }
    }
    if namespace_defaulted {
        item.tree.set_namespace(&key.namespace);
    }
    Some(Object {
        key,
        body,
        manifest: Arc::from(item.tree.to_json()),
    })
}

/// Whether a fault is there only because a value of a wrong type was put aside: it is about that value, or says that
/// something around it is missing.
fn follows(fault: &Fault, wrong: &Fault) -> bool {
    fault.field.is_within(&wrong.field)
        || wrong.field.is_within(&fault.field) && fault.message.starts_with("Required value")
}

/// An item's key, from its type and metadata alone.
pub(super) fn key(item: &Item, report: &mut Report) -> Option<ObjectKey> {
    let kind = item.schema.kind;
    let metadata = item.tree.get("metadata");
    let text = |name: &str| {
        metadata
            .and_then(|tree| tree.get_text(name))
            .filter(|text| !text.is_empty())
    };
    let Some(name) = text("name") else {
        let at = Path::ROOT.field("metadata");
        let fault = Fault {
            field: at.field("name").to_field(),
            message: "Required value".into(),
        };
        let object = item_name(item);
        report.fault(
            &Location {
                document: item.document,
                object: Some(&object),
                tree: Some(&item.tree),
            },
            fault,
        );
        return None;
    };
    let namespace = if kind.is_namespaced() {
        text("namespace").unwrap_or(DEFAULT_NAMESPACE)
    } else {
        ""
    };
    Some(ObjectKey {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// The name of an item in messages: `NetworkPolicy default/web`, or its place in the list when it has no name.
fn item_name(item: &Item) -> String {
    let metadata = item.tree.get("metadata");
    let text = |name: &str| {
        metadata
            .and_then(|tree| tree.get_text(name))
            .filter(|text| !text.is_empty())
    };
    match (text("name"), item.place.as_str()) {
        (Some(name), _) => {
            let kind = item.schema.kind;
            let namespace = if kind.is_namespaced() {
                text("namespace").unwrap_or(DEFAULT_NAMESPACE)
            } else {
                ""
            };
            ObjectKey {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }
            .to_string()
        }
        (None, "") => item.schema.name.to_owned(),
        (None, place) => format!("{} {place}", item.schema.name),
    }
}

impl Resource for networking::NetworkPolicy {
    const KIND: Kind = Kind::NetworkPolicy;
    /// Kubernetes 1.24 to 1.27 wrote one.
    const HAS_STATUS: bool = true;

    fn metadata(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn body(self, _key: &ObjectKey, meta: ObjectMeta, faults: &mut Faults) -> Body {
        let (annotations, spec) = (meta.annotations.as_ref(), self.spec.as_ref());
        Body::NetworkPolicy(validate::network_policy(annotations, spec, faults))
    }
}

impl Resource for core::Namespace {
    const KIND: Kind = Kind::Namespace;
    const NAME_RULE: NameRule = NameRule::Label;
    const HAS_STATUS: bool = true;
    const SPEC_MAY_BE_LATER: bool = true;

    fn metadata(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    /// The label with the name is always there and always right, as the API server has it.
    fn body(self, key: &ObjectKey, meta: ObjectMeta, _faults: &mut Faults) -> Body {
        let mut labels = meta.labels.unwrap_or_default();
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), key.name.clone());
        Body::Namespace(Namespace {
            labels: Arc::new(labels),
        })
    }
}
