//! `sallyport rollback`: goes back to an earlier revision. The server decides the edits.

use std::{io, time::Instant};

use sallyport_proto::wire::RollbackRequest;

use crate::{
    args,
    client::Client,
    commit::{report, wait, word},
    failure::Failure,
};

/// Runs the command.
pub(crate) async fn run(
    args: &args::Rollback,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let only = args.only.as_ref();
    if only.is_some_and(|target| target.name.is_some()) {
        let text = "--only is for kinds, not for objects by name";
        return Err(Failure::Usage(text.to_owned()));
    }
    let kinds = only.map_or(&[][..], |target| &target.kinds);
    let commit = &args.commit;
    let mut client = Client::connect(server).await?;
    let started = Instant::now();
    let request = RollbackRequest {
        revision: args.revision,
        kinds: kinds.iter().map(|&kind| kind.into()).collect(),
        expected_revision: commit.expected_revision,
        dry_run: commit.dry_run,
        unreachable: commit.unreachable(),
    };
    let response = client.rollback(request).await?;
    if response.changes.is_empty() {
        writeln!(
            out,
            "nothing to do: everything is as it was at revision {}",
            args.revision
        )?;
    }
    report(&response, commit, word, out)?;
    wait(&mut client, commit, response.revision, started, out).await
}
