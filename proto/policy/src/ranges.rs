//! Sets of IP addresses as inclusive ranges: union, intersection, difference. Exact, of both families at once.

use std::{collections::BTreeMap, fmt, net::IpAddr};

/// A set of addresses as disjoint ascending ranges, with no two of them adjacent: equal sets are equal values.
///
/// ```
/// use sallyport_policy::Ranges;
///
/// let span = |first, last| Ranges::span([10, 0, 0, first].into(), [10, 0, 0, last].into()).unwrap();
/// assert_eq!(span(0, 3).union(&span(4, 7)), span(0, 7));
/// assert_eq!(span(0, 7).difference(&span(2, 2)).len(), 2);
/// assert_eq!(span(0, 7).intersection(&span(4, 9)).to_string(), "10.0.0.4/30");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges {
    v4: Vec<Span>,
    v6: Vec<Span>,
}

/// An inclusive range of addresses of one family, as numbers.
type Span = (u128, u128);

/// Sets of addresses that come and go, counted: their union costs one walk over the edges that are there.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    v4: Edges,
    v6: Edges,
}

/// Where spans begin and end, and how many do. A beginning sorts before an end at the same address.
type Edges = BTreeMap<(u128, Edge), usize>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Begin,
    End,
}

impl Coverage {
    /// Counts a set in.
    pub fn add(&mut self, ranges: &Ranges) {
        let families = [(&mut self.v4, &ranges.v4), (&mut self.v6, &ranges.v6)];
        for (edges, spans) in families {
            for &(first, last) in spans {
                *edges.entry((first, Edge::Begin)).or_insert(0) += 1;
                *edges.entry((last, Edge::End)).or_insert(0) += 1;
            }
        }
    }

    /// Counts a set out that was counted in.
    pub fn remove(&mut self, ranges: &Ranges) {
        let families = [(&mut self.v4, &ranges.v4), (&mut self.v6, &ranges.v6)];
        for (edges, spans) in families {
            for &(first, last) in spans {
                for edge in [(first, Edge::Begin), (last, Edge::End)] {
                    let count = edges.get_mut(&edge).expect("it was counted in");
                    *count -= 1;
                    if *count == 0 {
                        edges.remove(&edge);
                    }
                }
            }
        }
    }

    /// The union of the sets.
    pub fn union(&self) -> Ranges {
        Ranges {
            v4: covered(&self.v4),
            v6: covered(&self.v6),
        }
    }
}

fn covered(edges: &Edges) -> Vec<Span> {
    let (mut covered, mut depth, mut first): (Vec<Span>, _, _) = (Vec::new(), 0, 0);
    for (&(at, edge), count) in edges {
        match edge {
            Edge::Begin => {
                if depth == 0 {
                    first = at;
                }
                depth += count;
            }
            Edge::End => {
                depth -= count;
                if depth > 0 {
                    continue;
                }
                match covered.last_mut() {
                    Some(last) if last.1.checked_add(1) == Some(first) => last.1 = at,
                    _ => covered.push((first, at)),
                }
            }
        }
    }
    covered
}

impl Ranges {
    /// No address at all.
    pub const EMPTY: Ranges = Ranges {
        v4: Vec::new(),
        v6: Vec::new(),
    };

    /// Every address of both families.
    pub fn everything() -> Ranges {
        Ranges {
            v4: vec![(0, u32::MAX.into())],
            v6: vec![(0, u128::MAX)],
        }
    }

    /// The addresses from `first` to `last`, both included. `None` if they are of two families or in wrong order.
    pub fn span(first: IpAddr, last: IpAddr) -> Option<Ranges> {
        let mut ranges = Ranges::EMPTY;
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                ranges
                    .v4
                    .push((first.to_bits().into(), last.to_bits().into()));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                ranges.v6.push((first.to_bits(), last.to_bits()));
            }
            _ => return None,
        }
        Some(ranges)
    }

    /// Whether no address is in the set.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether every address of both families is in the set.
    pub fn is_everything(&self) -> bool {
        self.v4 == [(0, u128::from(u32::MAX))] && self.v6 == [(0, u128::MAX)]
    }

    /// Whether an address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (spans, number) = match address {
            IpAddr::V4(address) => (&self.v4, address.to_bits().into()),
            IpAddr::V6(address) => (&self.v6, address.to_bits()),
        };
        let after = spans.partition_point(|&(first, _)| first <= number);
        after > 0 && spans[after - 1].1 >= number
    }

    /// The ranges in ascending order, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> + '_ {
        let v4 = self.v4.iter().map(|&(a, b)| (v4(a), v4(b)));
        let v6 = self.v6.iter().map(|&(a, b)| (v6(a), v6(b)));
        v4.chain(v6)
    }

    /// How many ranges there are, of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// The addresses that are in either.
    pub fn union(&self, other: &Ranges) -> Ranges {
        self.zip(other, union)
    }

    /// The addresses that are in both.
    pub fn intersection(&self, other: &Ranges) -> Ranges {
        self.zip(other, intersection)
    }

    /// The addresses that are in `self` and not in `other`.
    pub fn difference(&self, other: &Ranges) -> Ranges {
        self.zip(other, difference)
    }

    /// The union of many sets, at the cost of one sort.
    pub fn union_all<'a>(sets: impl IntoIterator<Item = &'a Ranges>) -> Ranges {
        let mut all = Ranges::EMPTY;
        for set in sets {
            all.v4.extend_from_slice(&set.v4);
            all.v6.extend_from_slice(&set.v6);
        }
        Ranges {
            v4: merge(all.v4),
            v6: merge(all.v6),
        }
    }

    fn zip(&self, other: &Ranges, op: fn(&[Span], &[Span]) -> Vec<Span>) -> Ranges {
        Ranges {
            v4: op(&self.v4, &other.v4),
            v6: op(&self.v6, &other.v6),
        }
    }
}

impl fmt::Display for Ranges {
    /// As nft lists them: `10.0.0.0-10.0.0.7, 10.0.0.9`; prefixes are written as such.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match prefix_length(first, last) {
                Some(bits) if first == last => {
                    debug_assert!(bits == 32 || bits == 128);
                    write!(f, "{first}")?;
                }
                Some(bits) => write!(f, "{first}/{bits}")?,
                None => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The length of the prefix that is exactly `first..=last`, if one is.
fn prefix_length(first: IpAddr, last: IpAddr) -> Option<u32> {
    let (first, last, width) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return None,
    };
    let free = (first ^ last).checked_add(1).map_or(128, |size| {
        if size.is_power_of_two() {
            size.trailing_zeros()
        } else {
            u32::MAX
        }
    });
    if free == u32::MAX || (free < 128 && first & ((1u128 << free) - 1) != 0) {
        return None;
    }
    Some(width - free)
}

fn v4(number: u128) -> IpAddr {
    let number = u32::try_from(number).expect("IPv4 spans hold 32-bit numbers");
    IpAddr::V4(number.into())
}

fn v6(number: u128) -> IpAddr {
    IpAddr::V6(number.into())
}

/// Sorts spans and joins those that overlap or touch.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match merged.last_mut() {
            Some(previous) if previous.1.checked_add(1).is_none_or(|next| next >= first) => {
                previous.1 = previous.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn union(a: &[Span], b: &[Span]) -> Vec<Span> {
    merge([a, b].concat())
}

fn intersection(a: &[Span], b: &[Span]) -> Vec<Span> {
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        let (first, last) = (a[i].0.max(b[j].0), a[i].1.min(b[j].1));
        if first <= last {
            out.push((first, last));
        }
        if a[i].1 < b[j].1 {
            i += 1;
        } else {
            j += 1;
        }
    }
    out
}

fn difference(a: &[Span], b: &[Span]) -> Vec<Span> {
    let (mut j, mut out) = (0, Vec::new());
    for &(first, last) in a {
        let mut from = first;
        while j < b.len() && b[j].1 < from {
            j += 1;
        }
        let (mut k, mut done) = (j, false);
        while k < b.len() && b[k].0 <= last {
            if b[k].0 > from {
                out.push((from, b[k].0 - 1));
            }
            match b[k].1.checked_add(1) {
                Some(next) if next <= last => from = next,
                _ => {
                    done = true;
                    break;
                }
            }
            k += 1;
        }
        if !done {
            out.push((from, last));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Spans near the edges of the family, where arithmetic overflows.
    fn spans() -> impl Strategy<Value = BTreeSet<u8>> {
        proptest::collection::btree_set(any::<u8>(), 0..40)
    }

    fn ranges(points: &BTreeSet<u8>) -> Ranges {
        let top = |n: u8| u128::MAX - u128::from(u8::MAX - n);
        Ranges {
            v4: merge(points.iter().map(|&n| (n.into(), n.into())).collect()),
            v6: merge(points.iter().map(|&n| (top(n), top(n))).collect()),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_sets_of_numbers(a in spans(), b in spans()) {
            let (ra, rb) = (ranges(&a), ranges(&b));
            prop_assert_eq!(ra.union(&rb), ranges(&a.union(&b).copied().collect()));
            prop_assert_eq!(Ranges::union_all([&ra, &rb]), ra.union(&rb));
            let mut coverage = Coverage::default();
            coverage.add(&ra);
            coverage.add(&rb);
            prop_assert_eq!(coverage.union(), ra.union(&rb));
            coverage.remove(&ra);
            prop_assert_eq!(coverage.union(), rb.clone());
            prop_assert_eq!(ra.intersection(&rb), ranges(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(ra.difference(&rb), ranges(&a.difference(&b).copied().collect()));
            for n in 0..=u8::MAX {
                prop_assert_eq!(ra.contains(v4(n.into())), a.contains(&n));
            }
        }
    }

    #[test]
    fn prints_prefixes_where_they_are_some() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let show = |a: &str, b: &str| Ranges::span(ip(a), ip(b)).unwrap().to_string();
        assert_eq!(show("10.0.0.0", "10.255.255.255"), "10.0.0.0/8");
        assert_eq!(show("10.0.0.9", "10.0.0.9"), "10.0.0.9");
        assert_eq!(show("10.0.0.9", "10.0.0.10"), "10.0.0.9-10.0.0.10");
        assert_eq!(
            show("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            "::/0"
        );
        assert_eq!(show("0.0.0.0", "255.255.255.255"), "0.0.0.0/0");
        assert!(Ranges::everything().is_everything());
        assert!(Ranges::span(ip("10.0.0.2"), ip("10.0.0.1")).is_none());
    }
}
