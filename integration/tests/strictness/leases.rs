//! Owns the cases about sets whose elements go by themselves; never runs one.

use std::time::Duration;

use crate::words::*;
use sallyport_enforcer::table::{
    frame,
    lease::{self, Slot},
};
use sallyport_nft::command::{Family, Match, Rule, Tuple, Verdict};

const LONG: Duration = Duration::from_secs(60);

/// A rule that looks for the packet's family in a set.
fn family(set: &str) -> Rule {
    Rule::when(Match::Family(set.into()), Verdict::Return)
}

fn twice(family: Family, set: &str) -> [Rule; 4] {
    let set = || set.to_owned();
    [
        Match::TupleSourceTwice(Tuple::Original, family, set()),
        Match::TupleSourceTwice(Tuple::Reply, family, set()),
        Match::SourceTwice(family, set()),
        Match::DestinationTwice(family, set()),
    ]
    .map(|condition| Rule::when(condition, Verdict::Drop).counted())
}

pub(crate) fn cases() -> Vec<Case> {
    let made = || {
        let chains = lease::CHAINS.map(frame::add_chain);
        let fenced = rule(lease::FENCED, always(Verdict::Drop));
        [vec![table()], lease::sets(), chains.to_vec(), vec![fenced]].concat()
    };
    vec![
        case(
            "a lease is filled and looked into in turn",
            [
                made(),
                lease::look_into(Slot::A),
                lease::fill(Slot::B, LONG),
                lease::look_into(Slot::B),
                lease::fill(Slot::A, LONG),
                lease::fill(Slot::A, LONG),
                lease::look_into(Slot::A),
                lease::look_into(Slot::A),
            ],
        ),
        case(
            "a lease that is not made",
            [
                vec![table()],
                lease::fill(Slot::A, LONG),
                lease::look_into(Slot::A),
                lease::sets(),
                lease::look_into(Slot::A),
                lease::fill(Slot::A, LONG),
                lease::sets(),
            ],
        ),
        case(
            "flushing",
            [
                vec![
                    table(),
                    set("m", V4),
                    set("s", A4),
                    set("r", R4),
                    chain("c"),
                ],
                vec![flush_set("s"), flush_set("m"), flush_set("r")],
                vec![flush_set("nobody")],
                vec![
                    add("s", A4, [a(1), a(2)]),
                    add("r", R4, [r(1, 5), r(7, 9)]),
                    add("m", V4, [v(1, goto("c"))]),
                ],
                vec![del_chain("c")],
                vec![flush_set("s"), flush_set("m"), flush_set("r")],
                vec![del_chain("c")],
                vec![del("s", A4, [a(1)])],
                vec![del("r", R4, [r(1, 5)])],
                vec![add("s", A4, [a(1)]), flush_set("s"), add("s", A4, [a(1)])],
                vec![del("s", A4, [a(1)])],
            ],
        ),
        case(
            "a set of families of another kind",
            [
                vec![table(), set("f", FA), set("f", A4)],
                vec![set("f", FA)],
                vec![set("f", FA), chain("c"), rule("c", family("f"))],
                vec![rule("c", family("nobody"))],
                vec![del_set("f")],
                vec![set("s", A4), rule("c", family("s"))],
                vec![flush("c"), del_set("f"), add("f", FA, [f(LONG)])],
                vec![set("s", A4), set("m", V6), rule("c", family("s"))],
                vec![set("m", V6), rule("c", family("m"))],
            ],
        ),
        case(
            "an address paired with itself",
            [
                vec![
                    table(),
                    chain("c"),
                    set("p", P4),
                    set("q", P6),
                    set("s", A6),
                ],
                twice(Family::V4, "p").map(|one| rule("c", one)).to_vec(),
                twice(Family::V6, "q").map(|one| rule("c", one)).to_vec(),
                vec![del_set("p")],
                vec![rule("c", twice(Family::V4, "q")[0].clone())],
                vec![rule("c", twice(Family::V4, "s")[2].clone())],
                vec![flush("c"), del_set("p")],
                vec![rule("c", twice(Family::V4, "p")[3].clone())],
            ],
        ),
    ]
}

/// Cases in which the kernel is less strict than the fake.
pub(crate) fn lenient() -> Vec<Case> {
    vec![
        // Newer kernels give it more time, older ones do not.
        case(
            "a lease that is there already",
            [
                vec![table(), set("f", FA), add("f", FA, [f(LONG)])],
                vec![add("f", FA, [f(LONG)])],
            ],
        ),
        // For the kernel that is a lease for ever.
        case(
            "a lease of no time",
            [
                vec![table(), set("f", FA)],
                vec![add("f", FA, [f(Duration::ZERO)])],
            ],
        ),
        case(
            "a family among marks",
            [
                vec![table(), chain("c"), set("t", ST)],
                vec![rule("c", family("t"))],
            ],
        ),
    ]
}
