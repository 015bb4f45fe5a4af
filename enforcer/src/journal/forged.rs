//! Records in bytes without a disk, for fuzzing: as they are written, as they might be found, and what they come to. Nothing
//! else uses it.

use super::{
    Intent, Recovered,
    record::{self, IntentRecord, Kind, Record},
};
use crate::{plan::Installed, table::names::UpdateSeq};

/// How many bytes of a record come before its payload.
pub const HEADER: usize = record::HEADER;

/// The record of an intent.
pub fn intent(intent: &Intent) -> Vec<u8> {
    frame(Kind::Intent(IntentRecord::from(intent)))
}

/// The record of an intent that is taken back.
pub fn abort(generation: UpdateSeq) -> Vec<u8> {
    frame(Kind::Abort(generation.0))
}

/// The record of what is installed.
pub fn snapshot(installed: &Installed) -> Vec<u8> {
    frame(Kind::Snapshot(record::snapshot_record(installed)))
}

fn frame(kind: Kind) -> Vec<u8> {
    record::frame(&Record { kind: Some(kind) })
}

/// A record of any payload, with the right length and checksum.
pub fn seal(payload: &[u8]) -> Vec<u8> {
    record::seal(payload)
}

/// What records come to.
pub fn read(frames: &[Vec<u8>]) -> Result<Recovered, String> {
    let mut recovered = Recovered::default();
    for frame in frames {
        let record = record::unframe(frame)?;
        let _ = record::describe(&record);
        record::fold(&mut recovered, record)?;
    }
    Ok(recovered)
}
