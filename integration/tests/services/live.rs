//! Connections by Services that live on: whose address the pod sees, and that an edit cuts them like any other.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sallyport_integration::{
    deployment::{Deployment, delete, put},
    kernel_tests::{Failed, Outcome},
    services::Proxy,
    testbed::{Family, Host, Mode},
};

use crate::{
    policies::DENY_ALL,
    ways::{Way, ways},
    world::{self, CLUSTER, TARGET, World},
};

/// How long what must pass may take, and how long what must not pass is watched.
const PATIENCE: Duration = Duration::from_secs(10);
const WATCHED: Duration = Duration::from_millis(300);

/// A connection by a way.
struct Live {
    name: String,
    always: bool,
    /// The client's end and the pod's.
    ends: [TcpStream; 2],
}

/// Connections by every way to a server, before and while and after everything is denied.
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
                ends: [client, server],
            });
        }
    }
    Ok(live)
}

/// Has both ends of all speak. Returns what is heard and must not be, and what must be and is not after `patience`.
fn speak(
    under: &str,
    live: &mut [Live],
    open: impl Fn(&Live) -> bool,
    patience: Duration,
) -> Result<Vec<String>, Failed> {
    for end in live.iter_mut().flat_map(|one| &mut one.ends) {
        end.write_all(b"x")?;
    }
    let deadline = Instant::now() + patience;
    let mut heard = vec![[false; 2]; live.len()];
    let mut silent = true;
    while silent && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        silent = false;
        for (one, heard) in live.iter_mut().zip(&mut heard) {
            for (end, heard) in one.ends.iter_mut().zip(heard) {
                *heard |= matches!(end.read(&mut [0; 64]), Ok(1..));
                silent |= !*heard;
            }
        }
    }
    let mut wrong = Vec::new();
    for (one, heard) in live.iter().zip(heard) {
        if heard != [open(one); 2] {
            wrong.push(format!("{under}: {}: heard {heard:?}", one.name));
        }
    }
    Ok(wrong)
}
