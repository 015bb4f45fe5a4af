//! `sallyport status`: how the control plane and every node stand. Never changes anything.

mod conditions;
#[cfg(test)]
mod tests;

use std::{io, time::Duration};

use clap::builder::styling::{AnsiColor, Style};
use sallyport_process::duration;
use sallyport_proto::wire::{
    self, NodeStatus, Rollout, StatusResponse, node_status::State, rollout::Phase, trouble::Kind,
    turned_away::Reason,
};
use serde::Serialize;

use self::conditions::{Condition, Contest};
use crate::{
    args::{self, Form},
    client::Client,
    enforced,
    failure::Failure,
    output::{self, Grid},
};

/// A table of more nodes than this shows the exceptions alone.
const MANY: usize = 20;

/// Runs the command.
pub(crate) async fn run(
    args: &args::Status,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let mut client = Client::connect(server).await?;
    let report = Report::from(client.status().await?);
    write!(out, "{}", report.show(args.output, output::colours()))?;
    Ok(())
}

/// The state of all, as `-o json` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    revision: u64,
    epoch: u64,
    /// The condition of the control plane itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<ReportedCondition>,
    nodes: Vec<Node>,
    /// How many nodes enforce the revision, for a table's reader.
    #[serde(skip)]
    enforced_on: String,
    /// The edits that have not passed their barrier.
    rollouts: Vec<OnItsWay>,
    /// The enforcers that were refused a session, by node.
    turned_away: Vec<TurnedAway>,
    /// How many names without a Node object were forgotten.
    #[serde(skip_serializing_if = "is_zero")]
    forgotten_names: u64,
    /// The first addresses that several workloads claim.
    contests: Vec<Contest>,
    /// The number of contests that are not listed.
    #[serde(skip_serializing_if = "is_zero")]
    more_contests: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TurnedAway {
    node: String,
    reason: &'static str,
    message: String,
    count: u64,
    since_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    enforcer: Option<Enforcer>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Enforcer {
    instance: String,
    start: u64,
    process: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OnItsWay {
    first_revision: u64,
    last_revision: u64,
    phase: &'static str,
    since_ms: u64,
    waits_for: Vec<String>,
    fenced: Vec<String>,
    skipped: Vec<String>,
    /// The same, as a table's reader wants it.
    #[serde(skip)]
    line: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    state: &'static str,
    /// Absent, as those that follow, where it is not known what the node enforces.
    enforced_revision: Option<u64>,
    held_revision: Option<u64>,
    /// How many revisions there are from the first one that is pending to the current one.
    lag: Option<u64>,
    pending_revision: Option<u64>,
    since_ms: u64,
    version: String,
    endpoints: u32,
    reason: String,
    /// The time for which a fenced node's lease has been over.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_over_ms: Option<u64>,
    /// The conditions that the node reports.
    troubles: Vec<ReportedCondition>,
    /// The time since a message of its enforcer last came.
    heard_ms: Option<u64>,
    conditions: Vec<Condition>,
    /// The meaning of the state for a table's reader, where the node gave no reason.
    #[serde(skip)]
    remark: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReportedCondition {
    kind: &'static str,
    reason: String,
    since_ms: u64,
}

impl From<StatusResponse> for Report {
    fn from(status: StatusResponse) -> Report {
        let enforced_on = enforced::nodes(&status, status.revision);
        let strangers = status.turned_away.unwrap_or_default();
        let contests = status.contests.unwrap_or_default();
        let unregistered = strangers.names.into_iter().filter_map(|stranger| {
            let turned_away = stranger.turned_away?;
            Some(TurnedAway::new(&stranger.name, turned_away))
        });
        let registered = status.nodes.iter().flat_map(|node| {
            let turned_away = node.turned_away.iter().cloned();
            turned_away.map(|turned_away| TurnedAway::new(&node.name, turned_away))
        });
        let mut turned_away: Vec<TurnedAway> = registered.chain(unregistered).collect();
        turned_away.sort_by(|a, b| a.node.cmp(&b.node));
        let known = |node: &NodeStatus, number: u64| {
            Some(number).filter(|_| enforced::has_reported(node.state()))
        };
        let lag = |pending: u64| match pending {
            0 => 0,
            pending => (status.revision + 1).saturating_sub(pending),
        };
        let node = |node: NodeStatus| Node {
            state: enforced::state(node.state()),
            remark: remark(&node),
            lag: known(&node, lag(node.pending_revision)),
            enforced_revision: known(&node, node.enforced_revision),
            held_revision: known(&node, node.held_revision),
            lease_over_ms: Some(node.lease_over_ms).filter(|_| node.state() == State::Fenced),
            pending_revision: Some(node.pending_revision).filter(|&pending| pending != 0),
            name: node.name,
            since_ms: node.since_ms,
            version: node.version,
            endpoints: node.endpoints,
            reason: node.reason,
            troubles: node
                .troubles
                .into_iter()
                .map(ReportedCondition::from)
                .collect(),
            heard_ms: node.heard_ms,
            conditions: node.conditions.into_iter().map(Condition::from).collect(),
        };
        Report {
            revision: status.revision,
            epoch: status.epoch,
            trouble: status.trouble.map(ReportedCondition::from),
            nodes: status.nodes.into_iter().map(node).collect(),
            enforced_on,
            rollouts: status.rollouts.into_iter().map(OnItsWay::from).collect(),
            turned_away,
            forgotten_names: strangers.forgotten,
            contests: contests.addresses.into_iter().map(Contest::from).collect(),
            more_contests: contests.more,
        }
    }
}

impl TurnedAway {
    fn new(node: &str, turned_away: wire::TurnedAway) -> TurnedAway {
        TurnedAway {
            node: node.to_owned(),
            reason: match turned_away.reason() {
                Reason::Unspecified => "?",
                Reason::NoNode => "noNode",
                Reason::Ahead => "ahead",
                Reason::Lease => "lease",
                Reason::NameTaken => "nameTaken",
                Reason::Cloned => "cloned",
                Reason::NotBelieved => "notBelieved",
                Reason::Late => "late",
            },
            message: turned_away.message,
            count: turned_away.count,
            since_ms: turned_away.since_ms,
            enforcer: turned_away.enforcer.map(Enforcer::from),
        }
    }

    /// For a table's reader.
    fn line(&self) -> String {
        let times = match self.count {
            1 => "once".to_owned(),
            count => format!("{count} times"),
        };
        let since = duration::rough(Duration::from_millis(self.since_ms));
        let who = self
            .enforcer
            .as_ref()
            .map_or(String::new(), |enforcer| format!(" ({})", enforcer.text()));
        format!(
            "{}{who}, {times}, last {since} ago: {}",
            self.node, self.message
        )
    }
}

impl From<wire::Enforcer> for Enforcer {
    fn from(enforcer: wire::Enforcer) -> Enforcer {
        let digits = enforcer.instance.iter();
        Enforcer {
            instance: digits.map(|byte| format!("{byte:02x}")).collect(),
            start: enforcer.start,
            process: format!("{:016x}", enforcer.process),
        }
    }
}

impl Enforcer {
    fn text(&self) -> String {
        let Enforcer {
            instance,
            start,
            process,
        } = self;
        format!("instance {instance}, start {start}, process {process}")
    }
}

fn remark(node: &NodeStatus) -> String {
    match node.state() {
        State::Enforcing if enforced::unjudged(node).next().is_some() => {
            "does not judge the traffic of some workloads: see the conditions".to_owned()
        }
        State::Fenced => enforced::closed(node),
        State::NotSeen => "has not connected since the control plane started".to_owned(),
        State::Left => "nothing is enforced on it".to_owned(),
        _ => String::new(),
    }
}

impl From<wire::Trouble> for ReportedCondition {
    fn from(trouble: wire::Trouble) -> ReportedCondition {
        ReportedCondition {
            kind: match trouble.kind() {
                Kind::Unspecified => "?",
                Kind::Session => "session",
                Kind::Refusing => "refusing",
                Kind::Journal => "journal",
                Kind::Table => "table",
                Kind::Mended => "mended",
                Kind::Quarantine => "quarantine",
                Kind::Closed => "closed",
                Kind::NotJudged => "not-judged",
            },
            reason: trouble.reason,
            since_ms: trouble.since_ms,
        }
    }
}

impl ReportedCondition {
    /// For a table's reader.
    fn line(&self) -> String {
        let since = duration::rough(Duration::from_millis(self.since_ms));
        let what = match self.kind {
            "journal" => format!("for {since}, cannot write its journal, and applies nothing new"),
            "table" => {
                format!("for {since}, another process changed the table, and the repair fails")
            }
            "mended" => {
                format!("{since} ago another process changed the table; the enforcer repaired it")
            }
            "quarantine" => format!("{since} ago the node's journal was damaged and moved aside"),
            "closed" => format!("for {since}, has dropped all traffic of its workloads"),
            "not-judged" => format!("for {since}, has not judged all traffic"),
            other => format!("for {since}, {other}"),
        };
        format!("{what}: {}", self.reason.trim_end().replace('\n', "; "))
    }
}

impl From<Rollout> for OnItsWay {
    fn from(rollout: Rollout) -> OnItsWay {
        OnItsWay {
            line: enforced::on_its_way(&rollout),
            first_revision: rollout.first_revision,
            last_revision: rollout.last_revision,
            phase: match rollout.phase() {
                Phase::Unspecified => "?",
                Phase::Revoking => "revoking",
                Phase::Draining => "draining",
                Phase::Queued => "queued",
            },
            since_ms: rollout.since_ms,
            waits_for: rollout.waits_for,
            fenced: rollout.fenced,
            skipped: rollout.skipped,
        }
    }
}

impl Report {
    fn show(&self, form: Form, colours: bool) -> String {
        let wide = match form {
            Form::Json | Form::Yaml => return output::structured(self, form),
            Form::Name => {
                return self
                    .nodes
                    .iter()
                    .map(|node| format!("node/{}\n", node.name))
                    .collect();
            }
            Form::Table => false,
            Form::Wide => true,
        };
        let mut text = format!("revision {}, epoch {}\n", self.revision, self.epoch);
        if let Some(trouble) = &self.trouble {
            let since = duration::rough(Duration::from_millis(trouble.since_ms));
            text += &format!(
                "for {since}, the control plane has refused all transactions: {}\n",
                trouble.reason
            );
        }
        if self.nodes.is_empty() {
            return text + "no nodes\n" + &conditions::text(self) + &self.turned_away_text();
        }
        let is_many = self.nodes.len() > MANY && !wide;
        if is_many {
            text += &format!(
                "{} enforce revision {} (-o wide lists all)\n",
                self.enforced_on, self.revision
            );
        }
        let mut header = vec![
            "NODE",
            "STATE",
            "ENFORCED",
            "LAG",
            "SINCE",
            "VERSION",
            "ENDPOINTS",
        ];
        header.extend(wide.then_some(["PENDING", "HELD"]).into_iter().flatten());
        header.push("REASON");
        let mut grid = Grid::new(header);
        let shown = self
            .nodes
            .iter()
            .filter(|node| !is_many || node.is_exception());
        for node in shown {
            grid.push(node.row(wide));
        }
        if !grid.is_empty() {
            let table = grid.render();
            text.push('\n');
            text += &match colours {
                true => output::paint_column(&table, "STATE", style),
                false => table,
            };
        }
        let troubled = self.nodes.iter().filter(|node| !node.troubles.is_empty());
        for (n, node) in troubled.enumerate() {
            text += if n == 0 { "\ntroubles:\n" } else { "" };
            for trouble in &node.troubles {
                text += &format!("  {}: {}\n", node.name, trouble.line());
            }
        }
        text += &conditions::text(self);
        text += &self.turned_away_text();
        if !self.rollouts.is_empty() {
            text += "\nrollouts:\n";
        }
        for rollout in &self.rollouts {
            text += &format!("  {}\n", rollout.line);
        }
        text
    }

    /// The lines about enforcers that were turned away.
    fn turned_away_text(&self) -> String {
        let mut text = String::new();
        for (n, turned_away) in self.turned_away.iter().enumerate() {
            text += if n == 0 { "\nturned away:\n" } else { "" };
            text += &format!("  {}\n", turned_away.line());
        }
        if self.forgotten_names > 0 {
            text += &format!(
                "  and {} earlier names without a Node object\n",
                self.forgotten_names
            );
        }
        text
    }
}

impl Node {
    /// Whether an operator of many nodes wants to see it.
    fn is_exception(&self) -> bool {
        let is_unjudged = |condition: &Condition| condition.kind == "notJudged";
        self.state != "enforcing"
            || self.lag != Some(0)
            || !self.troubles.is_empty()
            || self.conditions.iter().any(is_unjudged)
    }

    fn row(&self, wide: bool) -> Vec<String> {
        let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let number = |number: Option<u64>| dash(number.map(|number| number.to_string()));
        let since = duration::rough(Duration::from_millis(self.since_ms));
        let mut row = vec![
            self.name.clone(),
            self.state.to_owned(),
            number(self.enforced_revision),
            number(self.lag),
            since,
            dash(Some(self.version.clone()).filter(|version| !version.is_empty())),
            self.endpoints.to_string(),
        ];
        if wide {
            row.push(number(self.pending_revision));
            row.push(number(self.held_revision));
        }
        let reason = match self.reason.is_empty() {
            true => &self.remark,
            false => &self.reason,
        };
        row.push(reason.trim_end().replace('\n', "; "));
        row
    }
}

fn style(state: &str) -> Option<Style> {
    let colour = match state {
        "enforcing" => AnsiColor::Green,
        "updating" | "holding" | "unknown" | "not-seen" | "slow" => AnsiColor::Yellow,
        "refusing" | "disconnected" | "fenced" | "skipped" | "cloned" | "silent"
        | "not-judging" => AnsiColor::Red,
        _ => return None,
    };
    Some(colour.on_default())
}
