//! Numbers with types: a revision is not taken for an epoch.

/// Declares counters, each a type of its own around a `u64`.
///
/// ```
/// sallyport_policy::counters! {
///     /// Counts sessions.
///     pub struct SessionId;
/// }
///
/// let first = SessionId(1);
/// assert!(first < first.next());
/// assert_eq!(first.next().to_string(), "2");
/// ```
#[macro_export]
macro_rules! counters {
    ($($(#[$meta:meta])* $visibility:vis struct $name:ident;)+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility struct $name(pub u64);

        impl $name {
            /// The number after this one; the last number is its own.
            #[must_use]
            $visibility const fn next(self) -> $name {
                $name(self.0.saturating_add(1))
            }

            /// The number before this one; zero is its own.
            #[must_use]
            $visibility const fn previous(self) -> $name {
                $name(self.0.saturating_sub(1))
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = ::std::num::ParseIntError;

            fn from_str(text: &str) -> ::std::result::Result<$name, Self::Err> {
                text.parse().map($name)
            }
        }
    )+};
}
