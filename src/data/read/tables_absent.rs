//! CSV and Parquet files, in a build without the feature `tables`: each an error that names it.

use super::Shape;
use super::rows::Receiver;
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

/// Hands the rows of a CSV file on; not compiled in.
///
/// # Errors
/// Input: always.
pub(super) fn csv_into(_: Vec<u8>, name: &str, _: &Shape, _: Kept, _: &mut impl Receiver) -> Result<()> {
    Err(absent(name, "CSV"))
}

/// Hands the rows of a Parquet file on; not compiled in.
///
/// # Errors
/// Input: always.
pub(super) fn parquet_into(_: &[u8], name: &str, _: &Shape, _: Kept, _: &mut impl Receiver) -> Result<()> {
    Err(absent(name, "Parquet"))
}

/// The columns that are handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All.
    Every,
}

fn absent(place: &str, kind: &str) -> Error {
    Error::input(place, format!("{kind} files need the feature `tables`, which this build leaves out"))
        .hint("build with --features tables, or use a .jsonl file")
}
