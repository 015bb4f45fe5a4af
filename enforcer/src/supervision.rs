//! What the service manager is told (`man 3 sd_notify`): that the table is there, how the node stands, that the agent
//! lives. Where there is none, nothing happens.

use std::{future::pending, time::Duration};

use sd_notify::NotifyState;
use tokio::time::sleep;
use tracing::debug;

use crate::{
    agent::Handle,
    health::{Health, State},
};

/// Says that what the node is to enforce is in the kernel, and from then on how it stands. Runs for ever.
pub async fn report(agent: Handle, health: Health) {
    tell(&[NotifyState::Ready]);
    let mut state = health.watch();
    loop {
        let text = status(&agent, &state.borrow_and_update());
        tell(&[NotifyState::Status(&text)]);
        tokio::select! {
            Ok(()) = state.changed() => {}
            () = due() => {
                // It answers when what it does now is done.
                agent.settled().await;
                tell(&[NotifyState::Watchdog]);
            }
        }
    }
}

/// Says that the process ends of its own will.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
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
    let troubles: String = state
        .troubles
        .values()
        .map(|trouble| format!("; since {:.0}: {}", trouble.since, trouble.reason))
        .collect();
    format!("enforcing {position}{troubles}").replace('\n', "; ")
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        debug!(%error, "the service manager does not hear");
    }
}
