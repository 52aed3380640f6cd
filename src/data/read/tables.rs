//! CSV and Parquet files with the columns of the JSONL shapes, read with polars.
//!
//! `prompt`, `completion`; `instruction`, `input`, `output`, `system`; `text`; or a `messages` column of JSON text. `tools`
//! and `history` are JSON text, too. Other columns are not read, and named. An empty cell counts as missing.

use std::io::Cursor;
use std::sync::Arc;

use polars::prelude::{Column, CsvReadOptions, DataFrame, DataType, ParquetReader, SerReader};
use polars_parquet::parquet::metadata::{ColumnChunkMetadata, FileMetadata};
use polars_parquet::parquet::page::CompressedPage;
use polars_parquet::parquet::read::PageReader;
use serde_json::{Map, Value};

use super::csv::Tidy;
use super::rows::Rows;
use super::unreadable;
use crate::data::example::{Position, Row};
use crate::data::format::{Format, SHAPES};
use crate::error::{Error, Result};
use crate::files::json;

/// The most that a Parquet file may unpack to.
const MAX_UNPACKED_BYTES: usize = 4 << 30;
/// The columns that examples are made of.
pub(super) const COLUMNS: [&str; 11] = [
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "messages",
    "conversations",
    "tools",
    "text",
];
/// Of these, the ones that hold JSON text.
const JSON_COLUMNS: [&str; 4] = ["messages", "conversations", "history", "tools"];

/// Parses the bytes of a CSV file with a header line; `name` stands in messages. Without a `format`, the columns decide. A byte-order mark, CRLF, blank lines and quotes within a
/// field that does not begin with one are fine; fields may be separated by semicolons or tabs.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse_csv(bytes: Vec<u8>, name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let tidy = Tidy::read(unreadable::text(&bytes, name)?, name)?;
    drop(bytes);
    check_columns(&tidy.header, name, format)?;
    // No types are guessed: a completion "100" is a text.
    let options = CsvReadOptions::default().with_has_header(true).with_infer_schema_length(Some(0));
    let frame = options
        .into_reader_with_file_handle(Cursor::new(tidy.bytes))
        .finish()
        .map_err(|error| Error::input(name, format!("not a CSV file: {error}")))?;
    let position = |row: usize| Position::Line(tidy.lines.get(row).copied().unwrap_or_default());
    examples(&frame, &unread(&tidy.header), name, format, position)
}

/// Parses the bytes of a Parquet file; `name` stands in messages.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse_parquet(bytes: Vec<u8>, name: &str, format: Option<Format>) -> Result<Vec<Row>> {
    let broken = |error: &dyn std::fmt::Display| broken(name, error);
    // polars may panic on a damaged file; that, too, is only a bad file.
    let read = || -> Result<Vec<Row>> {
        let mut reader = ParquetReader::new(Cursor::new(&bytes[..]));
        let mut metadata = FileMetadata::clone(reader.get_metadata().map_err(|error| broken(&error))?);
        let sizes = metadata.row_groups.iter().map(|group| group.total_byte_size());
        let unpacked = sizes.fold(0usize, usize::saturating_add);
        if unpacked > MAX_UNPACKED_BYTES {
            return Err(Error::input(name, format!("unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES}")));
        }
        // The schema of Arrow that a file may bring types pandas' categories as dictionaries, which polars reads only with
        // a feature that nothing else here needs. The schema of Parquet itself has them as the texts that they are.
        metadata.key_value_metadata = None;
        let metadata = Arc::new(metadata);
        reader.set_metadata(metadata.clone());
        let schema = reader.schema().map_err(|error| broken(&error))?;
        // polars reads lists of structs only with a feature that nothing else here needs, and panics without it.
        let nested = COLUMNS.into_iter().find(|column| schema.get(column).is_some_and(|field| field.dtype.is_nested()));
        if let Some(column) = nested {
            return Err(not_texts(name, column, "nested"));
        }
        let names: Vec<String> = schema.iter_names().map(|column| column.to_string()).collect();
        check_columns(&names, name, format)?;
        check_pages(&metadata, &bytes, name)?;
        let columns = COLUMNS.into_iter().filter(|column| schema.contains(column)).map(String::from).collect();
        let frame = reader.with_columns(Some(columns)).finish().map_err(|error| broken(&error))?;
        examples(&frame, &unread(&names), name, format, |row| Position::Row(row + 1))
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

fn not_texts(name: &str, column: &str, found: &str) -> Error {
    Error::input(name, format!("the column `{column}` is of type {found}; expected texts"))
        .hint("chat data is best kept as JSONL")
}

/// Whether there is an example in these columns at all.
fn check_columns(columns: &[String], name: &str, format: Option<Format>) -> Result<()> {
    if columns.is_empty() {
        return Err(Error::input(name, "has no examples").hint(SHAPES));
    }
    if format.is_none() && Format::of_keys(|key| columns.iter().any(|column| column == key)).is_none() {
        let found = &columns[..columns.len().min(10)];
        return Err(Error::input(name, format!("found the columns {found:?}; {SHAPES}"))
            .hint("rename the columns (letters and spaces count)"));
    }
    Ok(())
}

/// The columns that are not read, the index aside that pandas adds.
fn unread(columns: &[String]) -> Vec<String> {
    let is_unread = |column: &&String| !COLUMNS.contains(&column.as_str()) && !column.starts_with("__index_level_");
    columns.iter().filter(is_unread).cloned().collect()
}

/// The rows of a table as examples; `position_of` says where one begins.
fn examples(
    frame: &DataFrame,
    unread: &[String],
    name: &str,
    format: Option<Format>,
    position_of: impl Fn(usize) -> Position,
) -> Result<Vec<Row>> {
    let columns: Vec<&Column> =
        frame.columns().iter().filter(|column| COLUMNS.contains(&column.name().as_str())).collect();
    for column in &columns {
        // A column without a single value has whatever type its writer chose: pandas makes it one of integers.
        let is_empty = column.null_count() == column.len();
        if !is_empty && *column.dtype() != DataType::String {
            return Err(not_texts(name, column.name(), &column.dtype().to_string()));
        }
    }
    let mut rows = Rows::new(format);
    for row in 0..frame.height() {
        let position = position_of(row);
        let cells = columns.iter().map(|column| (column.name().as_str(), cell(column, row)));
        let bytes = cells.clone().map(|(_, cell)| cell.map_or(0, str::len)).sum();
        if rows.is_too_long(position, bytes) {
            continue;
        }
        match object(cells) {
            Ok(fields) => rows.row(position, Value::Object(fields), unread),
            Err(error) => rows.bad(position, &error),
        }
    }
    rows.finish(name)
}

/// The text of a cell; `None` where it is empty.
fn cell(column: &Column, row: usize) -> Option<&str> {
    column.str().ok().and_then(|texts| texts.get(row))
}

/// One row as the object that a JSONL line would hold.
fn object<'a>(cells: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Result<Map<String, Value>> {
    let mut fields = Map::new();
    for (column, cell) in cells {
        let value = match cell {
            None => Value::Null,
            Some(text) if JSON_COLUMNS.contains(&column) => json::parse(format_args!("`{column}`"), text.as_bytes())?,
            Some(text) => Value::from(text),
        };
        fields.insert(column.to_owned(), value);
    }
    Ok(fields)
}
