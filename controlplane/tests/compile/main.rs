//! The compiler against its laws: every rule of the semantics as a table, the incremental against the full computation,
//! spellings against meaning, and the canonical form. Uses the crate's public API only; an oracle that shares nothing
//! with the compiler judges it in `integration`.

mod contests;
mod established;
mod history;
mod meaning;
mod overlap;
mod sources;
mod table;
mod table_names;
mod tidy;
mod universe;
mod write;
