//! Puts an update together from its parts. It checks that they belong together, and applies nothing.

use prost::bytes::Bytes;

use crate::{
    WireError,
    convert::{encoded_delta, positions},
    wire,
};
use sallyport_policy::Update;

/// An update of which some parts may have come.
#[derive(Debug, Default)]
pub struct Assembly {
    /// What the parts have in common: their first, without its changes.
    of: Option<wire::UpdatePart>,
    changes: Vec<Bytes>,
}

/// All parts of an update, not yet understood.
#[derive(Debug)]
pub struct Assembled {
    of: wire::UpdatePart,
    changes: Vec<Bytes>,
}

impl Assembly {
    /// Takes a part. With the last one there is an update, and room for the next.
    pub fn take(&mut self, part: wire::UpdatePart) -> Result<Option<Update>, WireError> {
        self.gather(part)?.map(Update::try_from).transpose()
    }

    /// The same, for who understands the update elsewhere: that costs as much time as there are changes in it.
    pub fn gather(&mut self, mut part: wire::UpdatePart) -> Result<Option<Assembled>, WireError> {
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
        Ok(Some(Assembled { of: part, changes }))
    }
}

impl TryFrom<Assembled> for Update {
    type Error = WireError;

    fn try_from(Assembled { of, changes }: Assembled) -> Result<Update, WireError> {
        let target = of.target.as_ref().ok_or(WireError {
            field: "update.target",
            problem: "is missing".into(),
        })?;
        Ok(Update {
            base: of.base.as_ref().map(TryInto::try_into).transpose()?,
            target: target.try_into()?,
            keep: positions(&of.keep)?,
            delta: encoded_delta(&changes)?,
        })
    }
}
