//! Spells rules by their effect, so that an encoded rule can be compared with a rule that the kernel lists. This module
//! decides nothing.
//!
//! A kernel lists more than the commands had: counts, defaults, and the names that it gave to anonymous sets. The
//! kernel also lists attributes in another order, and flags nested ones otherwise. So a spelling has its attributes in
//! order, none that is zero, and constant sets by their elements.

use std::{collections::BTreeMap, fmt::Write as _};

use rustables::sys;

use crate::{
    command::{Rule, TableFamily},
    encode::{
        attributes::{self, Attributes},
        expressions::Expressions,
    },
};

/// The spelling of a rule of a table of a family.
pub fn spelling(family: TableFamily, rule: &Rule) -> String {
    let (mut expressions, mut sets) = (Expressions::of(family), Vec::new());
    for condition in &rule.matches {
        expressions.condition(condition, &mut |anonymous| {
            let (name, _, elements) = anonymous.describe();
            sets.push(elements);
            (name, sets.len() as u32)
        });
    }
    if rule.counter {
        expressions.counter();
    }
    if let Some(verdict) = &rule.verdict {
        expressions.verdict(verdict);
    }
    // The sets are in the order in which they were made, which is the order in which the rule names them.
    let mut sets = sets.into_iter();
    spell(&expressions.list.bytes, |name| {
        let elements = name.starts_with("__").then(|| sets.next()).flatten()?;
        Some(
            elements
                .into_iter()
                .map(|one: Attributes| one.bytes)
                .collect(),
        )
    })
}

/// The spelling of a list of expressions. `anonymous` returns the elements of a set by its name, if the set belongs to
/// the rule. `spell` calls `anonymous` in the order in which the rule names the sets.
pub fn spell(list: &[u8], mut anonymous: impl FnMut(&str) -> Option<Vec<Vec<u8>>>) -> String {
    let mut text = String::new();
    for (_, expression) in attributes::read(list) {
        let name = attributes::find(expression, sys::NFTA_EXPR_NAME).map(attributes::text);
        let name = name.unwrap_or_default();
        let data = attributes::find(expression, sys::NFTA_EXPR_DATA).unwrap_or_default();
        let _ = write!(text, "[{name}");
        // Counts are no part of the desired rule.
        if name != "counter" {
            let sorted: BTreeMap<u16, &[u8]> = attributes::read(data).collect();
            for (kind, value) in sorted {
                attribute(&mut text, &name, kind, value, &mut anonymous);
            }
        }
        text.push(']');
    }
    text
}

fn attribute(
    text: &mut String,
    expression: &str,
    kind: u16,
    value: &[u8],
    anonymous: &mut impl FnMut(&str) -> Option<Vec<Vec<u8>>>,
) {
    let said = match (expression, kind) {
        ("lookup", sys::NFTA_LOOKUP_SET_ID) => return,
        ("lookup", sys::NFTA_LOOKUP_SET) => {
            let name = attributes::text(value);
            match anonymous(&name) {
                Some(elements) => constant_set(&elements),
                None => format!("@{name}"),
            }
        }
        ("immediate", sys::NFTA_IMMEDIATE_DATA)
        | ("cmp", sys::NFTA_CMP_DATA)
        | ("range", sys::NFTA_RANGE_FROM_DATA | sys::NFTA_RANGE_TO_DATA)
        | ("bitwise", sys::NFTA_BITWISE_MASK | sys::NFTA_BITWISE_XOR) => data(value),
        _ if value.iter().all(|&byte| byte == 0) => return,
        _ => hex(value),
    };
    let _ = write!(text, " {kind}={said}");
}

/// A value or a verdict.
fn data(value: &[u8]) -> String {
    if let Some(verdict) = attributes::find(value, sys::NFTA_DATA_VERDICT) {
        let code = attributes::find(verdict, sys::NFTA_VERDICT_CODE).map(hex);
        let chain = attributes::find(verdict, sys::NFTA_VERDICT_CHAIN).map(attributes::text);
        return format!("{}>{}", code.unwrap_or_default(), chain.unwrap_or_default());
    }
    attributes::find(value, sys::NFTA_DATA_VALUE).map_or_else(|| "?".into(), hex)
}

/// The elements of a constant set, whose order means nothing.
fn constant_set(elements: &[Vec<u8>]) -> String {
    let spell = |element: &Vec<u8>| {
        let key = attributes::find(element, sys::NFTA_SET_ELEM_KEY);
        let key = key.and_then(|key| attributes::find(key, sys::NFTA_DATA_VALUE));
        let flags = attributes::find(element, sys::NFTA_SET_ELEM_FLAGS)
            .and_then(attributes::number)
            .unwrap_or(0);
        let verdict = attributes::find(element, sys::NFTA_SET_ELEM_DATA).map(data);
        format!(
            "{}/{flags}:{}",
            key.map(hex).unwrap_or_default(),
            verdict.unwrap_or_default()
        )
    };
    let mut spelt: Vec<String> = elements.iter().map(spell).collect();
    spelt.sort_unstable();
    format!("{{{}}}", spelt.join(","))
}

fn hex(value: &[u8]) -> String {
    value.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
