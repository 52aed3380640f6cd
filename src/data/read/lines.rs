//! A data file of any kind as JSONL: the bytes of a file that is, else an object a line for each row.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::rows::Receiver;
use super::tables::{self, Kept};
use super::{Kind, MAX_JSON_BYTES, MAX_TABLE_BYTES, Shape, list, packed, unreadable};
use crate::data::position::At;
use crate::data::problems::Problems;
use crate::error::Result;
use crate::files::open;

/// A data file as JSONL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// The name of the file.
    pub name: String,
    /// The lines.
    pub bytes: Vec<u8>,
    /// The line or row of the file that each line comes from, where they are not its own lines.
    pub numbers: Option<Vec<usize>>,
}

impl Lines {
    /// The place in the file of the line `number`, counted from 1.
    pub fn number(&self, number: usize) -> usize {
        self.numbers.as_ref().and_then(|numbers| numbers.get(number - 1)).copied().unwrap_or(number)
    }
}

/// Reads a data file. Every column of a table is kept, in its order; an empty cell is left out.
///
/// # Errors
/// Input: a file that cannot be read; every bad row.
pub fn lines(path: &Path) -> Result<Lines> {
    let kind = Kind::known(path).unwrap_or(Kind::Json);
    let most = if kind == Kind::Json { MAX_JSON_BYTES } else { MAX_TABLE_BYTES };
    let bytes = packed::unpacked(open::read(path, most)?, path)?;
    let name = path.display().to_string();
    let mut objects = Objects { file: Arc::from(name.as_str()), problems: Problems::default(), objects: Vec::new() };
    let shape = Shape::with_columns(None);
    match kind {
        Kind::Csv => tables::csv_into(bytes, &name, &shape, Kept::Every, &mut objects)?,
        Kind::Parquet => tables::parquet_into(&bytes, &name, &shape, Kept::Every, &mut objects)?,
        Kind::Json => {
            let text = unreadable::text(&bytes, &name)?;
            if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'[') {
                return Ok(Lines { name, bytes, numbers: None });
            }
            list::parse(text, &mut objects);
        }
    }
    let Objects { problems, objects, .. } = objects;
    let objects = problems.finish(objects)?;
    let mut bytes = Vec::new();
    for (_, object) in &objects {
        bytes.extend_from_slice(object.to_string().as_bytes());
        bytes.push(b'\n');
    }
    Ok(Lines { name, bytes, numbers: Some(objects.iter().map(|(number, _)| *number).collect()) })
}

/// The objects of a file, each with the number of its line or row.
struct Objects {
    file: Arc<str>,
    problems: Problems,
    objects: Vec<(usize, Value)>,
}

impl Receiver for Objects {
    fn problems(&mut self) -> (&Arc<str>, &mut Problems) {
        (&self.file, &mut self.problems)
    }

    fn row(&mut self, at: At, mut value: Value, _: &[String]) {
        if let Value::Object(fields) = &mut value {
            fields.retain(|_, value| !value.is_null());
        }
        let (At::Line(number) | At::Row(number)) = at;
        self.objects.push((number, value));
    }
}
