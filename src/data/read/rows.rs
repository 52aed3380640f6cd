//! The rows of a data file while it is read: examples, ignored keys and problems.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Shape;
use super::fields::{self, Fields};
use super::shape;
use crate::data::columns::{self, Columns};
use crate::data::example::Row;
use crate::data::format::SHAPES;
use crate::data::position::{At, Position};
use crate::data::problems::Problems;
use crate::error::{Error, Result};

/// The longest row: far more than any sequence that is trained on, and encoding takes two hundred times its memory. A
/// file without line ends is something else.
pub(super) const MAX_ROW_BYTES: usize = 1 << 20;

/// The receiver of the rows of a file.
pub(super) trait Receiver {
    /// The rows that cannot be read.
    fn problems(&mut self) -> (&Arc<str>, &mut Problems);

    /// A row as a JSON value. `unread` are the names of columns beside it that are not read.
    fn row(&mut self, at: At, value: Value, unread: &[String]);

    /// A row that cannot be read.
    fn bad(&mut self, at: At, error: &Error) {
        let (file, problems) = self.problems();
        problems.add(&Position { file: file.clone(), at }, error);
    }

    /// A row of `bytes` bytes that is too long; false where it is not.
    fn is_too_long(&mut self, at: At, bytes: usize) -> bool {
        if bytes <= MAX_ROW_BYTES {
            return false;
        }
        let message = format!("a row of {bytes} bytes; at most {MAX_ROW_BYTES}");
        self.bad(at, &Error::input("", message).hint("cut long documents into several rows"));
        true
    }
}

/// Collects examples and problems.
pub(super) struct Rows {
    file: Arc<str>,
    shape: Shape,
    rows: Vec<Row>,
    problems: Problems,
    /// Each ignored key once.
    keys: HashMap<String, Arc<str>>,
    /// Keys of the mapping, with their names in the file, that no row had yet.
    unseen: Vec<(&'static str, String)>,
}

impl Receiver for Rows {
    fn problems(&mut self) -> (&Arc<str>, &mut Problems) {
        (&self.file, &mut self.problems)
    }

    fn row(&mut self, at: At, value: Value, unread: &[String]) {
        let example = match value {
            Value::Object(fields) => self.example(at, fields, unread),
            other => Err(Error::input("", format!("found {}; expected an object", fields::kind(&other)))),
        };
        match example {
            Ok(row) => self.rows.push(row),
            Err(error) => self.bad(at, &error),
        }
    }
}

impl Rows {
    /// No rows yet of the file `name`. Without a format, the first object decides.
    pub(super) fn new(name: &str, shape: Shape) -> Self {
        let unseen = shape.columns.mapped().map(|(key, name)| (key, name.to_owned())).collect();
        let (rows, problems, keys) = (Vec::new(), Problems::default(), HashMap::new());
        Self { file: name.into(), shape, rows, problems, keys, unseen }
    }

    fn example(&mut self, at: At, values: Map<String, Value>, unread: &[String]) -> Result<Row> {
        self.unseen.retain(|(_, name)| !values.contains_key(name));
        let given = self.shape.format.or_else(|| self.shape.columns.format(|key| values.contains_key(key)));
        let Some(format) = given else {
            let keys: Vec<&str> = values.keys().map(String::as_str).collect();
            return Err(unknown_shape("keys", &keys, &self.shape.columns));
        };
        self.shape.format = Some(format);
        let group = self.shape.group.as_ref().map(|key| group(key, values.get(key))).transpose();
        let mut fields = Fields::new(values, &self.shape.columns);
        let example = shape::example(format, &mut fields);
        let example =
            example.map_err(|message| Error::input("", message).hint(format!("the file is read as `{format}`")));
        let (example, group) = Error::both(example, group)?;
        let is_group = |key: &String| self.shape.group.as_ref() == Some(key);
        let ignored: Vec<String> = fields.unread().filter(|key| !is_group(key)).chain(unread.iter().cloned()).collect();
        let ignored = ignored.into_iter().map(|key| self.interned(key)).collect();
        let position = Position { file: self.file.clone(), at };
        Ok(Row { ignored, group, ..Row::new(position, example) })
    }

    fn interned(&mut self, key: String) -> Arc<str> {
        match self.keys.get(&key) {
            Some(known) => known.clone(),
            None => self.keys.entry(key).or_insert_with_key(|key| Arc::from(key.as_str())).clone(),
        }
    }

    /// The rows of the file.
    ///
    /// # Errors
    /// Input: the problems; a file without a row; a key of the mapping that no row has.
    pub(super) fn finish(self) -> Result<Vec<Row>> {
        if self.problems.is_empty() && self.rows.is_empty() {
            return Err(Error::input(&*self.file, "has no examples").hint(SHAPES));
        }
        let unseen = self.unseen.iter().map(|(key, name)| {
            let message = format!("no row has `{name}`, which `columns` gives the place of `{key}`");
            Error::input(&*self.file, message).hint("letters and spaces count")
        });
        let unseen: Vec<Error> = if self.rows.is_empty() { Vec::new() } else { unseen.collect() };
        Error::both(Error::none_of(unseen, ()), self.problems.finish(self.rows)).map(|(_, rows)| rows)
    }
}

/// The text of a row's group.
fn group(key: &str, value: Option<&Value>) -> Result<String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) if !other.is_null() => {
            let message = format!("`{key}` is {}; expected a text or a number", fields::shown(other));
            Err(Error::input("", message).hint("`data.group` names it"))
        }
        _ => Err(Error::input("", format!("`{key}` is missing, which `data.group` names"))),
    }
}

/// An object or table whose keys or columns, `what`, make none of the shapes under the mapping `columns`.
pub(super) fn unknown_shape(what: &str, names: &[&str], columns: &Columns) -> Error {
    let found = &names[..names.len().min(10)];
    if let Some((key, absent)) = columns.mapped().find(|(_, name)| !names.contains(name)) {
        let message =
            format!("found the {what} {found:?}, and not {absent:?}, which `columns` gives the place of `{key}`");
        return Error::input("", message).hint("letters and spaces count");
    }
    let error = Error::input("", format!("found the {what} {found:?}; {SHAPES}"));
    match columns::proposal(names) {
        Some(proposal) => error.hint(proposal),
        None => error.hint(format!("rename the {what}, or map them in `[data.columns]`")),
    }
}
