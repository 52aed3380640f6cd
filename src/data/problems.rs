//! The problems of many rows: equal ones are reported once, with the number of rows and the first of them.

use std::collections::HashMap;

use super::position::Position;
use crate::error::{Error, Place, Result};

/// Most different problems to report; further ones are only counted.
const MAX_REPORTED: usize = 20;
/// Most rows of one problem to name.
const MAX_NAMED: usize = 3;

/// Collects the problems of rows.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// In the order found; the message stands first, the hint second.
    found: Vec<Found>,
    by_text: HashMap<(String, Option<String>), usize>,
    /// Rows of problems beyond the most that are kept, and the first of them.
    more: Option<(usize, Position)>,
    /// Rows with a problem.
    rows: usize,
}

#[derive(Debug)]
struct Found {
    message: String,
    hint: Option<String>,
    first: Vec<Position>,
    count: usize,
}

impl Problems {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds what is wrong with the row at `position`. The places in the error lie within the row.
    pub(super) fn add(&mut self, position: &Position, error: &Error) {
        self.rows += 1;
        let texts: Vec<String> = error.problems().iter().map(text).collect();
        let mut hints: Vec<&str> = error.problems().iter().filter_map(|problem| problem.hint.as_deref()).collect();
        hints.dedup();
        let hint = (!hints.is_empty()).then(|| hints.join("; "));
        let key = (texts.join("; "), hint);
        if let Some(found) = self.by_text.get(&key).and_then(|index| self.found.get_mut(*index)) {
            found.count += 1;
            if found.first.len() < MAX_NAMED {
                found.first.push(position.clone());
            }
            return;
        }
        if self.found.len() == MAX_REPORTED {
            self.more.get_or_insert_with(|| (0, position.clone())).0 += 1;
            return;
        }
        self.by_text.insert(key.clone(), self.found.len());
        self.found.push(Found { message: key.0, hint: key.1, first: vec![position.clone()], count: 1 });
    }

    /// `value` where there is no problem, or all of them as one error.
    ///
    /// # Errors
    /// Input: the problems.
    pub(super) fn finish<T>(self, value: T) -> Result<T> {
        let mut errors: Vec<Error> = self.found.iter().map(Found::error).collect();
        if let Some((count, first)) = self.more {
            errors.push(Error::input(Place::file(&*first.file), format!("and {count} more bad rows")));
        }
        Error::none_of(errors, value)
    }
}

impl Found {
    fn error(&self) -> Error {
        let Some((first, others)) = self.first.split_first() else { return Error::input("", self.message.clone()) };
        let others: Vec<String> = others
            .iter()
            .map(|other| if other.file == first.file { other.number().to_string() } else { other.to_string() })
            .collect();
        let message = match others.as_slice() {
            [] => self.message.clone(),
            others => {
                let more = if self.count > MAX_NAMED { ", …" } else { "" };
                format!("{} ({} rows, also {}{more})", self.message, self.count, others.join(", "))
            }
        };
        let error = Error::input(first.place(), message);
        match &self.hint {
            Some(hint) => error.hint(hint.clone()),
            None => error,
        }
    }
}

fn text(problem: &crate::error::Problem) -> String {
    match problem.place.is_empty() {
        true => problem.message.clone(),
        false => format!("{}: {}", problem.place, problem.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_problems_are_reported_once_with_their_rows_and_their_hint() {
        let mut problems = Problems::default();
        for line in 1..=50 {
            problems.add(&Position::line("d.jsonl", line), &Error::input("", "is wrong").hint("mend it"));
        }
        problems.add(&Position::line("d.jsonl", 60), &Error::input("template", "raises"));
        let text = problems.finish(()).expect_err("bad").to_string();
        let expected = "d.jsonl:1: is wrong (50 rows, also 2, 3, …)\n  hint: mend it\nd.jsonl:60: template: raises";
        assert_eq!(text, expected);
        assert!(Problems::default().finish(()).is_ok());
    }

    #[test]
    fn different_problems_beyond_twenty_are_counted() {
        let mut problems = Problems::default();
        for line in 1..=25 {
            problems.add(&Position::line("d.jsonl", line), &Error::input("", format!("is wrong in the {line}th way")));
        }
        let text = problems.finish(()).expect_err("bad").to_string();
        assert!(text.lines().count() == 21 && text.ends_with("d.jsonl: and 5 more bad rows"), "{text}");
    }

    #[test]
    fn rows_of_other_files_are_named_with_their_file() {
        let mut problems = Problems::default();
        for (file, line) in [("a.jsonl", 3), ("a.jsonl", 5), ("b.jsonl", 1)] {
            problems.add(&Position::line(file, line), &Error::input("", "is wrong"));
        }
        let text = problems.finish(()).expect_err("bad").to_string();
        assert_eq!(text, "a.jsonl:3: is wrong (3 rows, also 5, b.jsonl:1)");
    }
}
