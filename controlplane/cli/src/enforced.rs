//! `sallyport wait`, and the sentences about which nodes enforce what. Never changes anything.

use std::{io, time::Duration};

use sallyport_process::duration;
use sallyport_proto::wire::{
    NodeStatus, Rollout, StatusResponse, condition, node_status::State, rollout::Phase,
    trouble::Kind,
};

use crate::{args, client::Client, failure::Failure};

/// Runs `sallyport wait`.
pub(crate) async fn run(
    args: &args::Wait,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut client = Client::connect(server).await?;
    let revision = until(&mut client, args.revision.unwrap_or(0), args.timeout).await?;
    let status = client.status().await?;
    let nodes = nodes(&status, revision);
    writeln!(out, "revision {revision} enforced on {nodes}")?;
    out.write_all(without(&status).as_bytes())?;
    Ok(())
}

/// Waits until the nodes enforce a revision (0: the current one), and returns which it was. Where it is not enforced
/// in time, says which node holds what back, and since when.
pub(crate) async fn until(
    client: &mut Client,
    revision: u64,
    timeout: Duration,
) -> Result<u64, Failure> {
    let response = client.wait_enforced(revision, timeout).await?;
    if response.enforced {
        return Ok(response.revision);
    }
    let mut text = lagging(response.revision, timeout, &response.lagging);
    for rollout in client.status().await?.rollouts {
        text += &format!("\n{}", on_its_way(&rollout));
    }
    Err(Failure::TimedOut(text))
}

/// A line about an edit that has not passed its barrier.
pub(crate) fn on_its_way(rollout: &Rollout) -> String {
    let Rollout {
        first_revision: first,
        last_revision: last,
        ..
    } = rollout;
    let which = match first == last {
        true => format!("revision {last}"),
        false => format!("revisions {first} to {last}"),
    };
    let since = duration::rough(Duration::from_millis(rollout.since_ms));
    let waits = match rollout.phase() {
        Phase::Unspecified => "?".to_owned(),
        Phase::Revoking => format!(
            "revokes are not yet in force on {}",
            rollout.waits_for.join(", ")
        ),
        Phase::Draining => "packets in flight get time to arrive".to_owned(),
        Phase::Queued => "waiting for earlier edits".to_owned(),
    };
    let mut text = format!("{which}, for {since}: {waits}");
    for (names, how) in [(&rollout.fenced, "fenced"), (&rollout.skipped, "skipped")] {
        if !names.is_empty() {
            text += &format!("; {how}: {}", names.join(", "));
        }
    }
    text
}

/// `2 nodes`: those that reported that they have nothing left to do for the revision. Nodes that edits go on without do
/// not count, whatever they reported before, nor do those with a workload whose traffic they do not judge.
pub(crate) fn nodes(status: &StatusResponse, revision: u64) -> String {
    let done = |node: &&NodeStatus| {
        has_reported(node.state())
            && !matches!(node.state(), State::Fenced | State::Skipped)
            && (node.pending_revision == 0 || node.pending_revision > revision)
            && unjudged(node).next().is_none()
    };
    match (status.nodes.iter().filter(done).count(), status.nodes.len()) {
        (0, 0) => "0 nodes (there are none)".to_owned(),
        (1, 1) => "1 node".to_owned(),
        (count, all) if count == all => format!("{all} nodes"),
        (count, all) => format!("{count} of {all} nodes"),
    }
}

/// The words about workloads whose traffic a node says that no policy judges, without those that no route leads to.
pub(crate) fn unjudged(node: &NodeStatus) -> impl Iterator<Item = &str> {
    let conditions = node.conditions.iter();
    let unjudged = conditions.filter(|one| one.kind() == condition::Kind::NotJudged);
    unjudged.map(|condition| &*condition.message)
}

/// Whether it is known what a node in this state enforces, from what it reported, and whether that is anything.
pub(crate) fn has_reported(state: State) -> bool {
    !matches!(
        state,
        State::Unspecified
            | State::Unknown
            | State::NotSeen
            | State::Left
            | State::Cloned
            | State::NotJudging
    )
}

/// Lines about the nodes that edits go on without.
pub(crate) fn without(status: &StatusResponse) -> String {
    let line = |node: &NodeStatus| match node.state() {
        State::Fenced => Some(format!(
            "warning: {} is fenced: {}\n",
            node.name,
            closed(node)
        )),
        State::Skipped => Some(format!(
            "warning: {} was skipped: it last reported revision {}, and flows that touch it may be open\n",
            node.name, node.enforced_revision
        )),
        State::Left => Some(format!(
            "note: {} left {} ago: nothing is enforced on it\n",
            node.name,
            duration::rough(Duration::from_millis(node.since_ms))
        )),
        _ => None,
    };
    status.nodes.iter().filter_map(line).collect()
}

/// The words about a fenced node's traffic: no more than is known.
pub(crate) fn closed(node: &NodeStatus) -> String {
    let reports = |kind: Kind| node.troubles.iter().any(|trouble| trouble.kind() == kind);
    if reports(Kind::NotJudged) {
        return "the node last reported that it does not judge all traffic, so nothing closes all of it, and flows \
                that touch the node may be open"
            .to_owned();
    }
    if reports(Kind::Closed) {
        return "the node reports that it drops all traffic of its workloads".to_owned();
    }
    let over = duration::rough(Duration::from_millis(node.lease_over_ms));
    format!(
        "its lease ran out {over} ago, and a node that enforces closes itself by then; the node has not confirmed it"
    )
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
        if has_reported(node.state()) {
            text += &format!(", enforces revision {}", node.enforced_revision);
        }
        if !node.reason.is_empty() {
            text += &format!("; {}", node.reason.trim_end().replace('\n', "; "));
        }
        for (n, words) in unjudged(node).enumerate() {
            text += match n {
                0 => ", but traffic of these workloads bypasses policy:",
                _ => "",
            };
            text += &format!("\n  {words}");
        }
    }
    text
}

/// The printed name of a state.
pub(crate) fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "?",
        State::Enforcing => "enforcing",
        State::Updating => "updating",
        State::Refusing => "refusing",
        State::Disconnected => "disconnected",
        State::Unknown => "unknown",
        State::Holding => "holding",
        State::Fenced => "fenced",
        State::Skipped => "skipped",
        State::Left => "left",
        State::NotSeen => "not-seen",
        State::Cloned => "cloned",
        State::Silent => "silent",
        State::Slow => "slow",
        State::NotJudging => "not-judging",
    }
}

#[cfg(test)]
mod tests {
    use sallyport_proto::wire::{Condition, Trouble};

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
                ..StatusResponse::default()
            };
            nodes(&status, 42)
        };
        let enforcing = node("a", State::Enforcing, 0);
        let later = node("b", State::Updating, 43);
        let behind = node("c", State::Disconnected, 42);
        let unknown = node("d", State::Unknown, 0);
        assert_eq!(count(vec![enforcing.clone(), later.clone()]), "2 nodes");
        assert_eq!(count(vec![enforcing.clone(), behind]), "1 of 2 nodes");
        assert_eq!(
            count(vec![enforcing.clone(), later, unknown]),
            "2 of 3 nodes"
        );
        for state in [
            State::Fenced,
            State::Skipped,
            State::Left,
            State::NotSeen,
            State::Cloned,
            State::NotJudging,
        ] {
            // The node reported all its conditions, once.
            let other = node("e", state, 0);
            assert_eq!(
                count(vec![enforcing.clone(), other]),
                "1 of 2 nodes",
                "{state:?}"
            );
        }
        let mut open = node("f", State::Enforcing, 0);
        open.conditions.push(Condition {
            kind: condition::Kind::NoRoute.into(),
            ..Condition::default()
        });
        assert_eq!(count(vec![enforcing.clone(), open.clone()]), "2 nodes");
        open.conditions[0].set_kind(condition::Kind::NotJudged);
        assert_eq!(count(vec![enforcing, open]), "1 of 2 nodes");
        assert_eq!(count(vec![]), "0 nodes (there are none)");
    }

    #[test]
    fn of_a_node_that_an_edit_went_on_without_only_what_is_known_is_said() {
        let said = |node: NodeStatus| {
            without(&StatusResponse {
                nodes: vec![node],
                ..StatusResponse::default()
            })
        };
        let mut fenced = node("a", State::Fenced, 42);
        fenced.lease_over_ms = 12_000;
        assert_eq!(
            said(fenced.clone()),
            "warning: a is fenced: its lease ran out 12s ago, and a node that enforces closes itself by then; the \
             node has not confirmed it\n"
        );
        let mut trouble = Trouble::default();
        trouble.set_kind(Kind::Closed);
        fenced.troubles.push(trouble);
        assert_eq!(
            said(fenced),
            "warning: a is fenced: the node reports that it drops all traffic of its workloads\n"
        );
        let mut trouble = Trouble::default();
        trouble.set_kind(Kind::NotJudged);
        let mut open = node("a", State::Fenced, 42);
        open.troubles.push(trouble);
        assert!(said(open).contains("nothing closes all of it"));
        assert_eq!(
            said(node("a", State::Skipped, 42)),
            "warning: a was skipped: it last reported revision 40, and flows that touch it may be open\n"
        );
        assert_eq!(
            said(node("a", State::Left, 0)),
            "note: a left 2m5s ago: nothing is enforced on it\n"
        );
        assert_eq!(said(node("a", State::NotSeen, 1)), "");
    }

    #[test]
    fn a_rollout_names_the_nodes_that_it_waits_for() {
        let mut rollout = Rollout {
            first_revision: 41,
            last_revision: 42,
            since_ms: 5_000,
            waits_for: vec!["node-b".into(), "node-c".into()],
            ..Rollout::default()
        };
        rollout.set_phase(Phase::Revoking);
        assert_eq!(
            on_its_way(&rollout),
            "revisions 41 to 42, for 5s: revokes are not yet in force on node-b, node-c"
        );
        rollout.first_revision = 42;
        rollout.skipped = vec!["node-d".into()];
        rollout.set_phase(Phase::Queued);
        assert_eq!(
            on_its_way(&rollout),
            "revision 42, for 5s: waiting for earlier edits; skipped: node-d"
        );
    }

    #[test]
    fn the_end_of_a_wait_names_who_lags_and_why() {
        let mut refusing = node("node-b", State::Refusing, 41);
        refusing.reason = "kernel: no space left on device\n".to_owned();
        let unknown = node("node-c", State::Unknown, 1);
        let not_seen = node("node-d", State::NotSeen, 1);
        let mut not_judging = node("node-e", State::NotJudging, 1);
        not_judging.reason = "IPv4 of br0".to_owned();
        let mut open = node("node-f", State::Enforcing, 0);
        let no_route = condition::Kind::NoRoute;
        for (kind, message) in [
            (no_route, "workloads a/z (10.0.0.7): no route"),
            (
                condition::Kind::NotJudged,
                "workload a/x (10.0.0.5): it is behind m0, a macvlan device",
            ),
            (
                condition::Kind::NotJudged,
                "workload a/y (10.0.0.6): the address is the node's own",
            ),
        ] {
            open.conditions.push(Condition {
                kind: kind.into(),
                message: message.to_owned(),
                ..Condition::default()
            });
        }
        let nodes = [refusing, unknown, not_seen, not_judging, open];
        assert_eq!(
            lagging(42, Duration::from_secs(30), &nodes),
            "timed out after 30s waiting for revision 42: 5 nodes lag\n\
             node-b: refusing for 2m5s, enforces revision 40; kernel: no space left on device\n\
             node-c: unknown for 2m5s\n\
             node-d: not-seen for 2m5s\n\
             node-e: not-judging for 2m5s; IPv4 of br0\n\
             node-f: enforcing for 2m5s, enforces revision 40, but traffic of these workloads bypasses policy:\n  \
             workload a/x (10.0.0.5): it is behind m0, a macvlan device\n  \
             workload a/y (10.0.0.6): the address is the node's own"
        );
    }
}
