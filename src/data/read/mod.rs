//! Data files: JSON objects by line or in a list, and tables; packed or not.

pub mod jsonl;
#[cfg_attr(not(feature = "tables"), path = "tables_absent.rs")]
pub mod tables;

#[cfg(feature = "tables")]
mod csv;
mod fields;
#[cfg(feature = "tables")]
mod footer;
mod lines;
mod list;
mod packed;
#[cfg(feature = "tables")]
mod parquet;
mod preferences;
mod rows;
mod shape;
mod turns;
mod unreadable;

pub use turns::message_of;

use std::path::Path;

pub use lines::{Lines, lines};

use super::columns::Columns;
use super::example::Row;
use super::format::Format;
use super::images::parts;
use super::paths::Paths;
use crate::error::{Error, Result};
use crate::files::{hex, open};

/// The largest file of JSON that is read, in bytes.
pub(super) const MAX_JSON_BYTES: u64 = 4 << 30;
/// The largest table that is read, in bytes.
const MAX_TABLE_BYTES: u64 = 2 << 30;

/// The form of the objects in a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Their shape; without one, the first object decides.
    pub format: Option<Format>,
    /// The names that the file gives to the keys.
    pub columns: Columns,
    /// The key or column that says which examples belong together.
    pub group: Option<String>,
}

impl From<Option<Format>> for Shape {
    fn from(format: Option<Format>) -> Self {
        Self { format, ..Self::with_columns(None) }
    }
}

impl Shape {
    /// Objects with these names of keys, whose shape the first decides.
    pub fn with_columns(columns: Option<&Columns>) -> Self {
        Self { format: None, columns: columns.cloned().unwrap_or_else(Columns::unmapped), group: None }
    }

    /// Whether a key or column with this name is read.
    #[cfg(feature = "tables")]
    fn reads(&self, name: &str) -> bool {
        self.columns.reads(name) || self.group.as_deref() == Some(name)
    }
}

/// The rows of one or several data files.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// The rows, file by file.
    pub rows: Vec<Row>,
    /// The SHA-256 of the bytes of each file as they were read, in hexadecimal.
    pub file_sha256: Vec<String>,
}

impl DataSet {
    /// Reads the files that `paths` name.
    ///
    /// # Errors
    /// Input: those of [`Paths::files`]; every bad row, equal problems of a file together.
    pub fn read(paths: &Paths, shape: &Shape) -> Result<Self> {
        Self::join(paths.files()?.iter().map(|path| read_file(path, shape)).collect())
    }

    /// The rows of several sets in order.
    ///
    /// # Errors
    /// Those of all sets.
    pub(super) fn join(sets: Vec<Result<Self>>) -> Result<Self> {
        let (mut joined, mut errors) = (Self { rows: Vec::new(), file_sha256: Vec::new() }, Vec::new());
        for set in sets {
            match set {
                Ok(set) => {
                    joined.rows.extend(set.rows);
                    joined.file_sha256.extend(set.file_sha256);
                }
                Err(error) => errors.push(error),
            }
        }
        Error::none_of(errors, joined)
    }

    /// The same rows, each seen `weight` times in an epoch.
    pub(super) fn with_weight(mut self, weight: f64) -> Self {
        self.rows.iter_mut().for_each(|row| row.weight = weight);
        self
    }

    /// The SHA-256 of all that was read, in hexadecimal: that of the file where there is one, else that of the checksums of
    /// the files in their order, a line each. The names of the files have no part in it.
    pub fn sha256(&self) -> String {
        match self.file_sha256.as_slice() {
            [one] => one.clone(),
            several => {
                let lines: String = several.iter().map(|sha256| format!("{sha256}\n")).collect();
                hex::sha256_of(lines.as_bytes())
            }
        }
    }
}

/// The kinds of data files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// JSON objects, by line or in a list.
    Json,
    /// Fields with separators.
    Csv,
    /// Columns.
    Parquet,
}

/// The kinds by the ending of a name; `.gz` and `.zst` may follow.
const ENDINGS: [(&str, Kind); 6] = [
    ("jsonl", Kind::Json),
    ("ndjson", Kind::Json),
    ("json", Kind::Json),
    ("csv", Kind::Csv),
    ("tsv", Kind::Csv),
    ("parquet", Kind::Parquet),
];

impl Kind {
    /// The kind that the ending of a name tells; `None` for any other ending.
    pub(super) fn known(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        let ending = name.rsplit_once('.')?.1;
        ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, kind)| *kind)
    }

    /// The endings of known kinds, for messages.
    pub(super) fn endings() -> String {
        let endings: Vec<String> = ENDINGS.iter().map(|(ending, _)| format!(".{ending}")).collect();
        endings.join(", ")
    }
}

/// Reads one data file. The ending of its name decides how, anything unknown holds JSON.
fn read_file(path: &Path, shape: &Shape) -> Result<DataSet> {
    let kind = Kind::known(path).unwrap_or(Kind::Json);
    let most = if kind == Kind::Json { MAX_JSON_BYTES } else { MAX_TABLE_BYTES };
    let bytes = open::read(path, most)?;
    let sha256 = hex::sha256_of(&bytes);
    let bytes = packed::unpacked(bytes, path)?;
    let name = path.display().to_string();
    let rows = match kind {
        Kind::Json => jsonl::parse(&bytes, &name, shape.clone()),
        Kind::Csv => tables::parse_csv(bytes, &name, shape.clone()),
        Kind::Parquet => tables::parse_parquet(bytes, &name, shape.clone()),
    };
    let mut rows = rows?;
    let pictures = parts::found_in(path.parent().unwrap_or(Path::new("")), &mut rows)?;
    let sha256 = match pictures.is_empty() {
        true => sha256,
        // A file is another one where a picture that it names is another one.
        false => hex::sha256_of(format!("{sha256}\n{}\n", pictures.join("\n")).as_bytes()),
    };
    Ok(DataSet { rows, file_sha256: vec![sha256] })
}

/// The rows of the files that `paths` name: [`DataSet::read`] without the checksums.
///
/// # Errors
/// Those of [`DataSet::read`].
pub fn read(paths: impl Into<Paths>, shape: impl Into<Shape>) -> Result<Vec<Row>> {
    DataSet::read(&paths.into(), &shape.into()).map(|set| set.rows)
}
