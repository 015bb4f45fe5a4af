//! A node's journal as a disk may hold it: records as an enforcer writes them, with bytes changed, left out and
//! repeated, and the right checksum all the same. Unchanged, they must come to what was written.
#![no_main]

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use sallyport_enforcer::{
    journal::{
        Intent, Recovered,
        record::{self, FORMAT},
    },
    plan::Installed,
};
use sallyport_fuzz::{options, policy, recovered};
use sallyport_journal::frame;
use sallyport_policy::{Delta, Epoch, NodePolicy, Position, Revision, Update};

fuzz_target!(|data: &[u8]| {
    // An error means that the bytes were used up: such an input is none.
    let _ = run(&mut Unstructured::new(data));
});

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let unknown = options(u)?.unknown();
    let mut written = Recovered::default();
    let (mut records, mut changed) = (Vec::new(), false);
    let mut now = Installed::default();
    for revision in 1..=u.int_in_range(1..=6)? {
        let record = match u.int_in_range(0..=7)? {
            0 if !now.window.is_empty() => {
                written.snapshot(now.clone());
                record::snapshot(&now)
            }
            1 if written.pending.is_some() => {
                let generation = now.generation;
                written.abort(generation);
                now = written.installed.clone();
                record::abort(generation)
            }
            2 => {
                changed = true;
                seal(u.arbitrary()?)
            }
            _ => {
                let new = policy(u)?;
                let held = now.window.positions();
                let keep = held.into_iter().rev().take(u.int_in_range(0..=2)?).rev();
                let (base, delta) = match now.window.newest() {
                    Some(newest) if u.arbitrary()? => {
                        (Some(newest.position), Delta::between(&newest.policy, &new))
                    }
                    _ => (None, Delta::between(&NodePolicy::default(), &new)),
                };
                let intent = Intent {
                    update: Update {
                        base,
                        target: Position {
                            epoch: Epoch(1),
                            revision: Revision(revision),
                            digest: new.digest(),
                        },
                        keep: keep.collect(),
                        delta,
                    },
                    unknown: unknown.clone(),
                    batch: u.arbitrary::<u32>()? as usize,
                };
                now = intent
                    .after(&now)
                    .expect("it leads to the policy that it was made from");
                let record = record::intent(&intent);
                written.intend(intent).expect("it fits");
                record
            }
        };
        records.push(record);
    }
    let changes = u.int_in_range(0..=4)?;
    for _ in 0..changes {
        changed = true;
        change(u, &mut records)?;
    }
    let read = recovered(&records);
    if !changed {
        let read = read.expect("what was written can be read");
        assert_eq!(
            (read.installed, read.pending),
            (written.installed, written.pending)
        );
    }
    Ok(())
}

/// A record of any payload, with the right length and checksum.
fn seal(payload: &[u8]) -> Vec<u8> {
    frame::encode(FORMAT, &[], [], payload)
}

fn change(u: &mut Unstructured<'_>, records: &mut Vec<Vec<u8>>) -> Result<()> {
    let Some(at) = records.len().checked_sub(1) else {
        return Ok(());
    };
    let at = u.int_in_range(0..=at)?;
    match u.int_in_range(0..=3)? {
        0 => drop(records.remove(at)),
        1 => records.insert(at, records[at].clone()),
        2 => {
            let last = records[at].len() - 1;
            let byte = u.int_in_range(0..=last)?;
            records[at][byte] ^= u.arbitrary::<u8>()?;
        }
        _ => {
            let mut payload = records[at]
                .get(frame::HEADER..)
                .unwrap_or_default()
                .to_vec();
            if let Some(last) = payload.len().checked_sub(1) {
                let byte = u.int_in_range(0..=last)?;
                payload[byte] ^= u.arbitrary::<u8>()?;
            }
            records[at] = seal(&payload);
        }
    }
    Ok(())
}
