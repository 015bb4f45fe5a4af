//! The reasons of a refused call that its status code does not tell.

/// The metadata of a status that says why a transaction was refused where its code does not: `FAILED_PRECONDITION`.
pub const REASON: &str = "sallyport-reason";

/// The reason: `expected_revision` is not the current revision.
pub const REVISION_CONFLICT: &str = "revision-conflict";
