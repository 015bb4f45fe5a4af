//! The notifications to the service manager (`man 3 sd_notify`): that the table is there, how the node stands, that the
//! agent lives. Without a service manager nothing happens. A thread of its own sends them, since the manager's socket
//! blocks while it is full: a manager that does not read holds nothing else up.

use std::{
    future::pending,
    sync::{
        OnceLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use sallyport_proto::wire::trouble::Kind;
use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::debug;

use crate::{
    agent::Handle,
    health::{Health, State},
};

/// Says that what the node is to enforce is in the kernel, and from then on how it stands. Runs for ever.
pub async fn report(agent: Handle, health: Health) {
    notify(NotifyState::Ready, None);
    let mut state = health.watch();
    loop {
        let text = status(&agent, &state.borrow_and_update());
        notify(NotifyState::Status(&text), None);
        tokio::select! {
            Ok(()) = state.changed() => {}
            () = due() => {
                // The agent answers when its present work is done.
                agent.wait_idle().await;
                notify(NotifyState::Watchdog, None);
            }
        }
    }
}

/// Says that the process ends of its own will.
pub fn stopping() {
    notify(NotifyState::Stopping, Some(PATIENCE));
}

/// Returns when it is time to show a sign of life: three times in the time that the manager allows.
async fn due() {
    match sd_notify::watchdog_enabled() {
        Some(patience) => sleep((patience / 3).max(Duration::from_millis(100))).await,
        None => pending().await,
    }
}

fn status(agent: &Handle, state: &State) -> String {
    let position = match agent.window().last() {
        Some(position) => position.to_string(),
        None => "nothing yet".to_owned(),
    };
    let conditions: String = state
        .conditions
        .values()
        .map(|condition| format!("; since {:.0}: {}", condition.since, condition.reason))
        .collect();
    let how = match state.conditions.contains_key(&Kind::NotJudged) {
        true => "not judging all traffic by",
        false => "enforcing",
    };
    let unjudged = match state.unjudged.evading() {
        0 => String::new(),
        count => format!("; the traffic of {count} addresses of workloads bypasses policy"),
    };
    format!("{how} {position}{conditions}{unjudged}").replace('\n', "; ")
}

/// Messages that wait for a manager that does not read. READY=1 is the first, so that it is never the one dropped.
const QUEUE: usize = 16;

/// The longest wait at the end of the program for the manager to take the queued messages.
const PATIENCE: Duration = Duration::from_millis(200);

/// A message, and who waits until it is sent.
type Message = (String, Option<SyncSender<()>>);

/// Queues a notification for the service manager, if the queue has room. With a patience it waits so long for it to be
/// sent.
fn notify(what: NotifyState<'_>, patience: Option<Duration>) {
    static QUEUED: OnceLock<SyncSender<Message>> = OnceLock::new();
    let queue = QUEUED.get_or_init(|| {
        let (queue, queued) = sync_channel::<Message>(QUEUE);
        // Without the thread the notifications stay queued: the manager gets none, and the node enforces.
        let _ = thread::Builder::new()
            .name("notify".to_owned())
            .spawn(move || {
                for (text, _sent) in queued {
                    if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&text)]) {
                        debug!(%error, "cannot notify the service manager");
                    }
                }
            });
        queue
    });
    let (sent, done) = sync_channel(0);
    match queue.try_send((what.to_string(), patience.map(|_| sent))) {
        Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
            debug!("dropped a notification: the service manager does not read its socket");
        }
        Ok(()) => {
            if let Some(patience) = patience {
                let _ = done.recv_timeout(patience);
            }
        }
    }
}
