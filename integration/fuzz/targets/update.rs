//! A node under a control plane that is not itself: updates as messages, in parts, some of them changed; applied by the
//! real agent on the fake kernel, which is as strict as the real one. Restarts in between read the journal's own
//! records.
//!
//! A correct update must be applied; a refused one must change nothing.
#![no_main]

use std::{cell::RefCell, rc::Rc};

use libfuzzer_sys::{
    arbitrary::{Result, Unstructured},
    fuzz_target,
};
use prost::{Message as _, bytes::Bytes};
use sallyport_enforcer::{
    agent::{Agent, UpdateError},
    journal::{self, Intent, Log, record},
    plan::Installed,
    table::{names::UpdateSeq, render::Options},
};
use sallyport_fuzz::{options, policy, recovered};
use sallyport_nft_fake::FakeKernel;
use sallyport_policy::{Delta, Epoch, NodePolicy, Position, Revision, Update};
use sallyport_proto::{Assembly, wire::UpdatePart};

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});

/// A journal in memory, of the records that are on disks.
#[derive(Clone, Default)]
struct Records(Rc<RefCell<Vec<Vec<u8>>>>);

impl Log for Records {
    fn intend(&mut self, intent: &Intent) -> std::result::Result<(), journal::Error> {
        self.0.borrow_mut().push(record::intent(intent));
        Ok(())
    }

    fn abort(&mut self, generation: UpdateSeq) -> std::result::Result<(), journal::Error> {
        self.0.borrow_mut().push(record::abort(generation));
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        self.0.borrow().len() > 3
    }

    fn snapshot(&mut self, installed: &Installed) -> std::result::Result<(), journal::Error> {
        *self.0.borrow_mut() = vec![record::snapshot(installed)];
        Ok(())
    }
}

type Node = Agent<FakeKernel, Records>;

fn start(kernel: FakeKernel, records: &Records, options: Options) -> Node {
    let recovered = recovered(&records.0.borrow()).expect("what the agent wrote can be read");
    Agent::start(kernel, records.clone(), recovered, options).expect("the kernel takes it")
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let options = options(u)?;
    let records = Records::default();
    let mut node = start(FakeKernel::default(), &records, options.clone());
    let mut assembly = Assembly::default();
    let mut revision = 0;
    while !u.is_empty() {
        match u.int_in_range(0..=7)? {
            0 => {
                let held = node.window();
                node = start(std::mem::take(node.kernel_mut()), &records, options.clone());
                assert_eq!(node.window(), held, "a restart forgets nothing");
            }
            1 => node.clean(),
            2 => {
                let bytes: &[u8] = u.arbitrary()?;
                if let Ok(part) = UpdatePart::decode(bytes) {
                    take(&mut node, &mut assembly, part);
                }
            }
            way => {
                revision += 1;
                let update = update(u, &node, revision)?;
                let parts = parts(u, &update)?;
                if way == 3 {
                    for part in changed(u, parts)? {
                        take(&mut node, &mut assembly, part);
                    }
                    continue;
                }
                assembly = Assembly::default();
                let mut whole = None;
                for part in parts {
                    assert!(whole.is_none(), "whole before its last part");
                    whole = assembly.take(part).expect("a part as it should be");
                }
                assert_eq!(
                    whole.as_ref(),
                    Some(&update),
                    "what arrives is what was sent"
                );
                node.apply(update).expect("an update as it should be");
            }
        }
    }
    Ok(())
}

/// Hears a part as a node does, whatever it is.
fn take(node: &mut Node, assembly: &mut Assembly, part: UpdatePart) {
    let Ok(Some(update)) = assembly.take(part) else {
        return;
    };
    let before = node.installed().clone();
    match node.apply(update) {
        Ok(()) => {}
        Err(UpdateError::Misfit(_)) => assert_eq!(*node.installed(), before),
        Err(refusal) => panic!("the kernel is given what it refuses: {refusal}"),
    }
}

/// An update that leads to a new policy, or lets versions go.
fn update(u: &mut Unstructured<'_>, node: &Node, revision: u64) -> Result<Update> {
    let versions = node.installed().window.versions();
    let (base, before) = match versions.is_empty() || u.ratio(1, 6)? {
        true => (None, NodePolicy::default()),
        false => {
            let version = u.choose(versions)?;
            (Some(version.position), NodePolicy::clone(&version.policy))
        }
    };
    let after = match u.ratio(1, 4)? {
        true => before.clone(),
        false => policy(u)?,
    };
    let target = match (base, u.ratio(1, 4)?) {
        (Some(base), true) if after.digest() == base.digest => base,
        _ => Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: after.digest(),
        },
    };
    let mut keep = Vec::new();
    for version in versions {
        if version.position != target && u.arbitrary()? {
            keep.push(version.position);
        }
    }
    Ok(Update {
        base,
        target,
        keep,
        delta: Delta::between(&before, &after),
    })
}

fn parts(u: &mut Unstructured<'_>, update: &Update) -> Result<Vec<UpdatePart>> {
    let changes = sallyport_proto::changes(&update.delta);
    let mut changes: Vec<Bytes> = changes
        .iter()
        .map(|change| change.encode_to_vec().into())
        .collect();
    let mut parts = Vec::new();
    loop {
        // At least one in each, so that there is an end when the bytes are used up.
        let rest = changes.split_off(u.int_in_range(1..=changes.len().max(1))?.min(changes.len()));
        let last = rest.is_empty();
        parts.push(UpdatePart {
            base: update.base.map(Into::into),
            target: Some(update.target.into()),
            keep: update.keep.iter().copied().map(Into::into).collect(),
            changes: std::mem::replace(&mut changes, rest),
            last,
        });
        if last {
            return Ok(parts);
        }
    }
}

/// The parts with something wrong: a byte, a part too many, too few or in another order.
fn changed(u: &mut Unstructured<'_>, mut parts: Vec<UpdatePart>) -> Result<Vec<UpdatePart>> {
    let last = parts.len() - 1;
    let at = u.int_in_range(0..=last)?;
    match u.int_in_range(0..=5)? {
        0 => drop(parts.remove(at)),
        1 => parts.insert(at, parts[at].clone()),
        2 => parts.swap(at, 0),
        3 => parts[at].changes.reverse(),
        4 => {
            let twice = parts[at].changes.clone();
            parts[at].changes.extend(twice);
        }
        _ => {
            let mut bytes = parts[at].encode_to_vec();
            let byte = u.int_in_range(0..=bytes.len() - 1)?;
            bytes[byte] ^= u.arbitrary::<u8>()?;
            match UpdatePart::decode(&bytes[..]) {
                Ok(part) => parts[at] = part,
                Err(_) => drop(parts.remove(at)),
            }
        }
    }
    Ok(parts)
}
