//! A peer group that many policies share, with its part of their digests, so that a change of it costs each policy
//! the same however large the group is. It owns no policy.

use std::{net::IpAddr, sync::Arc};

use super::{GroupId, NodePolicy, PeerGroup, group_entry, member_entry};
use crate::Digest;

/// A version of a group, and its part of the digest of every policy that has it.
#[derive(Clone, Debug)]
pub struct SharedGroup {
    id: GroupId,
    group: Arc<PeerGroup>,
    part: Digest,
}

impl SharedGroup {
    /// A group to be shared.
    pub fn new(id: GroupId, group: PeerGroup) -> SharedGroup {
        let mut part = Digest::default();
        part.add(group_entry(id, &group.spec));
        for &address in &group.addresses {
            part.add(member_entry(id, address));
        }
        SharedGroup {
            id,
            group: Arc::new(group),
            part,
        }
    }

    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// The group.
    pub fn group(&self) -> &Arc<PeerGroup> {
        &self.group
    }

    /// Adds an address; policies that have an earlier version keep that. Says whether it was not there.
    pub fn add_address(&mut self, address: IpAddr) -> bool {
        if self.group.addresses.contains(&address) {
            return false;
        }
        Arc::make_mut(&mut self.group).addresses.insert(address);
        self.part.add(member_entry(self.id, address));
        true
    }

    /// Removes an address; policies that have an earlier version keep that. Says whether it was there.
    pub fn remove_address(&mut self, address: IpAddr) -> bool {
        if !self.group.addresses.contains(&address) {
            return false;
        }
        Arc::make_mut(&mut self.group).addresses.remove(&address);
        self.part.remove(member_entry(self.id, address));
        true
    }
}

impl NodePolicy {
    /// Adds a group, or replaces the version `old` of it: as `set_group` does, at a cost that does not depend on the
    /// group's size if the policy has `old` itself, or no version.
    pub fn share_group(&mut self, group: &SharedGroup, old: Option<&SharedGroup>) {
        let replaced = self.groups.insert(group.id, group.group.clone());
        self.digest.add(group.part.0);
        self.subtract_from_digest(group.id, replaced, old);
    }

    /// Removes a group: as `remove_group` does, at a cost that does not depend on the group's size if the policy has
    /// this very version.
    pub fn unshare_group(&mut self, group: &SharedGroup) {
        let removed = self.groups.remove(&group.id);
        self.subtract_from_digest(group.id, removed, Some(group));
    }

    /// Subtracts a removed version of a group from the digest.
    fn subtract_from_digest(
        &mut self,
        id: GroupId,
        gone: Option<Arc<PeerGroup>>,
        known: Option<&SharedGroup>,
    ) {
        let Some(gone) = gone else { return };
        match known {
            Some(known) if Arc::ptr_eq(&known.group, &gone) => self.digest.remove(known.part.0),
            _ => {
                self.digest.remove(group_entry(id, &gone.spec));
                for &address in &gone.addresses {
                    self.digest.remove(member_entry(id, address));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ranges;

    #[test]
    fn sharing_equals_setting() {
        let id = GroupId::of(["pods a/*"], &Ranges::EMPTY);
        let mut shared = SharedGroup::new(id, PeerGroup::new("pods a/*".into(), Ranges::EMPTY));
        let (mut sharing, mut setting) = (NodePolicy::default(), NodePolicy::default());
        let mut old = None;
        for n in [1, 2, 1, 3, 2] {
            let address = IpAddr::from([10, 0, 0, n]);
            if !shared.add_address(address) {
                shared.remove_address(address);
            }
            sharing.share_group(&shared, old.as_ref());
            setting.set_group(id, shared.group().clone());
            assert_eq!(sharing, setting);
            old = Some(shared.clone());
        }
        let mut unknown = sharing.clone();
        unknown.unshare_group(&SharedGroup::new(
            id,
            PeerGroup::new("".into(), Ranges::EMPTY),
        ));
        sharing.unshare_group(&shared);
        assert_eq!(
            (&sharing, &unknown),
            (&NodePolicy::default(), &NodePolicy::default())
        );
    }
}
