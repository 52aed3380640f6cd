//! The run folder: the recipe, the metrics, the outcome, and the best adapter so far.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::temporary::{self, MadeFolders, Tracked};
use crate::text::FOLDER_FILES;

const METRICS: &str = "metrics.jsonl";

/// A run folder that is being written. Lines of metrics reach the disk one by one; every other file is written whole.
/// A folder that is dropped before [`RunFolder::keep`] is removed.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
    /// The folders to remove; `None` once it is kept.
    unfinished: Option<Unfinished>,
}

/// The folders that were made for a run that is not kept yet.
#[derive(Debug)]
struct Unfinished {
    /// The folder, unless it was there before: then it is not a signal's to remove.
    folder: Option<Tracked>,
    /// Dropped after it.
    parents: MadeFolders,
}

impl RunFolder {
    /// Makes the folder.
    ///
    /// # Errors
    /// Input: there is something at `path`. Failed: it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check_free(path)?;
        let failed = |error: std::io::Error| match error.kind() {
            // Of two runs that want the folder at once, one gets it.
            ErrorKind::AlreadyExists => taken(path),
            _ => Error::write(path, &error),
        };
        let parent = path.parent().unwrap_or(path);
        let is_new = !path.exists();
        let parents = temporary::make_folders(parent).map_err(failed)?;
        let metrics = || atomic::create_new(&path.join(METRICS));
        let claim = || {
            std::fs::create_dir(path)?;
            metrics().inspect_err(|_| drop(std::fs::remove_dir(path)))
        };
        let (metrics, folder) = match is_new {
            true => temporary::make(claim, |_| path.to_owned()).map(|made| {
                let (metrics, folder) = made.into_parts();
                (metrics, Some(folder))
            }),
            false => metrics().map(|metrics| (metrics, None)),
        }
        .map_err(failed)?;
        let unfinished = Some(Unfinished { folder, parents });
        Ok(Self { path: path.to_owned(), metrics, unfinished })
    }

    /// Keeps the folder whatever happens from now on: it holds something of worth.
    pub fn keep(&mut self) {
        if let Some(unfinished) = self.unfinished.take() {
            unfinished.parents.keep();
        }
    }

    /// Whether a run may have this folder.
    ///
    /// # Errors
    /// Input: it exists and is not empty.
    pub fn check_free(path: &Path) -> Result<()> {
        let is_taken = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => path.symlink_metadata().is_ok(),
        };
        if is_taken { Err(taken(path)) } else { Ok(()) }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// It cannot be written (disk full).
    pub fn record(&mut self, line: &impl Serialize) -> Result<()> {
        let path = self.path.join(METRICS);
        let mut text = serde_json::to_string(line).map_err(|error| Error::failed(path.display(), error.to_string()))?;
        text.push('\n');
        self.metrics.write_all(text.as_bytes()).map_err(|error| Error::write(&path, &error))
    }

    /// Writes a file of the folder, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        atomic::write_bytes(&self.path.join(name), contents.as_bytes())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let Some(unfinished) = self.unfinished.take() else { return };
        // Only the files that a run writes are removed; any other file belongs to the user.
        for name in [METRICS, "recipe.toml", "run.json", "samples.jsonl"].iter().chain(&FOLDER_FILES) {
            let _ = std::fs::remove_file(self.path.join(name));
        }
        // One of those files lies in a folder of its own.
        let _ = std::fs::remove_dir(self.path.join("additional_chat_templates"));
        if unfinished.folder.is_some() {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn taken(path: &Path) -> Error {
    Error::input(path.display(), "exists already; a run does not overwrite another")
        .hint("choose another `dir` under [output] (or `--set output.dir=…`), or remove it")
}
