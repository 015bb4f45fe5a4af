//! Between wire messages and domain types, in one place. What comes from the wire is a stranger until it is through
//! here, and is not checked again afterwards.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use prost::{Message as _, bytes::Bytes};

use crate::wire;
use sallyport_policy::{
    Change, Class, ClassId, Delta, Digest, Direction, Endpoint, Epoch, GroupId, GroupSpec, Owner,
    PortRule, Position, Protocol, Ranges, Revision, Source, interface, octets,
};

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {field}: {problem}")]
pub struct WireError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn malformed(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError {
        field,
        problem: problem.into(),
    }
}

fn sixteen(field: &'static str, bytes: &[u8]) -> Result<[u8; 16], WireError> {
    bytes
        .try_into()
        .map_err(|_| malformed(field, format!("must be 16 bytes, is {}", bytes.len())))
}

/// The address of 4 or 16 bytes that a field of a message has.
pub fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(four).into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(sixteen) => Ok(Ipv6Addr::from(sixteen).into()),
        Err(_) => Err(malformed(
            field,
            format!("must be 4 or 16 bytes, is {}", bytes.len()),
        )),
    }
}

fn addresses(field: &'static str, list: &[Vec<u8>]) -> Result<Vec<IpAddr>, WireError> {
    list.iter().map(|bytes| address(field, bytes)).collect()
}

impl From<Position> for wire::Position {
    fn from(position: Position) -> Self {
        wire::Position {
            epoch: position.epoch.0,
            revision: position.revision.0,
            digest: position.digest.0.to_be_bytes().to_vec(),
        }
    }
}

impl TryFrom<&wire::Position> for Position {
    type Error = WireError;

    fn try_from(position: &wire::Position) -> Result<Self, WireError> {
        Ok(Position {
            epoch: Epoch(position.epoch),
            revision: Revision(position.revision),
            digest: Digest(u128::from_be_bytes(sixteen("digest", &position.digest)?)),
        })
    }
}

/// The names of versions, in the order of a message.
pub fn positions(found: &[wire::Position]) -> Result<Vec<Position>, WireError> {
    found.iter().map(Position::try_from).collect()
}

fn wire_ranges(ranges: &Ranges) -> Vec<wire::Range> {
    let range = |(first, last)| wire::Range {
        first: octets(first),
        last: octets(last),
    };
    ranges.iter().map(range).collect()
}

impl From<&Ranges> for wire::WorkloadRanges {
    fn from(ranges: &Ranges) -> Self {
        wire::WorkloadRanges {
            ranges: wire_ranges(ranges),
        }
    }
}

impl TryFrom<&wire::WorkloadRanges> for Ranges {
    type Error = WireError;

    fn try_from(found: &wire::WorkloadRanges) -> Result<Self, WireError> {
        ranges("workload_ranges", &found.ranges)
    }
}

fn ranges(field: &'static str, list: &[wire::Range]) -> Result<Ranges, WireError> {
    let mut spans = Vec::with_capacity(list.len());
    for range in list {
        let (first, last) = (address(field, &range.first)?, address(field, &range.last)?);
        spans.push(
            Ranges::span(first, last)
                .ok_or_else(|| malformed(field, format!("{first}-{last} is no range")))?,
        );
    }
    Ok(Ranges::union_all(&spans))
}

impl From<&Class> for wire::Class {
    fn from(class: &Class) -> Self {
        wire::Class {
            id: class.id().0.to_vec(),
            direction: match class.direction {
                Direction::Ingress => wire::Direction::Ingress,
                Direction::Egress => wire::Direction::Egress,
            }
            .into(),
            keep: class.keep_established,
            other: class.other.map(|id| id.0.to_vec()),
            ports: class
                .ports
                .iter()
                .map(|rule| wire::PortRule {
                    protocol: rule.protocol.number().into(),
                    first: rule.first.into(),
                    last: rule.last.into(),
                    group: rule.group.0.to_vec(),
                })
                .collect(),
        }
    }
}

impl TryFrom<&wire::Class> for Class {
    type Error = WireError;

    fn try_from(class: &wire::Class) -> Result<Self, WireError> {
        let ports: Vec<PortRule> = class
            .ports
            .iter()
            .map(port_rule)
            .collect::<Result<_, _>>()?;
        let ascending = ports
            .windows(2)
            .all(|pair| (pair[0].protocol, pair[0].last) < (pair[1].protocol, pair[1].first));
        if !ascending {
            return Err(malformed("class.ports", "must be disjoint and ascending"));
        }
        let found = Class {
            direction: match class.direction() {
                wire::Direction::Ingress => Direction::Ingress,
                wire::Direction::Egress => Direction::Egress,
                wire::Direction::Unspecified => {
                    return Err(malformed("class.direction", "must be ingress or egress"));
                }
            },
            keep_established: class.keep,
            other: class
                .other
                .as_ref()
                .map(|id| sixteen("class.other", id).map(GroupId))
                .transpose()?,
            ports,
        };
        if found.id().0 != class.id[..] {
            return Err(malformed("class.id", "is not the hash of the class"));
        }
        Ok(found)
    }
}

fn port_rule(rule: &wire::PortRule) -> Result<PortRule, WireError> {
    let port = |field, number: u32| {
        u16::try_from(number).map_err(|_| malformed(field, format!("{number} is no port")))
    };
    let protocol = Protocol::from_number(rule.protocol).ok_or_else(|| {
        malformed(
            "port_rule.protocol",
            format!("{} has no ports", rule.protocol),
        )
    })?;
    let (first, last) = (
        port("port_rule.first", rule.first)?,
        port("port_rule.last", rule.last)?,
    );
    if first > last {
        return Err(malformed("port_rule.last", "must not be before first"));
    }
    Ok(PortRule {
        protocol,
        first,
        last,
        group: GroupId(sixteen("port_rule.group", &rule.group)?),
    })
}

/// The changes of a delta, in the order of a message.
pub fn changes(delta: &Delta) -> Vec<wire::PolicyChange> {
    delta.changes.iter().map(wire::PolicyChange::from).collect()
}

impl From<&Change> for wire::PolicyChange {
    fn from(change: &Change) -> Self {
        use wire::policy_change::Change as Wire;
        let change = match change {
            Change::WorkloadRanges(ranges) => Wire::WorkloadRanges((&**ranges).into()),
            Change::Group {
                id,
                spec,
                add,
                remove,
            } => Wire::Group(wire::GroupChange {
                id: id.0.to_vec(),
                spec: spec.as_ref().map(|spec| wire::GroupSpec {
                    description: spec.description.clone(),
                    ranges: wire_ranges(&spec.ranges),
                }),
                add: add.iter().map(|&address| octets(address)).collect(),
                remove: remove.iter().map(|&address| octets(address)).collect(),
            }),
            Change::AddClass(class) => Wire::AddClass((&**class).into()),
            Change::SetEndpoint(address, endpoint) => Wire::SetEndpoint(wire::Endpoint {
                address: octets(*address),
                namespace: endpoint.namespace.clone(),
                name: endpoint.name.clone(),
                ingress: endpoint.ingress.map(|id| id.0.to_vec()),
                egress: endpoint.egress.map(|id| id.0.to_vec()),
                uid: endpoint.uid.clone(),
                interface: endpoint.interface.clone(),
            }),
            Change::RemoveEndpoint(address) => Wire::RemoveEndpoint(octets(*address)),
            Change::Sources(sources) => Wire::Sources(wire::Sources {
                sources: sources.iter().map(wire::Source::from).collect(),
            }),
            Change::RemoveClass(id) => Wire::RemoveClass(id.0.to_vec()),
            Change::RemoveGroup(id) => Wire::RemoveGroup(id.0.to_vec()),
        };
        wire::PolicyChange {
            change: Some(change),
        }
    }
}

/// The delta of the changes of a message.
pub fn delta(changes: &[wire::PolicyChange]) -> Result<Delta, WireError> {
    let changes = changes.iter().map(Change::try_from);
    Ok(Delta {
        changes: changes.collect::<Result<_, _>>()?,
    })
}

/// The delta of changes that are encoded each by itself.
pub fn encoded_delta(changes: &[Bytes]) -> Result<Delta, WireError> {
    let decoded = changes.iter().map(|change| {
        let change = wire::PolicyChange::decode(change.clone());
        change.map_err(|error| malformed("update.changes", error.to_string()))
    });
    delta(&decoded.collect::<Result<Vec<_>, _>>()?)
}

impl TryFrom<&wire::PolicyChange> for Change {
    type Error = WireError;

    fn try_from(change: &wire::PolicyChange) -> Result<Self, WireError> {
        use wire::policy_change::Change as Wire;
        let change = change.change.as_ref().ok_or_else(|| {
            malformed("change", "is empty or of a kind this version does not know")
        })?;
        Ok(match change {
            Wire::WorkloadRanges(list) => Change::WorkloadRanges(Arc::new(Ranges::try_from(list)?)),
            Wire::Group(group) => Change::Group {
                id: GroupId(sixteen("group.id", &group.id)?),
                spec: group.spec.as_ref().map(group_spec).transpose()?,
                add: addresses("group.add", &group.add)?,
                remove: addresses("group.remove", &group.remove)?,
            },
            Wire::AddClass(class) => Change::AddClass(Arc::new(class.try_into()?)),
            Wire::SetEndpoint(endpoint) => Change::SetEndpoint(
                address("endpoint.address", &endpoint.address)?,
                Arc::new(Endpoint {
                    namespace: endpoint.namespace.clone(),
                    name: endpoint.name.clone(),
                    uid: endpoint.uid.clone(),
                    interface: interface(&endpoint.interface)?,
                    ingress: class("endpoint.ingress", &endpoint.ingress)?,
                    egress: class("endpoint.egress", &endpoint.egress)?,
                }),
            ),
            Wire::RemoveEndpoint(bytes) => {
                Change::RemoveEndpoint(address("remove_endpoint", bytes)?)
            }
            Wire::Sources(list) => Change::Sources(Arc::new(sources(list)?)),
            Wire::RemoveClass(id) => Change::RemoveClass(ClassId(sixteen("remove_class", id)?)),
            Wire::RemoveGroup(id) => Change::RemoveGroup(GroupId(sixteen("remove_group", id)?)),
        })
    }
}

fn class(field: &'static str, id: &Option<Vec<u8>>) -> Result<Option<ClassId>, WireError> {
    let id = id.as_ref().map(|id| sixteen(field, id).map(ClassId));
    id.transpose()
}

impl From<&Source> for wire::Source {
    fn from(source: &Source) -> Self {
        let owner = |owner: &Owner| wire::Owner {
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
        };
        wire::Source {
            owners: source.owners.iter().map(owner).collect(),
            ingress: source.ingress.map(|id| id.0.to_vec()),
            egress: source.egress.map(|id| id.0.to_vec()),
            ranges: wire_ranges(&source.ranges),
        }
    }
}

impl TryFrom<&wire::Source> for Source {
    type Error = WireError;

    fn try_from(source: &wire::Source) -> Result<Self, WireError> {
        let owner = |owner: &wire::Owner| Owner {
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
        };
        Ok(Source {
            owners: source.owners.iter().map(owner).collect(),
            others: Vec::new(),
            ingress: class("source.ingress", &source.ingress)?,
            egress: class("source.egress", &source.egress)?,
            ranges: ranges("source.ranges", &source.ranges)?,
        })
    }
}

/// Sources of which each address is in one.
fn sources(list: &wire::Sources) -> Result<Vec<Source>, WireError> {
    let sources = list.sources.iter().map(Source::try_from);
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let sources = Source::canonical(sources);
    let mut all = Ranges::EMPTY;
    for source in &sources {
        if !all.intersection(&source.ranges).is_empty() {
            return Err(malformed("sources", "must be disjoint"));
        }
        all = all.union(&source.ranges);
    }
    Ok(sources)
}

/// The name of an interface, or none.
fn interface(name: &str) -> Result<String, WireError> {
    match interface::name_faults(name).first() {
        Some(fault) if !name.is_empty() => {
            Err(malformed("endpoint.interface", format!("{name:?} {fault}")))
        }
        _ => Ok(name.to_owned()),
    }
}

fn group_spec(spec: &wire::GroupSpec) -> Result<Arc<GroupSpec>, WireError> {
    Ok(Arc::new(GroupSpec {
        description: spec.description.clone(),
        ranges: ranges("group.ranges", &spec.ranges)?,
    }))
}
