//! Whole tables: where there is none, and in the place of a table with an unknown policy. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use imbl::OrdMap;
use sallyport_nft::command::Command;
use sallyport_policy::NodePolicy;

use crate::{
    plan::{
        Garbage, Installed, Limits, Plan, Reach, Review, Step, VERSION,
        batches::{Part, PlanKind, cut, steps},
        families::Between,
        half::{Planner, Version},
        members,
    },
    table::{
        frame,
        render::{self, Options},
        stamp,
    },
};

/// Plans a table where there is none. Its base chains come last: no packet meets them before it is whole. Then
/// connections are reviewed, and what the frame is made from is written, which says that they were.
pub fn create(installed: &Installed, options: &Options, limits: Limits) -> Plan {
    let Whole { prepare, hook } = Whole::of(installed, options);
    let table = Command::AddTable {
        owned: options.owned,
    };
    let prepare = [table].into_iter().chain(prepare).collect();
    let parts = vec![Part::of(prepare), Part::whole(hook)];
    let mut steps = steps(parts, installed, limits, PlanKind::Table);
    steps.push(Step {
        commands: stamp::write_frame(&installed.frame(options).fingerprint(VERSION), true),
        review: Some(Review::All),
        ..Step::default()
    });
    Plan {
        steps,
        garbage: Garbage::default(),
        reach: Reach::default(),
        after: installed.clone(),
    }
}

/// The content of a table that is to be replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// All its chains and sets.
    pub objects: Garbage,
    /// Its base chains.
    pub bases: BTreeSet<String>,
    /// Addresses that have other owners in the new table: their connections are flushed before the old one goes.
    pub flush: BTreeSet<IpAddr>,
}

/// Plans a table in the place of another, of which nothing need be known but what is in it; `None` where that judges no
/// packets.
///
/// A packet passes if all base chains accept it. So beside those of the old table come base chains of a copy of the new
/// one, under other names: what passes now both tables allow. Then the old ones go. Where the old table was, the new
/// one is made under its own names, and the copy goes the same way. A grace period lies before each, so that a packet
/// meets all of a table or nothing of it. Then connections are reviewed. The stamp comes last: whoever dies on the way
/// leaves a table of which nobody knows what it enforces.
pub fn replace(
    installed: &Installed,
    options: &Options,
    found: &Replaced,
    limits: Limits,
) -> Option<Plan> {
    if found.bases.is_empty() {
        return None;
    }
    let interim = interim_prefix(&found.objects);
    let there = Whole::of(installed, options);
    let copy = |commands: &[Command]| {
        let mut commands = commands.to_vec();
        for name in commands.iter_mut().flat_map(Command::names_mut) {
            name.insert_str(0, &interim);
        }
        commands
    };
    let (prepare, hook) = (copy(&there.prepare), copy(&there.hook));
    let made = |commands: &[Command]| Garbage::made_by(commands);
    let (mut garbage, bases) = (made(&prepare), made(&hook).chains);
    garbage.chains.extend(bases.clone());
    let let_go =
        |bases: &BTreeSet<String>| bases.iter().cloned().map(Command::FlushChain).collect();
    let deletions = found.objects.delete_in_batches(limits).into_iter();
    let deletions = deletions.enumerate().map(|(earlier, batch)| Part {
        grace: earlier == 0,
        ..Part::of(batch)
    });
    let mut parts = vec![
        Part::of(prepare),
        Part::whole(hook),
        Part {
            flush: found.flush.clone(),
            ..Part::whole(let_go(&found.bases)).after_grace()
        },
    ];
    parts.extend(deletions);
    parts.extend([
        Part::of(there.prepare),
        Part::whole(there.hook),
        Part::whole(let_go(&bases)).after_grace(),
    ]);
    let mut steps = cut(parts, limits);
    let last = steps.last_mut().expect("there are base chains");
    last.review = Some(Review::All);
    let frame = installed.frame(options).fingerprint(VERSION);
    last.commands.extend(stamp::write_frame(&frame, true));
    last.commands.extend(installed.stamp(None).write(true));
    Some(Plan {
        steps,
        garbage,
        reach: Reach::default(),
        after: installed.clone(),
    })
}

/// The prefix of the names of the copy. An enforcer that died halfway may have left a copy, and packets may be in it.
fn interim_prefix(found: &Garbage) -> String {
    let is_free = |prefix: &String| {
        let mut names = found.chains.iter().chain(&found.sets);
        !names.any(|name| name.starts_with(prefix.as_str()))
    };
    (1u32..)
        .map(|number| format!("interim{number}_"))
        .find(is_free)
        .expect("a table has fewer names than there are numbers")
}

/// All that is in a table.
struct Whole {
    /// The objects that no packet can reach: sets and chains, filled.
    prepare: Vec<Command>,
    /// The base chains, that the kernel calls.
    hook: Vec<Command>,
}

impl Whole {
    fn of(installed: &Installed, options: &Options) -> Whole {
        let policy = &installed.policy;
        let mut empty = NodePolicy::default();
        empty.set_workload_ranges(policy.workload_ranges().clone());
        empty.set_sources(policy.sources().clone());
        let no_births = OrdMap::new();
        let mut planner = Planner {
            options,
            families: Between::default(),
            garbage: Garbage::default(),
        };
        let before = Version {
            policy: &empty,
            births: &no_births,
        };
        let after = Version {
            policy,
            births: &installed.births,
        };

        let frame = installed.frame(options);
        let content = planner.half(before, after);
        let mut prepare = frame::sets(options);
        prepare.extend(frame.range_sets().into_values().flatten());
        // Rules of the frame name chains of classes, and those name chains of the frame.
        let chains = frame.chains().into_iter();
        let (bases, others): (Vec<_>, Vec<_>) =
            chains.partition(|(name, _)| frame::base(name).is_some());
        prepare.extend(others.iter().map(|(name, _)| frame::add_chain(name)));
        prepare.extend(content.prepare);
        let fill = |(name, rules)| render::replace_rules(name, rules);
        prepare.extend(others.into_iter().flat_map(fill));
        let hook = bases.into_iter().flat_map(|(name, rules)| {
            let make = [frame::add_chain(name)];
            make.into_iter().chain(render::replace_rules(name, rules))
        });
        prepare.extend(content.dispatch.into_iter().flatten());
        prepare.extend(members::all(policy));
        let hook = hook.collect();
        Whole { prepare, hook }
    }
}
