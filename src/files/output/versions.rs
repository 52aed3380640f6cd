//! A folder of versions of a state, each of them whole whatever happens while it is written: the process is killed, the
//! power fails, the disk is full.
//!
//! A version is a folder, `step-00000123`. It comes into being as `.tmp-step-00000123` beside its final name: each file is
//! written and synced, last the manifest with the size and the SHA-256 of each; the folder is synced, renamed, and the
//! parent synced. Only then the version counts as saved, and older ones go: renamed to `.trash-…`, synced, then removed. Names
//! that begin with `.tmp-` or `.trash-` are leftovers of a process that was killed; the next save removes them.
//!
//! One process at a time may save into the folder; [`super::lock`] keeps others out.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::disk::{self, Counted};
use super::temporary;
use crate::error::{Error, Result};
use crate::files::hex;

const MANIFEST: &str = "manifest.json";
const VERSION: &str = "step-";
const STAGED: &str = ".tmp-";
const TRASH: &str = ".trash-";
/// The format of the manifest that this program writes and reads.
const FORMAT: u32 = 1;
/// The largest manifest that is read. It holds a line for each file and the identity.
const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// A folder of versions.
#[derive(Debug)]
pub struct Versions {
    folder: PathBuf,
    keep: usize,
    /// The version that [`Versions::newest`] found, which is never removed.
    resumed: Option<Name>,
    /// The versions known to be whole: the one found, and those saved since, oldest first.
    whole: Vec<Name>,
}

/// A version's name: the step, and a number from 1 that tells apart versions of the same step. Later versions are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    step: u64,
    attempt: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}{:08}", self.step)?;
        if self.attempt > 1 { write!(f, ".{}", self.attempt) } else { Ok(()) }
    }
}

impl Name {
    /// The name in a folder's list; `None` for anything that this module does not write.
    fn parse(text: &str) -> Option<Self> {
        let number = text.strip_prefix(VERSION)?;
        let (step, attempt) = number.split_once('.').unwrap_or((number, "1"));
        let name = Self { step: step.parse().ok()?, attempt: attempt.parse().ok()? };
        (name.to_string() == text).then_some(name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    step: u64,
    identity: Value,
    files: BTreeMap<String, FileRecord>,
}

/// The newest version that is whole.
#[derive(Debug)]
pub struct Newest {
    /// The version; `None` where not one is whole.
    pub version: Option<Version>,
    /// The damage of each newer version, newest first.
    pub damaged: Vec<Error>,
}

/// A version that was whole when it was read.
#[derive(Debug)]
pub struct Version {
    /// Its folder.
    pub path: PathBuf,
    /// The step it was saved at.
    pub step: u64,
    /// The identity it was saved with.
    pub identity: Value,
    files: BTreeMap<String, FileRecord>,
}

/// The files of a version that is being written.
#[derive(Debug)]
pub struct Draft<'a> {
    folder: &'a Path,
    files: BTreeMap<String, FileRecord>,
}

impl Versions {
    /// The versions in `folder`, which need not exist yet. `keep` of them are kept, at least one, and beside them the one
    /// that [`Self::newest`] has returned. Nothing is written.
    pub fn open(folder: &Path, keep: usize) -> Self {
        Self { folder: folder.to_owned(), keep: keep.max(1), resumed: None, whole: Vec::new() }
    }

    /// The newest version whose files are all as they were written. Every byte of it is read.
    ///
    /// # Errors
    /// Input: the folder cannot be listed.
    pub fn newest(&mut self) -> Result<Newest> {
        let mut names = self.names()?;
        names.sort_unstable();
        let mut damaged = Vec::new();
        for name in names.into_iter().rev() {
            match Version::read_whole(&self.folder.join(name.to_string()), name.step) {
                Ok(version) => {
                    self.resumed = Some(name);
                    self.whole = vec![name];
                    return Ok(Newest { version: Some(version), damaged });
                }
                Err(error) => damaged.push(error),
            }
        }
        Ok(Newest { version: None, damaged })
    }

    /// Saves a version, whose files `fill` writes; `identity` says what it belongs to. (A number with a fraction may come back
    /// changed in its last digit: identities are better texts.) Then versions that are not to be kept are removed; those that
    /// could not be removed are returned, and why. They do no harm but take room.
    ///
    /// # Errors
    /// Those of `fill`; Failed: the disk is full or does not work. There is no new version then, and every older one is as it
    /// was.
    pub fn save(
        &mut self,
        step: u64,
        identity: &Value,
        fill: impl FnOnce(&mut Draft<'_>) -> Result<()>,
    ) -> Result<Vec<Error>> {
        let disk = disk::current();
        let failed = |error: io::Error| Error::write(&self.folder, &error);
        temporary::make_folders(&self.folder).map_err(failed)?.keep();
        let mut not_removed = self.remove_leftovers()?;
        let attempts = self.names()?.into_iter().filter(|name| name.step == step).map(|name| name.attempt);
        let name = Name { step, attempt: attempts.max().map_or(1, |last| last.saturating_add(1)) };

        let staged = temporary::folder_at(self.folder.join(format!("{STAGED}{name}"))).map_err(failed)?;
        let mut draft = Draft { folder: staged.path(), files: BTreeMap::new() };
        fill(&mut draft)?;
        let files = std::mem::take(&mut draft.files);
        let manifest = Manifest { format: FORMAT, step, identity: identity.clone(), files };
        draft.file(MANIFEST, |writer| {
            let path = self.folder.join(MANIFEST);
            writer.write_all(manifest.text()?.as_bytes()).map_err(|error| Error::write(&path, &error))
        })?;
        disk.sync_folder(staged.path()).map_err(failed)?;
        let path = self.folder.join(name.to_string());
        staged.settle(|staged| staged.rename(&path)).map_err(failed)?;
        disk.sync_folder(&self.folder).map_err(failed)?;

        self.whole.push(name);
        not_removed.extend(self.prune());
        Ok(not_removed)
    }

    /// The versions in the folder, in no particular order.
    fn names(&self) -> Result<Vec<Name>> {
        Ok(self.entries()?.iter().filter_map(|name| Name::parse(name)).collect())
    }

    fn entries(&self) -> Result<Vec<String>> {
        match disk::current().names(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names.map_err(|error| Error::read(&self.folder, &error)),
        }
    }

    /// Removes what a process that was killed has left; returns what could not be removed.
    fn remove_leftovers(&self) -> Result<Vec<Error>> {
        let entries = self.entries()?;
        let leftovers = entries.iter().filter(|name| name.starts_with(STAGED) || name.starts_with(TRASH));
        Ok(leftovers.filter_map(|name| remove(&self.folder.join(name)).err()).collect())
    }

    /// Removes the versions that are not to be kept; returns those that could not be removed.
    fn prune(&self) -> Vec<Error> {
        let disk = disk::current();
        let kept = &self.whole[self.whole.len().saturating_sub(self.keep)..];
        let names = match self.names() {
            Ok(names) => names,
            Err(error) => return vec![error],
        };
        let (mut trash, mut errors) = (Vec::new(), Vec::new());
        for name in names.iter().filter(|name| !kept.contains(name) && self.resumed != Some(**name)) {
            let (path, removed) = (self.folder.join(name.to_string()), self.folder.join(format!("{TRASH}{name}")));
            match disk.rename(&path, &removed) {
                Ok(()) => trash.push(removed),
                Err(error) => errors.push(Error::write(&path, &error)),
            }
        }
        if trash.is_empty() {
            return errors;
        }
        // The new names must be on the disk before a file is removed: a version never appears with files missing.
        match disk.sync_folder(&self.folder) {
            Ok(()) => errors.extend(trash.iter().filter_map(|path| remove(path).err())),
            Err(error) => errors.push(Error::write(&self.folder, &error)),
        }
        errors
    }
}

/// Whether a name is that of a file in a version's own folder.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|plain| plain == name)
}

fn remove(folder: &Path) -> Result<()> {
    disk::current().remove_folder(folder).map_err(|error| Error::failed(folder, format!("cannot be removed: {error}")))
}

impl Draft<'_> {
    /// Writes a file through `fill`, and syncs it.
    ///
    /// # Errors
    /// Those of `fill`; Failed: the name is taken or no plain name, the disk is full or does not work. The version cannot be
    /// saved then.
    pub fn file(&mut self, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let path = self.folder.join(name);
        let failed = |error: io::Error| Error::write(&path, &error);
        if !is_plain(name) {
            return Err(Error::failed(name, "is not the plain name of a file"));
        }
        let mut file = disk::current().create(&path).map_err(failed)?;
        let hashed = Hashed { file: Counted::new(&mut *file), hash: Sha256::new() };
        let mut writer = BufWriter::with_capacity(1 << 20, hashed);
        fill(&mut writer)?;
        let Hashed { file, hash } = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        let bytes = file.finish().map_err(failed)?;
        self.files.insert(name.to_owned(), FileRecord { bytes, sha256: hex::encode(&hash.finalize()) });
        Ok(())
    }
}

/// A file, with the hash of all that was written to it.
struct Hashed<'a> {
    file: Counted<'a>,
    hash: Sha256,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Version {
    /// Reads the version in the folder `path` and checks every file.
    fn read_whole(path: &Path, step: u64) -> Result<Self> {
        let manifest = Manifest::read(&path.join(MANIFEST))?;
        if manifest.step != step {
            let message = format!("is named otherwise than its manifest says: step {}", manifest.step);
            return Err(Error::input(path, message));
        }
        let Manifest { identity, files, .. } = manifest;
        let version = Self { path: path.to_owned(), step, identity, files };
        version.files.keys().try_for_each(|name| version.read(name).map(drop))?;
        Ok(version)
    }

    /// The content of a file of the version, which is as it was written.
    ///
    /// # Errors
    /// Input: there is no such file in the version, or it is damaged.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let Some(record) = self.files.get(name) else {
            return Err(Error::input(&self.path, format!("has no file `{name}`")));
        };
        let bytes = disk::current().read(&path, record.bytes)?;
        if bytes.len() as u64 != record.bytes {
            let message = format!("is damaged: it has {} bytes, and was written with {}", bytes.len(), record.bytes);
            return Err(Error::input(path, message));
        }
        if hex::encode(&Sha256::digest(&bytes)) != record.sha256 {
            return Err(Error::input(path, "is damaged: its SHA-256 is another than when it was written"));
        }
        Ok(bytes)
    }
}

impl Manifest {
    /// The text of the file, which ends with its own checksum.
    fn text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::failed(MANIFEST, error.to_string()))?;
        let body = text.strip_suffix("\n}").unwrap_or(&text);
        Ok(format!("{body}{}", ending(body)))
    }

    fn read(path: &Path) -> Result<Self> {
        let damaged = |found: &str| Error::input(path, format!("is damaged: {found}"));
        let bytes = disk::current().read(path, MAX_MANIFEST_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|_| damaged("it is not UTF-8"))?;
        let body = text.len().checked_sub(ending("").len()).and_then(|end| text.get(..end));
        let body = body.ok_or_else(|| damaged("it is cut off"))?;
        if text.get(body.len()..) != Some(&ending(body)) {
            return Err(damaged("its checksum is another than when it was written"));
        }
        let manifest: Self = serde_json::from_str(&text).map_err(|error| damaged(&error.to_string()))?;
        if manifest.format != FORMAT {
            let message = format!("has format {}, which this version of the program does not read", manifest.format);
            return Err(Error::input(path, message));
        }
        match manifest.files.keys().find(|name| !is_plain(name)) {
            Some(name) => Err(Error::input(path, format!("names `{name}`, which is not a file of its folder"))),
            None => Ok(manifest),
        }
    }
}

/// The last lines of a manifest: the SHA-256 of all before them.
fn ending(body: &str) -> String {
    format!(",\n  \"sha256\": \"{}\"\n}}\n", hex::encode(&Sha256::digest(body.as_bytes())))
}
