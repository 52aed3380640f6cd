//! YAML and JSON to the keys of a configuration. JSON is read as the YAML that it is.

use std::collections::HashSet;
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::value::{Entry, Value, truth_in};
use crate::error::{Error, Place, Result};

/// Sections and lists within each other that are read: more than any configuration has.
const MAX_DEPTH: usize = 32;

/// A list or a table that is not complete.
enum Open {
    List(Vec<Value>),
    /// The entries so far, and the key that waits for its value.
    Table(Vec<Entry>, HashSet<String>, Option<(String, usize)>),
}

/// The keys of the one document in `text`; errors name `path`.
///
/// # Errors
/// Input: no YAML, more than one document, no table at its top, a key twice, a reference (`*name`), or nesting beyond
/// `MAX_DEPTH`; each with its line.
pub(super) fn read(text: &str, path: &Path) -> Result<Vec<Entry>> {
    let place = |span: &Span| Place::file(path).line(span.start.line()).column(span.start.col() + 1);
    let (mut open, mut document): (Vec<Open>, Option<Value>) = (Vec::new(), None);
    for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
        let (event, span) = event.map_err(|error| {
            let at = Place::file(path).line(error.marker().line()).column(error.marker().col() + 1);
            Error::input(at, format!("is no YAML: {}", error.info()))
        })?;
        let complete = match event {
            Event::Scalar(text, style, ..) => Some(scalar(&text, style)),
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(..) => {
                open.push(Open::Table(Vec::new(), HashSet::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Some(Value::List(items)),
                Some(Open::Table(entries, ..)) => Some(Value::Table(entries)),
                None => None,
            },
            Event::Alias(_) => {
                return Err(Error::input(place(&span), "refers to a value elsewhere (`*name`)")
                    .hint("write the value out in its place"));
            }
            _ => None,
        };
        if open.len() > MAX_DEPTH {
            return Err(Error::input(place(&span), format!("is nested more than {MAX_DEPTH} deep")));
        }
        let Some(value) = complete else { continue };
        match open.last_mut() {
            None if document.is_some() => {
                return Err(Error::input(place(&span), "begins a second document; expected one"));
            }
            None => document = Some(value),
            Some(Open::List(items)) => items.push(value),
            Some(Open::Table(entries, keys, waiting)) => match waiting.take() {
                Some((key, line)) => entries.push(Entry { key, line, value }),
                None => {
                    let key = match value {
                        Value::Text(text) => text,
                        Value::List(_) | Value::Table(_) => {
                            return Err(Error::input(place(&span), "is a key that is a list or a section"));
                        }
                        other => other.to_string(),
                    };
                    if !keys.insert(key.clone()) {
                        return Err(Error::input(place(&span), format!("gives the key `{key}` a second time")));
                    }
                    *waiting = Some((key, span.start.line()));
                }
            },
        }
    }
    match document {
        Some(Value::Table(entries)) => Ok(entries),
        Some(_) => Err(Error::input(path, "has no keys at its top; expected `key: value` lines")),
        None => Err(Error::input(path, "is empty; expected a configuration")),
    }
}

/// The value of a scalar: by its spelling where it is plain, a text between quotes.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    if matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    if let Some(value) = truth_in(text) {
        return Value::Bool(value);
    }
    let plain = Value::Text(text.to_owned());
    match plain.number() {
        Some(_) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => {
            text.parse().map_or(plain, Value::Integer)
        }
        Some(number) => Value::Float(number),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Result<Vec<Entry>> {
        read(text, Path::new("a.yaml"))
    }

    #[test]
    fn values_are_those_that_the_other_programs_read() {
        let text = "a: 1\nb: 2e-4\nc: yes\nd: ~\ne: 'yes'\nf:\n  g: [x, 0.5]\nh: \"1\"\ni: 2024-01-02\n";
        let entries = entries(text).expect("YAML");
        let value = |key: &str| entries.iter().find(|entry| entry.key == key).expect(key).value.clone();
        assert_eq!((value("a"), value("b"), value("c")), (Value::Integer(1), Value::Float(2e-4), Value::Bool(true)));
        assert_eq!((value("d"), value("e")), (Value::Null, Value::Text("yes".into())));
        assert_eq!(value("f").entries()[0].line, 7);
        assert_eq!(value("f").entries()[0].value, Value::List(vec![Value::Text("x".into()), Value::Float(0.5)]));
        assert_eq!((value("h"), value("i")), (Value::Text("1".into()), Value::Text("2024-01-02".into())));
        assert_eq!(entries[5].line, 6);
    }

    #[test]
    fn json_is_yaml() {
        let entries =
            entries("{\n\t\"r\": 8,\n\t\"rank_pattern\": {\"layers\\\\.0\": 4},\n\t\"x\": null}\n").expect("JSON");
        assert_eq!((entries[0].value.clone(), entries[0].line), (Value::Integer(8), 2));
        assert_eq!((entries[1].value.entries()[0].key.as_str(), &entries[2].value), ("layers\\.0", &Value::Null));
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        let refused = |text: &str| entries(text).expect_err("refused").to_string();
        assert!(refused("a: 1\na: 2\n").starts_with("a.yaml:2:1: gives the key `a` a second time"));
        assert!(refused("a: [1\n").contains("is no YAML"));
        assert!(refused("a: &x 1\nb: *x\n").starts_with("a.yaml:2:4: refers to a value elsewhere"));
        assert!(refused("a: 1\n---\nb: 2\n").contains("second document"));
        assert!(refused("- a\n").contains("no keys at its top") && refused("").contains("is empty"));
        assert!(refused(&format!("a: {}", "[".repeat(100))).contains("nested more than 32 deep"));
    }
}
