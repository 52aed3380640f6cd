//! From a line of a data file to token ids with a mask: example, template, encoding, batches.

pub mod batch;
pub mod encode;
pub mod example;
pub mod jsonl;
pub mod tables;
pub mod template;

pub use batch::Batch;
pub use encode::{Encoded, Encoder};
pub use example::{Example, Message, Role};
pub use jsonl::Format;
pub use template::ChatTemplate;

use std::path::Path;

use crate::error::Result;

/// Reads a data file by its extension: `.json` is a list of objects, anything else an object a line. Without a
/// `format` the first object decides.
///
/// # Errors
/// Every bad row, as far as there are not too many.
pub fn read(path: &Path, format: Option<Format>) -> Result<Vec<Example>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => jsonl::read_list(path, format),
        _ => jsonl::read(path, format),
    }
}
