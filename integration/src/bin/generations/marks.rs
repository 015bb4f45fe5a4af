//! Owns the marks by which a leaked packet says which way it came: a rule at the beginning of each class's and group's
//! chain, and a table of its own, behind ours, that remembers the marks of what must not have passed. The product is
//! not touched: the rules are spliced into its batches, on a table that nobody owns.
//!
//! The lower half of a mark is the number of a class's chain, the upper half that of a group's.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Result, bail};
use sallyport_enforcer::table;
use sallyport_integration::scenario::traffic::ALLOWED;
use sallyport_nft::{command::Command, encode::attributes::Attributes};
use sallyport_testbed::{Netns, probe::Class};

use crate::stock;

/// Numbers of `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink.h`.
mod number {
    pub(super) const NEW_RULE: u16 =
        (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_NEWRULE) as u16;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const LIST_ELEM: u16 = 1;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const META_DREG: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const META_SREG: u16 = 3;
    pub(super) const BITWISE_SREG: u16 = 1;
    pub(super) const BITWISE_DREG: u16 = 2;
    pub(super) const BITWISE_LEN: u16 = 3;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const META_MARK: u32 = 3;
    pub(super) const REGISTER: u32 = 1;
}

/// The table of the harness, behind ours.
const WATCH: &str = "generations";

/// The comment of its rule that counts allowed packets with a mark.
const BORNE: &str = "allowed, with a mark";

/// The half of the mark for each kind of chain, by the prefix of the chains' names.
const HALVES: [(&str, u32); 4] = [("in_", 0), ("out_", 0), ("from_", 16), ("to_", 16)];

/// The chain for each number.
#[derive(Default)]
pub(crate) struct Marks {
    names: BTreeMap<(u32, u16), String>,
    last: u16,
    seen: BTreeMap<u32, u64>,
}

impl Marks {
    /// The messages that let each class's and group's chain whose rules commands write begin with a rule that marks.
    /// Those rules come after a flush, also in a chain that is new.
    pub(crate) fn rules(&mut self, commands: &[Command]) -> Vec<u8> {
        let mut messages = Vec::new();
        for command in commands {
            if let Command::FlushChain(name) = command
                && let Some((_, shift)) = HALVES.iter().find(|(begin, _)| name.starts_with(begin))
            {
                // 0 is no chain's number. After 65,535 the oldest names are forgotten.
                self.last = self.last.checked_add(1).unwrap_or(1);
                self.names.insert((*shift, self.last), name.clone());
                messages.extend(rule(name, *shift, self.last));
            }
        }
        messages
    }

    /// Makes the table that remembers the marks of denied IPv4 packets that passed ours, and counts the allowed ones
    /// that bear a mark: those show that marks are set.
    pub(crate) fn watch(netns: &Netns, classes: &[Class]) -> Result<()> {
        let mut rules = String::new();
        for class in classes {
            let IpAddr::V4(first) = class.first else {
                bail!("only IPv4 is traced");
            };
            let last = Ipv4Addr::from_bits(first.to_bits() + class.addresses - 1);
            let of = format!("ip saddr {first}-{last} udp dport {}", class.port);
            rules += &match class.name == ALLOWED {
                true => format!("{of} meta mark != 0 counter comment \"{BORNE}\"\n"),
                false => format!("{of} update @passed {{ meta mark counter }}\n"),
            };
        }
        let text = format!(
            "table inet {WATCH} {{
               set passed {{ type mark; flags dynamic; size 65535; }}
               chain passed {{
                 type filter hook forward priority 300; policy accept;
                 {rules}
               }}
             }}"
        );
        stock::script(netns, &text)
    }

    /// How many allowed packets bore a mark.
    pub(crate) fn borne(netns: &Netns) -> Result<u64> {
        let counters = stock::counters(netns, WATCH)?.into_iter();
        let borne = counters.filter(|((comment, _), _)| comment == BORNE);
        Ok(borne.map(|(_, packets)| packets).sum())
    }

    /// A line for each packet that was remembered since this was last asked.
    pub(crate) fn leaked(&mut self, netns: &Netns) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for object in stock::list(netns, &["set", "inet", WATCH, "passed"])? {
            for element in object["set"]["elem"].as_array().into_iter().flatten() {
                let element = &element["elem"];
                let (Some(mark), Some(packets)) = (
                    element["val"].as_u64(),
                    element["counter"]["packets"].as_u64(),
                ) else {
                    continue;
                };
                let (mark, before) = (mark as u32, self.seen.get(&(mark as u32)).copied());
                for _ in before.unwrap_or(0)..packets {
                    lines.push(self.line(mark));
                }
                self.seen.insert(mark, packets);
            }
        }
        Ok(lines)
    }

    fn line(&self, mark: u32) -> String {
        let name = |shift: u32, what: &str| match (mark >> shift) as u16 {
            0 => format!("no rule of a {what}'s chain"),
            number => match self.names.get(&(shift, number)) {
                Some(name) => format!("the {what}'s chain {name}"),
                None => format!("a {what}'s chain that is forgotten"),
            },
        };
        format!(
            "a packet that must not pass did, with mark {mark:#x}: it met {} and {}",
            name(0, "class"),
            name(16, "group")
        )
    }
}

/// The message that adds a rule at the beginning of a chain: `meta mark set meta mark & other half | number`.
fn rule(chain: &str, shift: u32, value: u16) -> Vec<u8> {
    use number::*;
    let mut load = Attributes::default();
    load.u32(META_DREG, REGISTER).u32(META_KEY, META_MARK);
    let data = |value: u32| {
        let mut data = Attributes::default();
        data.bytes(DATA_VALUE, &value.to_ne_bytes());
        data
    };
    let mut change = Attributes::default();
    change
        .u32(BITWISE_SREG, REGISTER)
        .u32(BITWISE_DREG, REGISTER)
        .u32(BITWISE_LEN, 4)
        .nest(BITWISE_MASK, &data(0xffff << (16 - shift)))
        .nest(BITWISE_XOR, &data(u32::from(value) << shift));
    let mut store = Attributes::default();
    store.u32(META_KEY, META_MARK).u32(META_SREG, REGISTER);
    let mut list = Attributes::default();
    for (name, data) in [("meta", &load), ("bitwise", &change), ("meta", &store)] {
        let mut expression = Attributes::default();
        expression.text(EXPR_NAME, name).nest(EXPR_DATA, data);
        list.nest(LIST_ELEM, &expression);
    }
    let mut body = Attributes::default();
    body.text(RULE_TABLE, table::INET.name)
        .text(RULE_CHAIN, chain)
        .nest(RULE_EXPRESSIONS, &list);
    // Without NLM_F_APPEND a rule comes first.
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_CREATE) as u16;
    let mut message = (20 + body.bytes.len() as u32).to_ne_bytes().to_vec();
    message.extend(NEW_RULE.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([libc::NFPROTO_INET as u8, 0, 0, 0]);
    message.extend(body.bytes);
    message
}
