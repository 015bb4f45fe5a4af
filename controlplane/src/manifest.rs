//! Manifests: text in, validated objects out. Kubernetes' types stop here; nothing here reads a file, keeps state or
//! knows what else is in the cluster.
//!
//! A text is YAML (any number of documents) or JSON (one object or several in a row). Lists, typed or not, are taken
//! apart. Each object is decoded strictly, so that a misspelt field is refused instead of meaning nothing, then
//! validated by the API server's rules, and what is wrong with the whole text is reported at once.
//!
//! A namespaced object without `metadata.namespace` is in the namespace `default`, and its stored manifest says so.

mod decode;
mod document;
mod expand;
mod kinds;
mod meaning;
mod node;
mod problem;
mod tree;
mod workload;

use std::{borrow::Cow, sync::Arc};

use sallyport_proto::object::ObjectKey;
use serde::Deserialize;

pub(crate) use self::meaning::is_same;
pub use self::problem::Problem;
use self::{expand::Item, kinds::Schema, problem::Report};
use crate::model::Object;

/// The deepest nesting that a YAML manifest may have.
pub const MAX_DEPTH: usize = 64;

/// The most nodes (scalars, lists, maps) that one YAML document may have.
pub const MAX_NODES: usize = 20_000_000;

/// The most events that YAML aliases may repeat in one document.
pub const MAX_ALIASED: usize = 100_000;

/// The most problems that are reported of one text; the rest are counted in one more.
pub const MAX_PROBLEMS: usize = 1_000;

/// The treatment of objects whose kind is none of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownKinds {
    /// Objects of other kinds are problems.
    #[default]
    Refuse,
    /// Objects of other kinds are left out. The exception is a kind of ours in an unknown version: it is a mistake, or
    /// a policy that would be missing.
    Ignore,
}

/// The content of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    /// The objects that were read, or their keys, in the order of the text.
    pub found: Vec<T>,
    /// The objects of unknown kinds that were left out: where each stands and what it is.
    pub ignored: Vec<String>,
}

/// The objects of a text, in its order. `source` is what the problems call the text: a file's name.
pub fn parse(text: &str, source: &str) -> Result<Vec<Object>, Vec<Problem>> {
    parse_with(text, source, UnknownKinds::Refuse).map(|parsed| parsed.found)
}

/// The same, with a choice of what becomes of unknown kinds.
pub fn parse_with(
    text: &str,
    source: &str,
    unknown: UnknownKinds,
) -> Result<Parsed<Object>, Vec<Problem>> {
    read(text, Report::new(source, unknown), kinds::object)
}

/// The keys of a text's objects, in its order, read from apiVersion, kind and metadata alone: to delete what a
/// manifest once created, whatever else is in it now.
pub fn parse_keys(text: &str, source: &str) -> Result<Vec<ObjectKey>, Vec<Problem>> {
    parse_keys_with(text, source, UnknownKinds::Refuse).map(|parsed| parsed.found)
}

/// The same, with a choice of what becomes of unknown kinds.
pub fn parse_keys_with(
    text: &str,
    source: &str,
    unknown: UnknownKinds,
) -> Result<Parsed<ObjectKey>, Vec<Problem>> {
    read(text, Report::new(source, unknown), |item, report| {
        kinds::key(&item, report)
    })
}

fn read<T>(
    text: &str,
    mut report: Report,
    take: impl Fn(Item, &mut Report) -> Option<T>,
) -> Result<Parsed<T>, Vec<Problem>> {
    let mut found = Vec::new();
    for document in document::read(text, &mut report) {
        expand::each(document, &mut report, &mut |item, report| {
            found.extend(take(item, report));
        });
    }
    let ignored = report.take_ignored();
    report.finish(Parsed { found, ignored })
}

/// One object from its JSON: a manifest that [`parse`] made, or what a Kubernetes API server sent. The same rules and
/// the same conversion, but fields that this version does not know are left alone: [`parse`] refused them on arrival,
/// or they come from a newer server. A uid that [`parse`] refuses is taken for unknown, and allowed sources that an
/// annotation gives and [`parse`] refuses are none: earlier versions accepted both. The JSON becomes the object's
/// manifest as it is.
pub fn object_from_json(json: &str) -> Result<Object, Problem> {
    let broken = |error: serde_json::Error| Problem::of_text(error.to_string());
    let types: TypeMeta<'_> = serde_json::from_str(json).map_err(broken)?;
    let schema = Schema::find(&types.api_version, &types.kind)
        .ok_or_else(|| Problem::of_text(Schema::no_match(&types.api_version, &types.kind)))?;
    let converted = schema.convert_json(json).map_err(broken)?;
    if let Some(fault) = converted.faults.list.first() {
        return Err(Problem::of_object(&converted.key, fault));
    }
    let manifest = if converted.namespace_defaulted {
        let mut tree = document::json(json).map_err(broken)?;
        tree.set_namespace(&converted.key.namespace);
        Arc::from(tree.to_json())
    } else {
        Arc::from(json)
    };
    Ok(Object {
        key: converted.key,
        body: converted.body,
        manifest,
    })
}

/// The type of an object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
}
