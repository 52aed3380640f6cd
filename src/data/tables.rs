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
use super::jsonl::{Format, Rows};
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

/// Parses the bytes of a CSV file; `name` stands in messages.
pub fn parse_csv(mut bytes: Vec<u8>, name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        // The byte-order mark would become part of the first column's name.
        bytes.drain(..3);
    }
    check_csv(&bytes, name)?;
    // No types are guessed: a completion "100" is a text.
    let options = CsvReadOptions::default().with_has_header(true).with_infer_schema_length(Some(0));
    let frame = options
        .into_reader_with_file_handle(Cursor::new(bytes))
        .finish()
        .map_err(|error| Error::input(name, format!("not a CSV file: {error}")))?;
    examples(&frame, name, format)
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
        check_pages(&metadata, &bytes, name)?;
        let columns = COLUMNS.into_iter().filter(|column| schema.contains(column)).map(String::from).collect();
        let frame = reader.with_columns(Some(columns)).finish().map_err(|error| broken(&error))?;
        examples(&frame, name, format)
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

/// Checks quotes, widths and the header, which polars would partly overlook: every problem with its line.
fn check_csv(bytes: &[u8], name: &str) -> Result<()> {
    let mut problems = Vec::new();
    let mut header: Vec<String> = Vec::new();
    let (mut line, mut at) = (1, 0);
    while at < bytes.len() {
        let record = Record::read(&bytes[at..]);
        let place = format!("{name}:{line}");
        if !record.closed {
            problems.push(Error::input(place, "a quote opened in this row is never closed"));
            break;
        }
        if record.longest > MAX_FIELD_BYTES {
            problems
                .push(Error::input(place, format!("a field of {} bytes; at most {MAX_FIELD_BYTES}", record.longest)));
        } else if header.is_empty() {
            header = fields(&bytes[at..at + record.bytes]);
            let mut seen = HashSet::new();
            if let Some(twice) = header.iter().find(|column| !seen.insert(column.as_str())) {
                problems.push(Error::input(place, format!("the column {twice:?} stands twice")));
            }
        } else if record.fields != header.len() && record.bytes > record.line_end {
            let message = format!("{} fields; the header has {}", record.fields, header.len());
            problems.push(Error::input(place, message));
        }
        if problems.len() >= MAX_REPORTED {
            break;
        }
        line += record.lines;
        at += record.bytes;
    }
    Error::none_of(problems, ())
}

/// One row of a CSV file, which may go over several lines.
struct Record {
    /// With the line end.
    bytes: usize,
    line_end: usize,
    lines: usize,
    fields: usize,
    longest: usize,
    closed: bool,
}

impl Record {
    fn read(bytes: &[u8]) -> Self {
        let (mut quoted, mut fields, mut longest, mut start, mut lines) = (false, 1, 0, 0, 0);
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => quoted = !quoted,
                b',' if !quoted => {
                    fields += 1;
                    longest = longest.max(at - start);
                    start = at + 1;
                }
                b'\n' => {
                    lines += 1;
                    if !quoted {
                        let line_end = if at > 0 && bytes[at - 1] == b'\r' { 2 } else { 1 };
                        longest = longest.max(at - start);
                        return Self { bytes: at + 1, line_end, lines, fields, longest, closed: true };
                    }
                }
                _ => {}
            }
        }
        longest = longest.max(bytes.len() - start);
        Self { bytes: bytes.len(), line_end: 0, lines, fields, longest, closed: !quoted }
    }
}

/// The fields of a header line.
fn fields(record: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(record);
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for symbol in text.trim_end_matches(['\r', '\n']).chars() {
        match symbol {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields.last_mut().into_iter().for_each(|field| field.push(other)),
        }
    }
    fields
}

fn not_texts(name: &str, column: &str, found: &str) -> Error {
    Error::input(name, format!("the column `{column}` is of type {found}; expected texts"))
        .hint("chat data is best kept as JSONL")
}

/// The rows of a table as examples.
fn examples(frame: &DataFrame, name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let columns: Vec<&Column> =
        frame.columns().iter().filter(|column| COLUMNS.contains(&column.name().as_str())).collect();
    if columns.is_empty() {
        let found: Vec<&str> = frame.columns().iter().map(|column| column.name().as_str()).take(10).collect();
        return Err(Error::input(name, format!("found the columns {found:?}; {}", super::jsonl::SHAPES)));
    }
    for column in &columns {
        if !matches!(column.dtype(), DataType::String | DataType::Null) {
            return Err(not_texts(name, column.name(), &column.dtype().to_string()));
        }
    }
    let mut rows = Rows::new(format);
    for row in 0..frame.height() {
        let position = Position::Row(row + 1);
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
