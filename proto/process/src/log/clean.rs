//! Text of others in the log: one line stays one line, steers no terminal, and has a bounded length.

use std::{
    borrow::Cow,
    fmt::{self, Debug, Write as _},
};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

/// The longest value of a field, in bytes.
const VALUE: usize = 1024;
/// A JSON line that is longer than this has its strings cut.
const LINE: usize = 2048;

/// Whether a character is more than a sign on paper: controls, line separators, marks that turn the reading direction
/// (Unicode Technical Report 36, section 2.7).
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Fields as `message name=value`, cleaned.
#[derive(Debug)]
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor {
            writer,
            first: true,
            result: Ok(()),
        };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Visitor<'w> {
    writer: Writer<'w>,
    first: bool,
    result: fmt::Result,
}

impl Visitor<'_> {
    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        // Of the `log` crate's events: told as the target.
        if field.name().starts_with("log.") {
            return Ok(());
        }
        if !std::mem::replace(&mut self.first, false) {
            self.writer.write_char(' ')?;
        }
        match (field.name(), self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, true) => write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?,
            (name, false) => write!(self.writer, "{name}=")?,
        }
        let mut clean = Clean {
            to: &mut self.writer,
            left: VALUE,
            cut: 0,
        };
        clean.write_fmt(value)?;
        match clean.cut {
            0 => Ok(()),
            cut => write!(self.writer, "[{cut} bytes more]"),
        }
    }
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() {
            self.result = self.field(field, format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }
}

/// Escapes what steers, and cuts.
struct Clean<'a, W> {
    to: &'a mut W,
    left: usize,
    cut: usize,
}

impl<W: fmt::Write> fmt::Write for Clean<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (at, c) in text.char_indices() {
            if self.left < c.len_utf8() || self.cut > 0 {
                self.cut += text.len() - at;
                return Ok(());
            }
            self.left -= c.len_utf8();
            match steers(c) {
                true => write!(self.to, "{}", c.escape_default())?,
                false => self.to.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A line of JSON, cleaned the same way.
pub(super) fn json(line: &[u8]) -> Vec<u8> {
    let short = match line.len() > LINE {
        true => Cow::Owned(cut(line)),
        false => String::from_utf8_lossy(line),
    };
    let text = short.trim_end_matches('\n');
    let mut clean = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        // JSON escapes the others, and outside of strings there are none.
        match steers(c) {
            true => clean += &format!("\\u{:04x}", u32::from(c)),
            false => clean.push(c),
        }
    }
    clean.push('\n');
    clean.into_bytes()
}

fn cut(line: &[u8]) -> String {
    fn within(value: &mut Value) {
        match value {
            Value::String(text) if text.len() > VALUE => {
                let end = text.floor_char_boundary(VALUE);
                let more = text.len() - end;
                text.truncate(end);
                *text += &format!("[{more} bytes more]");
            }
            Value::Object(fields) => fields.values_mut().for_each(within),
            _ => {}
        }
    }
    match serde_json::from_slice::<Value>(line) {
        Ok(mut value) => {
            within(&mut value);
            value.to_string()
        }
        Err(_) => format!("{{\"message\":\"a line of {} bytes\"}}", line.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> (String, usize) {
        let mut to = String::new();
        let mut clean = Clean {
            to: &mut to,
            left: 12,
            cut: 0,
        };
        clean.write_str(text).expect("a string takes all");
        let cut = clean.cut;
        (to, cut)
    }

    #[test]
    fn nothing_steers_and_nothing_is_long() {
        assert_eq!(clean("a\nb\u{1b}[2J"), ("a\\nb\\u{1b}[2J".into(), 0));
        assert_eq!(clean("\u{202e}x\u{9b}"), ("\\u{202e}x\\u{9b}".into(), 0));
        assert_eq!(clean("123456789012345"), ("123456789012".into(), 3));
        assert_eq!(clean("12345678901\u{e9}z"), ("12345678901".into(), 3));
    }

    #[test]
    fn json_stays_json_of_one_line() {
        let line = format!(
            "{}\n",
            serde_json::json!({"level": "WARN", "fields": {"a": "x".repeat(3_000_000), "b": "\n\u{9b}\u{202e}"}})
        );
        let text = String::from_utf8(json(line.as_bytes())).expect("UTF-8");
        assert!(text.len() < 1200, "{}", text.len());
        assert_eq!(text.find('\n'), Some(text.len() - 1));
        assert!(!text.trim_end().contains(steers), "{text}");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["fields"]["b"], "\n\u{9b}\u{202e}");
    }
}
