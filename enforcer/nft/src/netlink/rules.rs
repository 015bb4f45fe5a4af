//! Lists the sets that the rules of a chain look up, and the packets that the rules counted. This module changes
//! nothing.
//!
//! Formats: `linux/netfilter/nf_tables.h`.

use rustables::sys;

use super::{Error, Netlink};
use crate::encode::attributes;

/// The counter of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The comment of the rule; empty when it has none.
    pub comment: String,
    /// The number of packets that the rule counted since it was made.
    pub packets: u64,
}

impl Netlink {
    /// The names of the sets and maps that the rules of a chain look up, in the order of the rules, without anonymous
    /// ones. A chain that is not there has none.
    pub fn lookups(&self, chain: &str) -> Result<Vec<String>, Error> {
        let rules = self.rules_of(chain)?;
        let mut sets: Vec<String> = rules.iter().flat_map(|rule| looked_up(rule)).collect();
        sets.retain(|set| !set.starts_with("__"));
        Ok(sets)
    }

    /// The counters of the rules of a chain that have one. A chain that is not there has none.
    pub fn counters(&self, chain: &str) -> Result<Vec<Counter>, Error> {
        let rules = self.rules_of(chain)?;
        let counters = rules.iter().filter_map(|rule| {
            Some(Counter {
                packets: counted(rule)?,
                comment: comment(rule),
            })
        });
        Ok(counters.collect())
    }

    fn rules_of(&self, chain: &str) -> Result<Vec<Vec<u8>>, Error> {
        let mut which = self.named(sys::NFTA_RULE_TABLE);
        which.text(sys::NFTA_RULE_CHAIN, chain);
        let rules = self.dump(sys::NFT_MSG_GETRULE, &which)?;
        let mut rules = self.only_of_table(rules, sys::NFTA_RULE_TABLE);
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

/// The number of packets that a rule counted.
fn counted(rule: &[u8]) -> Option<u64> {
    let counter = expressions(rule, "counter").next()?;
    let packets = attributes::find(counter, sys::NFTA_COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

/// The sets that a rule looks up.
fn looked_up(rule: &[u8]) -> Vec<String> {
    expressions(rule, "lookup")
        .filter_map(|lookup| attributes::find(lookup, sys::NFTA_LOOKUP_SET).map(attributes::text))
        .collect()
}
