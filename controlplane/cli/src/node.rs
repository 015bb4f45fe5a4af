//! `sallyport node`: decisions about enforcers that only an administrator can make.

use std::io;

use crate::{args, client::Client, failure::Failure};

/// Runs the command.
pub(crate) async fn run(
    args: &args::Node,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let args::Node::Believe(args::Believe { node, process }) = args;
    let mut client = Client::connect(server).await?;
    client.believe(node, *process).await?;
    writeln!(
        out,
        "node/{node}: the enforcer of process {process:016x} is believed; it connects within seconds"
    )?;
    Ok(())
}
