//! The semantics of NetworkPolicy, one table row at a time: who may talk to whom, and what the classes look like.
//! Named ports have a table of their own.

use std::sync::Arc;

use sallyport_controlplane::{
    compile::{Compiler, full},
    model::{Established, Object, Rule},
};
use sallyport_policy::{Direction, NodePolicy, Protocol};

use crate::write::*;

use Direction::{Egress, Ingress};
use Protocol::{Sctp, Tcp, Udp};

pub(crate) const WEB: &str = "10.0.0.1";
pub(crate) const DB: &str = "10.0.0.2";
pub(crate) const CLIENT: &str = "10.0.0.3";
pub(crate) const OTHER: &str = "10.0.1.4";
const TEAM: &str = "10.0.2.5";
const OUTSIDE: &str = "192.0.2.9";

/// Three pods of `default`, one of `other`, one of `team` (labelled team=a), all on node `n`.
fn world() -> Vec<Object> {
    vec![
        node("n", &["10.0.0.0/16"]),
        namespace("default", ""),
        namespace("other", ""),
        namespace("team", "team=a"),
        pod("default", "web", "n", "app=web", WEB),
        pod("default", "db", "n", "app=db,tier=1", DB),
        pod("default", "client", "n", "app=client", CLIENT),
        pod("other", "client", "n", "app=client", OTHER),
        pod("team", "client", "n", "app=client", TEAM),
    ]
}

/// The policy of node `n` in the world and some more objects, as both computations see it.
pub(crate) fn compiled(objects: Vec<Object>) -> Arc<NodePolicy> {
    compiled_under(Established::Recheck, objects)
}

pub(crate) fn compiled_under(default: Established, objects: Vec<Object>) -> Arc<NodePolicy> {
    let cluster = cluster(objects).with_established(default);
    let all = full(&cluster);
    let compiler = Compiler::new(&cluster);
    assert_eq!(Some(&all["n"]), compiler.policy("n"));
    all["n"].clone()
}

fn with(policies: &[Object]) -> Arc<NodePolicy> {
    compiled(
        world()
            .into_iter()
            .chain(policies.iter().cloned())
            .collect(),
    )
}

/// Asserts who may reach TCP 80 of web, or be reached from web on TCP 80.
fn reach(policy: &NodePolicy, direction: Direction, allowed: &[&str]) {
    for peer in [DB, CLIENT, OTHER, TEAM, OUTSIDE] {
        let allows = policy.allows(direction, ip(WEB), ip(peer), Some((Tcp, 80)));
        assert_eq!(
            allows,
            allowed.contains(&peer),
            "{direction} web and {peer}"
        );
    }
}

fn ingress(selector: &str, rules: Vec<Rule>) -> Object {
    policy("default", "p", selector, Some(rules), None)
}

const EVERYBODY: [&str; 5] = [DB, CLIENT, OTHER, TEAM, OUTSIDE];

#[test]
fn without_policies_nothing_is_isolated() {
    let policy = with(&[]);
    reach(&policy, Ingress, &EVERYBODY);
    reach(&policy, Egress, &EVERYBODY);
    assert_eq!(policy.endpoints().len(), 5);
    assert!(policy.classes().is_empty() && policy.groups().is_empty());
    assert_eq!(policy.workload_ranges().to_string(), "10.0.0.0/16");
}

#[test]
fn isolation_is_per_direction_and_per_selected_pod() {
    let policy = with(&[ingress("app=web", vec![])]);
    reach(&policy, Ingress, &[]);
    reach(&policy, Egress, &EVERYBODY);
    assert!(policy.allows(Ingress, ip(DB), ip(WEB), Some((Tcp, 80))));
    assert!(
        policy.allows(Ingress, ip(WEB), ip(WEB), Some((Tcp, 80))),
        "a pod reaches itself"
    );
    let policy = with(&[super::write::policy("default", "p", "", None, Some(vec![]))]);
    reach(&policy, Ingress, &EVERYBODY);
    reach(&policy, Egress, &[]);
    let policy = with(&[super::write::policy(
        "other",
        "p",
        "",
        Some(vec![]),
        Some(vec![]),
    )]);
    reach(&policy, Ingress, &EVERYBODY);
    reach(&policy, Egress, &EVERYBODY);
}

#[test]
fn peers_and_or() {
    let cases: &[(&[_], &[&str])] = &[
        (&[], &EVERYBODY),
        (&[pods("")], &[DB, CLIENT]),
        (&[pods("app=client")], &[CLIENT]),
        (&[pods("app=client"), pods("app=db")], &[DB, CLIENT]),
        (&[pods_of("", "")], &[DB, CLIENT, OTHER, TEAM]),
        (&[pods_of("", "app=client")], &[CLIENT, OTHER, TEAM]),
        (&[pods_of("team=a", "")], &[TEAM]),
        (&[pods_of("team=a", "app=db")], &[]),
        (&[pods_of("team=a", ""), pods("app=db")], &[DB, TEAM]),
        (
            &[pods_of("kubernetes.io/metadata.name=other", "")],
            &[OTHER],
        ),
        (&[pods_of("!team", "app")], &[DB, CLIENT, OTHER]),
        (&[pods_of("team=b", "")], &[]),
    ];
    for (peers, allowed) in cases {
        let allowed_all = rule(peers, &[]);
        reach(
            &with(&[ingress("app=web", vec![allowed_all.clone()])]),
            Ingress,
            allowed,
        );
        let egress = policy("default", "p", "app=web", None, Some(vec![allowed_all]));
        reach(&with(&[egress]), Egress, allowed);
    }
}

#[test]
fn operators_of_selectors() {
    for (selector, allowed) in [
        ("app in db client", &[DB, CLIENT][..]),
        ("app notin db web", &[CLIENT]),
        ("tier notin 1", &[CLIENT]),
        ("tier notin 2", &[DB, CLIENT]),
        ("tier", &[DB]),
        ("!tier", &[CLIENT]),
        ("app=db,tier=1", &[DB]),
        ("app=db,!tier", &[]),
        ("nobody", &[]),
    ] {
        let policy = with(&[ingress("app=web", vec![rule(&[pods(selector)], &[])])]);
        reach(&policy, Ingress, allowed);
    }
}

#[test]
fn blocks_match_any_address_but_for_excepts() {
    for (peers, allowed) in [
        (vec![block("0.0.0.0/0", &[])], &EVERYBODY[..]),
        (vec![block("10.0.0.0/24", &[])], &[DB, CLIENT]),
        (vec![block("10.0.0.0/8", &["10.0.0.0/24"])], &[OTHER, TEAM]),
        (
            vec![block("0.0.0.0/0", &["10.0.0.0/15", "192.0.2.8/30"])],
            &[],
        ),
        (vec![block("10.0.0.0/8", &["10.0.0.0/8"])], &[]),
        (
            vec![block("10.0.0.0/8", &["10.0.0.0/24"]), pods("app=db")],
            &[DB, OTHER, TEAM],
        ),
        (vec![block("::/0", &[])], &[]),
    ] {
        let policy = with(&[ingress("app=web", vec![rule(&peers, &[])])]);
        reach(&policy, Ingress, allowed);
    }
}

#[test]
fn ports_and_protocols() {
    let check = |ports: &[_], expected: &[(Option<(Protocol, u16)>, bool)]| {
        let policy = with(&[ingress("app=web", vec![rule(&[pods("app=db")], ports)])]);
        for &(port, allowed) in expected {
            let allows = policy.allows(Ingress, ip(WEB), ip(DB), port);
            assert_eq!(allows, allowed, "{port:?} with {ports:?}");
            assert!(!policy.allows(Ingress, ip(WEB), ip(CLIENT), port));
        }
    };
    let any = |protocol| Some((protocol, 7));
    check(
        &[],
        &[
            (None, true),
            (any(Tcp), true),
            (any(Udp), true),
            (any(Sctp), true),
        ],
    );
    check(
        &[all_of(Tcp)],
        &[(None, false), (any(Tcp), true), (any(Udp), false)],
    );
    check(
        &[tcp(80)],
        &[
            (None, false),
            (Some((Tcp, 80)), true),
            (Some((Udp, 80)), false),
        ],
    );
    check(
        &[span(Sctp, 10, 12)],
        &[
            (Some((Sctp, 9)), false),
            (Some((Sctp, 10)), true),
            (Some((Sctp, 13)), false),
        ],
    );
    check(
        &[tcp(65535), tcp(1)],
        &[(Some((Tcp, 65535)), true), (Some((Tcp, 2)), false)],
    );
}

#[test]
fn policies_are_a_union_and_each_port_has_one_group() {
    let policy = with(&[
        policy(
            "default",
            "a",
            "app=web",
            Some(vec![rule(&[pods("app=db")], &[tcp(80)])]),
            None,
        ),
        policy(
            "default",
            "b",
            "",
            Some(vec![rule(&[pods("app=client")], &[span(Tcp, 70, 90)])]),
            None,
        ),
    ]);
    reach(&policy, Ingress, &[DB, CLIENT]);
    assert!(!policy.allows(Ingress, ip(WEB), ip(DB), Some((Tcp, 79))));
    let id = policy.endpoints()[&ip(WEB)].ingress.unwrap();
    let shape: Vec<_> = policy.classes()[&id]
        .ports
        .iter()
        .map(|rule| {
            let group = &policy.groups()[&rule.group].spec.description;
            format!("{} {}-{} {group}", rule.protocol, rule.first, rule.last)
        })
        .collect();
    assert_eq!(
        shape,
        [
            "TCP 70-79 pods default/app=client",
            "TCP 80-80 pods default/app=client | pods default/app=db",
            "TCP 81-90 pods default/app=client",
        ]
    );
}

#[test]
fn allowing_everyone_everything_is_no_class() {
    let open = rule(&[], &[]);
    let spelt_out = vec![
        rule(
            &[
                block("0.0.0.0/1", &[]),
                block("128.0.0.0/1", &[]),
                block("::/0", &[]),
            ],
            &[],
        ),
        rule(&[pods("app=db")], &[tcp(80)]),
    ];
    for rules in [
        vec![open.clone()],
        vec![rule(&[pods("")], &[tcp(1)]), open],
        spelt_out,
    ] {
        let policy = with(&[
            ingress("app=web", rules),
            policy("default", "x", "", Some(vec![]), None),
        ]);
        assert_eq!(policy.endpoints()[&ip(WEB)].ingress, None);
        assert!(policy.endpoints()[&ip(DB)].ingress.is_some());
        assert_eq!(policy.classes().len(), 1);
        assert!(policy.groups().is_empty());
    }
    let every_port = [all_of(Tcp), all_of(Udp), all_of(Sctp)];
    let policy = with(&[ingress("app=web", vec![rule(&[], &every_port)])]);
    assert!(
        !policy.allows(Ingress, ip(WEB), ip(DB), None),
        "ICMP needs a rule without ports"
    );
    assert_eq!(
        policy.groups().values().next().unwrap().spec.description,
        "everyone"
    );
}

#[test]
fn spellings_with_one_meaning_share_a_group() {
    let rules = |peers: &[_]| with(&[ingress("app=web", vec![rule(peers, &[])])]);
    let same = |a: &[_], b: &[_]| assert_eq!(rules(a), rules(b), "{a:?} and {b:?}");
    same(
        &[pods_of("kubernetes.io/metadata.name=default", "app=db")],
        &[pods("app=db")],
    );
    same(&[pods(""), pods("app=db")], &[pods("")]);
    same(
        &[pods_of("", ""), pods("app=db"), pods_of("team=a", "")],
        &[pods_of("", "")],
    );
    same(
        &[pods_of("", "app=db"), pods("app=db")],
        &[pods_of("", "app=db")],
    );
    same(
        &[pods("app=db"), block("10.0.0.0/9", &[])],
        &[block("10.0.0.0/9", &[]), pods("app=db")],
    );
    same(
        &[block("10.0.0.0/9", &[]), block("10.128.0.0/9", &[])],
        &[
            block("10.0.0.0/8", &["10.7.0.0/16"]),
            block("10.7.0.0/16", &[]),
        ],
    );
}

#[test]
fn dual_stack() {
    let (v6, peer6) = ("fd00::1", "fd00::2");
    let policy = compiled(vec![
        node("n", &["10.0.0.0/16", "fd00::/64"]),
        namespace("default", ""),
        pod("default", "web", "n", "app=web", &format!("{WEB} {v6}")),
        pod("default", "db", "m", "app=db", &format!("{DB} {peer6}")),
        policy(
            "default",
            "p",
            "app=web",
            Some(vec![rule(&[pods("app=db")], &[tcp(80)])]),
            None,
        ),
        policy(
            "default",
            "q",
            "app=web",
            Some(vec![rule(&[block("fd00::8/125", &[])], &[])]),
            None,
        ),
    ]);
    let allows = |a: &str, b: &str| policy.allows(Ingress, ip(a), ip(b), Some((Tcp, 80)));
    assert!(allows(WEB, DB) && allows(v6, peer6) && allows(v6, "fd00::f"));
    assert!(!allows(v6, "fd00::3") && !allows(WEB, CLIENT));
    assert_eq!(
        policy.workload_ranges().to_string(),
        "10.0.0.0/16, fd00::/64"
    );
    assert_eq!(policy.endpoints().len(), 2, "db is on another node");
}

#[test]
fn host_network_and_addressless_pods() {
    let mut objects = world();
    objects.push(on_host_network(pod(
        "default",
        "agent",
        "n",
        "app=client",
        "10.9.9.9",
    )));
    objects.push(pod("default", "pending", "n", "app=client", ""));
    objects.push(pod("default", "unscheduled", "", "app=client", "10.0.0.77"));
    objects.push(policy("default", "all", "", Some(vec![]), None));
    let from = |peer| ingress("app=web", vec![rule(&[peer], &[])]);
    let run = |peer| compiled(objects.iter().cloned().chain([from(peer)]).collect());
    let policy = run(pods("app=client"));
    let allows = |policy: &NodePolicy, peer| policy.allows(Ingress, ip(WEB), ip(peer), None);
    assert_eq!(
        policy.endpoints().len(),
        5,
        "neither the host's pod nor the pending one"
    );
    assert!(
        !allows(&policy, "10.9.9.9"),
        "labels do not match a pod on the host's network"
    );
    assert!(allows(&policy, "10.0.0.77") && allows(&policy, CLIENT));
    assert!(
        allows(&run(block("10.9.9.9/32", &[])), "10.9.9.9"),
        "an ipBlock does"
    );
}

#[test]
fn a_node_knows_only_what_its_endpoints_need() {
    let all = full(&cluster(vec![
        node("n", &[]),
        node("m", &[]),
        namespace("default", ""),
        pod("default", "a", "n", "app=a", WEB),
        pod("default", "b", "m", "app=b", DB),
        pod("default", "c", "nowhere", "app=c", CLIENT),
        policy(
            "default",
            "p",
            "app=a",
            Some(vec![rule(&[pods("app=c")], &[])]),
            None,
        ),
        policy(
            "default",
            "q",
            "app=c",
            Some(vec![rule(&[pods("app=a")], &[])]),
            None,
        ),
    ]));
    assert_eq!(
        all.keys().collect::<Vec<_>>(),
        ["m", "n"],
        "nodes that are objects, no others"
    );
    assert_eq!((all["n"].classes().len(), all["n"].groups().len()), (1, 1));
    assert_eq!((all["m"].classes().len(), all["m"].groups().len()), (0, 0));
}

/// What of several policies counts: the strictest, of those that isolate the pod in the direction.
#[test]
fn established_connections_are_kept_if_every_isolating_policy_keeps_them() {
    use Established::{Keep, Recheck};
    let say = |name: &str, selector: &str, mode, directions: (bool, bool)| {
        let (ingress, egress) = directions;
        let rules = |isolates: bool| isolates.then(Vec::new);
        let object = policy("default", name, selector, rules(ingress), rules(egress));
        match mode {
            Some(mode) => established(object, mode),
            None => object,
        }
    };
    let (both, in_only, out_only) = ((true, true), (true, false), (false, true));
    type Said<'a> = (&'a str, Option<Established>, (bool, bool));
    // Policies by selector; the cluster's default; whether web keeps in ingress and in egress.
    let cases: &[(&[Said<'_>], Established, (bool, bool))] = &[
        (&[("app=web", None, both)], Recheck, (false, false)),
        (&[("app=web", None, both)], Keep, (true, true)),
        (&[("app=web", Some(Keep), both)], Recheck, (true, true)),
        (&[("app=web", Some(Recheck), both)], Keep, (false, false)),
        (&[("app=web", Some(Keep), in_only)], Recheck, (true, true)),
        // The same selector, and another one that selects it too.
        (
            &[
                ("app=web", Some(Keep), both),
                ("app=web", Some(Recheck), in_only),
            ],
            Keep,
            (false, true),
        ),
        (
            &[("app=web", Some(Keep), both), ("", Some(Recheck), out_only)],
            Recheck,
            (true, false),
        ),
        (
            &[("app=web", Some(Keep), both), ("", None, both)],
            Recheck,
            (false, false),
        ),
        (
            &[("app=web", Some(Keep), both), ("", None, both)],
            Keep,
            (true, true),
        ),
        (
            &[
                ("app=web", Some(Keep), both),
                ("app=db", Some(Recheck), both),
            ],
            Recheck,
            (true, true),
        ),
    ];
    for (policies, default, (ingress, egress)) in cases {
        let policies = policies.iter().enumerate();
        let policies = policies.map(|(n, (selector, mode, isolates))| {
            say(&format!("p{n}"), selector, *mode, *isolates)
        });
        let compiled = compiled_under(*default, world().into_iter().chain(policies).collect());
        let kept = Direction::BOTH.map(|direction| compiled.keeps(direction, ip(WEB)));
        assert_eq!(
            kept,
            [*ingress, *egress],
            "{policies:?}",
            policies = compiled.classes()
        );
    }
}

#[test]
fn a_class_that_restricts_nothing_is_none_whatever_it_keeps() {
    for mode in [Established::Keep, Established::Recheck] {
        let all = ingress("", vec![rule(&[], &[])]);
        let policy = with(&[established(all, mode)]);
        assert!(policy.classes().is_empty());
    }
}

#[test]
fn keeping_tells_classes_apart_and_groups_not() {
    let allow = |name: &str, selector: &str| {
        let rules = vec![rule(&[pods("app=client")], &[tcp(80)])];
        policy("default", name, selector, Some(rules), None)
    };
    let policy = with(&[
        established(allow("a", "app=web"), Established::Keep),
        allow("b", "app=db"),
    ]);
    assert_eq!((policy.classes().len(), policy.groups().len()), (2, 1));
    for web in [WEB, DB] {
        assert!(policy.allows(Ingress, ip(web), ip(CLIENT), Some((Tcp, 80))));
        assert!(!policy.allows(Ingress, ip(web), ip(CLIENT), Some((Tcp, 81))));
    }
}
