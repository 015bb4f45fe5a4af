//! The connections that must end with an update though the table would let them go on. Pure.
//!
//! The table judges a connection by who began it, and conntrack takes for that whose packet it saw first. It may have
//! missed the beginning: it lost the connection, or did not track when it began. Then what a server sends makes a
//! connection of its own of it, which what the server may send allows, and with it all that the client answers.
//!
//! - **TCP** shows its beginning. A packet that begins nothing is reset where an end is isolated (the frame's chain
//!   `unbegun`), so an isolated workload has no connection that was picked up but those of the time before. They end
//!   when it becomes isolated; who goes on with one is reset then, and can connect again.
//! - **Other protocols** show none. When a flow is revoked, a connection ends that has it the other way round: by its
//!   record the table would let it go on as an answer. One from a port as clients have it to one as servers have it is
//!   recorded as it was begun, and stays. So does one that has the flow as it is revoked, since the table denies it in
//!   both directions: without the record what the server says would begin a flow here, while the node of the server
//!   takes it for an answer still. Only where the ports say that the record is the wrong way round that one ends, too.
//! - **ICMP** makes connections by requests alone: an answer makes none.
//!
//! In strict mode nothing passes of an address in the workload ranges that is no endpoint. Connections that conntrack
//! may have recorded for another workload end when the address becomes silent: a new workload has none.

use std::{collections::BTreeSet, sync::Arc};

use imbl::ordmap::DiffItem;
use sallyport_nft::connection::{Connection, End};
use sallyport_policy::{
    Class, ClassId, Direction, Endpoint, GroupId, NodePolicy, PortRule, Protocol,
};

use crate::{plan::Installed, table::render::Options};

/// The first port that Linux gives to clients which choose none (`net.ipv4.ip_local_port_range`); that of IANA's
/// dynamic ports (RFC 6335, section 6) is above it.
const CLIENTS_PORTS: u16 = 32768;

/// The connections that are reviewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// The connections that an update revokes.
    Revoked,
    /// All: nobody knows what passed before.
    All,
}

/// Whether there may be connections that must end when `new` takes the place of `old`; `meet` is what both allow. The
/// cost is that of what changes, and of the node's classes where a group loses members.
pub(super) fn is_needed(
    old: &Installed,
    meet: &NodePolicy,
    new: &Installed,
    options: &Options,
) -> bool {
    let mut changes = old.policy.endpoints().diff(new.policy.endpoints());
    let isolates = changes.any(|item| match item {
        DiffItem::Add(address, endpoint) => {
            let silent = options.silences(&old.policy, *address);
            refuses_endpoint(&new.policy, endpoint)
                && (!silent || old.departed.contains_key(address))
        }
        DiffItem::Update {
            old: (_, before),
            new: (_, after),
        } => !refuses_endpoint(&old.policy, before) && refuses_endpoint(&new.policy, after),
        DiffItem::Remove(..) => false,
    });
    let mut revokes = old.policy.endpoints().diff(meet.endpoints());
    let silences = options.strict && old.policy.workload_ranges() != new.policy.workload_ranges();
    // A change of sources is rare: all connections are looked at.
    let judges_ranges = old.policy.sources() != new.policy.sources();
    isolates
        || silences
        || judges_ranges
        || revokes.any(|item| match item {
            DiffItem::Update {
                old: (_, before),
                new: (_, after),
            } => Direction::BOTH.into_iter().any(|direction| {
                let before = beside_tcp(&old.policy, before, direction);
                before != beside_tcp(meet, after, direction)
            }),
            DiffItem::Add(..) | DiffItem::Remove(..) => false,
        })
        || loses_members(&old.policy, meet)
}

/// Whether a connection must end when one policy takes the place of another; `before` is `None` where nobody knows what
/// passed.
pub fn must_end(
    connection: &Connection,
    before: Option<&NodePolicy>,
    after: &NodePolicy,
    options: &Options,
) -> bool {
    let Connection {
        protocol,
        client,
        server,
        picked_up,
    } = *connection;
    // Connections of a workload that is gone stay until its address is another's.
    let falls_silent = |End { address, .. }: End| {
        let silences = |policy| options.silences(policy, address);
        let is_silent = silences(after) && !after.endpoints().contains_key(&address);
        is_silent && !before.is_some_and(silences)
    };
    if falls_silent(client) || falls_silent(server) {
        return picked_up || i32::from(protocol) != libc::IPPROTO_TCP;
    }
    match i32::from(protocol) {
        libc::IPPROTO_TCP => {
            let refused = |policy: &NodePolicy, end: End| {
                refuses(policy, policy.classes_of(end.address).into_iter().flatten())
            };
            let becomes_isolated =
                |end| !before.is_some_and(|before| refused(before, end)) && refused(after, end);
            picked_up && [client, server].into_iter().any(becomes_isolated)
        }
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => false,
        _ => {
            let protocol = Protocol::from_number(protocol.into());
            let is_clients = |end: End| protocol.is_some() && end.port >= CLIENTS_PORTS;
            let is_servers = |end: End| protocol.is_some() && end.port < CLIENTS_PORTS;
            let is_as_begun = is_clients(client) && is_servers(server);
            let is_turned_round = is_servers(client) && is_clients(server);
            let revoked = |from: End, to: End| {
                let passes = |policy| passes(policy, from, to, protocol);
                before.is_none_or(passes) && !passes(after)
            };
            (!is_as_begun && revoked(server, client))
                || (is_turned_round && revoked(client, server))
        }
    }
}

/// Whether packets that begin no connection are refused to a workload: it is isolated, and nothing that is established
/// is kept.
fn refuses(policy: &NodePolicy, mut classes: impl Iterator<Item = ClassId>) -> bool {
    classes.any(|class| !policy.classes()[&class].keep_established)
}

fn refuses_endpoint(policy: &NodePolicy, endpoint: &Endpoint) -> bool {
    let classes = [endpoint.ingress, endpoint.egress];
    refuses(policy, classes.into_iter().flatten())
}

/// Whether a flow passes, in both directions once it is there.
fn passes(policy: &NodePolicy, from: End, to: End, protocol: Option<Protocol>) -> bool {
    let port = protocol.map(|protocol| (protocol, to.port));
    let one = |direction, local: End, peer: End| {
        policy.keeps(direction, local.address)
            || policy.allows(direction, local.address, peer.address, port)
    };
    one(Direction::Egress, from, to) && one(Direction::Ingress, to, from)
}

/// The part of a class that is not of TCP: whether it keeps, and the peers of protocols without and with ports.
type BesideTcp<'a> = (bool, Option<GroupId>, Vec<&'a PortRule>);

/// The part of a workload's class in a direction that is not of TCP; `None` where it is not isolated.
fn beside_tcp<'a>(
    policy: &'a NodePolicy,
    endpoint: &Endpoint,
    direction: Direction,
) -> Option<BesideTcp<'a>> {
    let class = &policy.classes()[&endpoint.class(direction)?];
    Some((
        class.keep_established,
        class.other,
        ports_beside_tcp(class).collect(),
    ))
}

fn ports_beside_tcp(class: &Class) -> impl Iterator<Item = &PortRule> {
    let ports = class.ports.iter();
    ports.filter(|rule| rule.protocol != Protocol::Tcp)
}

/// Whether a group loses members whom a class allows more than TCP.
fn loses_members(old: &NodePolicy, meet: &NodePolicy) -> bool {
    let changes = old.groups().diff(meet.groups());
    let losing: BTreeSet<GroupId> = changes
        .filter_map(|item| match item {
            DiffItem::Update {
                old: (&id, before),
                new: (_, after),
            } => (!before.member_changes(after).1.is_empty()).then_some(id),
            DiffItem::Add(..) | DiffItem::Remove(..) => None,
        })
        .collect();
    let allows = |class: &Arc<Class>| {
        let groups = ports_beside_tcp(class).map(|rule| rule.group);
        let mut groups = groups.chain(class.other);
        groups.any(|id| losing.contains(&id))
    };
    !losing.is_empty() && old.classes().values().any(allows)
}
