//! Data files: lines of JSON objects, JSON lists, and tables.

pub mod jsonl;
#[cfg_attr(not(feature = "tables"), path = "tables_absent.rs")]
pub mod tables;

#[cfg(feature = "tables")]
mod csv;
mod list;
mod rows;
mod shape;
mod unreadable;

use std::path::Path;

use super::example::Row;
use super::format::Format;
use crate::error::Result;

/// Reads a data file by its ending: `.json` is one list of objects, `.csv` and `.parquet` are tables, anything else
/// has an object a line. Without a `format`, the first example decides.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn read(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "json" => jsonl::read_list(path, format),
        "csv" | "tsv" => tables::read_csv(path, format),
        "parquet" => tables::read_parquet(path, format),
        _ => jsonl::read(path, format),
    }
}
