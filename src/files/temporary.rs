//! Temporary files and folders: gone when their guard is dropped, and also where a signal ends the process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static LIVE: Mutex<BTreeMap<PathBuf, Kind>> = Mutex::new(BTreeMap::new());

/// What of a path is temporary.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// All of it.
    Whole,
    /// The folder, as long as nothing lies in it.
    IfEmpty,
}

fn live() -> MutexGuard<'static, BTreeMap<PathBuf, Kind>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Known to [`remove_all`] as long as it lives. Whoever made the path still removes it.
#[derive(Debug)]
pub struct Tracked(PathBuf);

/// Makes a temporary file or folder known.
pub fn track(path: &Path) -> Tracked {
    live().insert(path.to_owned(), Kind::Whole);
    Tracked(path.to_owned())
}

impl Drop for Tracked {
    fn drop(&mut self) {
        live().remove(&self.0);
    }
}

/// Folders that were made for something to lie in. Dropped before they are kept, they are gone again, unless something
/// lies in them.
#[derive(Debug)]
pub struct MadeFolders(Vec<PathBuf>);

/// Makes the folder `path` and those above it, as far as they are missing.
///
/// # Errors
/// One of them cannot be made; then none is left.
pub fn make_folders(path: &Path) -> std::io::Result<MadeFolders> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && folder.symlink_metadata().is_err();
    // Innermost first, which is the order they are removed in.
    let made = MadeFolders(path.ancestors().take_while(is_missing).map(Path::to_owned).collect());
    live().extend(made.0.iter().map(|folder| (folder.clone(), Kind::IfEmpty)));
    std::fs::create_dir_all(path)?;
    Ok(made)
}

impl MadeFolders {
    /// They stay.
    pub fn keep(mut self) {
        for folder in std::mem::take(&mut self.0) {
            live().remove(&folder);
        }
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            live().remove(folder);
            // A folder that is not empty stays: others use it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Removes everything that is tracked: for the moment before the process ends.
pub fn remove_all() {
    // Backwards, what lies in a folder comes before the folder.
    for (path, kind) in std::mem::take(&mut *live()).into_iter().rev() {
        // What cannot be removed now cannot be helped: there is no one left to tell.
        let _ = match kind {
            Kind::IfEmpty => std::fs::remove_dir(&path),
            Kind::Whole if path.is_dir() => std::fs::remove_dir_all(&path),
            Kind::Whole => std::fs::remove_file(&path),
        };
    }
}
