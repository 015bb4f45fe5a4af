//! Spans of time as people write and read them: on every command line, and in what the programs say. Never asks the clock.

use std::time::Duration;

use jiff::{
    RoundMode, Span, SpanRound, Unit,
    fmt::friendly::{Spacing, SpanParser, SpanPrinter},
};

/// The longest that is read: in milliseconds it is a number of 32 bits, as in the API's messages.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

/// The longest that a [`Span`] holds, in seconds.
const LONGEST_SPAN: u64 = 631_107_417_600;

/// Reads `30s`, `500ms`, `1m30s`, `1.5h`: numbers with units, as Go and kubectl spell them.
pub fn parse(text: &str) -> Result<Duration, String> {
    let span = SpanParser::new().parse_unsigned_duration(text).ok();
    span.filter(|span| *span <= LONGEST)
        .ok_or_else(|| "write it as 30s, 500ms or 1m30s, and at most 1193h".to_owned())
}

/// A duration in its two greatest units: `4s`, `3m12s`, `2h5m`, `9d3h`.
pub fn rough(span: Duration) -> String {
    let smallest = match span.as_secs() {
        0 => Unit::Millisecond,
        1..3600 => Unit::Second,
        3600..86_400 => Unit::Minute,
        _ => Unit::Hour,
    };
    let round = SpanRound::new()
        .largest(Unit::Day)
        .smallest(smallest)
        .mode(RoundMode::Trunc)
        .days_are_24_hours();
    let span = span.min(Duration::from_secs(LONGEST_SPAN));
    let span = Span::try_from(span).and_then(|span| span.round(round));
    let span = span.expect("no longer than a span can be");
    SpanPrinter::new()
        .spacing(Spacing::None)
        .span_to_string(&span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [
            ("30s", 30_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("0s", 0),
            ("2m 5s", 125_000),
            ("1193h", 4_294_800_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "30",
            "0",
            "30 fortnights",
            "-3s",
            "3s ago",
            "s",
            "1..2s",
            "1194h",
            "9999999h",
            "9999999999999999h",
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with("write it as 30s"), "{text}: {error}");
        }
    }

    #[test]
    fn writes_what_people_read() {
        let rough = |ms| rough(Duration::from_millis(ms));
        assert_eq!(rough(0), "0s");
        assert_eq!(rough(80), "80ms");
        assert_eq!(rough(4_900), "4s");
        assert_eq!(rough(192_000), "3m12s");
        assert_eq!(rough(3_599_999), "59m59s");
        assert_eq!(rough(7_500_000), "2h5m");
        assert_eq!(rough(7_200_000), "2h");
        assert_eq!(rough(86_399_999), "23h59m");
        assert_eq!(rough(788_400_000), "9d3h");
        assert_eq!(rough(u64::MAX), "7304484d");
    }
}
