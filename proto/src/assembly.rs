//! Puts an update together from its parts. It checks that they belong together, and applies nothing.

use prost::bytes::Bytes;

use crate::{Delta, Update, WireError, convert::positions, wire};

/// An update of which some parts may have come.
#[derive(Debug, Default)]
pub struct Assembly {
    /// What the parts have in common: their first, without its changes.
    of: Option<wire::UpdatePart>,
    changes: Vec<Bytes>,
}

impl Assembly {
    /// Takes a part. With the last one there is an update, and room for the next.
    pub fn take(&mut self, mut part: wire::UpdatePart) -> Result<Option<Update>, WireError> {
        self.changes.append(&mut part.changes);
        let last = std::mem::take(&mut part.last);
        if *self.of.get_or_insert_with(|| part.clone()) != part {
            return Err(WireError {
                field: "update",
                problem: "parts of two updates came mixed".into(),
            });
        }
        if !last {
            return Ok(None);
        }
        self.of = None;
        let changes = std::mem::take(&mut self.changes);
        let target = part.target.as_ref().ok_or(WireError {
            field: "update.target",
            problem: "is missing".into(),
        })?;
        Ok(Some(Update {
            base: part.base.as_ref().map(TryInto::try_into).transpose()?,
            target: target.try_into()?,
            keep: positions(&part.keep)?,
            delta: Delta::try_from(&changes[..])?,
        }))
    }
}
