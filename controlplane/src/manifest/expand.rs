//! Takes lists apart and says what kind of object each item is. Looks at apiVersion, kind and items, at nothing else.

use super::{
    decode,
    document::Document,
    kinds::Schema,
    problem::{Location, Report},
    tree::{Tree, Value},
};
use crate::validate::{Fault, FieldPath, Path, Segment, quote};

/// One object of a document, not decoded yet.
pub(super) struct Item {
    /// The number of its document.
    pub(super) document: usize,
    /// The place in the document's list: `items[3]`; empty where the document is the object.
    pub(super) place: String,
    /// The schema that its `apiVersion` and `kind` name.
    pub(super) schema: &'static Schema,
    /// The content.
    pub(super) tree: Tree,
}

/// The callback for each object.
pub(super) type OnItem<'f> = dyn FnMut(Item, &mut Report) + 'f;

/// Finds the objects of a document, in its order.
pub(super) fn each(document: Document, report: &mut Report, on_item: &mut OnItem<'_>) {
    expand(
        document.number,
        String::new(),
        document.tree,
        report,
        on_item,
    );
}

fn expand(
    document: usize,
    place: String,
    mut tree: Tree,
    report: &mut Report,
    on_item: &mut OnItem<'_>,
) {
    let object = (!place.is_empty()).then_some(place.as_str());
    let mut faults = Vec::new();
    let fault = |message: &str| Fault {
        field: FieldPath::default(),
        message: message.to_owned(),
    };
    let Value::Map(_) = tree.value else {
        faults.push(fault("must be an object with apiVersion and kind"));
        return report_faults(document, object, &tree, faults, report);
    };
    let Some((api_version, kind)) = types(&tree, &mut faults) else {
        return report_faults(document, object, &tree, faults, report);
    };
    if let Some(schema) = Schema::find(&api_version, &kind) {
        return on_item(
            Item {
                document,
                place,
                schema,
                tree,
            },
            report,
        );
    }
    let Some(of) = list_of(&api_version, &kind) else {
        return unknown(document, object, &tree, (&api_version, &kind), report);
    };
    let items = take_items(&mut tree, &mut faults);
    report_faults(document, object, &tree, faults, report);
    for (i, mut item) in items.into_iter().enumerate() {
        let place = match place.as_str() {
            "" => format!("items[{i}]"),
            list => format!("{list}.items[{i}]"),
        };
        let mut faults = Vec::new();
        if let Some(schema) = of {
            set_types(&mut item, schema, &kind, &mut faults);
        }
        if faults.is_empty() {
            expand(document, place, item, report, on_item);
        } else {
            report_faults(document, Some(&place), &item, faults, report);
        }
    }
}

/// An object of a kind that is none of ours: refused by its name, or left out.
fn unknown(
    document: usize,
    place: Option<&str>,
    tree: &Tree,
    (api_version, kind): (&str, &str),
    report: &mut Report,
) {
    let metadata = tree.get("metadata");
    let text = |name: &str| {
        metadata
            .and_then(|tree| tree.get_text(name))
            .filter(|text| !text.is_empty())
    };
    let object = match (text("namespace"), text("name"), place) {
        (Some(namespace), Some(name), _) => Some(format!("{kind} {namespace}/{name}")),
        (None, Some(name), _) => Some(format!("{kind} {name}")),
        (_, None, place) => place.map(str::to_owned),
    };
    let location = Location {
        document,
        object: object.as_deref(),
        tree: Some(tree),
    };
    let is_ours = Schema::is_nearly(api_version, kind);
    if report.ignores_unknown_kinds() && !is_ours {
        let what = match (&object, place) {
            (Some(object), None) => format!("{object} ({api_version})"),
            (Some(object), Some(place)) if object != place => format!("{object} ({api_version})"),
            (_, Some(place)) => format!("{kind} {place} ({api_version})"),
            (None, None) => format!("{kind} ({api_version})"),
        };
        return report.ignore(&location, what);
    }
    let mut message = Schema::no_match(api_version, kind);
    if !is_ours {
        message.push_str("; --ignore-unknown-kinds leaves other kinds out");
    }
    let field = FieldPath::default();
    report.fault(&location, Fault { field, message });
}

/// Reports the faults of an object.
fn report_faults(
    document: usize,
    object: Option<&str>,
    tree: &Tree,
    faults: Vec<Fault>,
    report: &mut Report,
) {
    let location = Location {
        document,
        object,
        tree: Some(tree),
    };
    for fault in faults {
        report.fault(&location, fault);
    }
}

/// apiVersion and kind, or what is wrong with them.
fn types(tree: &Tree, faults: &mut Vec<Fault>) -> Option<(String, String)> {
    let mut text = |name: &str| {
        let field = || Path::ROOT.field(name).to_field();
        match tree.get(name).map(|tree| &tree.value) {
            Some(Value::Text(text)) if !text.is_empty() => return Some(text.clone()),
            None | Some(Value::Text(_) | Value::Null) => {
                faults.push(Fault {
                    field: field(),
                    message: "Required value".into(),
                });
            }
            Some(_) => {
                faults.push(Fault {
                    field: field(),
                    message: "Invalid value: must be a string".into(),
                });
            }
        }
        None
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    api_version.zip(kind)
}

/// Whether a type is a list: of `Some` kind, or of any.
fn list_of(api_version: &str, kind: &str) -> Option<Option<&'static Schema>> {
    match (api_version, kind) {
        ("v1", "List") => Some(None),
        _ => Schema::find(api_version, kind.strip_suffix("List")?).map(Some),
    }
}

/// The fields of a list besides its items.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListShell {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
    #[serde(rename = "metadata")]
    _metadata: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta>,
}

/// Takes a list's items out of it and checks the rest.
fn take_items(tree: &mut Tree, faults: &mut Vec<Fault>) -> Vec<Tree> {
    let mut items = Vec::new();
    let Value::Map(entries) = &mut tree.value else {
        return items;
    };
    let mut lists = Vec::new();
    entries.retain_mut(|(key, value)| {
        let is_items = key == "items";
        if is_items {
            lists.push(std::mem::replace(
                value,
                Tree {
                    position: None,
                    value: Value::Null,
                },
            ));
        }
        !is_items
    });
    let field = Path::ROOT.field("items").to_field();
    if lists.len() > 1 {
        faults.push(Fault {
            field: field.clone(),
            message: "duplicate field \"items\"".into(),
        });
    }
    match lists.pop().map(|list| list.value) {
        None => faults.push(Fault {
            field,
            message: "Required value".into(),
        }),
        Some(Value::Null) => {}
        Some(Value::List(list)) => items = list,
        Some(_) => faults.push(Fault {
            field,
            message: "Invalid value: must be a list".into(),
        }),
    }
    tree.take_duplicates(Path::ROOT, faults);
    let shell = decode::decode::<ListShell>(tree, &[]);
    faults.extend(shell.unknown.into_iter().chain(shell.wrong));
    items
}

/// An item of a typed list may leave out its type, and may not be of another.
fn set_types(item: &mut Tree, schema: &Schema, list: &str, faults: &mut Vec<Fault>) {
    let Value::Map(entries) = &mut item.value else {
        return;
    };
    for (at, (name, wanted)) in [("apiVersion", schema.api_version), ("kind", schema.name)]
        .into_iter()
        .enumerate()
    {
        match entries
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, tree)| &tree.value)
        {
            None => entries.insert(at, (name.to_owned(), Tree::text(wanted))),
            Some(Value::Text(given)) if given == wanted => {}
            Some(Value::Text(given)) => faults.push(Fault {
                field: FieldPath(vec![Segment::Field(name.to_owned())]),
                message: format!(
                    "Invalid value: {}: must be {} in a {list}",
                    quote(given),
                    quote(wanted)
                ),
            }),
            Some(_) => {}
        }
    }
}
