//! `sallyport label`: read, change `metadata.labels`, put back, unless another was faster. Knows no other field.

use std::{io, str::FromStr, time::Instant};

use sallyport_proto::{
    names,
    wire::{ApplyRequest, Edit, Manifest, change::Action, edit::Op},
};
use serde_json::Value;

use crate::{args, client::Client, commit, failure::Failure, kind};

/// The most tries of a change, because another transaction may come between reading and writing.
const ATTEMPTS: u32 = 10;

/// One change of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LabelEdit {
    /// `KEY=VALUE`
    Set(String, String),
    /// `KEY-`
    Remove(String),
}

impl LabelEdit {
    /// Whether the word can only be an edit. (A name has no `=`, and does not end in `-`.)
    pub(crate) fn looks_like(word: &str) -> bool {
        word.contains('=') || word.ends_with('-')
    }
}

impl FromStr for LabelEdit {
    type Err = String;

    fn from_str(word: &str) -> Result<LabelEdit, String> {
        let edit = match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) => LabelEdit::Set(key.to_owned(), value.to_owned()),
            (None, Some(key)) => LabelEdit::Remove(key.to_owned()),
            (None, None) => return Err(format!("`{word}` is neither KEY=VALUE nor KEY-")),
        };
        match &edit {
            LabelEdit::Set(key, _) | LabelEdit::Remove(key) if key.is_empty() => {
                return Err(format!("`{word}` has no key"));
            }
            _ => {}
        }
        // A key that cannot be is removed all the same: an earlier version may have stored it.
        let wrong = match &edit {
            LabelEdit::Set(key, value) => {
                let mut wrong = names::label_key(key);
                wrong.extend(names::label_value(value));
                wrong
            }
            LabelEdit::Remove(_) => Vec::new(),
        };
        match wrong.into_iter().next() {
            Some(rule) => Err(format!("`{word}` can be no label: {rule}")),
            None => Ok(edit),
        }
    }
}

/// Runs the command.
pub(crate) async fn run(
    args: &args::Label,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let (names, edits) = args.split().map_err(Failure::Usage)?;
    let references = args
        .kind
        .references(&names, args.scope.namespace.as_deref())?;
    let [reference] = &references[..] else {
        return Err(Failure::Usage(
            "label one object: KIND NAME KEY=VALUE ...".to_owned(),
        ));
    };

    let mut client = Client::connect(server).await?;
    let started = Instant::now();
    for attempt in 1.. {
        let revision = match args.commit.expected_revision {
            Some(revision) => revision,
            None => client.revision().await?,
        };
        let object = client.get(reference.clone()).await?;
        let text = relabelled(&object.manifest, &edits, args.overwrite)?;
        let request = ApplyRequest {
            edits: vec![Edit {
                op: Some(Op::Put(Manifest {
                    text,
                    source: kind::path(reference),
                })),
            }],
            expected_revision: Some(revision),
            dry_run: args.commit.dry_run,
            unreachable: args.commit.unreachable(),
            ..ApplyRequest::default()
        };
        match client.apply(request).await {
            Err(Failure::Conflict(_))
                if attempt < ATTEMPTS && args.commit.expected_revision.is_none() => {}
            Err(failure) => return Err(failure),
            Ok(response) => {
                commit::report(&response, &args.commit, word, out)?;
                return commit::wait(&mut client, &args.commit, response.revision, started, out)
                    .await;
            }
        }
    }
    unreachable!("the last attempt returns")
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Configured => "labeled",
        Action::Unchanged => "not labeled (it is so already)",
        other => commit::word(other),
    }
}

/// The manifest with its labels edited.
fn relabelled(manifest: &str, edits: &[LabelEdit], overwrite: bool) -> Result<String, Failure> {
    let unreadable = || Failure::Refused("the stored manifest is not a JSON object".to_owned());
    let mut object: Value = serde_json::from_str(manifest).map_err(|_| unreadable())?;
    let metadata = member(&mut object, "metadata").ok_or_else(unreadable)?;
    let labels = member(metadata, "labels").ok_or_else(unreadable)?;
    let labels = labels.as_object_mut().ok_or_else(unreadable)?;
    for edit in edits {
        match edit {
            LabelEdit::Remove(key) => {
                labels.remove(key);
            }
            LabelEdit::Set(key, value) => match labels.get(key).and_then(Value::as_str) {
                Some(old) if old != value && !overwrite => {
                    return Err(Failure::Refused(format!(
                        "label `{key}` already has the value `{old}`: give --overwrite to change it"
                    )));
                }
                _ => {
                    labels.insert(key.clone(), Value::from(value.as_str()));
                }
            },
        }
    }
    if labels.is_empty() {
        metadata
            .as_object_mut()
            .map(|metadata| metadata.remove("labels"));
    }
    Ok(object.to_string())
}

/// A member that is an object, made if it is absent or null.
fn member<'a>(value: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let member = value.as_object_mut()?.entry(name).or_insert(Value::Null);
    if member.is_null() {
        *member = Value::Object(serde_json::Map::new());
    }
    member.is_object().then_some(member)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn relabel(labels: Value, words: &str, overwrite: bool) -> Result<Value, String> {
        let manifest = json!({"kind": "Pod", "metadata": {"name": "web", "labels": labels}});
        let edits: Vec<_> = words
            .split(' ')
            .map(|word| word.parse().expect(word))
            .collect();
        let text = relabelled(&manifest.to_string(), &edits, overwrite);
        let object: Value = serde_json::from_str(&text.map_err(|failure| failure.to_string())?)
            .expect("JSON in, JSON out");
        assert_eq!(object["kind"], "Pod");
        Ok(object["metadata"]["labels"].clone())
    }

    #[test]
    fn labels_are_set_and_removed() {
        let labels = relabel(
            json!({"app": "web", "old": "x"}),
            "tier=1 old- gone- empty=",
            false,
        );
        assert_eq!(labels, Ok(json!({"app": "web", "tier": "1", "empty": ""})));
        assert_eq!(
            relabel(Value::Null, "example.com/a=b.c", false),
            Ok(json!({"example.com/a": "b.c"}))
        );
        assert_eq!(
            relabel(json!({"app": "web"}), "app-", false),
            Ok(Value::Null)
        );
    }

    #[test]
    fn another_value_is_changed_only_when_asked() {
        let app = json!({"app": "web"});
        assert_eq!(relabel(app.clone(), "app=web", false), Ok(app.clone()));
        assert_eq!(
            relabel(app.clone(), "app=db", true),
            Ok(json!({"app": "db"}))
        );
        let error = relabel(app, "app=db", false).expect_err("no --overwrite");
        assert_eq!(
            error,
            "label `app` already has the value `web`: give --overwrite to change it"
        );
    }

    #[test]
    fn words_that_are_no_edits() {
        for word in ["=x", "-", "web", "a/b/c=x", "a=b=c", "a=b c", "-a=x"] {
            assert!(word.parse::<LabelEdit>().is_err(), "{word}");
        }
    }
}
