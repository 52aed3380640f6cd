//! A question of the user, with the pictures that it shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::data::Message;
use crate::data::images::decode::MAX_FILE_BYTES;
use crate::data::images::parts::{picture_part, text_part};
use crate::error::Result;
use crate::files::open;
use crate::run::prompt_pictures::PromptPictures;

/// A picture: its path as the user gave it, and the bytes of the file as it was then.
#[derive(Debug, Clone)]
struct Shown {
    path: String,
    bytes: Arc<Vec<u8>>,
}

/// A question.
#[derive(Debug, Clone, Default)]
pub(super) struct Question {
    pub(super) text: String,
    pictures: Vec<Shown>,
}

impl Question {
    /// The pictures with this text.
    pub(super) fn asking(self, text: String) -> Self {
        Self { text, ..self }
    }

    /// The same question with a further picture.
    ///
    /// # Errors
    /// Input: a file that cannot be read, or is too large.
    pub(super) fn with_picture(mut self, path: &str) -> Result<Self> {
        let bytes = Arc::new(open::read(Path::new(path), MAX_FILE_BYTES)?);
        self.pictures.push(Shown { path: path.to_owned(), bytes });
        Ok(self)
    }

    /// Whether it shows a picture.
    pub(super) fn shows_pictures(&self) -> bool {
        !self.pictures.is_empty()
    }

    /// The number of its pictures.
    pub(super) fn pictures(&self) -> usize {
        self.pictures.len()
    }

    /// The turn of the user.
    pub(super) fn message(&self) -> Message {
        Message::user(&self.text).showing(self.pictures.iter().map(|picture| picture.path.as_str()))
    }

    /// Adds its pictures to those of a prompt.
    ///
    /// # Errors
    /// Those of [`PromptPictures::add`], at the path of the picture.
    pub(super) fn add_to(&self, pictures: &mut PromptPictures) -> Result<()> {
        let mut shown = self.pictures.iter();
        shown.try_for_each(|Shown { path, bytes }| {
            pictures.add(path, bytes.clone()).map_err(|error| error.within(Path::new(path)))
        })
    }

    /// The content of the turn in a data file at `file`. Pictures in its folder or below are named from there on; the paths of the others
    /// stay, and join `outside`.
    pub(super) fn saved(&self, file: &Path, outside: &mut Vec<String>) -> Value {
        if self.pictures.is_empty() {
            return json!(self.text);
        }
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parts = self.pictures.iter().map(|Shown { path, .. }| {
            let relative = within(folder, Path::new(path));
            if relative.is_none() {
                outside.push(path.clone());
            }
            picture_part(relative.as_deref().and_then(Path::to_str).unwrap_or(path))
        });
        parts.chain([text_part(&self.text)]).collect()
    }
}

/// The path from a folder to a file in it or below.
fn within(folder: &Path, file: &Path) -> Option<PathBuf> {
    let (folder, file) = (folder.canonicalize().ok()?, file.canonicalize().ok()?);
    file.strip_prefix(folder).ok().map(Path::to_owned)
}
