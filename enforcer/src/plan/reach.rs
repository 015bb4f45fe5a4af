//! The packets that a change concerns, by the lookups that a packet makes one after the other; and whether packets
//! under way must be through before another change. It plans nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use sallyport_policy::{Direction, GroupId, NodePolicy};

use crate::plan::half::{EndpointAt, group_uses};

/// The packets that a change concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Endpoints that are led elsewhere, by direction: egress, ingress.
    led: [BTreeSet<IpAddr>; 2],
    /// Whether packets of no connection are.
    header: bool,
    /// The groups of the classes that endpoints leave.
    left: BTreeSet<GroupId>,
    /// Members that groups lose or gain.
    members: BTreeMap<GroupId, BTreeSet<IpAddr>>,
    /// Whether what is made of unknown addresses changes.
    pub(super) frame: bool,
}

impl Reach {
    /// Takes in that an endpoint is led elsewhere.
    pub(super) fn lead(&mut self, old: &NodePolicy, before: EndpointAt<'_>, after: EndpointAt<'_>) {
        let Some((address, _)) = before.or(after) else {
            return;
        };
        // An endpoint that comes or goes is another than one without a class. And whether it is isolated in the other
        // direction counts for packets that begin no connection.
        let class = |endpoint_at: EndpointAt<'_>, direction| {
            endpoint_at.map(|(_, endpoint)| endpoint.class(direction))
        };
        let isolated =
            |endpoint_at: EndpointAt<'_>| endpoint_at.map(|(_, endpoint)| endpoint.is_isolated());
        for (direction, led) in [Direction::Egress, Direction::Ingress]
            .into_iter()
            .zip(&mut self.led)
        {
            let left = class(before, direction);
            if left == class(after, direction) && isolated(before) == isolated(after) {
                continue;
            }
            led.insert(address);
            if let Some(id) = left.flatten().filter(|_| left != class(after, direction)) {
                self.left.extend(old.classes()[&id].groups());
            }
        }
        self.header |= isolated(before) != isolated(after);
    }

    /// Takes in that a group loses or gains members.
    pub(super) fn change_members(&mut self, id: GroupId, members: impl Iterator<Item = IpAddr>) {
        self.members.entry(id).or_default().extend(members);
    }

    /// Takes in another change.
    pub fn merge(&mut self, other: &Reach) {
        for (led, more) in self.led.iter_mut().zip(&other.led) {
            led.extend(more);
        }
        self.header |= other.header;
        self.left.extend(&other.left);
        for (&id, members) in &other.members {
            self.change_members(id, members.iter().copied());
        }
        self.frame |= other.frame;
    }

    /// Whether it concerns no packet.
    pub fn is_empty(&self) -> bool {
        *self == Reach::default()
    }

    /// Whether a packet under way can see this change undone where it looks first, and a later one done where it looks
    /// afterwards, and so pass though no version before, between or after them lets it, or be dropped though all do.
    ///
    /// `between` are the versions between which the two lie.
    pub(super) fn must_be_over_before(&self, later: &Reach, between: &[&NodePolicy]) -> bool {
        if self.is_empty() || later.is_empty() {
            return false;
        }
        if self.frame || later.frame || (self.header && later.header) {
            return true;
        }
        // First the class, then its groups.
        if later.members.keys().any(|id| self.left.contains(id)) {
            return true;
        }
        // First egress, then ingress: of two endpoints of this node.
        let ([senders, _], [_, receivers]) = (&self.led, &later.led);
        if !senders.is_empty() && !receivers.is_empty() {
            return true;
        }
        if self.members.is_empty() && later.members.is_empty() {
            return false;
        }
        let uses = between
            .iter()
            .flat_map(|policy| group_uses(policy))
            .collect();
        let first = self.members_in(Direction::Egress, &uses);
        let then = later.members_in(Direction::Ingress, &uses);
        let local = |members: &BTreeSet<IpAddr>| {
            let is_local =
                |policy: &&NodePolicy| members.iter().any(|at| policy.endpoints().contains_key(at));
            between.iter().any(is_local)
        };
        !then.is_disjoint(senders)
            || !first.is_disjoint(receivers)
            || (local(&first) && local(&then))
    }

    /// The members that groups with a chain in a direction lose or gain.
    fn members_in(
        &self,
        direction: Direction,
        uses: &BTreeSet<(Direction, GroupId)>,
    ) -> BTreeSet<IpAddr> {
        let groups = self.members.iter();
        let used = groups.filter(|(id, _)| uses.contains(&(direction, **id)));
        used.flat_map(|(_, members)| members.iter().copied())
            .collect()
    }
}
