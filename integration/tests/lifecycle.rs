//! A node's beginnings and ends: what is enforced at boot before anybody spoke to it, when the service manager hears
//! that it is ready, how it is taken off, and what it says of itself.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    process::{Child, Command, ExitCode, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use sallyport_enforcer::table;
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, put},
    pods::{self, Pod},
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
        ("ready_is_said_when_the_table_is_there", ready),
        ("a_node_that_knows_nothing_denies_its_workloads", strict),
        ("uninstall_takes_our_table_and_no_other", uninstall),
        ("a_node_that_is_taken_out_is_not_said_to_enforce", leaving),
        ("what_is_dropped_is_counted_by_why", counting),
        ("status_and_metrics_report_past_troubles", past_troubles),
        ("of_two_enforcers_with_one_name_one_is_refused", one_name),
        ("of_two_enforcers_with_one_disk_none_is_believed", one_disk),
        ("a_log_that_cannot_be_written_costs_nothing_else", unlogged),
        ("a_manager_that_does_not_read_costs_nothing_else", unread),
    ])
}

/// An enforcer that nobody speaks to. It dies with this.
struct Enforcer(Child);

impl Drop for Enforcer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn enforcer(
    netns: &Netns,
    data_dir: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<Enforcer, Failed> {
    let mut command = netns.command(binaries()?.enforcer);
    command
        .args([
            "--node-name",
            "node-1",
            "--control-plane",
            "http://127.0.0.1:1",
        ])
        .arg("--data-dir")
        .arg(data_dir)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Enforcer(netns.spawn(command)?))
}

/// Starts an enforcer, and returns when it says that it is ready.
fn ready_enforcer(
    netns: &Netns,
    directory: &Path,
    arguments: &[&str],
) -> Result<(Enforcer, UnixDatagram), Failed> {
    let path = directory.join("notify");
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(Duration::from_secs(10)))?;
    let socket = path.to_str().ok_or("a path that is text")?;
    let environment = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "600000")];
    let enforcer = enforcer(netns, &directory.join("data"), arguments, &environment)?;
    if !receive(&manager)?.contains("READY=1") {
        return Err("something is said before READY".into());
    }
    Ok((enforcer, manager))
}

/// Ends an enforcer by SIGTERM. Its exit code.
fn terminated(enforcer: &mut Enforcer) -> Result<Option<i32>, Failed> {
    Command::new("kill")
        .arg(enforcer.0.id().to_string())
        .status()?;
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        match enforcer.0.try_wait()? {
            Some(status) => return Ok(status.code()),
            None if Instant::now() > deadline => return Err("SIGTERM does not end it".into()),
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn unlogged() -> Outcome {
    let full = || Ok::<_, Failed>(Stdio::from(File::options().write(true).open("/dev/full")?));
    let left = || Ok::<_, Failed>(Stdio::from(std::io::pipe()?.1));
    let (_reader, writer) = std::io::pipe()?;
    let mut filling = File::from(OwnedFd::from(writer.try_clone()?));
    // A pipe holds 64 KiB.
    filling.write_all(&[b'.'; 65_536])?;
    for (name, stderr) in [
        ("full", full()?),
        ("left", left()?),
        ("stuck", writer.into()),
    ] {
        let (netns, directory) = (Netns::new("unlogged")?, tempfile::tempdir()?);
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path)?;
        manager.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut command = netns.command(binaries()?.enforcer);
        command
            .args(["--node-name", "node-1", "--metrics", "127.0.0.1:9100"])
            .args(["--control-plane", "http://127.0.0.1:1", "--data-dir"])
            .arg(directory.path().join("data"))
            .env("NOTIFY_SOCKET", &path)
            .env("RUST_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let mut enforcer = Enforcer(netns.spawn(command)?);
        let said = receive(&manager).map_err(|error| format!("{name}: never ready: {error:?}"))?;
        if !said.contains("READY=1") {
            return Err(format!("{name}: {said}").into());
        }
        thread::sleep(Duration::from_millis(300));
        let metrics = scrape(&netns, 9100)?;
        has(&metrics, "sallyport_enforcer_revision 0")?;
        has(&metrics, "sallyport_enforcer_log_lines_lost_total ")?;
        if name != "stuck" && metrics.contains("\nsallyport_enforcer_log_lines_lost_total 0") {
            return Err(format!("{name}: no line is lost").into());
        }
        if terminated(&mut enforcer)? != Some(0) {
            return Err(format!("{name}: not exit code 0").into());
        }
    }
    Ok(())
}

/// The socket of the manager is full after some ten messages; each state and each sign of life is one.
fn unread() -> Outcome {
    let (netns, directory) = (Netns::new("unread")?, tempfile::tempdir()?);
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    let socket = path.to_str().ok_or("a path that is text")?;
    let environment = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "300000")];
    let data = directory.path().join("data");
    let metrics = ["--metrics", "127.0.0.1:9100"];
    let mut enforcer = enforcer(&netns, &data, &metrics, &environment)?;
    // 40 signs of life; /proc/sys/net/unix/max_dgram_qlen is 10 unless set otherwise.
    thread::sleep(Duration::from_secs(4));
    has(&scrape(&netns, 9100)?, "sallyport_enforcer_revision 0")?;
    if terminated(&mut enforcer)? != Some(0) {
        return Err("not exit code 0".into());
    }
    if !receive(&manager)?.contains("READY=1") {
        return Err("READY is not the first".into());
    }
    Ok(())
}

fn receive(manager: &UnixDatagram) -> Result<String, Failed> {
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn ready() -> Outcome {
    let (netns, directory) = (Netns::new("ready")?, tempfile::tempdir()?);
    let (_enforcer, manager) = ready_enforcer(&netns, directory.path(), &[])?;
    let table = netns.run(table::open)?.outline()?;
    let bases = ["forward_egress", "forward_ingress"];
    if !table.is_some_and(|table| bases.iter().all(|base| table.bases.contains(*base))) {
        return Err("ready, and there is no table".into());
    }
    let (mut status, mut alive) = (false, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !status || alive < 2 {
        let said = receive(&manager)?;
        status |= said.contains("STATUS=enforcing nothing yet; since ");
        alive += usize::from(said.contains("WATCHDOG=1"));
        if Instant::now() > deadline {
            return Err(format!("status {status}, {alive} signs of life").into());
        }
    }
    Ok(())
}

/// At boot there is no table and no journal. Packets of a workload are dropped, except in standard mode. One range is
/// in a rule, several are in a set.
fn strict() -> Outcome {
    let by_range: &[&str] = &["--workload-cidr", "10.9.1.0/24"];
    for (arguments, passes) in [
        (by_range, false),
        (&["--workload-cidr", "10.9.1.2/32"], false),
        (&["--workload-cidr", "10.9.1.3/32"], false),
        (&["--workload-cidr", "10.9.1.2/31"], false),
        (&["--workload-cidr", "10.9.1.0/31"], true),
        (&["--workload-cidr", "10.9.1.4/30"], true),
        (&["--workload-cidr", "10.9.1.0/31,10.9.1.4/30"], true),
        (&["--workload-cidr", "10.9.0.0/31,10.9.1.2/31"], false),
        (
            &[
                "--workload-cidr",
                "10.9.2.1/32,10.9.2.3/32,10.9.2.5/32,10.9.2.7/32,10.9.1.2/32",
            ],
            false,
        ),
        (
            &[
                "--workload-cidr",
                "10.9.2.1/32,10.9.2.3/32,10.9.2.5/32,10.9.2.7/32,10.9.1.4/32",
            ],
            true,
        ),
        (
            &["--mode", "standard", "--workload-cidr", "10.9.1.0/24"],
            true,
        ),
        (&[], true),
    ] {
        let bed = Testbed::builder().nodes(1).build()?;
        let client = bed.add_pod(0, "default/client", &[IpAddr::from([10, 9, 1, 2])])?;
        let server = bed.add_pod(0, "default/server", &[IpAddr::from([10, 9, 1, 3])])?;
        let _served = Server::start(&server, &[])?;
        let directory = tempfile::tempdir()?;
        let node = bed.node(0).netns();
        let (_enforcer, _manager) = ready_enforcer(node, directory.path(), arguments)?;
        let traffic = Traffic::udp(8000).every(Duration::from_millis(1));
        let stream = Stream::start(&client, &server, traffic)?;
        thread::sleep(Duration::from_millis(400));
        let counts = stream.stop();
        println!("{arguments:?}: {counts:?}");
        if counts.sent < 100 || (counts.received > 0) != passes {
            return Err(format!("{arguments:?}: {counts:?}").into());
        }
    }
    Ok(())
}

fn run(netns: &Netns, mut command: Command) -> Result<Output, Failed> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(netns.spawn(command)?.wait_with_output()?)
}

fn nft(netns: &Netns, line: &str) -> Result<String, Failed> {
    let mut command = netns.command("nft");
    command.arg(line);
    let output = run(netns, command)?;
    if !output.status.success() {
        return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn uninstall() -> Outcome {
    for unprotected in [false, true] {
        let (netns, directory) = (Netns::new("uninstall")?, tempfile::tempdir()?);
        nft(&netns, "add table inet theirs")?;
        let arguments: &[&str] = if unprotected { &["--unprotected"] } else { &[] };
        let (enforcer, _manager) = ready_enforcer(&netns, directory.path(), arguments)?;
        let take_off = |data_dir: &str, options: &[&str]| {
            take_out(&netns, &directory.path().join(data_dir), options)
        };
        let (done, said) = take_off("data", &[])?;
        if done || !said.contains("an enforcer has it open: stop the enforcer first") {
            return Err(format!("while one runs: {said}").into());
        }
        if !unprotected {
            // With another directory the kernel still knows whose the table is.
            let pid = enforcer.0.id();
            let (done, said) = take_off("elsewhere", &["--without-telling"])?;
            if done || !said.contains(&format!("(pid {pid}) owns the table")) {
                return Err(format!("pid {pid} owns it: {said}").into());
            }
        }
        drop(enforcer);
        netns
            .run(table::open)?
            .await_orphan(Duration::from_secs(5))?;
        // Nobody listens where its control plane should be.
        let (done, said) = take_off("data", &[])?;
        let words = "http://127.0.0.1:1 could not be told that node node-1 leaves";
        if done || !said.contains(words) || !said.contains("--without-telling") {
            return Err(format!("a control plane that is away: {said}").into());
        }
        let (done, said) = take_off("elsewhere", &[])?;
        if done || !said.contains("give --control-plane and --node-name") {
            return Err(format!("an unknown control plane: {said}").into());
        }
        if !nft(&netns, "list tables")?.contains("table bridge sallyport") {
            return Err("the table is gone though nobody was told".into());
        }
        let (done, said) = take_off("data", &["--without-telling"])?;
        if !done || !said.contains("deleted the tables inet sallyport and bridge sallyport") {
            return Err(said.into());
        }
        if !said.contains("was not told: edits go on treating this node as before") {
            return Err(said.into());
        }
        let tables = nft(&netns, "list tables")?;
        if tables.trim() != "table inet theirs" {
            return Err(format!("left: {tables}").into());
        }
        let (done, said) = take_off("elsewhere", &[])?;
        if !done || !said.contains("nothing to delete") {
            return Err(said.into());
        }
    }
    Ok(())
}

/// `uninstall` on a node: whether it succeeded, and what it said.
fn take_out(netns: &Netns, data_dir: &Path, options: &[&str]) -> Result<(bool, String), Failed> {
    let mut command = netns.command(binaries()?.enforcer);
    command.args(["uninstall", "--data-dir"]).arg(data_dir);
    command.args(options);
    let output = run(netns, command)?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Ok((output.status.success(), said))
}

const RANGES: [&str; 2] = ["10.9.1.0/24", "10.9.2.0/24"];

/// The manifests of two nodes with a pod each.
fn two_nodes() -> String {
    let pods = [
        Pod::new(0, "client", &["10.9.1.2"]),
        Pod::new(1, "server", &["10.9.2.2"]),
    ];
    pods::manifests(&RANGES, &pods)
}

/// A policy that isolates every pod, but for a port.
fn isolating(port: u16) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: default, name: all}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{ports: [{{port: {port}}}]}}]}}\n"
    )
}

fn leaving() -> Outcome {
    let bed = Testbed::builder().nodes(2).build()?;
    let mut deployment = Deployment::start(bed, &["--lease", "2s"])?;
    let first = deployment.client()?.enforce(vec![put(two_nodes())])?;
    let directory = tempfile::tempdir()?;
    let sallyport = |deployment: &Deployment, line: &str| -> Result<String, Failed> {
        let words: Vec<&str> = line.split(' ').collect();
        let output = deployment.sallyport(directory.path(), &words)?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).into_owned())
    };
    let taken_out = |deployment: &Deployment, node: usize, options: &[&str]| {
        let data_dir = deployment.data_dir(&Deployment::node_name(node));
        take_out(deployment.bed.node(node).netns(), &data_dir, options)
    };
    deployment.stop_enforcer(0);
    let (done, said) = taken_out(&deployment, 0, &[])?;
    if !done || !said.contains("recorded that node node-1 left") || !said.contains("deleted") {
        return Err(said.into());
    }
    let at = Instant::now();
    std::fs::write(directory.path().join("p.yaml"), isolating(80))?;
    let apply = "apply -f p.yaml --wait --on-unreachable fence";
    let said = sallyport(&deployment, apply)?;
    println!("{said}");
    let left = "note: node-1 left ";
    if !said.contains("enforced on 1 of 2 nodes") || !said.contains(left) || said.contains("fenced")
    {
        return Err(format!("after {:?}, revision {first}: {said}", at.elapsed()).into());
    }
    // No lease is waited for.
    if at.elapsed() > Duration::from_secs(2) {
        return Err(format!("that took {:?}", at.elapsed()).into());
    }
    // A later life of the control plane knows it, too.
    deployment.stop_control_plane();
    deployment.start_control_plane()?;
    let said = sallyport(&deployment, "status")?;
    println!("{said}");
    if !said.contains("node-1  left ") {
        return Err(said.into());
    }
    // When an enforcer starts again the node joins again.
    deployment.start_enforcer(0)?;
    std::fs::write(directory.path().join("p.yaml"), isolating(81))?;
    let revision = deployment.client()?.enforce(vec![put(isolating(81))])?;
    deployment.client()?.wait_enforced_by("node-1", revision)?;
    let said = sallyport(&deployment, "wait")?;
    if !said.contains("enforced on 2 nodes") || said.contains(left) {
        return Err(said.into());
    }
    // A control plane that is away cannot be told; it is when it is there again.
    deployment.stop_enforcer(0);
    deployment.stop_control_plane();
    let (done, said) = taken_out(&deployment, 0, &[])?;
    if done || !said.contains("--without-telling") {
        return Err(said.into());
    }
    if !deployment.ruleset(0)?.contains("chain forward_ingress") {
        return Err("the table is gone though nobody was told".into());
    }
    let (done, said) = taken_out(&deployment, 0, &["--without-telling"])?;
    if !done || !said.contains("`sallyport delete node NAME`") {
        return Err(said.into());
    }
    deployment.start_control_plane()?;
    let said = sallyport(&deployment, "status")?;
    println!("{said}");
    if !said.contains("node-1  not-seen  -         -  ") {
        return Err(said.into());
    }
    let (done, said) = taken_out(&deployment, 0, &[])?;
    if !done || !said.contains("recorded that node node-1 left") {
        return Err(said.into());
    }
    let said = sallyport(&deployment, "status")?;
    match said.contains("node-1  left ") {
        true => Ok(()),
        false => Err(said.into()),
    }
}

/// A metric's value.
fn value(metrics: &str, name: &str) -> Result<u64, Failed> {
    let mut values = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    values
        .next()
        .ok_or_else(|| format!("no {name}:\n{metrics}").into())
}

fn counting() -> Outcome {
    let bed = Testbed::builder().nodes(1).build()?;
    let pods = [
        Pod::new(0, "client", &["10.9.1.2"]),
        Pod::new(0, "server", &["10.9.1.3"]),
    ];
    let [client, server] = pods::add(&bed, &pods)?;
    let stranger = bed.add_pod(0, "default/stranger", &[IpAddr::from([10, 9, 1, 4])])?;
    let _served = Server::start(&server, &[])?;
    let arguments = ["--lease", "1s", "--metrics", "127.0.0.1:9100"];
    let deployment = Deployment::start(bed, &arguments)?;
    let edits = vec![put(pods::manifests(&RANGES, &pods)), put(isolating(81))];
    let mut plane = deployment.client()?;
    let revision = plane.apply(edits)?;
    plane.wait_enforced_by("node-1", revision)?;
    let node = deployment.bed.node(0).netns();
    let denied = |reason: &str| {
        let name = format!("sallyport_enforcer_denied_packets_total{{reason=\"{reason}\"}}");
        value(&scrape(node, 9100)?, &name)
    };
    // Nothing was sent yet but what the stack says by itself.
    for reason in ["policy", "unjudgeable", "nothing_allowed_it"] {
        if denied(reason)? != 0 {
            return Err(format!("{reason}: {}", scrape(node, 9100)?).into());
        }
    }
    let send = |from, milliseconds| -> Result<u64, Failed> {
        let traffic = Traffic::udp(8000).every(Duration::from_millis(5));
        let stream = Stream::start(from, &server, traffic)?;
        thread::sleep(Duration::from_millis(milliseconds));
        Ok(stream.stop().sent)
    };
    let sent = send(&client, 300)?;
    let counted = denied("policy")?;
    if counted == 0 || counted > sent {
        return Err(format!("{sent} sent, {counted} denied by policy").into());
    }
    let sent = send(&stranger, 300)?;
    let (strict, policy) = (denied("strict")?, denied("policy")?);
    if strict == 0 || policy != counted {
        return Err(format!("{sent} sent, {strict} strict, policy {policy}").into());
    }
    // Packets of no connection: of a workload that is isolated they are dropped, whatever the policy says.
    nft(
        node,
        "add table inet untracking; \
         add chain inet untracking early { type filter hook prerouting priority raw; }; \
         add rule inet untracking early udp dport 8000 notrack",
    )?;
    let sent = send(&client, 300)?;
    nft(node, "delete table inet untracking")?;
    let (unjudgeable, policy) = (denied("unjudgeable")?, denied("policy")?);
    if unjudgeable == 0 || unjudgeable > sent || policy != counted {
        return Err(format!("{sent} sent, {unjudgeable} unjudgeable, policy {policy}").into());
    }

    let closed = |expected: u64| -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            let metrics = scrape(node, 9100)?;
            let told = metrics.contains("sallyport_enforcer_trouble_seconds{kind=\"closed\"}");
            let gauge = value(&metrics, "sallyport_enforcer_closed")?;
            if (gauge, told) == (expected, expected == 1) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("never {expected}: {metrics}").into());
            }
            thread::sleep(Duration::from_millis(50));
        }
    };
    closed(0)?;
    let pid = deployment.control_plane_pid().ok_or("no control plane")?;
    let signal = |name: &str| Command::new("kill").args([name, &pid.to_string()]).status();
    signal("-STOP")?;
    closed(1)?;
    send(&client, 300)?;
    let (at_closed, by_policy) = (denied("closed")?, denied("policy")?);
    signal("-CONT")?;
    if at_closed == 0 || by_policy != counted {
        return Err(format!("{at_closed} while closed, policy {by_policy}").into());
    }
    closed(0)?;
    let log = deployment.log(&Deployment::node_name(0));
    match log.contains("forwards traffic by policy again") && log.contains("closed_for=") {
        true => Ok(()),
        false => Err(log.into()),
    }
}

fn past_troubles() -> Outcome {
    let bed = Testbed::builder().nodes(1).build()?;
    let enforcer = ["--unprotected", "--metrics", "127.0.0.1:9100"];
    let plane = ["--metrics", "127.0.0.1:9101"];
    let deployment = Deployment::start_with(bed, &plane, &enforcer, Default::default())?;
    deployment.client()?.enforce(vec![put(
        "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {name: node-1}\nspec: {workloadCIDRs: [10.9.1.0/24]}",
    )])?;
    let node = deployment.bed.node(0).netns();
    let before = scrape(node, 9100)?;
    for line in [
        "sallyport_enforcer_revision 1",
        "sallyport_enforcer_window_versions 1",
        "sallyport_enforcer_table_protected 0",
        "sallyport_enforcer_session_up 1",
        "sallyport_enforcer_table_repairs_total 0",
        "sallyport_enforcer_applied_updates_total ",
        "sallyport_enforcer_closed 0",
        "sallyport_enforcer_denied_packets_total{reason=\"policy\"} 0",
        "sallyport_enforcer_denied_packets_total{reason=\"nothing_allowed_it\"} 0",
    ] {
        has(&before, line)?;
    }
    nft(node, "flush ruleset")?;
    let deadline = Instant::now() + Duration::from_secs(3);
    let says = " ago another process changed the table; the enforcer repaired it: nft (pid ";
    loop {
        let output = deployment.sallyport(Path::new("/"), &["status"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if text.contains(says) && text.contains("the table is gone") {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("status does not tell: {text}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let after = scrape(node, 9100)?;
    has(&after, "sallyport_enforcer_table_repairs_total 1")?;
    has(
        &after,
        "sallyport_enforcer_trouble_seconds{kind=\"mended\"} ",
    )?;
    let plane = scrape(deployment.bed.fabric().netns(), 9101)?;
    for line in [
        "sallyport_controlplane_revision 1",
        "sallyport_controlplane_revision_enforced 1",
        "sallyport_controlplane_rollouts 0",
        "sallyport_controlplane_nodes{state=\"enforcing\"} 1",
        "sallyport_controlplane_troubled_nodes{kind=\"mended\"} 1",
        "sallyport_controlplane_transactions_total 1",
        "sallyport_controlplane_journal_flush_seconds_total 0.",
    ] {
        has(&plane, line)?;
    }
    Ok(())
}

/// A node, and a machine with another enforcer of that node's name on a data directory.
fn two_machines() -> Result<Deployment, Failed> {
    let bed = Testbed::builder().nodes(2).build()?;
    let mut deployment =
        Deployment::start_without_enforcers(binaries()?, bed, &[], &[], Default::default())?;
    deployment.client()?.apply(vec![put(
        "apiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {name: node-1}",
    )])?;
    deployment.start_enforcer(0)?;
    Ok(deployment)
}

/// Starts an enforcer with the name of the first node on the second machine.
fn namesake(deployment: &Deployment, data_dir: &Path) -> Result<Enforcer, Failed> {
    let netns = deployment.bed.node(1).netns();
    let mut command = netns.command(binaries()?.enforcer);
    command
        .args(["--node-name", "node-1", "--control-plane"])
        .arg(deployment.server())
        .arg("--data-dir")
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Enforcer(netns.spawn(command)?))
}

/// The output of `sallyport`.
fn sallyport(deployment: &Deployment, arguments: &[&str]) -> Result<String, Failed> {
    let output = deployment.sallyport(Path::new("/"), arguments)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns when `sallyport status` shows all of these.
fn shows(deployment: &Deployment, texts: &[&str]) -> Result<String, Failed> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = sallyport(deployment, &["status"])?;
        if texts.iter().all(|text| status.contains(text)) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            return Err(format!("status never shows {texts:?}: {status}").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn one_name() -> Outcome {
    let (deployment, directory) = (two_machines()?, tempfile::tempdir()?);
    shows(&deployment, &["node-1  enforcing"])?;
    let _second = namesake(&deployment, directory.path())?;
    shows(
        &deployment,
        &[
            "node-1  enforcing",
            "turned away:\n  node-1 (instance ",
            "which answers",
        ],
    )?;
    let first = deployment.enforcer_pid(0).ok_or("an enforcer")?;
    Command::new("kill")
        .args(["-STOP", &first.to_string()])
        .status()?;
    shows(
        &deployment,
        &[
            "node-1  enforcing",
            "conditions:\n  node-1, ",
            "took the name",
        ],
    )?;
    Ok(())
}

fn one_disk() -> Outcome {
    let (mut deployment, directory) = (two_machines()?, tempfile::tempdir()?);
    shows(&deployment, &["node-1  enforcing"])?;
    deployment.kill_enforcer(0);
    let original = deployment.data_dir("node-1");
    let status = Command::new("cp")
        .arg("-a")
        .arg(original.join("."))
        .arg(directory.path())
        .status()?;
    if !status.success() {
        return Err("cp fails".into());
    }
    deployment.start_enforcer(0)?;
    let copy = namesake(&deployment, directory.path())?;
    let status = shows(
        &deployment,
        &["node-1  cloned", "sallyport-enforcer new-identity"],
    )?;
    let believed = status
        .split("process ")
        .filter_map(|rest| rest.get(..16))
        .find(|word| word.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .ok_or("a process in the status")?;
    let believe = ["node", "believe", "node-1", "--process", believed];
    let said = sallyport(&deployment, &believe)?;
    if !said.contains("is believed") {
        return Err(format!("`node believe` says {said}").into());
    }
    shows(&deployment, &["node-1  enforcing"])?;

    let renew = || {
        let mut command = deployment.bed.node(1).netns().command(binaries()?.enforcer);
        command
            .args(["new-identity", "--data-dir"])
            .arg(directory.path());
        Ok::<Output, Failed>(command.output()?)
    };
    if renew()?.status.success() {
        return Err("a new id is given while an enforcer runs".into());
    }
    drop(copy);
    if !renew()?.status.success() {
        return Err("no new id is given".into());
    }
    Ok(())
}

fn has(metrics: &str, line: &str) -> Outcome {
    match metrics.lines().any(|one| one.starts_with(line)) {
        true => Ok(()),
        false => Err(format!("no line begins with `{line}`:\n{metrics}").into()),
    }
}

fn scrape(netns: &Netns, port: u16) -> Result<String, Failed> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = netns.run(|| TcpStream::connect(address))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.starts_with("HTTP/1.1 200") {
        true => Ok(text),
        false => Err(text.into()),
    }
}
