//! A number at the end of a line that is already formatted.

use super::Format;

/// The line with one more field.
pub(super) fn annotate(line: &[u8], format: Format, name: &str, number: u64) -> Vec<u8> {
    let end = match format {
        Format::Text => line.strip_suffix(b"\n"),
        Format::Json => line.strip_suffix(b"}\n"),
    };
    let Some(start) = end else {
        return line.to_vec();
    };
    let mut line = start.to_vec();
    line.extend_from_slice(
        match format {
            Format::Text => format!(" log_lines_{name}={number}\n"),
            Format::Json => format!(",\"log_lines_{name}\":{number}}}\n"),
        }
        .as_bytes(),
    );
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one() {
        assert_eq!(
            annotate(b"a b=1\n", Format::Text, "lost", 3),
            b"a b=1 log_lines_lost=3\n"
        );
        assert_eq!(
            annotate(b"{\"a\":1}\n", Format::Json, "lost", 3),
            b"{\"a\":1,\"log_lines_lost\":3}\n"
        );
    }
}
