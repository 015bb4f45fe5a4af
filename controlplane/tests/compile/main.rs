//! The compiler against its laws: every rule of the semantics as a table, an independent evaluator, the incremental
//! against the full computation, and spellings against meaning. Uses the crate's public API only.

mod history;
mod meaning;
mod oracle;
mod table;
mod table_names;
mod universe;
mod write;
