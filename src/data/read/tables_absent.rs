//! CSV and Parquet files, in a build without the feature `tables`: each an error that names it.

use std::path::Path;

use crate::data::example::Row;
use crate::data::format::Format;
use crate::error::{Error, Result};

/// Reads a CSV file; not compiled in.
///
/// # Errors
/// Input: always.
pub fn read_csv(path: &Path, _format: Option<Format>) -> Result<Vec<Row>> {
    Err(absent(&path.display().to_string(), "CSV"))
}

/// Parses the bytes of a CSV file; not compiled in.
///
/// # Errors
/// Input: always.
pub fn parse_csv(_bytes: Vec<u8>, name: &str, _format: Option<Format>) -> Result<Vec<Row>> {
    Err(absent(name, "CSV"))
}

/// Reads a Parquet file; not compiled in.
///
/// # Errors
/// Input: always.
pub fn read_parquet(path: &Path, _format: Option<Format>) -> Result<Vec<Row>> {
    Err(absent(&path.display().to_string(), "Parquet"))
}

/// Parses the bytes of a Parquet file; not compiled in.
///
/// # Errors
/// Input: always.
pub fn parse_parquet(_bytes: Vec<u8>, name: &str, _format: Option<Format>) -> Result<Vec<Row>> {
    Err(absent(name, "Parquet"))
}

fn absent(place: &str, kind: &str) -> Error {
    Error::input(place, format!("{kind} files need the feature `tables`, which this build leaves out"))
        .hint("build with --features tables, or use a .jsonl file")
}
