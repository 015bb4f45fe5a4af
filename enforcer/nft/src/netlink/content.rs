//! Lists the whole content of the table. This module changes nothing.
//!
//! Formats: `linux/netfilter/nf_tables.h`.

use std::collections::{BTreeMap, BTreeSet};

use rustables::sys;

use super::{Error, Netlink, requests::Request};
use crate::{
    command::{self, Base},
    content::{Hook, Observed, ObservedChain, ObservedRule, ObservedSet},
    decode,
    encode::{
        self,
        attributes::{self, Attributes},
    },
};

/// The number of reads that commits of other processes may disturb, before the last read is used as it is. A caller
/// commits its decision for the generation of that read only.
const TRIES: usize = 8;

impl Netlink {
    /// The whole content of the table, of one generation.
    pub fn content(&self) -> Result<Observed, Error> {
        let mut observed = self.content_once()?;
        for _ in 1..TRIES {
            if self.generation()? == observed.generation {
                break;
            }
            observed = self.content_once()?;
        }
        Ok(observed)
    }

    /// Counts the commits in this network namespace, of all processes.
    pub fn generation(&self) -> Result<u64, Error> {
        let kind = (sys::NFNL_SUBSYS_NFTABLES as u16) << 8 | sys::NFT_MSG_GETGEN as u16;
        let request = Request::new(kind, 0, libc::AF_UNSPEC as u8, &Attributes::default());
        let body = self.one(request, sys::NFT_MSG_NEWGEN)?;
        let id = attributes::find(&body, sys::NFTA_GEN_ID).and_then(attributes::number);
        id.map(u64::from)
            .ok_or(Error::Malformed("a generation without a number"))
    }

    fn content_once(&self) -> Result<Observed, Error> {
        let generation = self.generation()?;
        let Some(flags) = self.table_flags()? else {
            return Ok(Observed {
                generation,
                ..Observed::default()
            });
        };
        let mut chains: BTreeMap<String, ObservedChain> = BTreeMap::new();
        for chain in self.chains()? {
            let hook = hook(&chain);
            let rules = Vec::new();
            chains.insert(
                text(&chain, sys::NFTA_CHAIN_NAME),
                ObservedChain { hook, rules },
            );
        }
        for rule in self.dump_of_table(sys::NFT_MSG_GETRULE, sys::NFTA_RULE_TABLE)? {
            let spelling = self.spell(&rule)?;
            let handle = attributes::find(&rule, sys::NFTA_RULE_HANDLE)
                .and_then(|value| value.try_into().ok())
                .map(u64::from_be_bytes)
                .ok_or(Error::Malformed("a rule without a handle"))?;
            if let Some(chain) = chains.get_mut(&text(&rule, sys::NFTA_RULE_CHAIN)) {
                chain.rules.push(ObservedRule { handle, spelling });
            }
        }
        let mut sets = BTreeMap::new();
        for set in self.sets()? {
            let name = text(&set, sys::NFTA_SET_NAME);
            if is_anonymous(&set) {
                continue;
            }
            let kind = decode::set_kind(&set);
            let elements = match kind {
                Some(kind) => self.elements(&name, kind)?,
                None => Some(BTreeSet::new()),
            };
            sets.insert(name, ObservedSet { kind, elements });
        }
        Ok(Observed {
            generation,
            flags: Some(flags),
            chains,
            sets,
        })
    }

    fn spell(&self, rule: &[u8]) -> Result<String, Error> {
        let list = attributes::find(rule, sys::NFTA_RULE_EXPRESSIONS).unwrap_or_default();
        let mut failed = None;
        let spelling = encode::spell(list, |set| {
            if !set.starts_with("__") {
                return None;
            }
            self.described_elements(set)
                .map_err(|error| failed = Some(error))
                .ok()
        });
        failed.map_or(Ok(spelling), Err)
    }
}

fn text(body: &[u8], attribute: u16) -> String {
    attributes::find(body, attribute)
        .map(attributes::text)
        .unwrap_or_default()
}

fn number(body: &[u8], attribute: u16) -> Option<u32> {
    attributes::find(body, attribute).and_then(attributes::number)
}

fn is_anonymous(set: &[u8]) -> bool {
    number(set, sys::NFTA_SET_FLAGS).unwrap_or(0) & sys::NFT_SET_ANONYMOUS != 0
}

/// The caller of a chain.
fn hook(chain: &[u8]) -> Hook {
    let Some(hook) = attributes::find(chain, sys::NFTA_CHAIN_HOOK) else {
        return Hook::None;
    };
    let called = match number(hook, sys::NFTA_HOOK_HOOKNUM).map(u32::cast_signed) {
        Some(libc::NF_INET_PRE_ROUTING) => Some(command::Hook::Prerouting),
        Some(libc::NF_INET_FORWARD) => Some(command::Hook::Forward),
        _ => None,
    };
    let called = called.filter(|_| text(chain, sys::NFTA_CHAIN_TYPE) == "filter");
    let priority = number(hook, sys::NFTA_HOOK_PRIORITY).map(u32::cast_signed);
    let policy = number(chain, sys::NFTA_CHAIN_POLICY).map(u32::cast_signed);
    let base = called.zip(priority);
    match base.map(|(hook, priority)| Base { hook, priority }) {
        Some(base) if policy == Some(libc::NF_ACCEPT) => Hook::Base(base),
        Some(base) => Hook::Dropping(base),
        None => Hook::Other,
    }
}
