//! A recipe as it was typed: TOML values, each with the place it was typed at, and `--set` laid over them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use crate::error::{self, Error, Result};

/// Sections within sections that `--set` may name: more than a recipe has, and no danger to the stack.
const MAX_DEPTH: usize = 8;

/// The place where a value was typed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Nowhere in particular: the recipe as a whole.
    Recipe,
    /// Counted from 1, in characters.
    File { line: usize, column: usize },
    /// On the command line: the key of a `--set`.
    Override(String),
}

impl Place {
    /// The form of this place in an error about the recipe called `name`.
    pub(crate) fn of(&self, name: &str) -> error::Place {
        match self {
            Self::Recipe => error::Place::file(name),
            Self::File { line, column } => error::Place::file(name).line(*line).column(*column),
            Self::Override(key) => error::Place::argument(format!("--set {key}")),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// A TOML value. Numbers keep their text: what does not fit a type is then still shown as it was typed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    String(String),
    /// Digits with an optional sign, as `i128::from_str_radix` takes them.
    Integer {
        digits: String,
        radix: u32,
    },
    Float(String),
    Bool(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Table),
}

/// The keys of a table, each with the place of the key itself.
pub(crate) type Table = BTreeMap<String, (Place, Node)>;

impl fmt::Display for Value {
    /// Kind and value, for an error message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) if text.chars().count() <= 40 => write!(f, "the string {text:?}"),
            Self::String(_) => write!(f, "a string"),
            Self::Integer { digits, radix: 10 } => write!(f, "the whole number {digits}"),
            Self::Integer { digits, radix } => write!(f, "the whole number {digits} in base {radix}"),
            Self::Float(text) => write!(f, "the number {text}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Datetime(text) => write!(f, "the date {text}"),
            Self::Array(_) => write!(f, "a list"),
            Self::Table(_) => write!(f, "a section"),
        }
    }
}

impl Node {
    /// A string that was typed nowhere.
    pub(crate) fn text(text: &str) -> Self {
        Self { place: Place::Recipe, value: Value::String(text.to_owned()) }
    }
}

impl Value {
    /// The value as TOML has it; a number that TOML's types cannot hold is a string.
    pub(crate) fn to_toml(&self) -> toml::Value {
        match self {
            Self::String(text) => text.clone().into(),
            Self::Integer { digits, radix } => {
                i64::from_str_radix(digits, *radix).map_or_else(|_| digits.clone().into(), Into::into)
            }
            Self::Float(text) => text.parse::<f64>().map_or_else(|_| text.clone().into(), Into::into),
            Self::Bool(value) => (*value).into(),
            Self::Datetime(text) => text.parse().map_or_else(|_| text.clone().into(), toml::Value::Datetime),
            Self::Array(nodes) => toml::Value::Array(nodes.iter().map(|node| node.value.to_toml()).collect()),
            Self::Table(table) => {
                let entries = table.iter().map(|(key, (_, node))| (key.clone(), node.value.to_toml()));
                toml::Value::Table(entries.collect())
            }
        }
    }
}

/// Parses TOML. Every syntax error is reported, not only the first.
pub(crate) fn parse(text: &str, name: &str) -> Result<Node> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = LineIndex::new(text);
    let errors = errors.iter().map(|error| {
        let place = error.span().map_or(Place::Recipe, |span| lines.place(span));
        let problem = Error::input(place.of(name), error.message());
        match error.span().is_some_and(|span| has_escape(lines.line(&span))) {
            true => (place, problem.hint(ESCAPE_HINT)),
            false => (place, problem),
        }
    });
    let mut errors: Vec<_> = errors.collect();
    errors.sort_by(|left, right| left.0.cmp(&right.0));
    let root =
        Node { place: Place::Recipe, value: Value::Table(from_table(table.into_inner(), &|span| lines.place(span))) };
    Error::none_of(errors.into_iter().map(|(_, error)| error).collect(), root)
}

fn from_table(table: DeTable<'_>, place: &dyn Fn(Range<usize>) -> Place) -> Table {
    let entries = table.into_iter().map(|(key, value)| {
        let key_place = place(key.span());
        (key.into_inner().into_owned(), (key_place, from_value(value, place)))
    });
    entries.collect()
}

fn from_value(value: toml::Spanned<DeValue<'_>>, place: &dyn Fn(Range<usize>) -> Place) -> Node {
    let at = place(value.span());
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => Value::Integer { digits: number.as_str().to_owned(), radix: number.radix() },
        DeValue::Float(number) => Value::Float(number.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(values) => Value::Array(values.into_iter().map(|value| from_value(value, place)).collect()),
        DeValue::Table(table) => Value::Table(from_table(table, place)),
    };
    Node { place: at, value }
}

/// Lays one `--set key=value` over a recipe. The value is TOML; what is not TOML is taken as a bare string.
pub(crate) fn set(root: &mut Node, setting: &str) -> Result<()> {
    let form = || {
        Error::input(error::Place::argument(format!("--set {setting}")), "expected section.key=value")
            .hint("for example `--set train.learning_rate=1e-4`")
    };
    let (key, text) = setting.split_once('=').ok_or_else(form)?;
    let (key, text) = (key.trim(), text.trim());
    if key.split('.').count() > MAX_DEPTH || key.split('.').any(|part| part.trim().is_empty()) {
        return Err(form());
    }
    let place = Place::Override(key.to_owned());
    let value = match DeValue::parse(text) {
        Ok(value) => from_value(value, &|_| place.clone()),
        // Quotes say that it was meant as TOML.
        Err(error) if text.starts_with(['"', '\'']) => {
            let problem = Error::input(place.of(""), error.message());
            return Err(if has_escape(text) { problem.hint(ESCAPE_HINT) } else { problem });
        }
        Err(_) => Node { place: place.clone(), value: Value::String(text.to_owned()) },
    };
    insert(root, key, "", value)
}

/// Puts `value` at `key`, seen from `node`, whose own key is `parent`. Missing sections are made.
///
/// # Errors
/// Input: a part of the key is no section.
pub(crate) fn insert(node: &mut Node, key: &str, parent: &str, value: Node) -> Result<()> {
    let place = value.place.clone();
    let found = node.value.to_string();
    let Value::Table(table) = &mut node.value else {
        return Err(Error::input(place.of(""), format!("`{parent}` is {found}, not a section")));
    };
    let Some((section, rest)) = key.split_once('.') else {
        table.insert(key.trim().to_owned(), (place, value));
        return Ok(());
    };
    let section = section.trim();
    let empty = || (place.clone(), Node { place: place.clone(), value: Value::Table(Table::new()) });
    let (_, child) = table.entry(section.to_owned()).or_insert_with(empty);
    insert(child, rest, section, value)
}

/// The advice for a backslash between double quotes, as in a Windows path.
pub(crate) const ESCAPE_HINT: &str = "between double quotes a backslash begins an escape; write a path between single \
                                      quotes, 'C:\\data\\train.jsonl', or with /";

/// Whether a backslash follows a double quote on this line.
fn has_escape(line: &str) -> bool {
    line.split_once('"').is_some_and(|(_, rest)| rest.contains('\\'))
}

/// Byte offsets to lines and columns.
struct LineIndex<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> LineIndex<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line on which `span` begins, counted from 1.
    fn number(&self, span: &Range<usize>) -> usize {
        self.starts.partition_point(|&start| start <= span.start).max(1)
    }

    /// The text of that line.
    fn line(&self, span: &Range<usize>) -> &'a str {
        self.text.lines().nth(self.number(span) - 1).unwrap_or_default()
    }

    fn place(&self, span: Range<usize>) -> Place {
        let line = self.number(&span);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.as_bytes().get(start..span.start).unwrap_or_default();
        Place::File { line, column: String::from_utf8_lossy(before).chars().count() + 1 }
    }
}
