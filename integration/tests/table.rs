//! The table that updates arrive at is the table that would be made from scratch: random histories of policies on the
//! real kernel, compared as stock nft lists them. And what nft lists is fit for people.

#[path = "table/bridge.rs"]
mod bridge;
#[path = "table/many.rs"]
mod many;
#[path = "table/narrows.rs"]
mod narrows;
#[path = "table/saved.rs"]
mod saved;

use std::{
    process::{ExitCode, Stdio},
    sync::Arc,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use sallyport_enforcer::{
    agent,
    guard::Rules,
    health::Health,
    plan::{self, Garbage, Installed, Limits, Plan},
    table::{
        self,
        lease::{self, Slot},
        ports::Ports,
        render::Options,
        state,
    },
};
use sallyport_nft::{command::Command, netlink::Netlink};
use sallyport_policy::{
    Class, Direction, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, PortRule, Position,
    Protocol, Ranges, Revision, Window,
};
use sallyport_testbed::{
    Netns,
    kernel_tests::{self, Outcome},
    listing::{self, Listing},
};

fn main() -> ExitCode {
    kernel_tests::run(&[
        ("updates_arrive_at_the_table_made_from_scratch", || {
            histories(1 << 20)
        }),
        ("so_they_do_in_small_batches", || histories(30_000)),
        (
            "interrupted_updates_are_finished_by_the_same_plan",
            interruptions,
        ),
        (
            "a_refused_batch_changes_nothing_and_names_the_command",
            refusal,
        ),
        ("another_cannot_touch_an_owned_table", ownership),
        ("a_class_that_keeps_lists_well", listing_of_keep),
        ("leases_list_well", listing_of_leases),
        ("what_nft_lists_can_be_loaded", saved::a_listing_loads),
        (
            "the_tables_of_others_are_saved_without_ours",
            saved::the_tables_of_others_are_saved,
        ),
        (
            "changes_of_the_bridge_table_lead_to_what_is_written_whole",
            bridge::changes_lead_there,
        ),
        (
            "what_nft_lists_of_the_bridge_table_can_be_loaded",
            bridge::its_listing_loads,
        ),
        (
            "what_others_do_to_the_bridge_table_is_repaired",
            bridge::it_is_repaired,
        ),
        (
            "the_bridge_table_of_an_earlier_life_is_taken_over",
            bridge::the_next_life_takes_it_over,
        ),
        ("a_restarted_agent_owns_its_table_again", restart),
        (
            "the_guard_narrows_before_policy_releases_addresses",
            narrows::before_policy_releases_addresses,
        ),
        (
            "the_kernel_takes_ten_thousand_groups",
            many::takes_ten_thousand_groups,
        ),
    ])
}

/// An interface of workloads, with addresses beside their own.
fn ports() -> Ports {
    let mut ports = Ports::named(["veth7"]);
    for (first, last) in [("192.0.2.0", "192.0.2.9"), ("2001:db8::", "2001:db8::ffff")] {
        let [first, last] = [first, last].map(|text| text.parse().expect("an address"));
        ports.allow("veth7", &Ranges::span(first, last).expect("a range"));
    }
    ports
}

fn options() -> Options {
    Options {
        strict: true,
        workload_ranges: Ranges::EMPTY,
        workload_interfaces: vec!["eth0".into(), "veth*".into()],
        lease: Some(std::time::Duration::from_secs(60)),
        ports: ports(),
        ..Options::default()
    }
}

/// The installed policy after an update.
fn updated(before: &Installed, policy: &NodePolicy, revision: u64) -> Installed {
    let window = Window::alone(position(policy, revision), policy.clone());
    before.updated(window, &options().unknown())
}

/// A policy over a small universe, so that two of them share much.
fn random_policy(rng: &mut StdRng) -> NodePolicy {
    let address = |n: u8| match n % 2 {
        0 => [10, 0, 0, n].into(),
        _ => std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
    };
    let mut policy = NodePolicy::default();
    let last = rng.random_range(10..14);
    policy.set_workload_ranges(Arc::new(
        Ranges::span(address(0), address(last & !1)).expect("a range"),
    ));
    let mut groups = Vec::new();
    for n in 0..5u8 {
        let ranges = match n {
            3 => Ranges::span(address(20), address(60)).expect("a range"),
            4 => Ranges::everything(),
            _ => Ranges::EMPTY,
        };
        let description = format!("pods default/group={n}");
        let id = GroupId::of([description.as_str()], &ranges);
        let mut group = PeerGroup::new(description, ranges);
        // Some groups have no member of one family, or of either.
        let chances = [(); 2].map(|()| [0.0, 0.4, 0.4][rng.random_range(0..3)]);
        group.addresses = (0..20u8)
            .filter(|n| rng.random_bool(chances[usize::from(n % 2)]))
            .map(address)
            .collect();
        groups.push((id, Arc::new(group)));
    }
    for n in 0..8u8 {
        if rng.random_bool(0.3) {
            continue;
        }
        let owner = rng.random_range(0..2);
        let mut class = |direction| {
            rng.random_bool(0.7).then(|| {
                let class = random_class(rng, direction, &groups);
                for id in class.groups() {
                    let (_, group) = groups
                        .iter()
                        .find(|(other, _)| *other == id)
                        .expect("one of them");
                    policy.set_group(id, group.clone());
                }
                let id = class.id();
                policy.add_class(id, Arc::new(class));
                id
            })
        };
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}-{owner}"),
            ingress: class(Direction::Ingress),
            egress: class(Direction::Egress),
            ..Endpoint::default()
        };
        policy.set_endpoint(address(n), Arc::new(endpoint));
    }
    policy
}

fn random_class(
    rng: &mut impl Rng,
    direction: Direction,
    groups: &[(GroupId, Arc<PeerGroup>)],
) -> Class {
    let mut group = || groups[rng.random_range(0..groups.len())].0;
    let (a, b) = (group(), group());
    let rule = |protocol, first, last, group| PortRule {
        protocol,
        first,
        last,
        group,
    };
    let ports = match rng.random_range(0..6) {
        0 => vec![],
        1 => vec![rule(Protocol::Tcp, 80, 80, a)],
        2 => vec![
            rule(Protocol::Tcp, 0, 79, a),
            rule(Protocol::Tcp, 80, 80, b),
            rule(Protocol::Tcp, 81, u16::MAX, a),
            rule(Protocol::Udp, 53, 53, b),
        ],
        3 => vec![
            rule(Protocol::Udp, 0, u16::MAX, a),
            rule(Protocol::Sctp, 7, 9, b),
        ],
        4 => Protocol::ALL
            .map(|protocol| rule(protocol, 0, u16::MAX, a))
            .to_vec(),
        _ => vec![
            rule(Protocol::Tcp, 443, 443, a),
            rule(Protocol::Tcp, 8443, 8443, b),
        ],
    };
    Class {
        direction,
        keep_established: rng.random_bool(0.3),
        other: rng.random_bool(0.5).then_some(a),
        ports,
    }
}

fn position(policy: &NodePolicy, revision: u64) -> Position {
    Position {
        epoch: Epoch(1),
        revision: Revision(revision),
        digest: policy.digest(),
    }
}

/// A namespace with a table in it.
struct Table {
    netns: Netns,
    netlink: Netlink,
    limits: Limits,
}

impl Table {
    fn new(batch: usize) -> Result<Table, kernel_tests::Failed> {
        let netns = Netns::new("table")?;
        let netlink = netns.run(table::open)?;
        Ok(Table {
            netns,
            netlink,
            limits: Limits { batch },
        })
    }

    /// One whose batches are as long as its socket takes.
    fn of_any_batch() -> Result<Table, kernel_tests::Failed> {
        let table = Table::new(0)?;
        let batch = table.netlink.batch_limit();
        Ok(Table {
            limits: Limits { batch },
            ..table
        })
    }

    fn commit_plan(&self, plan: &Plan) -> Outcome {
        plan.steps
            .iter()
            .try_for_each(|step| Ok(self.netlink.commit(&step.commands)?))
    }

    fn listing(&self) -> Result<Listing, kernel_tests::Failed> {
        Ok(listing::objects(&self.netns)?)
    }

    fn check(&self, installed: &Installed, seed: u64) -> Outcome {
        let state = self.netlink.outline()?.ok_or("the table is gone")?;
        let expected = plan::objects(installed, &options());
        if (&state.chains, &state.sets) != (&expected.chains, &expected.sets) {
            return Err(format!("seed {seed}: {state:?} instead of {expected:?}").into());
        }
        let fresh = Table::new(1 << 20)?;
        fresh.commit_plan(&plan::create(installed, &options(), fresh.limits))?;
        match listing::difference(&self.listing()?, &fresh.listing()?) {
            Some(difference) => Err(format!("seed {seed}: {difference}").into()),
            None => Ok(()),
        }
    }
}

fn histories(batch: usize) -> Outcome {
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let table = Table::new(batch)?;
        let first = random_policy(&mut rng);
        let mut installed = updated(&Installed::default(), &first, 1);
        table.commit_plan(&plan::create(&installed, &options(), table.limits))?;
        let mut garbage = Garbage::default();
        for revision in 2..14 {
            let policy = random_policy(&mut rng);
            let after = updated(&installed, &policy, revision);
            let plan = plan::update(&installed, &after, &options(), table.limits);
            table
                .commit_plan(&plan)
                .map_err(|error| format!("seed {seed}, revision {revision}: {error:?}"))?;
            garbage.after(&plan);
            installed = plan.after;
            // Sometimes what is left behind stays for a while, and is wanted again.
            if revision % 3 == 0 {
                table.netlink.commit(&garbage.delete())?;
                garbage = Garbage::default();
                table.check(&installed, seed)?;
            }
        }
    }
    Ok(())
}

/// After any number of steps, the steps from there on arrive at the same table.
fn interruptions() -> Outcome {
    let mut rng = StdRng::seed_from_u64(7);
    for seed in 0..4 {
        let (old, new) = (random_policy(&mut rng), random_policy(&mut rng));
        let before = updated(&Installed::default(), &old, 1);
        for stop in 0.. {
            let table = Table::new(30_000)?;
            table.commit_plan(&plan::create(&before, &options(), table.limits))?;
            let after = updated(&before, &new, 2);
            let make = || plan::update(&before, &after, &options(), table.limits);
            let plan = make();
            if stop > plan.steps.len() {
                break;
            }
            for step in &plan.steps[..stop] {
                table.netlink.commit(&step.commands)?;
            }
            let stamp = state::read_stamp(&mut table.netlink.clone())?;
            let stamp = stamp.stamp.ok_or("there is no stamp")?;
            let done = match stamp.progress {
                _ if stop == 0 => 0,
                Some((done, _)) => done as usize,
                None => plan.steps.len(),
            };
            if done != stop {
                return Err(format!("the stamp says {stamp}, {stop} steps are done").into());
            }
            let again = make();
            for step in &again.steps[done..] {
                table.netlink.commit(&step.commands)?;
            }
            table.netlink.commit(&again.garbage.delete())?;
            table.check(&again.after, seed)?;
        }
    }
    Ok(())
}

fn refusal() -> Outcome {
    let table = Table::new(1 << 20)?;
    let policy = random_policy(&mut StdRng::seed_from_u64(1));
    let installed = updated(&Installed::default(), &policy, 1);
    table.commit_plan(&plan::create(&installed, &options(), table.limits))?;
    let before = table.listing()?;
    let commands = [
        Command::FlushChain("forward_egress".into()),
        Command::DeleteChain("nobody".into()),
    ];
    let error = table
        .netlink
        .commit(&commands)
        .expect_err("there is no such chain")
        .to_string();
    if !error.starts_with("the kernel refused `delete chain inet sallyport nobody`: ENOENT") {
        return Err(error.into());
    }
    if table.listing()? != before {
        return Err("a refused batch changed the table".into());
    }
    Ok(())
}

fn ownership() -> Outcome {
    let table = Table::new(1 << 20)?;
    let policy = random_policy(&mut StdRng::seed_from_u64(1));
    let installed = updated(&Installed::default(), &policy, 1);
    let owned = Options {
        owned: true,
        ..options()
    };
    table.commit_plan(&plan::create(&installed, &owned, table.limits))?;
    let before = table.listing()?;
    let nft = |arguments: &[&str]| -> Result<bool, kernel_tests::Failed> {
        let mut command = table.netns.command("nft");
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(table.netns.spawn(command)?.wait()?.success())
    };
    if nft(&["add", "chain", "inet", "sallyport", "mine"])? {
        return Err("another added a chain to our table".into());
    }
    nft(&["flush", "ruleset"])?;
    if table.listing()? != before {
        return Err("`nft flush ruleset` changed our table".into());
    }
    let other = table.netns.run(table::open)?;
    let error = other
        .commit(&[Command::AddTable { owned: true }])
        .expect_err("it has an owner")
        .to_string();
    if !error.contains("EPERM") {
        return Err(error.into());
    }
    // When the owner dies the table stays, and another can take it over.
    let Table { netns, netlink, .. } = table;
    drop(netlink);
    let heir = netns.run(table::open)?;
    heir.await_orphan(std::time::Duration::from_secs(5))?;
    heir.commit(&[Command::AddTable { owned: true }])?;
    if !heir
        .outline()?
        .ok_or("the table went with its owner")?
        .is_owned()
    {
        return Err("the table lost its flags".into());
    }
    Ok(())
}

/// The listing for operators of a class that keeps, and of its twin that does not.
fn listing_of_keep() -> Outcome {
    let group = GroupId::of(["pods default/app=client"], &Ranges::EMPTY);
    let peers = PeerGroup::new("pods default/app=client".into(), Ranges::EMPTY);
    let class = |keep_established| Class {
        direction: Direction::Ingress,
        keep_established,
        other: None,
        ports: vec![PortRule {
            protocol: Protocol::Tcp,
            first: 80,
            last: 80,
            group,
        }],
    };
    let mut policy = NodePolicy::default();
    policy.set_group(group, Arc::new(peers));
    for (n, keep_established) in [(1, true), (2, false)] {
        policy.add_class(
            class(keep_established).id(),
            Arc::new(class(keep_established)),
        );
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            ingress: Some(class(keep_established).id()),
            ..Endpoint::default()
        };
        policy.set_endpoint([10, 0, 0, n].into(), Arc::new(endpoint));
    }
    let table = Table::new(1 << 20)?;
    let installed = updated(&Installed::default(), &policy, 1);
    table.commit_plan(&plan::create(&installed, &options(), table.limits))?;
    let listing = table.listing()?;
    let kept = "ct state established,related accept comment \"keep: what is established goes on\"";
    for keep_established in [true, false] {
        let id = class(keep_established).id().to_string();
        let (name, lines) = listing
            .iter()
            .find(|(name, _)| name.contains(" chain in_") && name.contains(&id[..8]))
            .ok_or("a class has no chain")?;
        let expected = if keep_established { 1 } else { 0 };
        if lines.iter().filter(|line| *line == kept).count() != expected {
            return Err(format!("keep {keep_established}: {name} {lines:#?}").into());
        }
    }
    Ok(())
}

/// The listing for operators of a lease in force, and of the fence around a node without one.
fn listing_of_leases() -> Outcome {
    let table = Table::new(1 << 20)?;
    let policy = random_policy(&mut StdRng::seed_from_u64(1));
    let installed = updated(&Installed::default(), &policy, 1);
    table.commit_plan(&plan::create(&installed, &options(), table.limits))?;
    for slot in [Slot::B, Slot::A] {
        let lasts = std::time::Duration::from_secs(20);
        table.netlink.commit(&lease::fill(slot, lasts))?;
        table.netlink.commit(&lease::look_into(slot))?;
        let listing = table.listing()?;
        let has = |object: &str, line: &str| -> Outcome {
            let lines = listing
                .get(&format!("table inet sallyport {object} {{"))
                .ok_or_else(|| format!("there is no {object}: {listing:#?}"))?;
            match lines.iter().any(|there| there.starts_with(line)) {
                true => Ok(()),
                false => Err(format!("{object} has no `{line}`: {lines:#?}").into()),
            }
        };
        let name = slot.name();
        has(&format!("set {name}"), "type nf_proto")?;
        has(&format!("set {name}"), "flags timeout")?;
        has(&format!("set {name}"), "ipv4 timeout 20s expires ")?;
        has(
            "chain lease",
            "type filter hook forward priority filter - 1; policy accept;",
        )?;
        has("chain lease", &format!("meta nfproto @{name} accept"))?;
        has("chain lease", "jump fenced")?;
        for (base, jump) in [
            ("forward_egress", "jump egress"),
            ("forward_ingress", "jump ingress"),
        ] {
            has(&format!("chain {base}"), jump)?;
            let end = "counter packets 0 bytes 0 drop comment \"nothing allowed it\"";
            has(&format!("chain {base}"), end)?;
        }
        has("chain fenced", "goto closed")?;
        for pair in [
            "ct original ip saddr . ct original ip saddr @self4",
            "ct reply ip6 saddr . ct reply ip6 saddr @self6",
            "ip saddr . ip saddr @self4",
            "ip6 daddr . ip6 daddr @self6",
            "iifname \"veth*\"",
        ] {
            has(
                "chain closed",
                &format!("{pair} counter packets 0 bytes 0 drop"),
            )?;
        }
        has("chain closed", "accept")?;
    }
    Ok(())
}

/// The kernel takes the owner flag off a table whose owner died; the next one has to put it on.
fn restart() -> Outcome {
    let netns = Netns::new("restart")?;
    let directory = tempfile::tempdir()?;
    let options = Options {
        owned: true,
        ..options()
    };
    let reader = netns.run(table::open)?;
    let wait_for = |owned: bool| -> Outcome {
        for _ in 0..500 {
            if reader.outline()?.ok_or("the table is gone")?.is_owned() == owned {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Err(format!("after 5 s the table is still not as it should be: owned {owned}").into())
    };
    for _ in 0..2 {
        let agent = netns.run(|| {
            agent::start(
                directory.path(),
                options.clone(),
                Rules::default(),
                Health::default(),
            )
        })?;
        wait_for(true)?;
        drop(agent);
        wait_for(false)?;
    }
    Ok(())
}
