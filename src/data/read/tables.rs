//! CSV files with the columns of the JSONL shapes, read with polars; and what tables of all kinds share.
//!
//! Turns, tools and history are JSON text. Columns that no shape has are not read, and named. An empty cell counts as missing.

use std::io::Cursor;

use polars::prelude::{Column, CsvReadOptions, SerReader};
use serde_json::{Map, Value};

use super::csv::Tidy;
use super::rows::{Receiver, Rows, unknown_shape};
use super::{Shape, unreadable};
use crate::data::example::Row;
use crate::data::format::SHAPES;
use crate::data::position::At;
use crate::error::{Error, Result};

pub(super) use super::parquet::parquet_into;
pub use super::parquet::parse_parquet;

/// Parses the bytes of a CSV file with a header line; `name` stands in messages. Without a format, the columns decide. A
/// byte-order mark, CR LF, blank lines and quotes within a field that does not begin with one are fine; fields may be separated
/// by semicolons or tabs.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn parse_csv(bytes: Vec<u8>, name: &str, shape: impl Into<Shape>) -> Result<Vec<Row>> {
    let shape = shape.into();
    let mut rows = Rows::new(name, shape.clone());
    csv_into(bytes, name, &shape, Kept::Read, &mut rows)?;
    rows.finish()
}

/// The columns that are handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Those that the shape reads.
    Read,
    /// All.
    Every,
}

/// Hands the rows of a CSV file to `rows`, as objects of its columns.
pub(super) fn csv_into(bytes: Vec<u8>, name: &str, shape: &Shape, kept: Kept, rows: &mut impl Receiver) -> Result<()> {
    let tidy = Tidy::read(unreadable::text(&bytes, name)?, name, shape)?;
    drop(bytes);
    check_columns(&tidy.header, name, shape)?;
    // No types are guessed: a completion "100" is a text.
    let options = CsvReadOptions::default().with_has_header(true).with_infer_schema_length(Some(0));
    let frame = options
        .into_reader_with_file_handle(Cursor::new(tidy.bytes))
        .finish()
        .map_err(|error| Error::input(name, format!("not a CSV file: {error}")))?;
    let unread = unread(&tidy.header, shape);
    let is_kept = |column: &&Column| kept == Kept::Every || shape.reads(column.name());
    let columns: Vec<&Column> = frame.columns().iter().filter(is_kept).collect();
    for (row, line) in tidy.lines.into_iter().enumerate() {
        let cells = columns.iter().map(|column| (column.name().as_str(), cell(column, row)));
        let bytes = cells.clone().map(|(_, cell)| cell.map_or(0, str::len)).sum();
        if !rows.is_too_long(At::Line(line), bytes) {
            let fields: Map<String, Value> =
                cells.map(|(column, cell)| (column.to_owned(), cell.map_or(Value::Null, Value::from))).collect();
            rows.row(At::Line(line), Value::Object(fields), &unread);
        }
    }
    Ok(())
}

/// Whether there is an example in these columns at all.
pub(super) fn check_columns(columns: &[String], name: &str, shape: &Shape) -> Result<()> {
    if columns.is_empty() {
        return Err(Error::input(name, "has no examples").hint(SHAPES));
    }
    if shape.format.is_none() && shape.columns.format(|key| columns.iter().any(|column| column == key)).is_none() {
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        return Err(unknown_shape("columns", &columns, &shape.columns).within(name));
    }
    Ok(())
}

/// The columns that are not read, the index aside that pandas adds.
pub(super) fn unread(columns: &[String], shape: &Shape) -> Vec<String> {
    let is_unread = |column: &&String| !shape.reads(column) && !column.starts_with("__index_level_");
    columns.iter().filter(is_unread).cloned().collect()
}

/// The text of a cell; `None` where it is empty.
fn cell(column: &Column, row: usize) -> Option<&str> {
    column.str().ok().and_then(|texts| texts.get(row))
}
