//! Tests of kept connections: they go on, new ones do not; the strictest policy counts; and an address in new hands has
//! nothing of the old.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use sallyport_integration::deployment::{Client, PATIENCE, delete, put};
use sallyport_testbed::{
    Family, Host, Mode,
    kernel_tests::{Failed, Outcome},
    probe::{self, Pattern, Probe, Prober, Protocol, Server, Stream, Traffic},
};

use crate::{Bed, DENY, GRACE, bed, bed_under};

/// The time that a flow is watched.
const WATCHED: Duration = Duration::from_millis(300);

/// A flow and what to call it.
type Flow = (String, Stream);

/// Flows of every kind to both servers, all of them established, on ports from one on.
fn established(client: &Host, servers: &[Host], first: u16) -> Result<Vec<Flow>, Failed> {
    let mut flows: Vec<Flow> = Vec::new();
    for server in servers {
        for traffic in [Traffic::tcp(first), Traffic::udp(first)] {
            for family in [Family::V4, Family::V6] {
                for pattern in [Pattern::Answered, Pattern::ServerSpeaks] {
                    let mut traffic = traffic.family(family).pattern(pattern);
                    traffic.port += flows.len() as u16;
                    let to = server.name();
                    let name = format!("{} {family} {pattern:?} to {to}", traffic.protocol);
                    flows.push((name, Stream::start(client, server, traffic)?));
                }
            }
        }
    }
    for (name, flow) in &flows {
        flow.until(PATIENCE, |counts| counts.received > 20)
            .map_err(|counts| format!("{name} does not flow: {counts:?}"))?;
    }
    Ok(flows)
}

/// Sees that all flows go on, or that none does.
fn require(what: &str, flows: &[Flow], go_on: bool) -> Outcome {
    thread::sleep(GRACE);
    let before: Vec<_> = flows.iter().map(|(_, flow)| flow.counts()).collect();
    thread::sleep(WATCHED);
    for ((name, flow), before) in flows.iter().zip(before) {
        let since = flow.counts().since(before);
        if (since.received > 0) != go_on {
            return Err(format!("{what}: {name}: {since:?}").into());
        }
    }
    Ok(())
}

/// Asks for new connections over TCP and UDP to port 80 of each server.
fn require_new(what: &str, client: &Host, servers: &[Host], wanted: probe::Outcome) -> Outcome {
    for server in servers {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for family in [Family::V4, Family::V6] {
                let probe = Probe::new(client, server, protocol, 80, family);
                let seen = Prober::default().probe(probe);
                if seen != wanted {
                    let to = server.name();
                    return Err(format!("{what}: new {protocol} {family} to {to}: {seen}").into());
                }
            }
        }
    }
    Ok(())
}

fn serve(servers: &[Host]) -> io::Result<Vec<Server>> {
    let ports = [(Protocol::Tcp, 80), (Protocol::Udp, 80)];
    servers
        .iter()
        .map(|server| Server::start(server, &ports))
        .collect()
}

/// With `--established keep`: what is established goes on when it is revoked, and nothing new comes.
pub(super) fn cluster_wide(mode: Mode) -> Outcome {
    let Bed {
        deployment,
        client,
        servers,
    } = bed_under(mode, &["--established", "keep"])?;
    let _serving = serve(&servers)?;
    let flows = established(&client, &servers, 7000)?;
    // A flow without an answer is not established.
    let unanswered = Stream::start(&client, &servers[0], Traffic::udp(7900))?;
    unanswered
        .until(PATIENCE, |counts| counts.received > 20)
        .map_err(|counts| format!("it does not flow: {counts:?}"))?;
    let unanswered = [("unanswered UDP".to_owned(), unanswered)];
    require_new("before", &client, &servers, probe::Outcome::Open)?;
    let mut api = deployment.client()?;
    api.enforce(vec![put(DENY)])?;
    require("kept", &flows, true)?;
    require("revoked", &unanswered, false)?;
    require_new("revoked", &client, &servers, probe::Outcome::Blocked)?;
    // Further edits of what is allowed change nothing for them.
    api.enforce(vec![put(allowing("10.0.0.0/24"))])?;
    api.enforce(vec![put(allowing("10.0.1.0/24"))])?;
    require("edited", &flows, true)?;
    require_new("edited", &client, &servers, probe::Outcome::Blocked)
}

/// `DENY`, but for some addresses that nobody has.
fn allowing(cidr: &str) -> String {
    format!(
        "{}  ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]\n",
        deny("deny", "Ingress", None)
    )
}

/// Denies the servers everything in a direction.
fn deny(name: &str, direction: &str, established: Option<&str>) -> String {
    let annotations = established
        .map(|mode| format!(", annotations: {{sallyport.dev/established: {mode}}}"))
        .unwrap_or_default();
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{namespace: default, name: {name}{annotations}}}
spec:
  podSelector: {{matchLabels: {{app: server}}}}
  policyTypes: [{direction}]
"
    )
}

/// By annotation; of several policies in a direction one that does not keep is enough to cut, and each direction judges
/// for itself.
pub(super) fn the_strictest_counts() -> Outcome {
    let Bed {
        deployment,
        client,
        servers,
    } = bed(Mode::Routed)?;
    let _serving = serve(&servers)?;
    let mut api = deployment.client()?;
    let keep = deny("a", "Ingress", Some("keep"));
    let mut first = 7000;
    let mut kept = |api: &mut Client, and: &str| -> Result<Vec<Flow>, Failed> {
        // The sockets of the flows before may be there for a moment still.
        first += 100;
        let flows = established(&client, &servers, first)?;
        api.enforce(vec![put(keep.clone())])?;
        require(&format!("kept, before {and}"), &flows, true)?;
        require_new("kept", &client, &servers, probe::Outcome::Blocked)?;
        Ok(flows)
    };
    for (what, policy) in [
        (
            "the same policy rechecks",
            deny("a", "Ingress", Some("recheck")),
        ),
        ("the same policy says nothing", deny("a", "Ingress", None)),
        (
            "another policy rechecks",
            deny("b", "Ingress", Some("recheck")),
        ),
        ("another policy says nothing", deny("b", "Ingress", None)),
        ("another direction says nothing", deny("b", "Egress", None)),
    ] {
        let flows = kept(&mut api, what)?;
        api.enforce(vec![put(policy.clone())])?;
        // A policy about the packets of servers does not concern connections that others opened to them.
        require(what, &flows, policy.contains("[Egress]"))?;
        let mut edits = vec![delete(keep.clone())];
        edits.extend(policy.contains("name: b").then(|| delete(policy)));
        api.enforce(edits)?;
    }
    Ok(())
}

/// A counter of the packets that arrive at a port, over both families, without anybody answering.
struct Counter {
    arrived: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Counter {
    fn start(host: &Host, port: u16) -> io::Result<Counter> {
        let socket = host
            .netns()
            .run(|| UdpSocket::bind(SocketAddr::from(([0u16; 8], port))))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (arrived, stop) = (Arc::default(), Arc::default());
        let counter = Counter {
            arrived: Arc::clone(&arrived),
            stop: Arc::clone(&stop),
        };
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if socket.recv_from(&mut [0; 64]).is_ok() {
                    arrived.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Ok(counter)
    }

    fn count(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// The way in which an address passes from one workload to the next.
#[derive(Clone, Copy, Debug)]
enum Pass {
    /// In one transaction.
    AtOnce,
    /// In two, one right after the other.
    InTurn,
    /// With a while between.
    Later,
}

/// A client that goes on sending to an address reaches whoever has it now only as a new connection: not at all.
pub(super) fn an_address_in_new_hands() -> Outcome {
    for pass in [Pass::AtOnce, Pass::InTurn, Pass::Later] {
        passes_on(pass).map_err(|error| format!("{pass:?}: {}", error.message().unwrap_or("?")))?;
    }
    Ok(())
}

fn passes_on(pass: Pass) -> Outcome {
    let Bed {
        deployment,
        client,
        servers,
    } = bed_under(Mode::Routed, &["--established", "keep"])?;
    let mut api = deployment.client()?;
    let mut flows = Vec::new();
    for server in &servers {
        for family in [Family::V4, Family::V6] {
            let mut traffic = Traffic::udp(7000).family(family).pattern(Pattern::Answered);
            traffic.port += flows.len() as u16;
            let flow = Stream::start(&client, server, traffic)?;
            flow.until(PATIENCE, |counts| counts.received > 20)
                .map_err(|counts| format!("it does not flow: {counts:?}"))?;
            flows.push((format!("to {}", server.name()), flow));
        }
    }
    api.enforce(vec![put(DENY)])?;
    require("kept", &flows, true)?;
    let names = ["near", "far"];
    let workload = |place: usize, name: &str, server: &Host| {
        let addresses = server.addresses();
        let addresses: Vec<_> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
        format!(
            "
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {{namespace: default, name: {name}, labels: {{app: server}}}}
spec: {{node: node-{}, addresses: [{}]}}
---",
            place + 1,
            addresses.join(", ")
        )
    };
    let all = |suffix: &str| -> String {
        let each = servers.iter().enumerate();
        each.map(|(place, server)| workload(place, &format!("{}{suffix}", names[place]), server))
            .collect()
    };
    // The pods go, and others come to their addresses.
    let addresses: Vec<Vec<IpAddr>> = servers.iter().map(Host::addresses).collect();
    for server in &servers {
        deployment.bed.remove(server.name())?;
    }
    let mut heirs = Vec::new();
    for (place, addresses) in addresses.iter().enumerate() {
        let name = format!("default/{}-heir", names[place]);
        heirs.push(deployment.bed.add_pod(place, &name, addresses)?);
    }
    let counters = (0..flows.len())
        .map(|n| Counter::start(&heirs[n / 2], 7000 + n as u16))
        .collect::<io::Result<Vec<_>>>()?;
    match pass {
        Pass::AtOnce => {
            api.enforce(vec![delete(all("")), put(all("-heir"))])?;
        }
        Pass::InTurn => {
            api.enforce(vec![delete(all(""))])?;
            api.enforce(vec![put(all("-heir"))])?;
        }
        Pass::Later => {
            api.enforce(vec![delete(all(""))])?;
            thread::sleep(Duration::from_millis(400));
            api.enforce(vec![put(all("-heir"))])?;
        }
    }
    thread::sleep(GRACE);
    let before: Vec<u64> = counters.iter().map(Counter::count).collect();
    thread::sleep(WATCHED);
    for ((counter, before), (name, flow)) in counters.iter().zip(before).zip(&flows) {
        if counter.count() != before {
            return Err(format!("the heir hears a flow {name}: {:?}", flow.counts()).into());
        }
    }
    // The control: it is the policy that keeps them out, and they go on sending.
    api.enforce(vec![delete(DENY)])?;
    for (counter, (name, _)) in counters.iter().zip(&flows) {
        let deadline = std::time::Instant::now() + PATIENCE;
        let before = counter.count();
        while counter.count() == before {
            if std::time::Instant::now() > deadline {
                return Err(format!("nobody sends {name}").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
