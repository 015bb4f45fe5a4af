//! `sallyport apply` and `sallyport delete`, and what every change ends with: the report, the wait. Reads no manifest.

use std::{
    io,
    time::{Duration, Instant},
};

use sallyport_proto::wire::{
    ApplyRequest, ApplyResponse, Edit, Manifest, change::Action, edit::Op,
};

use crate::{
    args,
    client::Client,
    enforced,
    failure::{Failure, printable},
    input, kind, output,
};

/// Runs `sallyport apply`.
pub(crate) async fn apply(
    args: &args::Apply,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let manifests = input::manifests(&args.input.filename, args.input.recursive, io::stdin())?;
    let ignore = args.input.ignore_unknown_kinds;
    submit(edits(manifests, Op::Put), ignore, &args.commit, server, out).await
}

/// Runs `sallyport delete`.
pub(crate) async fn delete(
    args: &args::Delete,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let edits = match &args.kind {
        None => {
            let manifests = input::manifests(&args.filename, args.recursive, io::stdin())?;
            edits(manifests, Op::DeleteManifest)
        }
        Some(target) => {
            let references = target.references(&args.names, args.scope.namespace.as_deref())?;
            if references.is_empty() {
                return Err(Failure::Usage("name the objects to delete".to_owned()));
            }
            let delete = |reference| Edit {
                op: Some(Op::Delete(reference)),
            };
            references.into_iter().map(delete).collect()
        }
    };
    let ignore = args.ignore_unknown_kinds;
    submit(edits, ignore, &args.commit, server, out).await
}

fn edits(manifests: Vec<Manifest>, op: fn(Manifest) -> Op) -> Vec<Edit> {
    let edit = |manifest| Edit {
        op: Some(op(manifest)),
    };
    manifests.into_iter().map(edit).collect()
}

async fn submit(
    edits: Vec<Edit>,
    ignore_unknown_kinds: bool,
    args: &args::Commit,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut client = Client::connect(server).await?;
    let started = Instant::now();
    let request = ApplyRequest {
        edits,
        expected_revision: args.expected_revision,
        dry_run: args.dry_run,
        unreachable: args.unreachable(),
        ignore_unknown_kinds,
        ..ApplyRequest::default()
    };
    let response = client.apply(request).await?;
    for ignored in &response.ignored {
        output::remark(&format!("left out: {}", printable(ignored)));
    }
    if response.changes.is_empty() {
        let text = "the files of -f hold no objects: nothing was changed";
        return Err(Failure::Refused(text.to_owned()));
    }
    report(&response, args, word, out)?;
    wait(&mut client, args, response.revision, started, out).await
}

/// Says what became of each object, and which revision that is.
pub(crate) fn report(
    response: &ApplyResponse,
    args: &args::Commit,
    word: impl Fn(Action) -> &'static str,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    for change in &response.changes {
        let reference = change.r#ref.clone().unwrap_or_default();
        let word = word(change.action());
        writeln!(out, "{} {word}{suffix}", kind::path(&reference))?;
    }
    for warning in &response.warnings {
        output::remark(&format!("warning: {}", printable(warning)));
    }
    let revision = response.revision;
    let changed = |action| !matches!(action, Action::Unchanged | Action::Unspecified);
    match response
        .changes
        .iter()
        .any(|change| changed(change.action()))
    {
        true if !args.dry_run => writeln!(out, "revision {revision}")?,
        _ => writeln!(out, "revision {revision} (as before)")?,
    }
    out.flush()
}

/// The printed name of an action.
pub(crate) fn word(action: Action) -> &'static str {
    match action {
        Action::Unspecified => "?",
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    }
}

/// With `--wait`: waits for the nodes, and says how long it took since the change was sent.
pub(crate) async fn wait(
    client: &mut Client,
    args: &args::Commit,
    revision: u64,
    started: Instant,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    if !args.wait {
        return Ok(());
    }
    enforced::until(client, revision, args.timeout).await?;
    let took = measured(started.elapsed());
    let status = client.status().await?;
    let nodes = enforced::nodes(&status, revision);
    writeln!(out, "enforced on {nodes} in {took}")?;
    out.write_all(enforced::without(&status).as_bytes())?;
    Ok(())
}

/// A measured span, with the digits that matter: `3.1 ms`, `0.42 ms`, `2.35 s`.
fn measured(span: Duration) -> String {
    let ms = span.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use sallyport_proto::wire::{Change, Kind, ObjectRef};

    use super::*;

    fn reported(line: &str, actions: &[Action]) -> String {
        let words = format!("sallyport apply -f x {line}");
        let cli = args::Cli::try_parse_from(words.split_whitespace()).expect(line);
        let args::Command::Apply(apply) = cli.command else {
            panic!("not apply: {line}");
        };
        let change = |&action: &Action| Change {
            r#ref: Some(ObjectRef {
                kind: Kind::NetworkPolicy.into(),
                namespace: "default".to_owned(),
                name: "demo-policy".to_owned(),
            }),
            action: action.into(),
        };
        let response = ApplyResponse {
            revision: 42,
            changes: actions.iter().map(change).collect(),
            ..ApplyResponse::default()
        };
        let mut out = Vec::new();
        report(&response, &apply.commit, word, &mut out).expect("memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn measured_spans_have_the_digits_that_matter() {
        let measure = |us| measured(Duration::from_micros(us));
        assert_eq!(measure(420), "0.42 ms");
        assert_eq!(measure(3_140), "3.1 ms");
        assert_eq!(measure(314_000), "314 ms");
        assert_eq!(measure(2_350_000), "2.35 s");
    }

    #[test]
    fn reports_read_like_kubectl() {
        assert_eq!(
            reported("", &[Action::Created, Action::Unchanged]),
            "networkpolicy/default/demo-policy created\n\
             networkpolicy/default/demo-policy unchanged\n\
             revision 42\n"
        );
        assert_eq!(
            reported("", &[Action::Unchanged]),
            "networkpolicy/default/demo-policy unchanged\nrevision 42 (as before)\n"
        );
        assert_eq!(
            reported("--dry-run", &[Action::Deleted]),
            "networkpolicy/default/demo-policy deleted (dry run)\nrevision 42 (as before)\n"
        );
    }
}
