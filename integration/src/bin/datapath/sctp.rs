//! Owns the check of SCTP as the kernel itself speaks it: a policy lets an association through, denies one, and cuts
//! one that was established before. Packets of SCTP by raw sockets are the probe's, in the library.

use std::{
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use sallyport_integration::deployment::{Deployment, delete, put};
use sallyport_testbed::{Family, Host, Testbed};
use socket2::{Domain, Protocol, Socket, Type};

/// The port that the policy allows, and one that it does not name.
const ALLOWED: u16 = 9000;
const OTHER: u16 = 9001;

/// The time that an answer may take. SCTP sends again after a second, so a packet may be lost and nothing goes wrong.
const PATIENCE: Duration = Duration::from_millis(2500);

const CLUSTER: &str = "
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-1}
spec: {workloadCIDRs: [10.9.1.0/24, 'fd00:9:1::/64']}
---
apiVersion: sallyport.dev/v1
kind: Node
metadata: {name: node-2}
spec: {workloadCIDRs: [10.9.2.0/24, 'fd00:9:2::/64']}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: client, labels: {app: client}}
spec: {node: node-1, addresses: [10.9.1.2, 'fd00:9:1::2']}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: bystander, labels: {app: bystander}}
spec: {node: node-1, addresses: [10.9.1.3, 'fd00:9:1::3']}
---
apiVersion: sallyport.dev/v1
kind: Workload
metadata: {namespace: default, name: server, labels: {app: server}}
spec: {node: node-2, addresses: [10.9.2.2, 'fd00:9:2::2']}
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: sctp}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{protocol: SCTP, port: 9000}]
";

/// Runs the check. Returns what was wrong.
pub(crate) fn run() -> Result<Vec<String>> {
    let bed = Testbed::builder().nodes(2).build()?;
    let pod = |node, name: &str, v4: [u8; 4], v6: &str| -> Result<Host> {
        Ok(bed.add_pod(node, name, &[IpAddr::from(v4), v6.parse()?])?)
    };
    let client = pod(0, "client", [10, 9, 1, 2], "fd00:9:1::2")?;
    let bystander = pod(0, "bystander", [10, 9, 1, 3], "fd00:9:1::3")?;
    let server = pod(1, "server", [10, 9, 2, 2], "fd00:9:2::2")?;
    for family in [Family::V4, Family::V6] {
        for port in [ALLOWED, OTHER] {
            serve(&server, family, port).context("open an SCTP socket of the kernel's")?;
        }
    }
    let deployment = Deployment::start(bed, &[])?;
    let mut api = deployment.client()?;
    let mut findings = Findings::default();
    api.enforce(vec![put(CLUSTER)])?;
    let mut established = Vec::new();
    for family in [Family::V4, Family::V6] {
        for (who, host) in [("client", &client), ("bystander", &bystander)] {
            let association = associate(host, &server, family, ALLOWED);
            findings.expect(&format!("{family}, no policy: {who}"), true, &association);
            established.extend(association.map(|socket| (family, who, socket)));
        }
    }
    api.enforce(vec![put(POLICY)])?;
    for (family, who, socket) in &established {
        let allowed = *who == "client";
        let name = format!("{family}, policy: {who}, established before");
        findings.expect(&name, allowed, &echo(socket));
    }
    for family in [Family::V4, Family::V6] {
        for (name, host, port, allowed) in [
            ("client", &client, ALLOWED, true),
            ("client, another port", &client, OTHER, false),
            ("bystander", &bystander, ALLOWED, false),
        ] {
            let association = associate(host, &server, family, port);
            findings.expect(&format!("{family}, policy: {name}"), allowed, &association);
        }
    }
    api.enforce(vec![delete(POLICY)])?;
    for family in [Family::V4, Family::V6] {
        let association = associate(&bystander, &server, family, ALLOWED);
        let name = format!("{family}, policy deleted: bystander");
        findings.expect(&name, true, &association);
    }
    Ok(findings.0)
}

/// The deviations from the expected.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    /// Tells what became of an association. Only silence counts as denied: policy drops, and never refuses.
    fn expect<T>(&mut self, name: &str, allowed: bool, outcome: &io::Result<T>) {
        let (seen, right) = match outcome {
            Ok(_) => ("passes".to_owned(), allowed),
            Err(error) if is_silence(error) => ("blocked".to_owned(), !allowed),
            Err(error) => (format!("refused ({error})"), false),
        };
        println!("{name}: {seen}{}", if right { "" } else { "  WRONG" });
        if !right {
            self.0.push(format!("{name}: {seen}"));
        }
    }
}

fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    [TimedOut, WouldBlock].contains(&error.kind())
}

fn open(family: Family) -> io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let protocol = Protocol::from(libc::IPPROTO_SCTP);
    Socket::new(domain, Type::STREAM, Some(protocol))
}

fn address(host: &Host, family: Family, port: u16) -> SocketAddr {
    let address = host.address(family).expect("hosts have both families");
    SocketAddr::new(address, port)
}

/// Sends back what comes over each association, in threads that end with this process.
fn serve(server: &Host, family: Family, port: u16) -> io::Result<()> {
    let listening = server.netns().run(|| {
        let socket = open(family)?;
        socket.bind(&address(server, family, port).into())?;
        socket.listen(16)?;
        Ok::<_, io::Error>(socket)
    })?;
    thread::spawn(move || {
        while let Ok((mut association, _)) = listening.accept() {
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = association.read(&mut buffer) {
                    let _ = association.write_all(&buffer[..length]);
                }
            });
        }
    });
    Ok(())
}

/// Makes an association, over which a message went both ways.
fn associate(client: &Host, server: &Host, family: Family, port: u16) -> io::Result<Socket> {
    let socket = client.netns().run(|| open(family))?;
    socket.bind(&address(client, family, 0).into())?;
    socket.connect_timeout(&address(server, family, port).into(), PATIENCE)?;
    echo(&socket)?;
    Ok(socket)
}

/// Sends a message, and waits for its echo.
fn echo(socket: &Socket) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"sallyport")?;
    let mut buffer = [MaybeUninit::uninit(); 64];
    match socket.recv(&mut buffer)? {
        9 => Ok(()),
        length => Err(io::Error::other(format!("{length} bytes came back"))),
    }
}
