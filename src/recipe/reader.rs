//! Reads typed settings out of a recipe, and keeps on reading after a problem, so that all are reported at once.

use std::fmt::{Debug, Display};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::tree::{Node, Place, Table, Value};
use crate::error::{Error, Result};

/// Problems found so far in the recipe called `name`.
pub(super) struct Reader<'a> {
    name: &'a str,
    problems: Vec<(Place, Error)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self { name, problems: Vec::new() }
    }

    /// Records a problem at `place`.
    pub(super) fn problem(&mut self, place: &Place, message: impl Into<String>) {
        self.problems.push((place.clone(), Error::input(place.of(self.name), message)));
    }

    /// Records a problem with a hint.
    pub(super) fn problem_with_hint(&mut self, place: &Place, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push((place.clone(), Error::input(place.of(self.name), message).hint(hint)));
    }

    /// `value`, or every problem found, in the order of the file.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T> {
        self.problems.sort_by(|left, right| left.0.cmp(&right.0));
        match (Error::join(self.problems.into_iter().map(|(_, error)| error)), value) {
            (None, Some(value)) => Ok(value),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::failed(self.name, "a setting was not read and no problem was reported")),
        }
    }
}

/// A type that a setting can have.
pub(super) trait FromNode: Sized {
    /// Reads `node`, the value of `key`; `None` after recording what is wrong with it.
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self>;
}

fn mismatch<T>(node: &Node, key: &str, expected: &str, reader: &mut Reader) -> Option<T> {
    let message = format!("`{key}`: expected {expected}, found {}", node.value);
    match (&node.place, &node.value) {
        (Place::Override(_), Value::Integer { .. } | Value::Float(_) | Value::Bool(_) | Value::Datetime(_))
            if expected == STRING =>
        {
            reader.problem_with_hint(&node.place, message, format!("quote it: `--set '{key}=\"…\"'`"));
        }
        _ => reader.problem(&node.place, message),
    }
    None
}

const STRING: &str = "a string";

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
        String::from_node(node, key, reader).map(PathBuf::from)
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

/// What a setting is where the recipe does not give it.
pub(super) enum Missing<T> {
    /// This value.
    Take(T),
    /// A problem.
    Refuse,
    /// What an empty section gives.
    ReadEmpty,
}

/// Which values of a type are accepted.
pub(super) struct Limit<T> {
    /// For the message and the reference: `1 to 100`.
    pub(super) expected: String,
    accepts: Box<dyn Fn(&T) -> bool>,
}

impl<T> Limit<T> {
    pub(super) fn new(expected: impl Into<String>, accepts: impl Fn(&T) -> bool + 'static) -> Self {
        Self { expected: expected.into(), accepts: Box::new(accepts) }
    }
}

/// Whatever the type holds.
pub(super) fn any<T>() -> Limit<T> {
    Limit::new("", |_| true)
}

/// From the first to the last, both included. NaN is in no range.
pub(super) fn between<T: PartialOrd + Display + 'static>(range: RangeInclusive<T>) -> Limit<T> {
    Limit::new(format!("{} to {}", range.start(), range.end()), move |value| range.contains(value))
}

/// Above `low`, up to `high`.
pub(super) fn above(low: f64, high: f64) -> Limit<f64> {
    Limit::new(format!("above {low}, up to {high}"), move |value| *value > low && *value <= high)
}

/// From `low` to below `high`.
pub(super) fn below(low: f64, high: f64) -> Limit<f64> {
    Limit::new(format!("{low} to below {high}"), move |value| *value >= low && *value < high)
}

/// `limit` where there is a value.
pub(super) fn optional<T: 'static>(limit: Limit<T>) -> Limit<Option<T>> {
    let accepts = limit.accepts;
    Limit::new(limit.expected, move |value: &Option<T>| value.as_ref().is_none_or(&accepts))
}

/// Not the empty string or list.
pub(super) fn not_empty<T: IsEmpty>() -> Limit<T> {
    Limit::new("something not empty", |value: &T| !value.is_empty())
}

/// What can be empty.
pub(super) trait IsEmpty {
    fn is_empty(&self) -> bool;
}

impl IsEmpty for String {
    fn is_empty(&self) -> bool {
        self.trim().is_empty()
    }
}

impl IsEmpty for PathBuf {
    fn is_empty(&self) -> bool {
        self.as_os_str().is_empty()
    }
}

impl<T> IsEmpty for Vec<T> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

/// One section being read.
pub(super) struct Section<'n> {
    table: &'n Table,
    place: &'n Place,
    key: &'n str,
}

/// `section.name`, or `name` at the top.
pub(super) fn join_key(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

impl<'n> Section<'n> {
    /// `node` as a section; keys other than `known` are problems that name the nearest known one.
    pub(super) fn open(node: &'n Node, key: &'n str, known: &[&str], reader: &mut Reader) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            return mismatch(node, key, &format!("a section `[{key}]`"), reader);
        };
        for (name, (place, _)) in table.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let message = format!("unknown key `{}`", join_key(key, name));
            reader.problem_with_hint(place, message, unknown_key_hint(key, name, known));
        }
        Some(Self { table, place: &node.place, key })
    }

    /// Reads the setting `name` and holds it against its limit.
    pub(super) fn setting<T: FromNode + Debug>(
        &self,
        name: &str,
        missing: Missing<T>,
        limit: &Limit<T>,
        reader: &mut Reader,
    ) -> Option<T> {
        let key = join_key(self.key, name);
        let Some((_, node)) = self.table.get(name) else {
            return match missing {
                Missing::Take(value) => Some(value),
                Missing::Refuse => {
                    reader.problem(self.place, format!("`{key}` is missing"));
                    None
                }
                Missing::ReadEmpty => {
                    let empty = Node { place: self.place.clone(), value: Value::Table(Table::new()) };
                    T::from_node(&empty, &key, reader)
                }
            };
        };
        let value = T::from_node(node, &key, reader)?;
        if (limit.accepts)(&value) {
            return Some(value);
        }
        reader.problem(&node.place, format!("`{key}`: expected {}, found {}", limit.expected, node.value));
        None
    }
}

fn unknown_key_hint(section: &str, name: &str, known: &[&str]) -> String {
    if let Some(near) = nearest(name, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    let elsewhere: Vec<String> = super::settings().into_iter().map(|setting| setting.key).collect();
    let same_name = elsewhere.iter().find(|key| key.rsplit('.').next() == Some(name));
    if let Some(key) = same_name.map(String::as_str).or_else(|| nearest(name, elsewhere.iter().map(String::as_str))) {
        return format!("did you mean `{key}`?");
    }
    let of = if section.is_empty() { "a recipe has the sections".to_owned() } else { format!("[{section}] has") };
    format!("{of} {}", known.join(", "))
}

/// The known name nearest to a mistyped one, if any is near.
pub(crate) fn nearest<'k>(typed: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    /// Jaro-Winkler similarity below which two names have nothing to do with each other.
    const NEAR: f64 = 0.8;
    known
        .map(|name| (strsim::jaro_winkler(typed, name), name))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, name)| name)
}

/// Reads a setting that is one of a few words; a near miss is named.
pub(super) fn word<T: std::str::FromStr>(node: &Node, key: &str, words: &[&str], reader: &mut Reader) -> Option<T> {
    let text = String::from_node(node, key, reader)?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let message = format!("`{key}`: expected {}, found {}", one_of(words), node.value);
        match nearest(&text, words.iter().copied()) {
            Some(near) => reader.problem_with_hint(&node.place, message, format!("did you mean `{near}`?")),
            None => reader.problem(&node.place, message),
        }
    }
    parsed
}

/// `a, b or c`.
pub(super) fn one_of(words: &[&str]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}
