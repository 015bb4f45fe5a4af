//! The kernel's check of the whole table when a batch is complete: the depth to which jumps nest. This module changes
//! nothing.

use crate::table::{ChainId, Table};

/// `NFT_JUMP_STACK_SIZE`: the most chains that may be under way at once, the base chain included. Gotos count as jumps
/// do.
const DEEPEST: usize = 16;

/// Whether jumps from a base chain nest too deep, or without end. Chains that no base chain leads to are not checked.
pub(super) fn is_too_deep(table: &Table) -> bool {
    let mut depths = vec![Depth::Unknown; table.chains.len()];
    let bases = table.chain_ids.values().copied();
    bases
        .filter(|&id| table.chain(id).base.is_some())
        .any(|id| depth(table, id, &mut depths) > DEEPEST)
}

#[derive(Clone, Copy)]
enum Depth {
    Unknown,
    /// The chain is being checked. A way that comes here again goes in a circle.
    Open,
    Known(usize),
}

/// The most chains that are under way from a chain on.
fn depth(table: &Table, id: ChainId, depths: &mut [Depth]) -> usize {
    match depths[id] {
        Depth::Known(depth) => return depth,
        Depth::Open => return DEEPEST + 1,
        Depth::Unknown => depths[id] = Depth::Open,
    }
    let mut below = 0;
    for rule in table.chain(id).latest() {
        for chain in rule.chains() {
            below = below.max(depth(table, chain, depths));
        }
        for set in rule.sets() {
            for &chain in table.set(set).targets.keys() {
                below = below.max(depth(table, chain, depths));
            }
        }
    }
    let depth = (below + 1).min(DEEPEST + 1);
    depths[id] = Depth::Known(depth);
    depth
}
