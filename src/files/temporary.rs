//! Temporary files and folders: gone when their guard is dropped, and also where a signal ends the process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Known to [`remove_all`] as long as it lives. Whoever made the path still removes it.
#[derive(Debug)]
pub struct Tracked(PathBuf);

/// Makes a temporary file or folder known.
pub fn track(path: &Path) -> Tracked {
    live().insert(path.to_owned());
    Tracked(path.to_owned())
}

impl Drop for Tracked {
    fn drop(&mut self) {
        live().remove(&self.0);
    }
}

/// Removes everything that is tracked: for the moment before the process ends.
pub fn remove_all() {
    for path in std::mem::take(&mut *live()) {
        // What cannot be removed now cannot be helped: there is no one left to tell.
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
}
