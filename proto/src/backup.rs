//! Backups as text: what is in the file, written and read whole or not at all. Asks no server and opens no journal.
//!
//! A backup is JSON, one value a line: what it is of; every object, its manifest as a string, exactly as it was put; and
//! at the end how many there were and a CRC32 of all lines before. So it can be read without Sallyport.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, BufRead, Write},
    sync::Arc,
};

use sallyport_policy::NodeName;
use serde::{Deserialize, Serialize};

use crate::{
    Membership,
    object::{Kind, ObjectKey},
};
pub use sallyport_policy::{Epoch, Revision};

/// Raised when a later version writes what this one cannot read.
const FORMAT: u32 = 1;

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The control plane's epoch.
    pub epoch: Epoch,
    /// The revision.
    pub revision: Revision,
    /// The nodes that have joined.
    pub nodes: BTreeMap<NodeName, Membership>,
    /// The objects.
    pub objects: Vec<Saved>,
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contents {
            revision,
            epoch,
            objects,
            ..
        } = self;
        let count = objects.len();
        write!(f, "{count} objects, revision {revision}, epoch {epoch}")
    }
}

/// An object in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Which object.
    pub key: ObjectKey,
    /// The object as compact JSON, as it was put.
    pub manifest: Arc<str>,
    /// The revision that last changed it.
    pub revision: Revision,
}

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no backup, or not the one that was written.
    #[error("line {line}: {problem}")]
    Damaged {
        /// Where.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// It is cut off.
    #[error("the backup is cut off: the last line is missing")]
    CutOff,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    sallyport_backup: u32,
    epoch: u64,
    revision: u64,
    nodes: BTreeMap<String, bool>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    revision: u64,
    manifest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    objects: u64,
    crc32: u32,
}

/// Writes a backup.
pub fn write(contents: &Contents, out: &mut dyn Write) -> Result<(), BackupError> {
    let mut sum = crc32fast::Hasher::new();
    let mut put = |text: String| {
        let text = text + "\n";
        sum.update(text.as_bytes());
        out.write_all(text.as_bytes())
    };
    put(json(&Header {
        sallyport_backup: FORMAT,
        epoch: contents.epoch.0,
        revision: contents.revision.0,
        nodes: leases(&contents.nodes),
    }))?;
    for Saved {
        key,
        manifest,
        revision,
    } in &contents.objects
    {
        put(json(&Line {
            kind: key.kind.as_str().to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            revision: revision.0,
            manifest: manifest.to_string(),
        }))?;
    }
    let end = End {
        objects: contents.objects.len() as u64,
        crc32: sum.finalize(),
    };
    out.write_all((json(&end) + "\n").as_bytes())?;
    Ok(out.flush()?)
}

/// Whether each joined node has leases, as the file records it.
fn leases(nodes: &BTreeMap<NodeName, Membership>) -> BTreeMap<String, bool> {
    let leased =
        |(name, membership): (&NodeName, &Membership)| (name.to_string(), membership.is_leased());
    let joined = nodes
        .iter()
        .filter(|(_, membership)| membership.is_joined());
    joined.map(leased).collect()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts and numbers are JSON")
}

/// Reads a backup, and believes nothing that its checksum does not vouch for.
pub fn read(text: &mut dyn BufRead) -> Result<Contents, BackupError> {
    let mut lines = Lines {
        text,
        line: 0,
        sum: crc32fast::Hasher::new(),
    };
    let first = lines.next()?.ok_or(BackupError::CutOff)?;
    let header: Header = lines.parse(&first).map_err(|_| BackupError::Damaged {
        line: 1,
        problem: "this is no backup of a control plane, or of a later version".to_owned(),
    })?;
    if header.sallyport_backup != FORMAT {
        let found = header.sallyport_backup;
        return Err(lines.damaged(format!(
            "the backup has format {found}, and this version reads format {FORMAT}"
        )));
    }
    let mut objects = Vec::new();
    let mut before = lines.sum.clone();
    while let Some(text) = lines.next()? {
        if let Ok(end) = serde_json::from_str::<End>(&text) {
            let found = before.finalize();
            if (end.objects, end.crc32) != (objects.len() as u64, found) {
                return Err(
                    lines.damaged("the lines before do not match this line's checksum".to_owned())
                );
            }
            if lines.next()?.is_some() {
                return Err(lines.damaged("a line follows the end of the backup".to_owned()));
            }
            return Ok(Contents {
                epoch: Epoch(header.epoch),
                revision: Revision(header.revision),
                nodes: header
                    .nodes
                    .into_iter()
                    .map(|(name, leased)| (name.into(), leased.into()))
                    .collect(),
                objects,
            });
        }
        let line: Line = lines.parse(&text)?;
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == line.kind);
        let kind = kind.ok_or_else(|| lines.damaged(format!("kind {} is none", line.kind)))?;
        objects.push(Saved {
            key: ObjectKey {
                kind,
                namespace: line.namespace,
                name: line.name,
            },
            manifest: line.manifest.into(),
            revision: Revision(line.revision),
        });
        before = lines.sum.clone();
    }
    Err(BackupError::CutOff)
}

struct Lines<'a> {
    text: &'a mut dyn BufRead,
    line: usize,
    sum: crc32fast::Hasher,
}

impl Lines<'_> {
    /// The next whole line.
    fn next(&mut self) -> Result<Option<String>, BackupError> {
        let mut line = String::new();
        self.line += 1;
        match self.text.read_line(&mut line) {
            Ok(0) => return Ok(None),
            Ok(_) if !line.ends_with('\n') => return Err(BackupError::CutOff),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(self.damaged("the line is not UTF-8 text".to_owned()));
            }
            Err(error) => return Err(error.into()),
        }
        self.sum.update(line.as_bytes());
        Ok(Some(line))
    }

    fn parse<'t, T: Deserialize<'t>>(&self, text: &'t str) -> Result<T, BackupError> {
        serde_json::from_str(text).map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, problem: String) -> BackupError {
        BackupError::Damaged {
            line: self.line,
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let saved = |kind, namespace: &str, name: &str, manifest: &str| Saved {
            key: ObjectKey {
                kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            },
            manifest: manifest.into(),
            revision: Revision(3),
        };
        Contents {
            epoch: Epoch(2),
            revision: Revision(7),
            nodes: BTreeMap::from([("a".into(), true.into()), ("b".into(), false.into())]),
            objects: vec![
                saved(Kind::Namespace, "", "prod", "{\"a\": \"\\u0000\\n\"}"),
                saved(Kind::Pod, "prod", "web", "{}"),
            ],
        }
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&contents(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(&mut &written()[..]).unwrap(), contents());
        let none = Contents {
            objects: Vec::new(),
            ..contents()
        };
        let mut bytes = Vec::new();
        write(&none, &mut bytes).unwrap();
        assert_eq!(read(&mut &bytes[..]).unwrap(), none);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let whole = written();
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let read = read(&mut &changed[..]);
            assert!(read.is_err(), "bit {bit}: {read:?}");
        }
        for length in 0..whole.len() {
            assert!(read(&mut &whole[..length]).is_err(), "cut to {length}");
        }
        let longer = [&whole[..], b"x\n"].concat();
        assert!(read(&mut &longer[..]).is_err());
    }
}
