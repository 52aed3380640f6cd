//! Two texts side by side.

use crate::error::printable;

/// The fewest columns of a terminal that has room for two texts.
pub(super) const LEAST_WIDTH: usize = 60;
/// The text between the columns.
const BETWEEN: &str = " │ ";

/// Two texts with their names, each in half of `width` columns.
pub(super) fn side_by_side(left: (&str, &str), right: (&str, &str), width: usize) -> String {
    let half = (width - BETWEEN.chars().count()) / 2;
    let column = |(name, text): (&str, &str)| {
        let mut lines = wrapped(name, half);
        lines.push("─".repeat(half));
        lines.extend(wrapped(text, half));
        lines
    };
    let (left, right) = (column(left), column(right));
    let mut shown = String::new();
    for row in 0..left.len().max(right.len()) {
        let cell = |lines: &[String]| lines.get(row).cloned().unwrap_or_default();
        let (left, right) = (cell(&left), cell(&right));
        let room = half.saturating_sub(left.chars().count());
        shown += format!("{left}{}{BETWEEN}{right}", " ".repeat(room)).trim_end();
        shown.push('\n');
    }
    shown
}

/// The lines of a text, none longer than `width` characters; broken at spaces where there are some.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let text = printable(text.trim_end()).replace('\t', "    ");
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        let mut length = 0;
        for word in paragraph.split_inclusive(' ') {
            let word_length = word.trim_end().chars().count();
            if length > 0 && length + word_length > width {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
                length = 0;
            }
            for symbol in word.chars() {
                if length == width && symbol != ' ' {
                    lines.push(std::mem::take(&mut line));
                    length = 0;
                }
                if length < width {
                    line.push(symbol);
                    length += 1;
                }
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_spaces_and_within_long_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert_eq!(wrapped("a\n\nb\n", 4), ["a", "", "b"]);
        assert_eq!(wrapped("\u{1b}[2J", 20), ["\\u{1b}[2J"]);
        assert!(wrapped("", 4).is_empty());
    }

    #[test]
    fn both_texts_have_half_of_the_width() {
        let shown = side_by_side(("base", "a b c d"), ("tuned", "x"), 13);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines, ["base  │ tuned", "───── │ ─────", "a b c │ x", "d     │"]);
    }
}
