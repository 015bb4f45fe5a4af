//! `sallyport journal`: a control plane's journal as files and as backups. What is in them is the library's to say; this
//! never writes to a journal that is there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, BufWriter},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use sallyport_controlplane::{
    backup::{self, Contents, Saved},
    history::{Committed, Event},
    journal,
    model::ObjectKey,
};
use sallyport_proto::object;
use serde_json::{Value, json};

use crate::{
    args::{self, Form, Structured},
    client::Client,
    failure::Failure,
    history, output,
};

/// Runs the command.
pub(crate) async fn run(
    args: &args::Journal,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    match args {
        args::Journal::Verify(args) => Ok(write!(out, "{}", inspect(&args.data_dir)?)?),
        args::Journal::Dump(args) => dump(args, out),
        args::Journal::Backup(args) => back_up(args, server, out).await,
        args::Journal::Restore(args) => restore(args, out),
    }
}

fn inspect(path: &Path) -> Result<journal::Report, Failure> {
    journal::inspect(&journal::within(path)).map_err(refused)
}

fn refused(error: impl ToString) -> Failure {
    Failure::Refused(error.to_string())
}

fn dump(args: &args::Dump, out: &mut dyn io::Write) -> Result<(), Failure> {
    let report = inspect(&args.journal.data_dir)?;
    let value = match args.transactions {
        true => {
            let history = &report.recovered.history;
            let all = history.after(history.oldest()).map_err(refused)?;
            Value::Array(all.map(|committed| transaction(committed)).collect())
        }
        false => {
            let objects = report.recovered.cluster.objects();
            let texts = objects.map(|stored| &stored.object.manifest);
            output::list(texts.map(|text| read(text)).collect())
        }
    };
    let form = match args.output {
        Structured::Yaml => Form::Yaml,
        Structured::Json => Form::Json,
    };
    Ok(write!(out, "{}", output::structured(&value, form))?)
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
        "revision": committed.revision,
        "time": committed.at_ms.map(history::time),
        "events": committed.events.iter().map(event).collect::<Vec<_>>(),
    })
}

async fn back_up(
    args: &args::Backup,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let contents = match &args.data_dir {
        Some(path) => inspect(path)?.contents(),
        None => download(server).await?,
    };
    let problem = |error: &dyn std::fmt::Display| {
        Failure::Refused(format!("cannot write {}: {error}", args.file.display()))
    };
    save(&args.file, &contents).map_err(|error| problem(&error))?;
    let Contents {
        revision,
        epoch,
        objects,
        ..
    } = &contents;
    writeln!(
        out,
        "{}: {} objects, revision {revision}, epoch {epoch}",
        args.file.display(),
        objects.len()
    )?;
    Ok(())
}

/// Written beside the file and renamed when it is whole and on the disk.
fn save(path: &Path, contents: &Contents) -> Result<(), backup::BackupError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let mut options = File::options();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    let mut writer = BufWriter::new(&file);
    backup::write(contents, &mut writer)?;
    drop(writer);
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

async fn download(server: &args::Server) -> Result<Contents, Failure> {
    let mut client = Client::connect(server).await?;
    let (header, objects) = client.backup().await?;
    let saved = objects.into_iter().map(|object| {
        let reference = object.r#ref.unwrap_or_default();
        let kind = object::Kind::of_wire(reference.kind()).ok_or_else(|| {
            Failure::Refused(
                "the control plane has kinds that this version does not know".to_owned(),
            )
        })?;
        Ok(Saved {
            key: ObjectKey {
                kind,
                namespace: reference.namespace,
                name: reference.name,
            },
            manifest: object.manifest.into(),
            revision: object.revision,
        })
    });
    Ok(Contents {
        epoch: header.epoch,
        revision: header.revision,
        nodes: header.nodes.into_iter().collect(),
        objects: saved.collect::<Result<_, Failure>>()?,
    })
}

fn restore(args: &args::Restore, out: &mut dyn io::Write) -> Result<(), Failure> {
    let contents = match (&args.file, args.epoch) {
        (Some(path), _) => {
            let unreadable = |error: &dyn std::fmt::Display| {
                Failure::Refused(format!("cannot read {}: {error}", path.display()))
            };
            let file = File::open(path).map_err(|error| unreadable(&error))?;
            backup::read(&mut BufReader::new(file)).map_err(|error| unreadable(&error))?
        }
        (None, epoch) => Contents {
            epoch: epoch.unwrap_or(1).saturating_sub(1),
            revision: 0,
            nodes: BTreeMap::new(),
            objects: Vec::new(),
        },
    };
    let epoch = args.epoch.unwrap_or(contents.epoch.saturating_add(1));
    journal::restore(&journal::within(&args.data_dir), &contents, epoch).map_err(refused)?;
    let (revision, count, path) = (
        contents.revision,
        contents.objects.len(),
        args.data_dir.display(),
    );
    writeln!(
        out,
        "{path}: {count} objects, revision {revision}, epoch {epoch}"
    )?;
    let next = match count {
        0 => "Start sallyport-controlplane on it and apply all manifests in one transaction",
        _ => {
            "Start sallyport-controlplane on it, as the user that owns the directory. Then apply what changed after the \
             backup; what nodes enforced beyond it, they go back from"
        }
    };
    output::remark(&format!(
        "{next}. Nodes accept it if none has seen epoch {epoch}: `sallyport status` tells."
    ));
    Ok(())
}
