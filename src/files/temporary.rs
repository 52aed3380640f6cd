//! Temporary files and folders: gone when their guard is dropped, and also where a signal ends the process.
//!
//! A signal comes while another thread writes. Whatever makes, renames or forgets something temporary therefore holds
//! one lock, which [`remove_all`] takes and never gives back: after it nothing appears any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

static LIVE: Mutex<BTreeMap<PathBuf, Kind>> = Mutex::new(BTreeMap::new());

/// What of a path is temporary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Makes a temporary file or folder, known from its first moment.
///
/// # Errors
/// What `make` says.
pub fn make<T>(make: impl FnOnce() -> io::Result<T>, path_of: impl FnOnce(&T) -> PathBuf) -> io::Result<(T, Tracked)> {
    let mut live = live();
    let made = make()?;
    let path = path_of(&made);
    live.insert(path.clone(), Kind::Whole);
    Ok((made, Tracked(path)))
}

/// Does something that a signal must not interrupt: renames that belong together.
pub fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _live = live();
    work()
}

impl Tracked {
    /// Gives the path its final name by `rename`, and forgets it.
    pub fn settle<T>(self, rename: impl FnOnce() -> T) -> T {
        let mut live = live();
        let renamed = rename();
        live.remove(&self.0);
        // `drop` would take the lock again.
        std::mem::forget(self);
        renamed
    }
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
pub fn make_folders(path: &Path) -> io::Result<MadeFolders> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && folder.symlink_metadata().is_err();
    // Innermost first, which is the order they are removed in. Before the lock, so that it is dropped after it.
    let made = MadeFolders(path.ancestors().take_while(is_missing).map(Path::to_owned).collect());
    let mut live = live();
    live.extend(made.0.iter().map(|folder| (folder.clone(), Kind::IfEmpty)));
    std::fs::create_dir_all(path)?;
    Ok(made)
}

impl MadeFolders {
    /// They stay.
    pub fn keep(mut self) {
        let mut live = live();
        for folder in std::mem::take(&mut self.0) {
            live.remove(&folder);
        }
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        let mut live = live();
        for folder in &self.0 {
            live.remove(folder);
            // A folder that is not empty stays: others use it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Removes everything that is tracked: for the moment before the process ends. Threads that want to make or rename
/// something wait from now on.
pub fn remove_all() {
    /// A thread may still be closing a file that it has begun in a folder.
    const TRIES: usize = 100;
    let live = live();
    let of_kind = |kind| live.iter().rev().filter(move |entry| *entry.1 == kind).map(|entry| entry.0);
    // Backwards, what lies in another comes before it.
    for path in of_kind(Kind::Whole) {
        for _ in 0..TRIES {
            // What cannot be removed cannot be helped: there is no one left to tell.
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            if path.symlink_metadata().is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    for folder in of_kind(Kind::IfEmpty) {
        let _ = std::fs::remove_dir(folder);
    }
    std::mem::forget(live);
}
