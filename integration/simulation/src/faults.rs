//! The faults of a run: kind, time, duration. They are drawn before the run begins.

use nix::errno::Errno;
use rand::{RngExt, rngs::StdRng};
use sallyport_nft_fake as fake;

use crate::{Time, judge::Violation, machine::Mishap, milliseconds, schedule::Event, world::World};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// An enforcer is killed.
    Kill(usize),
    /// Something happens to one of an enforcer's next operations.
    Mishap(usize, u32, Mishap),
    /// A machine loses its power.
    Reboot(usize),
    /// An enforcer is frozen for so long.
    Freeze(usize, Time),
    /// A stream breaks.
    Break(usize),
    /// A node and the control plane do not reach each other for so long.
    Partition(usize, Time),
    /// The control plane dies.
    KillControl,
}

/// A random fault.
pub(crate) fn random(rng: &mut StdRng, nodes: usize) -> Fault {
    let node = rng.random_range(0..nodes);
    let long = |rng: &mut StdRng| {
        let most = [30, 300, 1_500][rng.random_range(0..3)];
        rng.random_range(milliseconds(1)..milliseconds(most))
    };
    match rng.random_range(0..100) {
        0..12 => Fault::Kill(node),
        12..45 => {
            let mishap = match rng.random_range(0..6) {
                0 | 1 => Mishap::DiesBefore,
                2 | 3 => Mishap::DiesAfter,
                _ => Mishap::Fails(kernel_fault(rng)),
            };
            Fault::Mishap(node, rng.random_range(0..7), mishap)
        }
        45..55 => Fault::Reboot(node),
        55..68 => Fault::Freeze(node, long(rng)),
        68..78 => Fault::Break(node),
        78..88 => Fault::Partition(node, long(rng)),
        _ => Fault::KillControl,
    }
}

fn kernel_fault(rng: &mut StdRng) -> fake::Fault {
    match rng.random_range(0..4) {
        0 => fake::Fault::Socket(Errno::ENOBUFS),
        1 => fake::Fault::Refused(Errno::ENOMEM),
        2 => fake::Fault::AnswerLost,
        _ => fake::Fault::BatchLost,
    }
}

impl World {
    /// Something goes wrong.
    pub(crate) fn go_wrong(&mut self, fault: Fault) -> Result<(), Violation> {
        self.note(|| format!("fault: {fault:?}"));
        let now = self.schedule.now;
        match fault {
            Fault::Kill(node) if self.nodes[node].agent.is_some() => self.kill_node(node),
            Fault::Kill(_) => {}
            Fault::Mishap(node, after, mishap) => {
                let machine = &self.nodes[node].machine;
                machine.borrow_mut().plan_mishap(after, mishap);
            }
            Fault::Reboot(node) => return self.reboot(node),
            Fault::Freeze(node, long) => {
                self.nodes[node].frozen_until = now + long;
                self.schedule.after(long, 0, Event::Thaws(node));
            }
            Fault::Break(node) => self.disconnect(node),
            Fault::Partition(node, long) => {
                self.nodes[node].unreachable_until = now + long;
                self.disconnect(node);
            }
            Fault::KillControl => self.kill_control(),
        }
        Ok(())
    }

    fn disconnect(&mut self, node: usize) {
        if let Some(stream) = self.nodes[node].stream {
            self.break_stream(stream);
        }
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm_down(&mut self) {
        self.note(|| "from now on nothing goes wrong".into());
        self.calm = true;
        self.network.calm();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            node.machine.borrow_mut().calm();
            node.unreachable_until = 0;
            node.frozen_until = 0;
            self.schedule.after(0, 0, Event::Thaws(index));
        }
    }
}
