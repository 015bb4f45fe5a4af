//! Connections by Services that live on: whose address the pod sees, that an edit cuts them like any other, and what
//! becomes of them where conntrack forgot them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sallyport_integration::{
    connections::flush_all,
    deployment::{Deployment, delete, put},
};
use sallyport_testbed::{
    Family, Host, Mode,
    kernel_tests::{Failed, Outcome},
    services::Proxy,
};

use crate::{
    policies::DENY_ALL,
    ways::{Way, ways},
    world::{self, CLUSTER, TARGET, World},
};

/// The longest time for traffic that must pass, and the time that traffic is watched that must not.
const PATIENCE: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_millis(300);

/// After what kernels were told they are at rest: an acknowledgement may be late by 200 ms.
const AT_REST: Duration = Duration::from_millis(300);

/// A connection by a way.
struct Live {
    name: String,
    always: bool,
    /// Whether it begins at a pod whose node translates it.
    translated_at_pod: bool,
    /// Whether it is neither forwarded nor translated.
    direct: bool,
    /// The client's end and the pod's.
    ends: [TcpStream; 2],
    /// The number of messages on their way to each end.
    owed: [usize; 2],
}

/// Connections by every way to a server: before, while and after everything is denied, and forgotten.
pub(crate) fn connections(proxy: Proxy, mode: Mode) -> Outcome {
    let world = World::build(proxy, mode)?;
    let ways = ways(&world);
    let World { bed, near, far, .. } = world;
    let nodes = world::addresses_of_nodes(&bed);
    let deployment = Deployment::start(bed, &[])?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(CLUSTER)])?;
    let mut wrong = Vec::new();
    let mut live = connect(&ways, &near, &nodes, &mut wrong)?;
    live.extend(connect(&ways, &far, &nodes, &mut wrong)?);
    wrong.extend(speak("no policy", &mut live, |_| true, PATIENCE)?);
    api.enforce(vec![put(DENY_ALL)])?;
    wrong.extend(speak("deny all", &mut live, |one| one.always, WATCHED)?);
    api.enforce(vec![delete(DENY_ALL)])?;
    wrong.extend(speak("no policy again", &mut live, |_| true, PATIENCE)?);
    thread::sleep(AT_REST);
    api.enforce(vec![put(DENY_ALL)])?;
    for node in [0, 1] {
        flush_all(deployment.bed.node(node).netns())?;
    }
    wrong.extend(speak_unknown(&mut live, mode)?);
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n").into()),
    }
}

/// Connects by the ways that lead to a pod, and compares the source that the pod sees with the way's.
fn connect(
    ways: &[Way],
    pod: &Host,
    nodes: &[IpAddr],
    wrong: &mut Vec<String>,
) -> Result<Vec<Live>, Failed> {
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, TARGET));
    let listener = pod.netns().run(bind)?;
    let mut live = Vec::new();
    for way in ways.iter().filter(|way| way.leads_to(pod)) {
        for family in [Family::V4, Family::V6] {
            let name = format!("{} over {family}", way.name);
            let target = way.target(family);
            let open = || TcpStream::connect_timeout(&target, PATIENCE);
            let client = way.from.netns().run(open).map_err(|error| {
                let name = &name;
                format!("{name}: {error}")
            })?;
            let (server, peer) = listener.accept()?;
            let seen = peer.ip().to_canonical();
            let as_wanted = match way.masqueraded {
                true => nodes.contains(&seen),
                false => Some(seen) == way.from.address(family),
            };
            if !as_wanted {
                wrong.push(format!("{name}: the pod sees {seen}"));
            }
            for end in [&client, &server] {
                end.set_nonblocking(true)?;
            }
            live.push(Live {
                name,
                always: way.always,
                translated_at_pod: way.begins_at_pod() && !way.elsewhere,
                direct: way.direct,
                ends: [client, server],
                owed: [0, 0],
            });
        }
    }
    Ok(live)
}

/// Has both ends of all speak. Returns what is heard and must not be, and what must be and is not after `patience`:
/// what was said before, too.
fn speak(
    under: &str,
    live: &mut [Live],
    open: impl Fn(&Live) -> bool,
    patience: Duration,
) -> Result<Vec<String>, Failed> {
    for one in live.iter_mut() {
        for (end, owed) in one.ends.iter_mut().zip([1, 0]) {
            end.write_all(b"x")?;
            one.owed[owed] += 1;
        }
    }
    let (before, deadline) = (owed(live), Instant::now() + patience);
    while owed(live).iter().any(|&owed| owed != [0, 0]) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        for one in live.iter_mut() {
            for (end, owed) in one.ends.iter_mut().zip(&mut one.owed) {
                *owed -= end.read(&mut [0; 64]).unwrap_or(0);
            }
        }
    }
    let mut wrong = Vec::new();
    for (one, before) in live.iter().zip(before) {
        let wanted = if open(one) { [0, 0] } else { before };
        if one.owed != wanted {
            wrong.push(format!("{under}: {}: {:?} is missing", one.name, one.owed));
        }
    }
    Ok(wrong)
}

fn owed(live: &[Live]) -> Vec<[usize; 2]> {
    live.iter().map(|one| one.owed).collect()
}

/// Has clients speak of whose connections conntrack knows nothing any more, where policies select every pod. Nothing
/// gets through but what is never forwarded. Returns what is wrong.
fn speak_unknown(live: &mut [Live], mode: Mode) -> Result<Vec<String>, Failed> {
    for one in live.iter_mut() {
        one.ends[0].write_all(b"x")?;
    }
    thread::sleep(WATCHED);
    let deadline = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    for one in live {
        // A reset to a port of a bridge is sent past all translation: who asked a Service does not know it for an
        // answer.
        let is_missed = mode == Mode::Bridged && one.translated_at_pod;
        let wanted = (one.direct, !one.direct && !is_missed);
        let mut seen = (false, false);
        loop {
            let [client, server] = &mut one.ends;
            let answer = client.read(&mut [0; 64]).map_err(|error| error.kind());
            seen.0 |= matches!(server.read(&mut [0; 64]), Ok(1..));
            seen.1 |= answer == Err(ErrorKind::ConnectionReset);
            if seen == wanted || Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        if seen != wanted {
            let (name, (arrived, reset)) = (&one.name, seen);
            wrong.push(format!(
                "unknown: {name}: arrived: {arrived}, reset: {reset}"
            ));
        }
    }
    Ok(wrong)
}
