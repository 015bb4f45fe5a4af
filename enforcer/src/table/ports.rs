//! The interfaces of workloads in the table of family inet. There is a set of their names, and sets of the addresses
//! beside their own that the workloads behind them may use. A third set has the places where such packets come and go.
//! The sets are no part of plans: the agent changes them separately.

use std::collections::{BTreeMap, BTreeSet};

use sallyport_policy::Ranges;

use sallyport_nft::command::{Command, Element, Family, SetKind};

/// The set of the interfaces behind which there are workloads alone, as far as such interfaces are known and no
/// bridge's.
pub const PORTS: &str = "ports";

/// The set of the interfaces and bridges by which packets of workloads come and go that may use addresses beside their
/// own.
pub const INSIDE: &str = "inside";

/// The number of elements that a batch has room for.
const AT_ONCE: usize = 500;

/// The interfaces of workloads that are no port of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The interfaces behind which there are workloads alone.
    pub names: BTreeSet<String>,
    /// The addresses beside their own that the workloads behind an interface may use. The interfaces are these, and
    /// those that `--interface` names. No interface has an empty entry.
    pub ranges: BTreeMap<String, Ranges>,
    /// The interfaces and bridges where policy judges such addresses: `guard::inside` computes them.
    pub inside: BTreeSet<String>,
}

impl Ports {
    /// Interfaces without addresses beside those of their workloads.
    pub fn named<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Ports {
        Ports {
            names: names.into_iter().map(Into::into).collect(),
            ..Ports::default()
        }
    }

    /// Allows the workloads behind an interface to use these addresses, too.
    pub fn allow(&mut self, interface: &str, ranges: &Ranges) {
        if ranges.is_empty() {
            return;
        }
        let there = self.ranges.entry(interface.to_owned()).or_default();
        *there = there.union(ranges);
    }

    /// Keeps the interfaces that were there before. Interfaces that are unknown now keep their addresses, as far as
    /// these are allowed.
    pub fn keep(&mut self, before: &Ports, allowed: &Ranges) {
        for (name, ranges) in &before.ranges {
            if !self.names.contains(name) && !self.ranges.contains_key(name) {
                self.allow(name, &ranges.intersection(allowed));
            }
        }
        self.names.extend(before.names.iter().cloned());
        self.inside.extend(before.inside.iter().cloned());
    }

    /// The interfaces that elements stand for, each with the name of its set.
    pub fn of(elements: impl IntoIterator<Item = (String, Element)>) -> Ports {
        let mut ports = Ports::default();
        for (set, element) in elements {
            match element {
                Element::Interface(name) if set == INSIDE => drop(ports.inside.insert(name)),
                Element::Interface(name) => drop(ports.names.insert(name)),
                Element::InterfaceRange(name, first, last) => {
                    ports.allow(&name, &Ranges::span(first, last).unwrap_or_default());
                }
                _ => {}
            }
        }
        ports
    }
}

/// The set of the addresses of a family that workloads may use, each with an interface.
pub fn range_set(family: Family) -> String {
    format!("port_ranges{}", family.digit())
}

/// The sets, and the types of their elements.
pub fn kinds() -> [(String, SetKind); 4] {
    let ranges = |family| (range_set(family), SetKind::InterfaceRanges(family));
    let [v4, v6] = Family::BOTH.map(ranges);
    let names = |set: &str| (set.to_owned(), SetKind::Interfaces);
    [names(PORTS), names(INSIDE), v4, v6]
}

/// The elements that let the workloads behind an interface use addresses.
pub fn elements(port: &str, ranges: &Ranges, family: Family) -> BTreeSet<Element> {
    let of_family = ranges
        .iter()
        .filter(|&(first, _)| Family::of(first) == family);
    of_family
        .map(|(first, last)| Element::InterfaceRange(port.to_owned(), first, last))
        .collect()
}

/// The elements of one set that have an address in common with one of some others.
pub fn overlapping(some: &BTreeSet<Element>, others: &BTreeSet<Element>) -> BTreeSet<Element> {
    // No two elements of either set overlap. So the last elements of an interface that begin in time are enough.
    let meets = |element: &&Element| {
        let Element::InterfaceRange(port, first, last) = element else {
            return false;
        };
        let until = Element::InterfaceRange(port.clone(), *last, *last);
        let below = others.range(..until).next_back();
        let at = others.range(Element::InterfaceRange(port.clone(), *last, *last)..);
        below.into_iter().chain(at.take(1)).any(|other| {
            matches!(other, Element::InterfaceRange(of, from, to) if of == port && from <= last && first <= to)
        })
    };
    some.iter().filter(meets).cloned().collect()
}

/// Makes the sets, with their elements.
pub(super) fn sets(ports: &Ports) -> Vec<Command> {
    let set = |name, kind, comment: &str| Command::AddSet {
        name,
        kind,
        comment: comment.into(),
    };
    let ranges = |family| {
        set(
            range_set(family),
            SetKind::InterfaceRanges(family),
            "addresses beside their own that workloads may use",
        )
    };
    let mut commands = vec![
        set(
            PORTS.into(),
            SetKind::Interfaces,
            "interfaces of this node's workloads, by its routes",
        ),
        set(
            INSIDE.into(),
            SetKind::Interfaces,
            "where allowed sources of workloads come and go",
        ),
    ];
    commands.extend(Family::BOTH.map(ranges));
    let elements = change(&Ports::default(), ports);
    commands.extend(elements.into_iter().flatten());
    commands
}

/// The batches that lead from some interfaces of workloads to others. Between them no packet passes that passes neither
/// before the first nor after the last. Every packet that passes both times also passes between them. An interface
/// whose name the set gains drops more, so its addresses come before its name, and go after it. Addresses are judged
/// before they pass, for as long as they do.
pub fn change(before: &Ports, after: &Ports) -> Vec<Vec<Command>> {
    let gone = &before.names - &after.names;
    let new = &after.names - &before.names;
    let judged = as_elements(&after.inside - &before.inside);
    let unjudged = as_elements(&before.inside - &after.inside);
    let ports = before.ranges.keys().chain(after.ranges.keys());
    let (first, last) =
        ports.partition(|&port| after.ranges.contains_key(port) && !gone.contains(port));
    let judged = some(&judged).map(|part| add(INSIDE.into(), SetKind::Interfaces, part));
    let mut batches: Vec<Vec<Command>> = judged.collect();
    batches.extend(change_ranges(before, after, &first));
    let gone = some(&as_elements(gone)).map(|part| delete(PORTS.into(), SetKind::Interfaces, part));
    batches.extend(gone);
    let new = some(&as_elements(new)).map(|part| add(PORTS.into(), SetKind::Interfaces, part));
    batches.extend(new);
    batches.extend(change_ranges(before, after, &last));
    let unjudged = some(&unjudged).map(|part| delete(INSIDE.into(), SetKind::Interfaces, part));
    batches.extend(unjudged);
    batches
}

/// The batches that change the addresses of some interfaces. Interfaces that had none, or will have none, share
/// batches.
fn change_ranges(before: &Ports, after: &Ports, ports: &BTreeSet<&String>) -> Vec<Vec<Command>> {
    let mut batches = Vec::new();
    for family in Family::BOTH {
        let (mut gone, mut new) = (BTreeSet::new(), BTreeSet::new());
        for &port in ports {
            let of = |ports: &Ports| {
                let ranges = ports.ranges.get(port);
                ranges.map_or_else(BTreeSet::new, |ranges| elements(port, ranges, family))
            };
            let (before, after) = (of(before), of(after));
            if before.is_empty() || after.is_empty() {
                gone.extend(before);
                new.extend(after);
            } else {
                batches.extend(exchange(&before, &after, family));
            }
        }
        let (set, kind) = (range_set(family), SetKind::InterfaceRanges(family));
        batches.extend(some(&gone).map(|part| delete(set.clone(), kind, part)));
        batches.extend(some(&new).map(|part| add(set.clone(), kind, part)));
    }
    batches
}

/// Replaces the addresses of an interface. The kernel refuses elements that overlap, so the old ones are deleted first.
/// Both happen in one batch, if it has room, so that packets of addresses that stay allowed are not dropped meanwhile.
fn exchange(
    before: &BTreeSet<Element>,
    after: &BTreeSet<Element>,
    family: Family,
) -> Vec<Vec<Command>> {
    let (gone, new) = (before - after, after - before);
    let (set, kind) = (range_set(family), SetKind::InterfaceRanges(family));
    let delete = some(&gone).map(|part| delete(set.clone(), kind, part));
    let changes = delete.chain(some(&new).map(|part| add(set.clone(), kind, part)));
    let changes: Vec<Vec<Command>> = changes.collect();
    match gone.len() + new.len() {
        0 => Vec::new(),
        1..=AT_ONCE => vec![changes.concat()],
        _ => changes,
    }
}

fn add(set: String, kind: SetKind, elements: Vec<Element>) -> Vec<Command> {
    vec![Command::AddElements(set, kind, elements)]
}

fn delete(set: String, kind: SetKind, elements: Vec<Element>) -> Vec<Command> {
    vec![Command::DeleteElements(set, kind, elements)]
}

fn as_elements(names: BTreeSet<String>) -> BTreeSet<Element> {
    names.into_iter().map(Element::Interface).collect()
}

/// The elements in parts that a batch has room for.
fn some(elements: &BTreeSet<Element>) -> impl Iterator<Item = Vec<Element>> + use<> {
    let all: Vec<Element> = elements.iter().cloned().collect();
    let parts: Vec<_> = all.chunks(AT_ONCE).map(<[Element]>::to_vec).collect();
    parts.into_iter()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    fn ranges(spans: &[(u8, u8)]) -> Ranges {
        let spans: Vec<Ranges> = spans
            .iter()
            .map(|&(first, last)| Ranges::span(address(first), address(last)).unwrap())
            .collect();
        Ranges::union_all(&spans)
    }

    fn ports(names: &[&str], with: &[(&str, &[(u8, u8)])]) -> Ports {
        let mut ports = Ports::named(names.iter().copied());
        for (port, spans) in with {
            ports.allow(port, &ranges(spans));
        }
        ports
    }

    /// Applies a batch to the sets. Panics at a command that the kernel would refuse.
    fn apply(before: &Ports, batch: &[Command]) -> Ports {
        let mut sets: BTreeMap<String, BTreeSet<Element>> = BTreeMap::new();
        for (set, names) in [(PORTS, &before.names), (INSIDE, &before.inside)] {
            sets.insert(set.into(), as_elements(names.clone()));
        }
        for family in Family::BOTH {
            let ranges = before.ranges.iter();
            let all = ranges.flat_map(|(port, ranges)| elements(port, ranges, family));
            sets.insert(range_set(family), all.collect());
        }
        for command in batch {
            match command {
                Command::AddElements(set, _, new) => {
                    let new: BTreeSet<Element> = new.iter().cloned().collect();
                    assert!(overlapping(&new, &sets[set]).is_empty(), "{command:?}");
                    sets.get_mut(set).expect("it is there").extend(new);
                }
                Command::DeleteElements(set, _, gone) => {
                    let there = sets.get_mut(set).expect("it is there");
                    gone.iter()
                        .for_each(|one| assert!(there.remove(one), "{command:?}"));
                }
                _ => panic!("{command:?}"),
            }
        }
        let all = sets.into_iter();
        Ports::of(all.flat_map(|(set, elements)| {
            elements
                .into_iter()
                .map(move |element| (set.clone(), element))
        }))
    }

    /// Whether a packet passes that comes in by an interface astray, and whether policy judges the packet if it does.
    fn passes(ports: &Ports, port: &str, source: u8) -> (bool, bool) {
        let allows = |ranges: &Ranges| ranges.contains(address(source));
        let passes = !ports.names.contains(port) || ports.ranges.get(port).is_some_and(allows);
        (passes, passes && ports.inside.contains(port))
    }

    #[test]
    fn no_moment_of_a_change_is_looser_or_tighter_than_both_ends() {
        let all = [
            ports(&[], &[]),
            ports(&["a"], &[]),
            ports(&["a"], &[("a", &[(1, 5)])]),
            ports(&["a"], &[("a", &[(1, 3), (5, 9)])]),
            ports(&["a", "b"], &[("a", &[(2, 9)]), ("b", &[(1, 1)])]),
            ports(&["b"], &[("b", &[(1, 5)])]),
            ports(&["b"], &[("a", &[(1, 5)])]),
        ];
        // Policy judges where addresses may be used beside those of workloads.
        let judged = |mut ports: Ports| {
            ports.inside = ports.ranges.keys().cloned().collect();
            ports
        };
        let all = all.map(judged);
        for (before, after) in all
            .iter()
            .flat_map(|one| all.iter().map(move |other| (one, other)))
        {
            let mut now = before.clone();
            for batch in change(before, after) {
                now = apply(&now, &batch);
                for (port, source) in ["a", "b"]
                    .iter()
                    .flat_map(|port| (0..11).map(move |n| (port, n)))
                {
                    let ends = [before, after].map(|ports| passes(ports, port, source));
                    let (passes, is_judged) = passes(&now, port, source);
                    let is_free = |&(passes, is_judged): &(bool, bool)| passes && !is_judged;
                    assert!(
                        ends.iter().any(|end| end.0 == passes)
                            && (!passes || is_judged || ends.iter().any(is_free)),
                        "{before:?} -> {now:?} -> {after:?}: {port} {source}"
                    );
                }
            }
            assert_eq!(now, *after);
        }
    }

    #[test]
    fn what_a_batch_has_no_room_for_comes_in_parts() {
        let many = |n: u8| {
            let spans = (0..=n).flat_map(|m| (0..120u8).map(move |k| (m, 2 * k)));
            let spans: Vec<Ranges> = spans
                .map(|(m, k)| Ranges::span([10, 0, m, k].into(), [10, 0, m, k].into()).unwrap())
                .collect();
            let mut ports = Ports::named(["a"]);
            ports.allow("a", &Ranges::union_all(&spans));
            ports
        };
        let (one, other) = (many(9), ports(&["a"], &[("a", &[(0, 255)])]));
        for (before, after) in [(&one, &other), (&other, &one), (&Ports::default(), &one)] {
            let mut now = before.clone();
            for batch in change(before, after) {
                assert!(batch.iter().all(|command| match command {
                    Command::AddElements(.., some) | Command::DeleteElements(.., some) =>
                        some.len() <= AT_ONCE,
                    _ => false,
                }));
                now = apply(&now, &batch);
            }
            assert_eq!(now, *after);
        }
    }

    #[test]
    fn overlaps_are_found_by_interface() {
        let of = |port: &str, spans: &[(u8, u8)]| elements(port, &ranges(spans), Family::V4);
        let some = of("a", &[(1, 3), (5, 9), (20, 30), (40, 40)]);
        let meets = |others: &BTreeSet<Element>| overlapping(&some, others);
        assert_eq!(
            meets(&of("a", &[(3, 3), (25, 50)])),
            of("a", &[(1, 3), (20, 30), (40, 40)])
        );
        assert_eq!(meets(&of("a", &[(0, 255)])), some);
        assert_eq!(meets(&of("a", &[(4, 4), (10, 19), (31, 39)])), of("a", &[]));
        assert_eq!(meets(&of("b", &[(0, 255)])), of("a", &[]));
    }
}
