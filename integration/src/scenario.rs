//! The scenarios, as data: which states an endless row of edits goes through, what floods meanwhile, and which controls
//! show that the counts mean something. Carries nothing out.

mod blocks;
mod selectors;
pub mod state;
pub mod table;
pub mod traffic;
mod two_nodes;

use sallyport_testbed::probe::Class;

use state::State;

/// A row of states, and what must and must never pass through all of them.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// The subject, in a line.
    pub about: &'static str,
    /// Run without `--all`, too.
    pub basic: bool,
    /// The number of nodes.
    pub nodes: usize,
    /// Objects that one transaction changes; they count as so many edits.
    pub edits_in_one: u32,
    /// After so many states they repeat.
    period: u32,
    state: fn(u32) -> State,
    /// The floods: classes that must pass and classes that must never pass.
    pub classes: fn() -> Vec<Class>,
    /// The controls beside it.
    pub controls: &'static [Control],
}

/// The same states, brought about carelessly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Each edit as one nf_tables batch. Must leak.
    OneBatch,
    /// Each edit as two batches: the pod's rules go, the new ones come. Must leak.
    RemoveThenAdd,
    /// Each node follows its own control plane, told at the same moment. Must leak.
    Uncoordinated,
    /// Each edit as two transactions: what goes, what comes. Must lose.
    TwoTransactions,
}

impl Control {
    fn name(self) -> &'static str {
        match self {
            Control::OneBatch => "one-batch",
            Control::RemoveThenAdd => "remove-then-add",
            Control::Uncoordinated => "uncoordinated",
            Control::TwoTransactions => "two-transactions",
        }
    }
}

impl Scenario {
    /// The name of the scenario, or of one of its controls.
    pub fn name_of(&self, control: Option<Control>) -> String {
        match control {
            Some(control) => format!("{}/{}", self.name, control.name()),
            None => self.name.to_owned(),
        }
    }

    /// The state after so many transactions.
    pub fn state(&self, number: u32) -> State {
        (self.state)(number % self.period)
    }

    /// Every state that there is, in order.
    pub fn states(&self) -> impl Iterator<Item = State> {
        (0..self.period).map(self.state)
    }
}

const ONE_NODE: Scenario = Scenario {
    name: "",
    about: "",
    basic: false,
    nodes: 1,
    edits_in_one: 1,
    period: 200,
    state: blocks::edited_50,
    classes: traffic::sources,
    controls: &[Control::RemoveThenAdd],
};

const BOTH: &[Control] = &[Control::OneBatch, Control::RemoveThenAdd];

/// The scenarios, in the order in which they run.
pub const SCENARIOS: [Scenario; 13] = [
    Scenario {
        name: "blocks-50",
        about: "a policy of 50 ipBlocks is changed, deleted and created again",
        basic: true,
        controls: BOTH,
        ..ONE_NODE
    },
    Scenario {
        name: "blocks-1",
        about: "the same with 1 ipBlock",
        period: 4,
        state: blocks::edited_1,
        ..ONE_NODE
    },
    Scenario {
        name: "blocks-5",
        about: "the same with 5 ipBlocks",
        period: 20,
        state: blocks::edited_5,
        ..ONE_NODE
    },
    Scenario {
        name: "blocks-500",
        about: "the same with 500 ipBlocks",
        state: blocks::edited_500,
        ..ONE_NODE
    },
    Scenario {
        name: "recreate",
        about: "a policy is deleted, and created again with other ipBlocks",
        period: 400,
        state: blocks::recreated,
        ..ONE_NODE
    },
    Scenario {
        name: "intervals",
        about: "ipBlocks overlap, with exceptions that others allow again",
        period: 24,
        state: blocks::overlapping,
        controls: BOTH,
        ..ONE_NODE
    },
    Scenario {
        name: "ports",
        about: "ranges of ports move around one that stays shut",
        period: 240,
        state: blocks::moving_ports,
        classes: traffic::distinguished_by_port,
        ..ONE_NODE
    },
    Scenario {
        name: "egress",
        about: "50 ipBlocks that a pod may send to are edited",
        state: blocks::egress,
        classes: traffic::from_the_client,
        ..ONE_NODE
    },
    Scenario {
        name: "namespace-labels",
        about: "the labels of namespaces change, and with them which ones a policy selects",
        period: 4,
        state: selectors::namespace_labels,
        classes: traffic::peers,
        ..ONE_NODE
    },
    Scenario {
        name: "pod-labels",
        about: "the labels of pods at both ends change: which policy selects the one, and which peers it allows",
        period: 2,
        state: selectors::pod_labels,
        classes: traffic::peers,
        ..ONE_NODE
    },
    Scenario {
        name: "policy-swap",
        about: "a policy is deleted and another created in one transaction",
        period: 60,
        state: selectors::policy_swap,
        ..ONE_NODE
    },
    Scenario {
        name: "ends-swap",
        about: "two nodes, one of them late: which end of a flow denies it changes",
        nodes: 2,
        edits_in_one: 2 * traffic::FLOWS,
        period: 2,
        state: two_nodes::swapped,
        classes: traffic::flows,
        controls: &[Control::Uncoordinated],
        ..ONE_NODE
    },
    Scenario {
        name: "ends-respelt",
        about: "two nodes, one of them late: both ends go on allowing a flow, in other words",
        nodes: 2,
        edits_in_one: 8,
        period: 420,
        state: two_nodes::respelt,
        classes: traffic::flows,
        controls: &[Control::TwoTransactions],
        ..ONE_NODE
    },
];

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        net::IpAddr,
        sync::Arc,
    };

    use sallyport_policy::{Direction, NodePolicy, Protocol};

    use super::{table::compile, *};

    /// Whether every node lets a packet pass.
    fn passes(
        nodes: &BTreeMap<String, Arc<NodePolicy>>,
        source: IpAddr,
        target: IpAddr,
        port: u16,
    ) -> bool {
        let port = Some((Protocol::Udp, port));
        nodes.values().all(|node| {
            node.allows(Direction::Egress, source, target, port)
                && node.allows(Direction::Ingress, target, source, port)
        })
    }

    fn source(class: &Class, number: u32) -> IpAddr {
        match class.first {
            IpAddr::V4(first) => IpAddr::V4((first.to_bits() + number).into()),
            IpAddr::V6(first) => IpAddr::V6((first.to_bits() + u128::from(number)).into()),
        }
    }

    #[test]
    fn every_state_denies_what_must_not_pass_and_allows_what_must() {
        for scenario in SCENARIOS {
            let targets = match scenario.nodes {
                1 => traffic::SERVER,
                _ => traffic::FAR_SERVER,
            };
            for (number, state) in scenario.states().enumerate() {
                let nodes = compile(&state).unwrap();
                assert_eq!(nodes.len(), scenario.nodes);
                for class in (scenario.classes)() {
                    let target = targets
                        .into_iter()
                        .find(|target| target.is_ipv4() == class.first.is_ipv4())
                        .unwrap();
                    for address in 0..class.addresses {
                        let source = source(&class, address);
                        assert_eq!(
                            passes(&nodes, source, target, class.port),
                            class.name == traffic::ALLOWED,
                            "{} {number}: from {source} to port {}",
                            scenario.name,
                            class.port
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_transaction_changes_something_and_has_a_control() {
        for scenario in SCENARIOS {
            let name = scenario.name;
            assert!(!scenario.controls.is_empty(), "{name}");
            for number in 0..scenario.period {
                let (old, new) = (scenario.state(number), scenario.state(number + 1));
                assert_ne!(old.edits_to(&new), [], "{name}: {number}");
            }
        }
    }

    #[test]
    fn names_are_distinct() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
