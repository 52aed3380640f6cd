//! The pictures of a conversation: parts `{"type": "image", "path": …}` among the parts of a turn's content.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde_json::{Map, Value, json};

use super::decode::MAX_FILE_BYTES;
use crate::data::example::{Example, Message, Row};
use crate::data::problems::Problems;
use crate::error::{Error, Result};
use crate::files::{hex, open};

/// The key of a turn's parts beside its text.
const CONTENT: &str = "content";
/// The key of a picture's path.
const PATH: &str = "path";

/// The part of a turn that shows the picture at `path`.
pub fn picture_part(path: &str) -> Value {
    json!({ "type": "image", PATH: path })
}

/// The part of a turn that says `text`.
pub fn text_part(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

/// The path of a picture by the fields of its part.
///
/// # Errors
/// The reason why they name none.
pub fn path_of(fields: &Map<String, Value>) -> Result<&str, String> {
    match fields.get(PATH) {
        Some(Value::String(path)) if !path.is_empty() => Ok(path),
        _ => Err("is a picture without a `path`; expected {\"type\": \"image\", \"path\": …}, a file beside the data: nothing is \
                  fetched"
            .to_owned()),
    }
}

impl Message {
    /// The same turn with these parts as its content, which the template sees in place of the text.
    pub fn with_parts(mut self, parts: Vec<Value>) -> Self {
        self.more.insert(CONTENT.to_owned(), Value::Array(parts));
        self
    }

    /// The same turn with the pictures of these paths before its text; the turn itself where there are none.
    pub fn showing<'a>(self, paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parts: Vec<Value> = paths.into_iter().map(picture_part).collect();
        if parts.is_empty() {
            return self;
        }
        parts.push(text_part(&self.content));
        self.with_parts(parts)
    }

    /// The parts of the content, where there are pictures among them.
    fn parts(&self) -> &[Value] {
        self.more.get(CONTENT).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The paths of the pictures that it shows, in order.
    pub fn pictures(&self) -> impl Iterator<Item = &str> {
        self.parts().iter().filter(|part| part["type"] == "image").filter_map(|part| part[PATH].as_str())
    }

    /// Whether it shows a picture.
    pub fn shows_pictures(&self) -> bool {
        self.pictures().next().is_some()
    }

    /// The texts of its content: the parts, where there are pictures among them.
    pub fn texts(&self) -> Vec<&str> {
        match self.parts() {
            [] => vec![&self.content],
            parts => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        }
    }

    /// The texts of its parts, to be changed; `None` where its content is a text.
    pub(in crate::data) fn part_texts_mut(&mut self) -> Option<Vec<&mut String>> {
        let parts = self.more.get_mut(CONTENT)?.as_array_mut()?;
        let texts = parts.iter_mut().filter_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        });
        Some(texts.collect())
    }
}

/// The turns of an example that may show pictures; of a pair those of both answers.
fn turns(example: &Example) -> Vec<&Message> {
    match example {
        Example::Chat { messages, .. } => messages.iter().collect(),
        Example::Preference { chosen, rejected } => [turns(chosen), turns(rejected)].concat(),
        Example::Labelled { answered, .. } => turns(answered),
        _ => Vec::new(),
    }
}

/// The paths of the pictures of an example, in order.
pub(in crate::data) fn pictures_of(example: &Example) -> Vec<&str> {
    turns(example).into_iter().flat_map(Message::pictures).collect()
}

/// Whether some row shows a picture.
pub(in crate::data) fn have_pictures(rows: &[Row]) -> bool {
    rows.iter().any(|row| turns(&row.example).into_iter().any(Message::shows_pictures))
}

/// Finds the pictures of the rows of a data file in `folder`: relative paths become those of the files, which lie in the folder or
/// below. Returns the SHA-256 of each picture in hexadecimal, in the order of their paths.
///
/// # Errors
/// Input: every row with a path that leads out of the folder, or to no file that can be read.
pub(in crate::data) fn found_in(folder: &Path, rows: &mut [Row]) -> Result<Vec<String>> {
    if !have_pictures(rows) {
        return Ok(Vec::new());
    }
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = folder.canonicalize().map_err(|error| Error::read(folder, &error))?;
    let (mut problems, mut known) = (Problems::default(), BTreeMap::new());
    for row in rows {
        if let Err(error) = replaced(&mut row.example, &mut |path| found(&folder, path, &mut known)) {
            problems.add(&row.position, &error);
        }
    }
    let hashes = known.into_values().map(|(_, sha256)| sha256).collect();
    problems.finish(hashes)
}

/// The real paths of pictures and their SHA-256, by the paths in the file.
type Known = BTreeMap<String, (String, String)>;

/// The real path of a picture.
fn found(folder: &Path, path: &str, known: &mut Known) -> Result<String> {
    if let Some((real, _)) = known.get(path) {
        return Ok(real.clone());
    }
    let place = format!("picture {path:?}");
    if path.contains("://") || path.starts_with("data:") {
        return Err(Error::input(place, "is an address; pictures are files beside the data, and nothing is fetched"));
    }
    let relative = Path::new(path);
    let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let outside = || Error::input(&*place, "leads out of the folder of the data file");
    if !is_plain {
        return Err(outside().hint("paths are relative to the data file"));
    }
    let joined = folder.join(relative);
    let real = joined.canonicalize().map_err(|error| Error::read(&joined, &error))?;
    if !real.starts_with(folder) {
        return Err(outside().hint("a link is followed within the folder only; copy the picture"));
    }
    let sha256 = hex::sha256_of(&open::read(&real, MAX_FILE_BYTES)?);
    let Some(real) = real.to_str() else {
        return Err(Error::input(place, "lies in a folder whose name is not UTF-8"));
    };
    known.insert(path.to_owned(), (real.to_owned(), sha256));
    Ok(real.to_owned())
}

/// Puts another path for every path of a picture in an example.
fn replaced(example: &mut Example, real: &mut dyn FnMut(&str) -> Result<String>) -> Result<()> {
    match example {
        Example::Chat { messages, .. } => messages.iter_mut().try_for_each(|message| {
            let parts = message.more.get_mut(CONTENT).and_then(Value::as_array_mut);
            let pictures = parts.into_iter().flatten().filter(|part| part["type"] == "image");
            for part in pictures {
                if let Some(Value::String(path)) = part.get_mut(PATH) {
                    *path = real(path)?;
                }
            }
            Ok(())
        }),
        Example::Preference { chosen, rejected } => {
            replaced(chosen, real)?;
            replaced(rejected, real)
        }
        Example::Labelled { answered, .. } => replaced(answered, real),
        _ => Ok(()),
    }
}
