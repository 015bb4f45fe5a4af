//! `sallyport wait`, and the sentences about which nodes enforce what. Never changes anything.

use std::{io, time::Duration};

use sallyport_proto::wire::{NodeStatus, StatusResponse, node_status::State};

use crate::{args, client::Client, duration, failure::Failure};

/// Runs `sallyport wait`.
pub(crate) async fn run(
    args: &args::Wait,
    server: &str,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut client = Client::connect(server).await?;
    let revision = until(&mut client, args.revision.unwrap_or(0), args.timeout).await?;
    let nodes = nodes(&client.status().await?, revision);
    writeln!(out, "revision {revision} enforced on {nodes}")?;
    Ok(())
}

/// Waits until the nodes enforce a revision (0: the current one), and returns which it was.
pub(crate) async fn until(
    client: &mut Client,
    revision: u64,
    timeout: Duration,
) -> Result<u64, Failure> {
    let response = client.wait_enforced(revision, timeout).await?;
    match response.enforced {
        true => Ok(response.revision),
        false => Err(Failure::TimedOut(lagging(
            response.revision,
            timeout,
            &response.lagging,
        ))),
    }
}

/// `2 nodes`: those that have nothing left to do for the revision.
pub(crate) fn nodes(status: &StatusResponse, revision: u64) -> String {
    let done = |node: &&NodeStatus| {
        node.state() != State::Unknown
            && (node.pending_revision == 0 || node.pending_revision > revision)
    };
    match (status.nodes.iter().filter(done).count(), status.nodes.len()) {
        (0, 0) => "0 nodes (there are none)".to_owned(),
        (1, 1) => "1 node".to_owned(),
        (count, all) if count == all => format!("{all} nodes"),
        (count, all) => format!("{count} of {all} nodes"),
    }
}

fn lagging(revision: u64, timeout: Duration, nodes: &[NodeStatus]) -> String {
    let waited = duration::rough(timeout);
    let who = match nodes.len() {
        0 => String::new(),
        1 => ": 1 node lags".to_owned(),
        count => format!(": {count} nodes lag"),
    };
    let mut text = format!("timed out after {waited} waiting for revision {revision}{who}");
    for node in nodes {
        let since = duration::rough(Duration::from_millis(node.since_ms));
        let state = state(node.state());
        text += &format!("\n{}: {state} for {since}", node.name);
        if node.state() != State::Unknown {
            text += &format!(", enforces revision {}", node.enforced_revision);
        }
        if !node.reason.is_empty() {
            text += &format!("; {}", node.reason.trim_end().replace('\n', "; "));
        }
    }
    text
}

/// What a state is called.
pub(crate) fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "?",
        State::Enforcing => "enforcing",
        State::Updating => "updating",
        State::Refusing => "refusing",
        State::Disconnected => "disconnected",
        State::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, state: State, pending_revision: u64) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            state: state.into(),
            enforced_revision: 40,
            pending_revision,
            since_ms: 125_000,
            ..NodeStatus::default()
        }
    }

    #[test]
    fn nodes_count_when_nothing_of_the_revision_is_pending() {
        let count = |all: Vec<NodeStatus>| {
            let status = StatusResponse {
                revision: 43,
                epoch: 0,
                nodes: all,
            };
            nodes(&status, 42)
        };
        let enforcing = node("a", State::Enforcing, 0);
        let later = node("b", State::Updating, 43);
        let behind = node("c", State::Disconnected, 42);
        let unknown = node("d", State::Unknown, 0);
        assert_eq!(count(vec![enforcing.clone(), later.clone()]), "2 nodes");
        assert_eq!(count(vec![enforcing.clone(), behind]), "1 of 2 nodes");
        assert_eq!(count(vec![enforcing, later, unknown]), "2 of 3 nodes");
        assert_eq!(count(vec![]), "0 nodes (there are none)");
    }

    #[test]
    fn the_end_of_a_wait_names_who_lags_and_why() {
        let mut refusing = node("node-b", State::Refusing, 41);
        refusing.reason = "kernel: no space left on device\n".to_owned();
        let unknown = node("node-c", State::Unknown, 1);
        assert_eq!(
            lagging(42, Duration::from_secs(30), &[refusing, unknown]),
            "timed out after 30s waiting for revision 42: 2 nodes lag\n\
             node-b: refusing for 2m5s, enforces revision 40; kernel: no space left on device\n\
             node-c: unknown for 2m5s"
        );
    }
}
