//! The meet of the classes of several workloads that claim one address or range: what all of them allow. Pure; it knows
//! neither workloads nor nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use sallyport_policy::{Class, GroupId, PeerGroup, PortRule, Protocol, Ranges};

use super::peers::{Peers, shorten};

/// The meet of some classes.
pub(super) struct Met {
    /// The class.
    pub(super) class: Class,
    /// The groups that the class names, each with its parts: the group is the addresses that are in all of them. A
    /// group of one of the classes is its own only part.
    pub(super) groups: BTreeMap<GroupId, BTreeSet<GroupId>>,
}

/// The meet of some classes of one direction: what all of them allow; `None` if there are no classes. It keeps
/// established connections if it may and if all classes do.
pub(super) fn of(classes: &[&Class], may_keep: bool) -> Option<Met> {
    let direction = classes.first()?.direction;
    let mut groups = BTreeMap::new();
    let other = group(classes, None, &mut groups);
    let mut ports = Vec::new();
    for protocol in Protocol::ALL {
        for (first, last) in segments(classes, protocol) {
            let group = group(classes, Some((protocol, first)), &mut groups);
            let rule = group.map(|group| PortRule {
                protocol,
                first,
                last,
                group,
            });
            rule.into_iter().for_each(|rule| rule.append_to(&mut ports));
        }
    }
    let keep_established = may_keep && classes.iter().all(|class| class.keep_established);
    let class = Class {
        direction,
        keep_established,
        other,
        ports,
    };
    Some(Met { class, groups })
}

/// The group of the addresses that are in all of some groups.
pub(super) fn members(parts: &[&PeerGroup]) -> PeerGroup {
    let texts: Vec<String> = parts
        .iter()
        .map(|part| format!("({})", part.spec.description))
        .collect();
    let ranges = parts.iter().map(|part| part.spec.ranges.clone());
    let ranges = ranges.reduce(|all, ranges| all.intersection(&ranges));
    let description = shorten(&format!("in each of {}", texts.join(", ")));
    let mut group = PeerGroup::new(description, ranges.unwrap_or(Ranges::EMPTY));
    let addresses = parts.iter().flat_map(|part| &part.addresses).copied();
    group.addresses = addresses
        .filter(|&address| are_all_with(parts, address))
        .collect();
    group
}

/// Whether an address belongs among the addresses of the meet of some groups. One that is in the ranges of all belongs
/// to the ranges of the meet.
pub(super) fn has(parts: &[&PeerGroup], address: IpAddr) -> bool {
    let mut of_some = parts.iter();
    of_some.any(|part| part.addresses.contains(&address)) && are_all_with(parts, address)
}

fn are_all_with(parts: &[&PeerGroup], address: IpAddr) -> bool {
    parts.iter().all(|part| part.contains(address))
}

/// The peers that all classes allow at a port; `None` if one of them allows nobody there.
fn group(
    classes: &[&Class],
    port: Option<(Protocol, u16)>,
    groups: &mut BTreeMap<GroupId, BTreeSet<GroupId>>,
) -> Option<GroupId> {
    let everyone = Peers::everyone().id();
    let parts = classes.iter().map(|class| class.group_at(port));
    let mut parts = parts.collect::<Option<BTreeSet<GroupId>>>()?;
    if parts.len() > 1 {
        parts.remove(&everyone);
    }
    let id = match parts.first() {
        Some(&only) if parts.len() == 1 => only,
        _ => id_of(&parts),
    };
    groups.entry(id).or_insert(parts);
    Some(id)
}

/// The name of the group of the addresses that are in all of some groups. Unions have at most one term, so that no
/// union has the same name. The ranges follow from the parts.
fn id_of(parts: &BTreeSet<GroupId>) -> GroupId {
    let texts: Vec<String> = parts.iter().map(GroupId::to_string).collect();
    let terms = ["in each of"]
        .into_iter()
        .chain(texts.iter().map(String::as_str));
    GroupId::of(terms, &Ranges::EMPTY)
}

/// The ranges of a protocol's ports within which no class changes.
fn segments(classes: &[&Class], protocol: Protocol) -> Vec<(u16, u16)> {
    let rules = classes.iter().flat_map(|class| &class.ports);
    let rules = rules.filter(|rule| rule.protocol == protocol);
    let starts = rules.flat_map(|rule| [Some(rule.first), rule.last.checked_add(1)]);
    let starts: BTreeSet<u16> = starts.flatten().collect();
    let ends = starts.iter().skip(1).map(|next| next - 1);
    starts.iter().copied().zip(ends.chain([u16::MAX])).collect()
}
