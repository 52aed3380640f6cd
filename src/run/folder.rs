//! The run folder: what a run was, how it went, and the best adapter so far.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::files::{atomic, temporary};

/// A run folder that is being written. Lines of metrics reach the disk one by one; everything else is written whole.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: File,
}

impl RunFolder {
    /// Makes the folder with what stands in it from the start, which `fill` writes. If that fails, nothing is left.
    ///
    /// # Errors
    /// Input: there is something at `path`. Failed: it cannot be written. What `fill` says.
    pub fn create(path: &Path, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        Self::check_free(path)?;
        let made = temporary::make_folders(path).map_err(|error| Error::write(path, &error))?;
        let metrics = path.join("metrics.jsonl");
        let filled = File::create(&metrics).map_err(|error| Error::write(&metrics, &error)).and_then(|metrics| {
            let folder = Self { path: path.to_owned(), metrics };
            fill(&folder).map(|()| folder)
        });
        match filled {
            Ok(folder) => {
                made.keep();
                Ok(folder)
            }
            Err(error) => {
                // It was empty, so all that lies in it is ours; what cannot be removed is not worth a second error.
                for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                    let _ = std::fs::remove_file(entry.path());
                }
                Err(error)
            }
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
        if is_taken {
            let error = Error::input(path.display(), "exists already; a run does not overwrite another");
            return Err(error.hint("choose another `dir` under [output] (or `--set output.dir=…`), or remove it"));
        }
        Ok(())
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
        let path = self.path.join("metrics.jsonl");
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
