//! Spans of time as people write and read them. Never asks the clock.

use std::time::Duration;

/// Reads `30s`, `500ms`, `1m30s`, `1.5h`: numbers with units, as Go and kubectl spell them.
pub fn parse(text: &str) -> Result<Duration, String> {
    const EXAMPLES: &str = "write it as 30s, 500ms or 1m30s";
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(format!("empty; {EXAMPLES}"));
    }
    while !rest.is_empty() {
        let digits = until(rest, |c| !c.is_ascii_digit() && c != '.');
        let (number, tail) = rest.split_at(digits);
        let (unit, tail) = tail.split_at(until(tail, |c| c.is_ascii_digit() || c == '.'));
        let number: f64 = number.parse().map_err(|_| EXAMPLES.to_owned())?;
        let seconds = match unit.trim() {
            "ms" => number / 1e3,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            "" => return Err(format!("no unit; {EXAMPLES}")),
            other => return Err(format!("unknown unit `{other}`; {EXAMPLES}")),
        };
        total = Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|part| total.checked_add(part))
            .ok_or("too long")?;
        rest = tail;
    }
    match u32::try_from(total.as_millis()) {
        Ok(_) => Ok(total),
        Err(_) => Err("too long: at most 1193h".to_owned()),
    }
}

fn until(text: &str, stop: impl Fn(char) -> bool) -> usize {
    text.find(stop).unwrap_or(text.len())
}

/// A measured span, with the digits that matter: `3.1 ms`, `0.42 ms`, `2.35 s`.
pub fn measured(span: Duration) -> String {
    let ms = span.as_secs_f64() * 1e3;
    match ms {
        ms if ms < 1.0 => format!("{ms:.2} ms"),
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.2} s", ms / 1e3),
    }
}

/// How long something has lasted, in its two greatest units: `4s`, `3m12s`, `2h5m`, `9d3h`.
pub fn rough(span: Duration) -> String {
    let (s, ms) = (span.as_secs(), span.subsec_millis());
    match s {
        0 if ms > 0 => format!("{ms}ms"),
        s if s < 60 => format!("{s}s"),
        s if s < 3600 => pair(s / 60, "m", s % 60, "s"),
        s if s < 86_400 => pair(s / 3600, "h", s / 60 % 60, "m"),
        s => pair(s / 86_400, "d", s / 3600 % 24, "h"),
    }
}

fn pair(major: u64, major_unit: &str, minor: u64, minor_unit: &str) -> String {
    match minor {
        0 => format!("{major}{major_unit}"),
        _ => format!("{major}{major_unit}{minor}{minor_unit}"),
    }
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
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, problem) in [
            ("", "empty; "),
            ("30", "no unit; "),
            ("30 fortnights", "unknown unit `fortnights`; "),
            ("-3s", "write it as 30s"),
            ("s", "write it as 30s"),
            ("1..2s", "write it as 30s"),
            ("9999999h", "too long"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(problem), "{text}: {error}");
        }
    }

    #[test]
    fn writes_what_people_read() {
        let measure = |us| measured(Duration::from_micros(us));
        assert_eq!(measure(420), "0.42 ms");
        assert_eq!(measure(3_140), "3.1 ms");
        assert_eq!(measure(314_000), "314 ms");
        assert_eq!(measure(2_350_000), "2.35 s");
        let rough = |ms| rough(Duration::from_millis(ms));
        assert_eq!(rough(0), "0s");
        assert_eq!(rough(80), "80ms");
        assert_eq!(rough(4_900), "4s");
        assert_eq!(rough(192_000), "3m12s");
        assert_eq!(rough(7_500_000), "2h5m");
        assert_eq!(rough(7_200_000), "2h");
        assert_eq!(rough(788_400_000), "9d3h");
    }
}
