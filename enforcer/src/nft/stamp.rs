//! The stamp: where the table stands, kept in the table itself and changed in the batch that makes it true, so that
//! the kernel is asked and not guessed at.

use std::fmt;

use sallyport_proto::{Digest, Position};

use crate::nft::command::{Command, Element, SetKind};

/// The set that holds the stamp.
pub const SET: &str = "stamp";

/// The element that holds the position.
const POSITION: u32 = 1;

/// The element that holds what the fixed part of the table was made from.
const FRAME: u32 = 2;

/// How far an update has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// What the table enforces, once all steps are done.
    pub position: Position,
    /// How many of how many steps are done, while they are not all done.
    pub progress: Option<(u32, u32)>,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.position)?;
        match self.progress {
            Some((done, all)) => write!(f, " step {done}/{all}"),
            None => Ok(()),
        }
    }
}

impl Stamp {
    /// Reads a stamp as it displays.
    pub fn parse(text: &str) -> Option<Stamp> {
        let mut words = text.split(' ');
        let mut field = |name: &str| (words.next()? == name).then(|| words.next()).flatten();
        let position = Position {
            epoch: field("epoch")?.parse().ok()?,
            revision: field("revision")?.parse().ok()?,
            digest: Digest(u128::from_str_radix(field("digest")?, 16).ok()?),
        };
        let progress = match field("step") {
            Some(step) => {
                let (done, all) = step.split_once('/')?;
                Some((done.parse().ok()?, all.parse().ok()?))
            }
            None => None,
        };
        Some(Stamp { position, progress })
    }

    /// Puts this stamp in the place of any other. A deletion of what is not there would fail, so `fresh` says whether
    /// there is none yet.
    pub fn write(&self, fresh: bool) -> Vec<Command> {
        replace(POSITION, self.to_string(), fresh)
    }
}

/// Puts the description of the table's fixed part in the place of any other.
pub fn write_frame(frame: &str, fresh: bool) -> Vec<Command> {
    replace(FRAME, frame.to_owned(), fresh)
}

fn replace(key: u32, text: String, fresh: bool) -> Vec<Command> {
    let element = vec![Element::Stamp(key, text)];
    let mut commands = Vec::new();
    if !fresh {
        commands.push(Command::DeleteElements(
            SET.into(),
            SetKind::Stamp,
            element.clone(),
        ));
    }
    commands.push(Command::AddElements(SET.into(), SetKind::Stamp, element));
    commands
}

/// What the stamp set of a table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The stamp; `None` when there is none that can be read.
    pub stamp: Option<Stamp>,
    /// What the fixed part of the table was made from.
    pub frame: Option<String>,
}

/// Understands the elements of a stamp set: numbers and their comments.
pub fn read(elements: impl IntoIterator<Item = (u32, String)>) -> Reading {
    let mut reading = Reading::default();
    for (key, comment) in elements {
        match key {
            POSITION => reading.stamp = Stamp::parse(&comment),
            FRAME => reading.frame = Some(comment),
            _ => {}
        }
    }
    reading
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_as_it_was_written() {
        let position = Position {
            epoch: 3,
            revision: u64::MAX,
            digest: Digest(7),
        };
        for progress in [None, Some((2, 5))] {
            let stamp = Stamp { position, progress };
            assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
            assert!(
                stamp.to_string().len() < 128,
                "nft takes comments up to 128 bytes"
            );
        }
        assert_eq!(Stamp::parse("epoch 1 revision x digest 0"), None);
        assert_eq!(Stamp::parse(""), None);
    }
}
