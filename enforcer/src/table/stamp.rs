//! The stamp: the state of the table, kept in the table itself. The batch that reaches a state also writes its stamp,
//! so that the enforcer reads the state and does not guess.

use std::fmt;

use sallyport_nft::command::{Command, Element, SetKind};
use sallyport_policy::{Epoch, Position, Revision};

use crate::table::names::UpdateSeq;

/// The set that holds the stamp.
pub const SET: &str = "stamp";

/// The element that holds the position.
const POSITION: u32 = 1;

/// The element that holds the fingerprint of the frame.
const FRAME: u32 = 2;

/// The state of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch of the newest version that the node holds.
    pub epoch: Epoch,
    /// The revision of that version.
    pub revision: Revision,
    /// The first 32 bits of that version's digest.
    pub digest: u32,
    /// The update of this node that led to the state, once all steps are done. The number distinguishes windows with
    /// the same newest version.
    pub update: UpdateSeq,
    /// The number of steps done and of all steps, while some are not done.
    pub progress: Option<(u32, u32)>,
    /// Whether these steps write the frame anew. The installed policy is in force all the while.
    pub frame: bool,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp {
            epoch,
            revision,
            digest,
            update,
            progress,
            frame,
        } = self;
        write!(
            f,
            "epoch {epoch} revision {revision} digest {digest:08x} update {update}"
        )?;
        match progress {
            Some((done, all)) => {
                let word = if *frame { "form" } else { "step" };
                write!(f, " {word} {done}/{all}")
            }
            None => Ok(()),
        }
    }
}

impl Stamp {
    /// The stamp of a table for the newest version that the node holds, made by an update.
    pub fn of(newest: Option<Position>, update: UpdateSeq, progress: Option<(u32, u32)>) -> Stamp {
        let position = newest.unwrap_or_default();
        Stamp {
            epoch: position.epoch,
            revision: position.revision,
            digest: (position.digest.0 >> 96) as u32,
            update,
            progress,
            frame: false,
        }
    }

    /// The number of steps of the update that are done; `None` when all are.
    pub fn steps_done(&self) -> Option<u32> {
        let progress = self.progress.filter(|_| !self.frame);
        progress.map(|(done, _)| done)
    }

    /// Parses a stamp from its displayed form.
    pub fn parse(text: &str) -> Option<Stamp> {
        let mut words = text.split(' ');
        let mut field = |name: &str| (words.next()? == name).then(|| words.next()).flatten();
        let stamp = Stamp {
            epoch: field("epoch")?.parse().ok()?,
            revision: field("revision")?.parse().ok()?,
            digest: u32::from_str_radix(field("digest")?, 16).ok()?,
            update: field("update")?.parse().ok()?,
            progress: None,
            frame: false,
        };
        let frame = match words.next() {
            None => return Some(stamp),
            Some("step") => false,
            Some("form") => true,
            Some(_) => return None,
        };
        let (done, all) = words.next()?.split_once('/')?;
        Some(Stamp {
            progress: Some((done.parse().ok()?, all.parse().ok()?)),
            frame,
            ..stamp
        })
    }

    /// Puts this stamp in place of any other. Deleting an absent stamp would fail, so `fresh` says whether there is
    /// none yet.
    pub fn write(&self, fresh: bool) -> Vec<Command> {
        replace(POSITION, self.to_string(), fresh)
    }
}

/// Puts the description of the table's fixed part in place of any other.
pub fn write_frame(frame: &str, fresh: bool) -> Vec<Command> {
    replace(FRAME, frame.to_owned(), fresh)
}

fn replace(key: u32, text: String, fresh: bool) -> Vec<Command> {
    let element = vec![Element::Number(key, text)];
    let mut commands = Vec::new();
    if !fresh {
        commands.push(Command::DeleteElements(
            SET.into(),
            SetKind::Numbers,
            element.clone(),
        ));
    }
    commands.push(Command::AddElements(SET.into(), SetKind::Numbers, element));
    commands
}

/// The content of a table's stamp set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StampState {
    /// The stamp; `None` when it is missing or malformed.
    pub stamp: Option<Stamp>,
    /// The fingerprint of the table's frame.
    pub frame: Option<String>,
}

/// Decodes the elements of a stamp set: numbers and their comments.
pub fn read(elements: impl IntoIterator<Item = (u32, String)>) -> StampState {
    let mut state = StampState::default();
    for (key, comment) in elements {
        match key {
            POSITION => state.stamp = Stamp::parse(&comment),
            FRAME => state.frame = Some(comment),
            _ => {}
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_as_it_was_written() {
        let all = Some((u32::MAX, u32::MAX));
        for (progress, frame) in [(None, false), (all, false), (all, true)] {
            let stamp = Stamp {
                epoch: Epoch(u64::MAX),
                revision: Revision(u64::MAX),
                digest: 7,
                update: UpdateSeq(u64::MAX),
                progress,
                frame,
            };
            assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
            assert!(
                stamp.to_string().len() < 128,
                "nft takes comments up to 128 bytes"
            );
        }
        assert_eq!(Stamp::parse("epoch 1 revision x digest 0 update 1"), None);
        assert_eq!(Stamp::parse(""), None);
    }
}
