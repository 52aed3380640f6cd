//! Findings: what was found, how often, and where first.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::catalogue::{Code, Severity};
use crate::data::position::Position;
use crate::data::remark::Rows;

/// One thing that was found in a file, or about a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its kind.
    pub code: Code,
    /// Its weight.
    pub severity: Severity,
    /// The part of the data: `train` or `valid`; none for the run itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<&'static str>,
    /// The file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The finding in words, without the rows.
    pub message: String,
    /// The number of rows; 0 where it is about the file as a whole.
    pub count: usize,
    /// The lines (rows of a table) of the first of them.
    pub rows: Vec<usize>,
    /// The same with their files.
    pub places: Vec<String>,
    #[serde(skip)]
    in_words: String,
}

impl Finding {
    /// A finding about the run, or about a file as a whole.
    pub fn about(code: Code, split: Option<&'static str>, file: Option<String>, detail: &str) -> Self {
        Self::of(code, split, file, detail, (&Rows::default(), false))
    }

    fn of(
        code: Code,
        split: Option<&'static str>,
        file: Option<String>,
        detail: &str,
        (rows, several_files): (&Rows, bool),
    ) -> Self {
        let title = code.entry().title;
        let message = if detail.is_empty() { title.to_owned() } else { format!("{title}: {detail}") };
        let in_words = if rows.count == 0 { String::new() } else { format!(" ({})", rows.places(several_files)) };
        let numbers = rows.first.iter().map(Position::number).collect();
        let places = rows.first.iter().map(Position::to_string).collect();
        let severity = code.entry().severity;
        Self { code, severity, split, file, message, count: rows.count, rows: numbers, places, in_words }
    }
}

/// `warning D101 train: the row is the same as an earlier one (3 rows: lines 4, 7, 9)`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<7} {} ", self.severity.name(), self.code)?;
        if let Some(split) = self.split {
            write!(f, "{split}: ")?;
        }
        write!(f, "{}{}", self.message, self.in_words)
    }
}

/// Collects the findings about one file.
#[derive(Debug)]
pub(super) struct Collector {
    split: &'static str,
    file: String,
    several_files: bool,
    rows: BTreeMap<(Code, String), Rows>,
    whole: Vec<(Code, String)>,
}

impl Collector {
    pub(super) fn new(split: &'static str, file: &str, several_files: bool) -> Self {
        Self { split, file: file.to_owned(), several_files, rows: BTreeMap::new(), whole: Vec::new() }
    }

    /// Adds a finding about the row at `position`, with a detail by which findings are counted apart.
    pub(super) fn row(&mut self, code: Code, detail: impl Into<String>, position: &Position) {
        self.rows.entry((code, detail.into())).or_default().add(position.clone());
    }

    /// Adds a finding about rows that are counted already.
    pub(super) fn rows(&mut self, code: Code, detail: impl Into<String>, rows: &Rows) {
        self.rows.insert((code, detail.into()), rows.clone());
    }

    /// Adds a finding about the file as a whole.
    pub(super) fn whole(&mut self, code: Code, detail: impl Into<String>) {
        self.whole.push((code, detail.into()));
    }

    pub(super) fn finish(self) -> Vec<Finding> {
        let Self { split, file, several_files, rows, whole } = self;
        let about = whole.iter().map(|(code, detail)| Finding::about(*code, Some(split), Some(file.clone()), detail));
        let of_rows = rows.iter().map(|((code, detail), rows)| {
            Finding::of(*code, Some(split), Some(file.clone()), detail, (rows, several_files))
        });
        about.chain(of_rows).collect()
    }
}
