//! Plans where an address passes from one workload to another. Its connections are flushed after all chains that keep
//! them are gone, and before any chain that keeps them comes.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use sallyport_enforcer::{
    plan::{self, Installed, Limits, Plan},
    table::render::Options,
};
use sallyport_nft::command::{Command, Element, Match, Verdict};
use sallyport_policy::{
    Class, Direction, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, PortRule, Position,
    Protocol, Ranges, Revision, Window,
};

const LIMITS: Limits = Limits { batch: 1 << 20 };

fn options(strict: bool) -> Options {
    Options {
        strict,
        workload_ranges: Ranges::EMPTY,
        ..Options::default()
    }
}

fn address(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

/// A policy of these endpoints: address, name, and whether its class keeps established connections; `None` for no
/// class.
fn policy(endpoints: &[(u8, &str, Option<bool>)]) -> NodePolicy {
    let mut policy = NodePolicy::default();
    policy.set_workload_ranges(Arc::new(Ranges::span(address(0), address(9)).unwrap()));
    let group = GroupId::of(["peers"], &Ranges::EMPTY);
    for &(n, name, keep_established) in endpoints {
        let class = keep_established.map(|keep_established| {
            policy.set_group(
                group,
                Arc::new(PeerGroup::new("peers".into(), Ranges::EMPTY)),
            );
            let class = Class {
                direction: Direction::Ingress,
                keep_established,
                other: None,
                ports: vec![PortRule {
                    protocol: Protocol::Tcp,
                    first: 80,
                    last: 80,
                    group,
                }],
            };
            let id = class.id();
            policy.add_class(id, Arc::new(class));
            id
        });
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: name.into(),
            ingress: class,
            ..Endpoint::default()
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    policy
}

fn installed(policy: &NodePolicy, strict: bool) -> Installed {
    updated(&Installed::default(), policy, 1, strict)
}

fn updated(before: &Installed, policy: &NodePolicy, revision: u64, strict: bool) -> Installed {
    let window = Window::alone(position(policy, revision), policy.clone());
    before.updated(window, &options(strict).unknown())
}

fn position(policy: &NodePolicy, revision: u64) -> Position {
    Position {
        epoch: Epoch(1),
        revision: Revision(revision),
        digest: policy.digest(),
    }
}

fn update(old: &NodePolicy, new: &NodePolicy, strict: bool) -> Plan {
    let before = installed(old, strict);
    let after = updated(&before, new, 2, strict);
    plan::update(&before, &after, &options(strict), LIMITS)
}

/// Reads the commands that make a table: which chains keep connections, and which chain judges packets to an address.
#[derive(Default)]
struct Reader {
    keeping: BTreeSet<String>,
    ingress: Option<String>,
}

impl Reader {
    fn read(&mut self, address: IpAddr, commands: &[Command]) {
        for command in commands {
            match command {
                Command::AddRule(chain, rule) if rule.matches == [Match::Established] => {
                    self.keeping.insert(chain.clone());
                }
                Command::AddElements(map, _, elements) if map == "ingress4" => {
                    for element in elements {
                        if let Element::Verdict(of, verdict, _) = element
                            && *of == address
                        {
                            self.ingress = match verdict {
                                Verdict::Goto(chain) => Some(chain.clone()),
                                _ => None,
                            };
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn keeps(&self) -> bool {
        self.ingress
            .as_ref()
            .is_some_and(|chain| self.keeping.contains(chain))
    }
}

#[test]
fn an_address_that_changes_hands_keeps_nothing_until_its_connections_are_flushed() {
    let is_kept = [None, Some(false), Some(true)];
    for (before, after) in is_kept.into_iter().flat_map(|a| is_kept.map(|b| (a, b))) {
        for strict in [true, false] {
            let old = policy(&[(1, "one", before), (2, "stays", Some(true))]);
            let new = policy(&[(1, "other", after), (2, "stays", Some(true))]);
            let mut reader = Reader::default();
            let made = plan::create(&installed(&old, strict), &options(strict), LIMITS);
            made.steps
                .iter()
                .for_each(|step| reader.read(address(1), &step.commands));
            assert_eq!(reader.keeps(), before == Some(true));
            let mut flushed = 0;
            for step in &update(&old, &new, strict).steps {
                if !step.flush.is_empty() {
                    assert_eq!(step.flush, BTreeSet::from([address(1)]));
                    assert!(!reader.keeps(), "{before:?} {after:?}: kept while flushed");
                    flushed += 1;
                }
                let kept = reader.keeps();
                reader.read(address(1), &step.commands);
                assert!(
                    kept || !reader.keeps() || flushed > 0,
                    "{before:?} {after:?}: kept too early"
                );
            }
            assert_eq!(flushed, 1, "{before:?} {after:?}");
            assert_eq!(reader.keeps(), after == Some(true));
        }
    }
}

#[test]
fn nothing_is_flushed_of_an_address_that_stays_somebodys() {
    for (before, after) in [
        (None, Some(true)),
        (Some(true), Some(false)),
        (Some(true), None),
    ] {
        let (old, new) = (policy(&[(1, "one", before)]), policy(&[(1, "one", after)]));
        let plan = update(&old, &new, true);
        assert!(plan.steps.iter().all(|step| step.flush.is_empty()));
    }
}

#[test]
fn who_is_gone_is_remembered_until_the_address_is_somebodys_again() {
    let (one, two) = (policy(&[(1, "one", None)]), policy(&[(2, "two", None)]));
    let first = installed(&one, true);
    assert!(first.departed.is_empty() && first.inherited(&two).is_empty());
    let second = updated(&first, &two, 2, true);
    assert_eq!(second.departed.keys().collect::<Vec<_>>(), [&address(1)]);
    let both = policy(&[(1, "heir", Some(true)), (2, "two", None), (3, "new", None)]);
    assert_eq!(second.inherited(&both), BTreeSet::from([address(1)]));
    let third = updated(&second, &both, 3, true);
    assert!(third.departed.is_empty());
    let again = policy(&[(1, "one", Some(true)), (2, "two", None)]);
    assert!(
        second.inherited(&again).is_empty(),
        "the same workload's object was put again"
    );
}

#[test]
fn another_uid_is_another_heir() {
    let with_uid = |uid: &str| {
        let mut policy = policy(&[(1, "one", None)]);
        let mut endpoint = Endpoint::clone(&policy.endpoints()[&address(1)]);
        endpoint.uid = uid.into();
        policy.set_endpoint(address(1), Arc::new(endpoint));
        policy
    };
    let first = installed(&with_uid("a"), true);
    let gone = updated(&first, &policy(&[]), 2, true);
    for (uid, is_heir) in [("a", false), ("b", true), ("", false)] {
        let inherited = gone.inherited(&with_uid(uid));
        assert_eq!(!inherited.is_empty(), is_heir, "{uid}");
        let handed_over = plan::handed_over(&with_uid("a"), &with_uid(uid));
        assert_eq!(!handed_over.is_empty(), is_heir, "{uid}");
    }
}

/// The table does not say behind which interface an endpoint is.
#[test]
fn another_interface_is_no_other_workload_and_changes_no_element() {
    let behind = |interface: &str, keep_established| {
        let mut policy = policy(&[(1, "one", keep_established), (2, "two", Some(true))]);
        let mut endpoint = Endpoint::clone(&policy.endpoints()[&address(1)]);
        endpoint.interface = interface.into();
        policy.set_endpoint(address(1), Arc::new(endpoint));
        policy
    };
    for strict in [true, false] {
        for keep_established in [None, Some(false), Some(true)] {
            let stamp_alone = update(
                &behind("a", keep_established),
                &behind("a", keep_established),
                strict,
            );
            for (old, new) in [("", "a"), ("a", "b"), ("a", "")] {
                let (old, new) = (behind(old, keep_established), behind(new, keep_established));
                assert_ne!(old.digest(), new.digest());
                assert!(plan::handed_over(&old, &new).is_empty());
                let plan = update(&old, &new, strict);
                assert_eq!(plan.steps.len(), 1);
                let step = &plan.steps[0];
                assert_eq!(step.commands.len(), stamp_alone.steps[0].commands.len());
                assert!(!step.grace && step.flush.is_empty() && step.review.is_none());
                assert!(plan.reach.is_empty());
                assert_eq!(plan.garbage, stamp_alone.garbage);
                assert_eq!(plan.after.policy, new);
            }
        }
    }
    let first = installed(&behind("a", None), true);
    let gone = updated(&first, &policy(&[(2, "two", Some(true))]), 2, true);
    assert!(gone.inherited(&behind("b", None)).is_empty());
}
