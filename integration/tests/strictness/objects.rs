//! Owns the cases about tables, chains and sets: coming, coming again, going; never runs one.

use crate::words::*;
use sallyport_nft::command::{Command, Family, Verdict};

pub(crate) fn cases() -> Vec<Case> {
    let drop = || always(Verdict::Drop);
    let gone = || Command::DeleteTable;
    vec![
        case("an empty batch", [vec![]]),
        case(
            "no table",
            [
                vec![set("s", A4)],
                vec![chain("c")],
                vec![add("s", A4, [a(1)])],
                vec![del("s", A4, [a(1)])],
                vec![rule("c", drop())],
                vec![flush("c")],
                vec![del_chain("c")],
                vec![del_set("s")],
                vec![gone()],
                vec![gone(), table()],
            ],
        ),
        case(
            "a table comes and goes",
            [
                vec![table(), table()],
                vec![gone()],
                vec![table(), gone()],
                vec![table()],
                vec![gone(), table(), set("s", A4)],
                vec![gone(), gone()],
            ],
        ),
        case(
            "owned after plain",
            [vec![table()], vec![owned()], vec![table()]],
        ),
        case(
            "plain after owned",
            [
                vec![owned()],
                vec![owned()],
                vec![table()],
                vec![set("s", A4)],
            ],
        ),
        case(
            "a set again, and of other kinds",
            [
                vec![
                    table(),
                    set("a", A4),
                    set("r", R4),
                    set("p", P4),
                    set("m", V4),
                    set("t", ST),
                ],
                vec![set("a", A4)],
                vec![set("a", A6)],
                vec![set("a", R4)],
                vec![set("a", P4)],
                vec![set("a", V4)],
                vec![set("a", ST)],
                vec![set("r", R6)],
                vec![set("r", A4)],
                vec![set("p", P6)],
                vec![set("p", A4)],
                vec![set("m", V6)],
                vec![set("m", A4)],
                vec![set("t", V4)],
                vec![set("t", A4)],
            ],
        ),
        case(
            "a set of two kinds in a batch",
            [vec![table(), set("s", A4), set("s", A6)]],
        ),
        case(
            "a chain again, and as a base chain",
            [
                vec![table(), chain("c")],
                vec![chain("c")],
                vec![base("c")],
                vec![base("f")],
                vec![base("f")],
                vec![chain("f")],
                vec![base("g")],
            ],
        ),
        case(
            "a chain of two kinds in a batch",
            [vec![table(), chain("c"), base("c")]],
        ),
        case(
            "names of chains and of sets",
            [vec![table(), chain("c"), set("c", A4)]],
        ),
        case(
            "names that are not listed",
            [vec![table(), set("__x", A4), chain("__y")]],
        ),
        case(
            "long names and none",
            [
                vec![table(), set(&"s".repeat(255), A4), chain(&"c".repeat(255))],
                vec![set(&"s".repeat(256), A4)],
                vec![chain(&"c".repeat(256))],
                vec![chain("")],
                vec![del(&"s".repeat(256), A4, [a(1)])],
            ],
        ),
        case(
            "what is not there cannot go",
            [
                vec![table()],
                vec![del_chain("c")],
                vec![del_set("s")],
                vec![flush("c")],
                vec![chain("c"), del_chain("c"), del_chain("c")],
                vec![set("s", A4), del_set("s"), del_set("s")],
            ],
        ),
        case(
            "what went in the batch cannot be used",
            [
                vec![table(), chain("c"), set("s", A4)],
                vec![del_chain("c"), rule("c", drop())],
                vec![del_set("s"), add("s", A4, [a(1)])],
                vec![del_chain("c"), flush("c")],
                vec![del_set("s"), chain("x"), rule("x", lookup(Family::V4, "s"))],
            ],
        ),
        case(
            "a chain that a rule leads to",
            [
                vec![
                    table(),
                    chain("c"),
                    chain("d"),
                    rule("c", always(goto("d"))),
                ],
                vec![del_chain("d")],
                vec![del_chain("c"), del_chain("d")],
                vec![chain("c"), chain("d"), rule("c", always(jump("d")))],
                vec![flush("c"), del_chain("d"), del_chain("c")],
            ],
        ),
        case(
            "a set that a rule looks into",
            [
                vec![
                    table(),
                    chain("c"),
                    set("s", A4),
                    rule("c", lookup(Family::V4, "s")),
                ],
                vec![del_set("s")],
                vec![del_set("s"), del_chain("c")],
                vec![del_chain("c"), del_set("s")],
            ],
        ),
        case(
            "a chain that an element leads to",
            [
                vec![
                    table(),
                    chain("c"),
                    set("m", V4),
                    add("m", V4, [v(1, goto("c"))]),
                ],
                vec![del_chain("c")],
                vec![flush("c")],
                vec![del_chain("c"), del("m", V4, [v(1, goto("c"))])],
                vec![del("m", V4, [v(1, goto("c"))]), del_chain("c")],
            ],
        ),
        case(
            "a chain that a deleted map led to",
            [
                vec![
                    table(),
                    chain("c"),
                    set("m", V4),
                    add("m", V4, [v(1, goto("c"))]),
                ],
                vec![del_set("m"), del_chain("c")],
            ],
        ),
        case(
            "a chain that a map of ports leads to",
            [
                vec![table(), chain("c"), chain("d")],
                vec![rule("c", ports([(80, 80, goto("d")), (90, 99, goto("d"))]))],
                vec![del_chain("d")],
                vec![flush("c"), del_chain("d")],
            ],
        ),
        case(
            "a chain that leads to itself",
            [
                vec![table(), chain("c"), rule("c", always(jump("c")))],
                vec![del_chain("c")],
            ],
        ),
        case(
            "gone and there again in a batch",
            [
                vec![table(), chain("c"), set("s", A4), add("s", A4, [a(1)])],
                vec![rule("c", lookup(Family::V4, "s"))],
                vec![del_chain("c"), del_set("s"), set("s", A6), chain("c")],
                vec![rule("c", lookup(Family::V6, "s"))],
                vec![flush("c"), del_set("s"), set("s", A4)],
                vec![del("s", A4, [a(1)])],
            ],
        ),
        case(
            "the base chain goes",
            [
                vec![table(), base("f"), rule("f", drop())],
                vec![del_chain("f")],
                vec![base("f")],
            ],
        ),
        case(
            "the table goes with all in it",
            [
                vec![table(), base("f"), chain("c"), set("m", V4)],
                vec![add("m", V4, [v(1, goto("c"))]), rule("f", vmap("m"))],
                vec![gone()],
                vec![chain("c")],
                vec![table(), chain("c"), set("m", A4)],
            ],
        ),
        case(
            "of a refused batch nothing stays",
            [
                vec![
                    table(),
                    chain("c"),
                    set("s", A4),
                    set("m", V4),
                    add("s", A4, [a(1)]),
                ],
                vec![
                    del("s", A4, [a(1)]),
                    del_set("s"),
                    chain("x"),
                    del_chain("nobody"),
                ],
                vec![
                    add("m", V4, [v(1, goto("c"))]),
                    rule("c", drop()),
                    flush("nobody"),
                ],
                vec![gone(), table(), owned()],
                vec![del("s", A4, [a(1)])],
                vec![del_chain("c")],
            ],
        ),
    ]
}

/// Cases of several processes.
pub(crate) fn owners() -> Vec<Case> {
    let batch = |process, commands| Event::Batch(process, commands);
    vec![
        (
            "nobody touches what another owns",
            vec![
                batch(0, vec![owned(), set("s", A4)]),
                batch(1, vec![owned()]),
                batch(1, vec![table()]),
                batch(1, vec![set("x", A4)]),
                batch(1, vec![add("s", A4, [a(1)])]),
                batch(1, vec![del_set("s")]),
                batch(1, vec![chain("c")]),
                batch(1, vec![Command::DeleteTable]),
                batch(0, vec![add("s", A4, [a(1)])]),
            ],
        ),
        (
            "an heir takes over",
            vec![
                batch(0, vec![owned(), set("s", A4)]),
                Event::End(0),
                batch(1, vec![set("x", A4)]),
                batch(2, vec![owned()]),
                batch(1, vec![set("y", A4)]),
                batch(2, vec![set("z", A4)]),
            ],
        ),
        (
            "an heir that does not take over",
            vec![
                batch(0, vec![owned()]),
                Event::End(0),
                batch(1, vec![table(), set("x", A4)]),
                batch(2, vec![set("y", A4)]),
                batch(2, vec![Command::DeleteTable, table()]),
                batch(1, vec![set("z", A4)]),
            ],
        ),
        (
            "the end of one who owns nothing",
            vec![
                batch(0, vec![owned()]),
                batch(1, vec![]),
                Event::End(1),
                batch(2, vec![set("x", A4)]),
            ],
        ),
    ]
}
