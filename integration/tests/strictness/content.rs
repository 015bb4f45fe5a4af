//! Owns the cases about elements and rules; never runs one.

use std::net::Ipv4Addr;

use crate::words::*;
use sallyport_nft::command::{Base, Command, Element, Family, Match, Rule, Tuple, Verdict};

pub(crate) fn elements() -> Vec<Case> {
    let other_comment = Element::Verdict(ip(1), goto("c"), "others".into());
    vec![
        case(
            "elements of no set",
            [
                vec![table()],
                vec![add("s", A4, [a(1)])],
                vec![del("s", A4, [a(1)])],
                vec![add("s", A4, [])],
            ],
        ),
        case(
            "an element again",
            [
                vec![table(), set("s", A4), add("s", A4, [a(1)])],
                vec![add("s", A4, [a(1)])],
                vec![add("s", A4, [a(2), a(2)])],
                vec![del("s", A4, [a(1), a(1)])],
                vec![del("s", A4, [])],
                vec![del("s", A4, [a(1)])],
                vec![del("s", A4, [a(1)])],
                vec![add("s", A4, [a(1)]), del("s", A4, [a(1)])],
                vec![del("s", A4, [a(1)])],
                vec![del("s", A4, [a(2)]), add("s", A4, [a(2)])],
                vec![del("s", A4, [a(2)])],
                vec![del("s", A4, [a(2)])],
            ],
        ),
        case(
            "an element with another verdict",
            [
                vec![table(), set("m", V4), chain("c"), chain("d")],
                vec![add("m", V4, [v(1, goto("c"))])],
                vec![add("m", V4, [v(1, goto("c"))])],
                vec![add("m", V4, [v(1, goto("d"))])],
                vec![add("m", V4, [v(1, jump("c"))])],
                vec![add("m", V4, [v(1, Verdict::Drop)])],
                vec![add("m", V4, [other_comment])],
                vec![
                    del("m", V4, [v(1, goto("d"))]),
                    add("m", V4, [v(1, goto("d"))]),
                ],
                vec![del_chain("c")],
                vec![del("m", V4, [v(1, goto("nobody"))])],
                vec![add("m", V4, [v(2, goto("d")), v(2, Verdict::Drop)])],
                vec![add("m", V4, [v(2, Verdict::Accept), v(3, Verdict::Return)])],
                vec![add("m", V4, [v(4, jump("d"))])],
            ],
        ),
        case(
            "an element that leads nowhere, or to a base chain",
            [
                vec![table(), set("m", V4), base("f")],
                vec![add("m", V4, [v(1, goto("c"))])],
                vec![add("m", V4, [v(1, jump("c"))])],
                vec![add("m", V4, [v(1, goto("f"))])],
                vec![add("m", V4, [v(1, jump("f"))])],
            ],
        ),
        case(
            "a stamp again stays as it was",
            [
                vec![
                    table(),
                    set("stamp", ST),
                    add("stamp", ST, [stamp(2, "one")]),
                ],
                vec![add("stamp", ST, [stamp(2, "two")])],
                vec![
                    del("stamp", ST, [stamp(2, "three")]),
                    add("stamp", ST, [stamp(2, "four")]),
                ],
                vec![del("stamp", ST, [stamp(3, "three")])],
            ],
        ),
        case(
            "elements of another kind",
            [
                vec![table(), set("s", A4), set("m", V4), set("p", P4)],
                vec![add("s", A6, [Element::Address(ip6(1))])],
                vec![del("s", A6, [Element::Address(ip6(1))])],
                vec![add("s", V4, [v(1, Verdict::Drop)])],
                vec![add("m", A4, [a(1)])],
                vec![add("s", R4, [r(1, 5)])],
                vec![add("s", P4, [Element::Pair(ip(1))])],
                vec![add("p", A4, [a(1)])],
            ],
        ),
        case(
            "ranges that overlap",
            [
                vec![table(), set("r", R4), add("r", R4, [r(10, 20)])],
                vec![add("r", R4, [r(10, 20)])],
                vec![add("r", R4, [r(15, 25)])],
                vec![add("r", R4, [r(5, 12)])],
                vec![add("r", R4, [r(12, 15)])],
                vec![add("r", R4, [r(5, 25)])],
                vec![add("r", R4, [r(21, 25)])],
                vec![add("r", R4, [r(5, 9)])],
                vec![add("r", R4, [r(10, 15)])],
                vec![add("r", R4, [r(15, 20)])],
                vec![add("r", R4, [r(10, 25)])],
                vec![add("r", R4, [r(5, 20)])],
            ],
        ),
        case(
            "ranges in one command",
            [
                vec![table(), set("r", R4)],
                vec![add("r", R4, [r(1, 5), r(3, 9)])],
                vec![add("r", R4, [r(1, 5), r(1, 5)])],
                vec![add("r", R4, [r(9, 12), r(11, 15)])],
                vec![add("r", R4, [r(6, 6), r(7, 8)])],
            ],
        ),
        case(
            "ranges go whole",
            [
                vec![table(), set("r", R4), add("r", R4, [r(10, 20), r(21, 30)])],
                vec![del("r", R4, [r(10, 15)])],
                vec![del("r", R4, [r(12, 20)])],
                vec![del("r", R4, [r(10, 30)])],
                vec![del("r", R4, [r(40, 50)])],
                vec![del("r", R4, [r(10, 20)])],
                vec![del("r", R4, [r(10, 20)])],
                vec![add("r", R4, [r(5, 9)]), del("r", R4, [r(5, 9)])],
                vec![del("r", R4, [r(21, 30)]), add("r", R4, [r(21, 40)])],
                vec![del("r", R4, [r(21, 40)])],
            ],
        ),
        case(
            "ranges at the edges of the family",
            [
                vec![table(), set("r", R4), add("r", R4, [to_top(1)])],
                vec![add("r", R4, [to_top(1)])],
                vec![add("r", R4, [r(2, 3)])],
                vec![del("r", R4, [to_top(1)])],
                vec![
                    add("r", R4, [from_bottom(5)]),
                    add("r", R4, [from_bottom(5)]),
                ],
                vec![add("r", R4, [r(6, 9)])],
                vec![del("r", R4, [from_bottom(5)])],
            ],
        ),
    ]
}

fn to_top(n: u8) -> Element {
    Element::Range(ip(n), Ipv4Addr::BROADCAST.into())
}

fn from_bottom(n: u8) -> Element {
    Element::Range(Ipv4Addr::UNSPECIFIED.into(), ip(n))
}

pub(crate) fn rules() -> Vec<Case> {
    let v4 = Family::V4;
    vec![
        case(
            "rules that name what is not there",
            [
                vec![table(), chain("c")],
                vec![rule("x", always(Verdict::Drop))],
                vec![rule("c", always(jump("d")))],
                vec![rule("c", always(goto("d")))],
                vec![rule("c", lookup(v4, "s"))],
                vec![rule("c", vmap("s"))],
                vec![rule("c", ports([(80, 80, goto("d"))]))],
            ],
        ),
        case(
            "rules that look into the wrong kind",
            [
                vec![
                    table(),
                    chain("c"),
                    set("s", A4),
                    set("s6", A6),
                    set("p", P4),
                ],
                vec![rule("c", lookup(v4, "s6"))],
                vec![rule("c", lookup(v4, "p"))],
                vec![rule("c", vmap("s"))],
                vec![rule("c", vmap("s6"))],
            ],
        ),
        case(
            "rules that look into the right kind",
            [
                vec![
                    table(),
                    chain("c"),
                    set("s", A4),
                    set("s6", A6),
                    set("p", P4),
                    set("r", R4),
                ],
                vec![set("p6", P6), set("r6", R6), set("m", V4)],
                vec![
                    rule("c", lookup(v4, "s")),
                    rule("c", lookup(Family::V6, "s6")),
                ],
                vec![
                    rule("c", lookup(v4, "r")),
                    rule("c", lookup(Family::V6, "r6")),
                ],
                vec![rule("c", pair(v4, "p")), rule("c", pair(Family::V6, "p6"))],
                vec![
                    rule("c", vmap("m")),
                    rule("c", Rule::when(Match::NeighbourDiscovery, goto("d"))),
                ],
                vec![rule(
                    "c",
                    Rule::when(Match::ProtocolWithoutPorts, Verdict::Drop),
                )],
                vec![rule(
                    "c",
                    Rule::when(Match::ProtocolOrError(6), Verdict::Drop),
                )],
                vec![rule("c", client_in("192.0.2.1", "192.0.2.9"))],
                vec![rule("c", client_in("192.0.2.1", "192.0.2.1"))],
                vec![rule("c", client_in("2001:db8::", "2001:db8::ff"))],
                vec![rule(
                    "c",
                    Rule::when(Match::PacketProtocol(17), Verdict::Drop),
                )],
                vec![rule("c", server_port(80, 80))],
                vec![rule("c", server_port(0, u16::MAX))],
                vec![rule("c", Rule::default())],
            ],
        ),
        case(
            "rules of packets that come in",
            [
                vec![table(), called("f", Base::prerouting(-300))],
                vec![
                    rule("f", Rule::when(Match::ByBridge, Verdict::Accept)),
                    rule("f", Rule::when(Match::ReversePath, Verdict::Accept)),
                ],
                vec![base("f")],
                vec![called("f", Base::prerouting(-299))],
                vec![called("f", Base::prerouting(-300))],
            ],
        ),
        case(
            "a rule to a base chain",
            [vec![
                table(),
                base("f"),
                chain("c"),
                rule("c", always(jump("f"))),
            ]],
        ),
        case(
            "circles that no base chain leads to",
            [
                vec![table(), chain("c"), chain("d")],
                vec![rule("c", always(jump("c")))],
                vec![rule("c", always(goto("d"))), rule("d", always(goto("c")))],
            ],
        ),
        case(
            "circles",
            [
                vec![table(), base("f"), chain("c"), chain("d")],
                vec![rule("f", always(jump("c"))), rule("c", always(jump("d")))],
                vec![rule("d", always(goto("c")))],
                vec![rule("d", always(jump("c")))],
                vec![chain("x"), rule("d", always(jump("d"))), chain("y")],
                vec![rule("d", ports([(80, 80, goto("c"))]))],
                vec![rule("d", always(jump("c"))), flush("d")],
            ],
        ),
        case(
            "a circle that the base chain closes",
            [
                vec![table(), base("f"), chain("c"), chain("d")],
                vec![rule("c", always(jump("d"))), rule("d", always(jump("c")))],
                vec![chain("x"), rule("f", always(jump("c")))],
                vec![rule("f", always(jump("c"))), flush("d")],
            ],
        ),
        case(
            "circles by way of a map",
            [
                vec![table(), base("f"), chain("c"), set("m", V4)],
                vec![rule("f", always(jump("c"))), rule("c", vmap("m"))],
                vec![add("m", V4, [v(1, goto("c"))])],
                vec![
                    chain("d"),
                    rule("d", always(jump("c"))),
                    add("m", V4, [v(1, goto("d"))]),
                ],
                vec![flush("c"), add("m", V4, [v(1, goto("c"))])],
                vec![rule("c", vmap("m"))],
            ],
        ),
        deep("15 jumps", 15, jump),
        deep("16 jumps", 16, jump),
        deep("15 gotos", 15, goto),
        deep("16 gotos", 16, goto),
        case(
            "maps of ports",
            [
                vec![table(), chain("c"), chain("d"), chain("e")],
                vec![rule("c", ports([(80, 90, goto("d")), (85, 95, goto("d"))]))],
                vec![rule("c", ports([(80, 80, goto("d")), (80, 80, goto("e"))]))],
                vec![rule("c", ports([(80, 80, goto("d")), (80, 80, goto("d"))]))],
                vec![rule("c", ports([]))],
                vec![rule(
                    "c",
                    ports([(1, 3, goto("d")), (4, 5, goto("e")), (90, 95, goto("d"))]),
                )],
                vec![rule("c", ports([(0, 65535, goto("d"))]))],
            ],
        ),
    ]
}

/// A row of so many verdicts below a base chain.
fn client_in(first: &str, last: &str) -> Rule {
    let [first, last] = [first, last].map(|text| text.parse().expect("an address"));
    Rule::when(
        Match::TupleRange(Tuple::Original, first, last),
        Verdict::Drop,
    )
}

fn server_port(first: u16, last: u16) -> Rule {
    Rule::when(Match::ServerPort(first, last), Verdict::Drop)
}

fn deep(name: &'static str, count: usize, verdict: fn(&str) -> Verdict) -> Case {
    let chain_name = |n: usize| format!("c{n}");
    let mut batch: Vec<Command> = vec![table(), base("f")];
    batch.extend((0..count).map(|n| chain(&chain_name(n))));
    let steps = 1..count;
    batch.extend(steps.map(|n| rule(&chain_name(n - 1), always(verdict(&chain_name(n))))));
    batch.push(rule("f", always(jump("c0"))));
    case(name, [batch])
}

/// Cases in which the kernel, which sees bytes where we mean kinds and ends where we mean ranges, is less strict than
/// the fake.
pub(crate) fn lenient() -> Vec<Case> {
    let v4 = Family::V4;
    vec![
        case(
            "a range that cuts an endless one short",
            [
                vec![table(), set("r", R4), add("r", R4, [to_top(1)])],
                vec![add("r", R4, [r(1, 2)])],
            ],
        ),
        case(
            "a range that makes another endless",
            [
                vec![table(), set("r", R4), add("r", R4, [r(1, 2)])],
                vec![add("r", R4, [to_top(1)])],
            ],
        ),
        case(
            "an address in ranges",
            [vec![table(), set("r", R4)], vec![add("r", A4, [a(1)])]],
        ),
        case(
            "a mark among addresses",
            [
                vec![table(), set("s", A4)],
                vec![add("s", ST, [stamp(1, "")])],
            ],
        ),
        case(
            "an address among marks",
            [vec![table(), set("t", ST)], vec![add("t", A4, [a(1)])]],
        ),
        case(
            "an IPv6 key for IPv4",
            [
                vec![table(), chain("c"), set("s", A4)],
                vec![rule("c", lookup(Family::V6, "s"))],
            ],
        ),
        case(
            "a map as a set",
            [
                vec![table(), chain("c"), set("m", V4)],
                vec![rule("c", lookup(v4, "m"))],
            ],
        ),
        case(
            "marks as addresses",
            [
                vec![table(), chain("c"), set("t", ST)],
                vec![rule("c", lookup(v4, "t"))],
            ],
        ),
        case(
            "a pair for one",
            [
                vec![table(), chain("c"), set("s", A4)],
                vec![rule("c", pair(v4, "s"))],
            ],
        ),
        case(
            "an IPv6 pair for IPv4",
            [
                vec![table(), chain("c"), set("p", P4)],
                vec![rule("c", pair(Family::V6, "p"))],
            ],
        ),
    ]
}
