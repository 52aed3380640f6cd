//! From a line of a data file to token ids with a mask: example, template, encoding, batches.

pub mod batch;
pub mod encode;
pub mod example;
pub mod jsonl;
pub mod settings;
pub mod statistics;
#[cfg_attr(not(feature = "tables"), path = "tables_absent.rs")]
pub mod tables;
pub mod template;

use std::path::Path;

pub use encode::{Encoded, EncodedSet, Encoder, LongPolicy};
pub use example::{Example, Message, Position, Role, Row};
pub use jsonl::Format;
pub use settings::DataSettings;
pub use statistics::Statistics;
pub use template::ChatTemplate;

use crate::error::Result;

/// Reads a data file by its ending: `.json` is one list of objects, `.csv` and `.parquet` are tables, anything else
/// has an object a line. Without a `format`, the first example decides.
///
/// # Errors
/// Every bad row, as far as there are not too many.
pub fn read(path: &Path, format: Option<Format>) -> Result<Vec<Row>> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match ending.as_str() {
        "json" => jsonl::read_list(path, format),
        "csv" => tables::read_csv(path, format),
        "parquet" => tables::read_parquet(path, format),
        _ => jsonl::read(path, format),
    }
}
