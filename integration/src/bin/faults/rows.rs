//! The table of all faults: what each is called, what it needs, and who does it.

use std::time::Duration;

use anyhow::Result;
use sallyport_integration::binaries::binaries;

use crate::{
    Settings, bridged, conntrack, flows, hostile, journals, kernel, kills, machines, neighbours,
    outages, picked_up,
    scene::{self, Scene, Spec},
    streams, unlisted, upgrade,
};

/// A fault.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The fault and the question, in a line.
    pub(crate) about: &'static str,
    pub(crate) spec: Spec,
    /// The row applies edits as others do: packets that must not pass must pass.
    pub(crate) leaks: bool,
    /// Makes it happen, and checks all but the packets. Returns what else was seen.
    pub(crate) run: fn(&mut Scene, Settings) -> Result<String>,
}

const PLAIN: Spec = Spec {
    programs: binaries,
    control_plane: &[],
    enforcers: &[],
    relayed: false,
    bed: scene::bed,
};

const RELAYED: Spec = Spec {
    relayed: true,
    ..PLAIN
};

const fn row(
    name: &'static str,
    about: &'static str,
    run: fn(&mut Scene, Settings) -> Result<String>,
) -> Row {
    Row {
        name,
        about,
        spec: PLAIN,
        leaks: false,
        run,
    }
}

const UNPROTECTED: Spec = Spec {
    enforcers: &["--unprotected"],
    ..PLAIN
};

/// The length of leases in rows that have them.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

const FENCED: Spec = Spec {
    control_plane: &["--unreachable", "fence"],
    ..LEASED
};

const LEASED: Spec = Spec {
    enforcers: &["--lease", "2s"],
    ..PLAIN
};

const BRIDGED: Spec = Spec {
    bed: bridged::bed,
    ..PLAIN
};

/// The journal keeps all that is written in the course of a row.
const WHOLE_HISTORY: Spec = Spec {
    control_plane: &["--history", "1000000"],
    ..PLAIN
};

/// All programs are the landed ones.
pub(crate) const LANDED: Spec = Spec {
    programs: upgrade::landed,
    ..WHOLE_HISTORY
};

impl Row {
    const fn landed(self) -> Row {
        Row {
            spec: LANDED,
            ..self
        }
    }

    const fn fenced(self) -> Row {
        Row {
            spec: FENCED,
            ..self
        }
    }

    const fn leased(self) -> Row {
        Row {
            spec: LEASED,
            ..self
        }
    }

    const fn bridged(self) -> Row {
        Row {
            spec: BRIDGED,
            ..self
        }
    }

    const fn with_whole_history(self) -> Row {
        Row {
            spec: WHOLE_HISTORY,
            ..self
        }
    }

    const fn unprotected(self) -> Row {
        Row {
            spec: UNPROTECTED,
            ..self
        }
    }

    const fn relayed(self) -> Row {
        Row {
            spec: RELAYED,
            ..self
        }
    }

    const fn control(self) -> Row {
        Row {
            leaks: true,
            ..self
        }
    }
}

/// The rows, in the order in which they run.
pub(crate) const ROWS: &[Row] = &[
    row(
        "enforcer-killed",
        "SIGKILL of an enforcer at every system call of an update that reaches out of it; the next start finishes or undoes",
        kills::enforcer_steps,
    ),
    row(
        "enforcer-start-killed",
        "SIGKILL in the middle of an update, and again at every such call of the start that follows",
        kills::enforcer_start_steps,
    ),
    row(
        "controlplane-killed",
        "SIGKILL of the control plane at every such call from a transaction's coming until it is enforced",
        kills::control_plane_steps,
    ),
    row(
        "random-kills",
        "SIGKILL of any program at random moments under load; then API, journals and kernels are compared",
        kills::random_kills,
    )
    .with_whole_history(),
    row(
        "control-restart",
        "control: restarts that delete all rules and add them again, as others do",
        kills::restart_as_others,
    )
    .control(),
    row(
        "upgrade",
        "the landed version's control plane, then its enforcers, are replaced by these while edits are made",
        upgrade::in_order,
    )
    .landed(),
    row(
        "upgrade-killed",
        "an enforcer of the landed version is killed at every such call of an update, and these programs go on",
        upgrade::half_way,
    )
    .landed(),
    row(
        "reboot",
        "fresh network namespaces, enforcers with their journals and no control plane, and only then links",
        outages::reboot,
    ),
    row(
        "controlplane-down",
        "no control plane for a while, an enforcer that starts meanwhile, five restarts",
        outages::down,
    ),
    row(
        "controlplane-older-copy",
        "an older copy of its directory is refused by nodes, until a backup is restored",
        outages::older_copy,
    ),
    row(
        "controlplane-twice",
        "two on one directory; two behind one address",
        outages::two_at_once,
    )
    .relayed(),
    row(
        "streams-cut",
        "streams that break and bring late what was given up, under load",
        streams::cut,
    )
    .relayed(),
    row(
        "node-slow",
        "a node that is 400 ms late holds up nobody else",
        streams::slow,
    )
    .relayed(),
    row(
        "node-frozen",
        "SIGSTOP of an enforcer: its node enforces on, edits of others go on",
        streams::frozen,
    ),
    row(
        "journal-node-damaged",
        "a node's journal, flipped and cut at many offsets: whole, or moved aside whole",
        journals::node_damaged,
    ),
    row(
        "journal-node-lost",
        "a node's journal is damaged, and the control plane's snapshot takes its place",
        journals::node_resynchronised,
    ),
    row(
        "journal-cp-damaged",
        "the control plane's journal, flipped and cut at many offsets: whole, or refused",
        journals::control_plane_damaged,
    ),
    row(
        "disk-full-node",
        "no room for a node's journal: it refuses, enforces on, and goes on when there is room",
        journals::node_disk_full,
    ),
    row(
        "disk-full-cp",
        "no room for the control plane's journal: it refuses whole transactions, and goes on when there is room",
        journals::control_plane_disk_full,
    ),
    row(
        "disk-eio-node",
        "writes of a node's journal fail (EIO): it refuses, enforces on, and goes on when they do not",
        journals::node_disk_fails,
    ),
    row(
        "disk-eio-cp",
        "writes of the control plane's journal fail (EIO): it refuses, and goes on when they do not",
        journals::control_plane_disk_fails,
    ),
    row(
        "disk-read-only",
        "a node starts on a disk that cannot be written",
        journals::node_disk_read_only,
    ),
    row(
        "table-attacked",
        "others flush the ruleset and delete our table, chains and elements while edits are made",
        kernel::attacked,
    ),
    row(
        "table-unprotected",
        "the same where the kernel does not protect the table: mended within a second, and the hole is measured",
        kernel::unprotected,
    )
    .unprotected(),
    row(
        "kernel-shared",
        "another tool commits as fast as it can while edits are made",
        kernel::committers,
    ),
    row(
        "kernel-errors",
        "ENOBUFS, EINTR, ENOMEM, EBUSY, ERESTART, EMSGSIZE and lost answers at several messages of an update",
        kernel::errors,
    ),
    row(
        "kernel-tiny-buffer",
        "netlink sockets whose receive buffer holds next to nothing",
        kernel::tiny_buffer,
    ),
    row(
        "control-orphan-flushed",
        "control: others flush the ruleset while no enforcer lives, which nobody can prevent",
        kernel::orphan_flushed,
    )
    .control(),
    row(
        "bridge-sysctl-off",
        "bridge-nf-call-iptables is set to 0: said within a second and nothing counts as enforced, or set right",
        bridged::sysctl_off,
    )
    .bridged(),
    row(
        "unlisted-on-a-bridge",
        "link-local and foreign addresses, announcements, groups and tagged frames while enforcer, ports and policies change",
        unlisted::on_a_bridge,
    )
    .bridged(),
    row(
        "forged-by-a-router",
        "sources of strangers and of another node's pod, by the interface of a pod, while enforcer and control plane come and go",
        unlisted::by_a_router,
    ),
    row(
        "conntrack-full",
        "no room for connections on a node: what is denied is, known flows go on, addresses change hands",
        conntrack::full,
    ),
    row(
        "picked-up",
        "connections that conntrack picked up from their server; SIGKILL at every such call of the update that isolates it",
        picked_up::picked_up,
    ),
    row(
        "established-cut",
        "connections that are now denied, over TCP and UDP, whoever speaks: cut within 100 ms",
        flows::established,
    ),
    row(
        "address-reused",
        "an address in new hands, before anybody is told of it and after",
        flows::address_reused,
    ),
    row(
        "pod-before-policy",
        "pods that talk before anybody knows of them",
        flows::before_its_policy,
    ),
    row(
        "pod-moves",
        "a pod that moves from node to node while it talks",
        flows::moves,
    ),
    row(
        "label-races",
        "labels and policies that change places, one end of a flow denying in every state",
        flows::label_races,
    ),
    row(
        "input-huge",
        "requests that are too large, too deep, too many: refused, and others served",
        hostile::oversize,
    ),
    row(
        "input-garbage",
        "noise, half a protocol, floods of frames and silence on the port: others served",
        hostile::garbage,
    ),
    row(
        "one-name-twice",
        "two machines with one node's name: the one that answers has it, and edits go on",
        machines::one_name,
    ),
    row(
        "uninstall-under-edits",
        "a machine leaves in the middle of edits, five times: none waits for it, none calls it closed",
        machines::uninstall,
    )
    .fenced(),
    row(
        "watcher-flood",
        "1,000 watchers that read nothing: edits as fast as before, little memory",
        neighbours::watchers,
    ),
    row(
        "tenant-worst-policy",
        "the worst policy that there may be, applied and deleted by another tenant, with leases of 2 s",
        neighbours::tenant,
    )
    .leased(),
    row(
        "log-disk-full",
        "standard error of all programs is a full disk",
        neighbours::log_full,
    ),
    row(
        "log-reader-dead",
        "standard error of all programs is a pipe whose reader died, before they start and while they run",
        neighbours::log_reader_dead,
    ),
    row(
        "log-reader-stuck",
        "standard error of all programs is a pipe that is full, and that nobody reads",
        neighbours::log_reader_stuck,
    ),
];
