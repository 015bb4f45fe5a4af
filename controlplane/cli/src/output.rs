//! The forms of output: borderless tables, JSON, YAML, and the colours of a terminal. Knows no kind of object.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{ColumnConstraint, Table, Width, presets};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{args::Form, failure};

/// A table: a header, and rows as long as the header.
#[derive(Debug, Default)]
pub(crate) struct Grid {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    least_widths: Vec<u16>,
}

impl Grid {
    /// A table without rows.
    pub(crate) fn new(header: Vec<&'static str>) -> Grid {
        Grid {
            header,
            ..Grid::default()
        }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: Vec<String>) {
        debug_assert_eq!(
            row.len(),
            self.header.len(),
            "{row:?} fits {:?}",
            self.header
        );
        let clean = |cell: String| failure::printable(cell.trim_end());
        self.rows.push(row.into_iter().map(clean).collect());
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text.
    pub(crate) fn render(&self) -> String {
        self.text(true)
    }

    /// The rows as text, with the header or without. Forgets them, and keeps the columns where they were.
    pub(crate) fn drain(&mut self, header: bool) -> String {
        let text = self.text(header);
        let widths = self.table(header).column_max_content_widths();
        self.least_widths.resize(widths.len(), 0);
        for (least, width) in self.least_widths.iter_mut().zip(widths) {
            *least = width.max(*least);
        }
        self.rows.clear();
        text
    }

    /// Makes the first column wide enough for a word that comes later.
    pub(crate) fn leave_room_for(&mut self, word: &str) {
        self.least_widths = vec![u16::try_from(word.len()).unwrap_or(u16::MAX)];
    }

    fn text(&self, header: bool) -> String {
        self.table(header).trim_fmt() + "\n"
    }

    fn table(&self, header: bool) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if header {
            table.set_header(self.header.clone());
        }
        table.add_rows(self.rows.clone());
        for (column, least) in table.column_iter_mut().zip(
            self.least_widths
                .iter()
                .copied()
                .chain(std::iter::repeat(0)),
        ) {
            column.set_padding((0, 2));
            if least > 0 {
                column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least + 2)));
            }
        }
        table
    }
}

/// Colours the words of one column of a rendered table.
pub(crate) fn paint_column(
    table: &str,
    column: &str,
    style: impl Fn(&str) -> Option<Style>,
) -> String {
    let Some(start) = table.lines().next().and_then(|header| header.find(column)) else {
        return table.to_owned();
    };
    let paint = |line: &str| {
        // The header is ASCII, and the columns align by character.
        let start = line.char_indices().nth(start)?.0;
        let word = line[start..].split(' ').next()?;
        let style = style(word)?;
        let (before, after) = (&line[..start], &line[start + word.len()..]);
        Some(format!("{before}{style}{word}{style:#}{after}\n"))
    };
    table
        .lines()
        .map(|line| paint(line).unwrap_or_else(|| format!("{line}\n")))
        .collect()
}

/// Tells something beside the output, on standard error; that it may be closed is no reason to panic.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether to colour standard output.
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && colours_wanted()
}

/// `error:`, red where standard error is a terminal.
pub(crate) fn error_prefix() -> String {
    match io::stderr().is_terminal() && colours_wanted() {
        true => {
            let style = AnsiColor::Red.on_default().bold();
            format!("{style}error:{style:#}")
        }
        false => "error:".to_owned(),
    }
}

fn colours_wanted() -> bool {
    let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `kind: List` of objects, as `apply` takes it.
pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A value in one of the forms that programs read.
pub(crate) fn structured(value: &impl Serialize, form: Form) -> String {
    match form {
        Form::Yaml => yaml(value),
        _ => serde_json::to_string_pretty(value).expect("values of ours have string keys") + "\n",
    }
}

fn yaml(value: &impl Serialize) -> String {
    // Long lines stay as they are: folding is of no use to anyone who edits them.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    let text = serde_saphyr::to_string_with_options(value, options);
    text.expect("values of ours have string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|&cell| cell.to_owned()).collect()
    }

    #[test]
    fn columns_are_two_spaces_apart_and_nothing_trails() {
        let mut grid = Grid::new(vec!["NAME", "NODE", "LABELS"]);
        grid.push(row(&["a-long-name", "n1", "app=web"]));
        grid.push(row(&["b", "node-2", ""]));
        assert_eq!(
            grid.render(),
            "NAME         NODE    LABELS\n\
             a-long-name  n1      app=web\n\
             b            node-2\n"
        );
    }

    #[test]
    fn later_rows_line_up_with_the_first_table() {
        let mut grid = Grid::new(vec!["NAME", "NODE", "LABELS"]);
        grid.push(row(&["a-long-name", "n1", "app=web"]));
        grid.drain(true);
        grid.push(row(&["b", "n2", "x=y"]));
        assert_eq!(grid.drain(false), "b            n2    x=y\n");
        assert!(grid.is_empty());
    }

    #[test]
    fn a_cell_is_one_line_and_steers_no_terminal() {
        let mut grid = Grid::new(vec!["A", "B"]);
        grid.push(row(&["x\u{1b}[2Jy", "two\nlines\n"]));
        assert_eq!(grid.drain(false), "x\u{fffd}[2Jy  two\u{fffd}lines\n");
    }

    #[test]
    fn painting_takes_the_word_below_the_header() {
        let table = "NODE   STATE     LAG\nn (é)  refusing  2\nn2     fine      0\n";
        let red = |word: &str| (word == "refusing").then(|| AnsiColor::Red.on_default());
        assert_eq!(
            paint_column(table, "STATE", red),
            "NODE   STATE     LAG\nn (é)  \u{1b}[31mrefusing\u{1b}[0m  2\nn2     fine      0\n"
        );
    }

    #[test]
    fn yaml_is_block_style_and_reads_back() {
        let long = format!(
            "{}  double  spaces {}",
            "word ".repeat(30),
            "end ".repeat(9)
        );
        let value = list(vec![json!({
            "metadata": {"name": "web", "labels": {"a": "yes", "b": "8080", "c": "", "d": "1e3", "e": "~"}},
            "spec": {
                "podSelector": {},
                "ingress": [
                    {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80}]},
                    {},
                ],
                "empty": [],
                "note": "two\nlines\n",
                "script": "  indented: yes\n\n# not a comment\n",
                "long": long,
                "null": null,
                "odd": ["- x", "a: b", "#c", "\ttab", " lead", "trail ", "é\u{2028}", "a\r\nb", "%x", "@y", "`z", "|", ">", "&a", "*a", "!t", "0x1f", "0o7", ".5", "1_000", "2001-01-01", "=", "<<"],
            },
        })]);
        let text = structured(&value, Form::Yaml);
        let back: Value = serde_saphyr::from_str(&text).expect("our own YAML is valid");
        assert_eq!(back, value, "{text}");
        let start = "apiVersion: v1\n\
                     items:\n\
                     - metadata:\n";
        assert!(text.starts_with(start), "{text}");
    }
}
