//! Splits a text into documents and reads each into a tree, within limits that a hostile text cannot pass. Knows no
//! kind of object.

use serde_saphyr::{
    Error as YamlError, Spanned, UserMessageFormatter, budget::BudgetBreach,
    options::DuplicateKeyPolicy,
};

use super::{
    MAX_ALIASED, MAX_DEPTH, MAX_NODES,
    problem::Report,
    tree::{Form, Json, Read, Tree, Value, Yaml},
};

/// One document that is not empty.
pub(super) struct Document {
    /// The number of the document in its text, from 1.
    pub(super) number: usize,
    /// The content.
    pub(super) tree: Tree,
}

/// The documents of a text. One that cannot be read is reported, and the others are read all the same.
pub(super) fn read(text: &str, report: &mut Report) -> Vec<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some(inside) = text.trim_start().strip_prefix('{') {
        match json_stream(text) {
            Ok(documents) => return documents,
            // A YAML flow mapping begins like JSON, and may even have its first key in quotes.
            Err((number, error)) if inside.trim_start().starts_with('"') && !is_separated(text) => {
                let mut as_yaml = report.fresh();
                let documents = yaml_documents(text, &mut as_yaml);
                if as_yaml.is_empty() {
                    return documents;
                }
                json_error(number, &error, report);
                return Vec::new();
            }
            Err(_) => {}
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
    let position = u32::try_from(line)
        .ok()
        .zip(u32::try_from(column.max(1)).ok());
    report.text(document, position, format!("malformed JSON: {text}"));
}

/// A document's part of the text.
struct Chunk<'a> {
    text: &'a str,
    /// The number of lines of the text before it.
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
        match serde_saphyr::from_str_with_options::<Spanned<Read<Yaml>>>(chunk.text, options())
            .map(Yaml::item)
        {
            Ok(Tree {
                value: Value::Null, ..
            }) => {}
            Ok(mut tree) => {
                tree.shift(chunk.lines_before);
                documents.push(Document { number, tree });
            }
            Err(error) => yaml_error(number, &error, chunk.lines_before, report),
        }
    }
    documents
}

/// Cuts a text at the lines that begin a document.
fn chunks(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut lines_before, mut marked) = (0, 0, false);
    let (mut offset, mut line_number) = (0, 0);
    for line in text.split_inclusive('\n') {
        if is_separator(line) {
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

/// Whether a line begins a document. Such a line can be nothing else in YAML, not even inside a quoted text.
fn is_separator(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_separated(text: &str) -> bool {
    text.lines().any(is_separator)
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
    report.text(
        document,
        position,
        format!("malformed YAML: {}", explain(error)),
    );
}

/// The cause, without the place, which is reported apart.
fn explain(error: &serde_saphyr::Error) -> String {
    let mut cause = error.without_snippet();
    while let YamlError::AliasError { error, .. } = cause {
        cause = error;
    }
    match cause {
        YamlError::Budget {
            breach: BudgetBreach::Depth { .. },
            ..
        } => too_deep(),
        YamlError::Budget {
            breach:
                BudgetBreach::Aliases { .. }
                | BudgetBreach::Anchors { .. }
                | BudgetBreach::AliasAnchorRatio { .. }
                | BudgetBreach::RecordedAnchorEvents { .. }
                | BudgetBreach::RecordedAnchorBytes { .. }
                | BudgetBreach::MergeKeys { .. },
            ..
        }
        | YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. } => {
            "aliases repeat too much of the document".to_owned()
        }
        YamlError::Budget { .. } => "the document is too large".to_owned(),
        cause => {
            let text = cause.render_with_formatter(&UserMessageFormatter);
            match text
                .split_once(" at line ")
                .map_or(text.as_str(), |(text, _)| text)
            {
                "recursion limit exceeded" => too_deep(),
                text => text.to_owned(),
            }
        }
    }
}

fn too_deep() -> String {
    format!("nested deeper than {MAX_DEPTH} levels")
}

/// Kubernetes reads YAML 1.1 (`yes` is a boolean, `010` is eight), and so do we: a label `on: yes` is refused, as
/// there.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
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
