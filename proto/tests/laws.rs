//! The laws of the algebra, over random pairs of policies: apply(diff) is identity, the wire loses nothing, and the
//! meet is exactly what both allow.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of a test are small"
)]
#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

use std::{net::IpAddr, sync::Arc};

use proptest::{collection::vec, option, prelude::*, sample::select};
use sallyport_policy::{
    Change, Class, ClassId, Delta, DeltaError, Digest, Direction, Effect, Endpoint, Epoch, GroupId,
    NodePolicy, Owner, PeerGroup, PortRule, Position, Protocol, Ranges, Revision, Source,
    UnknownAddresses, Update, Version, Window,
};
use sallyport_proto::wire;

const ADDRESSES: u8 = 8;

fn address(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

/// A policy over a small universe, so that two of them share much.
#[derive(Clone, Debug)]
struct Recipe {
    groups: Vec<Vec<u8>>,
    workloads: (u8, u8),
    endpoints: Vec<(u8, Named, Option<Choice>, Option<Choice>)>,
    sources: Vec<Claim>,
}

/// The number of a workload, its uid, and its interface.
type Named = (u8, &'static str, &'static str);

/// Addresses that some workloads claim, by number, and their classes: ingress, egress.
type Claim = (Vec<u8>, (u8, u8), Option<Choice>, Option<Choice>);

/// The number of a class, and whether it keeps.
type Choice = (u8, bool);

/// Class number `n` is the same class in every policy; so is group number `n`, but for its members.
fn class((n, keep_established): Choice, direction: Direction) -> Class {
    let group = |n: u8| group_id(n % 4);
    let rule = |protocol, first, last, group| PortRule {
        protocol,
        first,
        last,
        group,
    };
    let ports = match n % 6 {
        0 => vec![],
        1 => vec![rule(Protocol::Tcp, 80, 80, group(n))],
        2 => vec![
            rule(Protocol::Tcp, 0, 79, group(0)),
            rule(Protocol::Tcp, 80, 80, group(1)),
            rule(Protocol::Tcp, 81, u16::MAX, group(0)),
        ],
        3 => vec![
            rule(Protocol::Tcp, 70, 90, group(2)),
            rule(Protocol::Udp, 53, 53, group(3)),
        ],
        4 => vec![rule(Protocol::Udp, 0, u16::MAX, group(1))],
        _ => vec![rule(Protocol::Tcp, 80, 81, group(3))],
    };
    Class {
        direction,
        keep_established,
        other: (n.is_multiple_of(2)).then(|| group(n / 2)),
        ports,
    }
}

fn spec(n: u8) -> (String, Ranges) {
    let ranges = match n {
        2 => Ranges::span(address(2), address(4)).unwrap(),
        3 => Ranges::span(address(0), address(1)).unwrap(),
        _ => Ranges::EMPTY,
    };
    (format!("group {n}"), ranges)
}

fn group_id(n: u8) -> GroupId {
    let (description, ranges) = spec(n);
    GroupId::of([description.as_str()], &ranges)
}

fn build(recipe: &Recipe) -> NodePolicy {
    let mut policy = NodePolicy::default();
    policy.set_workload_ranges(Arc::new(
        Ranges::span(address(recipe.workloads.0), address(recipe.workloads.1)).unwrap(),
    ));
    for (n, members) in recipe.groups.iter().enumerate() {
        let (description, ranges) = spec(n as u8);
        let mut group = PeerGroup::new(description, ranges);
        group.addresses = members.iter().map(|&n| address(n)).collect();
        policy.set_group(group_id(n as u8), Arc::new(group));
    }
    let add = |policy: &mut NodePolicy, choice: Option<Choice>, direction| -> Option<ClassId> {
        let class = class(choice?, direction);
        let id = class.id();
        policy.add_class(id, Arc::new(class));
        Some(id)
    };
    for &(n, (owner, uid, interface), ingress, egress) in &recipe.endpoints {
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{owner}"),
            uid: uid.into(),
            interface: interface.into(),
            ingress: add(&mut policy, ingress, Direction::Ingress),
            egress: add(&mut policy, egress, Direction::Egress),
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    let (mut sources, mut claimed) = (Vec::new(), Ranges::EMPTY);
    for (owners, (first, more), ingress, egress) in &recipe.sources {
        let owner = |n: &u8| Owner {
            namespace: "default".into(),
            name: format!("pod-{n}"),
        };
        let all = Ranges::span(address(*first), address(first + more)).unwrap();
        sources.push(Source {
            owners: owners.iter().map(owner).collect(),
            others: Vec::new(),
            ingress: add(&mut policy, *ingress, Direction::Ingress),
            egress: add(&mut policy, *egress, Direction::Egress),
            ranges: all.difference(&claimed),
        });
        claimed = claimed.union(&all);
    }
    policy.set_sources(Arc::new(Source::canonical(sources)));
    let sources = policy.sources().iter();
    let used: std::collections::BTreeSet<ClassId> = policy
        .endpoints()
        .values()
        .map(|endpoint| [endpoint.ingress, endpoint.egress])
        .chain(sources.map(|source| [source.ingress, source.egress]))
        .flatten()
        .flatten()
        .collect();
    let unused: Vec<ClassId> = policy
        .classes()
        .keys()
        .copied()
        .filter(|id| !used.contains(id))
        .collect();
    for id in unused {
        policy.remove_class(id);
    }
    policy
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let choice = || option::of((0..6u8, any::<bool>()));
    let owner = (
        0..2u8,
        select(vec!["", "u", "v"]),
        select(vec!["", "veth", "u"]),
    );
    let endpoint = (0..ADDRESSES, owner, choice(), choice());
    let members = vec(vec(0..ADDRESSES, 0..5), 4);
    let owners = select(vec![vec![0], vec![1], vec![0, 1]]);
    let claim = (owners, (0..ADDRESSES, 0..4u8), choice(), choice());
    let workloads = (0..4u8, 4..ADDRESSES);
    (members, workloads, vec(endpoint, 0..6), vec(claim, 0..3)).prop_map(
        |(groups, workloads, endpoints, sources)| Recipe {
            groups,
            workloads,
            endpoints,
            sources,
        },
    )
}

type Flow = (Direction, IpAddr, IpAddr, Option<(Protocol, u16)>);

fn flows() -> impl Iterator<Item = Flow> {
    let ports = [None]
        .into_iter()
        .chain([0, 53, 75, 80, 81, u16::MAX].into_iter().flat_map(|port| {
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Some((protocol, port)))
        }))
        .collect::<Vec<_>>();
    Direction::BOTH.into_iter().flat_map(move |direction| {
        let ports = ports.clone();
        (0..ADDRESSES).flat_map(move |local| {
            let ports = ports.clone();
            (0..ADDRESSES).flat_map(move |peer| {
                ports
                    .clone()
                    .into_iter()
                    .map(move |port| (direction, address(local), address(peer), port))
            })
        })
    })
}

/// A strict node knows of an address by itself.
fn unknown(strict: bool) -> UnknownAddresses {
    match strict {
        true => UnknownAddresses::Drop(Arc::new(Ranges::span(address(7), address(7)).unwrap())),
        false => UnknownAddresses::Allow,
    }
}

/// What the node does with a new connection: an address of the workload ranges that is no endpoint is dropped, or let
/// pass.
fn permits(
    policy: &NodePolicy,
    unknown: &UnknownAddresses,
    (direction, local, peer, port): Flow,
) -> bool {
    !drops(policy, unknown, local) && policy.allows(direction, local, peer, port)
}

/// What it does with a connection that is established.
fn permits_established(policy: &NodePolicy, unknown: &UnknownAddresses, flow: Flow) -> bool {
    let (direction, local, ..) = flow;
    permits(policy, unknown, flow)
        || !drops(policy, unknown, local) && policy.keeps(direction, local)
}

fn drops(policy: &NodePolicy, unknown: &UnknownAddresses, local: IpAddr) -> bool {
    let covered = match unknown {
        UnknownAddresses::Drop(also) => {
            policy.workload_ranges().contains(local) || also.contains(local)
        }
        UnknownAddresses::Allow => false,
    };
    let is_judged = policy.endpoints().contains_key(&local) || policy.source_of(local).is_some();
    covered && !is_judged
}

/// Whether an address changes its owner, or whether connections of it are kept, between two versions in both of which
/// it is isolated.
fn changes_mode(old: &NodePolicy, new: &NodePolicy, (direction, local, ..): Flow) -> bool {
    /// Whether it is in a source, whose it is, the uid, and whether there is a class.
    fn judged(
        policy: &NodePolicy,
        direction: Direction,
        local: IpAddr,
    ) -> Option<((bool, Vec<Owner>), String, bool)> {
        if let Some(endpoint) = policy.endpoints().get(&local) {
            let owner = Owner {
                namespace: endpoint.namespace.clone(),
                name: endpoint.name.clone(),
            };
            let is_isolated = endpoint.class(direction).is_some();
            return Some(((false, vec![owner]), endpoint.uid.clone(), is_isolated));
        }
        let source = policy.source_of(local)?;
        let is_isolated = source.class(direction).is_some();
        Some(((true, source.owners.clone()), String::new(), is_isolated))
    }
    let [before, after] = [old, new].map(|policy| judged(policy, direction, local));
    before.zip(after).is_some_and(|(before, after)| {
        let is_same = before.0 == after.0
            && (before.1.is_empty() || after.1.is_empty() || before.1 == after.1);
        let is_isolated = before.2 && after.2;
        !is_same || is_isolated && old.keeps(direction, local) != new.keeps(direction, local)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn applying_the_difference_gives_the_new_policy(old in recipe(), new in recipe()) {
        let (old, new) = (build(&old), build(&new));
        let delta = Delta::between(&old, &new);
        prop_assert_eq!(&old.applied(&delta, new.digest()).unwrap(), &new);
        prop_assert!(Delta::between(&new, &new).is_empty());
        prop_assert_eq!(old == new, delta.is_empty());
        prop_assert_eq!(old == new, old.digest() == new.digest());
    }

    #[test]
    fn a_snapshot_is_the_difference_from_nothing(policy in recipe()) {
        let policy = build(&policy);
        let snapshot = Delta::between(&NodePolicy::default(), &policy);
        prop_assert_eq!(&NodePolicy::default().applied(&snapshot, policy.digest()).unwrap(), &policy);
        prop_assert_eq!(NodePolicy::default().digest(), Digest::default());
    }

    #[test]
    fn the_wire_loses_nothing(old in recipe(), new in recipe()) {
        let delta = Delta::between(&build(&old), &build(&new));
        let wire = sallyport_proto::changes(&delta);
        prop_assert_eq!(sallyport_proto::delta(&wire).unwrap(), delta);
    }

    #[test]
    fn a_lost_or_repeated_change_is_noticed(old in recipe(), new in recipe(), pick in any::<prop::sample::Index>()) {
        let (old, new) = (build(&old), build(&new));
        let delta = Delta::between(&old, &new);
        prop_assume!(!delta.is_empty());
        let mut lost = delta.clone();
        lost.changes.remove(pick.index(delta.changes.len()));
        prop_assert!(old.applied(&lost, new.digest()).is_err());
        let mut twice = delta.clone();
        let change = twice.changes[pick.index(delta.changes.len())].clone();
        let idempotent = matches!(change, Change::SetEndpoint(..) | Change::WorkloadRanges(_) | Change::Sources(_));
        twice.changes.push(change);
        if !idempotent {
            prop_assert!(old.applied(&twice, new.digest()).is_err());
        }
    }

    #[test]
    fn the_meet_allows_exactly_what_both_allow(old in recipe(), new in recipe(), strict in any::<bool>()) {
        let unknown = &unknown(strict);
        let (old, new) = (build(&old), build(&new));
        let meet = old.meet(&new, unknown);
        for flow in flows() {
            let both = permits(&old, unknown, flow) && permits(&new, unknown, flow);
            prop_assert_eq!(permits(&meet, unknown, flow), both, "{:?}", flow);
            // What is established passes where both let it pass; and no more than a new one while the mode changes.
            let established = match changes_mode(&old, &new, flow) {
                true => both,
                false => permits_established(&old, unknown, flow) && permits_established(&new, unknown, flow),
            };
            prop_assert_eq!(permits_established(&meet, unknown, flow), established, "established {:?}", flow);
        }
        // Every reference holds, and both halves are ordinary differences.
        let revoke = Delta::between(&old, &meet);
        let grant = Delta::between(&meet, &new);
        prop_assert_eq!(&old.applied(&revoke, meet.digest()).unwrap(), &meet);
        prop_assert_eq!(&meet.applied(&grant, new.digest()).unwrap(), &new);
    }

    /// So the way from a version to the meet is one of revokes alone, and from the meet on one of grants alone.
    #[test]
    fn the_meet_with_what_allows_less_means_that(old in recipe(), new in recipe(), strict in any::<bool>()) {
        let unknown = &unknown(strict);
        let (old, new) = (build(&old), build(&new));
        let meet = old.meet(&new, unknown);
        let (again, once_more) = (old.meet(&meet, unknown), meet.meet(&new, unknown));
        for flow in flows() {
            let permitted = permits(&meet, unknown, flow);
            prop_assert_eq!(permits(&again, unknown, flow), permitted, "{:?}", flow);
            prop_assert_eq!(permits(&once_more, unknown, flow), permitted, "{:?}", flow);
        }
    }

    /// The effect of a change never claims too little.
    #[test]
    fn the_ways_of_a_change_are_told(old in recipe(), new in recipe(), strict in any::<bool>()) {
        let unknown = &unknown(strict);
        let (old, new) = (build(&old), build(&new));
        let effect = old.effect_of_change(&new, unknown);
        for flow in flows() {
            let (before, after) = (permits(&old, unknown, flow), permits(&new, unknown, flow));
            prop_assert!(effect.revokes || !before || after, "{:?} is revoked", flow);
            prop_assert!(effect.grants || before || !after, "{:?} is granted", flow);
        }
    }

    /// What is told at a glance of versions that share all but members is what the meet would tell.
    #[test]
    fn the_ways_of_members_are_those_of_any_change(
        old in recipe(), members in vec((0..4u8, 0..ADDRESSES, any::<bool>()), 0..6), strict in any::<bool>(),
    ) {
        let unknown = &unknown(strict);
        let old = build(&old);
        let mut new = old.clone();
        for (group, n, add) in members {
            match add {
                true => new.add_address(group_id(group), address(n)),
                false => new.remove_address(group_id(group), address(n)),
            };
        }
        // A copy that shares nothing.
        let delta = Delta::between(&NodePolicy::default(), &new);
        let copy = NodePolicy::default().applied(&delta, new.digest()).unwrap();
        prop_assert_eq!(old.effect_of_change(&new, unknown), old.effect_of_change(&copy, unknown));
    }

    /// A node that holds several versions enforces what all of them allow, whichever way it came to hold them.
    #[test]
    fn a_window_enforces_what_all_its_versions_allow(
        recipes in vec(recipe(), 2..4), strict in any::<bool>(),
    ) {
        let unknown = &unknown(strict);
        let versions: Vec<Version> = (1..).zip(&recipes).map(|(revision, recipe)| {
            let policy = Arc::new(build(recipe));
            let position = Position { epoch: Epoch(1), revision: Revision(revision), digest: policy.digest() };
            Version { position, policy }
        }).collect();
        let mut window = Window::default();
        for version in &versions {
            let base = window.newest().cloned();
            let from = base.as_ref().map_or_else(Arc::default, |base| base.policy.clone());
            let update = Update {
                base: base.map(|base| base.position),
                target: version.position,
                keep: window.positions(),
                delta: Delta::between(&from, &version.policy),
            };
            window = window.updated(&update).unwrap();
        }
        prop_assert_eq!(window.versions(), &versions[..]);
        let enforced = window.enforced(unknown);
        for flow in flows() {
            let all = versions.iter().all(|version| permits(&version.policy, unknown, flow));
            prop_assert_eq!(permits(&enforced, unknown, flow), all, "{:?}", flow);
        }
        let newest = versions.last().unwrap();
        let release = Update {
            base: Some(newest.position), target: newest.position, keep: vec![], delta: Delta::default(),
        };
        prop_assert_eq!(&window.updated(&release).unwrap().enforced(unknown), &*newest.policy);
    }

    /// An endpoint of several versions is behind the interface that the newest of these says.
    #[test]
    fn the_newest_version_says_the_interface(recipes in vec(recipe(), 1..4), strict in any::<bool>()) {
        let policies: Vec<NodePolicy> = recipes.iter().map(build).collect();
        let versions = (1..).zip(&policies).map(|(revision, policy)| {
            let position = Position { epoch: Epoch(1), revision: Revision(revision), digest: policy.digest() };
            Version { position, policy: Arc::new(policy.clone()) }
        });
        for (address, endpoint) in Window::new(versions).enforced(&unknown(strict)).endpoints() {
            let mut newest = policies.iter().rev().filter_map(|policy| policy.endpoints().get(address));
            let newest = newest.next().expect("an endpoint of some version");
            prop_assert_eq!(&endpoint.interface, &newest.interface);
        }
    }

    /// An edit of interfaces goes no way, whatever the classes are: no flow passes or is denied by it.
    #[test]
    fn an_interface_goes_no_way(
        old in recipe(), interfaces in vec(select(vec!["", "veth", "w"]), ADDRESSES as usize), strict in any::<bool>(),
    ) {
        let old = build(&old);
        let mut new = old.clone();
        for (n, interface) in (0..).zip(interfaces) {
            if let Some(endpoint) = old.endpoints().get(&address(n)) {
                let endpoint = Endpoint { interface: interface.into(), ..Endpoint::clone(endpoint) };
                new.set_endpoint(address(n), Arc::new(endpoint));
            }
        }
        let unknown = &unknown(strict);
        prop_assert_eq!(old.effect_of_change(&new, unknown), Effect::default());
        prop_assert_eq!(&old.meet(&new, unknown), &new);
        prop_assert_eq!(old == new, old.digest() == new.digest());
    }

    /// What lets a node change groups in place: between the versions a group only loses members, then only gains.
    #[test]
    fn groups_lose_members_first_and_gain_them_afterwards(old in recipe(), new in recipe()) {
        let (old, new) = (build(&old), build(&new));
        let meet = old.meet(&new, &UnknownAddresses::drop());
        for (id, group) in meet.groups() {
            if let Some(before) = old.groups().get(id) {
                prop_assert!(group.addresses.is_subset(&before.addresses));
            }
            if let Some(after) = new.groups().get(id) {
                prop_assert!(group.addresses.is_subset(&after.addresses));
            }
        }
    }
}

/// Of edits that go one way it is told which, however they are spelt.
#[test]
fn the_way_of_a_plain_edit_is_told_exactly() {
    let recipe = |members: [&[u8]; 4], ingress| Recipe {
        groups: members.map(<[u8]>::to_vec).to_vec(),
        workloads: (0, 7),
        endpoints: vec![
            (0, (0, "", ""), ingress, None),
            (1, (0, "", ""), None, None),
        ],
        sources: vec![],
    };
    let two: [&[u8]; 4] = [&[], &[2], &[], &[]];
    let (free, few) = (recipe(two, None), recipe(two, Some((1, false))));
    let (more, other) = (
        recipe([&[], &[2, 3], &[], &[]], Some((1, false))),
        recipe([&[], &[4], &[], &[]], Some((1, false))),
    );
    let mut with_pod = few.clone();
    with_pod
        .endpoints
        .push((5, (0, "", ""), Some((1, false)), Some((0, false))));
    let way = |old: &Recipe, new: &Recipe| {
        let effect = build(old).effect_of_change(&build(new), &UnknownAddresses::drop());
        (effect.revokes, effect.grants)
    };
    for (less, much, what) in [
        (&few, &free, "a policy"),
        (&few, &more, "a member"),
        (&few, &with_pod, "a pod"),
    ] {
        assert_eq!(way(much, less), (true, false), "{what}");
        assert_eq!(way(less, much), (false, true), "{what}");
    }
    assert_eq!(way(&few, &other), (true, true));
    assert_eq!(way(&few, &few), (false, false));
}

#[test]
fn a_policy_that_names_what_is_not_there_is_refused() {
    let class = Arc::new(class((1, false), Direction::Ingress));
    let delta = Delta {
        changes: vec![Change::AddClass(class)],
    };
    let error = NodePolicy::default().applied(&delta, Digest::default());
    assert!(matches!(error, Err(DeltaError::Dangling(_))), "{error:?}");
}

/// Journals hold classes by their ids: one that does not keep has the id that it had before classes could.
#[test]
fn keeping_is_part_of_a_class_and_absent_from_old_messages() {
    let recheck = class((1, false), Direction::Ingress);
    let keep = class((1, true), Direction::Ingress);
    assert_ne!(recheck.id(), keep.id());
    assert_eq!(recheck.id().to_string(), "7e037d0359ae6b3cf0246aee8df67ad3");
    let mut message = wire::Class::from(&recheck);
    assert!(!message.keep, "the field is not on the wire");
    assert_eq!(Class::try_from(&message), Ok(recheck));
    message.keep = true;
    let error = Class::try_from(&message).unwrap_err().to_string();
    assert!(error.contains("is not the hash of the class"), "{error}");
}

/// A version that does not know the uid of a workload does not hide that the one before and the one after are of two.
#[test]
fn an_unknown_uid_between_two_hides_no_change_of_owner() {
    let versions = (1..).zip(["u", "", "v"]).map(|(revision, uid)| {
        let recipe = Recipe {
            groups: vec![vec![]; 4],
            workloads: (0, 7),
            endpoints: vec![(1, (0, uid, ""), Some((1, true)), None)],
            sources: vec![],
        };
        let policy = Arc::new(build(&recipe));
        let position = Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: policy.digest(),
        };
        Version { position, policy }
    });
    let versions: Vec<Version> = versions.collect();
    let keeps = |versions: &[Version]| {
        let enforced = Window::new(versions.iter().cloned()).enforced(&UnknownAddresses::drop());
        enforced.keeps(Direction::Ingress, address(1))
    };
    assert!(keeps(&versions[..2]) && keeps(&versions[1..]));
    assert!(!keeps(&versions));
}

/// What a node is told is looked at, and what an earlier control plane does not tell is not there.
#[test]
fn interfaces_that_the_kernel_cannot_have_are_refused() {
    let endpoint = Arc::new(Endpoint::default());
    let delta = Delta {
        changes: vec![Change::SetEndpoint(address(1), endpoint)],
    };
    let told = |interface: &str| {
        let mut changes = sallyport_proto::changes(&delta);
        if let Some(wire::policy_change::Change::SetEndpoint(endpoint)) = &mut changes[0].change {
            assert_eq!(endpoint.interface, "", "the field is not on the wire");
            endpoint.interface = interface.into();
        }
        let delta = sallyport_proto::delta(&changes).map_err(|error| error.to_string())?;
        match &delta.changes[0] {
            Change::SetEndpoint(_, endpoint) => Ok(endpoint.interface.clone()),
            other => Err(format!("{other:?}")),
        }
    };
    for name in ["", "veth-web", "fifteen-bytes-x"] {
        assert_eq!(told(name), Ok(name.to_owned()));
    }
    for (name, fault) in [
        ("sixteen-bytes-xx", "must be no more than 15 bytes"),
        ("..", "may not be '..'"),
        ("a b", "may not contain white space"),
        ("a:0", "may not contain ':'"),
    ] {
        let told = told(name).unwrap_err();
        let expected = format!("malformed message: endpoint.interface: {name:?} {fault}");
        assert_eq!(told, expected);
    }
}

/// Endpoints that go from one class to the same other cost one class, not one each.
#[test]
fn the_meet_costs_what_its_classes_cost() {
    let rules = 1_500u16;
    let policy = |endpoints: u16, shift: u8| {
        let mut policy = NodePolicy::default();
        let groups: Vec<GroupId> = (0..4).map(group_id).collect();
        for (n, &id) in (0..).zip(&groups) {
            let (description, ranges) = spec(n);
            let mut group = PeerGroup::new(description, ranges);
            group.addresses = [address(n), address(n + shift)].into_iter().collect();
            policy.set_group(id, Arc::new(group));
        }
        let rule = |n: u16| PortRule {
            protocol: Protocol::Tcp,
            first: n * 40,
            last: n * 40 + 20 + u16::from(shift),
            group: groups[usize::from(n + u16::from(shift)) % groups.len()],
        };
        let class = Class {
            direction: Direction::Ingress,
            keep_established: false,
            other: None,
            ports: (0..rules).map(rule).collect(),
        };
        let id = class.id();
        policy.add_class(id, Arc::new(class));
        for n in 0..endpoints {
            let endpoint = Endpoint {
                namespace: "default".into(),
                name: format!("pod-{n}"),
                ingress: Some(id),
                ..Endpoint::default()
            };
            let [high, low] = n.to_be_bytes();
            policy.set_endpoint([10, 1, high, low].into(), Arc::new(endpoint));
        }
        policy
    };
    let took = |endpoints| {
        let (old, new) = (policy(endpoints, 1), policy(endpoints, 2));
        let started = std::time::Instant::now();
        let meet = old.meet(&new, &UnknownAddresses::drop());
        assert_eq!(meet.endpoints().len(), usize::from(endpoints));
        started.elapsed()
    };
    let (few, many) = (took(30), took(3_000));
    // Without that it is a hundred times as much.
    assert!(many < 20 * few, "{many:?} for 3,000 and {few:?} for 30");
}
