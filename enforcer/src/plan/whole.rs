//! Whole tables: where there is none, and in the place of one of which nobody knows what it enforces. Pure.

use imbl::OrdMap;
use sallyport_proto::policy::NodePolicy;

use crate::{
    nft::{
        command::Command,
        render::{self, Options},
        stamp::{self, Stamp},
    },
    plan::{
        Garbage, Installed, Limits, Plan, Reach,
        batches::{Part, Work, cut, steps},
        half::{Planner, Version},
    },
};

/// Plans a table where there is none. Its base chain comes last: no packet meets it before it is whole.
pub fn create(installed: &Installed, options: &Options, limits: Limits) -> Plan {
    let Whole { prepare, mut hook } = Whole::of(installed, options);
    let table = Command::AddTable {
        owned: options.owned,
    };
    let prepare = [table].into_iter().chain(prepare).collect();
    hook.extend(stamp::write_frame(
        &render::frame_fingerprint(options, &installed.policy),
        true,
    ));

    let parts = vec![Part::of(prepare), Part::whole(hook)];
    Plan {
        steps: steps(parts, installed, limits, Work::Table),
        garbage: Garbage::default(),
        reach: Reach::default(),
        after: installed.clone(),
    }
}

/// Plans a table in the place of one of which nobody knows what it enforces, but only what chains and sets it has; `None`
/// where that judges no packets.
///
/// Packets meet all of the old one, or all of the new one. Only one place can be changed at once, and only the base chain
/// leads everywhere. So its rules are pointed at a copy of the new table under other names; where the old one was, the new
/// one is made, under its own names; and the rules are pointed there. The stamp comes last: whoever dies on the way leaves a
/// table of which nobody knows what it enforces.
pub fn replace(
    installed: &Installed,
    options: &Options,
    found: &Garbage,
    limits: Limits,
) -> Option<Plan> {
    if !found.chains.contains(render::FORWARD) {
        return None;
    }
    let interim = interim_prefix(found);
    let there = Whole::of(installed, options);
    let copy = |commands: &[Command]| {
        let mut commands = commands.to_vec();
        for name in commands.iter_mut().flat_map(Command::names_mut) {
            if name != render::FORWARD {
                name.insert_str(0, &interim);
            }
        }
        commands
    };
    let mut old = found.clone();
    old.chains.remove(render::FORWARD);

    let (prepare, hook) = (copy(&there.prepare), copy(&there.hook));
    let garbage = Garbage::made_by(&prepare);
    let parts = vec![
        Part::of(prepare),
        Part::whole(hook).after_grace(),
        Part::of(old.delete()).after_grace(),
        Part::of(there.prepare),
        Part::whole(there.hook).after_grace(),
    ];
    let mut steps = cut(parts, limits);
    let last = steps.last_mut().expect("there is the base chain");
    let frame = render::frame_fingerprint(options, &installed.policy);
    last.commands.extend(stamp::write_frame(&frame, true));
    last.commands.extend(Stamp::of(installed, None).write(true));
    Some(Plan {
        steps,
        garbage,
        reach: Reach::default(),
        after: installed.clone(),
    })
}

/// What names of the copy begin with. Whoever died on the way may have left one, and packets may be in it.
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
    /// What no packet can reach: sets and chains, filled.
    prepare: Vec<Command>,
    /// The base chain, that the kernel calls.
    hook: Vec<Command>,
}

impl Whole {
    fn of(installed: &Installed, options: &Options) -> Whole {
        let policy = &installed.policy;
        let mut empty = NodePolicy::default();
        empty.set_workload_ranges(policy.workload_ranges().clone());
        let no_births = OrdMap::new();
        let mut planner = Planner {
            options,
            unknown: &installed.unknown,
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

        let mut prepare = render::frame_sets(options);
        let workloads = render::workload_sets(options, policy);
        prepare.extend(workloads.into_values().flatten());
        let mut hook = Vec::new();
        for (name, rules) in render::frame_chains(options, policy) {
            let commands = if name == render::FORWARD {
                &mut hook
            } else {
                &mut prepare
            };
            commands.push(render::add_frame_chain(name));
            commands.extend(render::replace_rules(name, rules));
        }
        let content = planner.half(before, after);
        prepare.extend(content.prepare);
        prepare.extend(content.dispatch.into_iter().flatten());
        Whole { prepare, hook }
    }
}
