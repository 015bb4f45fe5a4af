//! `sallyport-controlplane journal`: the journal of a control plane that is stopped, as text and as backups. The
//! library says what they hold. Nothing here writes to a journal that is there.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use sallyport_controlplane::{
    config::{BackupArguments, DumpArguments, Form, JournalCommand, RestoreArguments},
    history::{Committed, Event},
    journal,
};
use sallyport_policy::{Epoch, Revision};
use sallyport_process::files;
use sallyport_proto::backup::{self, BackupError, Contents};
use serde_json::{Value, json};

/// Runs the command.
pub(crate) fn run(command: &JournalCommand) -> Result<()> {
    match command {
        JournalCommand::Verify(arguments) => print(&inspect(&arguments.data_dir)?.to_string()),
        JournalCommand::Dump(arguments) => dump(arguments),
        JournalCommand::Backup(arguments) => back_up(arguments),
        JournalCommand::Restore(arguments) => restore(arguments),
    }
}

fn inspect(data_dir: &Path) -> Result<journal::Report> {
    Ok(journal::inspect(&journal::within(data_dir))?)
}

fn dump(arguments: &DumpArguments) -> Result<()> {
    let report = inspect(&arguments.journal.data_dir)?;
    let value = match arguments.transactions {
        true => {
            let history = &report.recovered.history;
            let all = history.after(history.oldest())?;
            Value::Array(all.map(|committed| transaction(committed)).collect())
        }
        false => {
            let objects = report.recovered.cluster.objects();
            let texts = objects.map(|stored| &stored.object.manifest);
            let items: Vec<Value> = texts.map(|text| read(text)).collect();
            json!({"apiVersion": "v1", "kind": "List", "items": items})
        }
    };
    print(&match arguments.output {
        Form::Json => serde_json::to_string_pretty(&value)? + "\n",
        Form::Yaml => {
            // Long lines stay as they are: folding is of no use to anyone who edits them.
            let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
            serde_saphyr::to_string_with_options(&value, options)?
        }
    })
}

/// A manifest; what is not JSON as the string that it is.
fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

fn transaction(committed: &Committed) -> Value {
    let event = |event: &Event| match event {
        Event::Put(stored) => json!({"put": read(&stored.object.manifest)}),
        Event::Delete(key) => json!({"delete": key.to_string()}),
    };
    json!({
        "revision": committed.revision.0,
        "time": committed.at_ms.map(time),
        "events": committed.events.iter().map(event).collect::<Vec<_>>(),
    })
}

/// A time as everybody reads it; `-` where it is not known.
fn time(at_ms: u64) -> String {
    let time = i64::try_from(at_ms).ok().filter(|&at| at > 0);
    let time = time.and_then(|at| Timestamp::from_millisecond(at).ok());
    time.map_or("-".to_owned(), |time| format!("{time:.0}"))
}

fn back_up(arguments: &BackupArguments) -> Result<()> {
    let contents = inspect(&arguments.journal.data_dir)?.contents();
    let path = arguments.file.display();
    files::replace::<BackupError>(&arguments.file, |out| backup::write(&contents, out))
        .with_context(|| format!("cannot write {path}"))?;
    print(&format!("{path}: {contents}\n"))
}

fn restore(arguments: &RestoreArguments) -> Result<()> {
    let contents = match (&arguments.file, arguments.epoch) {
        (Some(path), _) => {
            read_backup(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        (None, epoch) => Contents {
            epoch: Epoch(epoch.unwrap_or(1).saturating_sub(1)),
            revision: Revision(0),
            nodes: BTreeMap::new(),
            objects: Vec::new(),
        },
    };
    let epoch = arguments.epoch.map_or(contents.epoch.next(), Epoch);
    journal::restore(&journal::within(&arguments.data_dir), &contents, epoch)?;
    let count = contents.objects.len();
    let restored = Contents { epoch, ..contents };
    print(&format!("{}: {restored}\n", arguments.data_dir.display()))?;
    let next = match count {
        0 => "Start sallyport-controlplane on it and apply all manifests in one transaction",
        _ => {
            "Start sallyport-controlplane on it, as the user that owns the directory. Then apply what changed after the \
             backup; what nodes enforced beyond it, they go back from"
        }
    };
    // Standard error may be closed: that is no reason to panic.
    let _ = writeln!(
        io::stderr(),
        "{next}. Nodes accept it if none has seen epoch {epoch}: `sallyport status` tells."
    );
    Ok(())
}

fn read_backup(path: &Path) -> Result<Contents, BackupError> {
    backup::read(&mut BufReader::new(File::open(path)?))
}

fn print(text: &str) -> Result<()> {
    files::print(text).context("cannot write the output")
}
