//! Updates as messages of bounded size, made as they are sent. Knows no stream and no node.

use std::{iter::Peekable, vec};

use prost::bytes::Bytes;
use sallyport_policy::{NodePolicy, Position};
use sallyport_proto::wire::{self, UpdatePart};

use super::Diffs;
use crate::nodes::Update;

/// The most bytes of one part. Changes come cut to fit; one that cannot be cut (a class, the ranges of a group) goes in
/// one part, whatever its size.
pub const PART: usize = 1 << 20;

/// The bytes of a part beside its changes: a few positions and the framing.
const FRAME: usize = 512;

/// The parts of an update, at least one; the last one says so.
pub struct Parts {
    base: Option<Position>,
    target: Position,
    keep: Vec<wire::Position>,
    changes: Peekable<vec::IntoIter<Bytes>>,
    begun: bool,
}

impl Parts {
    /// The parts of an update.
    pub fn new(update: &Update, diffs: &Diffs) -> Parts {
        let Update {
            base,
            target,
            policy,
            keep,
        } = update;
        let changes = match base {
            Some((_, old)) => diffs.between(old, policy),
            None => diffs.between(&NodePolicy::default(), policy),
        };
        Parts {
            base: base.as_ref().map(|(position, _)| *position),
            target: *target,
            keep: keep.iter().copied().map(Into::into).collect(),
            changes: changes.into_iter().peekable(),
            begun: false,
        }
    }
}

impl Iterator for Parts {
    type Item = UpdatePart;

    fn next(&mut self) -> Option<UpdatePart> {
        if self.begun && self.changes.peek().is_none() {
            return None;
        }
        self.begun = true;
        let (mut changes, mut size) = (Vec::new(), FRAME);
        while let Some(next) = self.changes.peek() {
            size += sized(next);
            if size > PART && !changes.is_empty() {
                break;
            }
            changes.extend(self.changes.next());
        }
        Some(UpdatePart {
            base: self.base.map(Into::into),
            target: Some(self.target.into()),
            changes,
            last: self.changes.peek().is_none(),
            keep: self.keep.clone(),
        })
    }
}

/// A change's bytes, with its tag and length.
fn sized(change: &Bytes) -> usize {
    change.len() + 6
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv6Addr, sync::Arc};

    use prost::Message as _;
    use sallyport_policy::{
        Digest, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, Ranges, Revision,
    };

    use super::*;

    fn large(members: u128, endpoints: u128) -> NodePolicy {
        let mut policy = NodePolicy::default();
        let id = GroupId::of(["pods default/*"], &Ranges::EMPTY);
        policy.set_group(
            id,
            Arc::new(PeerGroup::new("pods default/*".into(), Ranges::EMPTY)),
        );
        for n in 0..members {
            policy.add_address(id, Ipv6Addr::from_bits(n).into());
        }
        for n in 0..endpoints {
            let endpoint = Endpoint {
                namespace: "default".into(),
                name: format!("a-pod-with-a-name-of-some-length-{n}"),
                uid: String::new(),
                interface: String::new(),
                ingress: None,
                egress: None,
            };
            policy.set_endpoint(Ipv6Addr::from_bits(n << 64).into(), Arc::new(endpoint));
        }
        policy
    }

    /// The policy that a node makes of the parts.
    fn received(base: &NodePolicy, parts: Vec<UpdatePart>, digest: Digest) -> NodePolicy {
        let changes: Vec<_> = parts.into_iter().flat_map(|part| part.changes).collect();
        let delta = sallyport_proto::encoded_delta(&changes[..]).unwrap();
        base.applied(&delta, digest).unwrap()
    }

    /// The parts of what leads from one policy to another.
    fn parts(old: &NodePolicy, new: &NodePolicy) -> Vec<UpdatePart> {
        let position = |revision: u64, policy: &NodePolicy| Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: policy.digest(),
        };
        let update = Update {
            base: Some((position(1, old), Arc::new(old.clone()))),
            target: position(2, new),
            policy: Arc::new(new.clone()),
            keep: Vec::new(),
        };
        Parts::new(&update, &Diffs::default()).collect()
    }

    #[test]
    fn parts_are_small_and_make_the_whole() {
        let (old, new) = (NodePolicy::default(), large(150_000, 20_000));
        for (from, to) in [
            (&old, &new),
            (&new, &old),
            (&large(100_000, 3), &large(3, 30_000)),
        ] {
            let parts = parts(from, to);
            assert!(
                parts.iter().all(|part| part.encoded_len() <= PART),
                "within the bound"
            );
            let (last, others) = parts.split_last().unwrap();
            assert!(last.last && others.iter().all(|part| !part.last));
            assert_eq!(received(from, parts, to.digest()), *to);
        }
        assert!(parts(&old, &new).len() > 3, "it was worth it");
    }

    #[test]
    fn nothing_to_change_is_one_part() {
        let parts = parts(&NodePolicy::default(), &NodePolicy::default());
        assert_eq!(parts.len(), 1);
        assert!(parts[0].last);
    }
}
