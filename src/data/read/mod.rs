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
use crate::error::{Error, Result};
use crate::files::{hex, open};

/// The largest file of JSON that is read, in bytes.
pub(super) const MAX_JSON_BYTES: u64 = 4 << 30;
/// The largest table that is read, in bytes.
const MAX_TABLE_BYTES: u64 = 2 << 30;

/// A data file as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// Its rows.
    pub rows: Vec<Row>,
    /// The SHA-256 of the bytes that the rows were read from, in hexadecimal.
    pub sha256: String,
}

/// Reads a data file by its ending: `.json` is one list of objects, `.csv`, `.tsv` and `.parquet` are tables, anything else
/// has an object a line. Without a `format`, the first example decides.
///
/// # Errors
/// Input: every bad row, equal problems together.
pub fn read_file(path: &Path, format: Option<Format>) -> Result<DataFile> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let most = if matches!(&*ending, "csv" | "tsv" | "parquet") { MAX_TABLE_BYTES } else { MAX_JSON_BYTES };
    let bytes = open::read(path, most)?;
    let sha256 = hex::sha256(&bytes[..]).map_err(|error| Error::read(path, &error))?;
    let name = path.display().to_string();
    let rows = match &*ending {
        "json" => jsonl::parse_list(&bytes, &name, format),
        "csv" | "tsv" => tables::parse_csv(bytes, &name, format),
        "parquet" => tables::parse_parquet(bytes, &name, format),
        _ => jsonl::parse(&bytes, &name, format),
    };
    Ok(DataFile { rows: rows?, sha256 })
}

/// The rows of a data file: [`read_file`] without the checksum.
///
/// # Errors
/// Those of [`read_file`].
pub fn read(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    read_file(path, format).map(|file| file.rows)
}
