//! CSV and Parquet files with the columns of the JSONL shapes, read with polars.
//!
//! Turns, tools and history are JSON text. Columns that no shape has are not read, and named. An empty cell counts as missing.

use std::io::Cursor;
use std::sync::Arc;

use polars::prelude::{Column, CsvReadOptions, DataFrame, DataType, ParquetReader, SerReader};
use polars_parquet::parquet::metadata::{ColumnChunkMetadata, FileMetadata};
use polars_parquet::parquet::page::CompressedPage;
use polars_parquet::parquet::read::PageReader;
use serde_json::{Map, Value};

use super::csv::Tidy;
use super::rows::{Rows, unknown_shape};
use super::{Shape, unreadable};
use crate::data::example::Row;
use crate::data::format::SHAPES;
use crate::data::position::At;
use crate::error::{Error, Result};

/// The most that a Parquet file may unpack to.
const MAX_UNPACKED_BYTES: usize = 4 << 30;

/// Parses the bytes of a CSV file with a header line; `name` stands in messages. Without a `format`, the columns decide. A byte-order mark, CRLF, blank lines and quotes within a
/// field that does not begin with one are fine; fields may be separated by semicolons or tabs.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse_csv(bytes: Vec<u8>, name: &str, shape: impl Into<Shape>) -> Result<Vec<Row>> {
    let shape = shape.into();
    let tidy = Tidy::read(unreadable::text(&bytes, name)?, name, &shape)?;
    drop(bytes);
    check_columns(&tidy.header, name, &shape)?;
    // No types are guessed: a completion "100" is a text.
    let options = CsvReadOptions::default().with_has_header(true).with_infer_schema_length(Some(0));
    let frame = options
        .into_reader_with_file_handle(Cursor::new(tidy.bytes))
        .finish()
        .map_err(|error| Error::input(name, format!("not a CSV file: {error}")))?;
    let at = |row: usize| At::Line(tidy.lines.get(row).copied().unwrap_or_default());
    examples(&frame, &unread(&tidy.header, &shape), name, shape, at)
}

/// Parses the bytes of a Parquet file; `name` stands in messages.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse_parquet(bytes: Vec<u8>, name: &str, shape: impl Into<Shape>) -> Result<Vec<Row>> {
    let shape = shape.into();
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
        let names: Vec<String> = schema.iter_names().map(|column| column.to_string()).collect();
        let columns: Vec<String> = names.iter().filter(|name| shape.reads(name)).cloned().collect();
        let is_nested = |column: &&String| schema.get(column).is_some_and(|field| field.dtype.is_nested());
        if let Some(column) = columns.iter().find(is_nested) {
            return Err(not_texts(name, column, "nested"));
        }
        check_columns(&names, name, &shape)?;
        check_pages(&metadata, &bytes, name, &shape)?;
        let frame = reader.with_columns(Some(columns)).finish().map_err(|error| broken(&error))?;
        examples(&frame, &unread(&names, &shape), name, shape.clone(), |row| At::Row(row + 1))
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(broken(&"polars cannot read it")))
}

fn broken(name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::input(name, format!("not a Parquet file: {error}"))
}

/// Whether the pages hold no more values than their groups have rows. polars makes room for as many as a page promises,
/// and ends the process where there is none.
fn check_pages(metadata: &FileMetadata, bytes: &[u8], name: &str, shape: &Shape) -> Result<()> {
    for group in &metadata.row_groups {
        for column in group.parquet_columns() {
            let root = column.descriptor().path_in_schema.first().map_or("", |root| root.as_str());
            if !shape.reads(root) {
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
fn check_columns(columns: &[String], name: &str, shape: &Shape) -> Result<()> {
    if columns.is_empty() {
        return Err(Error::input(name, "has no examples").hint(SHAPES));
    }
    if shape.format.is_none() && shape.columns.format(|key| columns.iter().any(|column| column == key)).is_none() {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        return Err(unknown_shape("columns", &columns).within(name));
    }
    Ok(())
}

/// The columns that are not read, the index aside that pandas adds.
fn unread(columns: &[String], shape: &Shape) -> Vec<String> {
    let is_unread = |column: &&String| !shape.reads(column) && !column.starts_with("__index_level_");
    columns.iter().filter(is_unread).cloned().collect()
}

/// The rows of a table as examples; `place_of` says where one begins.
fn examples(
    frame: &DataFrame,
    unread: &[String],
    name: &str,
    shape: Shape,
    place_of: impl Fn(usize) -> At,
) -> Result<Vec<Row>> {
    let columns: Vec<&Column> =
        frame.columns().iter().filter(|column| shape.reads(column.name().as_str())).collect();
    for column in &columns {
        // A column without a single value has whatever type its writer chose: pandas makes it one of integers.
        let is_empty = column.null_count() == column.len();
        if !is_empty && *column.dtype() != DataType::String {
            return Err(not_texts(name, column.name(), &column.dtype().to_string()));
        }
    }
    let mut rows = Rows::new(name, shape);
    for row in 0..frame.height() {
        let at = place_of(row);
        let cells = columns.iter().map(|column| (column.name().as_str(), cell(column, row)));
        let bytes = cells.clone().map(|(_, cell)| cell.map_or(0, str::len)).sum();
        if !rows.is_too_long(at, bytes) {
            let fields: Map<String, Value> =
                cells.map(|(column, cell)| (column.to_owned(), cell.map_or(Value::Null, Value::from))).collect();
            rows.row(at, Value::Object(fields), unread);
        }
    }
    rows.finish()
}

/// The text of a cell; `None` where it is empty.
fn cell(column: &Column, row: usize) -> Option<&str> {
    column.str().ok().and_then(|texts| texts.get(row))
}
