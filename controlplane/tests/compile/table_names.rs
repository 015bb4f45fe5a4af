//! Named ports, one table row at a time: resolved by the isolated pod for ingress, by each destination for egress.

use sallyport_controlplane::model::{Object, Peer};
use sallyport_policy::{Direction, NodePolicy, Protocol};

use crate::{table::*, write::*};

use Direction::{Egress, Ingress};
use Protocol::{Tcp, Udp};

/// web serves http on 80 and dns on UDP 53, db serves http on 8080, other/client on 80; default/client serves nothing.
fn world() -> Vec<Object> {
    let web = pod("default", "web", "n", "app=web", WEB);
    let db = pod("default", "db", "n", "app=db", DB);
    let other = pod("other", "client", "n", "app=client", OTHER);
    vec![
        node("n", &[]),
        namespace("default", ""),
        namespace("other", ""),
        with_ports(
            web,
            &[
                ("http", Tcp, 80),
                ("dns", Udp, 53),
                ("dns", Tcp, 5353),
                ("http", Tcp, 81),
            ],
        ),
        with_ports(db, &[("http", Tcp, 8080)]),
        with_ports(other, &[("http", Tcp, 80)]),
        pod("default", "client", "n", "app=client", CLIENT),
    ]
}

#[test]
fn ingress_resolves_at_the_isolated_pod() {
    let rules = vec![rule(
        &[pods("app=client")],
        &[named(Tcp, "http"), named(Udp, "dns")],
    )];
    let mut objects = world();
    objects.push(policy("default", "p", "", Some(rules), None));
    let policy = compiled(objects);
    let allows =
        |to, protocol, port| policy.allows(Ingress, ip(to), ip(CLIENT), Some((protocol, port)));
    assert!(allows(WEB, Tcp, 80) && allows(WEB, Udp, 53));
    assert!(!allows(WEB, Tcp, 81), "the first port of a name counts");
    assert!(
        !allows(WEB, Tcp, 5353),
        "a name is looked up for the rule's protocol"
    );
    assert!(allows(DB, Tcp, 8080) && !allows(DB, Tcp, 80) && !allows(DB, Udp, 53));
    assert!(
        !policy.allows(Ingress, ip(CLIENT), ip(DB), Some((Tcp, 80))),
        "no such name: nothing"
    );
}

fn egress(peers: &[Peer]) -> impl Fn(&str, u16) -> bool + use<> {
    let rules = vec![rule(peers, &[named(Tcp, "http")])];
    let mut objects = world();
    objects.push(policy("default", "p", "app=client", None, Some(rules)));
    let policy = compiled(objects);
    move |to, port| policy.allows(Egress, ip(CLIENT), ip(to), Some((Tcp, port)))
}

#[test]
fn egress_resolves_at_each_destination() {
    let allows = egress(&[pods("")]);
    assert!(allows(WEB, 80) && allows(DB, 8080));
    assert!(
        !allows(WEB, 8080) && !allows(DB, 80),
        "each has its own number"
    );
    assert!(!allows(OTHER, 80), "of another namespace");
    let allows = egress(&[pods_of("", ""), pods("app=db")]);
    assert!(allows(WEB, 80) && allows(DB, 8080) && allows(OTHER, 80) && !allows(OTHER, 8080));
    let allows = egress(&[]);
    assert!(allows(WEB, 80) && allows(DB, 8080) && allows(OTHER, 80));
    assert!(
        !allows("192.0.2.9", 80),
        "an address of no pod resolves no name"
    );
    let allows = egress(&[block("10.0.0.0/24", &["10.0.0.2/32"])]);
    assert!(allows(WEB, 80) && !allows(DB, 8080) && !allows(OTHER, 80));
}

#[test]
fn egress_groups_are_described_with_their_port() {
    let rules = vec![rule(
        &[pods(""), block("10.0.1.0/24", &[])],
        &[named(Tcp, "http")],
    )];
    let mut objects = world();
    objects.push(policy("default", "p", "app=client", None, Some(rules)));
    let policy = compiled(objects);
    let mut descriptions: Vec<_> = policy
        .groups()
        .values()
        .map(|group| group.spec.description.as_str())
        .collect();
    descriptions.sort_unstable();
    assert_eq!(
        descriptions,
        [
            "pods */* in 10.0.1.0/24 with TCP http=80 | pods default/* with TCP http=80",
            "pods default/* with TCP http=8080",
        ]
    );
}

#[test]
fn what_a_number_allows_is_joined_with_what_a_name_allows() {
    let rules = vec![
        rule(&[pods("app=web")], &[named(Tcp, "http")]),
        rule(&[pods("app=db")], &[span(Tcp, 79, 81)]),
    ];
    let mut objects = world();
    objects.push(policy(
        "default",
        "p",
        "app=client",
        None,
        Some(rules.clone()),
    ));
    let both = compiled(objects);
    let allows = |policy: &NodePolicy, to, port| {
        policy.allows(Egress, ip(CLIENT), ip(to), Some((Tcp, port)))
    };
    assert!(allows(&both, WEB, 80) && !allows(&both, WEB, 81));
    assert!(allows(&both, DB, 79) && allows(&both, DB, 80) && !allows(&both, DB, 8080));
    let class = both.classes().values().next().expect("one class");
    assert_eq!(class.ports.len(), 3);
}

#[test]
fn a_name_adds_nothing_to_a_block_that_is_allowed_anyway() {
    let run = |rules: Vec<_>| {
        let mut objects = world();
        objects.push(policy("default", "p", "app=client", None, Some(rules)));
        compiled(objects)
    };
    let anyway = rule(&[block("10.0.0.0/24", &[])], &[]);
    let by_name = rule(&[block("10.0.0.0/25", &[])], &[named(Tcp, "http")]);
    assert_eq!(run(vec![anyway.clone(), by_name]), run(vec![anyway]));
    let halves = [block("10.0.0.0/30", &[]), block("10.0.0.4/30", &[])];
    let whole = run(vec![rule(
        &[block("10.0.0.0/29", &[])],
        &[named(Tcp, "http")],
    )]);
    let mut with_both = world();
    with_both.push(with_ports(
        pod("other", "x", "", "", "10.0.0.5"),
        &[("http", Tcp, 80)],
    ));
    with_both.push(with_ports(
        pod("other", "y", "", "", "10.0.0.6"),
        &[("http", Tcp, 8080)],
    ));
    let of = |peers: &[Peer]| {
        let rules = vec![rule(peers, &[named(Tcp, "http")])];
        let policy = policy("default", "p", "app=client", None, Some(rules));
        compiled(with_both.iter().cloned().chain([policy]).collect())
    };
    assert_eq!(of(&halves), of(&[block("10.0.0.0/29", &[])]));
    assert_ne!(whole, of(&halves), "x and y are members now");
}
