//! Addresses that several workloads claim: accepted with a warning, and moved so that no revision has a part of the
//! claimants.

use super::*;

#[test]
fn an_address_that_several_claim_is_accepted_with_a_warning() {
    let what_to_do = ": traffic passes where the policies of all of them allow it, and peers include the address where \
                      they include all of them; delete the workloads that have ended, or correct their addresses";
    let warned = |script: &str, base: &Cluster, expected: &[&str]| {
        let outcome = outcome(base, script, Revision(2)).1.expect(script);
        let expected: Vec<_> = expected
            .iter()
            .map(|text| format!("{text}{what_to_do}"))
            .collect();
        assert_eq!(outcome.warnings, expected, "{script}");
        outcome.cluster
    };
    let one =
        r#"address 10.0.0.2 is claimed by Pod a/new on node "m" and Workload b/vm on node "n""#;
    let contested = warned("+ Pod a/new node=m ip=10.0.0.2", &stored(), &[one]);
    warned(
        "+ Pod a/x node=m ip=10.0.0.7\n+ Pod a/y ip=10.0.0.7",
        &stored(),
        &[r#"address 10.0.0.7 is claimed by Pod a/x on node "m" and Pod a/y on no node"#],
    );
    // An operator who was warned is not warned again; a further claimant is another contest.
    warned("+ Pod a/new node=m ip=10.0.0.2 label=y", &contested, &[]);
    let three = r#"address 10.0.0.2 is claimed by Pod a/new on node "m", Pod a/other on no node and Workload b/vm on node "n""#;
    let contested = warned("+ Pod a/other ip=10.0.0.2", &contested, &[three]);
    let four = r#"address 10.0.0.2 is claimed by Pod a/new on node "m", Pod a/other on no node, Pod a/third on no node and 1 more"#;
    warned("+ Pod a/third ip=10.0.0.2", &contested, &[four]);
    // The end of a contest, and what is none.
    for script in [
        "- Pod a/new\n- Workload b/vm",
        "+ Pod a/new node=m\n- Pod a/other",
        "+ Pod a/new node=m ip=10.0.0.2 host=true\n+ Pod a/other",
    ] {
        assert!(warned(script, &contested, &[]).contested().is_empty());
    }
    warned("+ Pod a/x node=n ip=10.0.0.2 host=true", &stored(), &[]);
    warned("+ Pod a/x node=n ip=10.0.0.1\n- Pod a/web", &stored(), &[]);
}

#[test]
fn warnings_are_few_however_many_addresses_are_contested() {
    let pods = |name: &str| {
        let pod = |n: usize| format!("+ Pod a/{name}{n} ip=10.1.0.{n}\n");
        (0..12).map(pod).collect::<String>()
    };
    let script = pods("x") + &pods("y");
    let warnings = outcome(&stored(), &script, Revision(2)).1.unwrap().warnings;
    assert_eq!(warnings.len(), 11, "{warnings:#?}");
    assert_eq!(
        warnings[10],
        "and 2 more addresses that several workloads claim"
    );
}

/// Pod a/web on `n`, and Pod a/beside on `m`, which claims the same address.
fn contested() -> Cluster {
    let more = "+ Node o\n+ Pod a/beside node=m ip=10.0.0.1";
    let outcome = outcome(&stored(), more, Revision(1)).1;
    outcome.unwrap().cluster
}

#[test]
fn an_address_that_another_keeps_moves_in_one_revision() {
    // The other claimant stays: without the one that moves its policies alone would judge the address.
    for script in [
        "+ Pod a/web node=o ip=10.0.0.1",
        "+ Pod a/beside node=o ip=10.0.0.1",
        "+ Pod a/web node=n ip=10.0.0.7\n+ Pod a/new node=o ip=10.0.0.1",
        "+ Pod a/new node=o ip=10.0.0.1",
        "- Pod a/web\n+ Pod a/new node=o ip=10.0.0.1",
        "- Pod a/web",
    ] {
        let lines = committed(&contested(), script);
        assert!(lines.iter().all(|line| line.starts_with("2 ")), "{lines:?}");
    }
    // A contest that begins removes nobody.
    assert_eq!(
        committed(&stored(), "+ Pod a/new node=m ip=10.0.0.1"),
        ["2 put Pod a/new"]
    );
}

#[test]
fn claimants_of_an_address_that_moves_are_removed_together() {
    assert_eq!(
        committed(
            &contested(),
            "+ Pod a/web node=o ip=10.0.0.1\n+ Pod a/beside node=o ip=10.0.0.1"
        ),
        [
            "2 delete Pod a/beside",
            "2 delete Pod a/web",
            "3 put Pod a/web",
            "3 put Pod a/beside",
        ]
    );
    // Of two claimants the one on the node that stays is deleted.
    assert_eq!(
        committed(
            &contested(),
            "+ Pod a/web node=m ip=10.0.0.1\n- Pod a/beside"
        ),
        [
            "2 delete Pod a/beside",
            "2 delete Pod a/web",
            "3 put Pod a/web",
        ]
    );
    // A new contest, of an address that moves.
    assert_eq!(
        committed(
            &stored(),
            "- Pod a/web\n+ Pod a/x node=m ip=10.0.0.1\n+ Pod a/y node=n ip=10.0.0.1"
        ),
        ["2 delete Pod a/web", "3 put Pod a/x", "3 put Pod a/y"]
    );
}

#[test]
fn who_shares_another_address_with_one_that_stays_moves_in_one_revision() {
    let two = "+ Workload a/two node=n ip=10.0.0.4,fd00::5\n+ Pod a/beside node=m ip=fd00::5";
    let base = outcome(&stored(), two, Revision(1)).1.unwrap().cluster;
    let lines = committed(&base, "+ Workload a/two node=m ip=10.0.0.4,fd00::5");
    assert_eq!(lines, ["2 put Workload a/two"]);
    assert_eq!(
        committed(
            &base,
            "+ Workload a/two node=m ip=10.0.0.4,fd00::5\n- Pod a/beside"
        ),
        [
            "2 delete Pod a/beside",
            "2 delete Workload a/two",
            "3 put Workload a/two"
        ]
    );
}

/// Whatever two or three claimants do, a revision has all claimants of an address that had it before, or none.
#[test]
fn no_revision_has_a_part_of_the_claimants() {
    const PLACES: [Option<&str>; 3] = [None, Some("n"), Some("m")];
    let places = |n: usize| [0, 1, 2].map(|at| PLACES[n / 3_usize.pow(at) % 3]);
    let (mut in_two, mut in_one) = (0, 0);
    for addresses in [
        ["10.0.0.4", "10.0.0.4", "10.0.0.4"],
        ["10.0.0.4,fd00::5", "10.0.0.4", "fd00::5"],
    ] {
        let put = |at: usize, place: &str| {
            let (name, ip) = (["x", "y", "z"][at], addresses[at]);
            format!("+ Workload a/{name} node={place} ip={ip}\n")
        };
        for (before, after) in (0..27 * 27).map(|n| (places(n % 27), places(n / 27))) {
            let objects = (0..3).filter_map(|at| Some(put(at, before[at]?)));
            let base = outcome(&stored(), &objects.collect::<String>(), Revision(1))
                .1
                .unwrap()
                .cluster;
            let edits = (0..3).filter_map(|at| match (before[at], after[at]) {
                (_, Some(place)) => Some(put(at, place)),
                (Some(_), None) => Some(format!("- Workload a/{}\n", ["x", "y", "z"][at])),
                (None, None) => None,
            });
            let script = edits.collect::<String>();
            if script.is_empty() {
                continue;
            }
            committed_or_nothing(&base, &script);
            let outcome = outcome(&base, &script, Revision(2)).1.expect(&script);
            let moves = (0..3).any(|to| {
                let mut from = (0..3).filter_map(|from| before[from]);
                after[to].is_some_and(|to| from.any(|from| from != to))
            });
            let stays = (0..3).any(|at| before[at].is_some() && before[at] == after[at]);
            if addresses[0] == addresses[2] {
                assert_eq!(
                    outcome.removal.is_some(),
                    moves && !stays,
                    "{before:?} {script}"
                );
            }
            let Some(removal) = outcome.removal else {
                in_one += 1;
                continue;
            };
            in_two += 1;
            for address in ["10.0.0.4", "fd00::5"].map(|text| text.parse().expect("an address")) {
                let left: Vec<_> = removal.cluster.holders(address).collect();
                let had: Vec<_> = base.holders(address).collect();
                assert!(
                    left.is_empty() || left == had,
                    "{before:?} {script}: {left:?}"
                );
            }
        }
    }
    assert!(in_two > 200 && in_one > 200, "{in_two} {in_one}");
}

/// Checks what is committed, if anything is.
fn committed_or_nothing(base: &Cluster, script: &str) {
    let changes = outcome(base, script, Revision(2))
        .1
        .expect(script)
        .committed;
    if changes.is_some() {
        committed(base, script);
    }
}
