//! The place where a row begins: its file, and the line or the row in it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Place;

/// The begin of a row in a data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, At)", into = "(String, At)")]
pub struct Position {
    /// The name of the file, as in messages.
    pub file: Arc<str>,
    /// The place in the file.
    pub at: At,
}

/// The begin of a row in its file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    /// The line of a text file.
    Line(usize),
    /// The row of a table.
    Row(usize),
}

impl Position {
    /// A line of `file`.
    pub fn line(file: impl Into<Arc<str>>, line: usize) -> Self {
        Self { file: file.into(), at: At::Line(line) }
    }

    /// The place of an error about this row.
    pub fn place(&self) -> Place {
        let file = Place::file(&*self.file);
        match self.at {
            At::Line(line) => file.line(line),
            At::Row(row) => file.part(format!("row {row}")),
        }
    }

    /// The number of the line or row.
    pub fn number(&self) -> usize {
        match self.at {
            At::Line(number) | At::Row(number) => number,
        }
    }
}

/// `file:line`, or `file: row 3`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::Line(line) => write!(f, "{}:{line}", self.file),
            At::Row(row) => write!(f, "{}: row {row}", self.file),
        }
    }
}

impl From<(String, At)> for Position {
    fn from((file, at): (String, At)) -> Self {
        Self { file: file.into(), at }
    }
}

impl From<Position> for (String, At) {
    fn from(position: Position) -> Self {
        (position.file.to_string(), position.at)
    }
}
