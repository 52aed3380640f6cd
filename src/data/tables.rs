//! CSV and Parquet files with the columns of the JSONL shapes, read with polars.
//!
//! `prompt`, `completion`; `instruction`, `input`, `output`, `system`; `text`; or a `messages` column of JSON text.
//! Other columns are not read. An empty cell counts as missing.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;

use polars::prelude::{Column, CsvReadOptions, DataFrame, DataType, ParquetReader, SerReader};
use polars_parquet::parquet::metadata::{ColumnChunkMetadata, FileMetadata};
use polars_parquet::parquet::page::CompressedPage;
use polars_parquet::parquet::read::PageReader;
use serde_json::{Map, Value};

use super::example::{Position, Row};
use super::jsonl::{Format, Rows, SHAPES, without_mark};
use crate::error::{Error, Result};
use crate::files::{json, open};

/// The largest file read.
const MAX_FILE_BYTES: u64 = 2 << 30;
/// The most that a Parquet file may unpack to.
const MAX_UNPACKED_BYTES: usize = 4 << 30;
const MAX_FIELD_BYTES: usize = super::jsonl::MAX_LINE_BYTES;
/// How many bad lines are reported one by one.
const MAX_REPORTED: usize = 20;
/// The columns that examples are made of.
const COLUMNS: [&str; 9] =
    ["prompt", "completion", "instruction", "input", "output", "system", "messages", "conversations", "text"];

/// Reads a CSV file with a header line. Without a `format`, the columns decide.
pub fn read_csv(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    parse_csv(open::read(path, MAX_FILE_BYTES)?, &path.display().to_string(), format)
}

/// Parses the bytes of a CSV file; `name` stands in messages. A byte-order mark, CRLF, blank lines and quotes within a
/// field that does not begin with one are fine.
pub fn parse_csv(bytes: Vec<u8>, name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let tidy = Tidy::read(without_mark(&bytes, name)?, name)?;
    drop(bytes);
    check_columns(&tidy.header.iter().map(String::as_str).collect::<Vec<_>>(), name, format)?;
    // No types are guessed: a completion "100" is a text.
    let options = CsvReadOptions::default().with_has_header(true).with_infer_schema_length(Some(0));
    let frame = options
        .into_reader_with_file_handle(Cursor::new(tidy.bytes))
        .finish()
        .map_err(|error| Error::input(name, format!("not a CSV file: {error}")))?;
    examples(&frame, name, format, |row| Position::Line(tidy.lines.get(row).copied().unwrap_or_default()))
}

/// Reads a Parquet file. Without a `format`, the columns decide.
pub fn read_parquet(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    parse_parquet(open::read(path, MAX_FILE_BYTES)?, &path.display().to_string(), format)
}

/// Parses the bytes of a Parquet file; `name` stands in messages.
pub fn parse_parquet(bytes: Vec<u8>, name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let broken = |error: &dyn std::fmt::Display| broken(name, error);
    // polars may panic on a damaged file; that, too, is only a bad file.
    let read = || -> Result<Vec<Row>> {
        let mut reader = ParquetReader::new(Cursor::new(&bytes[..]));
        let metadata = reader.get_metadata().map_err(|error| broken(&error))?.clone();
        let sizes = metadata.row_groups.iter().map(|group| group.total_byte_size());
        let unpacked = sizes.fold(0usize, usize::saturating_add);
        if unpacked > MAX_UNPACKED_BYTES {
            return Err(Error::input(name, format!("unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES}")));
        }
        let schema = reader.schema().map_err(|error| broken(&error))?;
        // polars reads lists of structs only with a feature that nothing else here needs, and panics without it.
        let nested = COLUMNS.into_iter().find(|column| schema.get(column).is_some_and(|field| field.dtype.is_nested()));
        if let Some(column) = nested {
            return Err(not_texts(name, column, "nested"));
        }
        check_columns(&schema.iter_names().map(|column| column.as_str()).collect::<Vec<_>>(), name, format)?;
        check_pages(&metadata, &bytes, name)?;
        let columns = COLUMNS.into_iter().filter(|column| schema.contains(column)).map(String::from).collect();
        let frame = reader.with_columns(Some(columns)).finish().map_err(|error| broken(&error))?;
        examples(&frame, name, format, |row| Position::Row(row + 1))
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(broken(&"polars cannot read it")))
}

fn broken(name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::input(name, format!("not a Parquet file: {error}"))
}

/// Whether the pages hold no more values than their groups have rows. polars makes room for as many as a page promises,
/// and ends the process where there is none.
fn check_pages(metadata: &FileMetadata, bytes: &[u8], name: &str) -> Result<()> {
    for group in &metadata.row_groups {
        for column in group.parquet_columns() {
            let root = column.descriptor().path_in_schema.first().map_or("", |root| root.as_str());
            if !COLUMNS.contains(&root) {
                continue;
            }
            check_column(column, group.num_rows(), bytes).map_err(|error| broken(name, &error))?;
        }
    }
    Ok(())
}

fn check_column(column: &ColumnChunkMetadata, rows: usize, bytes: &[u8]) -> std::result::Result<(), String> {
    let range = column.byte_range();
    let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
    let chunk = range.and_then(|(start, end)| bytes.get(start..end));
    let chunk = chunk.ok_or("a column lies outside the file")?;
    let mut left = rows;
    for page in PageReader::new(Cursor::new(chunk.to_vec().into()), column, Vec::new(), MAX_UNPACKED_BYTES) {
        if let CompressedPage::Data(page) = page.map_err(|error| error.to_string())? {
            let too_many = || format!("a page of {} values where {left} rows are left", page.num_values());
            left = left.checked_sub(page.num_values()).ok_or_else(too_many)?;
        }
    }
    Ok(())
}

/// A CSV file without what polars overlooks or stumbles over: every row checked, blank lines left out, every field that
/// holds a quote in quotes.
struct Tidy {
    bytes: Vec<u8>,
    header: Vec<String>,
    /// Where each row after the header begins, counted from 1.
    lines: Vec<usize>,
}

impl Tidy {
    /// Every problem with its line.
    fn read(bytes: &[u8], name: &str) -> Result<Self> {
        if let Err(error) = str::from_utf8(bytes) {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            return Err(Error::input(format!("{name}:{line}"), "is not UTF-8 text").hint("save it again as UTF-8"));
        }
        let mut tidy = Self { bytes: Vec::with_capacity(bytes.len()), header: Vec::new(), lines: Vec::new() };
        let mut problems = Vec::new();
        let (mut rest, mut line) = (bytes, 1);
        while !rest.is_empty() && problems.len() < MAX_REPORTED {
            let place = format!("{name}:{line}");
            let (fields, after) = match record(rest) {
                Ok(read) => read,
                Err(message) => {
                    // Where the row would end is unknown.
                    problems.push(Error::input(place, message));
                    break;
                }
            };
            match tidy.add(&fields, line) {
                Ok(()) => {}
                Err(message) => problems.push(Error::input(place, message)),
            }
            line += rest[..rest.len() - after.len()].iter().filter(|byte| **byte == b'\n').count();
            rest = after;
        }
        Error::none_of(problems, tidy)
    }

    fn add(&mut self, fields: &[&[u8]], line: usize) -> Result<(), String> {
        let width = self.header.len();
        if fields.iter().all(|field| field.iter().all(u8::is_ascii_whitespace)) && fields.len() == 1 {
            return Ok(());
        }
        if let Some(long) = fields.iter().map(|field| field.len()).find(|length| *length > MAX_FIELD_BYTES) {
            return Err(format!("a field of {long} bytes; at most {MAX_FIELD_BYTES}"));
        }
        if width == 0 {
            self.header = fields.iter().map(|field| plain(field)).collect();
            let mut seen = HashSet::new();
            if let Some(twice) = self.header.iter().find(|column| !seen.insert(column.as_str())) {
                return Err(format!("the column {twice:?} stands twice"));
            }
        } else if fields.len() == width {
            self.lines.push(line);
        } else {
            return Err(format!("{} fields; the header has {width}", fields.len()));
        }
        for (index, field) in fields.iter().enumerate() {
            self.bytes.extend((index > 0).then_some(b','));
            match field {
                [b'"', ..] => self.bytes.extend_from_slice(field),
                field if field.contains(&b'"') => {
                    let doubled = plain(field).replace('"', "\"\"");
                    self.bytes.extend_from_slice(format!("\"{doubled}\"").as_bytes());
                }
                field => self.bytes.extend_from_slice(field),
            }
        }
        self.bytes.push(b'\n');
        Ok(())
    }
}

/// The fields of the row that `bytes` begin with, their quotes included, and what follows it.
fn record(bytes: &[u8]) -> Result<(Vec<&[u8]>, &[u8]), &'static str> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    loop {
        let length = field_length(rest)?;
        let (field, after) = rest.split_at(length);
        fields.push(field);
        match after {
            [b',', more @ ..] => rest = more,
            [b'\r', b'\n', after @ ..] | [b'\n' | b'\r', after @ ..] => return Ok((fields, after)),
            after => return Ok((fields, after)),
        }
    }
}

/// The length of the field that `bytes` begin with.
fn field_length(bytes: &[u8]) -> Result<usize, &'static str> {
    if bytes.first() != Some(&b'"') {
        let end = bytes.iter().position(|byte| matches!(byte, b',' | b'\n')).unwrap_or(bytes.len());
        return Ok(end - usize::from(bytes[..end].ends_with(b"\r") && bytes.get(end) != Some(&b',')));
    }
    let mut length = 1;
    while let Some(quote) = bytes[length..].iter().position(|byte| *byte == b'"') {
        length += quote + 1;
        match bytes.get(length) {
            Some(b'"') => length += 1,
            None | Some(b',' | b'\n' | b'\r') => return Ok(length),
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

fn not_texts(name: &str, column: &str, found: &str) -> Error {
    Error::input(name, format!("the column `{column}` is of type {found}; expected texts"))
        .hint("chat data is best kept as JSONL")
}

/// Whether there is an example in these columns at all.
fn check_columns(columns: &[&str], name: &str, format: Option<Format>) -> Result<()> {
    if columns.is_empty() {
        return Err(Error::input(name, "has no examples").hint(SHAPES));
    }
    if format.is_none() && Format::of_keys(|key| columns.contains(&key)).is_none() {
        let found = &columns[..columns.len().min(10)];
        return Err(Error::input(name, format!("found the columns {found:?}; {SHAPES}")));
    }
    Ok(())
}

/// The rows of a table as examples; `position_of` says where one begins.
fn examples(
    frame: &DataFrame,
    name: &str,
    format: Option<Format>,
    position_of: impl Fn(usize) -> Position,
) -> Result<Vec<Row>> {
    let columns: Vec<&Column> =
        frame.columns().iter().filter(|column| COLUMNS.contains(&column.name().as_str())).collect();
    for column in &columns {
        if !matches!(column.dtype(), DataType::String | DataType::Null) {
            return Err(not_texts(name, column.name(), &column.dtype().to_string()));
        }
    }
    let mut rows = Rows::new(format);
    for row in 0..frame.height() {
        let position = position_of(row);
        let place = position.within(name);
        match object(&columns, row, &place) {
            Ok(fields) => rows.row(position, &place, Value::Object(fields)),
            Err(error) => rows.bad(error),
        }
    }
    rows.finish(name)
}

/// One row as the object that a JSONL line would hold.
fn object(columns: &[&Column], row: usize, place: &str) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for column in columns {
        let column_name = column.name().as_str();
        let cell = column.str().ok().and_then(|texts| texts.get(row));
        let value = match cell {
            None => Value::Null,
            Some(text) if text.len() > MAX_FIELD_BYTES => {
                let message = format!("`{column_name}` has {} bytes; at most {MAX_FIELD_BYTES}", text.len());
                return Err(Error::input(place, message));
            }
            Some(text) if matches!(column_name, "messages" | "conversations") => {
                json::parse(format_args!("{place}, `{column_name}`"), text.as_bytes())?
            }
            Some(text) => Value::from(text),
        };
        fields.insert(column_name.to_owned(), value);
    }
    Ok(fields)
}
