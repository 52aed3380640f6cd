//! The rows of a data file while it is read: examples, ignored keys and problems.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::shape;
use crate::data::example::{Position, Row};
use crate::data::format::{Format, SHAPES};
use crate::data::problems::Problems;
use crate::error::{Error, Result};

/// The longest row: far more than any sequence that is trained on, and encoding takes two hundred times its memory. A
/// file without line ends is something else.
pub(super) const MAX_ROW_BYTES: usize = 1 << 20;

/// Collects examples and problems.
pub(super) struct Rows {
    format: Option<Format>,
    rows: Vec<Row>,
    problems: Problems,
    /// Each ignored key once.
    keys: HashMap<String, Arc<str>>,
}

impl Rows {
    /// No rows yet. Without a `format`, the first object decides.
    pub(super) fn new(format: Option<Format>) -> Self {
        Self { format, rows: Vec::new(), problems: Problems::default(), keys: HashMap::new() }
    }

    /// A row that cannot be read.
    pub(super) fn bad(&mut self, position: Position, error: &Error) {
        self.problems.add(position, error);
    }

    /// A row of `bytes` bytes that is too long; false where it is not.
    pub(super) fn is_too_long(&mut self, position: Position, bytes: usize) -> bool {
        if bytes <= MAX_ROW_BYTES {
            return false;
        }
        let message = format!("a row of {bytes} bytes; at most {MAX_ROW_BYTES}");
        self.bad(position, &Error::input("", message).hint("cut long documents into several rows"));
        true
    }

    /// A row as a JSON value. `unread` are the names of columns beside it that are not read.
    pub(super) fn row(&mut self, position: Position, value: Value, unread: &[String]) {
        let Value::Object(fields) = value else {
            let error = Error::input("", format!("found {}; expected an object", shape::kind(&value)));
            let error = match value.is_array() {
                true => error.hint("a file that is one JSON list must be named .json"),
                false => error,
            };
            return self.bad(position, &error);
        };
        let Some(format) = self.format.or_else(|| Format::of_keys(|key| fields.contains_key(key))) else {
            let keys: Vec<&str> = fields.keys().map(String::as_str).take(10).collect();
            let error = Error::input("", format!("found the keys {keys:?}; {SHAPES}"));
            return self.bad(position, &error.hint("rename the keys (letters and spaces count)"));
        };
        self.format = Some(format);
        match shape::example(format, fields) {
            Ok((example, ignored)) => {
                let ignored = ignored.into_iter().chain(unread.iter().cloned()).map(|key| self.interned(key)).collect();
                self.rows.push(Row { position, example, ignored });
            }
            Err(message) => {
                self.bad(position, &Error::input("", message).hint(format!("the file is read as `{format}`")));
            }
        }
    }

    fn interned(&mut self, key: String) -> Arc<str> {
        match self.keys.get(&key) {
            Some(known) => known.clone(),
            None => self.keys.entry(key).or_insert_with_key(|key| Arc::from(key.as_str())).clone(),
        }
    }

    /// The rows of the file `name`.
    ///
    /// # Errors
    /// Input: the problems; a file without a row.
    pub(super) fn finish(self, name: &str) -> Result<Vec<Row>> {
        if self.problems.is_empty() && self.rows.is_empty() {
            return Err(Error::input(name, "has no examples").hint(SHAPES));
        }
        self.problems.finish(name, self.rows)
    }
}
