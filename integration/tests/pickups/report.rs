//! The table of cells, and what was wrong with those that do not hold. Judges nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use sallyport_testbed::probe::{Protocol, Side};

use crate::{
    cells::{Cell, Loss, Policy, first},
    stages::Talk,
};

/// The table, and how many of its cells do not hold. A cell is four conversations: two families, two orders.
pub(crate) fn table(talks: &[Talk]) -> (String, usize) {
    let mut text = format!("  {:<38}", "");
    for policy in Policy::ALL {
        let _ = write!(text, "{:<12}", policy.name());
    }
    let mut failed = 0;
    for loss in Loss::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for spoke in [Some(Side::Server), Some(Side::Client), None] {
                let (loss_name, spoke_name) = (loss.name(), first(spoke));
                let carrier = protocol.to_string();
                let _ = write!(text, "\n  {loss_name:<18}{carrier:<5}{spoke_name:<15}");
                for policy in Policy::ALL {
                    let is_of = |cell: &Cell| {
                        (cell.loss, cell.protocol, cell.first, cell.policy)
                            == (loss, protocol, spoke, policy)
                    };
                    let of: Vec<_> = talks.iter().filter(|talk| is_of(&talk.cell)).collect();
                    let wrong = of.iter().filter(|talk| !talk.wrong.is_empty()).count();
                    failed += usize::from(wrong > 0);
                    let said = match wrong {
                        0 => "holds".to_owned(),
                        _ => format!("FAILS {wrong}/{}", of.len()),
                    };
                    let _ = write!(text, "{said:<12}");
                }
            }
        }
    }
    text.push('\n');
    for (why, titles) in reasons(talks) {
        let _ = writeln!(text, "  {why}");
        for (title, policies) in titles {
            let named = policies.into_iter().map(|(policy, variants)| {
                let some = Vec::from_iter(variants);
                match some.len() {
                    4 => policy.name().to_owned(),
                    _ => format!("{} ({})", policy.name(), some.join("; ")),
                }
            });
            let named = named.collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "    {title}: {named}");
        }
    }
    (text, failed)
}

/// Cells by title and policy, and which conversations of each.
type Cells = BTreeMap<String, BTreeMap<Policy, BTreeSet<String>>>;

/// The errors, each with its cells.
fn reasons(talks: &[Talk]) -> BTreeMap<&str, Cells> {
    let mut reasons = BTreeMap::<&str, Cells>::new();
    for talk in talks {
        for why in &talk.wrong {
            let policies = reasons.entry(why).or_default();
            let policies = policies.entry(talk.cell.title()).or_default();
            let variants = policies.entry(talk.cell.policy).or_default();
            variants.insert(talk.cell.variant());
        }
    }
    reasons
}
