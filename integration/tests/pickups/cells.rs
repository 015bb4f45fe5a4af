//! The cells: how conntrack loses a conversation, who speaks first then, which policy comes; and what is expected. Does
//! nothing.

use std::fmt;

use sallyport_testbed::{
    Family,
    probe::{Protocol, Side},
};

/// The way in which conntrack comes not to know a conversation, or might.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    /// The server's workload is deleted, and put again as it was.
    PutAgain,
    /// Conntrack is flushed.
    Flushed,
    /// The conversation is older than the enforcer, and nothing tracked it.
    Untracked,
    /// The conversation is older than the enforcer, and was tracked from its beginning.
    Tracked,
    /// Conntrack is flushed before the enforcer starts, which finds the policy there.
    Older,
}

impl Loss {
    pub(crate) const ALL: [Loss; 5] = [
        Loss::PutAgain,
        Loss::Flushed,
        Loss::Untracked,
        Loss::Tracked,
        Loss::Older,
    ];

    /// Whether conntrack's entry of the beginning is to be there afterwards: then it is no loss.
    pub(crate) fn is_survived(self) -> bool {
        matches!(self, Loss::PutAgain | Loss::Tracked)
    }

    /// When the enforcer starts.
    pub(crate) fn start(self) -> Start {
        match self {
            Loss::PutAgain | Loss::Flushed => Start::First,
            Loss::Untracked | Loss::Tracked => Start::Late,
            Loss::Older => Start::Last,
        }
    }

    /// Whether others have the node track connections.
    pub(crate) fn is_tracked_by_others(self) -> bool {
        matches!(self, Loss::Tracked | Loss::Older)
    }

    /// Whether conntrack is flushed.
    pub(crate) fn is_flushed(self) -> bool {
        matches!(self, Loss::Flushed | Loss::Older)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Loss::PutAgain => "put-again",
            Loss::Flushed => "flushed",
            Loss::Untracked => "late-untracked",
            Loss::Tracked => "late-tracked",
            Loss::Older => "picked-up-before",
        }
    }
}

/// When a node's enforcer starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Before any conversation is open.
    First,
    /// When conversations are open.
    Late,
    /// When the first has spoken, and the policies are there.
    Last,
}

/// The policy that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Policy {
    /// None: the control, and what is picked up goes on.
    Nothing,
    /// Nothing may come to the server.
    Denied,
    /// The client may come to the server's ports, and nobody else.
    Allowed,
    /// Nothing may come to the client: what the server says passes by right of the connection.
    Mirrored,
}

impl Policy {
    pub(crate) const ALL: [Policy; 4] = [
        Policy::Nothing,
        Policy::Denied,
        Policy::Allowed,
        Policy::Mirrored,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Policy::Nothing => "nothing",
            Policy::Denied => "denied",
            Policy::Allowed => "allowed",
            Policy::Mirrored => "mirrored",
        }
    }
}

/// One conversation's story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) loss: Loss,
    pub(crate) policy: Policy,
    pub(crate) protocol: Protocol,
    /// The side that speaks after the loss, if any does.
    pub(crate) first: Option<Side>,
    pub(crate) family: Family,
    /// The side that speaks first once the policy is enforced.
    pub(crate) then: Side,
}

impl Cell {
    /// All the conversations of a pair of pods.
    pub(crate) fn of_pair(loss: Loss, policy: Policy) -> Vec<Cell> {
        let mut cells = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for first in [Some(Side::Server), Some(Side::Client), None] {
                for family in [Family::V4, Family::V6] {
                    for then in [Side::Client, Side::Server] {
                        cells.push(Cell {
                            loss,
                            policy,
                            protocol,
                            first,
                            family,
                            then,
                        });
                    }
                }
            }
        }
        cells
    }

    /// The client of conntrack's entry after the first side has spoken, as it is expected. `None`: there is no entry.
    pub(crate) fn begun_by(&self) -> Option<Side> {
        match self.loss.is_survived() {
            true => Some(Side::Client),
            false => self.first,
        }
    }

    /// The expected outcome of a conversation over TCP.
    pub(crate) fn expected(&self) -> Expected {
        match (self.policy, self.loss.is_survived(), self.first) {
            (Policy::Nothing, ..) => Expected::GoesOn,
            (Policy::Denied, true, _) => Expected::Silence,
            (Policy::Denied, false, _) => Expected::Reset,
            (_, true, _) => Expected::GoesOn,
            // The connection was picked up in the direction that the policy allows, or the application connects again.
            (Policy::Allowed, false, Some(_)) => Expected::GoesOnOrReset,
            (Policy::Allowed, false, None) | (Policy::Mirrored, false, _) => Expected::Reset,
        }
    }

    /// Whether a new connection over TCP is to be open.
    pub(crate) fn connects_again(&self) -> bool {
        self.policy != Policy::Denied
    }

    /// The datagrams that must arrive, of those that the sides send in turn, beginning with `then`. `None` leaves it
    /// open.
    pub(crate) fn datagrams(&self) -> [Option<bool>; 3] {
        match (self.policy, self.then) {
            // The flow that the client began is denied in both directions.
            (Policy::Denied, _) if self.begun_by() == Some(Side::Client) => [Some(false); 3],
            // Datagrams of the server are a flow of its own, of which the client's are answers.
            (Policy::Denied, Side::Client) => [Some(false), Some(true), Some(true)],
            // Whether the flow was begun by the client nothing says any more.
            (Policy::Mirrored, Side::Server) => [None, Some(true), Some(true)],
            _ => [Some(true); 3],
        }
    }

    /// The title, without policy, family and order.
    pub(crate) fn title(&self) -> String {
        format!(
            "{}, {}, {}",
            self.loss.name(),
            self.protocol,
            first(self.first)
        )
    }

    /// Family and order.
    pub(crate) fn variant(&self) -> String {
        format!("{}, {} then", self.family, side(self.then))
    }
}

pub(crate) fn first(first: Option<Side>) -> String {
    first.map_or_else(
        || "both silent".into(),
        |one| format!("{} first", side(one)),
    )
}

pub(crate) fn side(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Server => "server",
    }
}

/// The expected outcome of a connection over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// All arrives, at once.
    GoesOn,
    /// Nothing arrives, and each side is told so as soon as it speaks.
    Reset,
    /// Nothing arrives, and nobody is told.
    Silence,
    /// Either of them.
    GoesOnOrReset,
}

/// The observed outcome of a connection over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    GoesOn,
    Reset,
    Silence,
    /// Something else, in words.
    Mixed(String),
}

impl Expected {
    pub(crate) fn is(self, fate: &Fate) -> bool {
        match fate {
            Fate::GoesOn => matches!(self, Expected::GoesOn | Expected::GoesOnOrReset),
            Fate::Reset => matches!(self, Expected::Reset | Expected::GoesOnOrReset),
            Fate::Silence => self == Expected::Silence,
            Fate::Mixed(_) => false,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Expected::GoesOn => "to go on",
            Expected::Reset => "to be reset on both sides",
            Expected::Silence => "to be dropped in silence",
            Expected::GoesOnOrReset => "to go on, or to be reset on both sides",
        })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fate::GoesOn => "goes on",
            Fate::Reset => "is reset on both sides",
            Fate::Silence => "is dropped in silence",
            Fate::Mixed(words) => words,
        })
    }
}
