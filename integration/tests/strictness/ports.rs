//! Owns the cases about interfaces and ranges of addresses behind them; never runs one.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::words::*;
use sallyport_nft::command::{Element, Family, Match, Rule, Verdict};

pub(crate) fn cases() -> Vec<Case> {
    let all = Element::InterfaceRange(
        "b".into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::BROADCAST.into(),
    );
    let all6 = Element::InterfaceRange(
        "b".into(),
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::from_bits(u128::MAX).into(),
    );
    vec![
        case(
            "ranges behind interfaces",
            [
                vec![table(), set("i", I4), add("i", I4, [i("a", 10, 20)])],
                vec![add("i", I4, [i("a", 10, 20)])],
                vec![add("i", I4, [i("b", 15, 25)])],
                vec![add("i", I4, [i("a", 15, 25)])],
                vec![add("i", I4, [i("a", 5, 12)])],
                vec![add("i", I4, [i("a", 12, 15)])],
                vec![add("i", I4, [i("a", 10, 15)])],
                vec![add("i", I4, [i("a", 10, 25)])],
                vec![add("i", I4, [i("a", 5, 20)])],
                vec![add(
                    "i",
                    I4,
                    [i("a", 21, 25), i("a", 5, 9), i("aa", 12, 15)],
                )],
                vec![add("i", I4, [i("a", 3, 3), i("a", 3, 3)])],
                vec![add("i", I4, [i("a", 30, 35), i("a", 34, 39)])],
                vec![add("i", I4, [i("a", 40, 39)])],
            ],
        ),
        case(
            "ranges behind interfaces go whole",
            [
                vec![
                    table(),
                    set("i", I4),
                    add("i", I4, [i("a", 10, 20), i("a", 21, 30)]),
                ],
                vec![del("i", I4, [i("a", 40, 50)])],
                vec![del("i", I4, [i("b", 10, 20)])],
                vec![del("i", I4, [i("a", 10, 20)])],
                vec![del("i", I4, [i("a", 10, 20)])],
                vec![add("i", I4, [i("a", 5, 9)]), del("i", I4, [i("a", 5, 9)])],
                vec![
                    del("i", I4, [i("a", 21, 30)]),
                    add("i", I4, [i("a", 21, 40)]),
                ],
                vec![
                    del("i", I4, [i("a", 21, 40)]),
                    add("i", I4, [i("a", 15, 25)]),
                ],
                vec![flush_set("i")],
                vec![del("i", I4, [i("a", 15, 25)])],
            ],
        ),
        case(
            "wide ranges behind interfaces",
            [
                vec![table(), set("i", I4), set("j", I6)],
                vec![add("i", I4, [all.clone()]), add("j", I6, [all6.clone()])],
                vec![add("i", I4, [i("b", 1, 2)])],
                vec![add("j", I6, [i6("b", 1, 2)])],
                vec![add("i", I4, [i("a", 1, 2)]), add("j", I6, [i6("a", 1, 2)])],
                vec![del("i", I4, [all]), add("i", I4, [i("b", 1, 2)])],
                vec![del("j", I6, [all6]), add("j", I6, [i6("b", 1, 2)])],
            ],
        ),
        case(
            "interfaces with ranges of another kind",
            [
                vec![table(), set("i", I4), set("s", A4), set("r", R4)],
                vec![add("i", A4, [a(1)])],
                vec![add("s", I4, [i("a", 1, 1)])],
                vec![add("i", I6, [i6("a", 1, 1)])],
                vec![set("i", I4)],
                vec![set("i", I6)],
                vec![set("i", A4)],
                vec![set("r", I4)],
            ],
        ),
        case(
            "rules that look for interface and source",
            [
                vec![
                    table(),
                    chain("c"),
                    set("i", I4),
                    set("j", I6),
                    set("s", A4),
                ],
                vec![
                    rule("c", from(Family::V4, "i")),
                    rule("c", from(Family::V6, "j")),
                ],
                vec![rule("c", from(Family::V4, "j"))],
                vec![rule("c", from(Family::V4, "x"))],
                vec![rule("c", lookup(Family::V4, "i"))],
                vec![rule("c", by("i"))],
                vec![del_set("i")],
                vec![flush("c"), del_set("i")],
            ],
        ),
    ]
}

fn by(set: &str) -> Rule {
    Rule::when(Match::InputIn(set.into()), Verdict::Return)
}

/// Cases in which the kernel is less strict than the fake.
pub(crate) fn lenient() -> Vec<Case> {
    let ten_to_twenty = || vec![table(), set("i", I4), add("i", I4, [i("a", 10, 20)])];
    vec![
        // The kernel asks for the ends of a new range alone (`nft_pipapo_insert`).
        case(
            "a range around another behind an interface",
            [ten_to_twenty(), vec![add("i", I4, [i("a", 5, 25)])]],
        ),
        // The kernel looks for the range that the first address is in (`nft_pipapo_deactivate`).
        case(
            "a part of a range behind an interface goes",
            [ten_to_twenty(), vec![del("i", I4, [i("a", 12, 15)])]],
        ),
        case(
            "the beginning of a range behind an interface goes",
            [ten_to_twenty(), vec![del("i", I4, [i("a", 10, 15)])]],
        ),
        case(
            "an IPv6 source for IPv4",
            [
                vec![table(), chain("c"), set("i", I4)],
                vec![rule("c", from(Family::V6, "i"))],
            ],
        ),
        case(
            "interface and source for the interface",
            [
                vec![table(), chain("c"), set("n", IF)],
                vec![rule("c", from(Family::V4, "n"))],
            ],
        ),
    ]
}
