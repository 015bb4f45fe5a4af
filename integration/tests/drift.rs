//! Others change our table: on a kernel that lets them (`--unprotected`, as before Linux 6.9) every change is noticed
//! and repaired within a second, and says who it was; what does not touch the table costs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    process::{ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use sallyport_enforcer::{
    agent::Agent,
    journal::{self, Journal},
    table::{self, ports::Ports, render::Options},
};
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, put},
    pods::{self, Pod},
};
use sallyport_nft::{
    command::{Command, Element, Family, SetKind},
    netlink::Netlink,
};
use sallyport_policy::{
    Class, Delta, Direction, Endpoint, Epoch, GroupId, NodePolicy, PeerGroup, PortRule, Position,
    Protocol, Ranges, Revision, Update,
};
use sallyport_testbed::{
    Netns, Testbed,
    kernel_tests::{self, Failed, Outcome},
    probe::{Server, Stream, Traffic},
};

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("every_kind_of_change_is_repaired", every_kind),
        (
            "changes_without_an_enforcer_are_repaired_at_the_start",
            at_the_start,
        ),
        ("an_update_meets_a_changed_table", update),
        ("a_batch_for_a_generation_that_is_over_is_refused", outdated),
        ("small_sockets_guess_nothing", small_sockets),
        (
            "changes_are_repaired_within_a_second_and_name_their_author",
            within_a_second,
        ),
        ("commits_beside_the_table_cost_nothing", elsewhere),
        ("edits_go_on_while_others_commit", concurrent),
        ("a_repair_misjudges_no_packet", misjudges_nothing),
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
        workload_interfaces: vec!["eth0".into()],
        lease: Some(Duration::from_secs(60)),
        ports: ports(),
        ..Options::default()
    }
}

/// Two pods, one of which others reach by port, by address and by range.
fn policy(peers: u8) -> NodePolicy {
    let mut policy = NodePolicy::default();
    policy.set_workload_ranges(Arc::new(
        Ranges::span([10, 0, 0, 0].into(), [10, 0, 0, 255].into()).expect("a range"),
    ));
    let ranges = Ranges::span([172, 16, 0, 0].into(), [172, 16, 3, 255].into()).expect("a range");
    let id = GroupId::of(["pods default/app=client"], &ranges);
    let mut group = PeerGroup::new("pods default/app=client".into(), ranges);
    group.addresses = (1..=peers).map(|n| IpAddr::from([10, 1, 0, n])).collect();
    policy.set_group(id, Arc::new(group));
    let rule = |first, last| PortRule {
        protocol: Protocol::Tcp,
        first,
        last,
        group: id,
    };
    let class = Class {
        direction: Direction::Ingress,
        keep_established: false,
        other: None,
        ports: vec![rule(80, 80), rule(8000, 8010)],
    };
    policy.add_class(class.id(), Arc::new(class.clone()));
    for n in [2, 3] {
        let endpoint = Endpoint {
            namespace: "default".into(),
            name: format!("pod-{n}"),
            ingress: (n == 2).then(|| class.id()),
            ..Endpoint::default()
        };
        policy.set_endpoint([10, 0, 0, n].into(), Arc::new(endpoint));
    }
    policy
}

/// An update to a policy, whatever was there before.
fn snapshot(policy: &NodePolicy, revision: u64) -> Update {
    Update {
        base: None,
        target: Position {
            epoch: Epoch(1),
            revision: Revision(revision),
            digest: policy.digest(),
        },
        keep: vec![],
        delta: Delta::between(&NodePolicy::default(), policy),
    }
}

/// An agent in a namespace of its own, that others may disturb.
struct Node {
    netns: Netns,
    directory: tempfile::TempDir,
    agent: Option<Agent<Netlink, Journal>>,
}

impl Node {
    fn new() -> Result<Node, Failed> {
        let mut node = Node {
            netns: Netns::new("drift")?,
            directory: tempfile::tempdir()?,
            agent: None,
        };
        node.start()?;
        node.agent().apply(snapshot(&policy(3), 1))?;
        node.agent().clean();
        Ok(node)
    }

    fn start(&mut self) -> Outcome {
        let netlink = self.netns.run(table::open)?;
        let (journal, recovered, _) = journal::open(self.directory.path())?;
        self.agent = Some(Agent::start(netlink, journal, recovered, options())?);
        Ok(())
    }

    fn agent(&mut self) -> &mut Agent<Netlink, Journal> {
        self.agent.as_mut().expect("it was started")
    }

    /// Runs nft commands, of which `GROUP` and `CLASS` and such are names in the table.
    fn nft(&self, script: &str) -> Outcome {
        let listing = listing(&self.netns)?;
        let name = |begin: &str, end: &str| -> Result<String, Failed> {
            let mut names = listing.keys().filter_map(|header| header.split(' ').nth(1));
            let name = names.find(|name| name.starts_with(begin) && name.ends_with(end));
            Ok(name
                .ok_or_else(|| format!("no name begins with {begin}: {listing:#?}"))?
                .to_owned())
        };
        let mut script = script.to_owned();
        if !listing.is_empty() {
            for (word, begin, end) in [
                ("PEERS", "pods_default_app_client", ".ip4"),
                ("RANGES", "pods_default_app_client", ".net4"),
                ("GROUP", "from_", ""),
                ("CLASS", "in_", ""),
                ("WORKLOADS", "workloads4", ""),
            ] {
                script = script.replace(word, &name(begin, end)?);
            }
        }
        nft(&self.netns, &script)
    }
}

/// Runs nft commands, one a line.
fn nft(netns: &Netns, script: &str) -> Outcome {
    for line in script.lines() {
        let mut command = netns.command("nft");
        command.arg(line.trim()).stderr(Stdio::piped());
        let output = netns.spawn(command)?.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(())
}

/// The listing of our table by nft, by object: the rules of a chain in order, the elements of a set in the alphabet's.
fn listing(netns: &Netns) -> Result<BTreeMap<String, Vec<String>>, Failed> {
    let mut command = netns.command("nft");
    command
        .args(["--stateless", "list", "ruleset", "inet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = netns.spawn(command)?.wait_with_output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut objects: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut header = String::new();
    for line in text.lines().map(str::trim) {
        let is_header = ["table", "chain", "set", "map"]
            .iter()
            .any(|kind| line.starts_with(&format!("{kind} ")) && line.ends_with('{'));
        if is_header {
            header = line.trim_end_matches([' ', '{']).to_owned();
            objects.entry(header.clone()).or_default();
        } else if line.len() > 1 {
            let lines = objects.entry(header.clone()).or_default();
            if header.starts_with("chain") || line.starts_with("type ") {
                lines.push(line.to_owned());
                continue;
            }
            let elements = line
                .trim_start_matches("elements = {")
                .trim_end_matches('}');
            let elements = elements.split(',').map(str::trim);
            lines.extend(elements.filter(|one| !one.is_empty()).map(str::to_owned));
            lines.sort();
        }
    }
    Ok(objects)
}

/// The changes that others may make to the table, and their descriptions.
const CHANGES: [&str; 34] = [
    "flush ruleset",
    "delete table inet sallyport",
    "flush table inet sallyport",
    "flush chain inet sallyport forward_ingress",
    "delete chain inet sallyport forward_egress",
    "insert rule inet sallyport forward_ingress accept",
    "add rule inet sallyport deny accept",
    "insert rule inet sallyport source accept",
    "flush chain inet sallyport source",
    "flush chain inet sallyport source\nadd rule inet sallyport source ip saddr @known4 goto astray",
    "insert rule inet sallyport GROUP counter accept",
    "flush chain inet sallyport GROUP",
    "flush chain inet sallyport CLASS",
    "insert rule inet sallyport CLASS tcp dport { 443, 8443 } accept",
    "flush chain inet sallyport forward_ingress\nadd rule inet sallyport forward_ingress jump ingress",
    "flush chain inet sallyport CLASS\nadd rule inet sallyport CLASS ct protocol 6 goto GROUP\nadd rule inet sallyport CLASS counter goto deny",
    "delete element inet sallyport ingress4 { 10.0.0.2 }",
    "delete element inet sallyport ingress4 { 10.0.0.2 }\nadd element inet sallyport ingress4 { 10.0.0.2 : accept }",
    "add element inet sallyport egress4 { 10.9.9.9 : accept }",
    "add element inet sallyport egress6 { fd00::9 : accept }",
    "flush map inet sallyport ingress4\nflush map inet sallyport egress4",
    "add element inet sallyport self4 { 10.0.0.2 . 10.0.0.3 }",
    "delete element inet sallyport known4 { 10.0.0.2 }",
    "add element inet sallyport PEERS { 10.1.0.77 }",
    "delete element inet sallyport PEERS { 10.1.0.2 }",
    "flush set inet sallyport PEERS",
    "add element inet sallyport RANGES { 192.0.2.0/24 }",
    "delete element inet sallyport RANGES { 172.16.0.0/22 }",
    "delete element inet sallyport WORKLOADS { 10.0.0.0/24 }\nadd element inet sallyport WORKLOADS { 10.0.0.128/25 }",
    "flush set inet sallyport stamp",
    "add element inet sallyport lease-a { ipv4 }",
    "add chain inet sallyport mine { type filter hook forward priority -5; policy drop; }",
    "add chain inet sallyport forward_egress { type filter hook forward priority filter; policy drop; }",
    "add table inet sallyport { flags dormant; }",
];

fn every_kind() -> Outcome {
    let mut node = Node::new()?;
    let whole = listing(&node.netns)?;
    if node.agent().restore()? {
        return Err(format!("a whole table was repaired: {:?}", node.agent().drift()).into());
    }
    for change in CHANGES {
        node.nft(change)?;
        if listing(&node.netns)? == whole {
            return Err(format!("`{change}` changes nothing").into());
        }
        let started = Instant::now();
        let repaired = node
            .agent()
            .restore()
            .map_err(|error| format!("{change}: {error}"))?;
        let took = started.elapsed();
        let now = listing(&node.netns)?;
        if !repaired || now != whole {
            let differs =
                |(name, lines): &(&String, &Vec<String>)| whole.get(*name) != Some(*lines);
            let differing: Vec<_> = now.iter().filter(differs).collect();
            return Err(format!("`{change}` was not repaired ({repaired}): {differing:#?}").into());
        }
        println!("{took:>10.2?}  {change}: {:?}", node.agent().drift().last);
        if node.agent().restore()? {
            return Err(
                format!("`{change}` was repaired twice: {:?}", node.agent().drift()).into(),
            );
        }
    }
    Ok(())
}

/// Objects that a stranger made and no packet reaches are deleted when nothing happens. Changes without effect are
/// left.
fn at_the_start() -> Outcome {
    let mut node = Node::new()?;
    let mut whole = listing(&node.netns)?;
    for change in CHANGES {
        node.agent = None;
        // A dead owner's table may be changed by anyone; nobody owned this one.
        node.nft(change)?;
        node.start()?;
        node.agent().clean();
        let now = listing(&node.netns)?;
        // Without its stamp it is a table that the journal knows nothing of: it stays until a snapshot comes.
        if change.contains("stamp") {
            node.agent().apply(snapshot(&policy(3), 1))?;
            node.agent().clean();
            whole = listing(&node.netns)?;
            continue;
        }
        if now != whole {
            let differs =
                |(name, lines): &(&String, &Vec<String>)| whole.get(*name) != Some(*lines);
            let differing: Vec<_> = now.iter().filter(differs).collect();
            return Err(format!("`{change}` was not repaired: {differing:#?}").into());
        }
    }
    Ok(())
}

fn update() -> Outcome {
    for change in CHANGES {
        let mut node = Node::new()?;
        node.nft(change)?;
        node.agent()
            .apply(snapshot(&policy(5), 2))
            .map_err(|error| format!("{change}: {error}"))?;
        node.agent().restore()?;
        node.agent().clean();
        let mut fresh = Node::new()?;
        fresh.agent().apply(snapshot(&policy(5), 2))?;
        fresh.agent().clean();
        let (now, want) = (listing(&node.netns)?, listing(&fresh.netns)?);
        if now != want {
            return Err(format!("after `{change}`: {now:#?}\ninstead of\n{want:#?}").into());
        }
    }
    Ok(())
}

fn outdated() -> Outcome {
    let node = Node::new()?;
    let netlink = node.netns.run(table::open)?;
    let set = |name: &str| Command::AddSet {
        name: name.into(),
        kind: SetKind::Addresses(Family::V4),
        comment: "a test's".into(),
    };
    let generation = netlink.generation()?;
    netlink.commit_at(generation, &[set("one")])?;
    if netlink.generation()? != generation + 1 {
        return Err("a commit did not move the generation by one".into());
    }
    nft(&node.netns, "add table ip other")?;
    let error = netlink
        .commit_at(generation + 1, &[set("two")])
        .expect_err("somebody else committed");
    if !error.is_outdated()
        || netlink
            .outline()?
            .is_some_and(|table| table.sets.contains("two"))
    {
        return Err(format!("{error}").into());
    }
    // An error names only what the kernel refuses: the object and the reason.
    let element = vec![Element::Address([10, 0, 0, 1].into())];
    let kind = SetKind::Addresses(Family::V4);
    let batch = [
        Command::AddElements("one".into(), kind, element.clone()),
        Command::DeleteElements("two".into(), kind, element),
    ];
    let error = netlink
        .commit(&batch)
        .expect_err("there is no set two")
        .to_string();
    if !error.contains("delete element inet sallyport two") || !error.contains("ENOENT") {
        return Err(error.into());
    }
    let found = netlink.content()?;
    let one = found.sets.get("one").and_then(|set| set.elements.clone());
    if one != Some(BTreeSet::new()) {
        return Err("a refused batch changed something".into());
    }
    Ok(())
}

/// A message that does not fit into a socket, on the way to the kernel or back, changes nothing or is known to be lost.
fn small_sockets() -> Outcome {
    let node = Node::new()?;
    let netlink = node.netns.run(table::open)?;
    let kind = SetKind::Addresses(Family::V4);
    let element = |n: u32| vec![Element::Address(std::net::Ipv4Addr::from_bits(n).into())];
    let make = Command::AddSet {
        name: "one".into(),
        kind,
        comment: "a test's".into(),
    };
    netlink.commit(&[make])?;
    let elements = |netlink: &Netlink| -> Result<usize, Failed> {
        let found = netlink.content()?;
        let set = found.sets.get("one").ok_or("the set is gone")?;
        Ok(set.elements.as_ref().map_or(0, BTreeSet::len))
    };
    // 1 is the least: the kernel makes it some 2 KiB.
    setsockopt(&netlink, sockopt::RcvBuf, &1)?;
    let wanted: Vec<Command> = (0..5_000)
        .map(|n| Command::AddElements("one".into(), kind, element(n)))
        .collect();
    netlink.commit(&wanted)?;
    if elements(&netlink)? != 5_000 {
        return Err("a batch of 5,000 commands was not carried out".into());
    }
    // Each command is refused, and the kernel says so of each.
    let refused: Vec<Command> = (10_000..15_000)
        .map(|n| Command::DeleteElements("one".into(), kind, element(n)))
        .collect();
    let error = netlink
        .commit(&refused)
        .expect_err("there are no such elements");
    println!("5,000 refusals: {error}");
    // An error that did not fit must not be read as the answer to the next request.
    if elements(&netlink)? != 5_000 {
        return Err("a refused batch changed something".into());
    }
    let one_more = Command::AddElements("one".into(), kind, element(20_000));
    netlink.commit(&[one_more])?;

    setsockopt(&netlink, sockopt::SndBuf, &1)?;
    let error = netlink
        .commit(&refused)
        .expect_err("it does not fit")
        .to_string();
    if !error.contains("EMSGSIZE") || !error.contains("net.core.wmem_default") {
        return Err(error.into());
    }
    if elements(&netlink)? != 5_001 {
        return Err("a batch that was not sent changed something".into());
    }
    Ok(())
}

const PODS: [Pod; 2] = [
    Pod::new(0, "client", &["10.9.1.2"]),
    Pod::new(0, "server", &["10.9.1.3"]),
];

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: stays}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 8000, protocol: UDP}]
";

const ALLOWED: u16 = 8000;
const DENIED: u16 = 8001;

/// Packets that must pass, and packets that must not, all the while.
struct Probes {
    allowed: Stream,
    denied: Stream,
    _server: Server,
}

fn deploy() -> Result<(Deployment, Probes), Failed> {
    let bed = Testbed::builder().nodes(1).build()?;
    let [client, server] = pods::add(&bed, &PODS)?;
    let served = Server::start(&server, &[])?;
    let deployment = Deployment::start(bed, &["--unprotected"])?;
    let cluster = pods::manifests(&["10.9.1.0/24"], &PODS);
    deployment
        .client()?
        .enforce(vec![put(cluster), put(POLICY)])?;
    // The garbage of updates goes first.
    thread::sleep(Duration::from_millis(300));
    let every = Duration::from_millis(1);
    let probes = Probes {
        allowed: Stream::start(&client, &server, Traffic::udp(ALLOWED).every(every))?,
        denied: Stream::start(&client, &server, Traffic::udp(DENIED).every(every))?,
        _server: served,
    };
    Ok((deployment, probes))
}

/// Waits for a node's table to be what it was.
fn until_whole(netns: &Netns, whole: &BTreeMap<String, Vec<String>>) -> Result<Duration, Failed> {
    let started = Instant::now();
    while &listing(netns)? != whole {
        if started.elapsed() > Duration::from_secs(1) {
            return Err(format!("not repaired within a second: {:#?}", listing(netns)?).into());
        }
    }
    Ok(started.elapsed())
}

fn within_a_second() -> Outcome {
    let (deployment, probes) = deploy()?;
    let netns = deployment.bed.node(0).netns().clone();
    let whole = listing(&netns)?;
    let mut culprits = Vec::new();
    let changes = [
        "flush ruleset",
        "delete table inet sallyport",
        "flush chain inet sallyport forward_ingress",
        "insert rule inet sallyport forward_ingress accept",
        "delete element inet sallyport ingress4 { 10.9.1.3 }",
        "add element inet sallyport egress4 { 10.9.9.9 : accept }",
        "flush set inet sallyport stamp",
        "add table inet sallyport { flags dormant; }",
    ];
    for change in changes {
        let mut command = netns.command("nft");
        command.arg(change);
        let mut child = netns.spawn(command)?;
        culprits.push((change, child.id()));
        if !child.wait()?.success() {
            return Err(format!("nft refuses `{change}`").into());
        }
        let took = until_whole(&netns, &whole)?;
        // From here on no packet is judged otherwise.
        let before = (probes.allowed.counts(), probes.denied.counts());
        thread::sleep(Duration::from_millis(150));
        let allowed = probes.allowed.counts().since(before.0);
        let denied = probes.denied.counts().since(before.1);
        println!("{took:>10.2?}  {change}; then allowed {allowed:?}, denied {denied:?}");
        if denied.received > 0 || denied.sent < 50 || allowed.received < 50 {
            return Err(format!("after `{change}`: allowed {allowed:?}, denied {denied:?}").into());
        }
    }
    let log = deployment.log("node-1");
    for (change, pid) in &culprits {
        let says = format!("culprit=nft (pid {pid})");
        let line = log.lines().find(|line| line.contains(&says));
        if !line.is_some_and(|line| line.contains("repaired it")) {
            return Err(format!("nothing says that `{change}` was of pid {pid}: {log}").into());
        }
    }
    Ok(())
}

fn elsewhere() -> Outcome {
    let (deployment, probes) = deploy()?;
    let netns = deployment.bed.node(0).netns().clone();
    let reader = netns.run(table::open)?;
    let before = reader.generation()?;
    const COMMITS: u64 = 20;
    for n in 0..COMMITS / 2 {
        nft(&netns, &format!("add table ip other-{n}"))?;
        nft(
            &netns,
            &format!("add chain ip other-{n} c {{ type filter hook forward priority 5; }}"),
        )?;
    }
    thread::sleep(Duration::from_millis(500));
    let commits = reader.generation()? - before;
    if commits != COMMITS {
        return Err(format!("{COMMITS} commits beside the table, and {commits} in all").into());
    }
    // Own commits are nobody's either.
    let revision = deployment
        .client()?
        .apply(vec![put(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: more}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.16.0.0/12}}]}]}",
        )])?;
    deployment.client()?.wait_enforced(revision)?;
    thread::sleep(Duration::from_millis(300));
    let log = deployment.log("node-1");
    if log.contains("repaired it") || log.contains("touched") {
        return Err(format!("somebody is blamed for nothing: {log}").into());
    }
    let (allowed, denied) = (probes.allowed.stop(), probes.denied.stop());
    if allowed.lost() > 0 || denied.received > 0 {
        return Err(format!("allowed {allowed:?}, denied {denied:?}").into());
    }
    Ok(())
}

/// Others commit all the time, beside our table and into it, while policy is edited.
fn concurrent() -> Outcome {
    let (deployment, probes) = deploy()?;
    let netns = deployment.bed.node(0).netns().clone();
    let mut command = netns.command("sh");
    command.args([
        "-c",
        "while :; do nft add table ip noise; nft add element inet sallyport egress4 '{ 10.9.9.9 : accept }'; nft delete table ip noise; done",
    ]);
    command.stderr(Stdio::null());
    let mut noise = netns.spawn(command)?;
    let mut client = deployment.client()?;
    for n in 0..40 {
        client.enforce(vec![put(format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: edit}}
spec: {{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: 172.16.{n}.0/24}}}}], ports: [{{port: {}}}]}}]}}",
            1000 + n
        ))])?;
    }
    noise.kill()?;
    noise.wait()?;
    thread::sleep(Duration::from_millis(500));
    let repairs = deployment.log("node-1").matches("repaired it").count();
    println!("40 edits, {repairs} repairs");
    if repairs < 5 {
        return Err(format!("{repairs} repairs: {}", deployment.log("node-1")).into());
    }
    if listing(&netns)?
        .values()
        .flatten()
        .any(|line| line.contains("10.9.9.9"))
    {
        return Err("what others added is still there".into());
    }
    let (allowed, denied) = (probes.allowed.stop(), probes.denied.stop());
    println!("allowed {allowed:?}, denied {denied:?}");
    if allowed.lost() > 0 || denied.received > 0 {
        return Err(format!("allowed {allowed:?}, denied {denied:?}").into());
    }
    Ok(())
}

/// Changes that leave the probes' verdicts as they are: so must their repair. The control is a change that does not,
/// while the enforcer is frozen: it must be seen.
fn misjudges_nothing() -> Outcome {
    let (deployment, probes) = deploy()?;
    let netns = deployment.bed.node(0).netns().clone();
    let whole = listing(&netns)?;
    let harmless = [
        "add element inet sallyport egress4 { 10.9.9.9 : accept }",
        "insert rule inet sallyport forward_egress ip saddr 192.0.2.1 accept",
        "insert rule inet sallyport deny ip saddr 192.0.2.1 accept",
        "insert rule inet sallyport ingress ip saddr 192.0.2.1 accept",
        "add element inet sallyport self4 { 192.0.2.1 . 192.0.2.2 }",
        "add chain inet sallyport mine { type filter hook forward priority -5; }",
        "flush set inet sallyport stamp",
    ];
    let mut repaired = 0;
    for _ in 0..20 {
        for change in harmless {
            nft(&netns, change)?;
            until_whole(&netns, &whole)?;
            repaired += 1;
        }
    }
    let (allowed, denied) = (probes.allowed.counts(), probes.denied.counts());
    println!("{repaired} changes repaired: allowed {allowed:?}, denied {denied:?}");
    if denied.received > 0 || denied.sent < 1000 {
        return Err(format!("denied {denied:?}").into());
    }
    let pid = deployment.enforcer_pid(0).ok_or("there is no enforcer")?;
    let signal =
        |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal);
    signal(nix::sys::signal::Signal::SIGSTOP)?;
    nft(&netns, "flush chain inet sallyport forward_ingress")?;
    thread::sleep(Duration::from_millis(100));
    let open = probes.denied.counts().since(denied);
    signal(nix::sys::signal::Signal::SIGCONT)?;
    until_whole(&netns, &whole)?;
    if open.received == 0 {
        return Err(format!("nothing passes an empty chain: {open:?}").into());
    }
    let allowed = probes.allowed.stop();
    if allowed.lost() > 0 {
        return Err(format!("{} allowed packets were lost: {allowed:?}", allowed.lost()).into());
    }
    Ok(())
}
