//! Owns the short words in which the cases are written; never runs one.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use sallyport_nft::command::{
    Base, Command, Element, Family, Match, Rule, SetKind, Tuple, Verdict,
};

pub(crate) const A4: SetKind = SetKind::Addresses(Family::V4);
pub(crate) const A6: SetKind = SetKind::Addresses(Family::V6);
pub(crate) const R4: SetKind = SetKind::Ranges(Family::V4);
pub(crate) const R6: SetKind = SetKind::Ranges(Family::V6);
pub(crate) const P4: SetKind = SetKind::Pairs(Family::V4);
pub(crate) const P6: SetKind = SetKind::Pairs(Family::V6);
pub(crate) const V4: SetKind = SetKind::Verdicts(Family::V4);
pub(crate) const V6: SetKind = SetKind::Verdicts(Family::V6);
/// Interfaces with ranges.
pub(crate) const I4: SetKind = SetKind::InterfaceRanges(Family::V4);
pub(crate) const I6: SetKind = SetKind::InterfaceRanges(Family::V6);
/// Interfaces.
pub(crate) const IF: SetKind = SetKind::Interfaces;
/// Families, each for a while.
pub(crate) const FA: SetKind = SetKind::Families;
pub(crate) const ST: SetKind = SetKind::Numbers;

/// An event: a batch of a process, or its end.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Batch(u32, Vec<Command>),
    End(u32),
}

/// A case: its name, and what happens.
pub(crate) type Case = (&'static str, Vec<Event>);

/// A case of batches of one process.
pub(crate) fn case<const N: usize>(name: &'static str, batches: [Vec<Command>; N]) -> Case {
    let events = batches.into_iter().map(|batch| Event::Batch(0, batch));
    (name, events.collect())
}

pub(crate) fn ip(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

pub(crate) fn ip6(n: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n).into()
}

pub(crate) fn table() -> Command {
    Command::AddTable { owned: false }
}

pub(crate) fn owned() -> Command {
    Command::AddTable { owned: true }
}

pub(crate) fn set(name: &str, kind: SetKind) -> Command {
    let (name, comment) = (name.into(), "words".into());
    Command::AddSet {
        name,
        kind,
        comment,
    }
}

pub(crate) fn chain(name: &str) -> Command {
    let (name, comment) = (name.into(), "words".into());
    Command::AddChain {
        name,
        base: None,
        comment,
    }
}

pub(crate) fn base(name: &str) -> Command {
    called(name, Base::forward(0))
}

pub(crate) fn called(name: &str, base: Base) -> Command {
    let (name, comment) = (name.into(), "words".into());
    Command::AddChain {
        name,
        base: Some(base),
        comment,
    }
}

pub(crate) fn add<const N: usize>(set: &str, kind: SetKind, elements: [Element; N]) -> Command {
    Command::AddElements(set.into(), kind, elements.into())
}

pub(crate) fn del<const N: usize>(set: &str, kind: SetKind, elements: [Element; N]) -> Command {
    Command::DeleteElements(set.into(), kind, elements.into())
}

pub(crate) fn rule(chain: &str, rule: Rule) -> Command {
    Command::AddRule(chain.into(), rule)
}

pub(crate) fn flush(chain: &str) -> Command {
    Command::FlushChain(chain.into())
}

pub(crate) fn del_chain(chain: &str) -> Command {
    Command::DeleteChain(chain.into())
}

pub(crate) fn del_set(set: &str) -> Command {
    Command::DeleteSet(set.into())
}

pub(crate) fn flush_set(set: &str) -> Command {
    Command::FlushSet(set.into())
}

/// IPv4, for so long.
pub(crate) fn f(lasts: Duration) -> Element {
    Element::Family(Family::V4, lasts)
}

pub(crate) fn a(n: u8) -> Element {
    Element::Address(ip(n))
}

pub(crate) fn r(first: u8, last: u8) -> Element {
    Element::Range(ip(first), ip(last))
}

/// A range behind an interface.
pub(crate) fn i(port: &str, first: u8, last: u8) -> Element {
    Element::InterfaceRange(port.into(), ip(first), ip(last))
}

pub(crate) fn i6(port: &str, first: u16, last: u16) -> Element {
    Element::InterfaceRange(port.into(), ip6(first), ip6(last))
}

pub(crate) fn v(n: u8, verdict: Verdict) -> Element {
    Element::Verdict(ip(n), verdict, "words".into())
}

pub(crate) fn stamp(n: u32, comment: &str) -> Element {
    Element::Number(n, comment.into())
}

pub(crate) fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

pub(crate) fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.into())
}

/// A rule that only has a verdict.
pub(crate) fn always(verdict: Verdict) -> Rule {
    Rule::always(verdict)
}

/// A rule that looks for the client in a set.
pub(crate) fn lookup(family: Family, set: &str) -> Rule {
    let client = Match::TupleSource(Tuple::Original, family, set.into());
    Rule::when(client, Verdict::Return)
}

/// A rule that looks for the interface and the source in a set.
pub(crate) fn from(family: Family, set: &str) -> Rule {
    Rule::when(Match::InputSource(family, set.into()), Verdict::Return)
}

/// A rule that looks for client and server in a set.
pub(crate) fn pair(family: Family, set: &str) -> Rule {
    Rule::when(Match::TupleSources(family, set.into()), Verdict::Return)
}

/// A rule that asks a map about the client.
pub(crate) fn vmap(map: &str) -> Rule {
    let client = Match::TupleSourceMap(Tuple::Original, Family::V4, map.into());
    Rule::map(client)
}

/// A rule with a map of ports.
pub(crate) fn ports<const N: usize>(ports: [(u16, u16, Verdict); N]) -> Rule {
    Rule::map(Match::Protocol(6)).and(Match::ServerPortMap(ports.into()))
}
