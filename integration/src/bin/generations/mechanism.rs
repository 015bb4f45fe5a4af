//! The mechanism by itself: packets look an element up that is pointed at another chain again and again. Counts how
//! often they find that chain without rules, where it was made in the batch before (`adjacent`), and where a commit
//! lies between (`apart`).

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rand::RngExt as _;
use sallyport_enforcer::{
    plan::Garbage,
    table::{self, stamp},
};
use sallyport_integration::progress::Progress;
use sallyport_nft::{
    command::{Command, Element, Family, Rule, SetKind, Verdict},
    kernel::Kernel as _,
    netlink::Netlink,
};
use sallyport_testbed::Netns;
use serde_json::json;

use crate::{
    batch::Batch,
    padding,
    sender::Sender,
    stock,
    storm::{self, Storm},
};

/// The address that is looked up.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const PORT: u16 = 9000;

/// The map that packets look into.
const MAP: &str = "dispatch";

/// The chain that every element's chain leads to, and that counts.
const FOUND: &str = "found";

/// Edits between two looks at the counters.
const BLOCK: u32 = 1_000;

/// Chains that are left behind before they are deleted, which costs a grace period.
const GARBAGE: usize = 500;

/// The settings of a trial of the mechanism.
#[derive(Clone, Copy)]
pub(crate) struct Trial {
    pub(crate) edits: u32,
    pub(crate) lookups: u32,
    pub(crate) pad: u32,
}

/// The way in which an element is pointed at a new chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The chain is made in one batch, the element pointed at it in the next.
    Adjacent,
    /// One commit lies between, which changes nothing but the stamp.
    Apart,
}

/// The counts of one order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    edits: u32,
    packets: u64,
    found: u64,
    missed: u64,
    lasted: Duration,
}

impl Counts {
    fn lookups(&self, trial: Trial) -> u64 {
        self.packets * u64::from(trial.lookups)
    }

    /// Lookups that led into a chain without rules.
    fn empty(&self, trial: Trial) -> u64 {
        self.lookups(trial) - self.found - self.missed
    }

    fn line(&self, order: Order, trial: Trial, storm: &Storm) -> String {
        let name = match order {
            Order::Adjacent => "adjacent",
            Order::Apart => "apart",
        };
        json!({
            "measurement": format!("mechanism/{name}"),
            "control": order == Order::Adjacent,
            "edits": self.edits,
            "seconds": (self.lasted.as_secs_f64() * 10.0).round() / 10.0,
            "packets": self.packets,
            "lookups": self.lookups(trial),
            "found_empty": self.empty(trial),
            "missed": self.missed,
            "held_microseconds": storm.held().as_micros() as u64,
        })
        .to_string()
    }
}

/// Edits in both orders, in blocks by turns, until there are enough of `apart` and `adjacent` found a chain without
/// rules; or gives up. Prints a line for each; returns why they do not show what they should.
pub(crate) fn run(
    trial: Trial,
    storm: &Storm,
    processors: (usize, usize),
) -> Result<Option<String>> {
    let mut bench = Bench::start(trial)?;
    let mut progress = Progress::of("mechanism".into(), "edits");
    let (mut adjacent, mut apart) = (Counts::default(), Counts::default());
    let most = trial.edits.saturating_mul(10);
    while apart.edits < trial.edits || adjacent.empty(trial) == 0 && adjacent.edits < most {
        bench.block(Order::Adjacent, BLOCK, &mut adjacent, storm, processors.1)?;
        if apart.edits < trial.edits {
            let edits = BLOCK.min(trial.edits - apart.edits);
            bench.block(Order::Apart, edits, &mut apart, storm, processors.1)?;
        }
        progress.at(apart.edits, trial.edits);
    }
    drop(progress);
    println!("{}", adjacent.line(Order::Adjacent, trial, storm));
    println!("{}", apart.line(Order::Apart, trial, storm));
    Ok(if apart.packets < u64::from(apart.edits) {
        Some("mechanism/apart sent fewer packets than there were edits".into())
    } else if apart.empty(trial) > 0 {
        let empty = apart.empty(trial);
        Some(format!(
            "mechanism/apart found {empty} chains without rules"
        ))
    } else if adjacent.empty(trial) == 0 {
        Some("mechanism/adjacent found no chain without rules, so the zero means nothing: raise --edits".into())
    } else {
        None
    })
}

/// The namespace, its table, and who edits it.
struct Bench {
    netns: Netns,
    netlink: Netlink,
    padding: [Command; 2],
    /// The number of the chain that the element leads to.
    chain: u32,
    garbage: Garbage,
    /// The counts up to now.
    counted: Counts,
}

impl Bench {
    fn start(trial: Trial) -> Result<Bench> {
        let netns = Netns::new("mechanism")?;
        stock::script(&netns, &table(trial))?;
        let netlink = netns.run(table::open)?;
        netlink.commit(&make(0))?;
        netlink.commit(&[
            Command::AddElements(MAP.into(), SetKind::Verdicts(Family::V4), vec![element(0)]),
            Command::AddElements(stamp::SET.into(), SetKind::Numbers, vec![stamp(0)]),
        ])?;
        Ok(Bench {
            netns,
            netlink,
            padding: padding(trial.pad),
            chain: 0,
            garbage: Garbage::default(),
            counted: Counts::default(),
        })
    }

    /// Makes some edits while packets are sent, and adds what came of it.
    fn block(
        &mut self,
        order: Order,
        edits: u32,
        counts: &mut Counts,
        storm: &Storm,
        processor: usize,
    ) -> Result<()> {
        let started = Instant::now();
        let to = (ADDRESS, PORT).into();
        let sender = Sender::start(&self.netns, to, processor)?;
        for _ in 0..edits {
            self.edit(order, storm)?;
        }
        sender.stop()?;
        let after = self.counters()?;
        let before = std::mem::replace(&mut self.counted, after);
        counts.edits += edits;
        counts.lasted += started.elapsed();
        counts.packets += after.packets - before.packets;
        counts.found += after.found - before.found;
        counts.missed += after.missed - before.missed;
        Ok(())
    }

    /// Points the element at a new chain, while the sender is held up.
    fn edit(&mut self, order: Order, storm: &Storm) -> Result<()> {
        let (old, new) = (self.chain, self.chain + 1);
        let mut dispatch = replace(
            MAP,
            SetKind::Verdicts(Family::V4),
            element(old),
            element(new),
        );
        dispatch.extend(replace(stamp::SET, SetKind::Numbers, stamp(0), stamp(new)));
        dispatch.extend(self.padding.iter().cloned());
        let between = replace(stamp::SET, SetKind::Numbers, stamp(0), stamp(new));
        let mut batches = vec![Batch::of(&make(new), None), Batch::of(&dispatch, None)];
        if order == Order::Apart {
            batches.insert(1, Batch::of(&between, None));
        }
        // Now and then the hold-up begins between the commits, or ends before them.
        let held = storm.held().as_nanos() as u64;
        let late = rand::rng().random_range(0..=held / 2);
        storm::wait_until(storm.strike(0)? + late);
        for batch in &batches {
            batch.commit(&self.netlink)?;
        }
        self.chain = new;
        self.garbage.chains.insert(chain(old));
        if self.garbage.len() >= GARBAGE {
            self.netlink.grace();
            self.netlink.commit(&self.garbage.delete())?;
            self.garbage = Garbage::default();
        }
        Ok(())
    }

    fn counters(&self) -> Result<Counts> {
        let counters = stock::counters(&self.netns, table::INET.name)?;
        let of = |comment| {
            let rule = counters.iter().find(|((of, _), _)| of == comment);
            rule.map(|(_, packets)| *packets)
                .context("every rule that counts is there")
        };
        Ok(Counts {
            packets: of("packets")?,
            found: of("found")?,
            missed: of("missed")?,
            ..Counts::default()
        })
    }
}

/// The table: every packet looks one address up again and again, each time in a chain that comes back.
fn table(trial: Trial) -> String {
    let lookups = "    jump look\n".repeat(trial.lookups as usize);
    format!(
        "table {table} {{
  set {set} {{ type mark; }}
  map {MAP} {{ type ipv4_addr : verdict; }}
  chain {FOUND} {{
    counter comment \"found\"
  }}
  chain look {{
    ip daddr vmap @{MAP}
    counter comment \"missed\"
  }}
  chain lookups {{
{lookups}  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    ip daddr {ADDRESS} udp dport {PORT} counter jump lookups comment \"packets\"
  }}
}}
",
        table = table::INET,
        set = stamp::SET
    )
}

fn chain(number: u32) -> String {
    format!("chain{number}")
}

/// Makes a chain, which leads to the one that counts.
fn make(number: u32) -> Vec<Command> {
    let rule = Rule::always(Verdict::Goto(FOUND.into()));
    vec![
        Command::AddChain {
            name: chain(number),
            base: None,
            comment: "leads on".into(),
        },
        Command::AddRule(chain(number), rule),
    ]
}

/// The element that leads to a chain.
fn element(number: u32) -> Element {
    let verdict = Verdict::Goto(chain(number));
    Element::Verdict(IpAddr::V4(ADDRESS), verdict, "looked up".into())
}

fn stamp(number: u32) -> Element {
    Element::Number(1, format!("edit {number}"))
}

/// Puts an element in the place of another.
fn replace(set: &str, kind: SetKind, old: Element, new: Element) -> Vec<Command> {
    vec![
        Command::DeleteElements(set.into(), kind, vec![old]),
        Command::AddElements(set.into(), kind, vec![new]),
    ]
}
