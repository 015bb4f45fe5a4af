//! Reads which set the rules of a chain look into. It changes nothing.
//!
//! Formats: `linux/netfilter/nf_tables.h`.

use rustables::sys;

use super::{Error, Netlink, of_table, ours};
use crate::nft::{
    encode::attributes,
    lease::{self, Slot},
};

impl Netlink {
    /// Which set the chain of the lease looks into; `None` when there is no such chain, or it is empty.
    pub fn read_lease(&self) -> Result<Option<Slot>, Error> {
        let mut which = of_table(sys::NFTA_RULE_TABLE);
        which.text(sys::NFTA_RULE_CHAIN, lease::CHAIN);
        // Kernels differ in which dumps they filter.
        let rules = ours(
            self.dump(sys::NFT_MSG_GETRULE, &which)?,
            sys::NFTA_RULE_TABLE,
        );
        let chain = |rule: &Vec<u8>| {
            let name = attributes::find(rule, sys::NFTA_RULE_CHAIN).map(attributes::text);
            name.as_deref() == Some(lease::CHAIN)
        };
        let sets = rules
            .iter()
            .filter(|rule| chain(rule))
            .flat_map(|rule| looked_into(rule));
        Ok(sets.into_iter().find_map(|name| Slot::named(&name)))
    }
}

/// The sets that a rule looks into.
fn looked_into(rule: &[u8]) -> Vec<String> {
    let expressions = attributes::find(rule, sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let lookups = attributes::read(expressions).filter(|(_, expression)| {
        let name = attributes::find(expression, sys::NFTA_EXPR_NAME).map(attributes::text);
        name.as_deref() == Some("lookup")
    });
    lookups
        .filter_map(|(_, expression)| {
            let data = attributes::find(expression, sys::NFTA_EXPR_DATA)?;
            attributes::find(data, sys::NFTA_LOOKUP_SET).map(attributes::text)
        })
        .collect()
}
