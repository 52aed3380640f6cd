//! CSV text before polars reads it: every row checked, blank lines left out, every field that needs quotes in quotes.

use std::collections::HashSet;

use super::Shape;
use super::rows::MAX_ROW_BYTES;
use crate::data::position::Position;
use crate::data::problems::Problems;
use crate::error::{Error, Result};

/// The separators of fields that are tried; the one whose header has most of the known columns counts, then the one with
/// most columns.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// A CSV file without what polars overlooks or stumbles over, its fields separated by commas.
pub(super) struct Tidy {
    pub(super) bytes: Vec<u8>,
    pub(super) header: Vec<String>,
    /// The line on which each row after the header begins, counted from 1.
    pub(super) lines: Vec<usize>,
    separator: u8,
}

impl Tidy {
    /// Reads the text of the file `name`, whose columns have the names of `shape`.
    ///
    /// # Errors
    /// Input: every broken row, equal problems together.
    pub(super) fn read(bytes: &[u8], name: &str, shape: &Shape) -> Result<Self> {
        let separator = separator(bytes, shape);
        let mut tidy =
            Self { bytes: Vec::with_capacity(bytes.len()), header: Vec::new(), lines: Vec::new(), separator };
        let mut problems = Problems::default();
        let (mut rest, mut line) = (bytes, 1);
        while !rest.is_empty() {
            let position = Position::line(name, line);
            let (fields, after) = match record(rest, separator) {
                Ok(read) => read,
                Err(message) => {
                    // Where the row would end is unknown.
                    problems.add(&position, &Error::input("", message));
                    break;
                }
            };
            if let Err(error) = tidy.add(&fields, line) {
                problems.add(&position, &error);
            }
            line += rest[..rest.len() - after.len()].iter().filter(|byte| **byte == b'\n').count();
            rest = after;
        }
        problems.finish(tidy)
    }

    fn add(&mut self, fields: &[&[u8]], line: usize) -> Result<()> {
        let width = self.header.len();
        if fields.iter().all(|field| field.iter().all(u8::is_ascii_whitespace)) && fields.len() == 1 {
            return Ok(());
        }
        let bytes: usize = fields.iter().map(|field| field.len()).sum();
        if bytes > MAX_ROW_BYTES {
            return Err(Error::input("", format!("a row of {bytes} bytes; at most {MAX_ROW_BYTES}"))
                .hint("cut long documents into several rows"));
        }
        if width == 0 {
            let names = fields.iter().map(|field| plain(field)).zip(1..);
            // pandas writes its index as a column without a name.
            let named = |(name, at): (String, usize)| {
                if name.is_empty() { format!("column {at} without a name") } else { name }
            };
            self.header = names.map(named).collect();
            let mut seen = HashSet::new();
            if let Some(twice) = self.header.iter().find(|column| !seen.insert(column.as_str())) {
                return Err(Error::input("", format!("the column {twice:?} stands twice")));
            }
            let header: Vec<String> = self.header.iter().map(|name| quoted(name)).collect();
            self.bytes.extend_from_slice(header.join(",").as_bytes());
            self.bytes.push(b'\n');
            return Ok(());
        } else if fields.len() == width {
            self.lines.push(line);
        } else {
            let message = format!("{} fields; the header has {width}", fields.len());
            return Err(Error::input("", message).hint(format!(
                "fields are separated by {}; one that holds it, a quote or a line end stands in double quotes",
                named(self.separator)
            )));
        }
        for (index, field) in fields.iter().enumerate() {
            self.bytes.extend((index > 0).then_some(b','));
            match field {
                [b'"', ..] => self.bytes.extend_from_slice(field),
                field if field.contains(&b'"') || field.contains(&b',') => {
                    self.bytes.extend_from_slice(quoted(&plain(field)).as_bytes());
                }
                field => self.bytes.extend_from_slice(field),
            }
        }
        self.bytes.push(b'\n');
        Ok(())
    }
}

/// The separator under which the first row has most of the columns that `shape` reads, then most columns; of equal ones,
/// the comma.
fn separator(bytes: &[u8], shape: &Shape) -> u8 {
    let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
    let columns = |separator: u8| {
        record(&bytes[start..], separator).map_or((0, 0), |(fields, _)| {
            (fields.iter().filter(|field| shape.reads(&plain(field))).count(), fields.len())
        })
    };
    SEPARATORS.into_iter().rev().max_by_key(|separator| columns(*separator)).unwrap_or(b',')
}

fn named(separator: u8) -> &'static str {
    match separator {
        b';' => "semicolons",
        b'\t' => "tabs",
        _ => "commas",
    }
}

/// The fields of the row that `bytes` begin with, their quotes included, and what follows it.
fn record(bytes: &[u8], separator: u8) -> Result<(Vec<&[u8]>, &[u8]), &'static str> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    loop {
        let length = field_length(rest, separator)?;
        let (field, after) = rest.split_at(length);
        fields.push(field);
        match after {
            [found, more @ ..] if *found == separator => rest = more,
            [b'\r', b'\n', after @ ..] | [b'\n' | b'\r', after @ ..] => return Ok((fields, after)),
            after => return Ok((fields, after)),
        }
    }
}

/// The length of the field that `bytes` begin with.
fn field_length(bytes: &[u8], separator: u8) -> Result<usize, &'static str> {
    let ends = |byte: u8| byte == separator || byte == b'\n';
    if bytes.first() != Some(&b'"') {
        let end = bytes.iter().position(|byte| ends(*byte)).unwrap_or(bytes.len());
        return Ok(end - usize::from(bytes[..end].ends_with(b"\r") && bytes.get(end) != Some(&separator)));
    }
    let mut length = 1;
    while let Some(quote) = bytes[length..].iter().position(|byte| *byte == b'"') {
        length += quote + 1;
        match bytes.get(length) {
            Some(b'"') => length += 1,
            None | Some(b'\r') => return Ok(length),
            Some(byte) if ends(*byte) => return Ok(length),
            Some(_) => return Err("text follows a closing quote; quotes within a field in quotes are doubled"),
        }
    }
    Err("a quote opened in this row is never closed")
}

/// The text of a field.
fn plain(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => text.into_owned(),
    }
}

/// A text as a field in quotes.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
