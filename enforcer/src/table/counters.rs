//! The packets that the tables denied, as the kernel counts them. This module changes nothing.

use std::collections::BTreeMap;

use sallyport_nft::netlink::{Error, Netlink};

use crate::table::{
    BRIDGE, INET, bridge,
    frame::{self, Denial},
};

/// Reads the number of packets that were denied since both tables were made, by reason. A table that is not there adds
/// nothing.
pub fn denied(netlink: &Netlink) -> Result<BTreeMap<Denial, u64>, Error> {
    let mut denied = BTreeMap::new();
    let (inet, of_bridges) = (netlink.for_table(INET), netlink.for_table(BRIDGE));
    for chain in frame::COUNTING {
        for counter in inet.counters(chain)? {
            if let Some(why) = Denial::of(chain, &counter.comment) {
                *denied.entry(why).or_default() += counter.packets;
            }
        }
    }
    for chain in bridge::COUNTING {
        for counter in of_bridges.counters(chain)? {
            if let Some(why) = bridge::reason(chain) {
                *denied.entry(why).or_default() += counter.packets;
            }
        }
    }
    if !denied.is_empty() {
        for why in Denial::ALL {
            denied.entry(why).or_default();
        }
    }
    Ok(denied)
}
