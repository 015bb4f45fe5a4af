//! Lists the flowtables of the network namespace, again and again.

use sallyport_nft::netlink::{Error, Flowtables, Netlink};
use tracing::warn;

use super::Places;
use crate::table;

/// The last listing, if there was one, and the socket that was asked by.
#[derive(Default)]
pub(super) struct Lister {
    netlink: Option<Netlink>,
    last: Option<Flowtables>,
    fails: bool,
}

impl Lister {
    /// Lists them. While that fails the last listing holds.
    pub(super) async fn list(&mut self) {
        match self.ask().await {
            Ok(listed) => (self.last, self.fails) = (Some(listed), false),
            Err(error) => {
                self.netlink = None;
                if !std::mem::replace(&mut self.fails, true) {
                    warn!(
                        %error,
                        "cannot list the flowtables of the node: traffic in a flowtable may bypass policy unnoticed"
                    );
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<Flowtables, Error> {
        let netlink = match &self.netlink {
            Some(netlink) => netlink.clone(),
            // In the network namespace of this thread.
            None => table::open()?,
        };
        self.netlink = Some(netlink.clone());
        // The kernel answers at once; if it did not, the thread would wait.
        let listed = tokio::task::spawn_blocking(move || netlink.flowtables()).await;
        listed.expect("to list flowtables does not panic")
    }

    /// Makes the last listing that of the places. Returns whether they had another.
    pub(super) fn write(&self, places: &mut Places) -> bool {
        match &self.last {
            Some(last) if places.flowtables != *last => {
                places.flowtables = last.clone();
                true
            }
            _ => false,
        }
    }
}
