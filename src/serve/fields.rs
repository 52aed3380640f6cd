//! The fields of a request's body, read one by one with their ranges; a field that nobody reads is an error.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::failure::{Failure, Outcome};
use crate::files::json;

/// An object of a request. A field that is null counts as missing.
#[derive(Debug)]
pub(super) struct Fields {
    fields: Map<String, Value>,
    /// The name of the object within the request, with a dot behind it; empty for the request.
    within: String,
    /// The place among the bodies that lie in memory as values.
    _place: Option<OwnedSemaphorePermit>,
    /// The place of a body that is larger than others.
    large: Option<OwnedSemaphorePermit>,
}

impl Fields {
    /// The object that a body spells.
    pub(super) fn parse(body: &[u8]) -> Outcome<Self> {
        let value = json::parse("body", body).map_err(|error| {
            let problem = error.problems().first();
            Failure::invalid(problem.map_or_else(String::new, |problem| format!("the body is {}", problem.message)))
        })?;
        match value {
            Value::Object(fields) => Ok(Self::of(fields, String::new())),
            other => Err(Failure::invalid(format!("the body is {}; expected an object", json::kind(&other)))),
        }
    }

    fn of(mut fields: Map<String, Value>, within: String) -> Self {
        fields.retain(|_, value| !value.is_null());
        Self { fields, within, _place: None, large: None }
    }

    /// Keeps places until the fields have been read.
    pub(super) fn keep(&mut self, place: OwnedSemaphorePermit, large: Option<OwnedSemaphorePermit>) {
        (self._place, self.large) = (Some(place), large);
    }

    /// The place of a large body, for what is kept of it.
    pub(super) fn take_large(&mut self) -> Option<OwnedSemaphorePermit> {
        self.large.take()
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.within)
    }

    fn wrong(&self, field: &str, expected: &str, found: &Value) -> Failure {
        Failure::field(&self.name(field), format!("is {}; expected {expected}", json::kind(found)))
    }

    /// A field as it stands.
    pub(super) fn value(&mut self, field: &str) -> Option<Value> {
        self.fields.shift_remove(field)
    }

    /// A field that has to be there.
    pub(super) fn required<T>(&self, field: &str, value: Option<T>) -> Outcome<T> {
        value.ok_or_else(|| Failure::field(&self.name(field), "is missing"))
    }

    pub(super) fn text(&mut self, field: &str) -> Outcome<Option<String>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a text", &other)),
        }
    }

    pub(super) fn flag(&mut self, field: &str) -> Outcome<bool> {
        match self.value(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(field, "true or false", &other)),
        }
    }

    /// A whole number within `range`; 3.0 is one.
    pub(super) fn integer(&mut self, field: &str, range: RangeInclusive<i64>) -> Outcome<Option<i64>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let Value::Number(number) = &value else { return Err(self.wrong(field, "a whole number", &value)) };
        match number.as_i64().or_else(|| number.as_f64().and_then(whole)).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(Failure::field(&self.name(field), format!("is {}; expected {expected}", json::shortened(&value))))
            }
        }
    }

    pub(super) fn number(&mut self, field: &str, range: RangeInclusive<f64>) -> Outcome<Option<f64>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_f64().filter(|number| range.contains(number)) {
                Some(number) => Ok(Some(number)),
                None => {
                    let expected = format!("a number from {} to {}", range.start(), range.end());
                    Err(Failure::field(&self.name(field), format!("is {number}; expected {expected}")))
                }
            },
            Some(other) => Err(self.wrong(field, "a number", &other)),
        }
    }

    /// A list of at most `most` items.
    pub(super) fn list(&mut self, field: &str, most: usize) -> Outcome<Option<Vec<Value>>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() <= most => Ok(Some(items)),
            Some(Value::Array(items)) => {
                let message = format!("has {} items; at most {most} are taken", items.len());
                Err(Failure::field(&self.name(field), message))
            }
            Some(other) => Err(self.wrong(field, "a list", &other)),
        }
    }

    /// A text or a list of texts: `most` of them, of at most `bytes` bytes each.
    pub(super) fn texts(&mut self, field: &str, most: usize, bytes: usize) -> Outcome<Vec<String>> {
        let items = match self.fields.get(field) {
            Some(Value::String(_)) => self.value(field).into_iter().collect(),
            _ => self.list(field, most)?.unwrap_or_default(),
        };
        let text = |item: Value| match item {
            Value::String(text) if text.len() <= bytes => Ok(text),
            Value::String(_) => Err(Failure::field(&self.name(field), format!("has more than {bytes} bytes"))),
            other => Err(self.wrong(field, "a text, or a list of texts", &other)),
        };
        items.into_iter().map(text).collect()
    }

    /// An object within this one.
    pub(super) fn object(&mut self, field: &str) -> Outcome<Option<Fields>> {
        match self.value(field) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields::of(fields, format!("{}{field}.", self.within)))),
            Some(other) => Err(self.wrong(field, "an object", &other)),
        }
    }

    /// Takes fields that have no effect on an answer.
    pub(super) fn without_effect(&mut self, fields: &[&str]) {
        fields.iter().for_each(|field| drop(self.value(field)));
    }

    /// Refuses fields by name; a field with the value that stands with it asks for nothing and is taken.
    pub(super) fn refuse(&mut self, fields: &[(&str, Value, &str)]) -> Outcome<()> {
        for (field, neutral, reason) in fields {
            let is_neutral = |value: &Value| value == neutral || value.as_array().is_some_and(Vec::is_empty);
            if self.value(field).is_some_and(|value| !is_neutral(&value)) {
                return Err(Failure::unsupported(&self.name(field), reason));
            }
        }
        Ok(())
    }

    /// The end of the object: every field has been read.
    pub(super) fn finish(self) -> Outcome<()> {
        match self.fields.keys().next() {
            Some(unknown) => Err(Failure::unknown_field(&self.name(unknown))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).expect("an object")
    }

    #[test]
    fn values_out_of_range_and_of_another_kind_name_the_field() {
        let text = r#"{"a": 3.0, "b": 9007199254740993, "c": -1, "d": "x", "e": 1.5, "f": 1e308, "g": null, "h": [1]}"#;
        let mut fields = fields(text);
        assert_eq!(fields.integer("a", 0..=5).expect("3"), Some(3));
        assert_eq!(fields.integer("g", 0..=5).expect("none"), None);
        for field in ["b", "c", "d", "e", "f", "h"] {
            let failure = fields.integer(field, 0..=5).expect_err(field);
            assert!(failure.message.starts_with(&format!("`{field}` is ")), "{failure:?}");
        }
        assert!(fields.finish().is_ok(), "each was taken");
    }

    #[test]
    fn what_nobody_reads_is_refused_by_name() {
        let mut fields = fields(r#"{"model": "m", "logprobs": false, "audio": {}, "odd": 1}"#);
        let reason = "there is no sound";
        assert!(fields.refuse(&[("logprobs", Value::Bool(false), "x")]).is_ok());
        let refused = fields.refuse(&[("audio", Value::Null, reason)]).expect_err("refused");
        assert_eq!(refused.object()["error"]["code"], "unsupported_parameter");
        fields.without_effect(&["model", "user"]);
        let unknown = fields.finish().expect_err("unknown");
        assert_eq!(unknown.object()["error"]["param"], "odd");
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for text in ["", "[]", "{\"a\": 1, \"a\": 2}", "{\"a\": NaN}", "\u{feff}1", "{\"a\": 1} x"] {
            assert!(Fields::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Fields::parse("[".repeat(1 << 20).as_bytes()).is_err());
        assert!(Fields::parse(b"{\"a\": \"\xff\"}").is_err());
    }
}
