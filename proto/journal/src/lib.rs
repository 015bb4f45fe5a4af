//! The half that the journals of the control plane and of the enforcer share. sled belongs to this crate, and no type
//! of sled leaves it. The crate knows no policy and no meaning of a record.
//!
//! **Order.** sled recovers a prefix of the writes. A write is durable when a later [`Store::sync`] returns. A journal
//! moves its [`Watermark`] after that and before it acts upon the write, so that the watermark is never ahead.
//!
//! **Detection.** [`frame`] detects a record whose bytes, or whose key, are not those that were written. The watermark
//! detects a log that lost its end: sled cuts a log off at the first unreadable byte, without an error.
//!
//! **Refusal.** [`Store::open`] refuses a store that another process has open, and files that sled cannot read. A
//! panic of sled becomes [`Error::Broken`]. An error of the file system is never taken for damage.
//!
//! **Damage.** Nothing is deleted and nothing is repaired in place. [`quarantine`] moves files aside, and [`scratch`]
//! copies them for inspection.
//!
//! The layouts on disk never change here. A journal names its format in its records.

#![warn(missing_docs)]

mod error;
pub mod frame;
pub mod parts;
pub mod quarantine;
pub mod scratch;
mod store;
mod watermark;

pub use error::Error;
pub use store::{KeyValue, KeyValues, Store, Tree, close, lock, unpanicked};
pub use watermark::Watermark;
