//! The types that a setting can have, read from TOML: strings, paths, numbers, lists, words.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::declare::{Choice, Describe};
use super::limit::one_of;
use super::reader::{FromNode, Reader, STRING, mismatch, word};
use super::tree::{ESCAPE_HINT, Node, Value};

impl FromNode for String {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::String(text) if text.contains('\0') => {
                reader.problem(&node.place, format!("`{key}`: a zero byte cannot stand in this string"));
                None
            }
            Value::String(text) => Some(text.clone()),
            _ => mismatch(node, key, STRING, reader),
        }
    }
}

impl FromNode for PathBuf {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let text = String::from_node(node, key, reader)?;
        if let Some(control) = text.chars().find(|symbol| symbol.is_control()) {
            let message = format!("`{key}`: the control character {control:?} cannot stand in a path");
            reader.problem_with_hint(&node.place, message, ESCAPE_HINT);
            return None;
        }
        Some(text.into())
    }
}

impl FromNode for bool {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match node.value {
            Value::Bool(value) => Some(value),
            _ => mismatch(node, key, "true or false", reader),
        }
    }
}

impl FromNode for f64 {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let parsed = match &node.value {
            Value::Float(text) => text.parse().ok(),
            Value::Integer { digits, radix } => i128::from_str_radix(digits, *radix).ok().map(|number| number as f64),
            _ => None,
        };
        parsed.or_else(|| mismatch(node, key, "a number", reader))
    }
}

impl FromNode for u64 {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let parsed = match &node.value {
            Value::Integer { digits, radix } => u64::from_str_radix(digits, *radix).ok(),
            _ => return mismatch(node, key, "a whole number", reader),
        };
        parsed.or_else(|| mismatch(node, key, "a whole number from 0 to 18446744073709551615", reader))
    }
}

impl FromNode for usize {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let number = u64::from_node(node, key, reader)?;
        usize::try_from(number).ok().or_else(|| mismatch(node, key, "a number that fits this machine", reader))
    }
}

impl<T: FromNode> FromNode for Option<T> {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        T::from_node(node, key, reader).map(Some)
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let Value::Array(nodes) = &node.value else {
            return mismatch(node, key, "a list", reader);
        };
        // Read all of them before giving up, so that every bad element is reported.
        let values: Vec<Option<T>> = nodes.iter().map(|node| T::from_node(node, key, reader)).collect();
        values.into_iter().collect()
    }
}

/// A setting whose value may be left to the program: the word `auto`, or one of the words of `T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrAuto<T> {
    /// The word `auto`.
    Auto,
    /// The value that was given.
    Given(T),
}

/// The word that leaves a value to the program.
const AUTO: &str = "auto";

impl<T> OrAuto<T> {
    /// The value that was given; `None` for `auto`.
    pub fn given(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Given(value) => Some(value),
        }
    }
}

impl<T: Choice> FromNode for OrAuto<T> {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::String(text) if text == AUTO => Some(Self::Auto),
            _ => {
                let words: Vec<&str> = std::iter::once(AUTO).chain(T::NAMES.iter().copied()).collect();
                word(node, key, &words, reader).map(Self::Given)
            }
        }
    }
}

impl<T: Choice> Describe for OrAuto<T> {
    fn expected() -> String {
        let words: Vec<&str> = std::iter::once(AUTO).chain(T::NAMES.iter().copied()).collect();
        one_of(&words)
    }

    fn schema() -> serde_json::Value {
        let words: Vec<&str> = std::iter::once(AUTO).chain(T::NAMES.iter().copied()).collect();
        serde_json::json!({ "enum": words })
    }
}

impl<T: Serialize> Serialize for OrAuto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Given(value) => value.serialize(serializer),
        }
    }
}
