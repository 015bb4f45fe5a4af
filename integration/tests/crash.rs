//! `kill -9` of everything, in the middle of 200 transactions: what was acknowledged is there, nothing is there by
//! half, and no packet is judged otherwise meanwhile.

use std::{path::Path, process::ExitCode, thread, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use sallyport_integration::{
    binaries::binaries,
    deployment::{Deployment, PATIENCE, put},
    ledger::{Load, pair},
    pods::{self, Pod},
};
use sallyport_testbed::{
    Testbed,
    kernel_tests::{self, Outcome},
    probe::{Server, Stream, Traffic},
};

const TRANSACTIONS: u32 = 200;

/// The port that the policy allows throughout, and the one that it does not.
const ALLOWED: u16 = 8000;
const DENIED: u16 = 8001;

fn main() -> ExitCode {
    if let Err(error) = binaries() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    kernel_tests::run(&[
        ("kill_9_in_the_middle_of_200_transactions", kill_9),
        ("a_rebooted_node_enforces_before_it_has_a_session", reboot),
        ("a_table_without_its_base_chain_is_made_anew", no_base_chain),
        ("a_lost_journal_opens_nothing", lost_journal),
        ("a_damaged_journal_opens_nothing", damaged_journal),
    ])
}

const RANGES: [&str; 2] = ["10.9.1.0/24", "10.9.2.0/24"];
const PODS: [Pod; 2] = [
    Pod::new(0, "client", &["10.9.1.2"]),
    Pod::new(1, "server", &["10.9.2.2"]),
];

const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: stays}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 8000, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: stays-too}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{}]
";

fn bed() -> Result<(Deployment, Stream, Stream, Server), kernel_tests::Failed> {
    let bed = Testbed::builder().nodes(2).build()?;
    let [client, server] = pods::add(&bed, &PODS)?;
    let served = Server::start(&server, &[])?;
    let deployment = Deployment::start(bed, &[])?;
    let cluster = pods::manifests(&RANGES, &PODS);
    deployment
        .client()?
        .enforce(vec![put(cluster), put(POLICIES)])?;
    let every = Duration::from_millis(1);
    let allowed = Stream::start(&client, &server, Traffic::udp(ALLOWED).every(every))?;
    let denied = Stream::start(&client, &server, Traffic::udp(DENIED).every(every))?;
    Ok((deployment, allowed, denied, served))
}

/// Stops both streams: one must have lost nothing, the other must have brought nothing over.
fn judge(allowed: Stream, denied: Stream) -> Outcome {
    let (allowed, denied) = (allowed.stop(), denied.stop());
    println!("allowed {allowed:?}, denied {denied:?}");
    if allowed.sent < 500 || denied.sent < 500 {
        return Err("too few packets to say anything".into());
    }
    if allowed.lost() > 0 {
        return Err(format!(
            "{} of {} allowed packets were lost",
            allowed.lost(),
            allowed.sent
        )
        .into());
    }
    if denied.received > 0 {
        return Err(format!(
            "{} of {} denied packets passed",
            denied.received, denied.sent
        )
        .into());
    }
    Ok(())
}

fn kill_9() -> Outcome {
    let (mut deployment, allowed, denied, _served) = bed()?;
    let load = Load::start(deployment.client()?, Duration::ZERO);
    let mut rng = StdRng::seed_from_u64(5);
    let mut kills = 0;
    while load.acknowledged() < TRANSACTIONS {
        thread::sleep(Duration::from_millis(rng.random_range(5..120)));
        match rng.random_range(0..4) {
            0 => {
                deployment.kill_control_plane();
                deployment.start_control_plane()?;
            }
            1 => {
                deployment.kill_control_plane();
                deployment.kill_enforcer(0);
                deployment.kill_enforcer(1);
                deployment.start_enforcer(1)?;
                deployment.start_control_plane()?;
                deployment.start_enforcer(0)?;
            }
            _ => {
                let node = rng.random_range(0..2);
                deployment.kill_enforcer(node);
                deployment.start_enforcer(node)?;
            }
        }
        kills += 1;
    }
    let ledger = load.stop().map_err(|error| format!("{error:#}"))?;
    println!("{kills} kills during {} transactions", ledger.len());
    if kills < 5 {
        return Err(format!("only {kills} kills").into());
    }
    let compared = ledger.compare(&mut deployment);
    compared.map_err(|error| format!("{error:#}"))?;
    judge(allowed, denied)
}

/// A reboot leaves the journal and no table. The node must enforce with nobody to ask.
fn reboot() -> Outcome {
    let (mut deployment, allowed, denied, _served) = bed()?;
    deployment.kill_control_plane();
    deployment.kill_enforcer(1);
    nft(&deployment, &["delete", "table", "inet", "sallyport"])?;
    enforces_when_started(deployment, allowed, denied)
}

/// A crash between the steps that make a table leaves one that judges nothing; so can others, while no enforcer lives.
fn no_base_chain() -> Outcome {
    let (mut deployment, allowed, denied, _served) = bed()?;
    deployment.kill_control_plane();
    deployment.kill_enforcer(1);
    nft(
        &deployment,
        &["delete", "chain", "inet", "sallyport", "forward_ingress"],
    )?;
    enforces_when_started(deployment, allowed, denied)
}

/// Runs stock nft on the second node.
fn nft(deployment: &Deployment, arguments: &[&str]) -> Outcome {
    match deployment.nft(1, arguments)? {
        true => Ok(()),
        false => Err("the table of a dead enforcer can be changed".into()),
    }
}

/// The kernel has what the journal has not: it stays in force until the control plane's snapshot replaces it.
fn lost_journal() -> Outcome {
    resynchronises(|journal| Ok(std::fs::remove_dir_all(journal)?))
}

/// The journal is moved aside, and then it is as if it were lost.
fn damaged_journal() -> Outcome {
    resynchronises(|journal| {
        let log = journal.join("db");
        let mut bytes = std::fs::read(&log)?;
        let written = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
        bytes[written / 2] ^= 0x10;
        Ok(std::fs::write(log, bytes)?)
    })
}

/// Something happens to the journal of an enforcer that is dead, while there is no control plane.
fn resynchronises(happens: impl FnOnce(&Path) -> Outcome) -> Outcome {
    let (mut deployment, allowed, denied, _served) = bed()?;
    deployment.kill_control_plane();
    deployment.kill_enforcer(1);
    happens(&deployment.data_dir("node-2"))?;
    deployment.start_enforcer(1)?;
    thread::sleep(Duration::from_millis(300));
    deployment.start_control_plane()?;
    let mut client = deployment.client()?;
    let revision = client.apply(vec![put(pair(0))])?;
    client.wait_enforced(revision)?;
    let ruleset = deployment.ruleset(1)?;
    if !ruleset.contains(&format!("epoch 1 revision {revision} ")) {
        return Err(format!("the snapshot did not replace the table: {ruleset}").into());
    }
    thread::sleep(Duration::from_millis(200));
    let (allowed, denied) = (allowed.stop(), denied.stop());
    println!("without its journal: allowed {allowed:?}, denied {denied:?}");
    if denied.received > 0 || denied.sent < 300 {
        return Err(format!("denied: {denied:?}").into());
    }
    // The table is replaced in one batch, which can lose a packet and lets none pass.
    if allowed.lost() > 5 || allowed.sent < 300 {
        return Err(format!("allowed: {allowed:?}").into());
    }
    Ok(())
}

/// While the table judges nothing the streams both pass; only what is sent after the start is judged.
fn enforces_when_started(mut deployment: Deployment, allowed: Stream, denied: Stream) -> Outcome {
    let open = denied.until(PATIENCE, |counts| counts.received > 0);
    open.map_err(|counts| format!("without the table everything passes, but {counts:?}"))?;
    deployment.start_enforcer(1)?;
    thread::sleep(Duration::from_millis(20));
    let (before_allowed, before_denied) = (allowed.counts(), denied.counts());
    thread::sleep(Duration::from_millis(700));
    let (after_allowed, after_denied) = (
        allowed.stop().since(before_allowed),
        denied.stop().since(before_denied),
    );
    println!("after the start: allowed {after_allowed:?}, denied {after_denied:?}");
    if after_denied.received > 0 || after_denied.sent < 100 {
        return Err(format!("denied after the start: {after_denied:?}").into());
    }
    if after_allowed.received < 100 {
        return Err(format!("allowed after the start: {after_allowed:?}").into());
    }
    Ok(())
}
