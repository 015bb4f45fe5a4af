//! The agent's thread: takes one update after the other, cleans up when nothing comes, and says what the node holds.
//! It changes nothing itself.

use std::{
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use sallyport_proto::{Position, Update};
use tokio::sync::{oneshot, watch};

use super::{Agent, Refusal, StartError};
use crate::{
    journal::{self, Journal},
    netlink::Netlink,
    nft::render::Options,
};

/// How long nothing must happen before what is left behind is deleted.
const IDLE: Duration = Duration::from_millis(100);

/// How long to wait for the kernel to see that the enforcer before this one is dead.
const ORPHAN_PATIENCE: Duration = Duration::from_millis(500);

/// How many objects may be left behind before they are deleted though updates keep coming.
const GARBAGE_MAX: usize = 500;

struct Request {
    update: Update,
    reply: oneshot::Sender<Result<(), Refusal>>,
}

/// A way to the agent, which runs on a thread of its own until every handle is gone.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    window: watch::Receiver<Vec<Position>>,
}

impl Handle {
    /// The versions that the node holds, oldest first.
    pub fn window(&self) -> Vec<Position> {
        self.window.borrow().clone()
    }

    /// Applies an update: when this returns `Ok` it is in the journal and in the kernel.
    pub async fn apply(&self, update: Update) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request { update, reply })
            .expect("the agent runs as long as there are handles");
        answer.await.expect("the agent answers every request")
    }
}

/// Starts the agent: brings journal and kernel together without a packet noticing, then waits for updates.
pub fn start(data_dir: &Path, options: Options) -> Result<Handle, StartError> {
    let netlink = Netlink::open()?;
    netlink.await_orphan(ORPHAN_PATIENCE)?;
    let (journal, recovered, _) = journal::open(data_dir)?;
    let agent = Agent::start(netlink, journal, recovered, options)?;
    let (requests, queue) = mpsc::channel();
    let (said, window) = watch::channel(agent.window());
    thread::Builder::new()
        .name("agent".into())
        .spawn(move || run(agent, &queue, &said))
        .expect("a thread can be started");
    Ok(Handle { requests, window })
}

fn run(
    mut agent: Agent<Netlink, Journal>,
    queue: &mpsc::Receiver<Request>,
    said: &watch::Sender<Vec<Position>>,
) {
    loop {
        let request = if agent.left_behind() == 0 {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(IDLE)
        };
        match request {
            Ok(Request { update, reply }) => {
                let result = agent.apply(update);
                said.send_replace(agent.window());
                // Who asked may have gone.
                let _ = reply.send(result);
            }
            Err(RecvTimeoutError::Timeout) => agent.clean(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if agent.left_behind() > GARBAGE_MAX {
            agent.clean();
        }
    }
}
