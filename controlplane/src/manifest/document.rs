//! Splits a text into documents and reads each into a tree, within limits that a hostile text cannot pass. Knows no
//! kind of object.

use serde_saphyr::{UserMessageFormatter, options::DuplicateKeyPolicy};

use super::{
    MAX_ALIASED, MAX_DEPTH, MAX_NODES,
    problem::Report,
    tree::{Json, Read, Tree, Value, Yaml},
};

/// One document that is not empty.
pub(super) struct Document {
    /// Which one of its text, from 1.
    pub(super) number: usize,
    /// What stands in it.
    pub(super) tree: Tree,
}

/// The documents of a text. One that cannot be read is reported, and the others are read all the same.
pub(super) fn read(text: &str, report: &mut Report) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') {
        match json_stream(text) {
            Ok(documents) => return documents,
            Err((number, error)) => {
                // A YAML flow mapping begins like JSON. If it is neither, it was meant to be JSON.
                let mut as_yaml = Report::new("");
                let documents = yaml_documents(text, &mut as_yaml);
                if as_yaml.is_empty() {
                    return documents;
                }
                json_error(number, &error, report);
                return Vec::new();
            }
        }
    }
    yaml_documents(text, report)
}

/// One JSON value.
pub(super) fn json(text: &str) -> serde_json::Result<Tree> {
    serde_json::from_str::<Read<Json>>(text).map(|read| read.tree)
}

fn json_stream(text: &str) -> Result<Vec<Document>, (usize, serde_json::Error)> {
    let mut documents = Vec::new();
    for read in serde_json::Deserializer::from_str(text).into_iter::<Read<Json>>() {
        let number = documents.len() + 1;
        let tree = read.map_err(|error| (number, error))?.tree;
        documents.push(Document { number, tree });
    }
    Ok(documents)
}

fn json_error(document: usize, error: &serde_json::Error, report: &mut Report) {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let text = text
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&text);
    let position = u32::try_from(line).ok().zip(u32::try_from(column).ok());
    report.text(document, position, format!("malformed JSON: {text}"));
}

/// A document's part of the text.
struct Chunk<'a> {
    text: &'a str,
    /// How many lines of the text come before it.
    lines_before: u32,
    /// Whether it begins with `---`.
    marked: bool,
}

fn yaml_documents(text: &str, report: &mut Report) -> Vec<Document> {
    let mut documents = Vec::new();
    let mut number = 0;
    for chunk in chunks(text) {
        let empty = chunk.text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "..."
        });
        if empty && !chunk.marked {
            continue;
        }
        number += 1;
        match serde_saphyr::from_str_with_options::<Read<Yaml>>(chunk.text, options()) {
            Ok(Read {
                tree: Tree {
                    value: Value::Null, ..
                },
                ..
            }) => {}
            Ok(Read { mut tree, .. }) => {
                tree.shift(chunk.lines_before);
                documents.push(Document { number, tree });
            }
            Err(error) => yaml_error(number, &error, chunk.lines_before, report),
        }
    }
    documents
}

/// Cuts a text at the lines that begin a document. Such a line can be nothing else in YAML, not even in a quoted text.
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut lines_before, mut marked) = (0, 0, false);
    let (mut offset, mut line_number) = (0, 0);
    for line in text.split_inclusive('\n') {
        let separates = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if separates {
            chunks.push(Chunk {
                text: &text[start..offset],
                lines_before,
                marked,
            });
            (start, lines_before, marked) = (offset, line_number, true);
        }
        offset += line.len();
        line_number += 1;
    }
    chunks.push(Chunk {
        text: &text[start..],
        lines_before,
        marked,
    });
    chunks
}

fn yaml_error(
    document: usize,
    error: &serde_saphyr::Error,
    lines_before: u32,
    report: &mut Report,
) {
    let position = error.location().filter(|at| at.line() > 0).and_then(|at| {
        let line = u32::try_from(at.line()).ok()?.saturating_add(lines_before);
        Some((line, u32::try_from(at.column()).ok()?))
    });
    let mut text = error
        .without_snippet()
        .render_with_formatter(&UserMessageFormatter);
    if let Some(cut) = text.rfind(" at line ") {
        text.truncate(cut);
    }
    report.text(document, position, format!("malformed YAML: {text}"));
}

/// Kubernetes reads YAML 1.1 (`yes` is a boolean, `010` is eight), and so do we: a label `on: yes` is refused, as there.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_total_scalar_bytes: 1 << 30,
            max_total_comment_bytes: 1 << 30,
            max_aliases: MAX_ALIASED,
            max_recorded_anchor_events: MAX_ALIASED,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}
