//! Text that others wrote, as far as it is kept or passed on.

/// The text in one line of at most so many bytes: control characters become spaces, and the rest is cut off.
pub fn one_line(text: &str, longest: usize) -> String {
    let end = text.floor_char_boundary(longest);
    let space = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text[..end].chars().map(space).collect();
    if end < text.len() {
        line += &format!("[{} bytes more]", text.len() - end);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_line_and_short() {
        assert_eq!(one_line("0.1.0", 64), "0.1.0");
        assert_eq!(one_line("a\nb\u{1b}[2J", 64), "a b [2J");
        assert_eq!(
            one_line(&"\u{e9}".repeat(10), 5),
            "\u{e9}\u{e9}[16 bytes more]"
        );
    }
}
