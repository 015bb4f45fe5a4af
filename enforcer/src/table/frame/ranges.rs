//! The ranges of addresses that the frame's rules look up: the node's workload ranges, and those that workloads use
//! beside their own addresses. Each is a set that never changes, since the kernel shows changes of ranges late. Other
//! ranges are another set.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_nft::command::{Command, Family, Match, Tuple, Verdict};
use sallyport_policy::{ClassId, Direction, GroupId, Ranges, Source};

use crate::table::render::{self, Verdicts, range_set};

/// The sets of some ranges, one for each family that has some.
pub(super) type Names = Vec<(Family, String)>;

/// The addresses that workloads use beside their own, and the verdicts on their packets.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<(Ranges, Verdicts)>);

/// A lookup of one end of a packet's flow.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lookup {
    /// The client, in its egress direction.
    Egress,
    /// The server, in its ingress direction.
    Ingress,
    /// Either end of a packet without a connection.
    Header,
}

impl Lookup {
    pub(super) const ALL: [Lookup; 3] = [Lookup::Egress, Lookup::Ingress, Lookup::Header];
}

impl Sources {
    /// The sources of a policy. `chain` returns the name of a class's chain.
    pub(super) fn of(sources: &[Source], chain: impl Fn(ClassId) -> String) -> Sources {
        let judged = sources.iter().map(|source| {
            let chain = |direction: Direction| source.class(direction).map(&chain);
            (source.ranges.clone(), render::verdicts(chain))
        });
        Sources(judged.collect())
    }

    /// Whether there are no addresses.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All addresses.
    pub(super) fn ranges(&self) -> Ranges {
        Ranges::union_all(self.0.iter().map(|(ranges, _)| ranges))
    }

    /// The addresses of each verdict. The verdicts are few: as many as there are classes of workloads with such
    /// addresses.
    pub(super) fn by(&self, lookup: Lookup) -> BTreeMap<Verdict, Ranges> {
        let mut all: BTreeMap<Verdict, Ranges> = BTreeMap::new();
        for (ranges, verdicts) in &self.0 {
            let verdict = match lookup {
                Lookup::Egress => &verdicts.egress,
                Lookup::Ingress => &verdicts.ingress,
                Lookup::Header => &verdicts.header,
            };
            let there = all.entry(verdict.clone()).or_default();
            *there = there.union(ranges);
        }
        all
    }
}

/// The names of the sets of some ranges. A name has all digits of a hash of the ranges. With fewer digits, whoever
/// writes ranges could choose some whose digits are those of others.
pub(super) fn names(what: &str, ranges: &Ranges) -> Names {
    let id = GroupId::of([], ranges).to_string();
    let families: BTreeSet<Family> = ranges.iter().map(|(first, _)| Family::of(first)).collect();
    let name = |family: Family| (family, format!("{what}{}-{id}", family.digit()));
    families.into_iter().map(name).collect()
}

/// The conditions that the source of a tuple is in some ranges: for each family its one range, or the set of its ranges
/// where there are several. A range in a rule costs a packet half of a lookup in a set of ranges (`bench B10`), so that
/// two would gain nothing.
pub(super) fn conditions(what: &str, tuple: Tuple, ranges: &Ranges) -> Vec<Match> {
    let condition = |(family, set): (Family, String)| {
        let mut own = ranges
            .iter()
            .filter(|(first, _)| Family::of(*first) == family);
        match (own.next(), own.next()) {
            (Some((first, last)), None) => Match::TupleRange(tuple, first, last),
            _ => Match::TupleSource(tuple, family, set),
        }
    };
    names(what, ranges).into_iter().map(condition).collect()
}

/// The names of the sets of some ranges, with the commands that make each.
pub(super) fn sets(
    what: &str,
    ranges: &Ranges,
    comment: &str,
) -> impl Iterator<Item = (String, Vec<Command>)> {
    names(what, ranges).into_iter().map(move |(family, name)| {
        let commands = range_set(&name, family, ranges, comment);
        (name, commands)
    })
}
