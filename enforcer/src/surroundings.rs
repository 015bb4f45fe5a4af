//! Forwards the node's links and routes to the agent. It decides nothing.

use tokio::sync::watch;
use tracing::{error, info};

use crate::{
    agent::Handle,
    places::{self, Listed, Places},
};

/// Forwards the node's links and routes to the agent, for ever. While they cannot be listed the agent keeps the last.
pub async fn watch(agent: Handle) {
    let (known, listed) = watch::channel(Ok(Places::default()));
    tokio::select! {
        () = places::follow(agent.guarded_addresses(), known) => {}
        () = forward(agent, listed) => {}
    }
}

async fn forward(agent: Handle, mut listed: watch::Receiver<Listed>) {
    let mut fails = false;
    while listed.changed().await.is_ok() {
        let places = listed.borrow_and_update().clone();
        match places {
            Ok(places) => {
                if std::mem::take(&mut fails) {
                    info!("the network interfaces and routes can be listed again");
                }
                // The agent reports its errors itself.
                let _ = agent.set_places(places).await;
            }
            Err(error) if !std::mem::replace(&mut fails, true) => {
                error!(%error, "cannot list the network interfaces and routes: the enforcer misses their changes");
            }
            Err(_) => {}
        }
    }
}
