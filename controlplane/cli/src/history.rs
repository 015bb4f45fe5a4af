//! `sallyport history`: the recent transactions, the latest first.

use std::{collections::BTreeMap, io};

use jiff::Timestamp;
use sallyport_proto::wire::{Change, HistoryRequest, Transaction, change::Action};
use serde_json::{Value, json};

use crate::{
    args::{self, Form},
    client::Client,
    commit,
    failure::Failure,
    kind,
    output::{self, Grid},
};

/// How many objects a line names before it counts the rest.
const NAMED: usize = 3;

/// Runs the command.
pub(crate) async fn run(
    args: &args::History,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut client = Client::connect(server).await?;
    let request = HistoryRequest {
        before_revision: args.before.unwrap_or(0),
        limit: args.limit,
    };
    let history = client.history(request).await?;
    let transactions = &history.transactions;
    match args.output {
        Form::Name => {
            for transaction in transactions {
                writeln!(out, "{}", transaction.revision)?;
            }
        }
        form @ (Form::Json | Form::Yaml) => {
            let value = json!({
                "revision": history.revision,
                "oldestRevision": history.oldest_revision,
                "transactions": transactions.iter().map(value).collect::<Vec<_>>(),
            });
            write!(out, "{}", output::structured(&value, form))?;
        }
        Form::Table | Form::Wide => {
            if transactions.is_empty() {
                output::remark("No transactions found.");
                return Ok(());
            }
            let mut grid = Grid::new(vec!["REVISION", "TIME", "CHANGES"]);
            for transaction in transactions {
                let named = if args.output == Form::Wide {
                    usize::MAX
                } else {
                    NAMED
                };
                let text = in_words(&transaction.changes, named);
                grid.push(vec![
                    transaction.revision.to_string(),
                    time(transaction.at_ms),
                    text,
                ]);
            }
            write!(out, "{}", grid.render())?;
            if args.output == Form::Wide {
                let oldest = history.oldest_revision;
                writeln!(out, "\nthe oldest revision for a rollback is {oldest}")?;
            }
        }
    }
    Ok(())
}

/// A time as everybody reads it; `-` where it is not known.
pub(crate) fn time(at_ms: u64) -> String {
    let known = i64::try_from(at_ms).ok().filter(|&at| at > 0);
    let time = known.and_then(|at| Timestamp::from_millisecond(at).ok());
    time.map_or("-".to_owned(), |time| format!("{time:.0}"))
}

/// The printed name of an action, where nobody knows whether the object existed before.
fn word(action: Action) -> &'static str {
    match action {
        Action::Unspecified => "put",
        known => commit::word(known),
    }
}

/// `networkpolicy/prod/web created; 3 deleted: pod/prod/a, pod/prod/b, pod/prod/c`
fn in_words(changes: &[Change], named: usize) -> String {
    let mut by_word: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for change in changes {
        let path = kind::path(&change.r#ref.clone().unwrap_or_default());
        by_word.entry(word(change.action())).or_default().push(path);
    }
    let parts = by_word.into_iter().map(|(word, paths)| match &paths[..] {
        [path] => format!("{path} {word}"),
        paths => {
            let shown = paths[..paths.len().min(named)].join(", ");
            let more = if paths.len() > named { ", ..." } else { "" };
            format!("{} {word}: {shown}{more}", paths.len())
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn value(transaction: &Transaction) -> Value {
    let change = |change: &Change| {
        json!({
            "object": kind::path(&change.r#ref.clone().unwrap_or_default()),
            "action": word(change.action()),
        })
    };
    let time = (transaction.at_ms > 0).then(|| time(transaction.at_ms));
    json!({
        "revision": transaction.revision,
        "time": time,
        "changes": transaction.changes.iter().map(change).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use sallyport_proto::wire::{Kind, ObjectRef};

    use super::*;

    #[test]
    fn changes_read_as_a_line() {
        let change = |name: &str, action: Action| Change {
            r#ref: Some(ObjectRef {
                kind: Kind::Pod.into(),
                namespace: "a".to_owned(),
                name: name.to_owned(),
            }),
            action: action.into(),
        };
        let created = ["p", "q", "r", "s"].map(|name| change(name, Action::Created));
        let mut changes = created.to_vec();
        changes.push(change("t", Action::Deleted));
        changes.push(change("u", Action::Unspecified));
        assert_eq!(
            in_words(&changes, 2),
            "4 created: pod/a/p, pod/a/q, ...; pod/a/t deleted; pod/a/u put"
        );
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(time(1_764_000_000_999), "2025-11-24T16:00:00Z");
        assert_eq!(time(0), "-");
    }
}
