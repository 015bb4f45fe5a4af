//! The lease as nftables objects: two sets whose elements the kernel deletes by itself, and the chain that looks into
//! one of them. This module does not decide when a lease is requested or granted.
//!
//! ```text
//! lease ─ meta nfproto @lease-a ─> accept: the base chains that come next judge the packet
//!    └ jump fenced ─ neighbour discovery ─> accept
//!         └ goto closed ─ of this node's workloads ─> drop
//!              └ accept: what a node forwards for others is judged as usual
//! ```
//!
//! The enforcer fills the set that no packet looks into before it asks the control plane. Packets look into that set
//! once the control plane has agreed. So a lease's time counts from before the request. The kernel ends the lease even
//! if the enforcer dies.

use std::time::Duration;

use sallyport_nft::command::{Command, Element, Family, Match, Rule, SetKind, Tuple, Verdict};

use crate::table::{frame, ports::INSIDE, render};

/// The longest time that a lease may last. An element that expires later is no lease, whoever added it.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The base chain that checks whether the node has a lease. Packets meet the chain before the other base chains.
pub const CHAIN: &str = "lease";

/// The chain of a node without a lease.
pub const FENCED: &str = "fenced";

/// The chain there of all but neighbour discovery. The chain is separate since it changes with the workload ranges:
/// rules with constant sets do not change while packets look.
pub const CLOSED: &str = "closed";

/// The chains that exist for leases alone. Each comes before those that name it.
pub const CHAINS: [&str; 3] = [CLOSED, FENCED, CHAIN];

/// One of the two sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slot {
    /// The slot that a fresh table looks into.
    #[default]
    A,
    /// The other slot.
    B,
}

impl Slot {
    /// Both slots.
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    /// The set's name.
    pub fn name(self) -> &'static str {
        match self {
            Slot::A => "lease-a",
            Slot::B => "lease-b",
        }
    }

    /// The slot whose set has a name.
    pub fn named(name: &str) -> Option<Slot> {
        Slot::BOTH.into_iter().find(|slot| slot.name() == name)
    }

    /// The slot that is not this one.
    pub fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

/// Whether a set or chain exists for leases alone.
pub fn is_of_lease(name: &str) -> bool {
    CHAINS.contains(&name) || Slot::named(name).is_some()
}

/// Makes the two sets, empty: without a lease.
pub fn sets() -> Vec<Command> {
    let set = |slot: Slot| Command::AddSet {
        name: slot.name().into(),
        kind: SetKind::Families,
        comment: "the node goes on while a lease is here".into(),
    };
    Slot::BOTH.map(set).to_vec()
}

/// The rules of the lease's chain that look into one of the sets.
pub fn rules(slot: Slot) -> Vec<Rule> {
    vec![
        Rule::when(Match::Family(slot.name().into()), Verdict::Accept),
        Rule::always(Verdict::Jump(FENCED.into())),
        frame::nothing_allowed(),
    ]
}

/// Puts a lease into a set, in place of any other. The lease's time runs from the commit.
pub fn fill(slot: Slot, lasts: Duration) -> Vec<Command> {
    let elements = Family::BOTH.map(|family| Element::Family(family, lasts));
    vec![
        Command::FlushSet(slot.name().into()),
        Command::AddElements(slot.name().into(), SetKind::Families, elements.into()),
    ]
}

/// Has packets look into a set.
pub fn look_into(slot: Slot) -> Vec<Command> {
    render::replace_rules(CHAIN, rules(slot))
}

/// The rules of a node without a lease.
pub(super) fn fenced_rules() -> Vec<Rule> {
    vec![
        Rule::when(Match::NeighbourDiscovery, Verdict::Accept),
        Rule::always(Verdict::Goto(CLOSED.into())),
    ]
}

/// The rules that drop all packets of this node's workloads: by both ends of the connection, and by the packet's own
/// addresses. Addresses that are endpoints are in the sets of pairs, longer than in the maps. `ranges` are sets of
/// addresses that are not endpoints (yet). `sources` are sets of addresses that are workloads' where a packet passes an
/// interface of workloads, and `interfaces` lead to workloads.
pub(super) fn closed_rules(
    ranges: &[(Family, String)],
    sources: &[(Family, String)],
    interfaces: &[String],
) -> Vec<Rule> {
    let mut conditions = Vec::new();
    for family in Family::BOTH {
        let own = || render::map_name("self", family);
        conditions.extend([
            Match::TupleSourceTwice(Tuple::Original, family, own()),
            Match::TupleSourceTwice(Tuple::Reply, family, own()),
            Match::SourceTwice(family, own()),
            Match::DestinationTwice(family, own()),
        ]);
    }
    for (family, name) in ranges {
        conditions.extend([
            Match::TupleSource(Tuple::Original, *family, name.clone()),
            Match::TupleSource(Tuple::Reply, *family, name.clone()),
            Match::Source(*family, name.clone()),
            Match::Destination(*family, name.clone()),
        ]);
    }
    for interface in interfaces {
        conditions.push(Match::InputInterface(interface.clone()));
        conditions.push(Match::OutputInterface(interface.clone()));
    }
    let drop = |condition| {
        Rule::when(condition, Verdict::Drop)
            .counted()
            .comment("fenced: no lease")
    };
    let others = Rule::always(Verdict::Accept);
    let inside = || INSIDE.to_owned();
    let sources = sources.iter().flat_map(|(family, name)| {
        let from = drop(Match::Source(*family, name.clone())).and(Match::InputIn(inside()));
        let to = drop(Match::Destination(*family, name.clone()));
        [from, to.and(Match::OutputIn(inside()))]
    });
    let drops = conditions.into_iter().map(drop).chain(sources);
    drops.chain([others]).collect()
}
