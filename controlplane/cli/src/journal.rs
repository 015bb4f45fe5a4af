//! `sallyport journal`: a backup of what a control plane has, as it says. Opens no journal.

use sallyport_proto::backup::Epoch;
use sallyport_proto::backup::Revision;
use std::io;

use sallyport_process::files;
use sallyport_proto::{
    backup::{self, BackupError, Contents, Saved},
    object::{self, ObjectKey},
};

use crate::{args, client::Client, failure::Failure};

/// Runs the command.
pub(crate) async fn run(
    args: &args::Journal,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    match args {
        args::Journal::Backup(args) => back_up(args, server, out).await,
    }
}

async fn back_up(
    args: &args::Backup,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let contents = download(server).await?;
    let path = args.file.display();
    files::replace::<BackupError>(&args.file, |out| backup::write(&contents, out))
        .map_err(|error| Failure::Refused(format!("cannot write {path}: {error}")))?;
    writeln!(out, "{path}: {contents}")?;
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
            revision: Revision(object.revision),
        })
    });
    Ok(Contents {
        epoch: Epoch(header.epoch),
        revision: Revision(header.revision),
        nodes: header
            .nodes
            .into_iter()
            .map(|(name, leased)| (name.into(), leased.into()))
            .collect(),
        objects: saved.collect::<Result<_, Failure>>()?,
    })
}
