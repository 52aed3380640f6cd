//! The keys of an object, each read once under the name that the file gives it; and the words for values in messages.

use serde_json::{Map, Value};

use crate::data::columns::Columns;
use crate::files::json;

/// The keys of an object that are not read yet.
pub(super) struct Fields<'a> {
    values: Map<String, Value>,
    pub(super) columns: &'a Columns,
    /// Keys further inside that nothing reads, in words.
    pub(super) unread_inside: Vec<String>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(values: Map<String, Value>, columns: &'a Columns) -> Self {
        Self { values, columns, unread_inside: Vec::new() }
    }

    /// The value of `key`, and null as none.
    pub(super) fn peek(&self, key: &str) -> Option<&Value> {
        self.values.get(self.columns.name(key)).filter(|value| !value.is_null())
    }

    /// Makes an object a list of it alone: some data sets have one turn where others have a list.
    pub(super) fn wrap_object(&mut self, key: &str) {
        if let Some(value) = self.values.get_mut(self.columns.name(key)).filter(|value| value.is_object()) {
            *value = Value::Array(vec![value.take()]);
        }
    }

    /// [`Self::peek`], and the key is read.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.values.shift_remove(self.columns.name(key)).filter(|value| !value.is_null())
    }

    /// A value that files without lists spell as JSON in a text; an empty text is none.
    pub(super) fn take_json(&mut self, key: &str) -> Result<Option<Value>, String> {
        match self.take(key) {
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => match json::parse("", text.as_bytes()) {
                Ok(value) => Ok(Some(value)),
                Err(error) => {
                    let message = error.problems().first().map_or("", |problem| problem.message.as_str());
                    let shown = shown(&Value::from(text));
                    Err(format!("`{}` is {shown}; expected a list, or its JSON: {message}", self.columns.name(key)))
                }
            },
            value => Ok(value),
        }
    }

    /// A text that must be there.
    pub(super) fn text(&mut self, key: &str) -> Result<String, String> {
        let text = self.optional_text(key)?;
        text.ok_or_else(|| format!("`{}` is missing; expected a text", self.columns.name(key)))
    }

    /// A text; `None` where it is missing or null.
    pub(super) fn optional_text(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("`{}` is {}; expected a text", self.columns.name(key), shown(&other))),
        }
    }

    /// The keys that were not read and have a value.
    pub(super) fn unread(self) -> impl Iterator<Item = String> {
        let keys = self.values.into_iter().filter(|(_, value)| !is_empty(value)).map(|(key, _)| key);
        keys.chain(self.unread_inside)
    }
}

/// Whether a value says nothing: data sets that are kept as tables have every key in every row.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// A value with its beginning, for messages.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null | Value::Array(_) | Value::Object(_) => kind(value).into(),
        other => {
            let text: String = other.to_string().chars().take(40).collect();
            format!("{} {text}", kind(other))
        }
    }
}

/// The kind of a value, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "the boolean",
        Value::Number(_) => "the number",
        Value::String(_) => "a text",
        Value::Array(items) if items.is_empty() => "an empty list",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
