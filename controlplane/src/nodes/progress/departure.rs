//! The departure of a node: the way of a leave request until it is durable, and back.

/// How far a node is with leaving.
///
/// ```text
///            begin to leave             leave
///  Staying ------------------> Leaving -------> Left
///     ^ ^          stay           |              |
///     | +-------------------------+              |
///     +-------------- connected -----------------+
/// ```
///
/// A node whose departure is in the journal at startup is `Left` at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Departure {
    /// The node did not ask to leave since it connected last. It may connect, and its pending revisions count.
    #[default]
    Staying,
    /// The node asked to leave, which is not durable yet. No enforcer of it may connect meanwhile.
    Leaving,
    /// The node stopped enforcing, and has not connected since. No revision is pending on it. It may connect.
    Left,
}
