//! The table as its reader sees it, and what programs read.

use super::*;

fn report() -> Report {
    let node = |name: &str, state: State, enforced, pending, reason: &str| NodeStatus {
        name: name.to_owned(),
        state: state.into(),
        enforced_revision: enforced,
        held_revision: enforced,
        pending_revision: pending,
        since_ms: 192_000,
        reason: reason.to_owned(),
        version: "0.1.0".to_owned(),
        endpoints: 3,
        ..NodeStatus::default()
    };
    let mut unknown = node("node-c", State::Unknown, 0, 1, "");
    unknown.version.clear();
    let mut rollout = Rollout {
        first_revision: 41,
        last_revision: 42,
        since_ms: 192_000,
        waits_for: vec!["node-b".into()],
        ..Rollout::default()
    };
    rollout.set_phase(Phase::Revoking);
    let mut troubled = node("node-a", State::Enforcing, 42, 0, "");
    troubled.troubles.push(wire::Trouble {
        kind: Kind::Mended.into(),
        reason: "nft (pid 7): the table is gone".into(),
        since_ms: 192_000,
    });
    let nodes = vec![
        troubled,
        node("node-b", State::Refusing, 39, 41, "out of memory\n"),
        unknown,
    ];
    Report::from(StatusResponse {
        revision: 42,
        epoch: 1,
        nodes,
        rollouts: vec![rollout],
        ..StatusResponse::default()
    })
}

#[test]
fn what_is_wrong_with_the_control_plane_comes_first() {
    let mut report = report();
    report.trouble = Some(ReportedCondition {
        kind: "journal",
        reason: "no space left on device".into(),
        since_ms: 65_000,
    });
    let table = report.show(Form::Table, false);
    assert!(
        table.starts_with(
            "revision 42, epoch 1\n\
             for 1m5s, the control plane has refused all transactions: no space left on device\n\
             \n\
             NODE "
        ),
        "{table}"
    );
}

#[test]
fn a_table() {
    assert_eq!(
        report().show(Form::Table, false),
        "revision 42, epoch 1\n\
         \n\
         NODE    STATE      ENFORCED  LAG  SINCE  VERSION  ENDPOINTS  REASON\n\
         node-a  enforcing  42        0    3m12s  0.1.0    3\n\
         node-b  refusing   39        2    3m12s  0.1.0    3          out of memory\n\
         node-c  unknown    -         -    3m12s  -        3\n\
         \n\
         troubles:\n  \
         node-a: 3m12s ago another process changed the table; the enforcer repaired it: nft (pid 7): the table is gone\n\
         \n\
         rollouts:\n  \
         revisions 41 to 42, for 3m12s: revokes are not yet in force on node-b\n"
    );
    let wide = report().show(Form::Wide, false);
    assert!(
        wide.contains("ENDPOINTS  PENDING  HELD  REASON\n"),
        "{wide}"
    );
    assert!(
        wide.contains("3          41       39    out of memory\n"),
        "{wide}"
    );
}

#[test]
fn of_nodes_that_nobody_knows_of_there_are_no_numbers() {
    let mut report = StatusResponse {
        revision: 42,
        epoch: 1,
        ..StatusResponse::default()
    };
    for (name, state) in [
        ("gone", State::Left),
        ("quiet", State::NotSeen),
        ("shut", State::Fenced),
    ] {
        report.nodes.push(NodeStatus {
            name: name.into(),
            state: state.into(),
            since_ms: 192_000,
            enforced_revision: 40,
            pending_revision: 41,
            lease_over_ms: 12_000,
            ..NodeStatus::default()
        });
    }
    let report = Report::from(report);
    assert_eq!(
        report.show(Form::Table, false),
        "revision 42, epoch 1\n\
         \n\
         NODE   STATE     ENFORCED  LAG  SINCE  VERSION  ENDPOINTS  REASON\n\
         gone   left      -         -    3m12s  -        0          nothing is enforced on it\n\
         quiet  not-seen  -         -    3m12s  -        0          has not connected since the control plane started\n\
         shut   fenced    40        2    3m12s  -        0          its lease ran out 12s ago, and a node that \
         enforces closes itself by then; the node has not confirmed it\n"
    );
    let json: serde_json::Value =
        serde_json::from_str(&report.show(Form::Json, false)).expect("JSON");
    let nodes = &json["nodes"];
    assert!(nodes[0]["enforcedRevision"].is_null() && nodes[1]["lag"].is_null());
    assert_eq!(nodes[2]["leaseOverMs"], 12_000);
    assert!(nodes[0].get("leaseOverMs").is_none());
}

#[test]
fn of_many_nodes_a_table_shows_the_exceptions_alone() {
    let node = |n: usize| NodeStatus {
        name: format!("node-{n:03}"),
        state: State::Enforcing.into(),
        enforced_revision: 57,
        held_revision: 57,
        since_ms: 192_000,
        version: "0.1.0".into(),
        ..NodeStatus::default()
    };
    let mut status = StatusResponse {
        revision: 57,
        epoch: 1,
        nodes: (0..400).map(node).collect(),
        ..StatusResponse::default()
    };
    let all_well = Report::from(status.clone());
    assert_eq!(
        all_well.show(Form::Table, false),
        "revision 57, epoch 1\n400 nodes enforce revision 57 (-o wide lists all)\n"
    );
    status.nodes[7].set_state(State::NotSeen);
    status.nodes[8].set_state(State::Fenced);
    status.nodes[9].pending_revision = 56;
    status.nodes[10].troubles.push(wire::Trouble {
        kind: Kind::Mended.into(),
        reason: "nft (pid 7): the table is gone".into(),
        since_ms: 192_000,
    });
    let report = Report::from(status.clone());
    let table = report.show(Form::Table, false);
    assert!(
        table.starts_with(
            "revision 57, epoch 1\n397 of 400 nodes enforce revision 57 (-o wide lists all)\n\nNODE "
        ),
        "{table}"
    );
    let rows: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("node-"))
        .collect();
    assert_eq!(rows.len(), 4, "{table}");
    for (row, name) in rows.iter().zip(["007", "008", "009", "010"]) {
        assert!(row.starts_with(&format!("node-{name}  ")), "{table}");
    }
    assert!(table.contains("troubles:\n  node-010: "), "{table}");
    let lists_all = |form| report.show(form, false).matches("node-").count() >= 400;
    for form in [Form::Wide, Form::Json, Form::Yaml, Form::Name] {
        assert!(lists_all(form), "{form:?}");
    }
    // A screen holds this many.
    status.nodes.truncate(20);
    let few = Report::from(status).show(Form::Table, false);
    assert!(!few.contains("-o wide"), "{few}");
    assert_eq!(few.matches("0.1.0").count(), 20, "{few}");
}

#[test]
fn enforcers_that_were_turned_away_are_listed_without_any_node() {
    let turned_away = wire::TurnedAway {
        reason: Reason::NoNode.into(),
        message: "nodes \"node-7\" not found".into(),
        count: 14,
        since_ms: 3_000,
        enforcer: Some(wire::Enforcer {
            instance: vec![0xab; 16],
            start: 5,
            process: 0xa,
        }),
    };
    let stranger = wire::strangers::Stranger {
        name: "node-7".into(),
        turned_away: Some(turned_away),
    };
    let report = Report::from(StatusResponse {
        turned_away: Some(wire::Strangers {
            names: vec![stranger],
            forgotten: 2,
        }),
        ..StatusResponse::default()
    });
    assert_eq!(
        report.show(Form::Table, false),
        "revision 0, epoch 0\n\
         no nodes\n\
         \n\
         turned away:\n  \
         node-7 (instance abababababababababababababababab, start 5, process 000000000000000a), 14 times, last 3s \
         ago: nodes \"node-7\" not found\n  \
         and 2 earlier names without a Node object\n"
    );
    let json = report.show(Form::Json, false);
    assert!(json.contains("\"reason\": \"noNode\""), "{json}");
    assert!(json.contains("\"process\": \"000000000000000a\""), "{json}");
}

#[test]
fn conditions_are_listed_with_their_node() {
    let mut report = report();
    report.nodes[1].conditions.push(Condition {
        kind: "replaced",
        message: "an enforcer with another instance id took the name".into(),
        since_ms: 3_000,
        enforcers: Vec::new(),
    });
    let table = report.show(Form::Table, false);
    let lines =
        "\nconditions:\n  node-b, 3s ago: an enforcer with another instance id took the name\n";
    assert!(table.contains(lines), "{table}");
}

#[test]
fn workloads_that_are_not_judged_are_conditions() {
    let condition = |kind: wire::condition::Kind, message: &str| wire::Condition {
        kind: kind.into(),
        message: message.to_owned(),
        since_ms: 192_000,
        ..wire::Condition::default()
    };
    let (not_judged, no_route) = (
        wire::condition::Kind::NotJudged,
        wire::condition::Kind::NoRoute,
    );
    let node = |n: usize| NodeStatus {
        name: format!("node-{n:03}"),
        state: State::Enforcing.into(),
        enforced_revision: 57,
        since_ms: 192_000,
        ..NodeStatus::default()
    };
    let mut status = StatusResponse {
        revision: 57,
        nodes: (0..21).map(node).collect(),
        ..StatusResponse::default()
    };
    status.nodes[3].conditions = vec![
        condition(not_judged, "workload a/x (10.0.0.5): it is behind m0"),
        condition(no_route, "workloads a/y (10.0.0.6): no route leads to it"),
    ];
    status.nodes[4].conditions = vec![condition(no_route, "workloads a/z (10.0.0.7)")];
    let report = Report::from(status);
    assert_eq!(
        report.show(Form::Table, false),
        "revision 57, epoch 0\n\
         20 of 21 nodes enforce revision 57 (-o wide lists all)\n\
         \n\
         NODE      STATE      ENFORCED  LAG  SINCE  VERSION  ENDPOINTS  REASON\n\
         node-003  enforcing  57        0    3m12s  -        0          does not judge the traffic of some workloads: see \
         the conditions\n\
         \n\
         conditions:\n  \
         node-003, for 3m12s, not judged: workload a/x (10.0.0.5): it is behind m0\n  \
         node-003, for 3m12s, no route: workloads a/y (10.0.0.6): no route leads to it\n  \
         node-004, for 3m12s, no route: workloads a/z (10.0.0.7)\n"
    );
    let json = report.show(Form::Json, false);
    for kind in ["\"notJudged\"", "\"noRoute\""] {
        assert!(json.contains(kind), "{json}");
    }
}

#[test]
fn contested_addresses_are_conditions() {
    let contest = |address: &str| wire::Contest {
        address: address.into(),
        claimants: vec![wire::ObjectRef {
            kind: wire::Kind::Pod.into(),
            namespace: "a".into(),
            name: "old".into(),
        }],
        more_claimants: 1,
        message: format!("address {address} is claimed by two"),
    };
    let contests = wire::Contests {
        addresses: vec![contest("10.0.0.1"), contest("fd00::1")],
        more: 7,
    };
    // Whether there are nodes or not.
    for nodes in [vec![], vec![NodeStatus::default()]] {
        let report = Report::from(StatusResponse {
            nodes,
            contests: Some(contests.clone()),
            ..StatusResponse::default()
        });
        let lines = "\nconditions:\n  address 10.0.0.1 is claimed by two\n  address fd00::1 is claimed by two\n  \
                     and 7 more addresses that several workloads claim\n";
        let table = report.show(Form::Table, false);
        assert!(table.ends_with(lines), "{table}");
        let json = report.show(Form::Json, false);
        assert!(
            json.contains("\"pod/a/old\"") && json.contains("\"moreContests\": 7"),
            "{json}"
        );
    }
}

#[test]
fn colours_change_nothing_but_the_colour() {
    let painted = report().show(Form::Table, true);
    assert!(
        painted.contains("node-b  \u{1b}[31mrefusing\u{1b}[0m   39"),
        "{painted}"
    );
}

#[test]
fn forms_for_programs() {
    let json = report().show(Form::Json, true);
    assert!(json.contains("\"enforcedRevision\": 42"), "{json}");
    assert!(json.contains("\"pendingRevision\": null"), "{json}");
    let yaml = report().show(Form::Yaml, true);
    assert!(
        yaml.starts_with("revision: 42\nepoch: 1\nnodes:\n- name: node-a\n  state: enforcing\n"),
        "{yaml}"
    );
}
