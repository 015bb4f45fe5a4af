//! Names of kernel objects. A name has a readable part, as far as an nft identifier can hold it, and a suffix that
//! makes the name unique.

use sallyport_policy::{Class, ClassId, Direction, GroupId, PeerGroup};

use sallyport_nft::command::Family;

sallyport_policy::counters! {
    /// Counts the updates that a node applied. The birth of a group is the update that made its kernel sets.
    pub struct UpdateSeq;
}

/// The most bytes of a description in a name. The kernel takes 255 for the whole name, but people read less.
const READABLE: usize = 48;

/// The name that a group's sets and chains are built from. Two lives of one group have two names, so that objects in
/// use and objects in preparation never meet.
pub fn group(id: GroupId, group: &PeerGroup, birth: UpdateSeq) -> String {
    let id = id.to_string();
    format!(
        "{}-{}-{birth}",
        identifier(&group.spec.description),
        &id[..8]
    )
}

/// The set of a group's single addresses.
pub fn group_addresses(group: &str, family: Family) -> String {
    format!("{group}.ip{}", family.digit())
}

/// The set of a group's ranges.
pub fn group_ranges(group: &str, family: Family) -> String {
    format!("{group}.net{}", family.digit())
}

/// The chain that lets a group's peers through, in a direction.
pub fn group_chain(direction: Direction, group: &str) -> String {
    match direction {
        Direction::Ingress => format!("from_{group}"),
        Direction::Egress => format!("to_{group}"),
    }
}

/// The chain of a class. `births` are those of the groups that the class names: the chain is a function of both.
pub fn class_chain(
    id: ClassId,
    class: &Class,
    summary: &str,
    births: impl Iterator<Item = UpdateSeq>,
) -> String {
    let prefix = match class.direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    };
    let id = id.to_string();
    let newest = births.max().unwrap_or_default();
    format!("{prefix}_{}-{}-{newest}", identifier(summary), &id[..8])
}

/// The part of a text that an nft identifier can hold.
fn identifier(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        let c = match c {
            c if c.is_ascii_alphanumeric() || c == '.' || c == '-' => c,
            _ => '_',
        };
        if !(c == '_' && (name.is_empty() || name.ends_with('_'))) {
            name.push(c);
        }
        if name.len() >= READABLE {
            break;
        }
    }
    let name = name.trim_end_matches('_');
    if name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        name.to_owned()
    } else {
        format!("n{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_what_nft_takes() {
        assert_eq!(
            identifier("pods default/app=client"),
            "pods_default_app_client"
        );
        assert_eq!(identifier("10.0.0.0/8"), "n10.0.0.0_8");
        assert_eq!(identifier(""), "n");
        assert_eq!(identifier("=*/é"), "n");
        assert_eq!(identifier(&"a/".repeat(100)).len(), READABLE - 1);
    }
}
