//! The size of a schema, checked before anything works on it.
//!
//! The library limits its own work for the most part. Some of its loops go by numbers of the schema, or over all pairs of its parts; these
//! are held here.

use serde_json::Value;

use crate::error::{Error, Result};

/// The most bytes of a schema, as compact JSON.
const MAX_BYTES: usize = 128 << 10;
/// The most values in it, lists and objects counted.
const MAX_VALUES: usize = 10_000;
/// The most properties in it, and the most names that are required: the grammar's rows grow with them.
const MAX_PROPERTIES: usize = 2000;
/// The most items or properties that it may ask for by number.
const MAX_COUNT: u64 = 1000;
/// The longest text that it may ask for by number.
const MAX_LENGTH: u64 = 65_536;
/// The greatest magnitude of a number in it: beyond that of i64, ranges of whole numbers let the library recur without end.
const MAX_NUMBER: f64 = 1e18;
/// The most patterns, and the most bytes of one.
const MAX_PATTERNS: usize = 128;
const MAX_PATTERN_BYTES: usize = 2048;
/// The most patterns of names: the library compares them in pairs.
const MAX_NAME_PATTERNS: usize = 32;

/// The parts that have been counted.
#[derive(Default)]
struct Counts {
    values: usize,
    properties: usize,
    required: usize,
    patterns: usize,
    name_patterns: usize,
}

/// Checks the size of a schema.
///
/// # Errors
/// Input: it is no object, or exceeds a limit.
pub(super) fn check(schema: &Value) -> Result<()> {
    if !schema.is_object() {
        return Err(wrong("is not an object".to_owned()));
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_BYTES {
        return Err(wrong(format!("has {bytes} bytes; at most {MAX_BYTES} are taken")));
    }
    Counts::default().add(schema)
}

fn wrong(message: String) -> Error {
    Error::input("", format!("the schema {message}"))
}

fn at_most_properties(count: usize, what: &str) -> Result<()> {
    let message = || format!("has more than {MAX_PROPERTIES} {what}");
    if count > MAX_PROPERTIES { Err(wrong(message())) } else { Ok(()) }
}

impl Counts {
    /// Counts a value with everything inside it. It is nested 128 deep at most, since it was read so.
    fn add(&mut self, value: &Value) -> Result<()> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(wrong(format!("has more than {MAX_VALUES} values")));
        }
        match value {
            Value::Number(number) if number.as_f64().is_none_or(|number| number.abs() > MAX_NUMBER) => {
                Err(wrong(format!("has the number {number}; at most {MAX_NUMBER:e} in magnitude is taken")))
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.add(item)),
            Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
                self.check_keyword(key, value)?;
                self.add(value)
            }),
            _ => Ok(()),
        }
    }

    /// Checks a keyword; a property of the same name has a schema for its value and passes.
    fn check_keyword(&mut self, key: &str, value: &Value) -> Result<()> {
        let most = match key {
            "minItems" | "maxItems" | "minProperties" | "maxProperties" => Some(MAX_COUNT),
            "minLength" | "maxLength" => Some(MAX_LENGTH),
            _ => None,
        };
        if let (Some(most), Some(number)) = (most, value.as_f64())
            && number > most as f64
        {
            return Err(wrong(format!("has `{key}` {value}; at most {most} is taken")));
        }
        match (key, value) {
            ("properties", Value::Object(fields)) => {
                self.properties += fields.len();
                at_most_properties(self.properties, "properties")
            }
            ("required", Value::Array(names)) => {
                self.required += names.len();
                at_most_properties(self.required, "required properties")
            }
            ("pattern", Value::String(pattern)) => self.add_pattern(pattern),
            ("patternProperties", Value::Object(fields)) => {
                self.name_patterns += fields.len();
                if self.name_patterns > MAX_NAME_PATTERNS {
                    return Err(wrong(format!("has more than {MAX_NAME_PATTERNS} patterns of names")));
                }
                fields.keys().try_for_each(|pattern| self.add_pattern(pattern))
            }
            _ => Ok(()),
        }
    }

    fn add_pattern(&mut self, pattern: &str) -> Result<()> {
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS {
            return Err(wrong(format!("has more than {MAX_PATTERNS} patterns")));
        }
        match pattern.len() > MAX_PATTERN_BYTES {
            true => {
                Err(wrong(format!("has a pattern of {} bytes; at most {MAX_PATTERN_BYTES} are taken", pattern.len())))
            }
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_limited_and_properties_are_no_keywords() {
        let properties =
            json!({ "maxItems": { "type": "integer" }, "pattern": { "type": "string", "maxLength": 65_536 } });
        assert!(check(&json!({ "type": "object", "properties": properties, "maxProperties": 1000 })).is_ok());
        let many = |count: usize| (0..count).map(|index| (format!("a{index}"), json!(true))).collect::<Value>();
        for (schema, reason) in [
            (json!(true), "is not an object"),
            (json!({ "description": "x".repeat(200_000) }), "has 200018 bytes"),
            (json!({ "enum": vec![0; 10_000] }), "more than 10000 values"),
            (json!({ "items": { "minItems": 1001 } }), "`minItems` 1001"),
            (json!({ "enum": [1, i64::MIN] }), "the number -9223372036854775808"),
            (json!({ "maximum": 1e300 }), "the number 1e+300"),
            (json!({ "maxLength": 1e300 }), "`maxLength` 1e+300"),
            (json!({ "pattern": "a".repeat(3000) }), "a pattern of 3000 bytes"),
            (json!({ "anyOf": vec![json!({ "pattern": "a" }); 129] }), "more than 128 patterns"),
            (json!({ "properties": many(2001) }), "more than 2000 properties"),
            (json!({ "required": vec!["a"; 2001] }), "more than 2000 required properties"),
            (json!({ "patternProperties": many(33) }), "more than 32 patterns of names"),
        ] {
            let error = check(&schema).expect_err(reason);
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
