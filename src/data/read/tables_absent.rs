//! CSV and Parquet files, in a build without the feature `tables`: each an error that names it.

use super::Shape;
use crate::data::example::Row;
use crate::error::{Error, Result};

/// Parses the bytes of a CSV file; not compiled in.
///
/// # Errors
/// Input: always.
pub fn parse_csv(_bytes: Vec<u8>, name: &str, _shape: impl Into<Shape>) -> Result<Vec<Row>> {
    Err(absent(name, "CSV"))
}

/// Parses the bytes of a Parquet file; not compiled in.
///
/// # Errors
/// Input: always.
pub fn parse_parquet(_bytes: Vec<u8>, name: &str, _shape: impl Into<Shape>) -> Result<Vec<Row>> {
    Err(absent(name, "Parquet"))
}

fn absent(place: &str, kind: &str) -> Error {
    Error::input(place, format!("{kind} files need the feature `tables`, which this build leaves out"))
        .hint("build with --features tables, or use a .jsonl file")
}
