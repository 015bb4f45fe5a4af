//! Groups that stay gain their first member of a family, or lose their last one. Meanwhile a node holds several
//! versions, and its enforcer dies now and then.

use std::{cell::Cell, collections::BTreeSet, sync::Arc};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_enforcer::{
    plan::{Installed, Plan, Step},
    table::{INET, families::Families, names, render::Options},
};
use sallyport_nft::command::{Command, SetKind};
use sallyport_policy::{Class, Direction, Endpoint, GroupId, NodePolicy, PeerGroup, Ranges};

use crate::{
    cases, for_all,
    mutants::Mutant,
    policies::{address, random_edit},
    world,
    world::{Checked, Violation, World},
};

/// The number of groups that stay and gain a family in an update, and of those that lose one.
fn gained_and_lost(before: &Installed, after: &Installed) -> (usize, usize) {
    let changes = |(id, group): (&GroupId, &Arc<PeerGroup>)| {
        let now = after.policy.groups().get(id)?;
        let (was, is) = (Families::of(group), Families::of(now));
        let some = |families: Families| usize::from(families != Families::default());
        Some((some(is.without(was)), some(was.without(is))))
    };
    let changes = before.policy.groups().iter().filter_map(changes);
    changes.fold((0, 0), |(gained, lost), (more, less)| {
        (gained + more, lost + less)
    })
}

#[test]
fn families_that_come_and_go_open_nothing_and_break_nothing() {
    let [gained, lost, windows] = [const { Cell::new(0) }; 3];
    for_all(|rng, world| {
        let mut held = vec![world.first.clone()];
        for _ in 0..4 {
            if held.len() > 1 && rng.random_bool(0.4) {
                held.drain(..rng.random_range(1..held.len()));
            } else {
                let newest = held.last().expect("one is held");
                held.push(random_edit(rng, newest));
            }
            let before = world.installed.clone();
            match rng.random_bool(0.5) {
                true => world.update_with_a_crash(&held, rng)?,
                false => world.update(world.plan_window(&held))?,
            }
            let (more, less) = gained_and_lost(&before, &world.installed);
            gained.update(|all| all + more);
            lost.update(|all| all + less);
            windows.update(|all| all + usize::from(held.len() > 1));
            // A later update may need again what an earlier one leaves behind.
            if rng.random_bool(0.4) {
                world.drain()?;
                world.clean()?;
            }
        }
        world.drain()?;
        world.clean()
    });
    let enough = cases() as usize / 2;
    let (gained, lost, windows) = (gained.get(), lost.get(), windows.get());
    assert!(
        gained > enough && lost > enough && windows > enough,
        "{gained} gained, {lost} lost, {windows} windows are no test"
    );
}

/// The check that finds a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finder {
    /// A packet that is dropped though every version allows it.
    Packet,
    /// The kernel, which refuses a batch.
    Kernel,
    /// The content that is left when all garbage is deleted.
    Content,
}

const MUTANTS: [(Mutant, Finder); 6] = [
    (
        ("no rule looks into a set that is gained", |plan| {
            rules_moved(plan, Rules::Gaining, To::Nowhere)
        }),
        Finder::Packet,
    ),
    (
        ("rules look into a set after all is granted", |plan| {
            rules_moved(plan, Rules::Gaining, To::AfterElements)
        }),
        Finder::Packet,
    ),
    (
        ("rules look into no set before its members go", |plan| {
            rules_moved(plan, Rules::Losing, To::BeforeElements)
        }),
        Finder::Packet,
    ),
    (
        ("rules go on to look into a set that is garbage", |plan| {
            rules_moved(plan, Rules::Losing, To::Nowhere)
        }),
        Finder::Kernel,
    ),
    (
        ("a set that is gained is not made", gained_set_not_made),
        Finder::Kernel,
    ),
    (
        ("a set that is lost is no garbage", lost_set_kept),
        Finder::Content,
    ),
];

#[test]
fn mistakes_with_families_are_found() {
    for ((name, mutant), finder) in MUTANTS {
        let law = |seed| -> Checked {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut world = world(&mut rng, seed);
            let plan = mutant(world.plan(&random_edit(&mut rng, &world.installed.policy)));
            world.commit_steps(&plan, 0..plan.steps.len())?;
            world.done(plan);
            world.drain()?;
            world.clean()
        };
        let found = (0..10 * cases()).find(|&seed| {
            let by = match law(seed) {
                Ok(()) => return false,
                Err(Violation::Lost(_)) => Finder::Packet,
                Err(Violation::Refused(_)) => Finder::Kernel,
                Err(Violation::Untidy(_)) => Finder::Content,
                Err(violation) => panic!("{name}: seed {seed}: {violation}"),
            };
            assert_eq!(by, finder, "{name}: seed {seed}");
            true
        });
        let found = found.unwrap_or_else(|| panic!("{name}: not found in {} cases", 10 * cases()));
        println!("{name}: found in case {found}");
    }
}

/// The chains of groups that are there before the update and get other rules in it.
fn replaced(plan: &Plan) -> BTreeSet<String> {
    let commands = || plan.steps.iter().flat_map(|step| &step.commands);
    let made: BTreeSet<&String> = commands()
        .filter_map(|command| match command {
            Command::AddChain { name, .. } => Some(name),
            _ => None,
        })
        .collect();
    let flushed = commands().filter_map(|command| match command {
        Command::FlushChain(name) => Some(name),
        _ => None,
    });
    flushed
        .filter(|name| name.starts_with("from_") || name.starts_with("to_"))
        .filter(|name| !made.contains(name))
        .cloned()
        .collect()
}

/// A selection of the new rules of groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// The rules of groups that gain a family.
    Gaining,
    /// The rules of groups that lose one.
    Losing,
}

/// The place that rules are moved to.
#[derive(Clone, Copy)]
enum To {
    Nowhere,
    BeforeElements,
    AfterElements,
}

/// Moves new rules of groups to another place in the plan.
fn rules_moved(mut plan: Plan, rules: Rules, to: To) -> Plan {
    let chains = replaced(&plan);
    let made: BTreeSet<String> = plan
        .steps
        .iter()
        .flat_map(|step| &step.commands)
        .filter_map(set_made)
        .collect();
    let changes = |step: &Step| {
        step.commands.iter().any(|command| match command {
            Command::AddElements(set, kind, _) | Command::DeleteElements(set, kind, _) => {
                *kind != SetKind::Numbers && !made.contains(set)
            }
            _ => false,
        })
    };
    // Rules look into sets that the update makes, too.
    let makes = |step: &Step| {
        step.commands
            .iter()
            .any(|command| set_made(command).is_some())
    };
    let prepared = plan.steps.iter().rposition(makes).map_or(0, |at| at + 1);
    let first = plan.steps.iter().position(changes).unwrap_or(0);
    let first = first.max(prepared);
    let last = plan.steps.iter().rposition(changes).unwrap_or(0);
    let is_of = |command: &mut Command| match command {
        Command::FlushChain(name) | Command::AddRule(name, _) => chains.contains(name),
        _ => false,
    };
    let mut taken = Vec::new();
    for (at, step) in plan.steps.iter_mut().enumerate() {
        if (at <= last) == (rules == Rules::Gaining) {
            taken.extend(step.commands.extract_if(.., is_of));
        }
    }
    let to = match to {
        To::Nowhere => return plan,
        To::BeforeElements => first,
        To::AfterElements => last + 1,
    };
    let step = Step {
        commands: taken,
        ..Step::default()
    };
    plan.steps.insert(to, step);
    plan
}

fn set_made(command: &Command) -> Option<String> {
    match command {
        Command::AddSet { name, .. } => Some(name.clone()),
        _ => None,
    }
}

fn lost_set_kept(mut plan: Plan) -> Plan {
    let groups = plan.after.policy.groups().iter();
    let stay: Vec<String> = groups
        .map(|(&id, group)| format!("{}.", names::group(id, group, plan.after.births[&id])))
        .collect();
    let of_one_that_stays = |set: &String| stay.iter().any(|name| set.starts_with(name));
    plan.garbage.sets.retain(|set| !of_one_that_stays(set));
    plan
}

fn gained_set_not_made(mut plan: Plan) -> Plan {
    let emptied: BTreeSet<String> = plan
        .steps
        .iter()
        .flat_map(|step| &step.commands)
        .filter_map(|command| match command {
            Command::FlushSet(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    for step in &mut plan.steps {
        step.commands.retain(|command| match command {
            Command::AddSet { name, .. } | Command::FlushSet(name) => !emptied.contains(name),
            _ => true,
        });
    }
    plan
}

/// A policy that lets the members of one group reach one workload.
fn policy_of(members: &[u8]) -> NodePolicy {
    let mut policy = NodePolicy::default();
    let group = GroupId::of(["peers"], &Ranges::EMPTY);
    let mut peers = PeerGroup::new("peers".into(), Ranges::EMPTY);
    peers.addresses = members.iter().copied().map(address).collect();
    policy.set_group(group, Arc::new(peers));
    let class = Class {
        direction: Direction::Ingress,
        keep_established: false,
        other: Some(group),
        ports: Vec::new(),
    };
    let id = class.id();
    policy.add_class(id, Arc::new(class));
    let endpoint = Endpoint {
        namespace: "default".into(),
        name: "pod".into(),
        uid: String::new(),
        interface: String::new(),
        ingress: Some(id),
        egress: None,
    };
    policy.set_endpoint(address(0), Arc::new(endpoint));
    policy
}

/// The commands of a plan's steps without the stamp, and the garbage, with names without hashes.
fn described(plan: &Plan) -> Vec<String> {
    let id = GroupId::of(["peers"], &Ranges::EMPTY).to_string();
    let group = format!("peers-{}-1", &id[..8]);
    let is_stamp = |command: &&Command| {
        matches!(
            command,
            Command::AddElements(_, SetKind::Numbers, _)
                | Command::DeleteElements(_, SetKind::Numbers, _)
        )
    };
    let step = |step: &Step| {
        let commands = step.commands.iter().filter(|command| !is_stamp(command));
        let words: Vec<String> = commands
            .map(|command| command.of(INET).to_string())
            .collect();
        words.join("; ")
    };
    let steps = plan.steps.iter().map(step);
    let garbage = plan.garbage.delete();
    let garbage = garbage
        .iter()
        .map(|command| format!("later: {}", command.of(INET)));
    let short = |text: String| text.replace(" inet sallyport", "").replace(&group, "PEERS");
    steps.chain(garbage).map(short).collect()
}

#[test]
fn a_set_comes_with_the_first_member_of_its_family_and_goes_with_the_last() {
    let options = Options {
        strict: true,
        workload_ranges: Ranges::EMPTY,
        ..Options::default()
    };
    let mut world = World::new(policy_of(&[]), options, 1 << 20, 0)
        .unwrap_or_else(|violation| panic!("{violation}"));
    let mut update = |members: &[u8]| {
        let plan = world.plan(&policy_of(members));
        let described = described(&plan);
        let result = world.update(plan).and_then(|()| world.drain());
        result.unwrap_or_else(|violation| panic!("{violation}"));
        described
    };
    let set = |family: &str| {
        let kind = family
            .replace("ip4", "ipv4_addr")
            .replace("ip6", "ipv6_addr");
        format!(
            "add set PEERS.{family} {{ type {kind}; comment \"peers\"; }}; flush set PEERS.{family}; "
        )
    };
    let rules = |families: &[&str]| {
        let looks = families.iter().map(|family| {
            let protocol = family.replace("ip4", "ip");
            format!("add rule from_PEERS ct original {protocol} saddr @PEERS.{family} accept; ")
        });
        let looks: String = looks.collect();
        format!("flush chain from_PEERS; {looks}add rule from_PEERS counter goto deny")
    };
    let first = [
        set("ip4") + &rules(&["ip4"]),
        "add element PEERS.ip4 { 10.0.0.1 }".into(),
    ];
    assert_eq!(update(&[1]), first);
    let second_family = [
        set("ip6") + &rules(&["ip4", "ip6"]),
        "add element PEERS.ip6 { fd00::6 }".into(),
    ];
    assert_eq!(update(&[1, 6]), second_family);
    // The empty step is one before which connections are reviewed.
    let loss = [
        "delete element PEERS.ip4 { 10.0.0.1 }".into(),
        String::new(),
        rules(&["ip6"]),
        "later: delete set PEERS.ip4".into(),
    ];
    assert_eq!(update(&[6]), loss);
    // Between the two there is no member of the family.
    let others = [
        "delete element PEERS.ip6 { fd00::6 }",
        "",
        "add element PEERS.ip6 { fd00::7 }",
    ];
    assert_eq!(update(&[7]), others);
    // The set that was left over from the first time is used again.
    let exchange = [
        set("ip4") + &rules(&["ip4", "ip6"]),
        "delete element PEERS.ip6 { fd00::7 }".into(),
        String::new(),
        "add element PEERS.ip4 { 10.0.0.1 }".into(),
        rules(&["ip4"]),
        "later: delete set PEERS.ip6".into(),
    ];
    assert_eq!(update(&[1]), exchange);
    let last = [
        "delete element PEERS.ip4 { 10.0.0.1 }".into(),
        String::new(),
        rules(&[]),
        "later: delete set PEERS.ip4".into(),
    ];
    assert_eq!(update(&[]), last);
    let all = world.clean();
    all.unwrap_or_else(|violation| panic!("{violation}"));
}
