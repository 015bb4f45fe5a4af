//! Replacing a table of which nobody knows what it enforces, after a journal was lost: packets meet all of the old one, or
//! all of the new one. Pure.
//!
//! Only one place can be changed at once, and only the base chain leads everywhere. So its rules are pointed at a copy of
//! the new table under other names; where the old one was, the new one is made, under its own names; and the rules are
//! pointed there. The stamp comes last: whoever dies on the way leaves a table of which nobody knows what it enforces.

use crate::{
    netlink::TableState,
    nft::{
        command::Command,
        render::{self, Options},
        stamp::{self, Stamp},
    },
    plan::{
        Garbage, Installed, Limits, Plan, Reach, Whole,
        batches::{Part, cut},
    },
};

/// Plans a table in the place of the one that is `found`; `None` where that judges no packets.
pub fn replace(
    installed: &Installed,
    options: &Options,
    found: &TableState,
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
    let mut old = Garbage {
        chains: found.chains.clone(),
        sets: found.sets.clone(),
    };
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
fn interim_prefix(found: &TableState) -> String {
    let is_free = |prefix: &String| {
        let mut names = found.chains.iter().chain(&found.sets);
        !names.any(|name| name.starts_with(prefix.as_str()))
    };
    (1u32..)
        .map(|number| format!("interim{number}_"))
        .find(is_free)
        .expect("a table has fewer names than there are numbers")
}
