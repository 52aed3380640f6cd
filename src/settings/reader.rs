//! Reads typed settings out of a recipe, and keeps on reading after a problem, so that all are reported at once.

use std::fmt::Debug;

use super::limit::{Limit, one_of};
use super::tree::{Node, Place, Table, Value};
use crate::error::{Error, Result};

/// Names that a wrong one may have meant, for hints.
#[derive(Debug, Default)]
pub(crate) struct Suggestions {
    /// The key of every setting: `train.epochs`.
    pub(crate) keys: Vec<String>,
    /// Keys of other programs, each with the key of ours that means the same.
    pub(crate) foreign_keys: &'static [(&'static str, &'static str)],
    /// Words of other programs, each with the key and the word of ours that means the same.
    pub(crate) foreign_words: &'static [(&'static str, &'static str, &'static str)],
}

impl Suggestions {
    /// The hint for the unknown key `name` in `section`, which has the keys `known`.
    fn for_key(&self, section: &str, name: &str, known: &[&str]) -> String {
        let foreign = name.to_ascii_lowercase();
        if let Some((_, ours)) = self.foreign_keys.iter().find(|(key, _)| *key == foreign) {
            let here = ours.rsplit_once('.').filter(|(of, _)| *of == section).map(|(_, key)| key);
            return format!("did you mean `{}`?", here.unwrap_or(ours));
        }
        if let Some(near) = nearest(name, known.iter().copied()) {
            return format!("did you mean `{near}`?");
        }
        let elsewhere = || self.keys.iter().map(String::as_str);
        let same_name = elsewhere().find(|key| key.rsplit('.').next() == Some(name));
        if let Some(key) = same_name.or_else(|| nearest(name, elsewhere())) {
            return format!("did you mean `{key}`?");
        }
        let of = if section.is_empty() { "a recipe has the sections".to_owned() } else { format!("[{section}] has") };
        format!("{of} {}", known.join(", "))
    }

    /// The setting that `key`, which is none, may have meant.
    fn for_setting(&self, key: &str) -> Option<&str> {
        let name = key.rsplit('.').next().unwrap_or(key);
        let foreign = self.foreign_keys.iter().find(|(foreign, _)| *foreign == name.to_ascii_lowercase());
        let known = || self.keys.iter().map(String::as_str);
        let same_name = || known().find(|known| known.rsplit('.').next() == Some(name));
        foreign.map(|(_, ours)| *ours).or_else(same_name).or_else(|| nearest(key, known()))
    }

    /// The word of `words` that `text` may have meant as the value of `key`.
    fn for_word<'w>(&self, key: &str, text: &str, words: &[&'w str]) -> Option<&'w str> {
        let foreign = text.to_ascii_lowercase();
        let same = self.foreign_words.iter().find(|(of, word, _)| *of == key && *word == foreign);
        let same = same.and_then(|(_, _, ours)| words.iter().find(|word| *word == ours));
        same.copied().or_else(|| nearest(text, words.iter().copied()))
    }
}

/// Problems found so far in the recipe called `name`.
pub(crate) struct Reader<'a> {
    name: &'a str,
    suggestions: Suggestions,
    problems: Vec<(Place, Error)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(name: &'a str, suggestions: Suggestions) -> Self {
        Self { name, suggestions, problems: Vec::new() }
    }

    /// The word of `words` that `text` may have meant as the value of `key`.
    pub(crate) fn suggested<'w>(&self, key: &str, text: &str, words: &[&'w str]) -> Option<&'w str> {
        self.suggestions.for_word(key, text, words)
    }

    /// Whether `key` is a setting; records at `place` that it is none, with the one that it may have meant.
    pub(crate) fn is_setting(&mut self, key: &str, place: &Place) -> bool {
        let is_known = self.suggestions.keys.iter().any(|known| known == key);
        if !is_known {
            let hint = match self.suggestions.for_setting(key) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "docs/recipe.md lists the settings".to_owned(),
            };
            self.problem_with_hint(place, format!("there is no setting `{key}`"), hint);
        }
        is_known
    }

    /// Records an error of something that was read apart, in the order of `place`.
    pub(crate) fn error(&mut self, place: &Place, error: Error) {
        self.problems.push((place.clone(), error));
    }

    /// Whether a problem was recorded.
    pub(crate) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Records a problem at `place`.
    pub(crate) fn problem(&mut self, place: &Place, message: impl Into<String>) {
        self.problems.push((place.clone(), Error::input(place.of(self.name), message)));
    }

    /// Records a problem with a hint.
    pub(crate) fn problem_with_hint(&mut self, place: &Place, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push((place.clone(), Error::input(place.of(self.name), message).hint(hint)));
    }

    /// `value`, or every problem found, in the order of the file.
    ///
    /// # Errors
    /// Every problem that was recorded.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T> {
        self.problems.sort_by(|left, right| left.0.cmp(&right.0));
        match (Error::join(self.problems.into_iter().map(|(_, error)| error)), value) {
            (None, Some(value)) => Ok(value),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::failed(self.name, "a setting was not read and no problem was reported")),
        }
    }
}

/// A section of which every setting has a default, with all of them taken.
///
/// # Panics
/// A setting of the section is required.
pub(crate) fn defaults<T: FromNode>() -> T {
    let empty = Node { place: Place::Recipe, value: Value::Table(Table::new()) };
    T::from_node(&empty, "", &mut Reader::new("", Suggestions::default())).expect("every setting has a default")
}

/// A type that a setting can have.
pub(crate) trait FromNode: Sized {
    /// Reads `node`, the value of `key`; `None` after recording what is wrong with it.
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self>;
}

/// Records that `node` is of another type than `expected`.
pub(crate) fn mismatch<T>(node: &Node, key: &str, expected: &str, reader: &mut Reader) -> Option<T> {
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

/// The type of a string, for messages.
pub(crate) const STRING: &str = "a string";

/// The value of a setting that the recipe does not give.
pub(crate) enum Missing<T> {
    /// This value.
    Take(T),
    /// A problem.
    Refuse,
    /// That of an empty section.
    ReadEmpty,
}

/// One section being read.
pub(crate) struct Section<'n> {
    table: &'n Table,
    place: &'n Place,
    key: &'n str,
}

/// `section.name`, or `name` at the top.
pub(crate) fn join_key(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

impl<'n> Section<'n> {
    /// `node` as a section; keys other than `known` are problems that name the nearest known one.
    pub(crate) fn open(node: &'n Node, key: &'n str, known: &[&str], reader: &mut Reader) -> Option<Self> {
        let Value::Table(table) = &node.value else {
            return mismatch(node, key, &format!("a section `[{key}]`"), reader);
        };
        for (name, (place, _)) in table.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let message = format!("unknown key `{}`", join_key(key, name));
            let hint = reader.suggestions.for_key(key, name, known);
            reader.problem_with_hint(place, message, hint);
        }
        Some(Self { table, place: &node.place, key })
    }

    /// Reads the setting `name` and holds it against its limit.
    pub(crate) fn setting<T: FromNode + Debug>(
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
pub(crate) fn word<T: std::str::FromStr>(node: &Node, key: &str, words: &[&str], reader: &mut Reader) -> Option<T> {
    let text = String::from_node(node, key, reader)?;
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let message = format!("`{key}`: expected {}, found {}", one_of(words), node.value);
        match reader.suggested(key, &text, words) {
            Some(near) => reader.problem_with_hint(&node.place, message, format!("did you mean `{near}`?")),
            None => reader.problem(&node.place, message),
        }
    }
    parsed
}
