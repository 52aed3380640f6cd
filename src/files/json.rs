//! Strict JSON: duplicate keys are errors, and errors carry line and column.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::open;
use crate::error::{Error, Place, Result};

/// The most bytes of a JSON file: more than any configuration has, and few enough to parse within the memory that hostile
/// input may take.
const MAX_BYTES: u64 = 8 << 20;

/// Reads and parses a JSON file.
pub fn read(path: &Path) -> Result<Value> {
    parse(path, &open::read(path, MAX_BYTES)?)
}

/// Parses JSON. `place` names where it comes from. Nested at most 128 deep.
pub fn parse(place: impl Into<Place>, text: &[u8]) -> Result<Value> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    serde_json::from_slice::<Strict>(text).map(|strict| strict.0).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        let message = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
        let place = place.into().line(line).column(column);
        Error::input(place, format!("not valid JSON: {message}")).because(error)
    })
}

/// The kind of a value, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as JSON, for messages: cut after 80 characters.
pub fn shortened(value: &Value) -> String {
    const MOST_CHARACTERS: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Floating-point numbers by their bits, for `#[serde(with = …)]`: a decimal text may come back changed in its last digit.
pub mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the bits of a number.
    ///
    /// # Errors
    /// Those of `serializer`.
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    /// Reads a number from its bits.
    ///
    /// # Errors
    /// Those of `deserializer`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }

    /// The same for a number that may be missing.
    pub mod option {
        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        /// Writes the bits of a number, or null.
        ///
        /// # Errors
        /// Those of `serializer`.
        pub fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
            value.map(f64::to_bits).serialize(serializer)
        }

        /// Reads a number from its bits, or null.
        ///
        /// # Errors
        /// Those of `deserializer`.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
            Ok(Option::<u64>::deserialize(deserializer)?.map(f64::from_bits))
        }
    }
}

/// A [`Value`] whose objects had no key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(StrictVisitor)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` stands twice")));
            }
            map.insert(key, entries.next_value_seed(StrictVisitor)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_as_serde_json_has_them() {
        let text = br#"{"b": [1, -2, 0.5, null, true], "a": {"x": "y"}}"#;
        let expected: Value = serde_json::from_slice(text).expect("valid");
        assert_eq!(parse("here", text).expect("valid"), expected);
    }

    #[test]
    fn duplicate_keys_deep_nesting_and_rubbish_are_errors_with_a_place() {
        let twice = parse("c.json", b"{\"a\": {\n\"x\": 1, \"x\": 1}}").expect_err("twice").to_string();
        assert!(twice.contains("c.json:2:") && twice.contains("`x` stands twice"), "{twice}");
        let deep = "[".repeat(100_000);
        assert!(parse("c.json", deep.as_bytes()).is_err());
        for text in ["", "{", "NaN", "{\"a\": 1e999}", "[1] 2", "\u{feff}"] {
            assert!(parse("c.json", text.as_bytes()).is_err(), "{text}");
        }
    }
}
