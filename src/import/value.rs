//! A configuration of another program as it was read: keys, each with its line and its value.

use std::fmt;

/// Characters of a value that a comment shows.
const SHOWN_CHARACTERS: usize = 300;

/// A value of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Nothing: `null`, `~`, `None`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// Keys with values.
    Table(Vec<Entry>),
    /// Python that is more than a literal, as it stands; it is not run.
    Expression(String),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The key, within a section after the names of the sections: `lora_parameters.rank`.
    pub(super) key: String,
    /// Its line, counted from 1.
    pub(super) line: usize,
    /// Its value.
    pub(super) value: Value,
}

impl Entry {
    /// The entry under the key of the section that it stands in.
    pub(super) fn within(&self, section: &str) -> Self {
        Self { key: format!("{section}.{}", self.key), ..self.clone() }
    }

    /// The last part of the key.
    pub(super) fn name(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or_default()
    }
}

impl Value {
    /// The value as a number; texts that spell one count, as `2e-4` does where YAML 1.1 is read.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Text(text) => number_in(text),
            _ => None,
        }
    }

    /// The value as a whole number.
    pub(super) fn whole(&self) -> Option<i64> {
        const LARGEST: f64 = 9_007_199_254_740_992.0;
        self.number().filter(|number| number.fract() == 0.0 && number.abs() <= LARGEST).map(|number| number as i64)
    }

    /// The value as a text that is not empty.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.trim().is_empty() => Some(text.trim()),
            _ => None,
        }
    }

    /// The value as a truth value; texts that mean one count.
    pub(super) fn truth(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            Self::Integer(number) => Some(*number != 0),
            Self::Text(text) => truth_in(text),
            _ => None,
        }
    }

    /// Whether the value switches something off or says nothing.
    pub(super) fn is_off(&self) -> bool {
        match self {
            Self::Null | Self::Bool(false) => true,
            Self::Text(text) => matches!(text.trim(), "" | "none" | "None" | "null" | "no" | "false" | "False"),
            Self::List(items) => items.is_empty(),
            Self::Table(entries) => entries.is_empty(),
            _ => false,
        }
    }

    /// The texts of the value: of a list, or of one text between commas.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        match self {
            Self::Text(text) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(parts.map(str::to_owned).collect())
            }
            Self::List(items) => items.iter().map(|item| item.text().map(str::to_owned)).collect(),
            _ => None,
        }
    }

    /// The entries of a table.
    pub(super) fn entries(&self) -> &[Entry] {
        match self {
            Self::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The value in the form of TOML; none where it has no such form.
    pub(super) fn toml(&self) -> Option<toml::Value> {
        Some(match self {
            Self::Null | Self::Expression(_) => return None,
            Self::Bool(value) => toml::Value::Boolean(*value),
            Self::Integer(number) => toml::Value::Integer(*number),
            Self::Float(number) => match self.whole() {
                Some(whole) => toml::Value::Integer(whole),
                None => toml::Value::Float(*number),
            },
            Self::Text(text) => match (number_in(text), self.whole()) {
                (_, Some(whole)) => toml::Value::Integer(whole),
                (Some(number), None) => toml::Value::Float(number),
                _ => toml::Value::String(text.clone()),
            },
            Self::List(items) => toml::Value::Array(items.iter().map(Self::toml).collect::<Option<_>>()?),
            Self::Table(entries) => {
                let pairs = entries.iter().map(|entry| Some((entry.key.clone(), entry.value.toml()?)));
                toml::Value::Table(pairs.collect::<Option<_>>()?)
            }
        })
    }
}

/// The number that a text spells.
fn number_in(text: &str) -> Option<f64> {
    let starts_a_number =
        text.trim_start_matches(['+', '-']).starts_with(|symbol: char| symbol.is_ascii_digit() || symbol == '.');
    // An underscore parts digits, as in 1_000.
    let digits = text.trim().replace('_', "");
    starts_a_number.then(|| digits.parse().ok()).flatten().filter(|number: &f64| number.is_finite())
}

/// The truth value that a word means in YAML 1.1, which the other programs read.
pub(super) fn truth_in(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

impl fmt::Display for Value {
    /// The value as a comment shows it: on one line, and cut where it is long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Null => "null".to_owned(),
            Self::Expression(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
            Self::Table(entries) => {
                let pairs = entries.iter().map(|entry| format!("{}: {}", entry.key, entry.value));
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
            }
            Self::List(items) => {
                format!("[{}]", items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::Text(text) => toml::Value::String(text.clone()).to_string().replace('\n', "\\n"),
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
        };
        f.write_str(&one_line(&text, SHOWN_CHARACTERS))
    }
}

/// A text on one line, cut after `characters`; characters that control a terminal or end a line are escaped.
pub(super) fn one_line(text: &str, characters: usize) -> String {
    let (shown, more) = match text.char_indices().nth(characters) {
        Some((end, _)) => (&text[..end], " …"),
        None => (text, ""),
    };
    let escaped = shown.chars().map(|symbol| match symbol.is_control() || matches!(symbol, '\u{2028}' | '\u{2029}') {
        true => symbol.escape_default().to_string(),
        false => symbol.to_string(),
    });
    escaped.collect::<String>() + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_spell_numbers_are_numbers() {
        let text = |text: &str| Value::Text(text.into());
        assert_eq!(text("2e-4").number(), Some(2e-4));
        assert_eq!(text("2e-4").toml(), Some(toml::Value::Float(2e-4)));
        assert_eq!(text("1_000").toml(), Some(toml::Value::Integer(1000)));
        assert_eq!(Value::Float(3.0).toml(), Some(toml::Value::Integer(3)));
        assert_eq!((text("nan").number(), text("infinity").number(), text("q_proj").number()), (None, None, None));
        assert_eq!(text("7b-model").toml(), Some(toml::Value::String("7b-model".into())));
        assert_eq!((text("Yes").truth(), text("off").truth(), text("auto").truth()), (Some(true), Some(false), None));
    }

    #[test]
    fn a_value_cannot_leave_its_comment() {
        let value = Value::Text("a\nb\u{1b}[2J\u{2028}".into());
        assert!(!value.to_string().contains(|symbol: char| symbol.is_control() || symbol == '\u{2028}'), "{value}");
        assert_eq!(Value::Expression("f(\n  x )".into()).to_string(), "f( x )");
        assert_eq!(one_line("abcd", 2), "ab …");
    }
}
