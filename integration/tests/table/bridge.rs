//! The table of family bridge: what changes lead to is what is written from scratch, nft loads what it lists, and what
//! others change is repaired.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_enforcer::{
    agent::BridgeTable,
    table::{
        self,
        bridge::{Ground, KnownPort, UnknownPorts},
    },
};
use sallyport_policy::Ranges;
use sallyport_testbed::{
    Netns,
    kernel_tests::{Failed, Outcome},
    listing::{self, Listing},
};

use crate::saved;

/// A ground of few ports and addresses, so that two of them share much. Names of interfaces may be what no name of a
/// chain is.
fn random_ground(rng: &mut StdRng) -> Ground {
    const PORTS: [&str; 6] = ["veth-a", "tap0", "lxc@b", "0port", "a.name-of-15-by", "x"];
    let address = |n: u8| match n % 2 {
        0 => [10, 0, 0, n].into(),
        _ => std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
    };
    let some = |rng: &mut StdRng| -> BTreeSet<String> {
        let ports = PORTS.into_iter().filter(|_| rng.random_bool(0.5));
        ports.map(str::to_owned).collect()
    };
    let addresses = |rng: &mut StdRng| {
        (0..8)
            .filter(|_| rng.random_bool(0.4))
            .map(address)
            .collect()
    };
    let known: BTreeMap<_, _> = some(rng)
        .into_iter()
        .map(|port| {
            let (addresses, ranges) = (addresses(rng), random_ranges(rng));
            (port, KnownPort { addresses, ranges })
        })
        .collect();
    let unknown = rng.random_bool(0.6).then(|| UnknownPorts {
        elsewhere: some(rng),
        addresses: addresses(rng),
        ranges: match rng.random_range(0..3) {
            0 => Ranges::EMPTY,
            n => Ranges::span(address(20), address(20 + 20 * n)).expect("a range"),
        },
        isolated: rng.random(),
    });
    Ground {
        counts_only: rng.random_bool(0.1),
        judges_tags: rng.random_bool(0.4),
        isolated: some(rng),
        known,
        unknown,
    }
}

/// Ranges of few addresses, of both families, that begin and end with those of the family or overlap what others are.
fn random_ranges(rng: &mut StdRng) -> Ranges {
    const ENDS: [[&str; 6]; 2] = [
        [
            "0.0.0.0",
            "192.0.2.0",
            "192.0.2.127",
            "192.0.2.128",
            "198.51.100.7",
            "255.255.255.255",
        ],
        [
            "::",
            "2001:db8::",
            "2001:db8::ffff",
            "2001:db8:1::",
            "fec0::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ],
    ];
    let spans = ENDS.iter().flat_map(|ends| (0..3).map(move |_| ends));
    let spans: Vec<Ranges> = spans
        .filter_map(|ends| {
            let at = [(); 2].map(|()| rng.random_range(0..ends.len()));
            let [first, last] = at.map(|at| ends[at].parse().expect("an address"));
            Ranges::span(first, last).filter(|_| rng.random_bool(0.4))
        })
        .collect();
    Ranges::union_all(&spans)
}

fn open(netns: &Netns, owned: bool) -> Result<BridgeTable, Failed> {
    Ok(BridgeTable::beside(&netns.run(table::open)?, owned))
}

/// The listing of a table that is written whole.
fn fresh(ground: &Ground) -> Result<Listing, Failed> {
    let netns = Netns::new("fresh")?;
    open(&netns, false)?.set(ground.clone())?;
    Ok(listing::objects(&netns)?)
}

fn same(what: &str, netns: &Netns, ground: &Ground) -> Outcome {
    match listing::difference(&listing::objects(netns)?, &fresh(ground)?) {
        None => Ok(()),
        Some(difference) => Err(format!("{what}: {difference}").into()),
    }
}

/// Whether a change from one ground to another leaves what does not change as it is.
fn changes_bit_by_bit(one: &Ground, other: &Ground) -> bool {
    let ranges = |ground: &Ground| ground.unknown.clone().unwrap_or_default().ranges;
    let rules = |ground: &Ground| (ground.counts_only, ground.judges_tags);
    ranges(one) == ranges(other) && rules(one) == rules(other)
}

/// The number that the kernel gave the table.
fn handle(netns: &Netns) -> Result<String, Failed> {
    let arguments = ["-a", "list", "table", "bridge", "sallyport"];
    let output = netns.command("nft").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let handle = text.lines().next().unwrap_or_default();
    match handle.contains("# handle") {
        true => Ok(handle.to_owned()),
        false => Err(format!("no table: {text}").into()),
    }
}

pub(crate) fn changes_lead_there() -> Outcome {
    for seed in 0..8 {
        let mut rng = StdRng::seed_from_u64(seed);
        let netns = Netns::new("bridge")?;
        let mut table = open(&netns, false)?;
        let mut before: Option<(Ground, String)> = None;
        for step in 0..12 {
            let ground = random_ground(&mut rng);
            table.set(ground.clone())?;
            let handle = handle(&netns)?;
            if let Some((last, there)) = &before
                && changes_bit_by_bit(last, &ground)
                && *there != handle
            {
                return Err(format!("seed {seed} step {step}: another table").into());
            }
            before = Some((ground.clone(), handle));
            same(&format!("seed {seed} step {step}"), &netns, &ground)?;
            if table.restore()? {
                return Err(format!("seed {seed} step {step}: it was written anew").into());
            }
        }
    }
    Ok(())
}

pub(crate) fn its_listing_loads() -> Outcome {
    for seed in 0..20 {
        let ground = random_ground(&mut StdRng::seed_from_u64(seed));
        let (one, other) = (Netns::new("listed")?, Netns::new("loaded")?);
        open(&one, false)?.set(ground.clone())?;
        saved::load(&other, &listing::text(&one)?)?;
        same(&format!("seed {seed}"), &other, &ground)?;
    }
    Ok(())
}

/// The changes by others, which nothing prevents here.
const MEDDLING: [&str; 6] = [
    "delete table bridge sallyport",
    "flush chain bridge sallyport forward",
    "flush ruleset",
    "insert rule bridge sallyport source accept",
    "flush map bridge sallyport targets",
    "add chain bridge sallyport theirs",
];

pub(crate) fn it_is_repaired() -> Outcome {
    let netns = Netns::new("repaired")?;
    let mut table = open(&netns, false)?;
    let mut rng = StdRng::seed_from_u64(5);
    let ground = std::iter::repeat_with(|| random_ground(&mut rng))
        .find(|ground| !ground.known.is_empty())
        .expect("there are such");
    table.set(ground.clone())?;
    for script in MEDDLING {
        saved::load(&netns, script)?;
        let was_there = !script.starts_with("delete") && !script.ends_with("ruleset");
        if table.restore()? != was_there {
            return Err(format!("after `{script}`: replaced is not {was_there}").into());
        }
        same(script, &netns, &ground)?;
    }
    Ok(())
}

/// The table that an earlier life left is taken over as it is, if it is right: its objects stay the same ones.
pub(crate) fn the_next_life_takes_it_over() -> Outcome {
    let netns = Netns::new("next")?;
    let ground = random_ground(&mut StdRng::seed_from_u64(7));
    let handles = || -> Result<String, Failed> {
        let output = netns
            .command("nft")
            .args(["-a", "list", "ruleset"])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // The owner is the only thing that changes.
        let rest = text.lines().filter(|line| !line.contains("progname"));
        Ok(rest.collect::<Vec<_>>().join("\n"))
    };
    let mut first = open(&netns, true)?;
    first.set(ground.clone())?;
    let before = handles()?;
    if saved::load(&netns, "delete table bridge sallyport").is_ok() {
        return Err("another could delete it".into());
    }
    drop(first);
    let reader = netns.run(table::open)?.for_table(table::BRIDGE);
    reader.await_orphan(std::time::Duration::from_secs(5))?;
    let mut second = open(&netns, true)?;
    second.set(ground)?;
    let after = handles()?;
    if before != after {
        return Err(format!("it was written anew:\n{before}\n{after}").into());
    }
    match reader.owner()? {
        Some(_) => Ok(()),
        None => Err("nobody owns it".into()),
    }
}
