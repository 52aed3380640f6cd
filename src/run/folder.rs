//! The run folder: the recipe, the metrics, the checkpoints, the outcome, and the best adapter so far.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::card::{CARD_FILE, UNPUBLISHED};
use crate::error::{Error, Place, Result};
use crate::files::log::Log;
use crate::files::output::disk;
use crate::files::temporary::{self, MadeFolders, Tracked};
use crate::files::{atomic, json, lock, space};
use crate::report::{DETAILS_FILE, PAGE_FILE};
use crate::text::FOLDER_FILES;

const METRICS: &str = "metrics.jsonl";
const TIMINGS: &str = "timings.jsonl";
const LOCK: &str = "run.lock";
const RECIPE: &str = "recipe.toml";
const RECORD: &str = "run.json";
const IGNORED: &str = ".gitignore";
/// The secret of a private run, which is there until the run has come to its end.
pub(super) const KEY: &str = "privacy.key";

/// A run folder that is being written; no other process writes into it. Lines of metrics reach the disk one by one; every
/// other file is written whole. A folder that was made and is dropped before [`RunFolder::keep`] is removed.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    metrics: Log,
    timings: Log,
    /// The folders to remove; `None` once it is kept.
    unfinished: Option<Unfinished>,
    _lock: File,
}

/// The folders that were made for a run that is not kept yet.
#[derive(Debug)]
struct Unfinished {
    /// The folder, unless it was there before: then it is not a signal's to remove.
    folder: Option<Tracked>,
    /// Dropped after it.
    parents: MadeFolders,
}

/// The finding at the place of a run folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing, or an empty folder.
    Nothing,
    /// A run that has not come to its end.
    Unfinished,
    /// A run that has.
    Finished,
    /// Anything else.
    Other,
}

impl Found {
    /// Looks at `path`.
    pub fn at(path: &Path) -> Self {
        let is_empty = match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => path.symlink_metadata().is_err(),
        };
        if is_empty {
            return Self::Nothing;
        }
        if !path.join(LOCK).is_file() && !path.join(RECORD).is_file() {
            return Self::Other;
        }
        let record = json::read(&path.join(RECORD)).unwrap_or_default();
        match record["outcome"]["interrupted"] == false {
            true => Self::Finished,
            false => Self::Unfinished,
        }
    }
}

impl RunFolder {
    /// The name of the folder of checkpoints in it.
    pub const CHECKPOINTS: &str = "checkpoints";

    /// Makes the folder.
    ///
    /// # Errors
    /// Input: there is something at `path`. Failed: it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check_free(path)?;
        let failed = |error: std::io::Error| match error.kind() {
            // Of two runs that want the folder at once, one gets it.
            ErrorKind::AlreadyExists => {
                lock::check_free(&path.join(LOCK)).err().unwrap_or_else(|| taken(path, Found::Unfinished))
            }
            _ => Error::write(path, &error),
        };
        let is_new = !path.exists();
        let parents = temporary::make_folders(path.parent().unwrap_or(path)).map_err(failed)?;
        let folder = match is_new {
            true => Some(temporary::make(|| std::fs::create_dir(path), |()| path.to_owned()).map_err(failed)?),
            false => None,
        };
        let lock = lock::claim(&path.join(LOCK))?;
        let folder = folder.map(|folder| folder.into_parts().1);
        // It removes what follows, should something of it fail.
        let logs = disk::sync_name(path)
            .and_then(|()| Ok((Log::create_new(&path.join(METRICS))?, Log::at_end(&path.join(TIMINGS))?)));
        match logs {
            Ok((metrics, timings)) => {
                let unfinished = Some(Unfinished { folder, parents });
                Ok(Self { path: path.to_owned(), metrics, timings, unfinished, _lock: lock })
            }
            Err(error) => {
                remove_files(path);
                if folder.is_some() {
                    let _ = std::fs::remove_dir(path);
                }
                Err(failed(error))
            }
        }
    }

    /// Opens the folder of an earlier process.
    ///
    /// # Errors
    /// Input: another process is training into it. Failed: it cannot be written.
    pub fn reopen(path: &Path) -> Result<Self> {
        let lock = lock::claim(&path.join(LOCK))?;
        let failed = |error: std::io::Error| Error::write(path, &error);
        temporary::remove_leftovers(path).map_err(failed)?;
        let metrics = Log::at_end(&path.join(METRICS)).map_err(failed)?;
        let timings = Log::at_end(&path.join(TIMINGS)).map_err(failed)?;
        Ok(Self { path: path.to_owned(), metrics, timings, unfinished: None, _lock: lock })
    }

    /// Keeps the folder whatever happens from now on: it holds something of worth.
    pub fn keep(&mut self) {
        if let Some(unfinished) = self.unfinished.take() {
            unfinished.parents.keep();
        }
    }

    /// Whether a new run may have this folder.
    ///
    /// # Errors
    /// Input: it exists and is not empty; the error says how to go on with a run that is in it.
    pub fn check_free(path: &Path) -> Result<()> {
        match Found::at(path) {
            Found::Nothing => Ok(()),
            found => lock::check_free(&path.join(LOCK)).and(Err(taken(path, found))),
        }
    }

    /// Whether a new run may have this folder and finds `bytes` of room there.
    ///
    /// # Errors
    /// Input: those of [`Self::check_free`]; the folder cannot be written, the disk has less room.
    pub fn check_usable(path: &Path, bytes: u64) -> Result<()> {
        Error::both(Self::check_free(path), space::check(path, bytes)).map(drop)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line to `metrics.jsonl`.
    ///
    /// # Errors
    /// It cannot be written (disk full). The line waits for the next one.
    pub fn record(&mut self, line: &impl Serialize) -> Result<()> {
        add(&mut self.metrics, line)
    }

    /// Adds a line to `timings.jsonl`.
    ///
    /// # Errors
    /// Those of [`Self::record`].
    pub fn record_timing(&mut self, line: &impl Serialize) -> Result<()> {
        add(&mut self.timings, line)
    }

    /// The metrics so far, those that wait for room on the disk included.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn metrics(&mut self) -> Result<Vec<u8>> {
        let path = self.path.join(METRICS);
        self.metrics.content().map_err(|error| Error::failed(&path, format!("cannot be read: {error}")))
    }

    /// Cuts the metrics back to `content`, and goes on after it.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn set_metrics(&mut self, content: &[u8]) -> Result<()> {
        let path = self.path.join(METRICS);
        self.metrics = Log::after(&path, content).map_err(|error| Error::write(&path, &error))?;
        Ok(())
    }

    /// Writes the metrics that wait.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn flush_metrics(&mut self) -> Result<()> {
        let path = self.path.join(METRICS);
        self.metrics.sync().map_err(|error| Error::write(&path, &error))
    }

    /// Writes a file of the folder, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        atomic::write_bytes(&self.path.join(name), contents.as_bytes())
    }

    /// Writes the recipe, and the list of the files that are not published with the adapter.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub fn write_recipe(&self, text: &str) -> Result<()> {
        self.write(IGNORED, UNPUBLISHED)?;
        self.write(RECIPE, text)
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub fn write_record(&self, record: &Value) -> Result<()> {
        self.write(RECORD, &format!("{record:#}\n"))
    }

    /// The content of `run.json` as an earlier process has left it; null without.
    pub fn record_before(&self) -> Value {
        json::read(&self.path.join(RECORD)).unwrap_or_default()
    }
}

fn add(log: &mut Log, line: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(line).map_err(|error| Error::failed(log.path(), error.to_string()))?;
    log.add(&text).map_err(|error| Error::write(log.path(), &error))
}

/// Removes the files that a run writes; any other file belongs to the user.
fn remove_files(folder: &Path) {
    for name in
        [METRICS, TIMINGS, RECIPE, RECORD, LOCK, KEY, "samples.jsonl", IGNORED, CARD_FILE, DETAILS_FILE, PAGE_FILE]
            .iter()
            .chain(&FOLDER_FILES)
    {
        let _ = std::fs::remove_file(folder.join(name));
    }
    // One of those files lies in a folder of its own.
    let _ = std::fs::remove_dir(folder.join("additional_chat_templates"));
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let Some(unfinished) = self.unfinished.take() else { return };
        remove_files(&self.path);
        if unfinished.folder.is_some() {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// The command that goes on with the run in the folder `path`, as it is typed in the same current folder.
pub fn resume_command(path: &Path) -> String {
    format!("burnish train {} --resume", quoted(&path.join(RECIPE).display().to_string()))
}

/// A text as a word of a shell's command.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = |symbol: char| symbol.is_ascii_alphanumeric() || "/._-+=:@%,".contains(symbol);
    match text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

fn taken(path: &Path, found: Found) -> Error {
    let another = "choose another `dir` under [output] (or `--set output.dir=…`)";
    let place = Place::setting("output.dir");
    let (resume, path) = (resume_command(path), path.display());
    match found {
        Found::Unfinished => Error::input(place, format!("is {path}, which holds a run that is not finished"))
            .hint(format!("`{resume}` goes on with it; for another run {another}")),
        Found::Finished => {
            Error::input(place, format!("is {path}, which holds a finished run; a run never writes over another"))
                .hint(format!("{another}; `{resume} --set train.epochs=N` trains on, up to N epochs"))
        }
        Found::Nothing | Found::Other => {
            Error::input(place, format!("is {path}, which exists; a run never writes over anything"))
                .hint(format!("{another}, or remove it"))
        }
    }
}

/// The time in UTC, as RFC 3339 writes it.
pub(super) fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
