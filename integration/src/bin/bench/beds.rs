//! The beds that are compared: namespaces that differ by the filter between pods, each with its senders. Measures
//! nothing but one packet's cost when it is asked to.

use std::{collections::BTreeSet, fmt, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use sallyport_enforcer::table;
use sallyport_integration::{
    binaries::Binaries,
    deployment::{Deployment, Streams, put},
};
use sallyport_testbed::{
    Host, Mode, Netns, Testbed, listing,
    probe::{Class, Cost, FLOW_PORT, Sender},
};

use crate::{
    cluster::{GATEWAY, LOCAL, PORT, SERVER, STRANGER, Size, peer},
    npm,
    programs::feed,
};

/// The names of a node that has no table, and of one with a table that only asks conntrack.
pub(crate) const NO_FILTER: &str = "no-filter";
pub(crate) const CONNTRACK: &str = "conntrack";
/// The name of iptables with ipset.
pub(crate) const IPSET: &str = "ipset";

/// Names that programs cannot have.
pub(crate) const NAMES: [&str; 3] = [NO_FILTER, CONNTRACK, IPSET];

/// How many addresses send: to begin flows, and in flows that are known.
const NEW_SENDERS: u32 = 1_000;
const KNOWN_SENDERS: u32 = 32;

/// The networks of the addresses that send.
const PEERS: &str = "10.64.0.0/10";
const STRANGERS: &str = "172.16.0.0/16";

/// From how many ports of each address flows begin. More flows than are ever sent.
const NEW_PORTS: u16 = 25_000;

/// How many packets are measured in one turn: in a few milliseconds, so that whatever else the machine does meets all
/// alike.
const PACKETS: u64 = 2_048;

/// The time that a turn may take.
const LIMIT: Duration = Duration::from_millis(100);

/// How many objects a transaction has while a cluster is loaded.
const OBJECTS: usize = 2_000;

/// For how many seconds conntrack knows a flow without packets: for longer than a round.
const TIMEOUTS: [&str; 2] = [
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
];

const CONNTRACK_ALONE: &str = "table inet conntrack {
  chain forward {
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
  }
}
";

/// A ruleset that counts what arrives at a pod, and drops it there: what a pod does with a packet is not measured.
fn sink() -> String {
    format!(
        "table netdev sink {{
  chain arrived {{
    type filter hook ingress device eth0 priority 0; policy accept;
    udp dport {PORT} counter drop
  }}
}}
"
    )
}

/// The kinds of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flows {
    /// Each packet begins one. They come from another node.
    New,
    /// The flows were answered. They come from another node.
    Known,
    /// A pod of the same node began one, and it was answered.
    Local,
}

impl Flows {
    pub(crate) const ALL: [Flows; 3] = [Flows::New, Flows::Known, Flows::Local];
}

/// The filter between the pods of a bed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Variant {
    pub(crate) name: String,
    /// How many policies select the receiver; none where there is nothing that knows policies.
    pub(crate) policies: Option<u32>,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.policies {
            Some(policies) => write!(f, "{} with {policies} policies", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A bed with something between its pods.
pub(crate) struct Bed {
    pub(crate) variant: Variant,
    setup: Setup,
    gateway: Host,
    server: Host,
    new: Sender,
    known: Sender,
    local: Sender,
}

enum Setup {
    Bare(Testbed),
    Deployed(Box<Deployment>),
}

/// The cluster with so many policies, as packets are measured with it.
pub(crate) fn size(policies: u32) -> Size {
    Size {
        policies,
        senders: NEW_SENDERS + KNOWN_SENDERS,
    }
}

impl Bed {
    /// Nothing between the pods.
    pub(crate) fn unfiltered(mode: Mode) -> Result<Bed> {
        Self::of(NO_FILTER, None, mode, |bed| Ok(Setup::Bare(bed)))
    }

    /// A table that asks conntrack for the state of each packet, and lets all pass.
    pub(crate) fn conntrack(mode: Mode) -> Result<Bed> {
        Self::of(CONNTRACK, None, mode, |bed| {
            feed(bed.node(0).netns(), &["nft", "-f", "-"], CONNTRACK_ALONE)?;
            Ok(Setup::Bare(bed))
        })
    }

    /// iptables and ipset, as Azure Network Policy Manager uses them.
    pub(crate) fn ipset(mode: Mode, policies: u32) -> Result<Bed> {
        let size = size(policies);
        Self::of(IPSET, Some(policies), mode, |bed| {
            let node = bed.node(0).netns();
            feed(node, &["ipset", "restore"], &npm::sets(size))?;
            feed(node, &["iptables-nft-restore"], &npm::rules(size))?;
            Ok(Setup::Bare(bed))
        })
    }

    /// Sallyport's table, made by its programs.
    pub(crate) fn sallyport(
        name: &str,
        programs: &Binaries,
        mode: Mode,
        policies: u32,
    ) -> Result<Bed> {
        Self::of(name, Some(policies), mode, |bed| {
            let deployment = deploy(bed, programs, size(policies))?;
            Ok(Setup::Deployed(Box::new(deployment)))
        })
    }

    fn of(
        name: &str,
        policies: Option<u32>,
        mode: Mode,
        fill: impl FnOnce(Testbed) -> Result<Setup>,
    ) -> Result<Bed> {
        let bed = Testbed::builder().mode(mode).build()?;
        let server = bed.add_pod(0, "bench/server", &[SERVER.into()])?;
        let local = bed.add_pod(0, "bench/local", &[LOCAL.into()])?;
        let gateway = bed.add_pod(0, "bench/gateway", &[GATEWAY.into()])?;
        if mode == Mode::Routed {
            // Or else the node would take the peers' packets for spoofed.
            let senders = [PEERS, STRANGERS];
            let senders = senders.map(|network| network.parse().expect("it is a network"));
            bed.route_behind("bench/gateway", &senders)?;
        }
        feed(server.netns(), &["nft", "-f", "-"], &sink())?;
        for timeout in TIMEOUTS {
            bed.node(0).sysctl(timeout, "600")?;
        }
        let new = class("new", peer(0).into(), NEW_SENDERS);
        let known = class("known", peer(NEW_SENDERS).into(), KNOWN_SENDERS);
        let own = class("local", LOCAL.into(), 1);
        let setup = fill(bed).with_context(|| format!("cannot set up {name}"))?;
        let bed = Bed {
            variant: Variant {
                name: name.to_owned(),
                policies,
            },
            setup,
            new: Sender::new(&gateway, SERVER.into(), &new, NEW_PORTS)?,
            known: Sender::new(&gateway, SERVER.into(), &known, 1)?,
            local: Sender::new(&local, SERVER.into(), &own, 1)?,
            gateway,
            server,
        };
        bed.check().with_context(|| bed.variant.to_string())?;
        Ok(bed)
    }

    /// Sees that a stranger's packets arrive where nothing is enforced, and nowhere else.
    fn check(&self) -> Result<()> {
        let stranger = class("stranger", STRANGER.into(), 1);
        let before = self.arrived()?;
        let sent = Sender::new(&self.gateway, SERVER.into(), &stranger, 1)?.send()?;
        let arrived = self.arrived()? - before;
        let expected = match self.variant.policies {
            Some(_) => 0,
            None => sent,
        };
        ensure!(sent > 0, "the kernel takes no packets");
        ensure!(
            arrived == expected,
            "{arrived} of {sent} packets of a stranger arrived, not {expected}"
        );
        Ok(())
    }

    /// Makes the flows that are known, and no others. Once for each round: then conntrack holds as many in each.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        let addresses = BTreeSet::from([IpAddr::from(SERVER)]);
        self.node()
            .run(|| table::open()?.flush_conntrack(|one| one.is_of(&addresses)))?;
        self.known.send()?;
        self.local.send()?;
        self.answer()
    }

    /// The cost of a packet, measured in one turn.
    pub(crate) fn measure(&mut self, flows: Flows, cpu: usize) -> Result<Cost> {
        let sender = match flows {
            Flows::New => &mut self.new,
            Flows::Known => &mut self.known,
            Flows::Local => &mut self.local,
        };
        Ok(sender.measure(cpu, PACKETS, LIMIT)?)
    }

    /// Answers every known flow.
    fn answer(&self) -> Result<()> {
        let answers = class("answers", SERVER.into(), 1);
        let known = (NEW_SENDERS..NEW_SENDERS + KNOWN_SENDERS).map(peer);
        for sender in known.chain([LOCAL]) {
            Sender::new(&self.server, sender.into(), &answers, 1)?.send()?;
        }
        Ok(())
    }

    /// How many packets have arrived at the server.
    pub(crate) fn arrived(&self) -> Result<u64> {
        let text = listing::text(self.server.netns())?;
        let counted = text.split_once("counter packets ");
        let number = counted.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        number.with_context(|| format!("nft lists no counter in {text}"))
    }

    fn node(&self) -> &Netns {
        match &self.setup {
            Setup::Bare(bed) => bed.node(0).netns(),
            Setup::Deployed(deployment) => deployment.bed.node(0).netns(),
        }
    }
}

/// Packets from some addresses to the port that policies are about.
fn class(name: &str, first: IpAddr, addresses: u32) -> Class {
    const {
        assert!(
            PORT == FLOW_PORT,
            "an answer's source port is the port asked for"
        )
    };
    Class {
        name: name.to_owned(),
        first,
        addresses,
        port: PORT,
    }
}

/// A control plane and an enforcer that enforces a cluster.
pub(crate) fn deploy(bed: Testbed, programs: &Binaries, size: Size) -> Result<Deployment> {
    // On a bridge the ports say which packets come from another node. Only a bridge needs these options, which early
    // versions do not know.
    let (interface, uplink) = match bed.mode() {
        Mode::Bridged => (
            bed.interface_of("bench/server")?,
            Some(bed.interface_of("bench/gateway")?),
        ),
        Mode::Routed => (String::new(), None),
    };
    let arguments: Vec<&str> = uplink.iter().flat_map(|name| ["--uplink", name]).collect();
    let deployment =
        Deployment::start_of(programs.clone(), bed, &[], &arguments, Streams::default())?;
    let mut api = deployment.client()?;
    let mut documents = size.documents(&interface).peekable();
    let mut revision = 0;
    while documents.peek().is_some() {
        let chunk: Vec<_> = documents.by_ref().take(OBJECTS).collect();
        revision = api.apply(vec![put(chunk.join("---\n"))])?;
    }
    // The node of the peers has no enforcer.
    api.wait_enforced_by(&Deployment::node_name(0), revision)?;
    Ok(deployment)
}
