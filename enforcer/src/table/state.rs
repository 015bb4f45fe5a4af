//! The table of family inet as the kernel lists it, in the terms of this crate: its stamp, its lease, its interfaces.
//! This module changes nothing.

use std::collections::BTreeSet;

use sallyport_nft::{
    command::{Element, SetKind},
    kernel::Kernel,
    netlink::{Error, Outline},
};

use crate::table::{
    lease::{self, Slot},
    ports::{self, Ports},
    stamp::{self, StampState},
};

/// The table as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableState {
    /// The names of the table's objects.
    pub outline: Outline,
    /// The content of the table's stamp set.
    pub stamp_state: StampState,
    /// The set that the chain of the lease looks up.
    pub lease: Option<Slot>,
    /// The interfaces of workloads in the table's sets.
    pub ports: Ports,
}

/// Reads the table; `None` when there is none.
pub fn read(kernel: &mut impl Kernel) -> Result<Option<TableState>, Error> {
    let Some(outline) = kernel.outline()? else {
        return Ok(None);
    };
    Ok(Some(TableState {
        stamp_state: read_stamp(kernel)?,
        lease: read_lease(kernel)?,
        ports: read_ports(kernel, &outline.sets)?,
        outline,
    }))
}

/// Reads the stamp. The stamp is missing where there is no table, or no set of the stamp in it.
pub fn read_stamp(kernel: &mut impl Kernel) -> Result<StampState, Error> {
    let elements = kernel.elements(stamp::SET, SetKind::Numbers)?;
    let notes = elements
        .into_iter()
        .flatten()
        .filter_map(|element| match element {
            Element::Number(number, comment) => Some((number, comment)),
            _ => None,
        });
    Ok(stamp::read(notes))
}

/// Reads which set the chain of the lease looks up; `None` when there is no such chain, or the chain is empty.
pub fn read_lease(kernel: &mut impl Kernel) -> Result<Option<Slot>, Error> {
    let sets = kernel.lookups(lease::CHAIN)?;
    Ok(sets.iter().find_map(|name| Slot::named(name)))
}

/// Whether the kernel closes the node: packets meet the chain of the lease, and the set that the chain looks up is
/// empty. The kernel lists no element whose time is over.
pub fn is_closed(kernel: &mut impl Kernel) -> Result<bool, Error> {
    let Some(slot) = read_lease(kernel)? else {
        return Ok(false);
    };
    let leases = kernel.elements(slot.name(), SetKind::Families)?;
    Ok(leases.is_some_and(|leases| leases.is_empty()))
}

/// Reads the interfaces of workloads. A table of an earlier enforcer may lack some of the sets.
fn read_ports(kernel: &mut impl Kernel, sets: &BTreeSet<String>) -> Result<Ports, Error> {
    let mut all = BTreeSet::new();
    for (set, kind) in ports::kinds() {
        if sets.contains(&set) {
            let elements = kernel.elements(&set, kind)?.unwrap_or_default();
            all.extend(elements.into_iter().map(|element| (set.clone(), element)));
        }
    }
    Ok(Ports::of(all))
}
