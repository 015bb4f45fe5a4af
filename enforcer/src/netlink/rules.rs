//! Reads which set the rules of a chain look into, and what they counted. It changes nothing.
//!
//! Formats: `linux/netfilter/nf_tables.h`.

use rustables::sys;

use super::{Error, Netlink, of_table, ours};
use crate::nft::{
    encode::attributes,
    frame,
    lease::{self, Slot},
};

impl Netlink {
    /// Which set the chain of the lease looks into; `None` when there is no such chain, or it is empty.
    pub fn read_lease(&self) -> Result<Option<Slot>, Error> {
        let rules = self.rules_of(lease::CHAIN)?;
        let mut sets = rules.iter().flat_map(|rule| looked_into(rule));
        Ok(sets.find_map(|name| Slot::named(&name)))
    }

    /// How many packets were denied since the table was made; `None` when there is none.
    pub fn denied(&self) -> Result<Option<u64>, Error> {
        let rules = self.rules_of(frame::DENY)?;
        Ok(rules.iter().filter_map(|rule| counted(rule)).next_back())
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
