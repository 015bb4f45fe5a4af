//! The fake kernel does what was measured on the real one (docs/KERNEL.md). Some updates leak, some lose packets, and
//! some do neither, though every committed state drops, or passes, the packet.

use std::net::IpAddr;

use sallyport_nft::{
    command::{Base, Command, Element, Family, Match, Rule, SetKind, Tuple, Verdict},
    kernel::Kernel,
};
use sallyport_nft_fake::{FakeKernel, Judgement, Packet, Verdicts, Walk};

const V4: Family = Family::V4;
const HASHED: SetKind = SetKind::Addresses(V4);
const MAP: SetKind = SetKind::Verdicts(V4);
const RANGES: SetKind = SetKind::Ranges(V4);

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn packet() -> Packet {
    Packet::of_connection(CLIENT, [10, 0, 0, 2].into(), 6, 80)
}

fn chain(name: &str, forward: bool) -> Command {
    let (name, comment) = (name.into(), String::new());
    Command::AddChain {
        name,
        base: forward.then_some(Base::forward(0)),
        comment,
    }
}

fn set(name: &str, kind: SetKind) -> Command {
    let (name, comment) = (name.into(), String::new());
    Command::AddSet {
        name,
        kind,
        comment,
    }
}

fn rule(chain: &str, rule: Rule) -> Command {
    Command::AddRule(chain.into(), rule)
}

fn always(chain: &str, verdict: Verdict) -> Command {
    rule(chain, Rule::always(verdict))
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.into())
}

fn flush(chain: &str) -> Command {
    Command::FlushChain(chain.into())
}

fn in_set(set: &str, verdict: Verdict) -> Rule {
    Rule::when(Match::TupleSource(Tuple::Original, V4, set.into()), verdict)
}

fn member(kind: SetKind) -> Vec<Element> {
    match kind {
        SetKind::Ranges(_) => vec![Element::Range(CLIENT, CLIENT)],
        _ => vec![Element::Address(CLIENT)],
    }
}

fn add(set: &str, kind: SetKind) -> Command {
    Command::AddElements(set.into(), kind, member(kind))
}

fn delete(set: &str, kind: SetKind) -> Command {
    Command::DeleteElements(set.into(), kind, member(kind))
}

fn lead(verdict: Verdict) -> Command {
    Command::AddElements(
        "m".into(),
        MAP,
        vec![Element::Verdict(CLIENT, verdict, String::new())],
    )
}

fn unlead() -> Command {
    let any = Element::Verdict(CLIENT, Verdict::Drop, String::new());
    Command::DeleteElements("m".into(), MAP, vec![any])
}

/// A table whose base chain jumps to `c`, with a map, a hashed set, and a set of ranges; then `more`.
fn kernel(more: Vec<Command>) -> FakeKernel {
    let mut kernel = FakeKernel::default();
    let table = vec![
        Command::AddTable { owned: false },
        set("m", MAP),
        set("s", HASHED),
        set("r", RANGES),
        chain("c", false),
        chain("forward", true),
        always("forward", Verdict::Jump("c".into())),
    ];
    kernel
        .commit(&[table, more].concat())
        .expect("it is well formed");
    kernel.grace();
    kernel
}

/// The possible verdicts on the packet while batches are committed.
fn during(mut kernel: FakeKernel, batches: Vec<Vec<Command>>) -> Verdicts {
    for batch in batches {
        kernel.commit(&batch).expect("it is well formed");
    }
    kernel.verdicts_now(&packet())
}

const DROPPED: Verdicts = Verdicts {
    can_pass: false,
    can_drop: true,
};
const PASSES: Verdicts = Verdicts {
    can_pass: true,
    can_drop: false,
};
const EITHER: Verdicts = Verdicts {
    can_pass: true,
    can_drop: true,
};

/// A range in a rule has both its ends, and a packet of another family is in none.
#[test]
fn a_range_in_a_rule_has_both_ends() {
    let [before, behind] = [[10, 0, 0, 0], [10, 0, 0, 2]].map(IpAddr::from);
    let wide = [[0; 16], [255; 16]].map(IpAddr::from);
    for (first, last, expected) in [
        (CLIENT, CLIENT, DROPPED),
        (before, CLIENT, DROPPED),
        (CLIENT, behind, DROPPED),
        (before, before, PASSES),
        (behind, behind, PASSES),
        (wide[0], wide[1], PASSES),
    ] {
        let range = Match::TupleRange(Tuple::Original, first, last);
        let kernel = kernel(vec![rule("c", Rule::when(range, Verdict::Drop))]);
        assert_eq!(during(kernel, vec![]), expected, "{first}-{last}");
    }
}

/// A port in a rule has both its ends, and a packet of no connection is at none.
#[test]
fn a_port_in_a_rule_has_both_ends() {
    for (first, last, expected) in [
        (80, 80, DROPPED),
        (0, 80, DROPPED),
        (80, u16::MAX, DROPPED),
        (0, 79, PASSES),
        (81, u16::MAX, PASSES),
    ] {
        let port = Match::ServerPort(first, last);
        let kernel = kernel(vec![rule("c", Rule::when(port, Verdict::Drop))]);
        assert_eq!(during(kernel, vec![]), expected, "{first}-{last}");
    }
}

/// The way from "dropped for not being in the set" to "dropped for want of a rule that lets it pass".
#[test]
fn a_rule_and_an_element_in_one_batch_leak() {
    for kind in [HASHED, RANGES] {
        let name = if kind == HASHED { "s" } else { "r" };
        let look = rule("c", in_set(name, Verdict::Return));
        let drop = || always("c", Verdict::Drop);
        let start = || kernel(vec![look.clone(), drop()]);
        let batch = vec![flush("c"), drop(), add(name, kind)];
        assert_eq!(during(start(), vec![batch.clone()]), EITHER);
        // In two batches, the rule first, and with a grace period between, no packet passes.
        let mut kernel = start();
        kernel.commit(&batch[..2]).expect("it is well formed");
        kernel.grace();
        assert_eq!(during(kernel, vec![batch[2..].to_vec()]), DROPPED);
    }
}

#[test]
fn a_new_chain_and_a_repointed_element_in_one_batch_leak() {
    let by_map = || {
        rule(
            "c",
            Rule::map(Match::TupleSourceMap(Tuple::Original, V4, "m".into())),
        )
    };
    let start = || {
        kernel(vec![
            chain("a", false),
            always("a", Verdict::Drop),
            by_map(),
            lead(goto("a")),
        ])
    };
    let prepare = vec![chain("b", false), always("b", Verdict::Drop)];
    let swap = vec![unlead(), lead(goto("b"))];
    let clean = vec![flush("a"), Command::DeleteChain("a".into())];
    let one = [prepare.clone(), swap.clone(), clean.clone()].concat();
    assert_eq!(during(start(), vec![one]), EITHER);
    assert_eq!(
        during(start(), vec![[prepare.clone(), swap.clone()].concat()]),
        EITHER
    );
    // A lookup that began before the first of two batches finds the elements that the second adds before that is
    // committed. The element leads to the chain's other copy, which is empty still.
    let adjacent = vec![prepare.clone(), swap.clone()];
    assert_eq!(during(start(), adjacent), EITHER);
    let another = || vec![add("s", HASHED)];
    let apart = vec![prepare.clone(), another(), swap.clone()];
    assert_eq!(during(start(), apart.clone()), DROPPED);
    // A deletion at once of chains that packets under way may still come to opens them for these packets.
    assert_eq!(
        during(start(), [apart, vec![clean.clone()]].concat()),
        EITHER
    );
    let mut patient = start();
    patient.commit(&prepare).expect("it is well formed");
    patient.commit(&another()).expect("it is well formed");
    patient.commit(&swap).expect("it is well formed");
    patient.grace();
    assert_eq!(during(patient, vec![clean]), DROPPED);
}

/// An element of a batch that is refused in the end is found by lookups that began before the commit before.
#[test]
fn a_refused_batch_is_seen_by_those_who_were_held_up() {
    let look = rule("c", in_set("s", Verdict::Accept));
    let refused = [vec![add("s", HASHED)], vec![unlead()]].concat();
    for (commits, seen) in [(0, DROPPED), (1, EITHER), (2, EITHER)] {
        let mut kernel = kernel(vec![look.clone(), always("c", Verdict::Drop)]);
        (0..commits).for_each(|_| kernel.commit_elsewhere());
        kernel
            .commit(&refused)
            .expect_err("there is no such element");
        assert_eq!(
            kernel.verdicts_now(&packet()),
            seen,
            "after {commits} commits"
        );
        kernel.grace();
        assert_eq!(kernel.verdicts_now(&packet()), DROPPED);
    }
}

/// Before Linux 6.17 no lookup is tried again that missed an element replaced in one batch.
#[test]
fn an_element_that_is_replaced_can_be_missed_by_older_kernels() {
    let by_map = Rule::map(Match::TupleSourceMap(Tuple::Original, V4, "m".into()));
    let start = || kernel(vec![rule("c", by_map.clone()), lead(Verdict::Drop)]);
    let replaced = vec![unlead(), lead(Verdict::Drop)];
    assert_eq!(during(start(), vec![replaced.clone()]), DROPPED);
    assert_eq!(during(start().without_retries(), vec![replaced]), EITHER);
}

#[test]
fn a_swap_to_a_fresh_chain_leaks_by_goto_and_loses_before_a_final_drop() {
    let start = |last| {
        kernel(vec![
            chain("a", false),
            always("a", last),
            always("c", Verdict::Jump("a".into())),
        ])
    };
    let fresh = |verdict| vec![chain("b", false), always("b", verdict), flush("c")];
    let goto_b = [fresh(Verdict::Drop), vec![always("c", goto("b"))]].concat();
    // The rules of both chains are of one generation here, so only the outcome of a lookup is wrong.
    assert_eq!(during(start(Verdict::Drop), vec![goto_b]), DROPPED);
    let by_map = rule(
        "c",
        Rule::map(Match::TupleSourceMap(Tuple::Original, V4, "m".into())),
    );
    let with_drop = kernel(vec![
        by_map,
        always("c", Verdict::Drop),
        chain("a", false),
        always("a", Verdict::Accept),
        lead(Verdict::Jump("a".into())),
    ]);
    let swap = vec![
        chain("b", false),
        always("b", Verdict::Accept),
        unlead(),
        lead(Verdict::Jump("b".into())),
    ];
    assert_eq!(during(with_drop, vec![swap]), EITHER);
}

#[test]
fn one_element_or_one_chain_replaced_in_place_does_neither() {
    let by_map = || {
        rule(
            "c",
            Rule::map(Match::TupleSourceMap(Tuple::Original, V4, "m".into())),
        )
    };
    let start = kernel(vec![by_map(), lead(Verdict::Accept)]);
    assert_eq!(
        during(start, vec![vec![unlead(), lead(Verdict::Return)]]),
        PASSES
    );
    let start = kernel(vec![
        rule("c", in_set("s", Verdict::Return)),
        always("c", Verdict::Drop),
    ]);
    assert_eq!(
        during(start, vec![vec![flush("c"), always("c", Verdict::Drop)]]),
        DROPPED
    );
}

#[test]
fn two_lookups_changed_in_consecutive_batches_leak_without_a_grace_period() {
    let both = [
        rule("c", in_set("s", Verdict::Return)),
        always("c", Verdict::Drop),
    ];
    let gate = [
        chain("d", false),
        rule("d", in_set("r", Verdict::Return)),
        always("d", Verdict::Drop),
    ];
    let second = always("forward", Verdict::Jump("d".into()));
    let start = || kernel([&both[..], &gate, &[second.clone(), add("s", HASHED)]].concat());
    let (first, then) = (vec![delete("s", HASHED)], vec![add("r", RANGES)]);
    assert_eq!(during(start(), vec![first.clone(), then.clone()]), EITHER);
    let mut patient = start();
    patient.commit(&first).expect("it is well formed");
    patient.grace();
    assert_eq!(during(patient, vec![then]), DROPPED);
}

#[test]
fn ranges_show_late_what_a_batch_did_and_hashed_sets_do_not() {
    for (kind, name, late) in [
        (HASHED, "s", Judgement::Pass),
        (RANGES, "r", Judgement::Drop),
    ] {
        let mut kernel = kernel(vec![
            rule("c", in_set(name, Verdict::Return)),
            always("c", Verdict::Drop),
        ]);
        kernel
            .commit(&[add(name, kind)])
            .expect("it is well formed");
        let mut walk = Walk::enter(&kernel, packet());
        let judgement = std::iter::repeat_with(|| walk.step(&kernel, true)).find_map(|end| end);
        assert_eq!(judgement, Some(late));
        kernel.grace();
        assert_eq!(
            Walk::enter(&kernel, packet()).finish(&kernel),
            Judgement::Pass
        );
    }
}

/// Step by step with commits between, a packet meets no verdict that the search over all mixes does not know.
#[test]
fn a_walk_agrees_with_the_search() {
    let batches = || {
        [
            vec![delete("s", HASHED)],
            vec![add("r", RANGES)],
            vec![flush("c"), always("c", Verdict::Accept)],
        ]
    };
    let start = || {
        let rules = [
            rule("c", in_set("s", Verdict::Return)),
            rule("c", in_set("r", Verdict::Accept)),
            always("c", Verdict::Drop),
        ];
        kernel([&rules[..], &[add("s", HASHED)]].concat())
    };
    let (mut seen, mut known) = (Verdicts::default(), Verdicts::default());
    for plan in 0..4u32.pow(7) {
        let (mut kernel, mut batches) = (start(), batches().into_iter());
        let mut walk = Walk::enter(&kernel, packet());
        let mut choices = plan;
        let judgement = loop {
            for batch in batches.by_ref().take((choices % 2) as usize) {
                kernel.commit(&batch).expect("it is well formed");
            }
            if let Some(judgement) = walk.step(&kernel, choices & 2 != 0) {
                break judgement;
            }
            choices /= 4;
        };
        match judgement {
            Judgement::Pass => seen.can_pass = true,
            Judgement::Drop => seen.can_drop = true,
        }
        let verdicts = kernel.verdicts_now(&packet());
        known.can_pass |= verdicts.can_pass;
        known.can_drop |= verdicts.can_drop;
        let told = match judgement {
            Judgement::Pass => verdicts.can_pass,
            Judgement::Drop => verdicts.can_drop,
        };
        assert!(
            told,
            "{judgement:?} by choices {plan} is unknown to the search"
        );
    }
    assert_eq!(seen, EITHER);
    assert_eq!(known, EITHER);
}

#[test]
fn a_batch_that_no_socket_takes_is_refused_whole() {
    let mut kernel = FakeKernel::new(10_000);
    kernel
        .commit(&[Command::AddTable { owned: false }, set("s", HASHED)])
        .expect("it is small");
    let many = (0..20_000u32)
        .map(|n| Element::Address(IpAddr::V4(n.into())))
        .collect();
    let error = kernel
        .commit(&[Command::AddElements("s".into(), HASHED, many)])
        .expect_err("it is large");
    assert!(error.to_string().contains("EMSGSIZE"), "{error}");
    assert_eq!(kernel.generation(), 1);
}

/// This is no benchmark. The test prints the cost of a commit and of a search, and fails only if they are far from
/// usable.
#[test]
fn it_is_fast_enough_for_a_simulation() {
    let mut kernel = kernel(vec![
        rule("c", in_set("s", Verdict::Return)),
        always("c", Verdict::Drop),
    ]);
    let (packet, rounds, start) = (packet(), 2_000, std::time::Instant::now());
    for _ in 0..rounds {
        kernel
            .commit(&[add("s", HASHED)])
            .expect("it is well formed");
        kernel.verdicts_now(&packet);
        kernel
            .commit(&[delete("s", HASHED)])
            .expect("it is well formed");
        kernel.verdicts_now(&packet);
        kernel.grace();
    }
    let each = start.elapsed() / (2 * rounds);
    println!("{each:?} for a commit and a search");
    assert!(each < std::time::Duration::from_millis(5), "{each:?}");
}

/// Measured: 58 lost of 128. A leak was not seen. A leak needs a packet that meets the new hook before the flip and the
/// old one after it.
#[test]
fn a_table_made_anew_in_one_batch_can_leak() {
    let whole = |verdict| {
        vec![
            Command::AddTable { owned: false },
            chain("forward", true),
            always("forward", verdict),
        ]
    };
    let mut kernel = FakeKernel::default();
    kernel
        .commit(&whole(Verdict::Drop))
        .expect("it is well formed");
    kernel.grace();
    let again = [vec![Command::DeleteTable], whole(Verdict::Drop)].concat();
    assert_eq!(during(kernel, vec![again]), EITHER);
}
