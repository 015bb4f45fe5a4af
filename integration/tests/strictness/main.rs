//! The fake kernel is as strict as the real one: one table of cases on both, and after each batch the same answer, word
//! for word, and the same table.

mod content;
mod leases;
mod objects;
mod ports;
mod words;

use std::{collections::BTreeMap, process::ExitCode, thread, time::Duration};

use sallyport_enforcer::table::{
    self,
    lease::{self, Slot},
    state,
};
use sallyport_nft::{
    command::{Command, Element, Family, SetKind},
    kernel::Kernel,
    netlink::{self, Netlink},
};
use sallyport_nft_fake::FakeKernel;
use sallyport_testbed::{
    Netns,
    kernel_tests::{self, Outcome},
};
use words::{Case, Event};

fn main() -> ExitCode {
    kernel_tests::run(&[
        ("tables_chains_and_sets", || compare(objects::cases())),
        ("owners", || compare(objects::owners())),
        ("elements", || compare(content::elements())),
        ("rules", || compare(content::rules())),
        ("interfaces", || compare(ports::cases())),
        ("leases", || compare(leases::cases())),
        ("leases_end_at_one_time", expiry),
        ("the_fake_refuses_what_nobody_means", stricter),
    ])
}

/// Runs each case on both kernels.
fn compare(cases: Vec<Case>) -> Outcome {
    for (name, events) in cases {
        let netns = Netns::new("strictness")?;
        let mut reader = netns.run(table::open)?;
        let mut sockets: BTreeMap<u32, Netlink> = BTreeMap::new();
        let mut fake = FakeKernel::default().for_table(table::INET);
        for event in events {
            let (process, batch) = match event {
                Event::Batch(process, batch) => (process, batch),
                Event::End(process) => {
                    sockets.remove(&process);
                    fake.process_ends(process);
                    continue;
                }
            };
            if let std::collections::btree_map::Entry::Vacant(free) = sockets.entry(process) {
                free.insert(netns.run(table::open)?);
            }
            let socket = sockets.get_mut(&process).expect("it was just opened");
            fake.speak_as(process);
            let (real, faked) = (socket.commit(&batch), fake.commit(&batch));
            let script: Vec<String> = batch
                .iter()
                .map(|command| command.of(table::INET).to_string())
                .collect();
            let script = script.join("\n");
            if outcome(&real) != outcome(&faked) {
                let (real, faked) = (outcome(&real), outcome(&faked));
                return Err(format!("{name}\n{script}\nreal: {real}\nfake: {faked}").into());
            }
            let (real, faked) = (state::read(&mut reader)?, state::read(&mut fake)?);
            if real != faked {
                return Err(format!("{name}\n{script}\nreal: {real:?}\nfake: {faked:?}").into());
            }
        }
    }
    Ok(())
}

fn outcome(result: &Result<(), netlink::Error>) -> String {
    match result {
        Ok(()) => "done".into(),
        Err(error) => error.to_string(),
    }
}

/// Elements that expire are gone on both kernels. For an element that is added again only the new time counts.
fn expiry() -> Outcome {
    let lasts = Duration::from_millis(400);
    let netns = Netns::new("strictness")?;
    let mut real = netns.run(table::open)?;
    let mut fake = FakeKernel::default().for_table(table::INET);
    let sets = [vec![words::table()], lease::sets()].concat();
    let (short, long) = (lease::fill(Slot::A, lasts), lease::fill(Slot::A, lasts * 3));
    for batch in [&sets, &short, &long, &short] {
        Kernel::commit(&mut real, batch)?;
        fake.commit(batch)?;
    }
    let v4 = Element::Family(Family::V4, lasts);
    let delete = |slot: Slot| {
        let one = vec![v4.clone()];
        [Command::DeleteElements(
            slot.name().into(),
            SetKind::Families,
            one,
        )]
    };
    for (waits, there) in [(lasts / 2, true), (lasts, false)] {
        thread::sleep(waits);
        fake.advance(waits);
        // Looking is deleting, and putting back.
        let looked = [
            Kernel::commit(&mut real, &delete(Slot::A)),
            fake.commit(&delete(Slot::A)),
        ];
        if looked.iter().any(|result| result.is_ok() != there) {
            return Err(format!("there: {there}, found: {looked:?}").into());
        }
        if there {
            for kernel in [&mut real as &mut dyn Kernel, &mut fake] {
                kernel.commit(&lease::fill(Slot::A, lasts))?;
            }
        }
    }
    Ok(())
}

/// The kernel takes these, the fake does not: the other way round would be a fake that lets mistakes pass.
fn stricter() -> Outcome {
    for (name, events) in content::lenient()
        .into_iter()
        .chain(leases::lenient())
        .chain(ports::lenient())
    {
        let netns = Netns::new("strictness")?;
        let mut real = netns.run(table::open)?;
        let mut fake = FakeKernel::default().for_table(table::INET);
        let mut batches = events.iter().filter_map(|event| match event {
            Event::Batch(_, batch) => Some(batch),
            Event::End(_) => None,
        });
        let last = batches.next_back().ok_or("a case has batches")?;
        for batch in batches {
            Kernel::commit(&mut real, batch)?;
            fake.commit(batch)?;
        }
        Kernel::commit(&mut real, last).map_err(|error| format!("{name}: {error}"))?;
        if fake.commit(last).is_ok() {
            return Err(format!("{name}: the fake takes it").into());
        }
    }
    Ok(())
}
