//! The choice of modules in a recipe: words, lists of names, regular expressions, and values by pattern. Names and patterns mean
//! what they mean in PEFT's configuration (`peft/patterns.rs`).

use serde::{Serialize, Serializer};

use super::peft::patterns::{Pattern, Selection};
use crate::error::{Error, Place, Result};
use crate::settings::{Describe, FromNode, Limit, Node, Reader, Value, mismatch};

/// Modules by name or by pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Modules {
    /// By PEFT's rule for a list of names: the whole path, or its end after a dot.
    Named(Vec<String>),
    /// A regular expression of Python's dialect that the whole path matches.
    Pattern(String),
}

/// A choice of sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every projection of attention: q, k, v and o in most families, `query_key_value` and `dense` in GPT-NeoX.
    Attention,
    /// Every linear layer but the output head, as PEFT's `"all-linear"` (`_maybe_include_all_linear_layers`).
    AllLinear,
    /// Those of these names, or of this pattern.
    Modules(Modules),
}

/// Values by regular expressions, of which each must match the path of a module or its end after a dot; sorted by the expressions.
#[derive(Debug, Clone, PartialEq)]
pub struct ByPattern<T>(Vec<(String, T)>);

impl Modules {
    /// The names of a list; empty for a pattern.
    pub fn listed(&self) -> &[String] {
        match self {
            Self::Named(names) => names,
            Self::Pattern(_) => &[],
        }
    }

    /// The same as PEFT's configuration would have it.
    pub(super) fn selection(&self) -> Result<Selection, String> {
        Ok(match self {
            Self::Named(names) => Selection::Names(names.clone()),
            Self::Pattern(pattern) => Selection::Pattern(Pattern::whole(pattern)?),
        })
    }
}

impl Targets {
    /// The word for the projections of attention.
    pub const ATTENTION: &'static str = "attention";
    /// The word for every linear layer.
    pub const ALL_LINEAR: &'static str = "all-linear";

    /// The choice by these names.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Modules(Modules::Named(names.into_iter().map(str::to_owned).collect()))
    }

    /// The names of a list; empty for the other choices.
    pub fn listed(&self) -> &[String] {
        match self {
            Self::Attention | Self::AllLinear => &[],
            Self::Modules(modules) => modules.listed(),
        }
    }
}

impl<T: Copy + PartialEq> ByPattern<T> {
    /// No value for any module.
    pub const NONE: Self = Self(Vec::new());

    /// These values.
    pub fn of<'a>(values: impl IntoIterator<Item = (&'a str, T)>) -> Self {
        Self(values.into_iter().map(|(pattern, value)| (pattern.to_owned(), value)).collect())
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of each module, which transformers knows by several paths; `key` is the setting.
    ///
    /// # Errors
    /// Input: a pattern that matches no module, patterns that give one module different values, one that takes too many steps.
    pub(super) fn values_of(&self, key: &'static str, modules: &[Vec<&str>]) -> Result<Vec<Option<T>>> {
        let problem = |message: String| Error::input(Place::setting(key), message);
        let mut found: Vec<Option<(&str, T)>> = vec![None; modules.len()];
        let mut errors = Vec::new();
        for (written, value) in &self.0 {
            let pattern = Pattern::ending(written).map_err(problem)?;
            let mut is_used = false;
            for (paths, found) in modules.iter().zip(&mut found) {
                let mut matches = false;
                for path in paths {
                    matches = matches || pattern.matches(path).map_err(problem)?;
                }
                is_used |= matches;
                match *found {
                    _ if !matches => {}
                    // PEFT takes the first key, and sorts the keys when it saves: then another one is the first.
                    Some((other, different)) if different != *value => {
                        let module = paths.first().copied().unwrap_or_default();
                        let message = format!("`{other}` and `{written}` both match {module}, with different values");
                        errors.push(
                            problem(message).hint("a table has no order: let no two of its patterns match one module"),
                        );
                        break;
                    }
                    _ => *found = Some((written, *value)),
                }
            }
            if !is_used {
                errors.push(problem(format!("`{written}` matches no module that the adapter changes")));
            }
        }
        Error::none_of(errors, found.into_iter().map(|found| found.map(|(_, value)| value)).collect())
    }
}

/// At least one name, where they are named.
pub(super) fn at_least_one() -> Limit<Targets> {
    Limit::new("at least one", |targets| *targets != Targets::Modules(Modules::Named(Vec::new())))
}

/// Whether a text is a name rather than a pattern: a path of more than one part has dots.
fn is_word(text: &str) -> bool {
    text.chars().all(|symbol| symbol.is_alphanumeric() || symbol == '_' || symbol == '-')
}

/// Reads a list of names or a pattern; `words` stand for other choices under this key, and `expected` is all that it takes.
fn modules_from_node(node: &Node, key: &str, words: &[&str], expected: &str, reader: &mut Reader) -> Option<Modules> {
    match &node.value {
        Value::Array(_) => Vec::from_node(node, key, reader).map(Modules::Named),
        Value::String(word) if is_word(word) => {
            let message = format!("`{key}`: expected {expected}, found {}", node.value);
            let near = reader.suggested(key, word, words);
            let meant = near.map_or_else(|| format!("[\"{word}\"]"), str::to_owned);
            reader.problem_with_hint(&node.place, message, format!("did you mean `{meant}`?"));
            None
        }
        Value::String(text) => match Pattern::whole(text) {
            Ok(_) => Some(Modules::Pattern(text.clone())),
            Err(message) => {
                reader.problem(&node.place, format!("`{key}`: {message}"));
                None
            }
        },
        _ => mismatch(node, key, expected, reader),
    }
}

impl FromNode for Modules {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        modules_from_node(node, key, &[], &Self::expected(), reader)
    }
}

impl Describe for Modules {
    fn expected() -> String {
        "a list of names of modules such as q_proj, or a regular expression".to_owned()
    }

    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

impl FromNode for Targets {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::String(word) if word == Self::ATTENTION => Some(Self::Attention),
            Value::String(word) if word == Self::ALL_LINEAR => Some(Self::AllLinear),
            _ => {
                let words = [Self::ATTENTION, Self::ALL_LINEAR];
                modules_from_node(node, key, &words, &Self::expected(), reader).map(Self::Modules)
            }
        }
    }
}

impl Describe for Targets {
    fn expected() -> String {
        format!("`{}`, `{}`, {}", Self::ATTENTION, Self::ALL_LINEAR, Modules::expected())
    }

    fn schema() -> serde_json::Value {
        Modules::schema()
    }
}

impl<T: FromNode> FromNode for ByPattern<T> {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            return mismatch(node, key, "a table from patterns to numbers, such as `{ q_proj = 4 }`", reader);
        };
        let mut values = Vec::with_capacity(table.len());
        let mut is_whole = true;
        for (pattern, (place, node)) in table {
            if let Err(message) = Pattern::ending(pattern) {
                reader.problem(place, format!("`{key}`: {message}"));
                is_whole = false;
            }
            if let (Value::Table(_), false) = (&node.value, pattern.contains('.')) {
                let message = format!("`{key}.{pattern}`: expected a number, found {}", node.value);
                reader.problem_with_hint(&node.place, message, "a pattern with dots stands in quotes");
                is_whole = false;
                continue;
            }
            let value = T::from_node(node, &format!("{key}.{pattern}"), reader);
            is_whole &= value.is_some();
            values.extend(value.map(|value| (pattern.clone(), value)));
        }
        is_whole.then_some(Self(values))
    }
}

impl<T: Describe> Describe for ByPattern<T> {
    fn schema() -> serde_json::Value {
        serde_json::json!({ "type": "object", "additionalProperties": T::schema() })
    }
}

/// `limit` for every value.
pub(super) fn each<T: 'static>(limit: Limit<T>) -> Limit<ByPattern<T>> {
    let accepts = limit.accepts;
    let expected = format!("a table from patterns to numbers, {}", limit.expected);
    Limit::new(expected, move |values: &ByPattern<T>| values.0.iter().all(|(_, value)| accepts(value)))
}

impl Serialize for Modules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(names) => names.serialize(serializer),
            Self::Pattern(pattern) => serializer.serialize_str(pattern),
        }
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Attention => serializer.serialize_str(Self::ATTENTION),
            Self::AllLinear => serializer.serialize_str(Self::ALL_LINEAR),
            Self::Modules(modules) => modules.serialize(serializer),
        }
    }
}

impl<T: Serialize> Serialize for ByPattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(pattern, value)| (pattern, value)))
    }
}
