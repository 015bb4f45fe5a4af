//! Reads which set the rules of a chain look into, and what they counted. It changes nothing.
//!
//! Formats: `linux/netfilter/nf_tables.h`.

use std::collections::BTreeMap;

use rustables::sys;

use super::{Error, Netlink, of_table, ours};
use crate::nft::{
    bridge,
    command::TableFamily,
    encode::attributes,
    frame::{self, Denial},
    lease::{self, Slot},
};

impl Netlink {
    /// Which set the chain of the lease looks into; `None` when there is no such chain, or it is empty.
    pub fn read_lease(&self) -> Result<Option<Slot>, Error> {
        let rules = self.rules_of(lease::CHAIN)?;
        let mut sets = rules.iter().flat_map(|rule| looked_into(rule));
        Ok(sets.find_map(|name| Slot::named(&name)))
    }

    /// Whether the kernel closes the node: packets meet the chain of the lease, and the set that it looks into is empty. The
    /// kernel lists no element whose time is over.
    pub fn is_closed(&self) -> Result<bool, Error> {
        match self.read_lease()? {
            Some(slot) => Ok(self.elements(slot.name())?.is_empty()),
            None => Ok(false),
        }
    }

    /// How many packets were denied since the table was made, and why; nothing when there is no table.
    pub fn denied(&self) -> Result<BTreeMap<Denial, u64>, Error> {
        let mut denied = BTreeMap::new();
        let chains: &[&str] = match self.family {
            TableFamily::Inet => &frame::COUNTING,
            TableFamily::Bridge => &bridge::COUNTING,
        };
        for chain in chains {
            for rule in self.rules_of(chain)? {
                let why = match self.family {
                    TableFamily::Inet => Denial::of(chain, &comment(&rule)),
                    TableFamily::Bridge => bridge::reason(chain),
                };
                if let Some((why, packets)) = why.zip(counted(&rule)) {
                    *denied.entry(why).or_default() += packets;
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

    fn rules_of(&self, chain: &str) -> Result<Vec<Vec<u8>>, Error> {
        let mut which = of_table(sys::NFTA_RULE_TABLE);
        which.text(sys::NFTA_RULE_CHAIN, chain);
        // Kernels differ in which dumps they filter.
        let mut rules = ours(
            self.dump(sys::NFT_MSG_GETRULE, &which)?,
            sys::NFTA_RULE_TABLE,
        );
        rules.retain(|rule| {
            let name = attributes::find(rule, sys::NFTA_RULE_CHAIN).map(attributes::text);
            name.as_deref() == Some(chain)
        });
        Ok(rules)
    }
}

/// The data of a rule's expressions of a name.
fn expressions<'a>(rule: &'a [u8], name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    let list = attributes::find(rule, sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    attributes::read(list).filter_map(move |(_, expression)| {
        let its = attributes::find(expression, sys::NFTA_EXPR_NAME).map(attributes::text);
        (its.as_deref() == Some(name))
            .then(|| attributes::find(expression, sys::NFTA_EXPR_DATA))
            .flatten()
    })
}

/// A rule's comment; empty when it has none.
fn comment(rule: &[u8]) -> String {
    let data = attributes::find(rule, sys::NFTA_RULE_USERDATA).unwrap_or_default();
    // libnftnl: type, length, comment with its NUL.
    data.get(2..).map(attributes::text).unwrap_or_default()
}

/// How many packets a rule counted.
fn counted(rule: &[u8]) -> Option<u64> {
    let counter = expressions(rule, "counter").next()?;
    let packets = attributes::find(counter, sys::NFTA_COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

/// The sets that a rule looks into.
fn looked_into(rule: &[u8]) -> Vec<String> {
    expressions(rule, "lookup")
        .filter_map(|lookup| attributes::find(lookup, sys::NFTA_LOOKUP_SET).map(attributes::text))
        .collect()
}
