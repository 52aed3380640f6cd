//! Data files without the rows that are there twice, and with placeholders for secrets. Lines of JSONL that are kept are kept byte
//! for byte; rows of other files become an object a line.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::catalogue::Code;
use super::duplicates::{Digest, almost_equal};
use super::secrets::{placeholder, secrets};
use super::view::{Part, View};
use crate::data::example::Row;
use crate::data::{Lines, jsonl};
use crate::error::{Error, Result};

/// Which rows count as copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Copies {
    /// Rows with the same texts, but for white space at their edges
    Exact,
    /// Rows whose prompts and answers differ in a few letters, too
    Near,
}

/// A row that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The file.
    pub file: String,
    /// Its line.
    pub line: usize,
    /// The kind of copy.
    pub code: Code,
    /// The file of the row that is kept.
    pub kept_file: String,
    /// The line of that row.
    pub kept_line: usize,
}

/// A line in which secrets were replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redacted {
    /// The file.
    pub file: String,
    /// Its line.
    pub line: usize,
    /// The number of secrets of each kind.
    pub secrets: BTreeMap<String, usize>,
}

/// Cleaned data, and what was done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// The lines that are kept.
    pub bytes: Vec<u8>,
    /// Rows that were read.
    pub rows: usize,
    /// The rows that were removed, in order.
    pub removed: Vec<Removed>,
    /// The lines in which secrets were replaced, in order.
    pub redacted: Vec<Redacted>,
}

/// A row with its place.
struct Placed<'a> {
    file: &'a str,
    line: usize,
    row: Row,
}

/// Cleans files as JSONL, one after the other, without the rows that are copies of an earlier one, and with secrets replaced.
///
/// # Errors
/// Input: every bad row.
pub fn clean(files: &[Lines], copies: Option<Copies>, redact: bool) -> Result<Cleaned> {
    let mut placed = Vec::new();
    let mut errors = Vec::new();
    for lines in files {
        let file = &*lines.name;
        let place = |row: Row| Placed { file, line: lines.number(row.position.number()), row };
        match jsonl::parse(&lines.bytes, file, None) {
            Ok(rows) => placed.extend(rows.into_iter().map(place)),
            Err(error) => errors.push(error),
        }
    }
    Error::none_of(errors, ())?;
    let removed = copies.map(|copies| copies_of(&placed, copies)).unwrap_or_default();
    let is_removed: HashMap<(&str, usize), ()> =
        removed.iter().map(|removed| ((removed.file.as_str(), removed.line), ())).collect();
    let (mut bytes, mut redacted) = (Vec::new(), Vec::new());
    for (index, lines) in files.iter().enumerate() {
        let (file, text) = (&lines.name, &lines.bytes[..]);
        // A mark is for the beginning of a file.
        let text = if index == 0 { text } else { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) };
        if bytes.last().is_some_and(|last| *last != b'\n') {
            bytes.push(b'\n');
        }
        for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let line_number = lines.number(index + 1);
            if is_removed.contains_key(&(file.as_str(), line_number)) {
                continue;
            }
            match redact.then(|| without_secrets(line)).flatten() {
                Some((line, secrets)) => {
                    bytes.extend(line);
                    redacted.push(Redacted { file: file.clone(), line: line_number, secrets });
                }
                None => bytes.extend(line),
            }
        }
    }
    Ok(Cleaned { bytes, rows: placed.len(), removed, redacted })
}

/// The rows that are copies of an earlier row that is kept.
fn copies_of(placed: &[Placed<'_>], copies: Copies) -> Vec<Removed> {
    let views: Vec<View<'_>> = placed.iter().map(|placed| View::of(&placed.row)).collect();
    /// Texts by part, and roles.
    type Content<'a> = (Vec<(Part, &'a str)>, Vec<&'a str>);
    let mut first: HashMap<Content<'_>, usize> = HashMap::new();
    // Of each row that is removed, the row that is kept.
    let mut kept: BTreeMap<usize, (Code, usize)> = BTreeMap::new();
    for (index, view) in views.iter().enumerate() {
        let texts = view.parts.iter().map(|(part, text)| (*part, text.trim())).collect();
        let roles = view.messages.iter().map(|turn| turn.role.name()).collect();
        let earlier = *first.entry((texts, roles)).or_insert(index);
        if earlier != index {
            kept.insert(index, (Code::ExactDuplicate, earlier));
        }
    }
    if copies == Copies::Near {
        let digests: Vec<Digest> = views.par_iter().map(Digest::of).collect();
        let (views, digests): (Vec<&View<'_>>, Vec<&Digest>) = views.iter().zip(&digests).unzip();
        let mut pairs = almost_equal(&views, &digests);
        pairs.sort_unstable_by_key(|(earlier, later)| (*later, *earlier));
        for (earlier, later) in pairs {
            if !kept.contains_key(&earlier) {
                kept.entry(later).or_insert((Code::NearDuplicate, earlier));
            }
        }
    }
    let place = |index: usize| (placed[index].file.to_owned(), placed[index].line);
    let removed = kept.into_iter().map(|(index, (code, earlier))| {
        let ((file, line), (kept_file, kept_line)) = (place(index), place(earlier));
        Removed { file, line, code, kept_file, kept_line }
    });
    removed.collect()
}

/// A line of JSON with placeholders for the secrets in its texts, and their numbers; `None` where there are none. A text without a
/// secret stays byte for byte; keys are left alone.
pub fn without_secrets(line: &[u8]) -> Option<(Vec<u8>, BTreeMap<String, usize>)> {
    let (mut redacted, mut counts, mut at) = (Vec::with_capacity(line.len()), BTreeMap::new(), 0);
    while let Some(quote) = line[at..].iter().position(|byte| *byte == b'"') {
        let begin = at + quote;
        let end = end_of_text(line, begin);
        redacted.extend(&line[at..begin]);
        let is_key = line[end..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        let text = serde_json::from_slice::<String>(&line[begin..end]).ok().filter(|_| !is_key);
        let found = text.as_deref().map(secrets).unwrap_or_default();
        match text {
            Some(text) if !found.is_empty() => {
                let (mut replaced, mut done) = (String::new(), 0);
                for secret in found {
                    replaced += &text[done..secret.place.start];
                    replaced += placeholder(secret.code);
                    done = secret.place.end;
                    *counts.entry(secret.code.to_string()).or_default() += 1;
                }
                replaced += &text[done..];
                redacted.extend(json!(replaced).to_string().into_bytes());
            }
            _ => redacted.extend(&line[begin..end]),
        }
        at = end;
    }
    redacted.extend(&line[at..]);
    (!counts.is_empty()).then_some((redacted, counts))
}

/// The end of the JSON text that begins at `begin`.
fn end_of_text(line: &[u8], begin: usize) -> usize {
    let mut escaped = false;
    let closes = |byte: &u8| {
        let closes = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        closes
    };
    line[begin + 1..].iter().position(closes).map_or(line.len(), |at| begin + at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(files: &[&str], copies: Option<Copies>, redact: bool) -> Cleaned {
        let lines = |(index, text): (usize, &&str)| Lines {
            name: format!("{index}.jsonl"),
            bytes: text.as_bytes().to_vec(),
            numbers: None,
        };
        let files: Vec<Lines> = files.iter().enumerate().map(lines).collect();
        clean(&files, copies, redact).expect("good data")
    }

    #[test]
    fn copies_are_removed_and_the_rest_stays_byte_for_byte() {
        let first = "{ \"prompt\":\"a\" , \"completion\": \"\\u00e9\", \"id\": 1}\r\n\n{\"prompt\":\"b\",\"completion\":\"c\"}\n";
        let second =
            "\u{feff}{\"completion\":\" é \",\"prompt\":\"a\",\"id\":2}\n{\"prompt\":\"b\",\"completion\":\"d\"}";
        let found = cleaned(&[first, second], Some(Copies::Exact), false);
        assert_eq!(
            String::from_utf8(found.bytes).expect("UTF-8"),
            format!("{first}{{\"prompt\":\"b\",\"completion\":\"d\"}}")
        );
        let removed = Removed {
            file: "1.jsonl".into(),
            line: 1,
            code: Code::ExactDuplicate,
            kept_file: "0.jsonl".into(),
            kept_line: 1,
        };
        assert_eq!((found.rows, found.removed), (4, vec![removed]));
        assert_eq!(cleaned(&[first], None, false).bytes, first.as_bytes());
    }

    #[test]
    fn secrets_become_placeholders_and_other_texts_keep_their_spelling() {
        let line = r#"{"prompt": "caf\u00e9 \"x\"", "completion": "to a.b@mail.de, caf\u00e9", "a.b@mail.de": 1}"#;
        let found = cleaned(&[line], None, true);
        let expected = r#"{"prompt": "caf\u00e9 \"x\"", "completion": "to [EMAIL], café", "a.b@mail.de": 1}"#;
        assert_eq!(String::from_utf8(found.bytes).expect("UTF-8"), expected);
        let secrets = BTreeMap::from([("D801".to_owned(), 1)]);
        assert_eq!(found.redacted, [Redacted { file: "0.jsonl".into(), line: 1, secrets }]);
    }

    #[test]
    fn a_near_copy_of_a_removed_row_is_kept_unless_it_is_one_of_a_kept_row() {
        let row = |words: &str| {
            format!("{{\"text\": \"The library opens at ten in the morning, and it closes at four {words}.\"}}\n")
        };
        let text = [row("in the afternoon"), row("in the afternoons"), row("at night, when all of the lamps are out")]
            .concat();
        let found = cleaned(&[&text], Some(Copies::Near), false);
        assert_eq!(found.removed.iter().map(|removed| (removed.line, removed.kept_line)).collect::<Vec<_>>(), [(2, 1)]);
        assert_eq!(cleaned(&[&text], Some(Copies::Exact), false).removed, []);
    }
}
